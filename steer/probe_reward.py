"""Rewards learnt from pairs of texts: a probe on what an encoder makes of them.

Given pairs of which one text shows more of something, a trait's contrast pairs or people's
preferences, a direction in the encoder's space is fitted so that the better text lies further along
it: the Bradley-Terry model, a logistic regression on differences of encodings. It reads meaning and
tone rather than single words, and costs far less than the model's own log-ratio. Its scale is set
on pairs that it was not fitted to.

There are three encoders. Two are depths of a sentence encoder (`steer.sentence_encoder`) and know
nothing of the steered model; the third are the model's own activations. How well they follow people
is in experiments/results/rewards.

For some traits a probe is packaged that was fitted to what people prefer and to what the packaged
model writes when it is asked for the trait (`packaged_probe`). Either alone misses the trait:
people's labels of polite requests reward a formal answer above a warm one, and the model's contrast
pairs follow people less well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from steer.activations import read_activations
from steer.errors import DataError, InputError
from steer.likelihood import response_tokens
from steer.models import LanguageModel
from steer.prompts import load_prompts
from steer.resources import content_key, data_dir
from steer.rewards import Range, check_lengths
from steer.sentence_encoder import embed, embed_style

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_FOLDS = 5
# Inverse of the weight decay: of a few hundred numbers fitted to as many pairs, most are noise.
_C = 0.3
# Tokens of a text whose activations are read: tone shows early.
_READ = 128


@dataclass(frozen=True)
class Encoder:
    """A space in which texts are points.

    Attributes:
        name: Of what kind the points are.
        encode: n texts as (n, d) points of about unit length.
    """

    name: str
    encode: Callable[[Sequence[str]], Float32]


SENTENCES = Encoder("embedding", embed)
"""What a text is about."""

STYLE = Encoder("style", embed_style)
"""In what manner it is written."""


def activation_encoder(language_model: LanguageModel, layer: int | None = None) -> Encoder:
    """The model's activations, a mean over a text's tokens.

    Some dimensions are a hundred times larger than others, so each is divided by its spread over
    the packaged extract prompts.

    Args:
        language_model: The model; it must not be steered while it encodes.
        layer: Whose output is read; default: the one in the middle.

    Raises:
        InputError: If the layer does not exist.
    """
    chosen = len(language_model.layers) // 2 if layer is None else layer
    tokenizer = language_model.tokenizer
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []

    def read(texts: Sequence[str]) -> Float32:
        # An empty text has no tokens to read; a line break says as little.
        sequences = [
            (start, response_tokens(language_model, text or "\n")[:_READ]) for text in texts
        ]
        return read_activations(language_model, sequences, [chosen])[chosen]

    spread = read([prompt.text for prompt in load_prompts("extract")]).std(0)
    scale = (np.sqrt(len(spread)) * np.maximum(spread, 1e-6)).astype(np.float32)
    return Encoder(f"layer {chosen} activation", lambda texts: read(texts) / scale)


@dataclass(frozen=True, eq=False)
class ProbeReward:
    """How far a response lies along a direction.

    Attributes:
        name: What is rewarded, and by which encoder.
        encoder: Makes points of texts.
        direction: Unit vector (d,).
        range: What earns 0 and 1, in projections on it.
        accuracy: Share of held-out pairs whose better text lies further along it.
    """

    name: str
    encoder: Encoder
    direction: Float64
    range: Range
    accuracy: float

    @property
    def key(self) -> str:
        """The encoder, which the name tells, the direction, and the scale."""
        return content_key([self.name, self.direction.tolist(), asdict(self.range)])

    def project(self, texts: Sequence[str]) -> Float64:
        """Positions of n texts along the direction (n,), before they are scaled to rewards."""
        return np.asarray(self.encoder.encode(texts) @ self.direction, np.float64)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Scaled projections (n,)."""
        check_lengths(prompts, responses)
        return self.range.scale(self.project(responses))

    def between(self, negative: Sequence[str], positive: Sequence[str]) -> ProbeReward:
        """The same direction, scaled by texts that show little and much of it.

        Raises:
            InputError: If the probe does not tell them apart in the mean.
        """
        low, high = self.project(negative), self.project(positive)
        if low.mean() >= high.mean():
            raise InputError(f"{self.name}: finds more of it in the texts that should show little")
        return replace(self, range=Range.between(low, high))

    @classmethod
    def fitted(
        cls,
        name: str,
        better: Sequence[str],
        worse: Sequence[str],
        *,
        counts: Sequence[float] | None = None,
        neutral: Sequence[tuple[str, str]] = (),
        encoder: Encoder = SENTENCES,
        seed: int = 0,
    ) -> ProbeReward:
        """Fit to pairs of texts.

        Args:
            name: What is rewarded.
            better: The texts that show more of it, at least ten.
            worse: The others, in the same order.
            counts: How many pairs each stands for in the direction, more than 0; None for one.
                Accuracy and scale are those of the texts, each counted once.
            neutral: Pairs of texts that differ in what should earn nothing: in the mean their
                projections will be equal (mean projection, Haghighatkhah et al., arXiv 2212.04273).
            encoder: Makes points of texts.
            seed: Seeds which pairs are held out together.

        Raises:
            InputError: If there are too few pairs, counts do not fit them, neutral pairs do not
                differ, or held-out pairs are not told apart.
        """
        check_lengths(better, worse)
        if len(better) < 2 * _FOLDS:
            raise InputError(f"{name}: expected at least {2 * _FOLDS} pairs, got {len(better)}")
        stands = np.ones(len(better)) if counts is None else np.asarray(counts, np.float64)
        if stands.shape != (len(better),) or not (np.isfinite(stands) & (stands > 0)).all():
            raise InputError(f"{name}: expected {len(better)} finite counts above 0, got {counts}")
        high, low = encoder.encode(better), encoder.encode(worse)
        if neutral:
            one, other = (encoder.encode(texts) for texts in zip(*neutral, strict=True))
            apart = (one - other).mean(0)
            if not apart.any():
                raise InputError(f"{name}: neutral pairs do not differ, in the mean")
            nuisance = _unit(apart).astype(np.float32)
            # Fitted to points without it, the direction is orthogonal to it.
            high, low = (points - np.outer(points @ nuisance, nuisance) for points in (high, low))
        held_out = np.empty((2, len(better)))
        for fit, rest in KFold(_FOLDS, shuffle=True, random_state=seed).split(high):
            direction = _direction(high[fit] - low[fit], stands[fit])
            held_out[:, rest] = high[rest] @ direction, low[rest] @ direction
        accuracy = float((held_out[0] > held_out[1]).mean())
        if held_out[0].mean() <= held_out[1].mean():
            raise InputError(
                f"{name}: the {encoder.name} probe does not tell the better texts from the worse "
                f"({accuracy:.0%} of held-out pairs)"
            )
        scale = Range.between(held_out[1], held_out[0])
        title = f"{encoder.name} probe of {name}"
        return cls(title, encoder, _direction(high - low, stands), scale, accuracy)


