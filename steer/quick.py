"""`steer.generate` and `steer.personalize`: the default model and bundle.

They are loaded on the first call and kept.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import overload

from typing_extensions import Unpack

from steer.baselines import Method
from steer.chat import Chat
from steer.generation import DecodingOptions
from steer.history import History
from steer.personalizer import Personalization
from steer.profile import Profile
from steer.steerer import Person, Steerer, Weights, load

# `cache` alone would let threads that ask at once load a model each.
_LOADING = threading.Lock()


def default_steerer() -> Steerer:
    """The packaged model with its default bundle."""
    with _LOADING:
        return _kept()


@cache
def _kept() -> Steerer:
    return load()


@overload
def generate(
    prompt: str,
    weights: Weights | None = ...,
    *,
    strength: float = ...,
    compose: bool = ...,
    profile: Person | None = ...,
    method: Method | str | None = ...,
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
    profile: Person | Sequence[Person | None] | None = ...,
    method: Method | str | None = ...,
    seed: int | None = ...,
    **options: Unpack[DecodingOptions],
) -> str | list[str]: ...


def generate(
    prompt: str | Chat | Sequence[str | Chat],
    weights: Weights | Sequence[Weights | None] | None = None,
    *,
    strength: float = 1.0,
    compose: bool = False,
    profile: Person | Sequence[Person | None] | None = None,
    method: Method | str | None = None,
    seed: int | None = None,
    **options: Unpack[DecodingOptions],
) -> str | list[str]:
    """Answer with the packaged model and its default bundle.

    The arguments, results and errors are those of `Steerer.generate`. For another model or
    bundle, `steer.load` one and use its `generate`.
    """
    return default_steerer().generate(
        prompt,
        weights,
        strength=strength,
        compose=compose,
        profile=profile,
        method=method,
        seed=seed,
        **options,
    )


def personalize(
    history: History,
    settings: Personalization = Personalization(),  # noqa: B008  (frozen)
    *,
    start: Profile | None = None,
    keep_evidence: bool = False,
) -> Profile:
    """The profile of a person, for the packaged model and its default bundle.

    The arguments, results and errors are those of `Steerer.personalize`. For another model or
    bundle, `steer.load` one and use its `personalize`.
    """
    return default_steerer().personalize(
        history, settings, start=start, keep_evidence=keep_evidence
    )
