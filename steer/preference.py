"""A person's preference: weights that are more or less sure, and the same in a sentence.

POPI (arXiv 2510.17881) puts a short summary between a person's signals and a generator. Here it has
two faces: the weights drive edits, the summary the prompt of any model, one behind an API as well.

    preference = Preference.of(bundle)              # nothing is known
    preference = preference.choose(better, worse)   # rewards of two answers, and of which was liked
    steerer.generate(prompt, preference.weights)    # by edits
    messages = preference.messages(prompt)          # by words
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from steer.bundle import Bundle
from steer.errors import DataError, InputError
from steer.fields import (
    check_number,
    check_numbers,
    check_object,
    check_text,
    check_whole,
    exact_keys,
)
from steer.posterior import Posterior
from steer.questions import Question
from steer.resources import atomic_path
from steer.weights import normalise_weights

THUMB = 0.5
"""How much a thumb counts beside a choice: what the answer was held against is only supposed."""
EDIT = 0.5
"""How much a correction counts: it may have been for the content's sake."""

_FORMAT = 1
LITTLE = 0.5
"""Of even weights: what is below is of little matter to the person."""
MUCH = 1.5
"""Of even weights: what is this many times as much, or more, matters above all."""


@dataclass(frozen=True, eq=False)
class Preference:
    """What is known of a person's weights.

    Attributes:
        poles: By trait, what an answer with much of it is, such as "brief".
        posterior: Of the weights, in the same order.
    """

    poles: Mapping[str, str]
    posterior: Posterior

    def __post_init__(self) -> None:
        if len(self.poles) != self.posterior.traits:
            raise InputError(
                f"preference: got {len(self.poles)} traits for weights of {self.posterior.traits}"
            )
        object.__setattr__(self, "poles", dict(self.poles))

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        weights: Mapping[str, float] | None = None,
        *,
        worth: float = 8.0,
        seed: int = 0,
    ) -> Preference:
        """Before any choice.

        Args:
            bundle: Whose portfolio's traits the weights are of; all its traits without one.
            weights: What the person is taken to want, for want of better knowledge, such as what
                `steer.wishes` reads in their words; None if nothing is known.
            worth: How sure that is: the Dirichlet distribution has ones and so much shared out.
            seed: Of the posterior's particles.

        Raises:
            InputError: If a number is out of range.
            WeightsError: If the weights are not of these traits.
        """
        names = tuple(bundle.traits) if bundle.portfolio is None else bundle.portfolio.traits
        concentration = np.ones(len(names))
        if weights is not None:
            if not 0 <= worth < np.inf:
                raise InputError(f"worth: expected a number of at least 0, got {worth}")
            # First of all traits: those with zero need not be the portfolio's.
            shares = normalise_weights(normalise_weights(weights, bundle.traits), names)
            concentration += worth * np.array([shares.get(name, 0.0) for name in names])
        poles = {name: bundle.traits[name].positive for name in names}
        return cls(poles, Posterior.prior(concentration, seed=seed))

    @property
    def traits(self) -> tuple[str, ...]:
        """Names, in the order of rewards."""
        return tuple(self.poles)

    @property
    def weights(self) -> dict[str, float]:
        """Mean weights, which sum to one."""
        return dict(zip(self.poles, self.posterior.mean.tolist(), strict=True))

    def interval(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Between what each weight lies with a probability."""
        ends = self.posterior.interval(level).tolist()
        return {name: (low, high) for name, (low, high) in zip(self.poles, ends, strict=True)}

    @property
    def summary(self) -> str:
        """The preference in a sentence or two, as the person would say it."""
        return in_words(self.poles, self.weights)

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """A chat in which the summary tells any model what the person prefers."""
        return [{"role": "system", "content": self.summary}, {"role": "user", "content": prompt}]

    def answered(self, question: Question, *, first: bool) -> Preference:
        """After a question was answered.

        Args:
            question: The question.
            first: Whether its first answer was preferred.

        Raises:
            InputError: If it is of other traits.
        """
        return replace(self, posterior=self.posterior.updated(question.preferred(first)))

    def choose(self, better: ArrayLike, worse: ArrayLike) -> Preference:
        """After the person preferred one answer to another.

        Args:
            better: Rewards of the preferred answer (d,).
            worse: Rewards of the other (d,).

        Raises:
            InputError: If the rewards are not usable.
        """
        return self._after(better, worse, 1.0)

    def thumb(self, rewards: ArrayLike, usual: ArrayLike, *, up: bool) -> Preference:
        """After a thumb for an answer: it is better, or worse, than what answers usually are.

        Args:
            rewards: Of the answer (d,).
            usual: Of the answers that the person is used to (d,), such as the mean of the entry
                they are served.
            up: Or down.

        Raises:
            InputError: If the rewards are not usable.
        """
        return self._after(rewards, usual, THUMB) if up else self._after(usual, rewards, THUMB)

    def corrected(self, before: ArrayLike, after: ArrayLike) -> Preference:
        """After the person edited an answer.

        Args:
            before: Rewards of the answer (d,).
            after: Rewards of what they made of it (d,).

        Raises:
            InputError: If the rewards are not usable.
        """
        return self._after(after, before, EDIT)

    def later(self, keep: float = 0.8) -> Preference:
        """In a new session: what was said before counts less, since preferences drift.

        Args:
            keep: How much of it is left, in (0, 1].

        Raises:
            InputError: If that is out of range.
        """
        return replace(self, posterior=self.posterior.faded(keep))

    def _after(self, better: ArrayLike, worse: ArrayLike, exponent: float) -> Preference:
        rows = [np.asarray(row, np.float64) for row in (better, worse)]
        if any(row.shape != (len(self.poles),) for row in rows):
            raise InputError(
                f"expected the rewards of {len(self.poles)} traits of two answers, got shapes "
                f"{rows[0].shape} and {rows[1].shape}"
            )
        changed = self.posterior.updated(rows[0] - rows[1], exponent=exponent)
        return replace(self, posterior=changed)

    def save(self, path: str | Path) -> None:
        """Write it as JSON: reward differences and how much each counts, and no text of theirs."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """What a file or a database holds of it: numbers, and the names of poles."""
        return {
            "format": _FORMAT,
            "poles": dict(self.poles),
            "differences": self.posterior.differences.tolist(),
            "exponents": self.posterior.exponents.tolist(),
            "concentration": self.posterior.concentration.tolist(),
            "slope": self.posterior.prior_slope,
            "particles": len(self.posterior.beta),
            "seed": self.posterior.seed,
        }

    @classmethod
    def load(cls, path: str | Path) -> Preference:
        """Read what `save` wrote. The posterior is the same, on particles drawn anew.

        Raises:
            DataError: If the file cannot be read or is not one.
        """
        path = Path(path)
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable preference: {error}") from error

    @classmethod
    def from_json(cls, value: object) -> Preference:
        """What `to_json` gave. The posterior is the same, on particles drawn anew.

        Raises:
            InputError: If it is something else.
        """
        where = "preference"
        fields = check_object(value, where)
        expected = {"format", "poles", "differences", "exponents", "concentration", "slope"}
        exact_keys(fields, expected | {"particles", "seed"}, where)
        if fields["format"] != _FORMAT:
            raise InputError(f"{where}: expected format {_FORMAT}, got {fields['format']!r:.80}")
        poles = check_object(fields["poles"], f"{where}, 'poles'")
        names = ("differences", "exponents", "concentration")
        if not all(isinstance(fields[name], list) for name in names):
            raise InputError(f"{where}: expected lists in {', '.join(names)}")
        differences = [
            check_numbers(row, f"{where}, 'differences'") for row in fields["differences"]
        ]
        exponents = check_numbers(fields["exponents"], f"{where}, 'exponents'")
        posterior = Posterior.prior(
            check_numbers(fields["concentration"], f"{where}, 'concentration'"),
            slope=check_number(fields["slope"], f"{where}, 'slope'"),
            particles=check_whole(fields["particles"], f"{where}, 'particles'"),
            seed=check_whole(fields["seed"], f"{where}, 'seed'"),
        )
        return cls(
            {name: check_text(pole, f"{where}, 'poles'") for name, pole in poles.items()},
            posterior.after(differences, exponents),
        )


def in_words(poles: Mapping[str, str], weights: Mapping[str, float]) -> str:
    """Weights in a sentence or two, as the person would say them.

    Args:
        poles: By trait, what an answer with much of it is, such as "brief".
        weights: Of those traits, summing to one.
    """
    even = 1 / len(poles)
    ranked = sorted(weights.items(), key=lambda item: -item[1])
    much = [poles[name] for name, weight in ranked if weight >= MUCH * even]
    some = [poles[name] for name, weight in ranked if LITTLE <= weight / even < MUCH]
    little = [poles[name] for name, weight in ranked if weight < LITTLE * even]
    if not much and not little:
        alike = ", all about as much" if len(some) > 1 else ""
        return f"I like answers that are {_listed(some)}{alike}."
    first = f"I like answers that are above all {_listed(much)}" if much else "I like answers"
    if some:
        first += f", and also {_listed(some)}" if much else f" that are {_listed(some)}"
    second = f" Whether they are {_listed(little, 'or')} matters little." if little else ""
    return f"{first}.{second}"


def _listed(words: Sequence[str], last: str = "and") -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
