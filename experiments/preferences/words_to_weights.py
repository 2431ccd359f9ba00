"""How well what people say is read as weights: shares of statements whose traits come out on top.

    python experiments/preferences/words_to_weights.py    # some minutes

`statements.yaml` is reported on, `develop_statements.yaml` was tuned on; each statement names the
traits that it is to put on top, k of them, and is read rightly if the k clearest are those. The
readers:

    wishes        `steer.wishes`
    similarity    sentence embeddings: how much nearer a statement is to a trait's positive
                  instructions than to the mean of all traits' (zero-shot)
    log-ratio     the model's own scoring: how much likelier a statement makes "They want brief
                  answers." than it is without, against "They want long answers."
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import binomtest

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import common_parser, last_line, parse, provenance  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

import steer  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.continuations import Continuations  # noqa: E402
from steer.generation import prompt_tokens  # noqa: E402
from steer.likelihood import response_tokens  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.sentence_encoder import embed  # noqa: E402
from steer.wishes import instructed, read_wishes  # noqa: E402

HERE = Path(__file__).parent
SPLITS = {"report": "statements.yaml", "develop": "develop_statements.yaml"}
ASKED = 'Somebody says: "{text}" What kind of answers do they want?'
UNASKED = "What kind of answers do people want?"

Scores = Mapping[str, float]
TextReader = Callable[[str], Scores]


@dataclass(frozen=True)
class Statement:
    """What somebody says, of what kind it is, and which traits it asks for."""

    text: str
    kind: str
    traits: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """How a reader does on one kind of statement.

    Attributes:
        split: Of the statements.
        reader: Which.
        kind: Of the statements; "all short" are those but the long ones.
        statements: How many.
        right: Share whose traits come out on top.
        low: Lower end of its 95% interval (Wilson).
        high: Upper end.
        found: Share of the asked traits that are on top.
    """

    split: str
    reader: str
    kind: str
    statements: int
    right: float
    low: float
    high: float
    found: float


def main() -> None:
    """Read and write."""
    arguments = read_arguments()
    model = loaded(arguments)
    readers: dict[str, TextReader] = {
        "wishes": lambda text: {wish.trait: wish.clarity for wish in read_wishes(text)},
        "similarity": similarity(),
        "log-ratio": log_ratio(model),
    }
    rows, missed = [], []
    for split, file in SPLITS.items():
        statements = read_statements(HERE / file)
        if arguments.quick:
            statements = statements[::20]
        for name, read in readers.items():
            scores = [read(one.text) for one in statements]
            rows += table(split, name, statements, scores)
            if name == "wishes":
                missed += [
                    {"split": split, **asdict(one), "read": top(score, len(one.traits))}
                    for one, score in zip(statements, scores, strict=True)
                    if set(top(score, len(one.traits))) != set(one.traits)
                ]
    content = {
        **provenance("experiments/preferences/words_to_weights.py", model, arguments),
        "rows": [asdict(row) for row in rows],
        "missed": missed,
    }
    write_json(arguments.output / "words.json", content)
    write_csv(arguments.output / "words.csv", Row, rows)
    write_markdown(arguments.output / "words.md", markdown(content, rows))


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "preferences", work=False)
    return parse(parser)


def read_statements(path: Path) -> list[Statement]:
    """The statements of a file."""
    kinds = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Statement(one["text"], kind, tuple(one["traits"]))
        for kind, found in kinds.items()
        for one in found
    ]


def similarity() -> TextReader:
    """Nearness to instructions, zero-shot."""
    traits = list(steer.load_traits())
    points = instructed(traits)
    return lambda text: dict(zip(traits, (points @ embed([text])[0]).tolist(), strict=True))


def log_ratio(model: LanguageModel) -> TextReader:
    """The model's own scoring of the poles."""
    traits = steer.load_traits()
    wanted = [
        response_tokens(model, f"They want {pole.pole} answers.")
        for trait in traits.values()
        for pole in (trait.positive, trait.negative)
    ]

    lengths = np.array([len(tokens) for tokens in wanted])

    def scored(asked: str) -> Any:
        prompt = prompt_tokens(model, render(model.tokenizer, asked))
        with torch.inference_mode():
            found = Continuations(model, [(prompt, tokens) for tokens in wanted]).log_likelihood()
        return found.cpu().numpy() / lengths

    before = scored(UNASKED)

    def read(text: str) -> Scores:
        gain = (scored(ASKED.format(text=text)) - before).reshape(-1, 2)
        return dict(zip(traits, (gain[:, 0] - gain[:, 1]).tolist(), strict=True))

    return read


def top(scores: Scores, number: int) -> list[str]:
    """The traits with the highest scores."""
    return sorted(scores, key=lambda trait: -scores[trait])[:number]


def table(
    split: str, reader: str, statements: Sequence[Statement], scores: Sequence[Scores]
) -> list[Row]:
    """By kind, and for all short ones."""
    hits = [
        len(set(top(score, len(one.traits))) & set(one.traits))
        for one, score in zip(statements, scores, strict=True)
    ]
    rows = []
    for kind in (*dict.fromkeys(one.kind for one in statements), "all short"):
        mine = [
            (hit, len(one.traits))
            for hit, one in zip(hits, statements, strict=True)
            if one.kind == kind or (kind == "all short" and one.kind != "long")
        ]
        right = sum(hit == asked for hit, asked in mine)
        spread = binomtest(right, len(mine)).proportion_ci(method="wilson")
        found = sum(hit for hit, _ in mine) / sum(asked for _, asked in mine)
        share = right / len(mine)
        rows.append(Row(split, reader, kind, len(mine), share, spread.low, spread.high, found))
    return rows


def markdown(content: dict[str, Any], rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "Share of statements whose traits come out on top of ten, in brackets its 95% interval "
        "(Wilson), and share of the asked traits that are on top. The report statements were "
        "written before any reader; the develop ones were tuned on.",
        "",
        "| statements | reader | kind | number | right | traits found |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {one.split} | {one.reader} | {one.kind} | {one.statements} | {one.right:.0%} "
        f"({one.low:.0%} to {one.high:.0%}) | {one.found:.0%} |"
        for one in rows
    ]
    lines += ["", f"The log-ratio is that of {content['model']}, {content['dtype']}.", ""]
    return "\n".join([*lines, last_line(content)]) + "\n"


if __name__ == "__main__":
    main()
