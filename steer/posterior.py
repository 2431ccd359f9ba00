"""What choices tell about a person's weights: Bradley-Terry on reward differences.

A person with weights w who is shown two answers with rewards r_a and r_b (d,) prefers the first
with probability (Bradley and Terry, 1952)

    p = sigma(s <w, r_a - r_b>),

where the slope s says how consistent they are. Both enter as beta = s w >= 0 alone, in which the
likelihood is log-concave. Independent beta_i of Gamma distributions with shapes a_i and one scale
are weights of a Dirichlet distribution with parameters a and a slope of a Gamma distribution, so

    log p(beta | answers) = sum_t k_t log sigma(<beta, D_t>)
                            + sum_i (a_i - 1) log beta_i - beta_i / scale + const

is log-concave too where a_i >= 1, and one prior gives both its maximum and its spread. Without
knowledge a = 1: weights are uniform on the simplex. The exponent k_t is 1 for a choice, less for a
weaker signal, and decays where preferences may drift (a power prior: Ibrahim and Chen, 2000).

The posterior is held as a seeded set of weighted particles: an answer multiplies their weights,
which takes microseconds. When few of them carry most of the weight they are drawn anew and moved by
an affine-invariant ensemble sampler (Goodman and Weare, 2010), in log beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit, softmax

from steer.errors import InputError

Float64 = NDArray[np.float64]
Indices = NDArray[np.int64]

SLOPE = 8.0
"""Mean slope before any answer: of a person who is consistent three times in four where weighted
rewards differ by .14, as those of two entries' answers do in the middle."""

