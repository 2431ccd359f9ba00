"""Which question to ask next, and what a person is served by what is known.

A person's weights only matter as far as they change what they are served. J is linear in the
weights, so the best entry to serve is that of the mean weights, and its expected regret

    E[max_e J_w(e)] - max_k J_{E[w]}(k)

falls with an answer by what the second term rises on average: the first is the same whatever is
asked. That rise is the knowledge gradient (Frazier, Powell and Dayanik, 2008). It looks one answer
ahead, and is nought where it takes two to change what is served; how much an answer tells about the
weights, its mutual information (BALD; Houlsby et al., 2011), is not. Each question has a share of
the best by either, and the one with the largest sum is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, xlogy

from steer.certificate import Measured
from steer.errors import InputError
from steer.posterior import Posterior
from steer.route import route

Float64 = NDArray[np.float64]

# Of the posterior, to weigh questions by: a few hundred rank them as thousands do.
_DRAWN = 500
# Of J: a gain below this is the noise of those.
_NOTHING = 1e-4


@dataclass(frozen=True)
class Service:
    """What a person is served by what is known of them, and what that may lose.

    Attributes:
        chosen: Index of the measured edit.
        expected: Mean of its regret against the best measured edit, in J.
        certified: What its regret is below with the probability that was asked for.
    """

    chosen: int
    expected: float
    certified: float


def service(
    posterior: Posterior, measured: Measured, kept: tuple[int, ...], *, level: float = 0.95
) -> Service:
    """What a person is served now.

    Args:
        posterior: Of their weights.
        measured: Every measured edit.
        kept: Indices of the edits that can be served, beside the unsteered model.
        level: Probability of the certified regret.
    """
    chosen = int(route(measured, kept, posterior.mean[None])[0])
    values = measured.value(posterior.weights)
    regret = values.max(1) - values[:, chosen]
    return Service(chosen, float(posterior.shares @ regret), posterior.quantile(regret, level))


def best_question(
    posterior: Posterior, differences: ArrayLike, measured: Measured, kept: tuple[int, ...]
) -> int:
    """Number of the question whose answer is worth most.

    Args:
        posterior: Of the person's weights.
        differences: Of each question, rewards of one answer minus those of the other (q, d).
        measured: Every measured edit.
        kept: Indices of the edits that can be served, beside the unsteered model.

    Raises:
        InputError: If there is no question, or not of the posterior's traits.
    """
    asked = np.asarray(differences, np.float64)
    if asked.ndim != 2 or asked.shape[1] != posterior.traits or not len(asked):
        raise InputError(
            f"expected differences (q, {posterior.traits}) of a question or more, got {asked.shape}"
        )
    chosen = posterior.draw((np.arange(_DRAWN) + 0.5) / _DRAWN)
    weights = posterior.weights[chosen]  # (n, d)
    first = expit(asked @ posterior.beta[chosen].T)  # (q, n): each particle's answer
    gain = _gain(first, weights, measured, kept)
    told = _entropy(first.mean(1)) - _entropy(first).mean(1)
    worth = told / max(told.max(), _NOTHING)
    if gain.max() > _NOTHING:
        worth += gain / gain.max()
    return int(worth.argmax())


def _gain(first: Float64, weights: Float64, measured: Measured, kept: tuple[int, ...]) -> Float64:
    """By how much J of what is served rises by an answer, on average (q,)."""
    order = np.array((0, *kept))

    def served(mean: Float64) -> Float64:
        return np.asarray(measured.value(mean)[:, order].max(1))

    now = served(weights.mean(0)[None])[0]
    after = np.zeros(len(first))
    for chance in (first, 1 - first):
        total = np.maximum(chance.sum(1, keepdims=True), np.finfo(np.float64).tiny)
        after += chance.mean(1) * served(chance @ weights / total)
    return np.asarray(after - now)


def _entropy(chance: Float64) -> Float64:
    """Of a yes or no, in nats."""
    return np.asarray(-xlogy(chance, chance) - xlogy(1 - chance, 1 - chance))
