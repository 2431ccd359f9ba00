"""LaMP (arXiv 2304.11406) as published: questions of people whose history is known.

A folder holds `LaMP_1` to `LaMP_7`, each with `dev_questions.json` and `dev_outputs.json`, or with
those in a folder `dev`, as they lie on the benchmark's site. The second LaMP-2, movie tagging, lies
there in `LaMP_2/new/dev`, the first, news categorisation, in `LaMP_2/dev`. Of LaMP-6 the site has
only the names of emails; the benchmark's script fills them in from the Avocado collection.

`lamp_sample` beside this file is made up, in the published format, and for tests only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lamp_tasks import Task, task_of

from steer.errors import DataError, InputError
from steer.fields import check_object, check_text, required
from steer.history import HistoryItem

Split = Literal["train", "dev"]

_UNFILLED = re.compile(r"\S+\.txt")


@dataclass(frozen=True)
class Question:
    """What one person is asked.

    Attributes:
        id: As published.
        user: Who is asked: questions of one person are not independent of one another.
        input: The question.
        target: What they wrote or chose.
        profile: What they wrote or chose before.
    """

    id: str
    user: str
    input: str
    target: str
    profile: tuple[HistoryItem, ...]


def task_folder(folder: Path, number: int) -> Path | None:
    """The folder of a task, or None if there is none."""
    names = (f"LaMP_{number}", f"LaMP-{number}")
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def load(
    folder: Path, number: int, *, split: Split = "dev", limit: int | None = None, seed: int = 0
) -> tuple[Task, tuple[Question, ...]]:
    """The questions of a task.

    Args:
        folder: Of the task.
        number: 1 to 7.
        split: Which part.
        limit: At most so many people, drawn at random; None for all.
        seed: Of the draw.

    Raises:
        DataError: If a file is missing or damaged, or holds something else.
    """
    asked = _file(folder, f"{split}_questions.json", split)
    given = asked.with_name(f"{split}_outputs.json")
    rows, outputs = _rows(_read(asked), asked), _read(given)
    golds = _golds(outputs, number, given)
    users = list(dict.fromkeys(_user(row) for row in rows))
    order = np.random.default_rng(seed).permutation(len(users))[:limit]
    chosen = {users[i] for i in order.tolist()}
    questions, task = [], None
    for place, row in enumerate(rows):
        if _user(row) not in chosen:
            continue
        try:
            entries = _entries(row)
            task = task or task_of(number, entries[0])
            questions.append(_question(task, row, entries, golds))
        except (InputError, DataError) as error:
            raise DataError(f"{asked}, question {place}: {error}; get the file anew") from error
    if task is None:
        raise DataError(f"{asked}: expected questions, got none; get the file anew")
    return task, tuple(questions)


def _file(folder: Path, name: str, split: Split) -> Path:
    places = [folder / name, folder / "new" / split / name, folder / split / name]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise DataError(f"{folder}: expected {name} in it, or in {split}/; put it there")
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON file: {error}; get the file anew") from error


def _rows(content: object, path: Path) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list, got {content!r:.80}; get the file anew")
    for place, row in enumerate(content):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, entry {place}: expected an object, got {row!r:.80}; get the file anew"
            )
    return content


def _golds(content: object, number: int, path: Path) -> dict[str, str]:
    """By id of a question, what is right."""
    try:
        outputs = check_object(content, "outputs")
        name = _text(outputs, "task")
        if not re.match(rf"LaMP[-_]{number}(?!\d)", name):
            raise InputError(f"expected outputs of LaMP_{number}, got those of {name!r:.80}")
        golds = _rows(required(outputs, "golds", "outputs"), path)
        return {_text(gold, "id"): _text(gold, "output") for gold in golds}
    except InputError as error:
        raise DataError(f"{path}: {error}; get the file anew") from error


def _entries(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = required(row, "profile", "question")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"field 'profile': expected a list of entries, got {entries!r:.80}")
    return [check_object(entry, "field 'profile', entry") for entry in entries]


def _question(
    task: Task, row: Mapping[str, Any], entries: list[dict[str, Any]], golds: Mapping[str, str]
) -> Question:
    name, asked = _text(row, "id"), _text(row, "input")
    if not asked.strip():
        raise InputError("field 'input': expected a question, got blanks")
    if task.number == 6 and _UNFILLED.fullmatch(asked):
        raise InputError(f"{asked!r} is the name of an email; fill in LaMP-6 from Avocado first")
    if name not in golds:
        raise InputError(f"expected an output with id {name!r}, got none")
    target = golds[name]
    if task.labels and target not in task.labels:
        raise InputError(f"output {target!r:.80} is none of {', '.join(task.labels)}")
    items = [item for entry in entries if (item := _item(task, entry)) is not None]
    if not items:
        raise InputError("field 'profile': expected entries with text, got only blank ones")
    return Question(name, _user(row), asked, target, tuple(items))


def _item(task: Task, entry: Mapping[str, Any]) -> HistoryItem | None:
    """None if a field is blank, which tells nothing of anybody."""
    values = [_text(entry, field) for field in task.fields]
    return HistoryItem(*values) if all(value.strip() for value in values) else None


def _text(row: Mapping[str, Any], field: str) -> str:
    """Text, or a whole number, as ids and scores may be."""
    value = required(row, field, "entry")
    return str(value) if type(value) is int else check_text(value, f"field {field!r}")


def _user(row: Mapping[str, Any]) -> str:
    """Named where one person may be asked twice, in the data that are split by time."""
    return str(row.get("user_id", row.get("id")))
