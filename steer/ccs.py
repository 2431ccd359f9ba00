"""Contrast-Consistent Search: the hyperplane between two sides, without their labels.

Burns et al., arXiv 2212.03827. Two facts decide how its numbers are to be read. Its loss is
symmetric in the two sides of a pair, so swapping labels *within* pairs cannot serve as a control:
it leaves the loss where it is, or lowers it (see `CCSProbe.shuffled_loss`). And the class-wise
means that Burns et al. subtract are, for pairs whose sides always differ in the trait, the trait's
mean difference itself: what is left to find is how the strength of the trait varies from pair to
pair. `normalisation` chooses between their form and a common mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from steer.arrays import (
    Float32,
    Float64,
    check_choice,
    check_count,
    checked_pairs,
    frozen,
    oriented,
)
from steer.errors import InputError
from steer.fields import check_seed

Normalisation = Literal["class", "common"]

_STEPS = 300
_LEARNING_RATE = 0.1


@dataclass(frozen=True, eq=False)
class CCSProbe:
    """A Contrast-Consistent Search probe and the controls it has to beat.

    All three losses are on held-out pairs and without weight decay. A probe that knows nothing
    reaches 0.2 with the best constant, p = 2/5, and about 0.18 when it reads independent noise on
    the two sides: a loss near these numbers says that nothing was found.

    Attributes:
        normal: (d,) float32 unit normal in raw activation space; positives score higher.
        loss: Held-out loss.
        accuracy: Share of held-out pairs whose positive side scores higher than its negative one.
        shuffled_loss: Held-out loss of the same fit after the labels of all items were shuffled,
            so that a "pair" is two items drawn at random. Swapping labels within pairs would be
            no control: the loss does not change when p_pos and p_neg trade places.
        random_loss: Held-out loss of the best (lowest training loss) of as many random directions
            as there are restarts, in the same principal components, with fitted scale and bias.
    """

    normal: Float32
    loss: float
    accuracy: float
    shuffled_loss: float
    random_loss: float


def ccs_loss(p_pos: ArrayLike, p_neg: ArrayLike) -> float:
    """The loss of Contrast-Consistent Search (Burns et al., arXiv 2212.03827, section 2.2).

        mean[ min(p_neg, p_pos)^2 + (p_neg - (1 - p_pos))^2 ]

    The first term asks for confidence, the second for consistency. It is symmetric in its two
    arguments.

    Args:
        p_pos: (n,) probabilities of the positive sides.
        p_neg: (n,) probabilities of the negative sides.

    Returns:
        The mean loss over the pairs, in [0, 2].
    """
    p, q = np.asarray(p_pos, dtype=np.float64), np.asarray(p_neg, dtype=np.float64)
    return float(_ccs_losses(p, q))


def fit_ccs(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    seed: int = 0,
    restarts: int = 10,
    components: int = 16,
    weight_decay: float = 0.02,
    held_out: float = 0.25,
    normalisation: Normalisation = "class",
) -> CCSProbe:
    """Contrast-Consistent Search (Burns et al., arXiv 2212.03827) on leading components.

    p = sigmoid(w.z + b), where z are the leading principal components of the normalised training
    activations, scaled by one common number. The restart with the lowest training loss wins. Few
    pairs in many dimensions separate perfectly by chance; the components, the weight decay and
    the held-out pairs are there against that.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations, row for row.
        seed: Seeds the split, the restarts, the shuffling and the random directions.
        restarts: Number of starting points, and of random directions.
        components: Principal components to fit in; never more than a third of the training pairs.
        weight_decay: Factor of |w|^2 in the objective.
        held_out: Share of the pairs kept out of the fit, in (0, 1); at least two pairs, and at
            least four are left for training.
        normalisation: "class" subtracts each class's own mean, as Burns et al. do. It removes the
            constant part of the trait, and finds the direction along which the two sides of a
            pair vary in opposite senses. "common" subtracts the mean of both classes, and the
            constant part counts.

    Returns:
        The probe. Its sign is set from the raw class means of the training pairs.

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape, do not
            vary at all, or an option is out of range.
    """
    h_p, h_n = checked_pairs(positive, negative)
    check_choice("normalisation", normalisation, ("class", "common"))
    check_count("restarts", restarts)
    check_count("components", components)
    seed = check_seed(seed)
    if not 0 <= weight_decay < np.inf:
        raise InputError(f"expected a finite weight_decay >= 0, got {weight_decay!r}")
    if not 0 < held_out < 1:
        raise InputError(f"expected held_out in (0, 1), got {held_out!r}")

    n = len(h_p)
    # One stream per purpose: the number of restarts must not change which pairs are held out.
    order, starts, labels, aims = (np.random.default_rng([seed, i]) for i in range(4))
    shuffled = order.permutation(n)
    cut = min(max(round(held_out * n), 2), n - 4)
    test, train = shuffled[:cut], shuffled[cut:]

    space = _Components.fit(h_p[train], h_n[train], components, normalisation)
    pos, neg = space.project(h_p[train], h_n[train])  # (t, c)
    init = _unit_rows(starts, restarts, space.width)
    weights, biases = _minimise(pos, neg, init, weight_decay)
    w, b = _best(pos, neg, weights, biases)
    normal = space.basis.T @ w  # (d,); the common scale does not matter to a unit normal
    norm = float(np.linalg.norm(normal))
    if not norm > 0:
        raise InputError(
            f"expected CCS to find a direction, got none at weight_decay={weight_decay!r}; lower it"
        )
    normal /= norm
    if normal @ (h_p[train] - h_n[train]).mean(axis=0) < 0:
        normal = -normal

    aim = _unit_rows(aims, restarts, space.width)
    at_random = _best(pos, neg, *_minimise(pos, neg, aim, weight_decay, along=aim))
    held_pos, held_neg = space.project(h_p[test], h_n[test])

    # The control: all labels shuffled, separately in training and held-out items.
    mixed_train = _shuffle_labels(h_p[train], h_n[train], labels)
    mixed_test = _shuffle_labels(h_p[test], h_n[test], labels)
    mixed_space = _Components.fit(*mixed_train, components, normalisation)
    mixed = mixed_space.project(*mixed_train)
    mixed_init = _unit_rows(starts, restarts, mixed_space.width)
    mixed_probe = _best(*mixed, *_minimise(*mixed, mixed_init, weight_decay))

    return CCSProbe(
        normal=frozen(normal),
        loss=_loss_of(held_pos, held_neg, w, b),
        accuracy=float(np.mean((h_p[test] - h_n[test]) @ normal > 0)),
        shuffled_loss=_loss_of(*mixed_space.project(*mixed_test), *mixed_probe),
        random_loss=_loss_of(held_pos, held_neg, *at_random),
    )


class _Components(NamedTuple):
    """Normalisation and principal components, from training pairs only."""

    mean_pos: Float64  # (d,)
    mean_neg: Float64  # (d,)
    basis: Float64  # (c, d), orthonormal rows
    scale: float

    @property
    def width(self) -> int:
        return len(self.basis)

    @classmethod
    def fit(
        cls, pos: Float64, neg: Float64, components: int, normalisation: Normalisation
    ) -> _Components:
        mean_pos, mean_neg = pos.mean(axis=0), neg.mean(axis=0)
        if normalisation == "common":
            mean_pos = mean_neg = (mean_pos + mean_neg) / 2
        centred = np.concatenate([pos - mean_pos, neg - mean_neg])  # (2t, d)
        # What rounding leaves of equal rows is not variation.
        floor = 1e-10 * max(float(np.abs(pos).max()), float(np.abs(neg).max()))
        if float(np.abs(centred).max()) <= floor:
            raise InputError(
                "expected activations that vary from pair to pair, got equal ones; check that "
                "the pairs are different texts"
            )
        _, s, vt = np.linalg.svd(centred, full_matrices=False)
        rank = int(np.sum(s > s[0] * max(centred.shape) * np.finfo(np.float64).eps))
        c = max(1, min(components, len(pos) // 3, rank))
        # One common scale, so that a kept component has unit variance on average and the weight
        # decay means the same at every layer.
        scale = float(np.sqrt(np.mean(s[:c] ** 2) / len(centred)))
        return cls(mean_pos, mean_neg, oriented(vt[:c], None), scale)

    def project(self, pos: Float64, neg: Float64) -> tuple[Float64, Float64]:
        return (
            (pos - self.mean_pos) @ self.basis.T / self.scale,
            (neg - self.mean_neg) @ self.basis.T / self.scale,
        )


def _minimise(
    pos: Float64,
    neg: Float64,
    init: Float64,
    weight_decay: float,
    along: Float64 | None = None,
) -> tuple[Float64, Float64]:
    """Minimise loss + decay |w|^2 from R starting points at once, by full-batch Adam.

    Args:
        pos: (t, c) positive sides.
        neg: (t, c) negative sides.
        init: (R, c) starting weights; biases start at 0.
        weight_decay: Factor of |w|^2.
        along: (R, c) unit directions to which the weights are bound, so that only a scale and a
            bias are fitted; None leaves them free.

    Returns:
        (R, c) weights and (R,) biases.
    """
    theta = np.concatenate([init, np.zeros((len(init), 1))], axis=1)  # (R, c+1)
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    both = np.concatenate([pos, neg])  # (2t, c)
    for step in range(1, _STEPS + 1):
        gradient = _gradient(both, theta, weight_decay)
        if along is not None:
            gradient[:, :-1] = np.sum(gradient[:, :-1] * along, axis=1, keepdims=True) * along
        m = 0.9 * m + 0.1 * gradient
        v = 0.99 * v + 0.01 * gradient**2
        # The cosine schedule ends at rest, so that the result does not depend on where a
        # constant step size would have left it bouncing.
        rate = _LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / _STEPS))
        move = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-12)
        if along is not None:
            # Adam scales each coordinate by itself; put the step back onto the line.
            move[:, :-1] = np.sum(move[:, :-1] * along, axis=1, keepdims=True) * along
        theta = theta - rate * move
    return theta[:, :-1], theta[:, -1]


def _gradient(both: Float64, theta: Float64, weight_decay: float) -> Float64:
    """Gradient of the mean loss + decay |w|^2.

    Args:
        both: (2t, c), the positive sides above the negative ones.
        theta: (R, c+1) weights, and the bias last.
        weight_decay: Factor of |w|^2.

    Returns:
        (R, c+1).
    """
    t = len(both) // 2
    p = _sigmoid(theta[:, :-1] @ both.T + theta[:, -1:])  # (R, 2t)
    p_pos, p_neg = p[:, :t], p[:, t:]
    inconsistent = 2 * (p_pos + p_neg - 1)
    low = 2 * np.minimum(p_pos, p_neg)
    positive_is_low = p_pos <= p_neg
    slope = np.empty_like(p)  # d loss / d p, then d loss / d logit
    slope[:, :t] = inconsistent + low * positive_is_low
    slope[:, t:] = inconsistent + low * ~positive_is_low
    slope *= p * (1 - p) / t
    gradient = np.empty_like(theta)
    gradient[:, :-1] = slope @ both + 2 * weight_decay * theta[:, :-1]
    gradient[:, -1] = slope.sum(axis=1)
    return gradient


def _best(pos: Float64, neg: Float64, weights: Float64, biases: Float64) -> tuple[Float64, float]:
    losses = _ccs_losses(
        _sigmoid(weights @ pos.T + biases[:, None]), _sigmoid(weights @ neg.T + biases[:, None])
    )
    best = int(np.argmin(losses))
    return weights[best], float(biases[best])


def _loss_of(pos: Float64, neg: Float64, w: Float64, b: float) -> float:
    return float(_ccs_losses(_sigmoid(pos @ w + b), _sigmoid(neg @ w + b)))


def _ccs_losses(p_pos: Float64, p_neg: Float64) -> Any:
    return np.mean(np.minimum(p_neg, p_pos) ** 2 + (p_neg - (1 - p_pos)) ** 2, axis=-1)


def _sigmoid(x: Float64) -> Float64:
    # tanh saturates without overflow on either side.
    result: Float64 = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _shuffle_labels(
    pos: Float64, neg: Float64, generator: np.random.Generator
) -> tuple[Float64, Float64]:
    items = np.concatenate([pos, neg])[generator.permutation(2 * len(pos))]
    return items[: len(pos)], items[len(pos) :]


def _unit_rows(generator: np.random.Generator, rows: int, width: int) -> Float64:
    draws = generator.standard_normal((rows, width))
    unit: Float64 = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    return unit
