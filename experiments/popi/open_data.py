"""What people preferred, in the forms in which open data sets have it, read from a folder.

    elix, review   rows with prompt, response_x, response_y, label (0 if x is preferred) and
                   scorer_level, the person (FSPO, arXiv 2502.19312)
    roleplay       rows with x, yw, yl and score_persona (the same)
    alignx         rows with prompt, chosen, rejected and, of the same person, "Pair-wise
                   Comparative Feedback" and "User-Generated Content" (arXiv 2503.15463)
    prism          conversations.jsonl: conversation_history with roles, turns and if_chosen
                   (arXiv 2404.16019)
    personalllm    rows of interactions: prompt_1, response_1_a, response_1_b, chosen_1, and so on
                   (arXiv 2409.20296)
    psoups         rows with user_input, completion_a (preferred) and completion_b; a file a
                   preference (arXiv 2310.11564)
    attributes     positive_frames, stanford_politeness and hh_rlhf_harmless_test, as
                   experiments/people.py reads them: an attribute is a person

Rows are objects in *.jsonl files, or lists of them in *.json files: data sets that are published as
Parquet are exported so. Nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

# The loaders of attributes are one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from people import harmless, politeness, positive_frames  # noqa: E402

from steer.errors import DataError, InputError  # noqa: E402
from steer.history import HistoryItem  # noqa: E402

Row = Mapping[str, Any]
Histories = dict[str, list[HistoryItem]]

ATTRIBUTE_PAIRS = 200


def read_people(kind: str, folder: Path) -> Histories:
    """What each person preferred, in the order of the files.

    Args:
        kind: Of the data set, as above.
        folder: Where it lies.

    Raises:
        DataError: If the folder holds no such data.
    """
    if kind not in KINDS:
        raise DataError(f"unknown data set {kind!r}; known: {', '.join(KINDS)}")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    histories: Histories = defaultdict(list)
    try:
        for person, item in KINDS[kind](folder):
            histories[person].append(item)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise DataError(f"{folder}: not data of {kind} ({error!r})") from error
    if not histories:
        raise DataError(f"{folder}: expected data of {kind} in *.json or *.jsonl, found none")
    return dict(histories)


def rows_of(path: Path) -> list[Row]:
    """The rows of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    found = json.loads(text)
    return found if isinstance(found, list) else [found]


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")])


def _rows(folder: Path) -> Iterator[Row]:
    for path in _files(folder):
        yield from rows_of(path)


def _levels(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for row in _rows(folder):
        x, y = row["response_x"].strip(), row["response_y"].strip()
        if int(row["label"]) not in (0, 1):
            raise ValueError(f"label: expected 0 or 1, got {row['label']!r}")
        liked, other = (x, y) if int(row["label"]) == 0 else (y, x)
        yield str(row["scorer_level"]), _pair(row["prompt"], liked, other)


def _roleplay(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for row in _rows(folder):
        yield str(row["score_persona"]), _pair(row["x"], row["yw"], row["yl"])


def _alignx(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for number, row in enumerate(_rows(folder)):
        person = f"person {number}"
        for one in row.get("User-Generated Content") or ():
            yield person, HistoryItem(one["comment"], prompt=one["prompt"])
        for one in row.get("Pair-wise Comparative Feedback") or ():
            yield person, _pair(one["prompt"], one["chosen"], one["rejected"])
        yield person, _pair(row["prompt"], row["chosen"], row["rejected"])


def _prism(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for row in rows_of(folder / "conversations.jsonl"):
        turns: dict[int, list[Row]] = defaultdict(list)
        for message in row["conversation_history"]:
            turns[message["turn"]].append(message)
        # Later turns hang on what was said before; the first one stands alone.
        first = turns[min(turns)]
        asked = next(one["content"] for one in first if one["role"] == "user")
        models = [one for one in first if one["role"] == "model"]
        chosen = [one["content"] for one in models if one.get("if_chosen")]
        for other in models:
            if chosen and not other.get("if_chosen") and other["content"] != chosen[0]:
                yield str(row["user_id"]), _pair(asked, chosen[0], other["content"])


def _personalllm(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for number, row in enumerate(_rows(folder)):
        person = str(row.get("person_id", number))
        for j in count(1):
            if row.get(f"prompt_{j}") is None:
                break
            a, b = row[f"response_{j}_a"], row[f"response_{j}_b"]
            liked, other = (a, b) if row[f"chosen_{j}"] == "a" else (b, a)
            yield person, _pair(row[f"prompt_{j}"], liked, other)


def _psoups(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for path in _files(folder):
        for row in rows_of(path):
            yield path.stem, _pair(row["user_input"], row["completion_a"], row["completion_b"])


def _attributes(folder: Path) -> Iterator[tuple[str, HistoryItem]]:
    for name, load in (
        ("positive", positive_frames),
        ("polite", politeness),
        ("harmless", harmless),
    ):
        found = load(folder, ATTRIBUTE_PAIRS, 0)
        for better, worse in zip(found.better, found.worse, strict=True):
            yield name, HistoryItem(better, disliked=worse)


def _pair(prompt: str, liked: str, other: str) -> HistoryItem:
    return HistoryItem(liked.strip(), prompt=prompt.strip(), disliked=other.strip())


KINDS: Mapping[str, Callable[[Path], Iterator[tuple[str, HistoryItem]]]] = {
    "elix": _levels,
    "review": _levels,
    "roleplay": _roleplay,
    "alignx": _alignx,
    "prism": _prism,
    "personalllm": _personalllm,
    "psoups": _psoups,
    "attributes": _attributes,
}
