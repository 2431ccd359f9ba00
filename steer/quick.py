"""`steer.generate`: the default model and bundle, loaded on the first call and kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import overload

from typing_extensions import Unpack

from steer.chat import Chat
from steer.generation import DecodingOptions
from steer.steerer import Steerer, Weights, load


@cache
def default_steerer() -> Steerer:
    """The packaged model with its default bundle."""
    return load()


@overload
def generate(
    prompt: str,
    weights: Weights | None = ...,
    *,
    strength: float = ...,
    compose: bool = ...,
    seed: int | None = ...,
    **options: Unpack[DecodingOptions],
) -> str: ...


@overload
def generate(
    prompt: Chat | Sequence[str | Chat],
    weights: Weights | Sequence[Weights | None] | None = ...,
    *,
    strength: float = ...,
    compose: bool = ...,
    seed: int | None = ...,
    **options: Unpack[DecodingOptions],
) -> str | list[str]: ...


def generate(
    prompt: str | Chat | Sequence[str | Chat],
    weights: Weights | Sequence[Weights | None] | None = None,
    *,
    strength: float = 1.0,
    compose: bool = False,
    seed: int | None = None,
    **options: Unpack[DecodingOptions],
) -> str | list[str]:
    """Answer with the packaged model and its default bundle.

    The arguments, results and errors are those of `Steerer.generate`. For another model or
    bundle, `steer.load` one and use its `generate`.
    """
    return default_steerer().generate(
        prompt, weights, strength=strength, compose=compose, seed=seed, **options
    )
