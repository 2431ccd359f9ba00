"""What a method costs: counted at the model's door, and timed beside the unsteered model.

One answer at a time, as a person who waits for it would be served: tokens of prompts that are
read, rows of the model a written token, seconds a token as a ratio in interleaved rounds, and the
keys and values that are held for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from contestants import PLAIN, Setting, User

from steer.generation import Decoding
from steer.models import LanguageModel
from steer.steerer import Steerer


@dataclass
class Counted:
    """What passed through a model.

    Attributes:
        read: Tokens of prompts, without padding.
        steps: Rows of passes over a single token each.
    """

    read: int = 0
    steps: int = 0


@contextmanager
def counting(language_model: LanguageModel) -> Iterator[Counted]:
    """Count what the model is given inside the block."""
    counted = Counted()

    def before(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]  # (B, T)
        if ids.shape[1] == 1:
            counted.steps += ids.shape[0]
        else:
            mask = kwargs.get("attention_mask")  # left out where nothing is padded
            read = ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())
            counted.read += read

    handle = language_model.model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield counted
    finally:
        handle.remove()


@dataclass(frozen=True)
class Cost:
    """Of a method's setting.

    Attributes:
        extra_prompt: Prompt tokens read beyond the plain prompt's, mean.
        passes: Rows of the model for each written token after the first, mean.
        latency: Seconds a written token over the unsteered model's, median of rounds.
        latency_low: Lower end of its interval.
        latency_high: Upper end.
        cache: Keys and values held at the end of an answer, kB, mean.
    """

    extra_prompt: float
    passes: float
    latency: float
    latency_low: float
    latency_high: float
    cache: float


def cache_bytes(language_model: LanguageModel) -> int:
    """Keys and values of one token."""
    config = language_model.model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = next(language_model.model.parameters()).element_size()
    return int(2 * len(language_model.layers) * heads * width * size)


def costs(
    steerer: Steerer,
    chosen: Sequence[Setting],
    people: Sequence[User],
    prompts: Sequence[str],
    decoding: Decoding,
    seed: int,
) -> dict[str, Cost]:
    """By method: a round for each user, with a prompt of their own; each setting answers once."""
    arms = [PLAIN, *chosen]
    rng = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {one.method: [] for one in arms}
    counted: dict[str, list[tuple[Counted, int]]] = {one.method: [] for one in arms}
    pairs = list(zip(people, prompts, strict=False))
    for _ in range(2):  # the first time is for buffers and caches
        for values in (*seconds.values(), *counted.values()):
            values.clear()
        for user, prompt in pairs:
            for i in rng.permutation(len(arms)).tolist():
                took, count, written = _once(steerer, arms[i], user, prompt, decoding, seed)
                seconds[arms[i].method].append(took / written)
                counted[arms[i].method].append((count, written))
    plain = np.array(seconds[PLAIN.method])
    read = np.array([one.read for one, _ in counted[PLAIN.method]])
    per_token = cache_bytes(steerer.language_model)
    result = {}
    for arm in arms:
        ratios = np.array(seconds[arm.method]) / plain
        draws = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = np.quantile(draws, [0.025, 0.975]).tolist()
        counts = counted[arm.method]
        result[arm.method] = Cost(
            float(np.mean([one.read for one, _ in counts] - read)),
            float(np.mean([one.steps / max(written - 1, 1) for one, written in counts])),
            float(np.median(ratios)),
            low,
            high,
            float(np.mean([one.read + one.steps for one, _ in counts]) * per_token / 1000),
        )
    return result


def _once(
    steerer: Steerer, arm: Setting, user: User, prompt: str, decoding: Decoding, seed: int
) -> tuple[float, Counted, int]:
    """Seconds, what was counted, and written tokens of one answer."""
    with counting(steerer.language_model) as counted:
        start = time.perf_counter()
        answer = arm.answer(steerer, user, [prompt], decoding, seed)[0]
        took = time.perf_counter() - start
    return took, counted, len(answer.tokens)
