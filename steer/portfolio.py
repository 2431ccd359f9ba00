"""The portfolio: the few measured edits that serve every mixture of some traits.

Beside the edits it holds what they were chosen from, every candidate with its rewards and its
divergence, so that a request can be routed and its worst case told without the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from steer.arrays import Rebuilt, read_only
from steer.certificate import Certificate, Measured
from steer.edits import ZERO, Edit
from steer.errors import InputError
from steer.objective import Objective
from steer.questions import Answered
from steer.route import route
from steer.weights import normalise_weights

Float64 = NDArray[np.float64]

OWN = "own layers"
"""The family of the traits' edits as the bundle holds them, each at its own layers and dose."""


@dataclass(frozen=True, order=True)
class Candidate:
    """How an edit is mixed: c_i times the edit of trait i, in one family of edits.

    Attributes:
        family: Which edits are mixed, such as those of one choice of layers.
        coefficients: c (k,), >= 0; 1 is a trait's default dose.
    """

    family: str
    coefficients: tuple[float, ...]

    @classmethod
    def rounded(cls, family: str, coefficients: Sequence[float] | Float64) -> Candidate:
        """With coefficients to three digits: far below what can be measured, and one name each."""
        return cls(family, tuple(np.asarray(coefficients, np.float64).round(3).tolist()))

    def is_unsteered(self) -> bool:
        """Whether nothing is mixed."""
        return not any(self.coefficients)

    def is_one_trait(self) -> bool:
        """Whether it is a trait's own edit at its default dose."""
        return sorted(self.coefficients) == [0.0] * (len(self.coefficients) - 1) + [1.0]


@dataclass(frozen=True)
class Trial:
    """What a search measured of a candidate, before a shortlist was measured better.

    Attributes:
        candidate: The candidate.
        rewards: Mean rewards, d of them.
        kl: Nats per token.
    """

    candidate: Candidate
    rewards: tuple[float, ...]
    kl: float


@dataclass(frozen=True)
class Entry:
    """How a request is served.

    Attributes:
        number: Place in the portfolio, from 1; 0 is the unsteered model, None a trait's own edit.
        candidate: How its edit is mixed.
        weights: The request's weights, scaled to sum to one, by trait.
        rewards: Its mean rewards on develop prompts, by trait.
        kl: Its divergence from the unedited model, nats per token.
        value: J of the entry at these weights.
        regret: How much better the best measured edit would be at these weights.
        strength: What the edit is multiplied by; what was measured is measured at 1.
    """

    number: int | None
    candidate: Candidate
    weights: Mapping[str, float]
    rewards: Mapping[str, float]
    kl: float
    value: float
    regret: float
    strength: float = 1.0

    def __str__(self) -> str:
        if self.number is None:
            served = f"the edit of {', '.join(self.weights)} alone"
        else:
            served = f"entry {self.number}" if self.number else "the unsteered model"
        shown = ", ".join(f"{name} {value:.2f}" for name, value in self.rewards.items())
        measured = "" if self.strength == 1 else f" (measured at strength 1, not {self.strength:g})"
        return (
            f"{served}: rewards {shown}; {self.kl:.3f} nats per token from the unsteered model; "
            f"J = {self.value:.3f}, at most {self.regret:.4f} below the best measured edit"
            f"{measured}"
        )


