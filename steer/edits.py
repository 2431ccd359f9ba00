"""Edits: what is done to the residual stream, as values with arithmetic.

At each of its layers an edit is the affine form of `steer.kernel`

    x <- x + e + U (phi(V^T x) * c)

and edits add, scale and negate: `0.5 * brief + 0.5 * warm` is an edit again. Arrays are float32
NumPy; nothing here knows a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from steer.arrays import Rebuilt, read_only
from steer.errors import InputError
from steer.fields import ReadOnly

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LayerEdit(Rebuilt):
    """The edit of one layer; width d, rank k (0 for additive edits).

    Its arrays are read-only copies, so that what an edit is called (`Edit.digest`) stays true.

    Attributes:
        e: (d,) additive part.
        v: (d, k) directions that are read.
        u: (d, k) directions that are written.
        c: (k,) coefficients.
        relu: (k,) True where phi is relu, False where it is the identity.
    """

    e: Array
    v: Array
    u: Array
    c: Array
    relu: NDArray[np.bool_]

    def __post_init__(self) -> None:
        d, k = self.v.shape if self.v.ndim == 2 else (-1, -1)
        shapes = (self.e.shape, self.v.shape, self.u.shape, self.c.shape, self.relu.shape)
        if shapes != ((d,), (d, k), (d, k), (k,), (k,)):
            raise InputError(
                "layer edit: expected shapes e (d,), v (d, k), u (d, k), c (k,), relu (k,); "
                f"got {shapes}"
            )
        if not all(np.isfinite(part).all() for part in (self.e, self.v, self.u, self.c)):
            raise InputError("layer edit: expected finite values, got NaN or infinity")
        for part in fields(self):
            object.__setattr__(self, part.name, read_only(getattr(self, part.name)))

    def __repr__(self) -> str:
        """Its sizes, not its arrays."""
        return f"LayerEdit(width={self.width}, rank={self.rank})"

    @property
    def width(self) -> int:
        """Width d."""
        return int(self.e.shape[0])

    @property
    def rank(self) -> int:
        """Rank k of the projection part."""
        return int(self.c.shape[0])

    def __add__(self, other: LayerEdit) -> LayerEdit:
        """Both edits, each reading the same unedited x."""
        if self.width != other.width:
            raise InputError(
                f"edits of width {self.width} and {other.width} cannot be added; "
                "they belong to different models"
            )
        return LayerEdit(
            self.e + other.e,
            np.concatenate([self.v, other.v], axis=1),
            np.concatenate([self.u, other.u], axis=1),
            np.concatenate([self.c, other.c]),
            np.concatenate([self.relu, other.relu]),
        )

    def __mul__(self, factor: float) -> LayerEdit:
        """The edit's change, scaled."""
        scale = np.float32(factor)
        return LayerEdit(scale * self.e, self.v, self.u, scale * self.c, self.relu)

    def is_zero(self) -> bool:
        """Whether the edit changes nothing, whatever x is."""
        return not self.e.any() and not (self.c * self.u).any()

    def apply(self, x: Array) -> Array:
        """Edit activations (..., d): the plain formula, for reading and for tests."""
        projection = x @ self.v
        projection = np.where(self.relu, np.maximum(projection, np.float32(0)), projection)
        return (x + self.e + (projection * self.c) @ self.u.T).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Edit:
    """What is done to the residual stream after some decoder layers.

    Attributes:
        layers: By 0-based index of the decoder layer whose output is edited.
    """

    layers: Mapping[int, LayerEdit]

    def __post_init__(self) -> None:
        ordered = dict(sorted(self.layers.items()))
        if any(index < 0 for index in ordered):
            raise InputError(f"edit: expected layer indices >= 0, got {list(ordered)}")
        if len({layer.width for layer in ordered.values()}) > 1:
            raise InputError("edit: all layers must have the same width")
        object.__setattr__(self, "layers", ReadOnly(ordered))

    def __repr__(self) -> str:
        """Its width, and its layers with their ranks; not its arrays."""
        width = next((layer.width for layer in self.layers.values()), None)
        ranks = {index: layer.rank for index, layer in self.layers.items()}
        return f"Edit(width={width}, ranks={ranks})"

    @property
    def rank(self) -> int:
        """Largest rank over the layers; 0 for an additive edit."""
        return max((layer.rank for layer in self.layers.values()), default=0)

    def __add__(self, other: Edit) -> Edit:
        """Both edits at once; at a shared layer each reads the same unedited x."""
        layers = dict(self.layers)
        for index, layer in other.layers.items():
            layers[index] = layers[index] + layer if index in layers else layer
        return Edit(layers)

    def __sub__(self, other: Edit) -> Edit:
        """This edit without the other's change."""
        return self + -other

    def __mul__(self, factor: float) -> Edit:
        """The edit's change, scaled."""
        if not np.isfinite(factor):
            raise InputError(f"edit: expected a finite factor, got {factor}")
        return Edit({index: layer * factor for index, layer in self.layers.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Edit:
        """The opposite change."""
        return self * -1.0

    def is_zero(self) -> bool:
        """Whether the edit changes nothing, whatever x is."""
        return all(layer.is_zero() for layer in self.layers.values())

    # Kept: a served request asks for it several times.
    @cached_property
    def digest(self) -> str:
        """A name (SHA-256) for what the edit does, in which layers that do nothing do not count."""
        content = hashlib.sha256()
        for index, layer in self.layers.items():
            if not layer.is_zero():
                content.update(f"{index} {layer.width} {layer.rank}\n".encode())
                for array in (layer.e, layer.v, layer.u * layer.c, layer.relu):
                    content.update(array.tobytes())
        return content.hexdigest()


ZERO = Edit({})
"""The edit that does nothing."""


def additive(vectors: Mapping[int, Array]) -> Edit:
    """X <- x + e with one vector e (d,) a layer."""
    layers = {}
    for index, vector in vectors.items():
        e = np.asarray(vector, dtype=np.float32)
        none = np.zeros((e.shape[0], 0), dtype=np.float32)
        layers[index] = LayerEdit(e, none, none, none[0], np.zeros(0, dtype=bool))
    return Edit(layers)


def two_step(
    theta_p: Mapping[int, Array],
    theta_n: Mapping[int, Array],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    sign_safe: bool = False,
) -> Edit:
    """Edit of CHAMELEON (arXiv 2503.01048): amplify along theta_p, then remove along theta_n.

    Plain: x' = x + alpha <x, p> p, then x'' = x' - beta <x', n> n. As one step this is the rank-2
    form with V = [p, n], U = [alpha (p - beta <p, n> n), -beta n], c = 1.

    Sign-safe: x'' = x + alpha relu(<x, p>) p - beta relu(<x, n>) n. It never amplifies against
    p and never pushes along n; both steps read the same x, because a relu of the first step's
    result is no longer of the shared form.

    Args:
        theta_p: (d,) vectors by layer, scaled to unit length here.
        theta_n: (d,) vectors by the same layers, scaled to unit length here. They point at what
            is to be removed.
        alpha: How much the part along theta_p grows.
        beta: How much of the part along theta_n is removed; 1 removes it all.
        sign_safe: Which form.
    """
    if theta_p.keys() != theta_n.keys():
        raise InputError(
            f"two-step edit: theta_p has layers {sorted(theta_p)}, theta_n {sorted(theta_n)}; "
            "expected the same layers"
        )
    layers = {}
    for index in theta_p:
        p, n = _unit(theta_p[index]), _unit(theta_n[index])
        v = np.stack([p, n], axis=1)
        if sign_safe:
            u = v
            c = np.array([alpha, -beta], dtype=np.float32)
        else:
            first = alpha * (p - beta * float(p @ n) * n)
            u = np.stack([first, -beta * n], axis=1).astype(np.float32)
            c = np.ones(2, dtype=np.float32)
        relu = np.full(2, sign_safe)
        layers[index] = LayerEdit(np.zeros_like(p), v, u, c, relu)
    return Edit(layers)


def compose(edits: Sequence[Edit], weights: Sequence[float]) -> Edit:
    """The weighted sum of edits."""
    if len(edits) != len(weights):
        raise InputError(f"compose: got {len(edits)} edits and {len(weights)} weights")
    terms = [weight * edit for edit, weight in zip(edits, weights, strict=True) if weight != 0]
    return reduce(lambda a, b: a + b, terms, ZERO)


def _unit(vector: Array) -> Array:
    norm = float(np.linalg.norm(vector))
    if not norm > 0:
        raise InputError("expected a direction of positive length, got a zero vector")
    return np.asarray(vector / norm, dtype=np.float32)
