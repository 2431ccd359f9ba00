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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from steer.arrays import (
    Float32,
    Float64,
    check_choice,
    check_count,
    check_layers,
    checked_pairs,
    cosine,
    frozen,
)
from steer.ccs import CCSProbe, Normalisation, fit_ccs
from steer.directions import probe_direction, reliability, svd_directions
from steer.errors import InputError

Source = Literal["differences", "positives"]
LayerRule = Literal["ccs-jump", "ccs-lowest", "gain"]


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
    check_choice("source", source, ("differences", "positives"))
    check_layers("positive", positive)
    check_layers("negative", negative)
    if set(positive) != set(negative):
        raise InputError(
            f"expected the same layers on both sides, got {sorted(positive)} for positive and "
            f"{sorted(negative)} for negative; read both sides at the same layers"
        )
    layers: dict[int, LayerSubspace] = {}
    pairs = 0
    for layer in sorted(positive):
        h_p, h_n = checked_pairs(positive[layer], negative[layer], where=f"layer {layer}: ")
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
        mean_difference=frozen(mean),
        theta_p=theta_p,
        variance_share=shares,
        theta_n=ccs.normal,
        probe=probe_direction(h_p, h_n),
        ccs=ccs,
        reliability=reliability(h_p, h_n),
        common_cosine=abs(cosine(first, (h_p.mean(axis=0) + h_n.mean(axis=0)) / 2)),
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
    check_choice("rule", rule, ("ccs-jump", "ccs-lowest", "gain"))
    check_layers("values", values)
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
        check_count("count", count)
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
