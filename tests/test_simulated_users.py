"""The scripts of experiments/preferences, on a few people and statements."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
sys.path.append(str(Path(__file__).parents[1] / "experiments" / "preferences"))
import prompted
import simulated_users
import words_to_weights
from simulated_users import Place, Told, _answer, _ideal, table
from words_to_weights import Statement, read_statements, top

from steer.bundle import Bundle
from steer.certificate import Measured
from steer.chat import render
from steer.generation import Decoding, prompt_tokens
from steer.posterior import Posterior
from steer.resources import default_bundle_path
from steer.rewards import FunctionReward
from tests.models import tiny

SHORT = Decoding(max_new_tokens=4, repetition_penalty=1.0, no_repeat_ngram_size=None)
DEFAULT = default_bundle_path()


def a_place() -> Place:
    rng = np.random.default_rng(0)
    measured = Measured(rng.uniform(size=(4, 2)), np.array([0.0, 0.1, 0.1, 0.2]))
    return Place(measured, (1, 2), rng.uniform(-1, 1, (30, 2)), seed=0)


def test_the_median_person_is_as_consistent_as_asked() -> None:
    place = a_place()
    people = np.random.default_rng(1).dirichlet(np.ones(2), 50)
    slope = place.slope(people, 0.75)
    consistent = [
        expit(slope * abs(row @ person)) for row in place.differences for person in people
    ]
    assert np.median(consistent) == pytest.approx(0.75)
    row, person = place.differences[0], people[0]
    rng = np.random.default_rng(2)
    first = np.mean([(_answer(row, person, slope, rng) == row).all() for _ in range(4000)])
    assert first == pytest.approx(expit(slope * (row @ person)), abs=0.03)


def test_regret_is_that_of_a_loop() -> None:
    place = a_place()
    weights = np.array([0.9, 0.1])
    posterior = Posterior.prior([30.0, 1.0])
    mean = posterior.mean
    u, f = place.measured.utilities, place.measured.regulariser
    served = max((0, 1, 2), key=lambda e: float(mean @ u[e] - f[e]))
    best = max(float(weights @ u[e] - f[e]) for e in range(4))
    expected = best - float(weights @ u[served] - f[served])
    assert place.regret(posterior, weights) == pytest.approx(expected)


def test_ideal_answers_differ_in_every_way() -> None:
    rows = _ideal(3)
    assert len(rows) == len({tuple(row) for row in rows.tolist()}) == 3**3 - 1


def test_the_table_counts_people() -> None:
    paths = np.zeros((4, len(simulated_users.ASKED), 2))
    paths[:, :, 0] = np.array([0.0, 0.02, 0.021, 0.5])[:, None]
    paths[:, :, 1] = np.array([0.1, 0.2, 0.3, 0.6])[:, None]
    row = table(2, 0.75, "active", paths)[0]
    assert (row.people, row.served, row.distance) == (4, 0.5, 0.25)
    assert row.regret == pytest.approx(0.541 / 4)
    assert 0.1 < row.low < 0.5 < row.high < 0.9


def test_what_is_told_is_worth_what_was_measured() -> None:
    place = a_place()
    told = {
        frozenset(some): Told(np.array([0.1 * len(some), 0.3]), 0.05 * len(some))
        for some in ((), (0,), (1,), (0, 1))
    }
    place = replace(place, told=told)
    u, f = place.measured.utilities, place.measured.regulariser
    now = np.array([0.4, 0.6])
    best = max(float(now @ u[e] - f[e]) for e in range(4))
    # A weight below half of an even share is left out.
    for said, some in (([0.9, 0.1], {0}), ([0.5, 0.5], {0, 1}), ([0.1, 0.9], {1})):
        worth = 0.4 * 0.1 * len(some) + 0.6 * 0.3 - 0.05 * len(some)
        assert place.told_regret(np.array(said), now) == pytest.approx(best - worth)


def test_a_prompt_is_as_far_from_the_plain_one_as_a_loop_finds() -> None:
    model = tiny("llama")
    told, prompts = ["Tell me. Be brief: Tea?", "Ha"], ["Tea?", "What is rain, and why?"]
    answers = [[5, 6, 7], [8]]
    found = prompted.divergence(model, told, prompts, answers)
    for i, answer in enumerate(answers):
        total = 0.0
        starts = [told[i], render(model.tokenizer, prompts[i])]
        ids = [prompt_tokens(model, text) for text in starts]
        for place in range(len(answer)):
            with torch.no_grad():
                p, q = (
                    model.model(torch.tensor([[*one, *answer[:place]]])).logits[0, -1].double()
                    for one in ids
                )
            p, q = p.log_softmax(-1), q.log_softmax(-1)
            total += float((p.exp() * (p - q)).sum())
        assert found[i] == pytest.approx(total / len(answer), rel=1e-3)


def test_prompts_are_told_of_every_trait_once(tmp_path: Path) -> None:
    model, bundle = tiny("llama"), Bundle.load(DEFAULT)
    sets = [(), ("brevity",), ("brevity", "warmth")]
    rewards = [FunctionReward("a", lambda p, a: [float("brief" in one) for one in p])]
    arguments = (model, bundle, sets, ["Tea?", "Rain?"], SHORT, rewards, tmp_path)
    rows = list(prompted.measured(*arguments))
    assert [row.traits for row in rows] == sets
    assert rows[0].kl == 0 and rows[1].kl > 0
    (file,) = tmp_path.glob("*.jsonl")
    before = file.read_text()
    assert list(prompted.measured(*arguments)) == rows and file.read_text() == before


def test_it_runs_on_the_default_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CONSISTENT": (0.75,),
        "ASKED": (0, 1),
        "PASSIVE": 3,
        "SESSIONS": 2,
        "EACH": 1,
    }.items():
        monkeypatch.setattr(simulated_users, name, value)
    told = tmp_path / "prompted.json"
    arguments = ["simulated_users.py", "--people", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--told", str(told)])
    simulated_users.main()
    assert "not run (`prompted.py`)" in (tmp_path / "asking.md").read_text()
    assert len(json.loads((tmp_path / "asking.json").read_text())["drift"]) == 5
    traits = Bundle.load(DEFAULT).portfolio.traits
    rows = [
        {"traits": some, "rewards": [0.5] * len(traits), "kl": 0.1 * len(some)}
        for size in range(len(traits) + 1)
        for some in itertools.combinations(traits, size)
    ]
    edits = Bundle.load(DEFAULT).portfolio.mean_rewards.tolist()
    measured = {"traits": traits, "rows": rows, "measured edits": edits}
    others = [[value + 0.01 for value in edits[0]], *edits[1:]]
    told.write_text(json.dumps({**measured, "measured edits": others}))
    simulated_users.main()  # beside another portfolio they are worth nothing known
    assert "not run (`prompted.py`)" in (tmp_path / "asking.md").read_text()
    told.write_text(json.dumps(measured))
    simulated_users.main()
    content = json.loads((tmp_path / "asking.json").read_text())
    assert {row["arm"] for row in content["rows"]} == {"active", "random", "ideal"}
    assert {(row["traits"], row["people"]) for row in content["rows"]} == {(4, 5), (5, 2)}
    assert len(content["passive"]) == 2 and len(content["drift"]) == 7
    assert (tmp_path / "asking.png").read_bytes().startswith(b"\x89PNG")


def test_statements_are_read_rightly_when_their_traits_are_on_top() -> None:
    statements = [
        Statement("a", "several", ("brevity", "warmth")),
        Statement("b", "negated", ("humor",)),
        Statement("c", "long", ("humor",)),
    ]
    scores = [
        {"brevity": 0.3, "warmth": 0.2, "humor": 0.25},
        {"brevity": 0.1, "warmth": 0.0, "humor": 0.9},
        {"brevity": 0.9, "warmth": 0.0, "humor": 0.1},
    ]
    assert top(scores[0], 2) == ["brevity", "humor"]
    rows = {row.kind: row for row in words_to_weights.table("x", "y", statements, scores)}
    assert set(rows) == {"several", "negated", "long", "all short"}
    assert (rows["several"].right, rows["several"].found) == (0, 0.5)
    assert (rows["negated"].right, rows["long"].right) == (1, 0)
    assert (rows["all short"].statements, rows["all short"].right) == (2, 0.5)
    assert rows["all short"].found == pytest.approx(2 / 3)


@pytest.mark.parametrize("file", words_to_weights.SPLITS.values())
def test_statements_are_there(file: str) -> None:
    statements = read_statements(words_to_weights.HERE / file)
    assert len({one.text for one in statements}) == len(statements) > 60
