"""`steer.steerer` with a portfolio: what is routed, what is composed, and what is told."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from steer.bundle import Bundle
from steer.certificate import certify
from steer.edits import Edit
from steer.errors import InputError, WeightsError
from steer.gate import Gate
from steer.interference import Interference
from steer.objective import Objective
from steer.portfolio import Candidate, Portfolio
from steer.steerer import Steerer
from steer.trait_entry import TraitEntry
from tests.models import tiny
from tests.test_generation import an_edit

PROMPTS = ["Hi", "How are you?", "Tell me about rain."]
TRAITS = {"brevity": an_edit(1), "warmth": an_edit(2), "zest": an_edit(3)}
KEPT = (an_edit(4), an_edit(5))


def a_trait(name: str, edit: Edit) -> TraitEntry:
    return TraitEntry(name, "", "more", "less", edit, 0.1, "mean-difference", 0.5, {}, {}, {})


def a_steerer(
    *, portfolio: bool = True, family: str = "deep", interference: Interference | None = None
) -> Steerer:
    model = tiny("llama")
    rewards = np.array([[0.3, 0.4], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    objective, kl = Objective(fairness=0.0, penalty=0.1), np.array([0.0, 0.1, 0.1, 0.2])
    kept = Portfolio(
        traits=("brevity", "warmth"),
        rewards=("length", "warm words"),
        objective=objective,
        candidates=tuple(
            Candidate(family, row) for row in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
        ),
        mean_rewards=rewards,
        kl=kl,
        kept=(1, 2),
        edits=KEPT,
        certificate=certify(objective.measured(rewards, kl), (1, 2)),
    )
    bundle = Bundle(
        "tiny",
        model.fingerprint,
        "response",
        {name: a_trait(name, edit) for name, edit in TRAITS.items()},
        {},
        {},
        kept if portfolio else None,
        interference=interference,
    )
    return Steerer(model, bundle)


def same(one: Edit, other: Edit) -> bool:
    return one.layers.keys() == other.layers.keys() and all(
        np.allclose(one.layers[i].e, other.layers[i].e, atol=1e-6) for i in one.layers
    )


def test_mixtures_of_its_traits_go_to_the_portfolio() -> None:
    steerer = a_steerer()
    assert same(steerer.resolve({"brevity": 3, "warmth": 1}), KEPT[0])
    assert same(steerer.resolve({"brevity": 1, "warmth": 3}, 0.5), 0.5 * KEPT[1])
    assert steerer.resolve({"brevity": 1}, 0.0).is_zero()
    assert steerer.resolve(None) == Edit({}) or steerer.resolve(None).is_zero()


def test_one_trait_alone_is_served_by_its_own_edit() -> None:
    """Where that held with the other candidates; they are of another family in other tests."""
    steerer = a_steerer(family="own layers")
    for name in ("brevity", "warmth"):
        for weights in ({name: 2.0}, {name: 1.0, "zest": 0.0}):
            assert same(steerer.resolve(weights, 0.5), 0.5 * TRAITS[name])
    entry = steerer.route({"warmth": 3})
    assert (entry.number, entry.candidate.coefficients) == (None, (0.0, 1.0))
    assert (entry.value, entry.regret) == (pytest.approx(0.9 - 0.1 * 0.1 / 0.5), 0)
    assert entry.rewards == {"brevity": 0.1, "warmth": 0.9}
    assert str(entry).startswith("the edit of warmth alone: rewards brevity 0.10, warmth 0.90;")
    assert same(steerer.resolve({"brevity": 99, "warmth": 1}), KEPT[0])
    assert steerer.route({"brevity": 99, "warmth": 1}).number == 1


def test_compositions_counteract_interference() -> None:
    # By hand: brevity gains c_b and warmth 0.5 c_w - 0.2 c_b, as much if c_w is 2.4 c_b.
    gains = np.array([[1.0, -0.2], [0.0, 0.5]])
    found = Interference(("brevity", "warmth"), gains, np.zeros((2, 2, 2)))
    steerer = a_steerer(interference=found)
    mixed = (1 / 2.6) * TRAITS["brevity"] + (2.4 / 2.6) * TRAITS["warmth"]
    weights = {"brevity": 1, "warmth": 1}
    assert same(steerer.resolve(weights, compose=True), mixed)
    assert same(steerer.resolve(weights, 0.5, compose=True), 0.5 * mixed)
    assert same(steerer.resolve(weights), KEPT[0])  # routed all the same
    assert same(steerer.resolve({"warmth": 2}, compose=True), TRAITS["warmth"])


def test_what_it_does_not_serve_is_composed() -> None:
    steerer = a_steerer()
    # Doses whose squares sum to one.
    both = 0.5**0.5 * TRAITS["brevity"] + 0.5**0.5 * TRAITS["zest"]
    assert same(steerer.resolve({"brevity": 1, "zest": 1}), both)
    assert same(steerer.resolve({"brevity": 1, "zest": 0}), KEPT[0])
    mixed = 0.9**0.5 * TRAITS["brevity"] + 0.1**0.5 * TRAITS["warmth"]
    assert same(steerer.resolve({"brevity": 3, "warmth": 1}, compose=True), mixed)
    assert same(a_steerer(portfolio=False).resolve({"brevity": 3, "warmth": 1}), mixed)


def test_all_that_it_serves_is_behind_the_gate() -> None:
    steerer = a_steerer()
    layers = {i for edit in (*TRAITS.values(), *KEPT) for i in edit.layers}
    width = steerer.language_model.width
    gate = Gate({i: np.full(width, 0.5 + i, np.float32) for i in layers})
    gated = Steerer(steerer.language_model, replace(steerer.bundle, gate=gate))
    for weights, compose in (({"brevity": 3, "warmth": 1}, False), ({"zest": 1}, True)):
        plain = steerer.resolve(weights, 0.5, compose=compose)
        found = gated.resolve(weights, 0.5, compose=compose)
        assert found.digest == gate(plain).digest != plain.digest
    assert gated.resolve({"zest": 1}, 0.0).is_zero() and gated.resolve(None).is_zero()


def test_every_way_of_answering_routes_alike() -> None:
    steerer = a_steerer()
    weights = [{"brevity": 1.0}, None, {"brevity": 1.0, "warmth": 2.0}]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "no_repeat_ngram_size": 0}
    for compose in (False, True):
        batch = steerer.generate(PROMPTS, weights, compose=compose, **options)
        for prompt, row, text in zip(PROMPTS, weights, batch, strict=True):
            assert steerer.generate(prompt, row, compose=compose, **options) == text
            pieces = steerer.stream(prompt, row, compose=compose, **options)
            assert "".join(pieces).strip() == text
    routed, composed = (
        steerer.generate(PROMPTS[0], weights[2], compose=compose, **options)
        for compose in (False, True)
    )
    assert routed != composed, "the edits do the same; this tests nothing"


def test_route_tells_what_serves() -> None:
    steerer = a_steerer()
    entry = steerer.route({"brevity": 1, "warmth": 1})
    # By hand: J is 0.35, 0.48, 0.48, 0.46 at equal weights; ties go to the first.
    assert (entry.number, entry.candidate.coefficients) == (1, (1.0, 0.0))
    assert entry.value == pytest.approx(0.5 - 0.1 * 0.1 / 0.5)
    assert entry.regret == 0
    assert entry.rewards == {"brevity": 0.9, "warmth": 0.1}
    assert "strength" not in str(entry)
    assert "measured at strength 1, not 0.5" in str(steerer.route({"brevity": 1}, 0.5))


def test_route_refuses() -> None:
    with pytest.raises(InputError, match="no portfolio"):
        a_steerer(portfolio=False).route({"brevity": 1})
    with pytest.raises(WeightsError, match="zest"):
        a_steerer().route({"zest": 1})
    with pytest.raises(WeightsError, match="strength"):
        a_steerer().route({"brevity": 1}, -1)


def test_a_stream_that_is_dropped_ends_the_generation() -> None:
    steerer = a_steerer()
    model = steerer.language_model
    model.model.generation_config.eos_token_id = 10_000  # which never comes
    (space,) = model.tokenizer(" ", add_special_tokens=False).input_ids
    passes: list[int] = []

    def with_spaces(module: object, args: object, scores: torch.Tensor) -> torch.Tensor:
        """Pieces end at white space, which this model hardly writes."""
        passes.append(1)
        time.sleep(0.002)
        return scores.index_fill(-1, torch.tensor([space]), 20.0 * (len(passes) % 3 == 0))

    handle = model.model.lm_head.register_forward_hook(with_spaces)
    options = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    stream = steerer.stream("Hi", {"warmth": 1}, max_new_tokens=400, **options)
    next(stream)
    begun = len(passes)
    stream.close()
    handle.remove()
    assert begun <= len(passes) < 200
    assert steerer.generate("Hi", max_new_tokens=2)  # nobody holds the model


def test_a_failure_in_a_stream_is_told() -> None:
    steerer = a_steerer()

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    handle = steerer.language_model.layers[0].register_forward_pre_hook(fails)
    with pytest.raises(ZeroDivisionError):
        list(steerer.stream("Hi", {"warmth": 1}, max_new_tokens=4))
    handle.remove()
    assert "".join(steerer.stream("Hi", max_new_tokens=4))


def test_a_stream_is_sampled_by_its_seed() -> None:
    steerer = a_steerer()
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 20}
    for seed in (3, 4):
        pieces = "".join(steerer.stream("Hi", {"warmth": 1}, seed=seed, **options))
        assert pieces.strip() == steerer.generate("Hi", {"warmth": 1}, seed=seed, **options)


@pytest.mark.parametrize("seed", ["1", 1.0, True, -1, 2**63, 10**30])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    steerer = a_steerer()
    for answer in (steerer.generate, steerer.stream):
        with pytest.raises(InputError, match="seed: expected a whole number"):
            answer("Hi", seed=seed)


def test_a_seed_is_a_number_of_any_kind() -> None:
    steerer = a_steerer()
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 8}
    for seed in (3, 2**63 - 1):
        expected = steerer.generate("Hi", seed=seed, **options)
        assert steerer.generate("Hi", seed=np.int64(seed), **options) == expected


def test_what_is_no_weights_is_told_shortly() -> None:
    steerer = a_steerer()
    for wrong in (TRAITS["warmth"], steerer.bundle):
        with pytest.raises(InputError) as caught:
            steerer.generate("Hi", wrong)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_answers_alike_by_itself(copied: Callable[[Steerer], Steerer]) -> None:
    steerer = a_steerer()
    other = copied(steerer)
    options = {"max_new_tokens": 8}
    with steerer.steer({"zest": 1}):  # nothing is shared
        found = other.generate(PROMPTS, {"warmth": 1}, **options)
        steerer.language_model.model(torch.tensor([[5]]))
    assert found == steerer.generate(PROMPTS, {"warmth": 1}, **options)
