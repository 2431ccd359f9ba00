"""`steer.evaluation`: each candidate as if it had been asked alone, kept, and gone on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steer.chat import render
from steer.edits import compose
from steer.errors import DataError, InputError
from steer.evaluation import Evaluator, measured, read_evaluations
from steer.gate import Gate, behind
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import attach
from steer.likelihood import KLMeter
from steer.models import LanguageModel
from steer.objective import Objective
from steer.portfolio import Candidate
from steer.rewards import Range, TextReward, length_reward, sentiment_reward
from tests.models import WIDTH, tiny
from tests.test_generation import an_edit

PROMPTS = ("Hi", "How are you?", "Tell me about rain.")
REWARDS = (length_reward(1, 30), sentiment_reward())
DECODING = Decoding(max_new_tokens=12)
CANDIDATES = [
    Candidate("deep", (0.0, 0.0)),
    Candidate("deep", (1.0, 0.0)),
    Candidate("early", (0.5, 2.0)),
    Candidate("deep", (0.3, 0.7)),
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


def families() -> dict:
    return {"deep": [an_edit(1), an_edit(3)], "early": [an_edit(2), an_edit(4)]}


def an_evaluator(model: LanguageModel, folder: Path, **changes) -> Evaluator:
    arguments = {"prompts": PROMPTS, "rewards": REWARDS, "families": families()} | changes
    return Evaluator(
        model,
        arguments["families"],
        arguments["prompts"],
        arguments["rewards"],
        path=folder / "edits.jsonl",
        decoding=arguments.get("decoding", DECODING),
        gate=arguments.get("gate"),
    )


GATE = Gate({layer: np.full(WIDTH, 0.1 * layer, np.float32) for layer in range(1, 6)})


@pytest.mark.parametrize("gate", [None, GATE])
def test_each_candidate_as_if_alone(
    model: LanguageModel, tmp_path: Path, gate: Gate | None
) -> None:
    found = an_evaluator(model, tmp_path, gate=gate).evaluate(CANDIDATES)
    for candidate, one in zip(CANDIDATES, found, strict=True):
        assert one.candidate == candidate
        edit = behind(gate, compose(families()[candidate.family], candidate.coefficients))
        for i, prompt in enumerate(PROMPTS):
            text = render(model.tokenizer, prompt)
            with attach(model).steer(edit):
                answer = generate_batch(model, [text], DECODING)[0]
            assert one.texts[i] == answer.text
            assert one.tokens[i] == len(answer.tokens)
            sequence = (prompt_tokens(model, text), answer.tokens)
            assert one.kl[i] == pytest.approx(KLMeter(model, [sequence]).kl(edit), abs=1e-5)
            for j, reward in enumerate(REWARDS):
                expected = reward([prompt], [answer.text])[0] * one.fluent[i]
                assert one.rewards[i, j] == pytest.approx(expected)
    assert len({one.texts for one in found}) > 2, "the edits do nothing; this tests nothing"


def test_what_is_known_is_not_measured_again(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = an_evaluator(model, tmp_path)
    expected = first.evaluate(CANDIDATES)
    with monkeypatch.context() as patch:
        patch.setattr("steer.evaluation.generate_batch", None)
        again = first.evaluate(CANDIDATES[::-1])[::-1]
        reopened = an_evaluator(model, tmp_path)
        for one, other in zip(expected, again, strict=True):
            assert one is other
        for one, other in zip(expected, reopened.evaluations, strict=True):
            assert one.candidate == other.candidate
            assert one.texts == other.texts
            for name in ("rewards", "kl", "fluent", "tokens"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_file_is_read_without_the_model(model: LanguageModel, tmp_path: Path) -> None:
    made = an_evaluator(model, tmp_path).evaluate(CANDIDATES)
    read = read_evaluations(tmp_path / "edits.jsonl")
    assert [one.candidate for one in read] == CANDIDATES
    for one, other in zip(made, read, strict=True):
        assert one.texts == other.texts
        for name in ("rewards", "kl", "fluent", "tokens"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(DataError, match="not a readable"):
        read_evaluations(tmp_path / "no.jsonl")


@pytest.mark.parametrize("cut", [1, 40])
def test_half_a_line_is_measured_again(model: LanguageModel, tmp_path: Path, cut: int) -> None:
    an_evaluator(model, tmp_path).evaluate(CANDIDATES)
    path = tmp_path / "edits.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    resumed = an_evaluator(model, tmp_path)
    assert len(resumed.evaluations) == len(CANDIDATES) - 1
    resumed.evaluate(CANDIDATES)
    ours, theirs = (
        [json.loads(line) for line in data.splitlines()] for data in (path.read_bytes(), whole)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.get("texts") == other.get("texts")
        np.testing.assert_allclose(one.get("kl", 0), other.get("kl", 0), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": PROMPTS[:2]},
        {"gate": GATE},
        {"rewards": REWARDS[:1]},
        {"rewards": [replace(REWARDS[0], range=Range(0, 9)), *REWARDS[1:]]},  # of the same name
        {"decoding": replace(DECODING, max_new_tokens=11)},
        {"families": {"deep": [an_edit(1), an_edit(2)], "early": [an_edit(2), an_edit(4)]}},
    ],
)
def test_other_settings_are_refused(model: LanguageModel, tmp_path: Path, changes: dict) -> None:
    an_evaluator(model, tmp_path)
    with pytest.raises(DataError, match="other settings"):
        an_evaluator(model, tmp_path, **changes)


def test_another_chat_is_another_setting(tmp_path: Path) -> None:
    asked = tiny("llama")
    an_evaluator(asked, tmp_path)
    asked.tokenizer.chat_template += " "
    with pytest.raises(DataError, match=r"\(chat differ\)"):
        an_evaluator(asked, tmp_path)


@pytest.mark.parametrize("line", ["[]", "{}", '{"family": "deep"}', "nonsense"])
def test_a_damaged_file_is_refused(model: LanguageModel, tmp_path: Path, line: str) -> None:
    an_evaluator(model, tmp_path).evaluate(CANDIDATES[:1])
    with (tmp_path / "edits.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError):
        an_evaluator(model, tmp_path)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Candidate("other", (1.0, 0.0)), "family"),
        (Candidate("deep", (1.0,)), "coefficients"),
        (Candidate("deep", (1.0, -0.5)), "coefficients"),
        (Candidate("deep", (1.0, float("nan"))), "coefficients"),
    ],
)
def test_bad_candidates(
    model: LanguageModel, tmp_path: Path, candidate: Candidate, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        an_evaluator(model, tmp_path).evaluate([candidate])


def test_families_mix_the_same_traits(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one number of edits"):
        an_evaluator(model, tmp_path, families={"a": [an_edit(1)], "b": []})


def test_measured_means(model: LanguageModel, tmp_path: Path) -> None:
    found = an_evaluator(model, tmp_path).evaluate(CANDIDATES)
    objective = Objective(penalty=0.2, kl_unit=0.3, f_max=0.25)
    table = measured(found, objective)
    means = np.array([[sum(column) / 3 for column in one.rewards.T] for one in found])
    np.testing.assert_allclose(table.utilities, objective.utility(means))
    for one, regulariser in zip(found, table.regulariser, strict=True):
        assert regulariser == pytest.approx(min(0.2 * (sum(one.kl) / 3) / 0.3, 0.25))
    with pytest.raises(InputError, match="unsteered"):
        measured(found[1:], objective)


def test_rewards_have_names_that_tell_them_apart(model: LanguageModel, tmp_path: Path) -> None:
    one, other = (TextReward(name, len, length_reward().range) for name in ("a", "b"))
    an_evaluator(model, tmp_path, rewards=(one,))
    with pytest.raises(DataError, match="rewards"):
        an_evaluator(model, tmp_path, rewards=(other,))
