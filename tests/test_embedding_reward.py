"""The probe on sentence embeddings: against answers whose tone is known."""

from __future__ import annotations

import numpy as np
import pytest

from steer import embedding_reward
from steer.embedding_reward import EmbeddingReward
from steer.errors import InputError
from steer.rewards import Reward


def fitted(texts: list[tuple[str, str]], seed: int = 0) -> EmbeddingReward:
    better, worse = zip(*texts, strict=True)
    return EmbeddingReward.fitted("funny", better, worse, seed=seed)


TOPICS = (
    "bread", "rain", "taxes", "dogs", "trains", "piano", "sleep", "coffee",
    "bees", "maps", "chess", "soup", "rivers", "paint", "shoes", "clocks",
)  # fmt: skip
FUNNY = "Haha, {0}! My {0} told me a joke so silly that I snorted. What a clown!"
SOBER = "The following report summarises the relevant facts about {0} in detail."


def test_it_knows_the_tone_of_new_answers() -> None:
    reward: Reward = fitted([(FUNNY.format(topic), SOBER.format(topic)) for topic in TOPICS])
    new = ["Knock knock! Who's there? A banana in pyjamas, giggling!", "Costs rose by 4% in May."]
    values = reward(["Why?"] * 2, new)
    assert values.shape == (2,) and values.min() >= 0 and values.max() <= 1
    assert values[0] > values[1]
    assert reward.name == "embedding probe of funny"


def random_embeddings(shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of noise; texts of the positive pole are shifted along the first axis."""

    def embed(texts: list[str]) -> np.ndarray:
        rows = []
        for text in texts:
            row = np.random.default_rng(int(text.split()[1])).normal(size=384)
            row[0] += shift if text.startswith("yes") else -shift
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32)

    monkeypatch.setattr(embedding_reward, "embed", embed)


NOISE = [(f"yes {i}", f"no {i + 500}") for i in range(120)]


def test_its_scale_is_of_pairs_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    random_embeddings(6.0, monkeypatch)
    reward = fitted(NOISE)
    assert reward.accuracy == 1.0
    assert int(np.abs(reward.direction).argmax()) == 0
    yes, no = ([f"{pole} {i + 9000}" for i in range(200)] for pole in ("yes", "no"))
    fresh = reward(yes, yes), reward(no, no)
    # A tenth of the poles lies outside of the scale, by its definition; new texts do likewise.
    assert 0.02 < (fresh[0] == 1).mean() < 0.35 and 0.02 < (fresh[1] == 0).mean() < 0.35


def test_it_is_the_direction_of_the_mean_when_regularised_hard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient of the Bradley-Terry likelihood at zero is half the mean difference."""
    random_embeddings(1.0, monkeypatch)
    monkeypatch.setattr(embedding_reward, "_C", 1e-6)
    reward = fitted(NOISE)
    better, worse = zip(*NOISE, strict=True)
    mean = (embedding_reward.embed(better) - embedding_reward.embed(worse)).mean(0)
    assert reward.direction @ mean / np.linalg.norm(mean) == pytest.approx(1, abs=1e-4)


def test_poles_that_are_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = 0
    for seed in range(6):
        random_embeddings(0.0, monkeypatch)
        noise = [(f"yes {i + 100 * seed}", f"no {i + 5000 + 100 * seed}") for i in range(120)]
        try:
            assert fitted(noise).accuracy < 0.75
        except InputError as error:
            assert "do not tell the better" in str(error)
            refused += 1
    assert refused > 0


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="at least 10 pairs, got 3"):
        fitted([("a", "b")] * 3)


def test_the_same_seed_gives_the_same_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    random_embeddings(1.0, monkeypatch)
    first, second = (fitted(NOISE, seed=3) for _ in range(2))
    assert first.range == second.range and np.array_equal(first.direction, second.direction)
