"""What each LaMP task asks, how a history stands in its prompt, and what counts.

LaMP (arXiv 2304.11406) shows the entries of a profile one after another before the question, in
words of each task's own; the papers of an author stand beside the title in the question. The same
is done here in other words. A `steer.history.HistoryItem` holds what a person wrote or chose
(`text`) and what that answers (`prompt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from steer.errors import DataError
from steer.history import HistoryItem

Metric = Literal["accuracy", "macro F1", "MAE", "RMSE", "ROUGE-1", "ROUGE-L"]

LOWER_IS_BETTER: frozenset[Metric] = frozenset(["MAE", "RMSE"])

_TAGS = (
    "sci-fi", "based on a book", "comedy", "action", "twist ending", "dystopia", "dark comedy",
    "classic", "psychology", "fantasy", "romance", "thought-provoking", "social commentary",
    "violence", "true story",
)  # fmt: skip
_CATEGORIES = (
    "women", "religion", "politics", "style & beauty", "entertainment", "culture & arts", "sports",
    "science & technology", "travel", "business", "crime", "education", "healthy living", "parents",
    "food & drink",
)  # fmt: skip
_ASKED = "{history}. {question}"
_LIKE_THESE = "{history}. In the manner of these: {question}"
# Where the title in a question of LaMP-1 ends.
_AFTER_TITLE = '", which reference'


@dataclass(frozen=True)
class Task:
    """One of the seven.

    Attributes:
        number: 1 to 7.
        name: As in the paper.
        about: What is asked for.
        text: The field of a profile's entry that a person wrote or chose.
        prompt: The field that it answers; None if it stands alone.
        before: What a question says before its own text.
        shown: How one entry is shown.
        metrics: What counts.
        labels: The possible answers; empty if an answer is written freely.
        asked: How the entries stand with the question; None for beside the title in it.
    """

    number: int
    name: str
    about: str
    text: str
    prompt: str | None
    before: str
    shown: str
    metrics: tuple[Metric, ...] = ("ROUGE-1", "ROUGE-L")
    labels: tuple[str, ...] = ()
    asked: str | None = _ASKED

    @property
    def fields(self) -> tuple[str, ...]:
        """Of a profile's entry."""
        return (self.text,) if self.prompt is None else (self.text, self.prompt)


TASKS = (
    Task(
        1, "LaMP-1", "citation identification", "abstract", "title", "explanation.", '"{prompt}"',
        ("accuracy",), ("[1]", "[2]"), None,
    ),
    Task(
        2, "LaMP-2", "movie tagging", "tag", "description", "description:",
        'the movie "{prompt}" has the tag "{text}"', ("accuracy", "macro F1"), _TAGS,
    ),
    Task(
        2, "LaMP-2 (news)", "news categorisation", "category", "text", "article:",
        'the article "{prompt}" has the category "{text}"', ("accuracy", "macro F1"), _CATEGORIES,
    ),
    Task(
        3, "LaMP-3", "product rating", "score", "text", "review:",
        'the review "{prompt}" has the score {text}', ("MAE", "RMSE"), ("1", "2", "3", "4", "5"),
    ),
    Task(
        4, "LaMP-4", "news headline", "title", "text", "article:",
        'the article "{prompt}" has the headline "{text}"',
    ),
    Task(
        5, "LaMP-5", "scholarly title", "title", "abstract", "paper:",
        'the abstract "{prompt}" has the title "{text}"', asked=_LIKE_THESE,
    ),
    Task(
        6, "LaMP-6", "email subject", "title", "text", "email:",
        'the email "{prompt}" has the subject "{text}"',
    ),
    Task(
        7, "LaMP-7", "tweet paraphrase", "text", None, "after it:", '"{text}"',
        asked="One person wrote {history}. In the manner of these: {question}",
    ),
)  # fmt: skip
"""LaMP-2 was published twice, with different data; the entries of a profile tell them apart."""

NUMBERS = tuple(dict.fromkeys(task.number for task in TASKS))


def task_of(number: int, entry: Mapping[str, object]) -> Task:
    """The task of a number whose profiles have entries like this one.

    Raises:
        DataError: If there is none.
    """
    known = [task for task in TASKS if task.number == number]
    if not known:
        raise DataError(f"unknown task {number}; the tasks of LaMP are {NUMBERS[0]}..{NUMBERS[-1]}")
    for task in known:
        if all(field in entry for field in task.fields):
            return task
    wanted = " or ".join(str(list(task.fields)) for task in known)
    raise DataError(f"profile: expected entries with fields {wanted}, got {sorted(entry)}")


def own_text(task: Task, question: str) -> str:
    """What a question is about, without what all questions of its task say."""
    return question.partition(task.before)[2].strip() or question


def as_asked(task: Task, question: str, item: HistoryItem) -> HistoryItem:
    """An entry of a profile as an answer to a question in the words of this one.

    Abstracts of papers answer no such question, and tweets none at all.
    """
    if item.prompt is None or not task.asked:
        return item
    before, found, _ = question.partition(task.before)
    return HistoryItem(item.text, f"{before}{found} {item.prompt}" if found else item.prompt)


def with_history(task: Task, question: str, items: Sequence[HistoryItem]) -> str:
    """The prompt: a question with what a person wrote or chose before.

    Raises:
        DataError: If papers should stand beside the title in a question that has none.
    """
    if not items:
        return question
    history = ", and ".join(task.shown.format(text=one.text, prompt=one.prompt) for one in items)
    if task.asked is not None:
        return task.asked.format(history=history, question=question)
    title, found, rest = question.partition(_AFTER_TITLE)
    if not found:
        raise DataError(f"{task.name}: expected a title, then {_AFTER_TITLE!r}; got {question!r}")
    return f'{title}", and {history}{found[1:]}{rest}'
