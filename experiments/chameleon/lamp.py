"""Ways to personalise, on LaMP's questions (arXiv 2304.11406): in the prompt, or by steering.

    python experiments/chameleon/lamp.py --lamp DIR               # hours of a core
    python experiments/chameleon/lamp.py --lamp DIR --quick       # only shows that it runs

DIR is the benchmark's folder, as published (lamp_data.py); what is not in it reads "not run". A
question with possible answers gets the one with the largest mean log-likelihood per token, so that
none is lost to its form; others are answered greedily. Prompts hold the first entries of a profile,
or those most like the question, as many as fit; a profile that steers costs no prompt tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from choosing import choice_log_likelihood
from lamp_data import Question, load, task_folder
from lamp_metrics import measure, measure_interval, rouge_scorer
from lamp_tasks import (
    LOWER_IS_BETTER,
    NUMBERS,
    TASKS,
    Metric,
    Task,
    as_asked,
    own_text,
    with_history,
)
from making import gate_of
from tqdm import tqdm

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import common_parser, last_line, parse  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.chat import render  # noqa: E402
from steer.edits import ZERO, Edit  # noqa: E402
from steer.errors import CalibrationError, DataError  # noqa: E402
from steer.gate import behind  # noqa: E402
from steer.generation import Decoding, generate_batch, prompt_tokens  # noqa: E402
from steer.history import HistoryItem, select  # noqa: E402
from steer.hooks import attach  # noqa: E402
from steer.likelihood import response_tokens  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.personalizer import Personalization, Personalizer  # noqa: E402
from steer.versions import versions  # noqa: E402

UNSTEERED, FIRST, SIMILAR, PROFILE = ARMS = (
    "unsteered",
    "history in the prompt",
    "retrieval + prompt",
    "profile",
)
NOT_RUN = "not run"
ROWS = 16

Items = tuple[HistoryItem, ...]


@dataclass(frozen=True)
class Cell:
    """One measure of one way.

    Attributes:
        task: Name of the task.
        arm: Which way.
        metric: Which measure.
        value: Of all questions.
        low: Lower end of its interval.
        high: Upper end.
        questions: How many.
        prompt_tokens: Of a question, in the mean.
        without_profile: Questions that went unsteered, since their history gave no profile.
    """

    task: str
    arm: str
    metric: Metric
    value: float | str = NOT_RUN
    low: float | str = NOT_RUN
    high: float | str = NOT_RUN
    questions: int | str = NOT_RUN
    prompt_tokens: float | str = NOT_RUN
    without_profile: int | str = NOT_RUN


def main() -> None:
    """Ask what is there and write the tables."""
    arguments = read_arguments()
    found = questions_of(arguments)
    if not all(task.labels for task, _ in found.values()):
        rouge_scorer()  # rather now than after the first task
    model = loaded(arguments) if found else None
    cells = []
    for number in tqdm(arguments.task, desc="tasks", disable=None):
        if model is not None and number in found:
            cells += run(model, *found[number], arguments)
        else:
            task = next(task for task in TASKS if task.number == number)
            cells += [Cell(task.name, arm, metric) for arm in ARMS for metric in task.metrics]
    write(cells, model, arguments)
    if missing := [number for number in arguments.task if number not in found]:
        names = ", ".join(f"LaMP_{number}" for number in missing)
        print(f"Not run: {names}. Get the LaMP benchmark and pass its folder as --lamp.")


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "chameleon")
    parser.add_argument("--lamp", type=Path, default=None, help="folder of the benchmark")
    parser.add_argument("--task", type=int, nargs="+", choices=NUMBERS, default=list(NUMBERS))
    parser.add_argument("--split", choices=("train", "dev"), default="dev")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--items", type=int, default=4, help="entries of a profile in a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=1024, help="with entries")
    parser.add_argument("--answer-tokens", type=int, default=64)
    arguments = parse(parser)
    if arguments.lamp is not None and not arguments.lamp.is_dir():
        parser.error(f"--lamp: expected the folder of the LaMP benchmark, got {arguments.lamp}")
    if arguments.users < 1 or arguments.items < 1:
        parser.error("--users, --items: expected at least 1")
    if arguments.quick:
        arguments.users, arguments.answer_tokens = min(arguments.users, 2), 12
    return arguments


def questions_of(arguments: argparse.Namespace) -> dict[int, tuple[Task, tuple[Question, ...]]]:
    """By number, the tasks that are there."""
    found = {}
    for number in arguments.task if arguments.lamp is not None else ():
        if (folder := task_folder(arguments.lamp, number)) is not None:
            found[number] = load(
                folder,
                number,
                split=arguments.split,
                limit=arguments.users,
                seed=arguments.seed,
            )
    return found


def run(
    model: LanguageModel, task: Task, questions: Sequence[Question], arguments: argparse.Namespace
) -> list[Cell]:
    """One task in all ways."""
    targets = [question.target for question in questions]
    users = [question.user for question in questions]
    cells = []
    for arm in ARMS:
        edits: Sequence[Edit] = [ZERO] * len(questions)
        if arm == PROFILE:
            edits = profile_edits(model, task, questions, arguments)
        prompts = [prompt_of(model, task, question, arm, arguments) for question in questions]
        answers = answer(model, task, prompts, edits, arguments.answer_tokens)
        tokens = float(np.mean([len(prompt_tokens(model, prompt)) for prompt in prompts]))
        idle = sum(edit.is_zero() for edit in edits) if arm == PROFILE else 0
        for metric in task.metrics:
            value = measure(metric, targets, answers, task.labels)
            low, high = measure_interval(
                metric, targets, answers, users, task.labels, seed=arguments.seed
            )
            cells.append(
                Cell(task.name, arm, metric, value, low, high, len(questions), tokens, idle)
            )
    return cells


def profile_edits(
    model: LanguageModel, task: Task, questions: Sequence[Question], arguments: argparse.Namespace
) -> list[Edit]:
    """What steers the answer to each question, behind the gate where the model's bundle has one.

    An entry of a profile is asked in the words of the question. A history that gives no profile
    leaves the model as it is.
    """
    gate = gate_of(arguments)
    settings = Personalization(items=4 if arguments.quick else 32, seed=arguments.seed)
    personalizer = Personalizer(model, gate=gate, settings=settings)
    edits = []
    for question in tqdm(questions, desc=f"{task.name}, profiles", disable=None):
        items = [as_asked(task, question.input, item) for item in question.profile]
        try:
            edits.append(behind(gate, personalizer.profile(items).edit))
        except (DataError, CalibrationError):
            edits.append(ZERO)
    return edits


def prompt_of(
    model: LanguageModel, task: Task, question: Question, arm: str, arguments: argparse.Namespace
) -> str:
    """The rendered prompt: with as many entries of the profile as may stand in it, and fit."""

    def selected(items: Items, number: int) -> Items:
        if arm == SIMILAR and number:
            return select(items, number, "similar", query=own_text(task, question.input))
        return items[:number]

    def rendered(items: Items) -> str:
        return render(model.tokenizer, with_history(task, question.input, items))

    items: Items = ()
    if arm in (FIRST, SIMILAR):
        items = selected(question.profile, arguments.items)
    while items and len(prompt_tokens(model, rendered(items))) > arguments.prompt_tokens:
        items = selected(items, len(items) - 1)
    return rendered(items)


def answer(
    model: LanguageModel,
    task: Task,
    prompts: Sequence[str],
    edits: Sequence[Edit],
    tokens: int,
) -> list[str]:
    """The answer to each rendered prompt, under an edit of its own."""
    if not task.labels:
        return written(model, prompts, edits, tokens)
    labels = [response_tokens(model, label) for label in task.labels]
    scores = [
        choice_log_likelihood(model, prompt_tokens(model, prompt), labels, [edit])[0]
        for prompt, edit in zip(prompts, edits, strict=True)
    ]
    return [task.labels[int(one.argmax())] for one in scores]


def written(
    model: LanguageModel, prompts: Sequence[str], edits: Sequence[Edit], tokens: int
) -> list[str]:
    """Greedy answers, under an edit of their own."""
    # No rule against what stands in the prompt: it would bind prompts with a history more.
    decoding = Decoding(max_new_tokens=tokens, no_repeat_ngram_size=None)
    result = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    hooks = attach(model)
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        with hooks.steer([edits[i] for i in rows]):
            answers = generate_batch(model, [prompts[i] for i in rows], decoding)
        for row, one in zip(rows, answers, strict=True):
            result[row] = one.text
    return result


def write(
    cells: Sequence[Cell], model: LanguageModel | None, arguments: argparse.Namespace
) -> None:
    """Write JSON, CSV and Markdown, and print the table."""
    content: dict[str, Any] = {
        "command": command("experiments/chameleon/lamp.py"),
        "model": NOT_RUN if model is None else model.name,
        "fingerprint": NOT_RUN if model is None else str(model.fingerprint),
        "dtype": arguments.dtype,
        "seed": arguments.seed,
        "split": arguments.split,
        "users": arguments.users,
        "items": arguments.items,
        "prompt_tokens": arguments.prompt_tokens,
        "answer_tokens": arguments.answer_tokens,
        "versions": versions(),
        "cells": [asdict(cell) for cell in cells],
    }
    write_json(arguments.output / "lamp.json", content)
    write_csv(arguments.output / "lamp.csv", Cell, cells)
    write_markdown(arguments.output / "lamp.md", markdown(content, cells))


def markdown(content: dict[str, Any], cells: Sequence[Cell]) -> str:
    """The table as Markdown."""
    lines = [
        f"LaMP, {content['split']}, at most {content['users']} people a task, drawn at random. "
        f"Model: {content['model']}, {content['dtype']}, seed {content['seed']}. In brackets: 95%, "
        "bootstrap over people.",
        "",
        "| task | | " + " | ".join(ARMS) + " |",
        "|---" * (len(ARMS) + 2) + "|",
    ]
    by_task: dict[str, list[Cell]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(cell)
    for task, rows in by_task.items():
        for metric in dict.fromkeys(row.metric for row in rows):
            better = "lower" if metric in LOWER_IS_BETTER else "higher"
            shown = " | ".join(_shown(row) for row in rows if row.metric == metric)
            lines.append(f"| {task} | {metric}, {better} is better | {shown} |")
        first = {row.arm: row for row in reversed(rows)}
        costs = " | ".join(_number(first[arm].prompt_tokens, 0) for arm in ARMS)
        lines.append(f"| {task} | prompt tokens a question | {costs} |")
    idle = {
        row.task: f"{row.task} {row.without_profile} of {row.questions}"
        for row in cells
        if row.arm == PROFILE and row.without_profile not in (0, NOT_RUN)
    }
    if idle:
        lines += ["", f"Unsteered, since a history gave no profile: {', '.join(idle.values())}."]
    lines += ["", last_line(content)]
    return "\n".join(lines) + "\n"


def _shown(cell: Cell) -> str:
    if cell.value == NOT_RUN:
        return NOT_RUN
    return f"{_number(cell.value)} ({_number(cell.low)} to {_number(cell.high)})"


def _number(value: float | str, digits: int = 3) -> str:
    return value if isinstance(value, str) else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
