"""What each part of a profile is worth, on the develop people: figures 3 and 5, and a table.

    python experiments/chameleon/parts.py --data FOLDER                    # hours; goes on
    python experiments/chameleon/parts.py --data FOLDER --only users items # some
    python experiments/chameleon/parts.py --data FOLDER --only dose --add  # some more
    python experiments/chameleon/parts.py --data FOLDER --quick            # only shows it runs
    python experiments/chameleon/parts.py --authors FOLDER                 # longer histories

Everything but one setting stays as `Personalization` has it. Questions are those of persona.py; the
model need not write, so that style is not measured. FOLDER is as in persons.py. Authors, of whom
there are few, are asked how long a history should be, all of them: nothing is tuned on them.

    users       people of whom a group is made, which serves people it has not seen (figure 3)
    items       of a history (figure 5)
    method      how the edit is found, from histories of 16 items
    insights    who writes them: the model, where they are of use, or templates from measures
    contrast    what a history is held against, where it is not against insights
    selection   which four items of a history are used
    layers      where the edit acts, of those that the default bundle's gate knows
    steps       of an imitation, which set its dose
    most        dose that is allowed an imitation
    dose        of a mean difference
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from making import Maker, gate_of, seconds
from persona import ITEMS, UNSTEERED, plain
from persons import People, Person, Question, add_people, histories_of, people_of, questions
from telling import BY_ROW, Arm, Row, ask, by_person, drawn, interval, soundness

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from palm.figures import panels, save  # noqa: E402
from precision import loaded  # noqa: E402
from runs import common_parser, earlier, last_line, parse, provenance  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.edits import ZERO  # noqa: E402
from steer.imitate import Imitation  # noqa: E402
from steer.insights import Author  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.personalizer import Personalization  # noqa: E402
from steer.profile import Profile  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.soundness import Soundness  # noqa: E402

USERS = (1, 2, 4, 8, 16, 32, 64)
HISTORY = (1, 2, 4, 8, 16)
# Of authors, who have said more.
LONG_HISTORY = (*HISTORY, 32, 64)
# Of histories that methods are compared on: singular vectors and CCS want eight pairs, and of eight
# items some people's give seven.
PAIRED = 16
SHOWN = ("MRR", "log-likelihood")
MEASURED = tuple(BY_ROW)
DEFAULT = Personalization()
READ = replace(DEFAULT, method="mean-difference", kl=0.5)


@dataclass(frozen=True)
class Variant:
    """One setting of one part.

    Attributes:
        part: Which part.
        setting: For tables.
        personalization: How profiles are made.
        items: Of each history that are given.
        users: People of whom one group is made; 0 for a profile for each person.
    """

    part: str
    setting: str
    personalization: Personalization = DEFAULT
    items: int = ITEMS
    users: int = 0


@dataclass(frozen=True)
class Cell:
    """One measure of one variant.

    Attributes:
        part: Which part is varied.
        setting: To what.
        measure: Which measure.
        value: Over people.
        low: Lower end of its interval.
        high: Upper end.
        gain: Over the unsteered model, mean over the same people.
        gain_low: Lower end of its interval.
        gain_high: Upper end.
        seconds: Of a profile.
        dose: Of a profile, nats per token.
        relevant: Share of answers to develop prompts that are about them.
        incoherent: Share of those that loop or are broken.
    """

    part: str
    setting: str
    measure: str
    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    seconds: float
    dose: float
    relevant: float
    incoherent: float


def history_variants(numbers: Sequence[int]) -> Iterator[Variant]:
    """Histories of so many items, of which all are used."""
    for number in numbers:
        all_used = replace(DEFAULT, items=max(number, DEFAULT.items))
        yield Variant("items", str(number), all_used, items=number)


def variants() -> Iterator[Variant]:
    """Every setting, part by part."""
    group = replace(DEFAULT, items=10_000, selection="recent", imitation=Imitation(steps=36))
    for number in USERS:
        yield Variant("users", str(number), group, users=number)
    yield from history_variants(HISTORY)
    yield Variant("method", "imitation", items=PAIRED)
    for method in ("mean-difference", "svd", "ccs", "probe", "two-step", "two-step-sign-safe"):
        yield Variant("method", method, replace(READ, method=method), items=PAIRED)
    for author in get_args(Author):
        by = replace(READ, contrast="insights", insights=author)
        yield Variant("insights", f"by {author}", by)
    for contrast in ("style", "history"):
        yield Variant("contrast", contrast, replace(READ, contrast=contrast))
    yield Variant(
        "contrast", "history, distilled", replace(READ, method="distilled", contrast="history")
    )
    for rule in ("pca", "recent", "random", "similar"):
        query = "Tell me about yourself." if rule == "similar" else None
        yield Variant("selection", rule, replace(DEFAULT, items=4, selection=rule, query=query))
    for name, layers in (
        ("8 to 19", "middle"),
        ("6 to 23", tuple(range(6, 24))),
        ("6 to 11", tuple(range(6, 12))),
        ("12 to 17", tuple(range(12, 18))),
        ("18 to 23", tuple(range(18, 24))),
        ("12 alone", (12,)),
    ):
        yield Variant("layers", name, replace(DEFAULT, layers=layers))
    for steps in (3, 6, 12, 24):
        yield Variant("steps", str(steps), replace(DEFAULT, imitation=Imitation(steps=steps)))
    for kl in (0.25, 0.5, 1.0):
        yield Variant("most", f"{kl:g}", replace(DEFAULT, kl=kl))
    for kl in (0.1, 0.2, 0.5, 1.0):
        yield Variant("dose", f"{kl:g}", replace(READ, kl=kl))


def main() -> None:
    """Ask and write."""
    arguments = read_arguments()
    everybody = people_of(arguments)
    if arguments.authors is None:
        people, every = everybody.develop, list(variants())
    else:
        people = everybody.develop + everybody.report
        every = list(history_variants(LONG_HISTORY))
    people = people[: arguments.people]
    asked = questions(people, arguments.questions, seed=arguments.seed)
    model = loaded(arguments)
    content = {
        **provenance("experiments/chameleon/parts.py", model, arguments),
        "people": len(people),
        "questions": len(asked),
    }
    chosen = [one for one in every if one.part in arguments.only]
    if arguments.quick:
        chosen = [one for one in chosen if one.setting in ("1", "imitation", "mean-difference")]
    kept = written_before(content, arguments) if arguments.add else []
    folder = Path(arguments.work_dir) / "parts"
    none = ask(model, asked, Arm(UNSTEERED, plain, [ZERO] * len(people)), folder, write=False)
    whole = soundness(model, [ZERO], general(arguments), folder)
    cells = _cells(UNSTEERED, "", none, none, None, whole) + kept
    for variant in chosen:
        profiles, rows, whole = measured(
            model, everybody, people, asked, variant, folder, arguments
        )
        cells += _cells(variant.part, variant.setting, rows, none, profiles, whole)
    write({**content, "cells": [asdict(cell) for cell in cells]}, cells, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parts = tuple(dict.fromkeys(variant.part for variant in variants()))
    parser = common_parser(__doc__, "chameleon")
    add_people(parser)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--add", action="store_true", help="keep the parts that are written")
    parser.add_argument("--people", type=int, default=24)
    parser.add_argument("--questions", type=int, default=4, help="about each of them")
    arguments = parse(parser)
    if arguments.authors is not None:
        if arguments.only not in (list(parts), ["items"]):
            parser.error("--only: authors are asked about items alone")
        arguments.only = ["items"]
    if arguments.quick:
        arguments.people, arguments.questions = 4, 1
    return arguments


def written_before(content: dict[str, Any], arguments: argparse.Namespace) -> list[Cell]:
    """What an earlier run says of parts that this one does not vary."""
    written = earlier(arguments.output / f"parts{ending(arguments)}.json", content)["cells"]
    new = (UNSTEERED, *arguments.only)
    return [Cell(**cell) for cell in written if cell["part"] not in new]


def measured(
    model: LanguageModel,
    everybody: People,
    people: Sequence[Person],
    asked: Sequence[Question],
    variant: Variant,
    folder: Path,
    arguments: argparse.Namespace,
) -> tuple[list[Profile], list[Row], Soundness]:
    """Make the profiles of a variant and ask: profiles, rows, what becomes of other answers."""
    settings = replace(variant.personalization, seed=arguments.seed)
    maker = Maker(model, settings, gate_of(arguments), Path(arguments.work_dir))
    if variant.users:
        members = everybody.others[: variant.users]
        histories = histories_of(members, ITEMS)
        made = maker.groups(histories, ["group-1"] * len(members))
        profiles = [made["group-1"]] * len(people)
    else:
        profiles = maker.each(histories_of(people, variant.items))
    arm = Arm(f"{variant.part} {variant.setting}", plain, maker.edits(profiles))
    rows = ask(model, asked, arm, folder, write=False)
    return profiles, rows, soundness(model, arm.edits, general(arguments), folder)


def general(arguments: argparse.Namespace) -> list[str]:
    """Develop prompts, without those on which doses are measured."""
    prompts = [prompt.text for prompt in load_prompts("develop")]
    return prompts[8:12] if arguments.quick else prompts[8:40]


def _cells(
    part: str,
    setting: str,
    rows: Sequence[Row],
    none: Sequence[Row],
    profiles: Sequence[Profile] | None,
    whole: Soundness,
) -> list[Cell]:
    took = 0.0 if profiles is None else seconds(profiles)[0]
    dose = 0.0 if profiles is None else float(np.mean([one.dose for one in profiles]))
    cells = []
    for measure in MEASURED:
        values = by_person(rows, measure)
        gains = values - by_person(none, measure)
        spreads = (*interval(drawn(values)), float(gains.mean()), *interval(drawn(gains)))
        figures = (took, dose, whole.relevant, whole.incoherent)
        cells.append(Cell(part, setting, measure, float(values.mean()), *spreads, *figures))
    return cells


def write(content: dict[str, Any], cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Write JSON, CSV, Markdown and the figures."""
    folder, end = arguments.output, ending(arguments)
    who = "authors" if end else "develop people"
    write_json(folder / f"parts{end}.json", content)
    write_csv(folder / f"parts{end}.csv", Cell, cells)
    write_markdown(folder / f"parts{end}.md", markdown(content, cells, who))
    for part, name, label in (
        ("users", "figure3", "people of whom the group is made"),
        ("items", "figure5", "items of the history"),
    ):
        if any(cell.part == part for cell in cells):
            draw(cells, part, label, folder / f"{name}{end}.png")


