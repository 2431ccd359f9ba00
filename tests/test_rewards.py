"""Rewards and the objective, against plain formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForSequenceClassification

from steer.contrast import Answer, Pair, PairSet
from steer.errors import InputError, ModelError
from steer.likelihood import log_ratio
from steer.measures import TRAIT_MEASURES
from steer.objective import Objective
from steer.probe_reward import SENTENCES, ProbeReward
from steer.rewards import (
    ClassifierReward,
    FunctionReward,
    LogRatioReward,
    Range,
    RelevanceReward,
    TextReward,
    formality_reward,
    length_reward,
    length_reward_named,
    readability_reward,
    score,
    sentiment_reward,
    warmth_reward,
)
from steer.traits import Trait
from tests.models import tiny, tiny_tokenizer

TRAIT = Trait("calm", positive="Calmly.", negative="In a panic!")
finite = st.floats(-1e6, 1e6)


def pairs(texts: list[tuple[str, str]]) -> PairSet:
    made = [
        Pair(Answer(str(i), "positive", "x", p, (5,)), Answer(str(i), "negative", "x", n, (6,)))
        for i, (p, n) in enumerate(texts)
    ]
    return PairSet("calm", tuple(made), {})


@given(finite, finite, st.lists(finite, min_size=1))
def test_range_is_linear_between_its_ends(zero: float, one: float, values: list[float]) -> None:
    if abs(zero - one) < 1e-3:
        return
    for value, found in zip(values, Range(zero, one).scale(values), strict=True):
        assert found == pytest.approx(min(max((value - zero) / (one - zero), 0), 1), abs=1e-9)


def test_range_between_poles_runs_the_right_way() -> None:
    long, short = [100.0, 110, 120, 130], [10.0, 12, 14, 16]
    for negative, positive in ((long, short), (short, long)):
        scale = Range.between(negative, positive)
        assert scale.scale(negative).mean() < 0.2 < 0.8 < scale.scale(positive).mean()
    for same in ([1.0, 2.0], []):
        with pytest.raises(InputError, match="apart"):
            Range.between(same, same)
    # The means are one far value's, and nineteen of twenty lie on the other side.
    with pytest.raises(InputError, match="opposite"):
        Range.between([0.5] * 20, [0.4] * 19 + [10.0])


def test_built_in_rewards_order_texts_as_people_would() -> None:
    ask = ["What is rain?"] * 2
    brief, long = length_reward()(ask, ["Water.", "Water falls from clouds. " * 30])
    assert brief == 1 and 0 < long < 0.5
    plain, hard = readability_reward()(
        ask,
        [
            "Rain is wet. It falls down. We get wet too.",
            "Precipitation constitutes condensed atmospheric moisture, gravitationally descending.",
        ],
    )
    assert plain > 0.9 > 0.1 > hard
    bright, dark = sentiment_reward()(ask, ["What a wonderful day!", "This is a horrible loss."])
    assert bright > 0.7 > 0.3 > dark


def test_length_reward_is_even_in_the_logarithm() -> None:
    found = length_reward(10, 1000)(["?"] * 3, ["a " * 10, "a " * 100, "a " * 1000])
    assert found == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("reward", [length_reward(), length_reward(19.2, 96), length_reward(1, 7)])
def test_a_length_reward_is_found_by_its_name(reward: TextReward) -> None:
    found = length_reward_named(reward.name)
    texts = ["a " * n for n in (1, 5, 20, 80, 200, 500)]
    assert found is not None and found.name == reward.name
    assert found(["?"] * 6, texts) == pytest.approx(reward(["?"] * 6, texts))


def test_other_names_are_of_no_length_reward() -> None:
    for name in (readability_reward().name, "words", "letters of 'a'"):
        assert length_reward_named(name) is None


def test_formality_and_warmth_count_marks_per_hundred_words() -> None:
    plain = "The bread rises slowly and is baked when the oven is hot. " * 5  # 60 words
    casual = plain + "You can't miss it. " * 3  # 3 x (you, can't) in 72 words
    warm = plain + "My dear friend, what a lovely day. " * 2
    ask = ["?"] * 2
    found = formality_reward()(ask, [plain, casual])
    assert found == pytest.approx([1, 1 - 6 / 72 * 100 / 12])
    assert formality_reward(casual=6)(["?"], [casual]) == 0
    marks = TRAIT_MEASURES["warmth"].value(warm)
    assert 0 < marks < 12
    assert warmth_reward(warm=12)(ask, [plain, warm]) == pytest.approx([0, marks / 12])


def test_rewards_on_another_scale_have_another_name() -> None:
    pairs_of_names = [
        (length_reward(), length_reward(10)),
        (readability_reward(), readability_reward(14)),
        (sentiment_reward(), sentiment_reward(bright=0.7)),
        (formality_reward(), formality_reward(20)),
        (warmth_reward(), warmth_reward(warm=8)),
    ]
    names = [reward.name for pair in pairs_of_names for reward in pair]
    assert len(set(names)) == len(names)
    assert formality_reward().name == "casual marks per 100 words, 12 to 0"


def test_rewards_that_differ_have_different_keys() -> None:
    """Measurements are kept under them."""
    llama, wide, loud = tiny("llama"), Range(0, 1), Trait("calm", ["Be loud."], ["Be calm."])
    probe = ProbeReward("probe", SENTENCES, np.eye(384)[0], wide, 1.0)
    different = [
        length_reward(),
        length_reward(10),
        RelevanceReward(),
        RelevanceReward(Range(0, 0.5)),
        LogRatioReward(llama, TRAIT, wide),
        LogRatioReward(llama, loud, wide),
        LogRatioReward(tiny("qwen2"), TRAIT, wide),
        LogRatioReward(llama, TRAIT, Range(0, 2)),
        LogRatioReward(llama, TRAIT, wide, max_tokens=64),
        probe,
        replace(probe, direction=np.eye(384)[1]),
        replace(probe, range=Range(0, 2)),
        FunctionReward("one", lambda prompts, responses: [1.0] * len(responses)),
        FunctionReward("another", lambda prompts, responses: [0.0] * len(responses)),
    ]
    assert len({reward.key for reward in different}) == len(different)
    assert LogRatioReward(tiny("llama"), TRAIT, wide).key == different[4].key
    assert replace(probe).key == probe.key


@pytest.mark.real
def test_relevance_prefers_the_answer_to_the_question() -> None:
    prompts = ["How do I bake bread?", "Why is the sky blue?"]
    answers = [
        "Mix flour, water and yeast, and bake the dough.",
        "Air scatters blue light from the sun more than red light.",
    ]
    reward = RelevanceReward()
    assert (reward(prompts, answers) > reward(prompts, answers[::-1]) + 0.3).all()


def test_log_ratio_reward_is_the_scaled_log_ratio() -> None:
    llama = tiny("llama")
    prompts = [f"Question {i}" for i in range(8)]
    texts = [f"{'xyzabcde'[i]}{i} answer" for i in range(8)]
    raw = log_ratio(llama, TRAIT, prompts, texts, max_tokens=6)
    order = np.argsort(log_ratio(llama, TRAIT, prompts[:1] * 8, texts, max_tokens=6))
    # The positive answers are those that the model itself ranks higher.
    made = [(texts[order[7 - i]], texts[order[i]]) for i in range(4)]
    asked = [prompts[0]] * 4
    reward = LogRatioReward.calibrated(llama, TRAIT, asked, pairs(made), max_tokens=6)
    low = log_ratio(llama, TRAIT, asked, [n for _, n in made], max_tokens=6)
    high = log_ratio(llama, TRAIT, asked, [p for p, _ in made], max_tokens=6)
    expected = Range(float(np.quantile(low, 0.1)), float(np.quantile(high, 0.9))).scale(raw)
    assert reward(prompts, texts) == pytest.approx(expected, abs=1e-6)
    assert "calm" in reward.name
    with pytest.raises(InputError, match="no reward"):
        LogRatioReward.calibrated(llama, TRAIT, asked, pairs([(n, p) for p, n in made]))
    with pytest.raises(InputError, match="4 responses to 3 prompts"):
        LogRatioReward.calibrated(llama, TRAIT, asked[:3], pairs(made))


@pytest.fixture(params=[1, 3])
def classifier(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=request.param,
        pad_token_id=0,
        id2label={i: f"L{i}" for i in range(request.param)},
        label2id={f"L{i}": i for i in range(request.param)},
        initializer_range=0.5,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path, request.param


def test_classifier(classifier: tuple[Path, int]) -> None:
    folder, labels = classifier
    prompts = [f"ask {'more ' * (i % 4)}" for i in range(40)]
    responses = [f"say {i} {'word ' * (i % 7)}" for i in range(40)]
    reward = ClassifierReward(folder, label=None if labels == 1 else "L1")
    found = reward(prompts, responses)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    for value, prompt, response in zip(found, prompts, responses, strict=True):
        inputs = tiny_tokenizer()(prompt, response, return_tensors="pt")
        logits = model(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).logits[0]
        one = logits.sigmoid()[0] if labels == 1 else logits.softmax(-1)[1]
        assert value == pytest.approx(one.item(), abs=1e-5)
    assert np.ptp(found) > 1e-3
    with pytest.raises(InputError, match="L0"):
        ClassifierReward(folder, label="sunny")


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    tiny("llama").model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="LlamaForCausalLM"):
        ClassifierReward(tmp_path)
    with pytest.raises(ModelError, match="missing"):
        ClassifierReward(tmp_path / "missing")


def test_function_reward_is_checked() -> None:
    ask, answers = ["a", "b"], ["x", "yy"]
    assert FunctionReward("ok", lambda p, r: [len(x) / 2 for x in r])(ask, answers).tolist() == [
        0.5,
        1.0,
    ]
    for bad, message in (
        (lambda p, r: [0.5], "2 numbers"),
        (lambda p, r: [0.5, 1.5], "0 to 1"),
        (lambda p, r: [0.5, float("nan")], "0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            FunctionReward("bad", bad)(ask, answers)
    with pytest.raises(InputError, match="2 responses to 1 prompts"):
        FunctionReward("ok", lambda p, r: [0.5, 0.5])(["a"], answers)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_objective_is_the_formula(seed: int, fairness: float) -> None:
    rng = np.random.default_rng(seed)
    objective = Objective(fairness, rng.random(), 0.1 + rng.random(), rng.random())
    weights, rewards, kl = rng.random((5, 3)) * 2, rng.random((7, 3)), rng.random(7) * 3
    kl[0] = 0.0
    found = objective.measured(rewards, kl).value(weights)

    def utility(reward: float, unsteered: float) -> float:
        if reward <= unsteered:
            return reward
        closed = (reward - unsteered) / (1 - unsteered)
        return unsteered + (1 - unsteered) * closed ** (1 - fairness)

    for i in range(5):
        for j in range(7):
            f = min(objective.penalty * kl[j] / objective.kl_unit, objective.f_max)
            utilities = [utility(*one) for one in zip(rewards[j], rewards[0], strict=True)]
            expected = sum(w * u for w, u in zip(weights[i], utilities, strict=True)) - f
            assert found[i, j] == pytest.approx(expected)
    assert (found[:, 0] >= 0).all()  # the unsteered model


def test_utility_keeps_order_and_range() -> None:
    rewards = np.array([[0.2, 1.0], [0.0, 0.4], [0.2, 1.0], [0.3, 0.9], [1.0, 0.0]])
    found = Objective(fairness=0.5).utility(rewards)
    assert ((found >= rewards) & (found <= 1)).all()
    for column in range(2):
        order = np.argsort(rewards[:, column], kind="stable")
        assert (np.diff(found[order, column]) >= 0).all()
    np.testing.assert_array_equal(found[:, 1], rewards[:, 1])  # nothing is left to gain
    np.testing.assert_allclose(Objective(fairness=0.0).utility(rewards), rewards)


def test_fairness_prefers_some_of_each_to_much_of_one() -> None:
    one_for_the_other, both = [0.9, 0.18], [0.4, 0.4]
    rewards, kl = [[0.2, 0.2], one_for_the_other, both], [0.0, 0.1, 0.1]
    for fairness, best in ((0.0, 1), (0.5, 2)):
        values = Objective(fairness=fairness).measured(rewards, kl).value([[0.5, 0.5]])
        assert int(values.argmax()) == best


def test_loops_and_broken_answers_earn_nothing() -> None:
    ones = FunctionReward("ones", lambda p, r: np.ones(len(r)))
    half = TextReward("half", lambda text: 0.5, Range(0, 1))
    answers = ["A fine answer to that.", "Round we go. " * 20, "", "Another good answer."]
    rewards, fluent = score([ones, half], ["?"] * 4, answers)
    assert fluent.tolist() == [True, False, False, True]
    assert rewards.tolist() == [[1, 0.5], [0, 0], [0, 0], [1, 0.5]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Range(1, 1),
        lambda: Range(0, math.inf),
        lambda: length_reward(10, 5),
        lambda: length_reward(0, 5),
        lambda: Objective(fairness=1.0),
        lambda: Objective(penalty=-1),
        lambda: Objective(kl_unit=0),
        lambda: Objective(f_max=math.nan),
    ],
)
def test_bad_arguments(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]
