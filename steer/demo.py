"""The demonstration: a few prompts under several weights, all in one mixed batch.

It shows what steering does, beside the unsteered answers, and measures it. Four prompts are an
illustration; the figures that count are measured on the report prompts (README, "Results").
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from steer.bundle import Bundle
    from steer.generation import Generated
    from steer.steerer import Steerer

PROMPTS = (
    "What makes a good neighbour?",
    "My flight was cancelled and I am stuck at the airport. What now?",
    "How do magnets work?",
    "Recommend a hobby for long winter evenings.",
)

# In the order in which they are tried; those whose traits a bundle has are used.
_SETTINGS: tuple[Mapping[str, float], ...] = (
    {"brevity": 1.0},
    {"simplicity": 1.0},
    {"formality": 1.0},
    {"warmth": 0.5, "positivity": 0.5},
)
_FEWEST = 3

_COLUMN = 38  # characters of an answer's column, at least


def choose_settings(bundle: Bundle) -> list[Mapping[str, float]]:
    """Weights that a bundle can serve: the favourites, else its own traits and a mixture."""
    settings = [weights for weights in _SETTINGS if weights.keys() <= bundle.traits.keys()]
    alone: list[Mapping[str, float]] = [{name: 1.0} for name in bundle.traits]
    mixture: Mapping[str, float] = dict.fromkeys(list(bundle.traits)[:2], 0.5)
    others = [*alone[:2], mixture, *alone[2:]] if len(alone) > 1 else alone
    for weights in others:
        if len(settings) < _FEWEST and weights not in settings:
            settings.append(weights)
    return settings


def label(weights: Mapping[str, float] | None) -> str:
    """Weights as a short text, such as "warmth 0.5 + positivity 0.5"."""
    if weights is None:
        return "unsteered"
    return " + ".join(f"{name} {weight:.3g}" for name, weight in weights.items())


@dataclass(frozen=True)
class Demonstration:
    """Answers by setting, each in the order of the prompts; None is the unsteered model."""

    prompts: Sequence[str]
    settings: Sequence[Mapping[str, float]]
    unsteered: Sequence[Generated]
    steered: Sequence[Sequence[Generated]]
    seconds: float


def demonstrate(
    steerer: Steerer, *, max_new_tokens: int = 96, prompts: Sequence[str] = PROMPTS
) -> Demonstration:
    """Answer every prompt unsteered and under every setting, in one batch."""
    from steer.generation import Decoding

    settings = choose_settings(steerer.bundle)
    rows = [(weights, prompt) for weights in (None, *settings) for prompt in prompts]
    begin = time.perf_counter()
    answers = steerer.answer(
        [prompt for _, prompt in rows],
        [weights for weights, _ in rows],
        decoding=Decoding(max_new_tokens=max_new_tokens),
    )
    seconds = time.perf_counter() - begin
    parts = [answers[i : i + len(prompts)] for i in range(0, len(answers), len(prompts))]
    return Demonstration(tuple(prompts), settings, parts[0], parts[1:], seconds)


def show_answers(console: Console, demonstration: Demonstration) -> None:
    """Print the answers to each prompt next to each other."""
    for i, prompt in enumerate(demonstration.prompts):
        cells = [answer_cell("unsteered", demonstration.unsteered[i])]
        for weights, answers in zip(demonstration.settings, demonstration.steered, strict=True):
            cells.append(answer_cell(label(weights), answers[i], steered=True))
        console.print()
        console.print(Text(prompt, style="bold"))
        console.print(side_by_side(cells, console.width))


def answer_cell(heading: str, answer: Generated, *, steered: bool = False) -> Text:
    """An answer under its heading; one that met the token limit ends in an ellipsis."""
    from steer.measures import words

    body = re.sub(r"\n\s*\n", "\n", answer.text) or "(nothing)"
    return Text.assemble(
        (heading, "bold cyan" if steered else "bold"),
        (f"  {len(words(answer.text))} words", "dim"),
        "\n",
        body,
        "" if answer.ended else " …",
    )


def side_by_side(cells: Sequence[Text], width: int) -> Table:
    """Texts in a table of as many columns as can be read at this width."""
    columns = min(len(cells), max(2, width // _COLUMN))
    table = Table(show_header=False, show_lines=True, expand=True)
    for _ in range(columns):
        table.add_column(ratio=1, overflow="fold")
    for i in range(0, len(cells), columns):
        table.add_row(*cells[i : i + columns])
    return table


def measured_table(demonstration: Demonstration) -> Table:
    """What changed: the measure of every trait of a setting, and answers that loop or break."""
    from steer.measures import TRAIT_MEASURES, is_broken, is_looping

    table = Table(title="Mean over the prompts", title_justify="left")
    for heading in ("weights", "measure"):
        table.add_column(heading, overflow="fold")
    for heading in ("before", "after", "change", "loops", "broken"):
        table.add_column(heading, justify="right", no_wrap=True)
    count = len(demonstration.prompts)

    def damage(texts: Sequence[str]) -> list[str]:
        return [f"{sum(map(test, texts))}/{count}" for test in (is_looping, is_broken)]

    before = [answer.text for answer in demonstration.unsteered]
    table.add_row("unsteered", "", "", "", "", *damage(before))
    for weights, answers in zip(demonstration.settings, demonstration.steered, strict=True):
        after = [answer.text for answer in answers]
        first = [label(weights), *damage(after)]
        measures = [TRAIT_MEASURES[name] for name in weights if name in TRAIT_MEASURES]
        for measure in measures:
            old, new = (sum(map(measure.value, texts)) / count for texts in (before, after))
            towards = measure.sign * (new - old)
            style = "green" if towards > 0 else "red" if towards < 0 else ""
            change = Text(f"{new - old:+.2f}", style=style)
            wanted = "lower" if measure.sign < 0 else "higher"
            name = f"{measure.name} ({wanted} wanted)"
            table.add_row(first[0], name, f"{old:.2f}", f"{new:.2f}", change, *first[1:])
            first = ["", "", ""]
        if not measures:
            table.add_row(first[0], "(has no text measure)", "", "", "", *first[1:])
    return table
