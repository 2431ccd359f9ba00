"""Probes of several sources: against a fit to the pairs themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from steer.contrast import Answer, Pair, PairSet
from steer.probe_reward import ProbeReward
from tests.test_probe_reward import NOISE, random_encoder

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from people import Pairs  # noqa: E402
from probes import MODEL_SHARE, against, fitted, poles, shortened  # noqa: E402

ENCODER = random_encoder(1.0)


def pair_set(trait: str, ids: list[int]) -> PairSet:
    def answer(number: int, pole: str) -> Answer:
        return Answer(f"p{number}", pole, "asked", f"{trait} {pole} {number}", (1, 2))

    pairs = tuple(Pair(answer(i, "positive"), answer(i, "negative")) for i in ids)
    return PairSet(trait, pairs, {})


def people(number: int) -> Pairs:
    better, worse = zip(*NOISE[:number], strict=True)
    return Pairs("some", better, worse, tuple(range(number)))


def test_what_the_model_writes_counts_half_of_what_people_say() -> None:
    assert MODEL_SHARE == 0.5
    # A contrast of half as many pairs is as many pairs of people's more.
    asked = people(40)
    one = fitted("funny", asked, [NOISE[40:60]], ENCODER, 0)
    better, worse = zip(*NOISE[:60], strict=True)
    plain = ProbeReward.fitted("funny", better, worse, encoder=ENCODER)
    np.testing.assert_allclose(one.direction, plain.direction, atol=1e-6)
    assert one.range == plain.range and one.accuracy == plain.accuracy
    # Two contrasts share it evenly: of ten pairs each stands for one, of five for two.
    two = fitted("funny", asked, [NOISE[40:50], NOISE[50:55]], ENCODER, 0)
    again = [*range(55), *range(50, 55)]
    better, worse = zip(*(NOISE[i] for i in again), strict=True)
    plain = ProbeReward.fitted("funny", better, worse, encoder=ENCODER)
    np.testing.assert_allclose(two.direction, plain.direction, atol=1e-4)
    alone = fitted("funny", asked, [NOISE[40:50]], ENCODER, 0)
    assert np.abs(two.direction - alone.direction).max() > 1e-3


def test_contrasts_are_of_the_same_prompt() -> None:
    warm, cheerful = pair_set("warm", [1, 2, 3]), pair_set("cheerful", [3, 1, 4])
    assert poles(warm) == [(f"warm positive {i}", f"warm negative {i}") for i in (1, 2, 3)]
    assert against(warm, cheerful) == [
        (f"warm positive {i}", f"cheerful positive {i}") for i in (1, 3)
    ]
    assert against(pair_set("warm", [5]), cheerful) == []


def test_answers_are_shortened_to_their_first_sentence() -> None:
    def answer(pole: str, text: str) -> Answer:
        return Answer("p1", pole, "asked", text, (1, 2))

    pair = Pair(answer("positive", "Hi! I am here."), answer("negative", "No."))
    assert shortened([PairSet("warm", (pair,), {})]) == [("Hi!", "Hi! I am here.")]


def test_neutral_pairs_reach_the_probe() -> None:
    neutral = [(f"yes {i + 300}", f"no {i + 700}") for i in range(40)]
    plain, probe = (
        fitted("funny", people(40), [NOISE[40:60]], ENCODER, 0, neutral=pairs)
        for pairs in ([], neutral)
    )
    one, other = (list(texts) for texts in zip(*neutral, strict=True))
    assert probe.project(one).mean() == pytest.approx(probe.project(other).mean(), abs=1e-6)
    assert plain.project(one).mean() > plain.project(other).mean() + 0.01