def ending(arguments: argparse.Namespace) -> str:
    """Of the names of files: results of authors stand beside those of the others."""
    return "" if arguments.authors is None else "_authors"


def markdown(content: dict[str, Any], cells: Sequence[Cell], who: str) -> str:
    """The table as Markdown."""
    others = [cell.part for cell in cells if cell.part not in (UNSTEERED, "items")]
    lengths = (
        f", histories of {ITEMS} items where their length is not what is varied, {PAIRED} for "
        "methods"
        if others
        else ""
    )
    lines = [
        f"{content['people']} {who}, {content['questions']} questions{lengths}. "
        f"{content['model']}, {content['dtype']}, seed {content['seed']}. "
        "With a sign: gain over the unsteered model; in brackets its 95% interval, bootstrap over "
        "people. Relevant and incoherent: shares of answers to develop prompts.",
        "",
        "| part | setting | " + " | ".join(MEASURED) + " | dose, nats per token | relevant | "
        "incoherent | seconds |",
        "|---" * (len(MEASURED) + 6) + "|",
    ]
    for first in range(0, len(cells), len(MEASURED)):
        row = cells[first : first + len(MEASURED)]
        shown = " | ".join(
            f"{one.value:.3f}, {one.gain:+.3f} ({one.gain_low:+.3f} to {one.gain_high:+.3f})"
            for one in row
        )
        lines.append(
            f"| {row[0].part} | {row[0].setting} | {shown} | {row[0].dose:.2f} | "
            f"{row[0].relevant:.0%} | {row[0].incoherent:.0%} | {row[0].seconds:.0f} |"
        )
    lines += ["", last_line(content)]
    return "\n".join(lines) + "\n"


def draw(cells: Sequence[Cell], part: str, label: str, path: Path) -> None:
    """The gain in a measure in each panel, by a number."""
    figure, axes = panels(1, len(SHOWN), 4.2, 3.2)
    for axis, measure in zip(axes[0], SHOWN, strict=True):
        mine = [cell for cell in cells if cell.part == part and cell.measure == measure]
        x = [int(cell.setting) for cell in mine]
        low, high = [cell.gain_low for cell in mine], [cell.gain_high for cell in mine]
        axis.fill_between(x, low, high, color="#1f6fb2", alpha=0.2, lw=0)
        axis.plot(x, [cell.gain for cell in mine], "o-", color="#1f6fb2")
        axis.axhline(0, color="#9aa0a6", ls="--")
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [str(one) for one in x])
        axis.set_xlabel(label)
        unit = ", nats per token" if measure == "log-likelihood" else ""
        axis.set_ylabel(f"gain in {measure}{unit}")
    save(figure, path)


if __name__ == "__main__":
    main()
