"""Tasks that show what a model is able to do, read from local files.

An experiment takes the folder that holds the data sets, each in a folder of its own as published:

    commonsense_mc/{ARC-Easy,piqa,openbookqa}_test.json   questions with choices, in the form of
                                                           LLM-Adapters (arXiv 2304.01933)
    lambada/lambada_test.jsonl     passages whose last word needs the whole passage (CC BY 4.0)
    wikitext2/valid.txt            articles, in words and marks set apart (CC BY-SA 3.0)
    ifeval/input_data.jsonl        prompts with instructions that a program checks (Apache-2.0)

They are read, never copied. Prompts and metrics are those of lm-evaluation-harness, with these
differences. Of WikiText the beginning of each article is taken, so that texts are independent. Of
IFEval (arXiv 2311.07911) the prompts are taken whose instructions all concern the number of words,
sentences or paragraphs; an answer must follow all of them, and sentences are counted by their ends
rather than by a trained model, which would be a download.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from steer.errors import DataError
from steer.generation import Decoding

Document = dict[str, Any]

# Beginning of an article that is read, in words as the file counts them: some 400 tokens.
ARTICLE_WORDS = 300
# Answers are decoded as in serving, with the room that the harness gives them.
INSTRUCTED = Decoding(max_new_tokens=1280)

LENGTHS = {
    "length_constraints:number_words": "num_words",
    "length_constraints:number_sentences": "num_sentences",
    "length_constraints:number_paragraphs": "num_paragraphs",
}


@dataclass(frozen=True, eq=False)
class Task:
    """A task, and how the harness is told of it.

    Attributes:
        name: For files and tables.
        path: Of its file, in the folder of data sets.
        read: Its documents, in the order of the file.
        settings: Of the harness's task, as plain values.
        metrics: By which an item is judged; the first one counts.
        judge: What an item earns, where the harness has no metric for it.
        chat: Whether the text is asked as a user's message.
    """

    name: str
    path: str
    read: Callable[[str], list[Document]]
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    judge: Callable[[Document, Sequence[Any]], dict[str, Any]] | None = None
    chat: bool = False

    @property
    def is_accuracy(self) -> bool:
        """Whether items are right or wrong, rather than texts of some likelihood."""
        return self.settings["output_type"] != "loglikelihood_rolling"

    def documents(self, data: Path, limit: int | None, seed: int) -> list[Document]:
        """At most so many documents, drawn at random."""
        found = self.read((data / self.path).read_text(encoding="utf-8"))
        order = np.random.default_rng(seed).permutation(len(found))[:limit]
        return [found[i] for i in sorted(order.tolist())]


def short(task: Task) -> Task:
    """The same task with answers of a few tokens, which only show that it runs."""
    options = task.settings.get("generation_kwargs")
    if options is None:
        return task
    fewer = {**options, "max_gen_toks": 8}
    return replace(task, settings={**task.settings, "generation_kwargs": fewer})


def questions(text: str) -> list[Document]:
    """Questions with choices, and which choice is right."""
    return [_question(row) for row in json.loads(text)]


def _question(row: Mapping[str, str]) -> Document:
    asked = re.fullmatch(
        r"Please choose the correct \w+ to the question: (.*?)\n+(?=(?:Answer|Solution)1:)(.*)"
        r"\n+Answer format: ([\w/]+)",
        row["instruction"].strip(),
        re.DOTALL,
    )
    if asked is None:
        raise DataError(f"not a question with choices: {row['instruction']!r}")
    question, listed, names = asked.groups()
    marks = names.split("/")
    choices = []
    rest = listed
    for number in range(len(marks), 0, -1):
        # From the last to the first: a mark that a choice merely mentions stands before its own.
        rest, found, choice = rest.rpartition(f"{marks[number - 1].capitalize()}:")
        choices.insert(0, choice.strip())
        if not found or not choices[0]:
            raise DataError(f"choice {number} is missing: {row['instruction']!r}")
    if rest.strip() or row["answer"] not in marks:
        raise DataError(f"the choices do not fit: {row['instruction']!r}, {row['answer']!r}")
    return {
        "question": question.strip(),
        "choices": choices,
        "gold": marks.index(row["answer"]),
    }


def last_words(text: str) -> list[Document]:
    """Passages, parted before their last word."""
    documents = []
    for line in text.splitlines():
        context, _, word = json.loads(line)["text"].rpartition(" ")
        # The harness puts nothing between the two.
        documents.append({"context": context, "word": f" {word}"})
    return documents


def articles(text: str) -> list[Document]:
    """The beginning of each article, and its words before marks are put in their places."""
    parts = re.split(r"(?m)^ = [^=\n].* = *$", text)[1:]
    documents = []
    for part in parts:
        beginning = re.match(rf"(?:\s*\S+){{0,{ARTICLE_WORDS}}}", part)
        assert beginning is not None, "it matches nothing too"
        words = len(beginning.group().split())
        documents.append({"text": detokenised(beginning.group()), "words": words})
    return documents


def detokenised(text: str) -> str:
    """Text as people write it, of words and marks that were set apart by spaces."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r' " ([^"\n]*?) " ', r' "\1" ', text)
    text = re.sub(r" ([.,;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£€]) ", r"\1", text)
    text = re.sub(r" ('(?:s|t|re|ve|ll|d|m))\b", r"\1", text)
    text = re.sub(r"[ ]*\n[ ]*", "\n", text)
    return text.strip()


def lengths(text: str) -> list[Document]:
    """Prompts all of whose instructions concern their answer's length."""
    documents = []
    for line in text.splitlines():
        row = json.loads(line)
        kinds = row["instruction_id_list"]
        if not kinds or not LENGTHS.keys() >= set(kinds):
            continue
        wanted = [
            {
                "kind": LENGTHS[kind],
                "number": given[LENGTHS[kind]],
                "relation": given.get("relation", "exactly"),
            }
            for kind, given in zip(kinds, row["kwargs"], strict=True)
        ]
        documents.append({"prompt": row["prompt"], "wanted": wanted})
    return documents


def follows(answer: str, wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer has the length that was asked for, in every respect."""
    return bool(answer.strip()) and all(_has_length(answer, one) for one in wanted)


def _has_length(answer: str, wanted: Mapping[str, Any]) -> bool:
    number = COUNTS[wanted["kind"]](answer)
    if number is None:
        return False
    if wanted["relation"] == "less than":
        return bool(number < wanted["number"])
    if wanted["relation"] == "at least":
        return bool(number >= wanted["number"])
    return bool(number == wanted["number"])


def count_words(text: str) -> int:
    """Runs of letters and digits."""
    return len(re.findall(r"\w+", text))


def count_sentences(text: str) -> int:
    """Sentences by their ends; the number of a list item ends none."""
    text = re.sub(r"(?m)^\s*\d+[.)]\s+", "", text)
    pieces = re.split(r"[.!?]+[\"'”’)*\]]*(?=\s|$)", text)
    return sum(1 for piece in pieces if re.search(r"\w", piece))


def count_paragraphs(text: str) -> int | None:
    """Paragraphs between dividers `***`; None if an inner one is empty."""
    pieces = [piece.strip() for piece in text.split("***")]
    # A divider before the first or after the last one divides nothing.
    inner = pieces[1:] if not pieces[0] else pieces
    inner = inner[:-1] if inner and not inner[-1] else inner
    return len(inner) if all(inner) else None


COUNTS: Mapping[str, Callable[[str], int | None]] = {
    "num_words": count_words,
    "num_sentences": count_sentences,
    "num_paragraphs": count_paragraphs,
}


def _choice(name: str, asked: str, *, chat: bool = False) -> Task:
    settings = {
        "output_type": "multiple_choice",
        "doc_to_text": asked,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
    }
    path = f"commonsense_mc/{name}_test.json"
    title = f"{name}{IN_A_CHAT}" if chat else name
    return Task(title, path, questions, settings, ("acc_norm", "acc"), chat=chat)


# In plain text an edit behind a gate hardly acts, so questions are asked in a chat as well.
IN_A_CHAT = " in a chat"

TASKS = (
    _choice("ARC-Easy", "Question: {{question}}\nAnswer:"),
    _choice("piqa", "Question: {{question}}\nAnswer:"),
    _choice("openbookqa", "question"),
    *(_choice(name, "question", chat=True) for name in ("ARC-Easy", "piqa", "openbookqa")),
    Task(
        "lambada",
        "lambada/lambada_test.jsonl",
        last_words,
        {"output_type": "loglikelihood", "doc_to_text": "context", "doc_to_target": "word"},
        ("acc",),
    ),
    Task(
        "wikitext2",
        "wikitext2/valid.txt",
        articles,
        {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text"},
        ("log_likelihood",),
        lambda document, results: {"log_likelihood": results[0]},
    ),
    Task(
        "ifeval",
        "ifeval/input_data.jsonl",
        lengths,
        {
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": 0,
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "max_gen_toks": INSTRUCTED.max_new_tokens,
                "repetition_penalty": INSTRUCTED.repetition_penalty,
                "no_repeat_ngram_size": INSTRUCTED.no_repeat_ngram_size,
            },
        },
        ("follows",),
        lambda document, results: {"follows": float(follows(results[0], document["wanted"]))},
        chat=True,
    ),
)
