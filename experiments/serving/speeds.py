"""What the timings of engines share: cases, rows, users, and the table they are written to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from runs import last_line
from tables import write_csv, write_json, write_markdown
from timing import ratios

from steer.cover import random_weights
from steer.edits import Edit
from steer.generation import Decoding
from steer.serve.continuous import ContinuousEngine
from steer.serve.engine import Job, Progress


@dataclass(frozen=True)
class Case:
    """So many people at once.

    Attributes:
        users: How many.
        tokens: Of each answer.
        rounds: In which every arm takes its turn.
        shortest: Where answers differ in length, the fewest tokens; `tokens` are the most.
    """

    users: int
    tokens: int
    rounds: int
    shortest: int | None = None

    def lengths(self, seed: int) -> list[int]:
        """Tokens of everybody's answer."""
        least = self.tokens if self.shortest is None else self.shortest
        drawn = np.random.default_rng(seed).integers(least, self.tokens + 1, self.users)
        return [int(one) for one in drawn]

    @property
    def answers(self) -> str:
        """How long they are, in words."""
        most = f"{self.tokens}"
        return most if self.shortest is None else f"{self.shortest} to {most}"


@dataclass(frozen=True)
class Row:
    """One arm of one case.

    Attributes:
        users: Who asked at once.
        answers: Tokens of an answer.
        arm: Which.
        speed: Tokens written a second, median of rounds.
        ratio: To the plain arm's speed, median of rounds.
        low: Lower end of its interval.
        high: Upper end.
    """

    users: int
    answers: str
    arm: str
    speed: float
    ratio: float
    low: float
    high: float


def users_weights(names: Sequence[str], users: int, seed: int) -> list[dict[str, float]]:
    """Other weights for everybody."""
    shares = random_weights(len(names), users, seed)
    return [dict(zip(names, row.tolist(), strict=True)) for row in shares]


def exactly(tokens: int) -> Decoding:
    """Greedy, without penalties; for a model that knows no token that ends an answer."""
    return Decoding(max_new_tokens=tokens, repetition_penalty=1.0, no_repeat_ngram_size=None)


def by_engine(
    engine: ContinuousEngine,
    prompts: Sequence[tuple[int, ...]],
    edits: Sequence[Edit],
    lengths: Sequence[int],
) -> float:
    """Seconds until the engine has answered all."""

    async def all_of_them() -> float:
        left, end = len(prompts), asyncio.Event()

        def tell(progress: Progress) -> None:
            nonlocal left
            assert progress.error is None, progress.error
            left -= progress.done
            if not left:
                end.set()

        began = time.perf_counter()
        for number, (prompt, edit, tokens) in enumerate(zip(prompts, edits, lengths, strict=True)):
            engine.submit(str(number), Job(prompt, edit, exactly(tokens)), tell)
        await end.wait()
        return time.perf_counter() - began

    return asyncio.run(all_of_them())


def rows_of(
    case: Case, seconds: Mapping[str, Sequence[float]], seed: int, plain: str = "plain"
) -> list[Row]:
    """Each arm's speed, and its ratio to the plain one's of the same round."""
    rows = []
    for arm, values in seconds.items():
        found = ratios(seconds[plain], values, seed)
        speed = sum(case.lengths(seed)) / float(np.median(values))
        interval = found["median"], found["low"], found["high"]
        rows.append(Row(case.users, case.answers, arm, speed, *interval))
        print(rows[-1], flush=True)
    return rows


def write(
    rows: Sequence[Row], content: Mapping[str, Any], heading: str, folder: Path, stem: str
) -> None:
    """Write JSON, CSV and Markdown.

    Args:
        rows: The table.
        content: What is known of the run.
        heading: What stands over the table, before what a ratio is.
        folder: Where to.
        stem: Name of the files.
    """
    full = {**content, "rows": [asdict(row) for row in rows]}
    write_json(folder / f"{stem}.json", full)
    write_csv(folder / f"{stem}.csv", Row, rows)
    lines = [
        f"{heading} Ratio: tokens a second over those of the plain engine in the same round, "
        "median, in brackets its 95% interval (bootstrap over rounds).",
        "",
        "| people at once | tokens of an answer | | tokens a second | over plain |",
        "|---" * 5 + "|",
    ]
    lines += [
        f"| {row.users} | {row.answers} | {row.arm} | {row.speed:.1f} | {row.ratio:.3f} "
        f"({row.low:.3f} to {row.high:.3f}) |"
        for row in rows
    ]
    write_markdown(folder / f"{stem}.md", "\n".join([*lines, "", last_line(full)]) + "\n")
