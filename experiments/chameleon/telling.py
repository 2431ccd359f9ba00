"""How well a model, steered or prompted, tells a person's texts from others, and writes alike.

Of each question (persons.py) are kept: the rank of the true text among 20 by mean log-likelihood
per token; that log-likelihood; the model's own greedy answer; and the tokens of the prompt. Rows
are kept in a file as they come, so a run that was stopped goes on.

Style is what a person's texts share, so its distance is taken between the mean of a person's
answers and the mean of their true texts (`steer.sentence_encoder.embed_style`; Euclidean): between
single texts, most of the distance is what they are about.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from choosing import choice_log_likelihood
from numpy.typing import NDArray
from persons import Question
from tqdm import tqdm

# What these experiments share with the arena.
sys.path.append(str(Path(__file__).parents[1] / "arena"))
from judging import draws  # noqa: E402

from steer.chat import render  # noqa: E402
from steer.edits import Edit  # noqa: E402
from steer.generation import Decoding, end_tokens, generate_batch, prompt_tokens  # noqa: E402
from steer.hooks import attach  # noqa: E402
from steer.journal import Journal  # noqa: E402
from steer.likelihood import response_tokens  # noqa: E402
from steer.measures import is_coherent  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.resources import content_key  # noqa: E402
from steer.sentence_encoder import embed_style  # noqa: E402
from steer.soundness import Soundness  # noqa: E402

_BATCH = 16
# Turns of a conversation are short; no rule against what stands in the prompt, which would bind
# prompts with a history more.
_WRITING = Decoding(max_new_tokens=48, no_repeat_ngram_size=None)
_GENERAL = Decoding(max_new_tokens=96)


@dataclass(frozen=True)
class Row:
    """One question under one arm.

    Attributes:
        person: Number of the person.
        rank: Of the true text among the choices, from 0.
        log_likelihood: Of the true text, nats per token.
        text: The true text.
        answer: The model's; "" if it did not write.
        prompt_tokens: Of the whole prompt.
    """

    person: int
    rank: int
    log_likelihood: float
    text: str
    answer: str
    prompt_tokens: int

    @property
    def incoherent(self) -> bool:
        """Whether the answer loops or is broken."""
        return not is_coherent(self.answer)


@dataclass(frozen=True)
class Arm:
    """One way to personalise.

    Attributes:
        name: For tables.
        prompt: From a question to a prompt or chat.
        edits: By number of the person.
    """

    name: str
    prompt: Callable[[Question], Any]
    edits: Sequence[Edit]


def ask(
    model: LanguageModel,
    asked: Sequence[Question],
    arm: Arm,
    folder: Path,
    *,
    write: bool = True,
) -> list[Row]:
    """The rows of an arm, from its file as far as they are there.

    Args:
        model: The model, which must not be steered meanwhile.
        asked: The questions.
        arm: The way.
        folder: Where its file lies.
        write: Let the model answer as well.
    """
    texts = [render(model.tokenizer, arm.prompt(question)) for question in asked]
    header = {
        "arm": arm.name,
        "model": model.fingerprint.to_dict(),
        "dtype": model.precision,
        "texts": content_key([texts, [question.choices for question in asked]]),
        "edits": content_key([edit.digest for edit in arm.edits]),
        "write": write,
    }
    journal = Journal(folder / f"{content_key(header)}.jsonl", header)
    rows = [Row(**row) for row in journal.rows]
    bar = tqdm(total=len(asked), initial=len(rows), desc=arm.name, disable=None)
    with bar:
        for start in range(len(rows), len(asked), _BATCH):
            part = slice(start, start + _BATCH)
            edits = [arm.edits[question.person] for question in asked[part]]
            fresh = _rows(model, asked[part], texts[part], edits, write)
            journal.append([asdict(row) for row in fresh])
            rows += fresh
            bar.update(len(fresh))
    return rows


def soundness(
    model: LanguageModel, edits: Sequence[Edit], prompts: Sequence[str], folder: Path
) -> Soundness:
    """How whole the answers to prompts that concern nobody in particular are.

    Args:
        model: The model, which must not be steered meanwhile.
        edits: Of the people, who are asked in turn.
        prompts: What they are asked.
        folder: Where the answers are kept.
    """
    rows = [edits[i % len(edits)] for i in range(len(prompts))]
    header = {
        "model": model.fingerprint.to_dict(),
        "dtype": model.precision,
        "prompts": content_key(list(prompts)),
        "edits": content_key([edit.digest for edit in rows]),
    }
    journal = Journal(folder / f"general-{content_key(header)}.jsonl", header)
    answers = [str(row["answer"]) for row in journal.rows]
    for start in range(len(answers), len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        texts = [render(model.tokenizer, prompt) for prompt in prompts[part]]
        with attach(model).steer(rows[part]):
            fresh = [one.text for one in generate_batch(model, texts, _GENERAL)]
        journal.append([{"answer": answer} for answer in fresh])
        answers += fresh
    return Soundness.of(prompts, answers)


def _rows(
    model: LanguageModel,
    asked: Sequence[Question],
    texts: Sequence[str],
    edits: Sequence[Edit],
    write: bool,
) -> list[Row]:
    written = [""] * len(asked)
    if write:
        with attach(model).steer(edits):
            written = [answer.text for answer in generate_batch(model, texts, _WRITING)]
    ends = sorted(end_tokens(model))[:1]
    rows = []
    for question, text, edit, answer in zip(asked, texts, edits, written, strict=True):
        prompt = prompt_tokens(model, text)
        choices = [[*response_tokens(model, one), *ends] for one in question.choices]
        found = choice_log_likelihood(model, prompt, choices, [edit])[0]
        rows.append(
            Row(
                question.person,
                int((found[1:] > found[0]).sum()),
                float(found[0]),
                question.choices[0],
                answer,
                len(prompt),
            )
        )
    return rows


BY_ROW: Mapping[str, Callable[[Row], float]] = {
    "hits@1": lambda row: float(row.rank == 0),
    "MRR": lambda row: 1 / (1 + row.rank),
    "log-likelihood": lambda row: row.log_likelihood,
}
STYLE = "style distance"
MEASURES = (*BY_ROW, STYLE)
LOWER_IS_BETTER = (STYLE,)
GAINED = ("hits@1", "MRR", STYLE)
"""Measures of which relative gains are taken: a log-likelihood has no zero to be relative to."""


def by_person(rows: Sequence[Row], measure: str) -> NDArray[np.float64]:
    """A measure of each person's questions, (people,)."""
    groups = [[row for row in rows if row.person == i] for i in sorted({r.person for r in rows})]
    if measure != STYLE:
        return np.array([np.mean([BY_ROW[measure](row) for row in group]) for group in groups])
    apart = _apart(tuple((row.answer, row.text) for group in groups for row in group))
    far = np.split(apart, np.cumsum([len(group) for group in groups])[:-1])
    return np.array([np.linalg.norm(one.mean(0)) for one in far], np.float64)


