"""Probes on sentence embeddings and activations: against answers whose tone is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from steer import probe_reward
from steer.errors import DataError, InputError
from steer.probe_reward import (
    SENTENCES,
    STYLE,
    Encoder,
    ProbeReward,
    activation_encoder,
    packaged_probe,
)
from steer.prompts import load_prompts
from steer.rewards import Reward
from tests.models import tiny


def fitted(
    texts: list[tuple[str, str]], encoder: Encoder = SENTENCES, seed: int = 0
) -> ProbeReward:
    better, worse = zip(*texts, strict=True)
    return ProbeReward.fitted("funny", better, worse, encoder=encoder, seed=seed)


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


def random_encoder(shift: float) -> Encoder:
    """Points of noise; texts of the positive pole are shifted along the first axis."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:
            row = np.random.default_rng(int(text.split()[1])).normal(size=384)
            row[0] += shift if text.startswith("yes") else -shift
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32)

    return Encoder("random", encode)


NOISE = [(f"yes {i}", f"no {i + 500}") for i in range(120)]


def test_its_scale_is_of_pairs_it_has_not_seen() -> None:
    reward = fitted(NOISE, random_encoder(6.0))
    assert reward.name == "random probe of funny"
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
    monkeypatch.setattr(probe_reward, "_C", 1e-6)
    encoder = random_encoder(1.0)
    reward = fitted(NOISE, encoder)
    better, worse = zip(*NOISE, strict=True)
    mean = (encoder.encode(better) - encoder.encode(worse)).mean(0)
    assert reward.direction @ mean / np.linalg.norm(mean) == pytest.approx(1, abs=1e-4)


def test_a_pair_that_counts_twice_is_as_two_pairs() -> None:
    better, worse = (list(texts) for texts in zip(*NOISE[:40], strict=True))
    encoder = random_encoder(1.0)
    counted = ProbeReward.fitted(
        "funny", better, worse, counts=[2.0] * 10 + [1.0] * 30, encoder=encoder
    )
    repeated = ProbeReward.fitted(
        "funny", better + better[:10], worse + worse[:10], encoder=encoder
    )
    np.testing.assert_allclose(counted.direction, repeated.direction, atol=1e-4)
    plain = ProbeReward.fitted("funny", better, worse, encoder=encoder)
    assert np.abs(counted.direction - plain.direction).max() > 1e-3


@pytest.mark.parametrize("counts", [[1.0] * 39, [1.0] * 39 + [0.0], [1.0] * 39 + [float("nan")]])
def test_counts_that_do_not_fit_are_refused(counts: list[float]) -> None:
    better, worse = zip(*NOISE[:40], strict=True)
    with pytest.raises(InputError, match="40 finite counts above 0"):
        ProbeReward.fitted("funny", better, worse, counts=counts, encoder=random_encoder(1.0))


def lengthy(shift: float) -> Encoder:
    """As `random_encoder`; besides, long texts are shifted along the second axis."""
    noise = random_encoder(shift)

    def encode(texts: Sequence[str]) -> np.ndarray:
        points = noise.encode(texts)
        points[:, 1] += [0.3 * text.endswith("long") for text in texts]
        return points

    return Encoder("lengthy", encode)


def test_neutral_pairs_earn_the_same_in_the_mean() -> None:
    """Here the better texts are the longer ones, which plain pairs cannot tell from the trait."""
    better, worse = zip(*((f"{yes} long", no) for yes, no in NOISE), strict=True)
    neutral = [(f"no {i} long", f"yes {i + 900}") for i in range(60)]
    neutral += [(f"yes {i + 300} long", f"no {i + 1300}") for i in range(60)]
    probes = {
        name: ProbeReward.fitted("funny", better, worse, neutral=pairs, encoder=lengthy(3.0))
        for name, pairs in (("plain", []), ("neutral", neutral))
    }
    long, short = (list(texts) for texts in zip(*neutral, strict=True))
    apart = {
        name: probe.project(long).mean() - probe.project(short).mean()
        for name, probe in probes.items()
    }
    assert apart["plain"] > 0.05
    assert apart["neutral"] == pytest.approx(0, abs=1e-6)
    # The trait itself is still told.
    yes, no = ([f"{pole} {i + 9000}" for i in range(100)] for pole in ("yes", "no"))
    assert (probes["neutral"].project(yes) > probes["neutral"].project(no)).mean() > 0.6