_PARTICLES = 2000
# More would be no better, and a number in a file must not exhaust the memory.
_MOST_PARTICLES = 10**6
# Of all particles, the effective number below which they are drawn anew.
_SPENT = 0.5
_SWEEPS = 20
_STRETCH = 2.0
_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Posterior:
    """Weights over d traits, and how sure they are. `Posterior.prior` begins one.

    Attributes:
        differences: D (t, d), rewards of what was preferred minus rewards of the other.
        exponents: k (t,), how much each answer counts.
        beta: Particles (N, d), slope times weights.
        said: What the answers say of each particle (N,), sum_t k_t log sigma(<beta, D_t>).
        included: The part of it that the particles' density holds already (N,).
        concentration: a (d,), of the prior.
        scale: Of the prior's Gamma distributions.
        seed: Of the particles.
    """

    differences: Float64
    exponents: Float64
    beta: Float64
    said: Float64
    included: Float64
    concentration: Float64
    scale: float
    seed: int

    @classmethod
    def prior(
        cls,
        concentration: ArrayLike,
        *,
        slope: float = SLOPE,
        particles: int = _PARTICLES,
        seed: int = 0,
    ) -> Posterior:
        """Before any answer.

        Args:
            concentration: Of the Dirichlet distribution of the weights (d,), each at least 1;
                ones for uniform weights.
            slope: Mean of s.
            particles: N, an even number, at most a million.
            seed: Of the particles.

        Raises:
            InputError: If a number is out of range.
        """
        shape = np.asarray(concentration, np.float64)
        if shape.ndim != 1 or not shape.size or not (np.isfinite(shape) & (shape >= 1)).all():
            raise InputError(
                f"concentration: expected finite numbers of at least 1, got {concentration!r:.80}"
            )
        if not 4 * shape.size <= particles <= _MOST_PARTICLES or particles % 2:
            raise InputError(
                f"particles: expected an even number from {4 * shape.size} to {_MOST_PARTICLES}, "
                f"got {particles}"
            )
        if not 0 < slope < math.inf:
            raise InputError(f"slope: expected a number above 0, got {slope}")
        scale = slope / float(shape.sum())
        beta = np.random.default_rng(seed).gamma(shape, scale, (particles, shape.size))
        nothing = np.zeros(particles)
        return cls(
            np.zeros((0, shape.size)),
            np.zeros(0),
            np.maximum(beta, _TINY),
            nothing,
            nothing,
            shape,
            scale,
            seed,
        )

    @property
    def traits(self) -> int:
        """How many traits there are."""
        return len(self.concentration)

    @property
    def prior_slope(self) -> float:
        """Mean slope before any answer."""
        return self.scale * float(self.concentration.sum())

    def updated(self, difference: ArrayLike, *, exponent: float = 1.0) -> Posterior:
        """After one more answer.

        Args:
            difference: Rewards of what was preferred minus rewards of the other (d,).
            exponent: How much it counts: 1 for a choice, less for a weaker signal.

        Raises:
            InputError: If the difference is not d finite numbers, or the exponent not above 0 and
                at most 1.
        """
        row = np.asarray(difference, np.float64)
        if row.shape != (self.traits,) or not np.isfinite(row).all():
            raise InputError(
                f"expected {self.traits} finite reward differences, got {difference!r:.80}"
            )
        if not 0 < exponent <= 1:
            raise InputError(f"exponent: expected a number above 0, at most 1, got {exponent}")
        new = replace(
            self,
            differences=np.append(self.differences, row[None], axis=0),
            exponents=np.append(self.exponents, exponent),
            said=self.said + exponent * log_expit(self.beta @ row),
        )
        return new._drawn_anew() if new.effective < _SPENT * len(new.beta) else new

    def after(self, differences: ArrayLike, exponents: ArrayLike) -> Posterior:
        """After many more answers, one after the other.

        Args:
            differences: As of `updated` (n, d).
            exponents: As of `updated` (n,).

        Raises:
            InputError: If there are not as many of both, or one is not usable.
        """
        try:
            rows, counts = (np.asarray(values, np.float64) for values in (differences, exponents))
        except ValueError as error:
            raise InputError(
                f"expected {self.traits} reward differences in each row: {error}"
            ) from error
        if counts.ndim != 1 or len(rows) != len(counts):
            raise InputError(f"got {len(rows)} reward differences and {counts.size} exponents")
        posterior = self
        for row, count in zip(rows, counts.tolist(), strict=True):
            posterior = posterior.updated(row, exponent=count)
        return posterior

    def faded(self, keep: float) -> Posterior:
        """The same, when all answers so far count less, since preferences drift.

        Args:
            keep: How much of each exponent is left, in (0, 1].

        Raises:
            InputError: If that is out of range.
        """
        if not 0 < keep <= 1:
            raise InputError(f"keep: expected a number in (0, 1], got {keep}")
        # From the prior again: particles that lie closer together than they should do not show it
        # in their weights, and spread only slowly.
        prior = Posterior.prior(
            self.concentration, slope=self.prior_slope, particles=len(self.beta), seed=self.seed
        )
        return prior.after(self.differences, keep * self.exponents)

    @cached_property
    def shares(self) -> Float64:
        """Probabilities of the particles (N,)."""
        return np.asarray(softmax(self.said - self.included))

    @property
    def effective(self) -> float:
        """Effective number of particles."""
        return float(1 / (self.shares**2).sum())

    @cached_property
    def weights(self) -> Float64:
        """Particles on the simplex (N, d)."""
        return np.asarray(self.beta / self.beta.sum(1, keepdims=True))

    @cached_property
    def mean(self) -> Float64:
        """Mean weights (d,)."""
        return np.asarray(self.shares @ self.weights)

    @property
    def slope(self) -> float:
        """Mean slope s."""
        return float(self.shares @ self.beta.sum(1))

    def draw(self, places: ArrayLike) -> Indices:
        """Indices of the particles at some levels, in (0, 1), of their summed probabilities."""
        found = np.searchsorted(self.shares.cumsum(), np.asarray(places, np.float64))
        return np.minimum(found, len(self.beta) - 1)

    def quantile(self, values: ArrayLike, level: float) -> float:
        """Of numbers that belong to the particles (N,), the least that so much is not above."""
        array = np.asarray(values, np.float64)
        order = array.argsort()
        reached = int(np.searchsorted(self.shares[order].cumsum(), level))
        return float(array[order[min(reached, len(order) - 1)]])

    def interval(self, level: float = 0.9) -> Float64:
        """Between what each weight lies with a probability (d, 2).

        Raises:
            InputError: If the level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise InputError(f"level: expected a number in (0, 1), got {level}")
        ends = ((1 - level) / 2, (1 + level) / 2)
        return np.array([[self.quantile(column, end) for end in ends] for column in self.weights.T])

    def most_probable(self) -> Float64:
        """Weights of the posterior's maximum in beta (d,); it is the only one.

        Where that is at 0, as before any answer, weights have no meaning: those of the prior.
        """

        def falling(beta: Float64) -> tuple[float, Float64]:
            missed = expit(-self.differences @ beta)
            slope = (self.exponents * missed) @ self.differences - 1 / self.scale
            return (
                -float(self._log_density(beta[None])[0]),
                -(slope + (self.concentration - 1) / np.maximum(beta, _TINY)),
            )

        # A weight that the prior keeps from 0 has to be kept there.
        least = np.where(self.concentration > 1, 1e-9, 0.0)
        found = minimize(
            falling,
            np.full(self.traits, self.scale),
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, None) for low in least.tolist()],
        )
        beta = found.x if found.x.sum() > 1e-6 else self.concentration
        return np.asarray(beta / beta.sum())

    def _log_density(self, beta: Float64) -> Float64:
        """Of points (n, d), up to a constant (n,)."""
        shape = np.log(np.maximum(beta, _TINY)) @ (self.concentration - 1)
        return np.asarray(self._says(beta) + shape - beta.sum(1) / self.scale)

    def _says(self, beta: Float64) -> Float64:
        return np.asarray(log_expit(beta @ self.differences.T) @ self.exponents)

    def _drawn_anew(self) -> Posterior:
        """The same posterior on particles of even weight."""
        rng = np.random.default_rng((self.seed, len(self.exponents)))
        number = len(self.beta)
        half = number // 2
        chosen = self.draw((np.arange(number) + rng.random()) / number)
        logs = np.log(self.beta[rng.permutation(chosen)])

        def density(points: Float64) -> Float64:
            # Of log beta, whose Jacobian is the product of the beta_i.
            return np.asarray(self._log_density(np.exp(points)) + points.sum(1))

        values = density(logs)
        for _ in range(_SWEEPS):
            for mine, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
                anchors = logs[other][rng.integers(half, size=half)]
                stretch = ((_STRETCH - 1) * rng.random(half) + 1) ** 2 / _STRETCH
                proposed = anchors + stretch[:, None] * (logs[mine] - anchors)
                there = density(proposed)
                gain = (self.traits - 1) * np.log(stretch) + there - values[mine]
                taken = np.log(rng.random(half)) < gain
                logs[mine] = np.where(taken[:, None], proposed, logs[mine])
                values[mine] = np.where(taken, there, values[mine])
        beta = np.maximum(np.exp(logs), _TINY)
        said = self._says(beta)
        return replace(self, beta=beta, said=said, included=said)
