"""Rewards: how much of a trait a response shows, in [0, 1].

A reward is a function of prompts and responses. Measures of a text become rewards by a scale: what
earns 0 and what earns 1, set by hand or, for a log-ratio, read off the trait's contrast pairs.
`Objective` weighs rewards against how far an edit takes the model from itself (PALM, arXiv
2604.04144).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from steer.contrast import PairSet
from steer.errors import InputError, ModelError
from steer.likelihood import log_ratio
from steer.measures import TRAIT_MEASURES, automated_readability, is_coherent, words
from steer.models import LanguageModel
from steer.quiet import no_progress_bars
from steer.relevance import relevance
from steer.resources import content_key
from steer.traits import Trait

Float64 = NDArray[np.float64]


class Reward(Protocol):
    """How much of something each response shows."""

    @property
    def name(self) -> str:
        """What is rewarded, for people."""
        ...

    @property
    def key(self) -> str:
        """What its values hang on: measurements are kept under it, and not taken for others."""
        ...

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Values in [0, 1], shape (n,), of n responses to n prompts."""
        ...


@dataclass(frozen=True)
class Range:
    """What earns a reward of 0 and of 1; linear between, flat beyond. `zero` may be the larger."""

    zero: float
    one: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.zero) and math.isfinite(self.one)) or self.zero == self.one:
            raise InputError(
                f"expected two different finite numbers to scale by, got {self.zero}, {self.one}"
            )

    def scale(self, values: ArrayLike) -> Float64:
        """Values (n,) as rewards (n,)."""
        share = (np.asarray(values, np.float64) - self.zero) / (self.one - self.zero)
        return np.clip(share, 0, 1)

    @classmethod
    def between(cls, negative: ArrayLike, positive: ArrayLike) -> Range:
        """From the outermost tenth of the negative pole's values to that of the positive's.

        Raises:
            InputError: If the poles cannot be told apart by these values.
        """
        low, high = np.asarray(negative, np.float64), np.asarray(positive, np.float64)
        if not len(low) or not len(high) or np.mean(low) == np.mean(high):
            raise InputError("the measure does not tell the poles of the contrast pairs apart")
        rising = bool(np.mean(low) < np.mean(high))
        outer = 0.1 if rising else 0.9
        zero, one = float(np.quantile(low, outer)), float(np.quantile(high, 1 - outer))
        if (one > zero) != rising:  # a few far values make the means
            raise InputError(
                "the measure does not tell the poles of the contrast pairs apart: their means and "
                "their outermost tenths are in opposite orders"
            )
        return cls(zero, one)


@dataclass(frozen=True)
class TextReward:
    """A measure of the response alone, scaled.

    Attributes:
        name: What is measured.
        value: The measure of a text.
        range: What earns 0 and 1.
    """

    name: str
    value: Callable[[str], float]
    range: Range

    @property
    def key(self) -> str:
        """The name and the scale."""
        return content_key([self.name, asdict(self.range)])

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Scaled measures (n,)."""
        check_lengths(prompts, responses)
        return self.range.scale([self.value(text) for text in responses])


def length_reward(few: float = 20, many: float = 400) -> TextReward:
    """Brevity: 1 at `few` words or fewer, 0 at `many`, even on a logarithmic scale between."""
    if not 0 < few < many:
        raise InputError(f"expected 0 < few < many words, got {few} and {many}")
    scale = Range(math.log(many), math.log(few))
    name = f"words, {many:g} to {few:g}"
    return TextReward(name, lambda text: math.log(max(1, len(words(text)))), scale)


def length_reward_named(name: str) -> TextReward | None:
    """The length reward that has this name, as portfolios store it; None if none has."""
    found = re.fullmatch(r"words, (\S+) to (\S+)", name)
    return None if found is None else length_reward(float(found[2]), float(found[1]))


def readability_reward(hard: float = 16, easy: float = 2) -> TextReward:
    """Simplicity: by the automated readability index.

    Of the grades that need no word list, people's levels follow it best
    (experiments/results/rewards).
    """
    name = f"automated readability grade, {hard:g} to {easy:g}"
    return TextReward(name, automated_readability, Range(hard, easy))


def sentiment_reward(dark: float = -0.5, bright: float = 0.8) -> TextReward:
    """Positivity: the mean VADER score of the sentences."""
    return _measure_reward("positivity", dark, bright)


def formality_reward(casual: float = 12, formal: float = 0) -> TextReward:
    """Formality: by casual marks per 100 words.

    The scale ends at what a chatty answer has, not at what answers have that were asked to be as
    casual as can be (37): on such a scale any plain answer earns 0.84, and what is left to gain is
    less than an edit's divergence costs.
    """
    return _measure_reward("formality", casual, formal)


def warmth_reward(cool: float = 0, warm: float = 6) -> TextReward:
    """Warmth: by warm words per 100 words. The scale ends where warm edits do, as formality's."""
    return _measure_reward("warmth", cool, warm)


