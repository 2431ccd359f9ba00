"""Several traits at once: what pushing one does to the others, and whether all that are asked move.

    python experiments/arena/mixtures.py --data FOLDER            # two hours of a core
    python experiments/arena/mixtures.py --data FOLDER --quick    # minutes: shows that it runs

FOLDER holds what people prefer (people.py). Edits are those of a bundle at their default dose,
composed from the traits' own and, where the bundle holds a portfolio, as routed. A cell is two or
three traits at equal weights, or one of them at twice the others'; it is right if the gain of every
weighted trait, by the measure that is reported in arena.py, is above zero at 95% (bootstrap over
prompts). Pairs of traits whose contrast pairs point apart (cosine of their mean differences below
-0.3, a mean over layers) are antagonistic: cells with one are reported apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from answering import UNSTEERED, Edited, Setting, answer_all
from answers import Answers, joined
from judging import Float64, coherence, draws, gain, values
from numpy.typing import NDArray
from reads import PAIRS, READS, People, Reads
from running import (
    add_build_dir,
    common_parser,
    parsed,
    steerer_of,
    store_of,
    workshop_of,
)
from tqdm import tqdm

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from palm.figures import panels, save  # noqa: E402
from precision import loaded  # noqa: E402
from runs import add_bundle  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.generation import Decoding  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.subspace import Subspace  # noqa: E402
from steer.versions import versions  # noqa: E402

ANTAGONISTIC = -0.3
TARGET = 0.95
PROMPTS = 128
LOT = 64
COMPOSED, ROUTED = "composed", "routed"

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """How one trait moves under a mixture.

    Attributes:
        mode: Composed or routed.
        weights: What is asked for, as text.
        traits: Number of weighted traits.
        trait: Which is read.
        weighted: Whether it is among them.
        gain: Share of its headroom that is closed.
        low: Lower end of its interval.
        high: Upper end.
        incoherent: Share of the mixture's answers that loop or are broken.
        antagonistic: Whether weighted traits are.
    """

    mode: str
    weights: str
    traits: int
    trait: str
    weighted: bool
    gain: float
    low: float
    high: float
    incoherent: float
    antagonistic: bool


@dataclass(frozen=True)
class Measured:
    """What was read of one edit's answers.

    Attributes:
        values: By trait that was read, the reported measure of each answer (P,).
        incoherent: Share that loops or is broken.
    """

    values: Mapping[str, Float64]
    incoherent: float


def main() -> None:
    """Answer all mixtures and write the tables."""
    arguments = read_arguments()
    model = loaded(arguments)
    steerer = steerer_of(model, arguments)
    traits, quick = arguments.traits, arguments.quick
    people = People(arguments.data, arguments.seed, arguments.work_dir, 100 if quick else PAIRS)
    workshop = workshop_of(model, arguments)
    cosines = extraction_cosines({name: workshop.source(name).subspace for name in traits})
    reads = {trait: READS[trait](model, people) for trait in traits}
    number, tokens = (4, 24) if quick else (PROMPTS, 96)
    prompts = [prompt.text for prompt in load_prompts("report")][:number]
    decoding = Decoding(max_new_tokens=tokens)
    mixtures = list(all_mixtures(traits))[: 6 if quick else None]
    asked = [(mode, weights) for mode in modes(steerer, traits) for weights in mixtures]
    served = [edited(steerer, weights, mode) for mode, weights in asked]
    # One edit may serve many mixtures; it answers once and is read once.
    settings: dict[str, Setting] = {}
    wanted: dict[str, set[str]] = {}
    for (mode, weights), how in zip(asked, served, strict=True):
        settings.setdefault(how.digest, Setting("+".join(weights), mode, shown(weights), how))
        wanted.setdefault(how.digest, set()).update(read_of(weights, traits))
    unsteered, *answers = answered(
        model, [UNSTEERED, *settings.values()], prompts, decoding, arguments.work_dir
    )
    before = read_all(reads, prompts, unsteered)
    after = {}
    for digest, one in zip(tqdm(settings, desc="read", disable=None), answers, strict=True):
        some = {trait: reads[trait] for trait in traits if trait in wanted[digest]}
        after[digest] = read_all(some, prompts, one)
    drawn = draws(len(prompts), arguments.seed)
    rows = [
        cell
        for (mode, weights), how in zip(asked, served, strict=True)
        for cell in cells(mode, weights, traits, after[how.digest], before, cosines, drawn)
    ]
    content = {
        "command": command("experiments/arena/mixtures.py"),
        "model": model.name,
        "fingerprint": str(model.fingerprint),
        "dtype": arguments.dtype,
        "bundle": {"traits": {name: steerer.bundle.traits[name].edit.digest for name in traits}},
        "seed": arguments.seed,
        "versions": versions(),
        "prompts": len(prompts),
        "decoding": asdict(decoding),
        "incoherent, unsteered": before.incoherent,
        "cosines": {f"{a}, {b}": value for (a, b), value in cosines.items()},
        "summary": summary(rows),
        "rows": [asdict(row) for row in rows],
    }
    write(arguments.output, content, rows, traits)


def read_arguments() -> argparse.Namespace:
    """What the script is told."""
    parser = common_parser(__doc__, "mixtures")
    add_build_dir(parser)
    add_bundle(parser)
    parser.add_argument("--traits", nargs="+", choices=list(READS), default=list(READS))
    return parsed(parser)


def answered(
    model: LanguageModel,
    settings: Sequence[Setting],
    prompts: Sequence[str],
    decoding: Decoding,
    folder: Path,
) -> list[Answers]:
    """The answers of settings; each lot of prompts is kept in a file of its own.

    So more prompts can be asked later, and nothing is answered again.
    """
    lots = [prompts[start : start + LOT] for start in range(0, len(prompts), LOT)]
    found = [
        answer_all(
            model, settings, lot, decoding, store_of(folder / f"{i}.jsonl", model, lot, decoding)
        )
        for i, lot in enumerate(lots)
    ]
    return [joined(parts) for parts in zip(*found, strict=True)]


def all_mixtures(traits: Sequence[str]) -> Iterator[Weights]:
    """Each trait alone; two and three at equal weights, and each in turn at twice the others'."""
    for number in (1, 2, 3):
        for chosen in combinations(traits, number):
            yield dict.fromkeys(chosen, 1.0)
            if number > 1:
                for heavier in chosen:
                    yield {trait: 2.0 if trait == heavier else 1.0 for trait in chosen}