def _direction(differences: Float32, counts: Float64) -> Float64:
    """Unit vector (d,) along which most differences (n, d) are positive, each counted (n,)."""
    both = np.concatenate([differences, -differences])
    signs = np.repeat([1, 0], len(differences))
    model = LogisticRegression(C=_C, fit_intercept=False, max_iter=1000)
    found = model.fit(both, signs, sample_weight=np.tile(counts, 2))
    # Its length grows with the number of pairs: the scale of folds would not fit the whole.
    return _unit(found.coef_[0])


def _unit(vector: NDArray[Any]) -> Float64:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


def packaged_probe(trait: str) -> ProbeReward | None:
    """The packaged probe on style, for traits that have one.

    `data/probes.json` tells of each to which data it was fitted; experiments/fit_probes.py fits it.

    Raises:
        DataError: If the packaged file is damaged.
    """
    path = data_dir() / "probes.json"
    stored = _stored(path).get(trait)
    if stored is None:
        return None
    try:
        return ProbeReward(
            f"{STYLE.name} probe of {trait}, {stored['data']}",
            STYLE,
            np.array(stored["direction"], np.float64),
            Range(*stored["range"]),
            stored["accuracy"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no whole probe of {trait} ({error!r})") from error


@cache
def _stored(path: Path) -> Mapping[str, Any]:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable probes ({error})") from error
    return stored