def _measure_reward(trait: str, zero: float, one: float) -> TextReward:
    """A built-in trait's measure, scaled."""
    measure = TRAIT_MEASURES[trait]
    name = f"{measure.name}, {zero:g} to {one:g}"
    return TextReward(name, measure.value, Range(zero, one))


@dataclass(frozen=True)
class RelevanceReward:
    """Helpfulness, in so far as it means to answer what was asked: similarity to the prompt."""

    range: Range = Range(0.0, 0.8)
    name: str = "relevance"

    @property
    def key(self) -> str:
        """The name and the scale."""
        return content_key([self.name, asdict(self.range)])

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Scaled similarities (n,)."""
        check_lengths(prompts, responses)
        return self.range.scale(relevance(prompts, responses))


@dataclass(frozen=True)
class LogRatioReward:
    """The model's own opinion: log p(y | x, positive) - log p(y | x, negative), per token.

    It needs no other model, so any trait has one. It is judged by the model that is steered; a
    table that reports it should hold a measure of another kind too.

    Attributes:
        language_model: The judge, which must not be steered meanwhile.
        trait: Whose instructions are compared.
        range: What earns 0 and 1.
        max_tokens: Judge the beginning of each response; None for all of it.
    """

    language_model: LanguageModel
    trait: Trait
    range: Range
    max_tokens: int | None = 128

    @property
    def name(self) -> str:
        """What is rewarded."""
        return f"log-ratio of {self.trait.name}"

    @property
    def key(self) -> str:
        """The judge, what it is asked, how much it reads, and the scale."""
        judge = self.language_model.fingerprint.to_dict()
        asked = [self.trait.asked, self.max_tokens]
        return content_key([self.name, judge, asked, asdict(self.range)])

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Scaled log-ratios (n,)."""
        check_lengths(prompts, responses)
        return self.range.scale(self._values(prompts, responses))

    def _values(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        return log_ratio(
            self.language_model, self.trait, prompts, responses, max_tokens=self.max_tokens
        )

    @classmethod
    def calibrated(
        cls,
        language_model: LanguageModel,
        trait: Trait,
        prompts: Sequence[str],
        pairs: PairSet,
        *,
        max_tokens: int | None = 128,
    ) -> LogRatioReward:
        """Scaled by the trait's contrast pairs.

        Args:
            language_model: The judge.
            trait: The trait.
            prompts: The plain prompts of the pairs, without instructions, in their order.
            pairs: The contrast pairs.
            max_tokens: Judge the beginning of each response.

        Raises:
            InputError: If the numbers differ, or the model cannot tell its own poles apart.
        """
        raw = cls(language_model, trait, Range(0, 1), max_tokens)
        values = []
        for answers in (pairs.negative, pairs.positive):
            check_lengths(prompts, answers)
            values.append(raw._values(prompts, answers))
        if values[0].mean() >= values[1].mean():
            raise InputError(
                f"trait {trait.name!r}: the model finds its negative answers more like the "
                "positive instruction; its log-ratio is no reward"
            )
        return cls(language_model, trait, Range.between(*values), max_tokens)


class ClassifierReward:
    """A sequence-classification model: a reward model with one output, or one of its labels."""

    def __init__(
        self, model: str | Path, *, label: str | None = None, device: str | None = None
    ) -> None:
        """Load the model.

        Args:
            model: Local folder or hub id.
            label: The label whose probability is the reward; None for a model with one output,
                whose sigmoid is.
            device: Where it runs; None for the CPU.

        Raises:
            ModelError: If it cannot be loaded.
            InputError: If the label does not exist, or is needed and not given.
        """
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            config = AutoConfig.from_pretrained(model)
            # Another model would be given a head of random numbers.
            if not any("SequenceClassification" in x for x in config.architectures or ()):
                raise ValueError(f"its architecture is {config.architectures}")
            with no_progress_bars():
                loaded: Any = AutoModelForSequenceClassification.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise ModelError(f"{model}: not a sequence-classification model ({error})") from error
        labels = {name: index for index, name in loaded.config.id2label.items()}
        if label is None and loaded.config.num_labels == 1:
            self._index = 0
        elif label in labels:
            self._index = labels[label]
        else:
            raise InputError(f"label: expected one of {', '.join(labels)}, got {label!r}")
        self._model = loaded.to(device or "cpu").eval()
        self.name = str(model) if label is None else f"{model}: {label}"
        self.key = self.name

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """Probabilities (n,)."""
        check_lengths(prompts, responses)
        values = np.empty(len(responses))
        order = sorted(range(len(responses)), key=lambda i: len(prompts[i]) + len(responses[i]))
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                rows = order[start : start + 32]
                inputs = self._tokenizer(
                    [prompts[i] for i in rows],
                    [responses[i] for i in rows],
                    padding=True,
                    truncation=True,
                    return_tensors="pt",
                ).to(self._model.device)
                logits = self._model(**inputs).logits.float()
                if logits.shape[1] == 1:
                    scores = logits[:, 0].sigmoid()
                else:
                    scores = logits.softmax(-1)[:, self._index]
                values[rows] = scores.cpu().numpy()
        return values


@dataclass(frozen=True)
class FunctionReward:
    """A function of prompts and responses, checked.

    Attributes:
        name: What is rewarded; another function has another one.
        function: Gives n numbers in [0, 1].
    """

    name: str
    function: Callable[[Sequence[str], Sequence[str]], ArrayLike]

    @property
    def key(self) -> str:
        """The name."""
        return self.name

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64:
        """What the function gives (n,).

        Raises:
            InputError: If it is not n numbers in [0, 1].
        """
        check_lengths(prompts, responses)
        values = np.asarray(self.function(prompts, responses), np.float64)
        if values.shape != (len(responses),):
            raise InputError(
                f"reward {self.name!r}: expected {len(responses)} numbers, got shape {values.shape}"
            )
        # Not a number is not between 0 and 1 either.
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"reward {self.name!r}: expected numbers from 0 to 1, got {values}")
        return values


def check_lengths(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Refuse responses that do not belong to prompts one by one."""
    if len(prompts) != len(responses):
        raise InputError(f"got {len(responses)} responses to {len(prompts)} prompts")


def score(
    rewards: Sequence[Reward], prompts: Sequence[str], responses: Sequence[str]
) -> tuple[Float64, NDArray[np.bool_]]:
    """Rewards of responses, with fluency in them.

    Returns:
        Rewards (n, d), 0 on every trait where a response loops or is broken, and which responses
        are fluent (n,).
    """
    fluent = np.array([is_coherent(text) for text in responses], bool)
    columns = [reward(prompts, responses) for reward in rewards]
    return np.stack(columns, axis=1) * fluent[:, None], fluent
