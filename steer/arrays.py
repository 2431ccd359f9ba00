"""Arrays at the boundary of the numerics: checked on their way in, frozen on their way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steer.errors import InputError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)

MINIMUM_PAIRS = 8
"""Fewer pairs leave nothing to hold out, and no direction worth the name."""


def frozen(x: Float64) -> Float32:
    """Cast once, at the end, to an array that a frozen dataclass can share safely."""
    result = x.astype(np.float32)
    result.setflags(write=False)
    return result


def read_only(array: NDArray[Kind]) -> NDArray[Kind]:
    """An array that a frozen dataclass can hold: a copy, if its owner could write to it."""
    if not array.flags.writeable:
        return array
    copy = array.copy()
    copy.setflags(write=False)
    return copy


class Rebuilt:
    """A dataclass whose arrays are read-only: so are its copies', which its constructor makes."""

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """How it is copied and pickled: NumPy's own copies of arrays can be written to."""
        return type(self), tuple(getattr(self, one.name) for one in fields(cast("Any", self)))


def checked_pairs(
    positive: ArrayLike, negative: ArrayLike, *, where: str = ""
) -> tuple[Float64, Float64]:
    """Both sides of at least `MINIMUM_PAIRS` pairs, (n, d) each, finite, in float64."""
    h_p = checked_matrix(f"{where}positive", positive)
    h_n = checked_matrix(f"{where}negative", negative)
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


def checked_matrix(name: str, value: ArrayLike) -> Float64:
    """A non-empty array (n, d) of finite numbers."""
    array = _checked_numbers(name, value)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name}: expected a non-empty array of shape (n, d), got shape {array.shape}; pool "
            "the activations to one row per text"
        )
    return array


def checked_vector(name: str, value: ArrayLike, *, width: int) -> Float64:
    """An array (width,) of finite numbers."""
    array = _checked_numbers(name, value)
    if array.shape != (width,):
        raise InputError(f"{name}: expected shape ({width},), got {array.shape}")
    return array


def _checked_numbers(name: str, value: ArrayLike) -> Float64:
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


def check_layers(name: str, value: object) -> None:
    """Refuse what does not map layer indices to values."""
    if not isinstance(value, Mapping) or not value:
        raise InputError(
            f"{name}: expected a mapping from layer index to values with at least one layer, got "
            f"{type(value).__name__}{'' if not isinstance(value, Mapping) else ' without entries'}"
        )
    for layer in value:
        if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)) or layer < 0:
            raise InputError(f"{name}: expected layer indices >= 0, got {layer!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is not allowed, naming what is."""
    if value not in allowed:
        raise InputError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")


def check_count(name: str, value: object) -> None:
    """Refuse what is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"expected {name} to be a whole number >= 1, got {value!r}")


def oriented(directions: Float64, towards: Float64 | None) -> Float64:
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


def cosine(a: Float64, b: Float64) -> float:
    """Cosine of two vectors (d,); 0 if one of them is zero."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else 0.0
