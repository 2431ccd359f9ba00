"""People with a history and with later texts that are to be told from other people's.

From Synthetic-Persona-Chat (CC BY 4.0; one side of each generated conversation is a person who is
described by a persona):

    FOLDER/synthetic_persona_chat/*.csv

A person of two conversations has a history, the first, and later turns, those of the second, so
that what tells them apart is the person and not the thread; without what stands in anybody's
history. They are split into a develop and a report part. People of one conversation are in neither;
groups are made of them.

Or from a folder of texts by author, `FOLDER/AUTHOR/*.txt`, whose paragraphs are history in the
first half of the files and later texts in the second.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steer.errors import DataError
from steer.history import HistoryItem
from steer.insights import templates
from steer.measures import words

CHOICES = 20
# Of a later text: "You too!" is anybody's.
FEWEST_WORDS = 4
_DEVELOP = 24
_COLUMNS = ("user 1 personas", "user 2 personas", "Best Generated Conversation")


@dataclass(frozen=True)
class Person:
    """Somebody.

    Attributes:
        name: Of the person.
        history: What they wrote, in the order of time.
        later: What they wrote afterwards; empty for people whose groups are made.
    """

    name: str
    history: tuple[HistoryItem, ...]
    later: tuple[HistoryItem, ...] = ()


@dataclass(frozen=True)
class People:
    """All of them: those to tune on, those to report on, and those to make groups of."""

    develop: tuple[Person, ...]
    report: tuple[Person, ...]
    others: tuple[Person, ...]


@dataclass(frozen=True)
class Question:
    """What did this person write?

    Attributes:
        person: Number of the person.
        prompt: What they answered.
        choices: The true text first, then other people's.
    """

    person: int
    prompt: str
    choices: tuple[str, ...]


def questions(people: Sequence[Person], each: int, *, seed: int = 0) -> list[Question]:
    """So many questions about each person, the same number for all.

    Args:
        people: Of one split.
        each: Questions about a person; one who has fewer later texts is asked about again.
        seed: Draws the other people's texts.

    Raises:
        DataError: If there are too few other texts.
    """
    rng = np.random.default_rng(seed)
    result = []
    for number, person in enumerate(people):
        for k in range(each):
            item = person.later[k % len(person.later)]
            others = sorted(
                {
                    other.text
                    for i, one in enumerate(people)
                    for other in one.later
                    if i != number and other.text != item.text
                }
            )
            if len(others) < CHOICES - 1:
                raise DataError(f"expected {CHOICES - 1} texts of other people, got {len(others)}")
            drawn = rng.choice(len(others), CHOICES - 1, replace=False).tolist()
            asked = item.prompt or templates()["alone"]
            result.append(Question(number, asked, (item.text, *(others[i] for i in drawn))))
    return result


def histories_of(people: Sequence[Person], items: int) -> list[list[HistoryItem]]:
    """Of each person, the first items."""
    return [list(person.history[:items]) for person in people]


def add_people(parser: argparse.ArgumentParser) -> None:
    """For scripts about people."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of the open data sets")
    source.add_argument("--authors", type=Path, help="folder with a folder of texts per author")


def people_of(arguments: argparse.Namespace) -> People:
    """Those that a script is told of."""
    if arguments.authors is None:
        return read_talk(arguments.data, seed=arguments.seed)
    return read_authors(arguments.authors, seed=arguments.seed)


def read_talk(folder: Path, *, seed: int = 0) -> People:
    """The people of Synthetic-Persona-Chat.

    Args:
        folder: That has the data set's folder in it.
        seed: Shuffles them before they are split.

    Raises:
        DataError: If it is not there, or not as published.
    """
    place = folder / "synthetic_persona_chat"
    files = sorted(place.glob("*.csv"))
    if not files:
        raise DataError(f"{place}: expected the CSV files of Synthetic-Persona-Chat, got none")
    said: dict[str, list[tuple[HistoryItem, ...]]] = {}
    for path in files:
        for row in _rows(path):
            for number, column in enumerate(_COLUMNS[:2], start=1):
                turns = _turns(row[_COLUMNS[2]], f"User {number}")
                if len(turns) >= FEWEST_WORDS:
                    said.setdefault(row[column].strip(), []).append(turns)
    order = np.random.default_rng(seed).permutation(len(said)).tolist()
    known = [list(said.items())[i] for i in order]
    heard = {_plain(one.text) for _, talks in known for one in talks[0]}
    twice = [
        Person(name, talks[0], tuple(o for o in talks[1] if _telling(o, heard)))
        for name, talks in known
        if len(talks) > 1
    ]
    twice = [person for person in twice if person.later]
    once = tuple(Person(name, talks[0]) for name, talks in known if len(talks) == 1)
    return People(tuple(twice[:_DEVELOP]), tuple(twice[_DEVELOP:]), once)


def read_authors(folder: Path, *, seed: int = 0) -> People:
    """The authors of a folder; a third of them are to tune on, and groups are made of those.

    Args:
        folder: With a folder of .txt files for each author.
        seed: Shuffles them before they are split.

    Raises:
        DataError: If an author has fewer than two texts, or there are fewer than three authors.
    """
    people = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = [path.read_text(encoding="utf-8") for path in sorted(place.glob("*.txt"))]
        if len(texts) < 2:
            raise DataError(f"{place}: expected two .txt files or more, got {len(texts)}")
        half = len(texts) // 2
        early, late = (
            tuple(
                HistoryItem(paragraph.strip())
                for text in part
                for paragraph in text.split("\n\n")
                if len(words(paragraph)) >= FEWEST_WORDS
            )
            for part in (texts[:half], texts[half:])
        )
        people.append(Person(place.name, early, late))
    if len(people) < 3:
        raise DataError(f"{folder}: expected the folders of three authors or more")
    order = np.random.default_rng(seed).permutation(len(people)).tolist()
    shuffled = [people[i] for i in order]
    third = len(people) // 3
    develop = tuple(shuffled[:third])
    return People(develop, tuple(shuffled[third:]), develop)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(column not in rows[0] for column in _COLUMNS):
        raise DataError(f"{path}: expected columns {', '.join(_COLUMNS)}")
    return rows


def _turns(conversation: str, speaker: str) -> tuple[HistoryItem, ...]:
    """What a speaker answered to what the other said."""
    turns = []
    before: str | None = None
    for line in conversation.splitlines():
        who, _, text = line.partition(": ")
        if not text.strip():
            continue
        if who.strip() != speaker:
            before = text.strip()
        elif before is not None:
            turns.append(HistoryItem(text.strip(), prompt=before))
            before = None
    return tuple(turns)


def _telling(item: HistoryItem, heard: Container[str]) -> bool:
    """Whether a later text is a person's own, and not one that a group may know by heart.

    Such as "What do you like to do for fun?", or a line with a name left to be filled in.
    """
    unfilled = "[" in item.text
    return len(words(item.text)) >= FEWEST_WORDS and not unfilled and _plain(item.text) not in heard


def _plain(text: str) -> str:
    return " ".join(words(text))
