"""What people say of texts: pairs of which they prefer one, from open data sets.

An experiment takes the folder that holds them, each in a folder of its own as published:

    onestop_english/csv/*.csv       three levels of each article, side by side (CC BY-SA 4.0)
    positive_frames/wholedev.csv    a text and its positive reframing (CC BY-SA 4.0)
    stanford_politeness/stack-exchange.annotated.csv   requests rated by five people (CC BY 4.0)
    hh_rlhf_harmless_test/harmless-base-test.jsonl.gz  chosen and rejected dialogues (MIT)

They are read, never copied.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steer.measures import words

_ALL = sys.maxsize


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts of which people prefer the first.

    Attributes:
        name: The data set, and what its label means.
        better: The texts that should earn more.
        worse: The others.
        groups: Pairs of one group are not independent of one another.
    """

    name: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    groups: tuple[int, ...]

    def rows(self, chosen: Sequence[int]) -> Pairs:
        """Only some of the pairs."""
        columns = (self.better, self.worse, self.groups)
        better, worse, groups = (tuple(column[i] for i in chosen) for column in columns)
        return Pairs(self.name, better, worse, groups)


def for_fitting(data: Pairs) -> Pairs:
    """The pairs that probes are fitted to: those of two thirds of the groups."""
    chosen = _fitting_groups(data)
    return data.rows([i for i, group in enumerate(data.groups) if group in chosen])


def for_judging(data: Pairs) -> Pairs:
    """The pairs that probes are judged on: all others."""
    chosen = _fitting_groups(data)
    return data.rows([i for i, group in enumerate(data.groups) if group not in chosen])


def _fitting_groups(data: Pairs) -> frozenset[int]:
    """Pairs are in random order, and so are their groups by where they first come."""
    groups = list(dict.fromkeys(data.groups))
    return frozenset(groups[: 2 * len(groups) // 3])


def shuffled(name: str, pairs: Sequence[tuple[str, str, int]], number: int, seed: int) -> Pairs:
    """At most `number` (better, worse, group) in random order."""
    order = np.random.default_rng(seed).permutation(len(pairs))[:number]
    better, worse, groups = zip(*(pairs[i] for i in order.tolist()), strict=True)
    return Pairs(name, better, worse, groups)


def onestop_articles(data: Path, number: int, seed: int) -> Pairs:
    """News articles at three levels; the lower level is the simpler."""
    pairs = []
    for group, rows in enumerate(_onestop(data)):
        levels = [" ".join(level) for level in zip(*rows, strict=True)]
        pairs += _by_level(levels, group)
    return shuffled("OneStopEnglish, articles of two levels", pairs, number, seed)


def onestop(data: Path, number: int, seed: int) -> Pairs:
    """Paragraphs of news articles at three levels; the lower level is the simpler."""
    pairs = []
    for group, rows in enumerate(_onestop(data)):
        for levels in rows:
            # Short cells are headings; equal ones were left as they are.
            if all(len(words(level)) >= 30 for level in levels):
                pairs += [pair for pair in _by_level(levels, group) if pair[0] != pair[1]]
    return shuffled("OneStopEnglish, paragraphs of two levels", pairs, number, seed)


def _onestop(data: Path) -> list[list[list[str]]]:
    """By article, its paragraphs, each at the three levels."""
    articles = []
    for path in sorted((data / "onestop_english" / "csv").glob("*.csv")):
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        rows = csv.reader(text.splitlines(keepends=True)[1:])  # below the names of the levels
        cells = ([" ".join(c.replace("\ufffd", "'").split()) for c in row[:3]] for row in rows)
        articles.append([levels for levels in cells if len(levels) == 3])
    return articles


def _by_level(levels: Sequence[str], group: int) -> list[tuple[str, str, int]]:
    """All pairs of the three levels, the simpler one first."""
    return [(levels[i], levels[j], group) for i in range(3) for j in range(i + 1, 3)]


def positive_frames(data: Path, number: int, seed: int) -> Pairs:
    """A text and its positive reframing."""
    with (data / "positive_frames" / "wholedev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(row["reframed_text"], row["original_text"], i) for i, row in enumerate(rows)]
    return shuffled("Positive Psychology Frames", pairs, number, seed)


def politeness(data: Path, number: int, seed: int) -> Pairs:
    """Requests of the most polite quarter against the least polite, drawn at random."""
    path = data / "stanford_politeness" / "stack-exchange.annotated.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: float(row["Normalized Score"]))
    quarter = len(rows) // 4
    rude, polite = rows[:quarter], rows[-quarter:]
    order = np.random.default_rng(seed).permutation(quarter).tolist()
    pairs = [(polite[i]["Request"], rude[j]["Request"], i) for i, j in enumerate(order)]
    return shuffled("Stanford politeness, outer quarters", pairs, number, seed)


def harmless(data: Path, number: int, seed: int) -> Pairs:
    """Last answers of dialogues, the chosen against the rejected one."""
    path = data / "hh_rlhf_harmless_test" / "harmless-base-test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = []
    for group, row in enumerate(rows):
        chosen, rejected = (
            row[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected")
        )
        if chosen and rejected and chosen != rejected:
            pairs.append((chosen, rejected, group))
    return shuffled("HH-RLHF harmless, last answers", pairs, number, seed)


FITTED_TO: Mapping[str, Callable[[Path, int], Pairs]] = {
    "positivity": lambda data, seed: positive_frames(data, _ALL, seed),
    "warmth": lambda data, seed: politeness(data, _ALL, seed),
}
"""By trait of a packaged probe, all pairs of its data, from the folder and a seed."""
