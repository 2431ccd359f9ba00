"""Where a trait lies inside a model: directions per layer, and how far to trust them.

From n contrast pairs with activations H^P and H^N, both (n, d), at one layer:

    mean difference   mean(H^P - H^N)
    theta_P           leading right singular vectors of H^P - H^N, or of H^P as in CHAMELEON
                      (arXiv 2503.01048)
    theta_N           unit normal of the Contrast-Consistent Search hyperplane (Burns et al.,
                      arXiv 2212.03827)
    probe             unit normal of a logistic regression

Pure numerics: arrays in, float32 arrays out, float64 inside, and no model. Row i of H^P and row
i of H^N are the two sides of pair i, everywhere.

Two facts about CCS decide how its numbers are to be read. Its loss is symmetric in the two sides
of a pair, so swapping labels *within* pairs cannot serve as a control: it leaves the loss where it
is, or lowers it (see `CCSProbe.shuffled_loss`). And the class-wise means that Burns et al.
subtract are, for pairs whose sides always differ in the trait, the trait's mean difference itself:
what is left to find is how the strength of the trait varies from pair to pair. `normalisation`
chooses between their form and a common mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from steer.errors import InputError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Source = Literal["differences", "positives"]
Normalisation = Literal["class", "common"]
LayerRule = Literal["ccs-jump", "ccs-lowest", "gain"]

MINIMUM_PAIRS = 8
"""Fewer pairs leave nothing to hold out, and no direction worth the name."""

# With more dimensions than pairs the classes separate perfectly, so the penalty alone decides the
# direction; a stiff one keeps it near the difference of the class means.
_PROBE_C = 0.1

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


@dataclass(frozen=True, eq=False)
class LayerSubspace:
    """One trait at one layer.

    Attributes:
        mean_difference: (d,) float32, mean(H^P - H^N) on the raw scale.
        theta_p: (k, d) float32, orthonormal rows, each turned towards `mean_difference`.
        variance_share: (k,) float32, the share of the squared norm that each row of `theta_p`
            explains; nothing is centred.
        theta_n: (d,) float32, unit CCS normal.
        probe: (d,) float32, unit normal of a logistic regression.
        ccs: The CCS probe with its controls.
        reliability: See `reliability`.
        common_cosine: |cos| between the first right singular vector of the raw H^P and the mean
            activation of both classes. Near 1 it says that this vector is not the trait but what
            all activations share, which is why differences are the default source.
    """

    mean_difference: Float32
    theta_p: Float32
    variance_share: Float32
    theta_n: Float32
    probe: Float32
    ccs: CCSProbe
    reliability: float
    common_cosine: float


@dataclass(frozen=True, eq=False)
class Subspace:
    """One trait at several layers.

    Attributes:
        trait: The trait's name.
        pairs: The number n of contrast pairs.
        layers: A `LayerSubspace` per layer index, in ascending order.
    """

    trait: str
    pairs: int
    layers: Mapping[int, LayerSubspace]

    @property
    def reliability(self) -> float:
        """Mean over layers: the maximum would be biased upwards by having been selected."""
        return float(np.mean([layer.reliability for layer in self.layers.values()]))


def fit_subspace(
    trait: str,
    positive: Mapping[int, ArrayLike],
    negative: Mapping[int, ArrayLike],
    *,
    source: Source = "differences",
    variance_share: float = 0.5,
    max_rank: int = 4,
    normalisation: Normalisation = "class",
    seed: int = 0,
) -> Subspace:
    """Find a trait's directions at every layer.

    Args:
        trait: The trait's name.
        positive: (n, d) activations per layer of the trait-positive sides.
        negative: The same for the negative sides, row for row.
        source: What theta_P is read from: "differences" H^P - H^N, or "positives", the raw H^P
            of CHAMELEON (arXiv 2503.01048).
        variance_share: Keep as few singular vectors as explain this share, in (0, 1].
        max_rank: But never more than this many.
        normalisation: See `fit_ccs`.
        seed: Seeds the CCS fits. Every layer holds out the same pairs, so that the losses can be
            compared between layers.

    Returns:
        The fitted subspace, layers ascending.

    Raises:
        InputError: If layers or shapes differ, a value is not finite, a layer holds fewer than
            `MINIMUM_PAIRS` pairs or no variation at all, or an option is out of range.
    """
    _check_choice("source", source, ("differences", "positives"))
    _check_mapping("positive", positive)
    _check_mapping("negative", negative)
    if set(positive) != set(negative):
        raise InputError(
            f"expected the same layers on both sides, got {sorted(positive)} for positive and "
            f"{sorted(negative)} for negative; read both sides at the same layers"
        )
    layers: dict[int, LayerSubspace] = {}
    pairs = 0
    for layer in sorted(positive):
        h_p, h_n = _pairs(positive[layer], negative[layer], where=f"layer {layer}: ")
        if layers and len(h_p) != pairs:
            raise InputError(
                f"layer {layer}: expected {pairs} pairs as in the layers before, got {len(h_p)}; "
                "use the same pairs at every layer"
            )
        pairs = len(h_p)
        try:
            layers[layer] = _fit_layer(
                h_p,
                h_n,
                source=source,
                variance_share=variance_share,
                max_rank=max_rank,
                normalisation=normalisation,
                seed=seed,
            )
        except InputError as error:
            raise InputError(f"layer {layer}: {error}") from error
    return Subspace(trait=trait, pairs=pairs, layers=layers)


def _fit_layer(
    h_p: Float64,
    h_n: Float64,
    *,
    source: Source,
    variance_share: float,
    max_rank: int,
    normalisation: Normalisation,
    seed: int,
) -> LayerSubspace:
    differences = h_p - h_n  # (n, d)
    mean = differences.mean(axis=0)  # (d,)
    theta_p, shares = svd_directions(
        differences if source == "differences" else h_p,
        variance_share=variance_share,
        max_rank=max_rank,
        orient=mean,
    )
    if source == "positives" and max_rank == 1:
        first = theta_p[0].astype(np.float64)
    else:
        first = svd_directions(h_p, variance_share=1.0, max_rank=1)[0][0].astype(np.float64)
    ccs = fit_ccs(h_p, h_n, seed=seed, normalisation=normalisation)
    return LayerSubspace(
        mean_difference=_frozen(mean),
        theta_p=theta_p,
        variance_share=shares,
        theta_n=ccs.normal,
        probe=probe_direction(h_p, h_n),
        ccs=ccs,
        reliability=reliability(h_p, h_n),
        common_cosine=abs(_cosine(first, (h_p.mean(axis=0) + h_n.mean(axis=0)) / 2)),
    )


def mean_difference(positive: ArrayLike, negative: ArrayLike) -> Float32:
    """Mean of the pairs' differences, on the raw scale.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations.

    Returns:
        (d,) mean(H^P - H^N).

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape.
    """
    h_p, h_n = _pairs(positive, negative)
    return _frozen((h_p - h_n).mean(axis=0))


def svd_directions(
    x: ArrayLike,
    *,
    variance_share: float,
    max_rank: int,
    orient: ArrayLike | None = None,
) -> tuple[Float32, Float32]:
    """Leading right singular vectors, by an exact and unseeded decomposition.

    Nothing is centred. Centring H^P - H^N would remove the very shift that is looked for, and
    the raw form is the one of CHAMELEON (arXiv 2503.01048), theta_P.

    Args:
        x: (n, d) rows.
        variance_share: Keep as few vectors as together explain this share of the squared norm,
            in (0, 1].
        max_rank: But never more than this many, nor more than the rank of `x`.
        orient: (d,) vector with which no direction may have a negative inner product. Without
            one, or at a right angle to it, a direction's largest coordinate is made positive.

    Returns:
        (k, d) orthonormal rows and their (k,) shares of the squared norm, descending.

    Raises:
        InputError: If `x` is empty, not finite or all zero, or an option is out of range.
    """
    rows = _matrix("x", x)
    if not 0 < variance_share <= 1:
        raise InputError(f"expected variance_share in (0, 1], got {variance_share!r}")
    _check_count("max_rank", max_rank)
    towards = None if orient is None else _vector("orient", orient, width=rows.shape[1])
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    if not s[0] > 0:
        raise InputError(
            "expected activations with some variation, got only zeros where directions should be "
            "found; check that the two sides of the pairs differ"
        )
    rank = int(np.sum(s > s[0] * max(rows.shape) * np.finfo(np.float64).eps))
    shares = (s / s[0]) ** 2
    shares = shares / shares.sum()
    # Half an ulp of the cumulative sum must not cost one more direction.
    enough = int(np.searchsorted(np.cumsum(shares), variance_share - 1e-12)) + 1
    k = min(enough, max_rank, rank)
    directions = _oriented(vt[:k], towards)
    return _frozen(directions), _frozen(shares[:k])


def probe_direction(positive: ArrayLike, negative: ArrayLike) -> Float32:
    """Unit normal of a logistic regression between the two classes.

    Fitted on standardised activations, since a few dimensions of a transformer dwarf all others,
    and mapped back: with z = (x - m) / s, w.z = (w / s).x + const.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations.

    Returns:
        (d,) unit normal in raw space that points to the positives.

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape, or the
            two classes cannot be told apart at all.
    """
    h_p, h_n = _pairs(positive, negative)
    scaler = StandardScaler()
    z = scaler.fit_transform(np.concatenate([h_p, h_n]))  # (2n, d)
    labels = np.repeat([1, 0], len(h_p))
    model = LogisticRegression(C=_PROBE_C, solver="lbfgs", max_iter=1000)
    normal: Float64 = model.fit(z, labels).coef_[0] / scaler.scale_
    norm = float(np.linalg.norm(normal))
    if not norm > 0:
        raise InputError(
            "expected two classes with different activations, got equal ones; check that the two "
            "sides of the pairs differ"
        )
    return _frozen(normal / norm)


def reliability(positive: ArrayLike, negative: ArrayLike) -> float:
    """How well the pairs agree on one direction, before anything is steered.

    The mean cosine between each pair's difference and the mean of the *other* pairs' differences.
    Leaving the pair itself out makes 0 the expected value for pure noise; with it, n random
    vectors in many dimensions would already score 1 / sqrt(n). A pair without a difference
    counts as 0.

    Args:
        positive: (n, d) activations.
        negative: (n, d) activations.

    Returns:
        A number in [-1, 1].

    Raises:
        InputError: If the arrays are not n >= `MINIMUM_PAIRS` finite rows of one shape.
    """
    h_p, h_n = _pairs(positive, negative)
    differences = h_p - h_n  # (n, d)
    others = differences.sum(axis=0) - differences  # (n, d); a sum has the cosine of a mean
    dots = np.einsum("nd,nd->n", differences, others)
    norms = np.linalg.norm(differences, axis=1) * np.linalg.norm(others, axis=1)
    cosines = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return float(np.clip(cosines.mean(), -1.0, 1.0))


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
    h_p, h_n = _pairs(positive, negative)
    _check_choice("normalisation", normalisation, ("class", "common"))
    _check_count("restarts", restarts)
    _check_count("components", components)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"expected seed to be a whole number >= 0, got {seed!r}")
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
        normal=_frozen(normal),
        loss=_loss_of(held_pos, held_neg, w, b),
        accuracy=float(np.mean((h_p[test] - h_n[test]) @ normal > 0)),
        shuffled_loss=_loss_of(*mixed_space.project(*mixed_test), *mixed_probe),
        random_loss=_loss_of(held_pos, held_neg, *at_random),
    )


def choose_layers(
    values: Mapping[int, float],
    *,
    rule: LayerRule = "ccs-jump",
    count: int | None = None,
) -> tuple[int, ...]:
    """Choose the layers to edit from one number per layer.

    "ccs-jump" (CHAMELEON, arXiv 2503.01048): sort the losses, take the running mean of the sorted
    losses, and keep the layers before its largest jump. Its rivals are "ccs-lowest", the `count`
    lowest losses, and "gain", the `count` highest values, where a value is the gain that an edit
    at that layer brought on develop prompts.

    Equal values are taken in ascending order of the layer, and of equal jumps the first one cuts,
    so that equal losses keep a single layer. Jumps are compared exactly, as fractions: a rounding
    error in a running mean of equal losses would otherwise pass for a jump.

    Args:
        values: Held-out CCS loss per layer, or gain per layer for "gain".
        rule: One of the three rules.
        count: How many layers; needed by "ccs-lowest" and "gain", refused by "ccs-jump".

    Returns:
        The chosen layer indices, ascending.

    Raises:
        InputError: If there is no layer, a value is not finite, or `count` does not fit.
    """
    _check_choice("rule", rule, ("ccs-jump", "ccs-lowest", "gain"))
    _check_mapping("values", values)
    for layer, value in values.items():
        if not np.isfinite(value):
            raise InputError(f"layer {layer}: expected a finite value, got {value!r}; leave it out")
    if rule == "ccs-jump":
        if count is not None:
            raise InputError(
                f"expected no count with rule 'ccs-jump', which finds its own, got {count!r}; "
                "use 'ccs-lowest' to fix the number of layers"
            )
    else:
        if count is None:
            raise InputError(f"expected a count with rule {rule!r}, got None; say how many layers")
        _check_count("count", count)
        if count > len(values):
            raise InputError(f"expected count <= {len(values)}, the layers given, got {count}")
    sign = -1 if rule == "gain" else 1
    ranked = sorted(values, key=lambda layer: (sign * values[layer], layer))
    keep = _before_jump([values[layer] for layer in ranked]) if count is None else count
    return tuple(sorted(ranked[:keep]))


def _before_jump(ascending: list[float]) -> int:
    total, means = Fraction(0), []
    for i, value in enumerate(ascending, start=1):
        total += Fraction(float(value))
        means.append(total / i)
    jumps = [after - before for before, after in zip(means, means[1:], strict=False)]
    return jumps.index(max(jumps)) + 1 if jumps else 1


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
        return cls(mean_pos, mean_neg, _oriented(vt[:c], None), scale)

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


def _oriented(directions: Float64, towards: Float64 | None) -> Float64:
    """Fix the arbitrary signs of singular vectors."""
    k = len(directions)
    signs = np.sign(directions[np.arange(k), np.argmax(np.abs(directions), axis=1)])
    if towards is not None:
        dots = directions @ towards
        # Below this the sign of a dot product is rounding, not geometry.
        clear = np.abs(dots) > 1e-12 * np.linalg.norm(towards)
        signs = np.where(clear, np.sign(dots), signs)
    oriented: Float64 = directions * signs[:, None]
    return oriented


def _cosine(a: Float64, b: Float64) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0


def _frozen(x: Float64) -> Float32:
    """Cast once, at the end, to an array that a frozen dataclass can share safely."""
    result = x.astype(np.float32)
    result.setflags(write=False)
    return result


def _pairs(positive: ArrayLike, negative: ArrayLike, *, where: str = "") -> tuple[Float64, Float64]:
    h_p = _matrix(f"{where}positive", positive)
    h_n = _matrix(f"{where}negative", negative)
    if h_p.shape != h_n.shape:
        raise InputError(
            f"{where}expected positive and negative of one shape (n, d), got {h_p.shape} and "
            f"{h_n.shape}; row i of both must belong to pair i"
        )
    if len(h_p) < MINIMUM_PAIRS:
        raise InputError(
            f"{where}expected at least {MINIMUM_PAIRS} pairs, got {len(h_p)}; make more contrast "
            "pairs"
        )
    return h_p, h_n


def _matrix(name: str, value: ArrayLike) -> Float64:
    array = _numbers(name, value)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name}: expected a non-empty array of shape (n, d), got shape {array.shape}; pool "
            "the activations to one row per text"
        )
    return array


def _vector(name: str, value: ArrayLike, *, width: int) -> Float64:
    array = _numbers(name, value)
    if array.shape != (width,):
        raise InputError(f"{name}: expected shape ({width},), got {array.shape}")
    return array


def _numbers(name: str, value: ArrayLike) -> Float64:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name}: expected an array of numbers, got {type(value).__name__} ({error}); pass a "
            "float32 or float64 NumPy array"
        ) from error
    if not np.all(np.isfinite(array)):
        bad = int(np.sum(~np.isfinite(array)))
        raise InputError(
            f"{name}: expected finite numbers, got {bad} NaN or infinite values; read the "
            "activations in float32"
        )
    return array


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or not value:
        raise InputError(
            f"{name}: expected a mapping from layer index to values with at least one layer, got "
            f"{type(value).__name__}{'' if not isinstance(value, Mapping) else ' without entries'}"
        )
    for layer in value:
        if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or layer < 0:
            raise InputError(f"{name}: expected layer indices >= 0, got {layer!r}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"expected {name} to be a whole number >= 1, got {value!r}")