# An arm is compared with one arm after another.
@lru_cache(maxsize=32)
def _apart(texts: tuple[tuple[str, str], ...]) -> NDArray[np.float32]:
    """How far answers lie from true texts in style, (n, 384)."""
    # An empty answer has no style; a full stop is the nearest text to it.
    written = embed_style([answer or "." for answer, _ in texts])
    return written - embed_style([true for _, true in texts])


def drawn(values: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Means over people drawn anew, (DRAWS,); the same people whatever the values, so they pair."""
    return np.asarray(values[draws(len(values), seed)].mean(1))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95%."""
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high


def relative_gain(
    ours: Sequence[Row], theirs: Sequence[Row], measures: Sequence[str] = GAINED
) -> tuple[float, float, float]:
    """How much better one arm is than another, as a share of the other, with its paired interval.

    The mean over measures; a distance's gain is how many times it is smaller, less one.
    """

    def ratio(one: Any, other: Any, measure: str) -> Any:
        top, bottom = (other, one) if measure in LOWER_IS_BETTER else (one, other)
        return top / np.maximum(bottom, 1 / len(theirs)) - 1

    pairs = [(m, by_person(ours, m), by_person(theirs, m)) for m in measures]
    value = np.mean([ratio(a.mean(), b.mean(), m) for m, a, b in pairs])
    low, high = interval(np.mean([ratio(drawn(a), drawn(b), m) for m, a, b in pairs], axis=0))
    return float(value), low, high