def shown(weights: Weights) -> str:
    """Weights as a table has them."""
    return ", ".join(f"{trait} {weight:g}" for trait, weight in weights.items())


def modes(steerer: Steerer, traits: Sequence[str]) -> tuple[str, ...]:
    """The ways in which a bundle serves mixtures of these traits."""
    portfolio = steerer.bundle.portfolio
    routed = portfolio is not None and portfolio.serves(dict.fromkeys(traits, 1.0))
    return (COMPOSED, ROUTED) if routed else (COMPOSED,)


def edited(steerer: Steerer, weights: Weights, mode: str) -> Edited:
    """What a request is served by."""
    return Edited(steerer.resolve(weights, compose=mode == COMPOSED), steerer.bundle.scope)


def extraction_cosines(subspaces: Mapping[str, Subspace]) -> dict[tuple[str, str], float]:
    """By pair of traits, the cosine of their mean differences, a mean over layers."""
    result = {}
    for (a, one), (b, other) in combinations(subspaces.items(), 2):
        each = []
        for layer in one.layers.keys() & other.layers.keys():
            x, y = one.layers[layer].mean_difference, other.layers[layer].mean_difference
            each.append(float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y)))
        result[a, b] = float(np.mean(each))
    return result


def read_of(weights: Weights, traits: Sequence[str]) -> Sequence[str]:
    """What is read of a mixture: what it weights; of one trait alone, all that it may do."""
    return traits if len(weights) == 1 else list(weights)


def read_all(reads: Mapping[str, Reads], prompts: Sequence[str], answers: Answers) -> Measured:
    """Read some traits of one edit's answers."""
    return Measured(
        {trait: values(one.report, prompts, answers.texts) for trait, one in reads.items()},
        coherence(prompts, answers.texts, answers.log_likelihood).incoherent,
    )


def cells(
    mode: str,
    weights: Weights,
    traits: Sequence[str],
    after: Measured,
    before: Measured,
    cosines: Mapping[tuple[str, str], float],
    drawn: NDArray[np.int64],
) -> Iterator[Cell]:
    """How the traits that are read of a mixture move."""
    apart = any(
        a in weights and b in weights and value < ANTAGONISTIC for (a, b), value in cosines.items()
    )
    for trait in read_of(weights, traits):
        one = gain(after.values[trait], before.values[trait], drawn)
        low, high = one.interval
        yield Cell(
            mode,
            shown(weights),
            len(weights),
            trait,
            trait in weights,
            one.value,
            low,
            high,
            after.incoherent,
            apart,
        )


def summary(rows: Sequence[Cell]) -> list[dict[str, Any]]:
    """By mode, number of traits and antagonism: shares of cells in which all weighted traits move.

    "surely" are cells whose every interval is above zero, "in the mean" those whose every gain is.
    """
    groups: dict[tuple[str, int, bool], dict[str, list[Cell]]] = {}
    for row in rows:
        if row.weighted:
            mine = groups.setdefault((row.mode, row.traits, row.antagonistic), {})
            mine.setdefault(row.weights, []).append(row)
    result = []
    for (mode, traits, apart), by_cell in groups.items():
        result.append(
            {
                "mode": mode,
                "traits": traits,
                "antagonistic": apart,
                "cells": len(by_cell),
                "surely": float(np.mean([all(r.low > 0 for r in x) for x in by_cell.values()])),
                "in the mean": float(
                    np.mean([all(r.gain > 0 for r in x) for x in by_cell.values()])
                ),
                "incoherent": float(np.mean([x[0].incoherent for x in by_cell.values()])),
            }
        )
    return result