@dataclass(frozen=True, eq=False)
class Portfolio(Rebuilt):
    """The kept edits, what they were chosen from, and how far they can fall short.

    Attributes:
        traits: Whose weights are routed, d of them, in the order of the columns.
        rewards: What is rewarded, a name a trait.
        objective: J.
        candidates: Every measured edit, n of them; the first is the unsteered model.
        mean_rewards: (n, d) on develop prompts.
        kl: (n,) nats per token.
        kept: Which candidates are kept, K of them; the unsteered model is not counted.
        edits: The K edits.
        certificate: The worst case over all mixtures if the kept edits serve, relative to the
            candidates; what a trait's own edit loses, which serves it alone, `entry` tells.
        searched: What the search measured of these and of other candidates, on fewer and shorter
            answers; empty if its figures are those above.
        answered: What the kept edits answered to some prompts, to ask a person about.
    """

    traits: tuple[str, ...]
    rewards: tuple[str, ...]
    objective: Objective
    candidates: tuple[Candidate, ...] = field(repr=False)
    mean_rewards: Float64 = field(repr=False)
    kl: Float64 = field(repr=False)
    kept: tuple[int, ...]
    edits: tuple[Edit, ...]
    certificate: Certificate
    searched: tuple[Trial, ...] = field(default=(), repr=False)
    answered: tuple[Answered, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        d, n = len(self.traits), len(self.candidates)
        if d < 2 or len(set(self.traits)) != d or len(self.rewards) != d:
            raise InputError(
                f"portfolio: expected two or more different traits with a reward each, got "
                f"{self.traits} and {self.rewards}"
            )
        if self.mean_rewards.shape != (n, d) or self.kl.shape != (n,):
            raise InputError(
                f"portfolio: expected rewards ({n}, {d}) and divergences ({n},), got "
                f"{self.mean_rewards.shape} and {self.kl.shape}"
            )
        if not n or not self.candidates[0].is_unsteered() or self.kl[0] != 0:
            raise InputError("portfolio: the first candidate must be the unsteered model")
        if len(set(self.kept)) != len(self.kept) or not all(0 < i < n for i in self.kept):
            raise InputError(f"portfolio: kept must be different numbers in 1..{n - 1}")
        if len(self.edits) != len(self.kept):
            raise InputError(
                f"portfolio: got {len(self.edits)} edits for {len(self.kept)} kept candidates"
            )
        tried = (*self.candidates, *(trial.candidate for trial in self.searched))
        if any(len(candidate.coefficients) != d for candidate in tried):
            raise InputError(f"portfolio: expected {d} coefficients of every candidate")
        worst = (self.certificate.delta, self.certificate.epsilon)
        if any(one.weights.shape != (d,) or not 0 <= one.edit < n for one in worst):
            raise InputError("portfolio: the certificate is of other traits or candidates")
        if any(len(trial.rewards) != d for trial in self.searched):
            raise InputError(f"portfolio: expected {d} rewards of everything that was searched")
        if any(one.rewards.shape != (len(self.kept) + 1, d) for one in self.answered):
            raise InputError(
                f"portfolio: expected an answer of the unsteered model and of each of the "
                f"{len(self.kept)} kept edits, with {d} rewards each"
            )
        for name in ("mean_rewards", "kl"):
            object.__setattr__(self, name, read_only(getattr(self, name)))
        _ = self.measured  # checks the numbers

    @cached_property
    def measured(self) -> Measured:
        """Utilities and regulariser of all candidates."""
        return self.objective.measured(self.mean_rewards, self.kl)

    def serves(self, weights: Mapping[str, float]) -> bool:
        """Whether all traits that are asked for are routed."""
        return all(name in self.traits for name, weight in weights.items() if weight)

    def entry(self, weights: Mapping[str, float], strength: float = 1.0) -> Entry:
        """What serves a request, and how good that is.

        One trait alone is served by its own edit, if that held where the candidates were measured:
        its dose was found for just this, and nothing that was not asked for comes with it, while
        the rewards of traits without weight do not count in J.

        Args:
            weights: Trait names with numbers >= 0, scaled to sum to one here; traits that are not
                routed may stand among them with zero.
            strength: What the edit will be multiplied by; only told.

        Raises:
            WeightsError: If a trait is not routed or a number is not usable.
        """
        if isinstance(weights, Mapping):  # what asks for nothing is not missed
            weights = {name: w for name, w in weights.items() if name in self.traits or w != 0}
        shares = normalise_weights(weights, self.traits)
        w = np.array([shares.get(name, 0.0) for name in self.traits])
        alone = Candidate(OWN, tuple((w == 1).astype(float).tolist()))
        if len(shares) == 1 and alone in self.candidates:
            number, chosen = None, self.candidates.index(alone)
        else:
            chosen = int(route(self.measured, self.kept, w[None])[0])
            number = self.number(chosen)
        values = self.measured.value(w)
        return Entry(
            number=number,
            candidate=self.candidates[chosen],
            weights=shares,
            rewards=dict(zip(self.traits, self.mean_rewards[chosen].tolist(), strict=True)),
            kl=float(self.kl[chosen]),
            value=float(values[chosen]),
            regret=float(values.max() - values[chosen]),
            strength=strength,
        )

    def number(self, candidate: int) -> int:
        """Number of the entry that a kept candidate is; 0 of the unsteered model, the first."""
        return 0 if candidate == 0 else self.kept.index(candidate) + 1

    def served(self, weights: Mapping[str, float]) -> Edit | None:
        """The edit that serves a request; None where the traits' own edits are to.

        Args:
            weights: Trait names with numbers >= 0, also of traits that are not routed.

        Raises:
            WeightsError: If a number is not usable.
        """
        number = self.entry(weights).number if self.serves(weights) else None
        return None if number is None else self.edit(number)

    def edit(self, number: int) -> Edit:
        """The edit of an entry; 0 is the unsteered model's, which does nothing."""
        return ZERO if number == 0 else self.edits[number - 1]