def test_neutral_pairs_that_do_not_differ_are_refused() -> None:
    better, worse = zip(*NOISE[:40], strict=True)
    with pytest.raises(InputError, match="funny: neutral pairs do not differ"):
        ProbeReward.fitted(
            "funny", better, worse, neutral=[("yes 1", "yes 1")], encoder=random_encoder(1.0)
        )


def test_poles_that_are_alike_are_refused() -> None:
    refused = 0
    for seed in range(6):
        noise = [(f"yes {i + 100 * seed}", f"no {i + 5000 + 100 * seed}") for i in range(120)]
        try:
            assert fitted(noise, random_encoder(0.0)).accuracy < 0.75
        except InputError as error:
            assert "does not tell the better" in str(error)
            refused += 1
    assert refused > 0


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="at least 10 pairs, got 3"):
        fitted([("a", "b")] * 3)


def test_the_same_seed_gives_the_same_reward() -> None:
    first, second = (fitted(NOISE, random_encoder(1.0), seed=3) for _ in range(2))
    assert first.range == second.range and np.array_equal(first.direction, second.direction)


def test_activations_are_those_of_a_plain_forward_pass() -> None:
    """Means over a text's tokens, over their spread at the prompts, times 1 / sqrt(d)."""
    model = tiny()
    texts = ["a cat", "", "seven long words about nothing at all"]

    def plain(text: str) -> np.ndarray:
        ids = [model.tokenizer.bos_token_id] * (model.tokenizer.bos_token_id is not None)
        own = model.tokenizer(text or "\n", add_special_tokens=False).input_ids
        hidden = model.model(torch.tensor([[*ids, *own]]), output_hidden_states=True).hidden_states[
            2
        ]
        return hidden[0, len(ids) :].mean(0).detach().numpy()

    spread = np.std([plain(prompt.text) for prompt in load_prompts("extract")], axis=0)
    expected = np.stack([plain(text) for text in texts]) / spread / np.sqrt(len(spread))
    encoder = activation_encoder(model, 1)
    assert encoder.name == "layer 1 activation"
    np.testing.assert_allclose(encoder.encode(texts), expected, rtol=2e-3, atol=2e-4)


def test_a_scale_of_other_texts() -> None:
    reward = fitted(NOISE, random_encoder(1.0))
    yes, no = ([f"{pole} {i + 9000}" for i in range(50)] for pole in ("yes", "no"))
    scaled = reward.between(no, yes)
    assert np.array_equal(scaled.direction, reward.direction)
    outer = np.quantile(reward.project(no), 0.1), np.quantile(reward.project(yes), 0.9)
    assert (scaled.range.zero, scaled.range.one) == pytest.approx(outer)
    with pytest.raises(InputError, match="should show little"):
        reward.between(yes, no)


@pytest.mark.parametrize(
    ("trait", "more", "less"),
    [
        (
            "positivity",
            "It rained on our walk, so we got to see the river rise and had warm soup after.",
            "Our walk was ruined by the rain again, as always. I am sick of this town.",
        ),
        (
            "warmth",
            "Thanks for the answer! Could you tell me how I might open the file?",
            "Why did you not say how to open the file? Did you even try it?",
        ),
    ],
)
def test_packaged_probes(trait: str, more: str, less: str) -> None:
    probe = packaged_probe(trait)
    assert probe is not None and probe.encoder is STYLE
    assert np.linalg.norm(probe.direction) == pytest.approx(1, abs=1e-3)
    high, low = probe.project([more, less])
    assert high > low


def test_a_damaged_file_of_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_reward, "data_dir", lambda: tmp_path)
    path = tmp_path / "probes.json"
    with pytest.raises(DataError, match="not readable probes"):
        packaged_probe("warmth")
    path.write_text('{"warmth": {"data": "some", "range": [0, 1], "accuracy": 0.9}}')
    assert packaged_probe("humor") is None
    with pytest.raises(DataError, match="no whole probe of warmth"):
        packaged_probe("warmth")


def test_another_seed_holds_out_other_pairs() -> None:
    first, other = (fitted(NOISE, random_encoder(1.0), seed=seed) for seed in (3, 4))
    np.testing.assert_array_equal(first.direction, other.direction)  # it is of all pairs
    assert first.range != other.range


def test_another_scale_is_kept_under_another_key() -> None:
    reward = fitted(NOISE, random_encoder(1.0))
    yes, no = ([f"{pole} {i + 9000}" for i in range(50)] for pole in ("yes", "no"))
    scaled = reward.between(no, yes)
    assert not np.array_equal(reward(yes, yes), scaled(yes, yes))
    assert reward.key != scaled.key
    assert reward.key == fitted(NOISE, random_encoder(1.0)).key