def write(
    output: Path, content: Mapping[str, Any], rows: Sequence[Cell], traits: Sequence[str]
) -> None:
    """Write the tables and the picture, and print the table."""
    write_json(output / "mixtures.json", content)
    write_csv(output / "mixtures.csv", Cell, rows)
    text = markdown(content, rows, traits)
    write_markdown(output / "mixtures.md", text)
    draw(rows, traits, output / "interference.png")


def markdown(content: Mapping[str, Any], rows: Sequence[Cell], traits: Sequence[str]) -> str:
    """The tables as Markdown."""
    decoding = content["decoding"]
    lines = [
        f"{content['model']}, {content['prompts']} report prompts, at most "
        f"{decoding['max_new_tokens']} tokens, seed {content['seed']}, {content['dtype']}. Gain is "
        "the share of a trait's headroom that is closed (95%, bootstrap over prompts). Unsteered, "
        f"{content['incoherent, unsteered']:.1%} of the answers loop or are broken.",
        "",
        f"### Mixtures: cells in which every weighted trait moves the right way (asked: "
        f"{TARGET:.0%})",
        "",
        "| | traits | antagonistic | cells | surely | in the mean | looping or broken |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {one['mode']} | {one['traits']} | {'yes' if one['antagonistic'] else 'no'} "
            f"| {one['cells']} | {one['surely']:.0%} | {one['in the mean']:.0%} "
            f"| {one['incoherent']:.1%} |"
            for one in content["summary"]
        ),
    ]
    for mode in told_apart(rows):
        lines += [
            "",
            f"### Interference, {mode}: push a trait (row), read another (column)",
            "",
            "| | " + " | ".join(traits) + " |",
            "|---" * (len(traits) + 1) + "|",
        ]
        table = alone(rows, mode)
        lines += [
            f"| {pushed} | "
            + " | ".join(
                f"{x.gain:+.2f} ({x.low:+.2f} to {x.high:+.2f})"
                for x in (table[pushed, read] for read in traits)
            )
            + " |"
            for pushed in traits
            if (pushed, traits[0]) in table
        ]
    lines += ["", "Cosines of the traits' mean differences: "]
    lines[-1] += ", ".join(f"{pair} {value:+.2f}" for pair, value in content["cosines"].items())
    lines[-1] += "."
    return "\n".join(lines) + "\n"


def alone(rows: Sequence[Cell], mode: str) -> dict[tuple[str, str], Cell]:
    """By pushed and read trait, the cells of one trait alone."""
    return {
        (row.weights.rpartition(" ")[0], row.trait): row
        for row in rows
        if row.traits == 1 and row.mode == mode
    }


def told_apart(rows: Sequence[Cell]) -> list[str]:
    """The modes, but for those that serve every trait alone as one before them does."""
    tables = {
        mode: {where: cell.gain for where, cell in alone(rows, mode).items()}
        for mode in dict.fromkeys(row.mode for row in rows)
    }
    return [
        mode
        for number, (mode, table) in enumerate(tables.items())
        if table not in list(tables.values())[:number]
    ]


def draw(rows: Sequence[Cell], traits: Sequence[str], path: Path) -> None:
    """The interference matrices; cells that are not surely different from zero are pale."""
    shown_modes = told_apart(rows)
    figure, axes = panels(1, len(shown_modes), 5.2, 4.4)
    for axis, mode in zip(axes[0], shown_modes, strict=True):
        table = alone(rows, mode)
        pushed = [trait for trait in traits if (trait, traits[0]) in table]
        grid = np.array([[table[a, b].gain for b in traits] for a in pushed])
        image = axis.imshow(grid, cmap="RdBu", vmin=-1, vmax=1)
        for i, a in enumerate(pushed):
            for j, b in enumerate(traits):
                one = table[a, b]
                sure = one.low > 0 or one.high < 0
                axis.text(
                    j,
                    i,
                    f"{one.gain:+.2f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if abs(one.gain) > 0.6 else "black",
                    alpha=1.0 if sure else 0.35,
                )
        axis.set_xticks(range(len(traits)), traits, rotation=30, ha="right")
        axis.set_yticks(range(len(pushed)), pushed)
        axis.set_xlabel("read")
        axis.set_ylabel("pushed")
        axis.set_title(mode, loc="left", fontsize=12)
    figure.colorbar(image, ax=axes[0, -1], label="share of the headroom closed", shrink=0.8)
    save(figure, path)


if __name__ == "__main__":
    main()
