"""What steering costs a model of its abilities, by trait and by dose.

    python experiments/arena/capability.py --data FOLDER             # hours of a core
    python experiments/arena/capability.py --data FOLDER --quick     # only shows that it runs

FOLDER holds the data sets that capability_tasks.py names. lm-evaluation-harness asks the tasks of
the unsteered model and of each trait's own edit (`compose=True`) at several strengths; nothing is
downloaded. What an item earned is kept in a work folder, one file a task of a setting, so the run
can be killed, resumed, and split over processes with `--traits`. Intervals are 95% bootstraps over
items, paired: both models answer the same ones. Written are capability.md, .csv, .json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from capability_tasks import TASKS, Document, Task, short
from numpy.typing import NDArray
from running import common_parser, parsed, steerer_of
from tqdm import tqdm

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from palm.figures import panels, save  # noqa: E402
from precision import loaded  # noqa: E402
from runs import add_bundle  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.edits import Edit  # noqa: E402
from steer.hooks import Scope  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.resources import atomic_path, content_key  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.versions import versions  # noqa: E402

Float64 = NDArray[np.float64]

DRAWS = 2000
WORST_CHANGE = -1.0  # points of accuracy
WORST_RATIO = 1.05  # of perplexities
MOST_TOKENS = 1024  # that are read at once
PLAIN_MEAN = "mean in plain text"
CHAT_MEAN = "mean in a chat without ifeval"
MEAN = "mean"
WORD = "perplexity per word"


@dataclass(frozen=True)
class Measured:
    """What the items of a task earned under one setting.

    Attributes:
        items: By metric, one number an item.
        seconds: What the measurement took.
    """

    items: Mapping[str, Float64]
    seconds: float


@dataclass(frozen=True)
class Row:
    """How a setting does against the unsteered model.

    Attributes:
        trait: Whose edit it is.
        strength: 1 is the default dose.
        task: The task, or a mean of several.
        metric: Its metric.
        items: Number of items.
        unsteered: Per cent of the items, or perplexity, of the unsteered model.
        steered: The same of the steered one.
        change: In points of per cent; for a perplexity the ratio.
        low: Lower end of its interval.
        high: Upper end.
    """

    trait: str
    strength: float
    task: str
    metric: str
    items: int
    unsteered: float
    steered: float
    change: float
    low: float
    high: float


def main() -> None:
    """Measure what is missing; write the tables and the picture."""
    arguments = read_arguments()
    steerer = steerer_of(loaded(arguments), arguments)
    traits = arguments.traits or list(steerer.traits)
    settings = [(None, 0.0), *((trait, s) for trait in traits for s in arguments.strengths)]
    tasks = [task for task in TASKS if task.name in arguments.tasks]
    tasks = [short(task) for task in tasks] if arguments.quick else tasks
    documents = [task.documents(arguments.data, arguments.limit, arguments.seed) for task in tasks]
    found: dict[tuple[str | None, float], dict[str, Measured]] = {}
    with tqdm(total=len(settings) * len(tasks), disable=None) as bar:
        for trait, strength in settings:
            weights = None if trait is None else {trait: 1.0}
            edit = steerer.resolve(weights, strength, compose=True)
            scope = steerer.bundle.scope
            for task, asked in zip(tasks, documents, strict=True):
                bar.set_description(f"{trait or 'unsteered'} {strength:g}, {task.name}")
                done = measure(steerer.language_model, edit, scope, task, asked, arguments.work_dir)
                found.setdefault((trait, strength), {})[task.name] = done
                bar.update()
    base = found.pop((None, 0.0))
    rows = [
        row
        for (trait, strength), measured in found.items()
        for row in compare(str(trait), strength, base, measured, arguments.seed)
    ]
    seconds = {task: one.seconds for task, one in base.items()}
    write(rows, steerer, arguments, seconds)


def read_arguments() -> argparse.Namespace:
    """What the script is told."""
    parser = common_parser(__doc__, "capability")
    add_bundle(parser)
    parser.add_argument("--traits", nargs="+", default=None, help="default: all of the bundle")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.5, 1.0, 1.5])
    parser.add_argument("--tasks", nargs="+", choices=names(TASKS), default=names(TASKS))
    parser.add_argument("--limit", type=int, default=500, help="most items of a task")
    arguments = parsed(parser)
    if arguments.quick:
        arguments.limit, arguments.strengths = min(arguments.limit, 4), []
    arguments.strengths = sorted({1.0, *arguments.strengths})
    paths = [task.path for task in TASKS if task.name in arguments.tasks]
    if missing := [path for path in paths if not (arguments.data / path).is_file()]:
        parser.error(f"--data {arguments.data} has no {', '.join(missing)}")
    return arguments


def names(tasks: Sequence[Task]) -> list[str]:
    """Names of tasks."""
    return [task.name for task in tasks]


def measure(
    language_model: LanguageModel,
    edit: Edit,
    scope: Scope,
    task: Task,
    documents: Sequence[Document],
    work_dir: Path,
) -> Measured:
    """What each document earns under an edit, measured or found in the work folder."""
    made_by = {
        "model": language_model.fingerprint.to_dict(),
        "edit": edit.digest,
        "scope": scope if not edit.is_zero() else None,
        "task": {"name": task.name, "settings": task.settings, "metrics": task.metrics},
        "documents": content_key(documents),
        "most tokens": MOST_TOKENS,
        "versions": arena_versions(),
    }
    path = work_dir / f"{task.name}-{content_key(made_by)}.json"
    if not path.exists():
        # Only here, so that what needs no harness can be tested without this optional dependency.
        from steered_lm import SteeredLM, ask

        lm = SteeredLM(language_model, edit, scope=scope, max_length=MOST_TOKENS)
        start = time.perf_counter()
        items = ask(lm, task, documents)
        seconds = round(time.perf_counter() - start, 1)
        if not task.is_accuracy:
            items["words"] = [document["words"] for document in documents]
            items["tokens"] = [len(lm.tok_encode(document["text"])) for document in documents]
        content = {"made_by": made_by, "seconds": seconds, "items": items}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {metric: np.array(values, float) for metric, values in content["items"].items()}
    return Measured(kept, content["seconds"])


def arena_versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    return versions() | {"lm_eval": version("lm_eval")}


def compare(
    trait: str,
    strength: float,
    base: Mapping[str, Measured],
    steered: Mapping[str, Measured],
    seed: int,
) -> list[Row]:
    """All rows of a setting: each metric of each task, the means, and perplexities."""
    rows = []
    points: dict[str, tuple[Row, Float64]] = {}
    for place, task in enumerate(TASKS):
        if task.name not in base:
            continue
        before, after = base[task.name].items, steered[task.name].items
        if not task.is_accuracy:
            for unit in ("words", "tokens"):
                label = f"perplexity per {unit[:-1]}"
                both = [before["log_likelihood"], after["log_likelihood"], before[unit]]
                found = perplexities(np.stack(both, axis=1), [seed, place])
                rows.append(Row(trait, strength, task.name, label, len(before[unit]), *found))
            continue
        for metric in task.metrics:
            both = 100 * np.stack([before[metric], after[metric]], axis=1)
            draws = resampled(both[:, 1] - both[:, 0], [seed, place]) / len(both)
            old, new = both.mean(0).tolist()
            ends = interval(draws)
            row = Row(trait, strength, task.name, metric, len(both), old, new, new - old, *ends)
            rows.append(row)
            if metric == task.metrics[0]:
                points[task.name] = (row, draws)
    in_chat = {task.name for task in TASKS if task.chat}
    for label, chosen in (
        (PLAIN_MEAN, points.keys() - in_chat),
        (CHAT_MEAN, points.keys() & in_chat - {"ifeval"}),
        (MEAN, points.keys()),
    ):
        if chosen:
            rows.append(mean_row(label, [points[name] for name in points if name in chosen]))
    return rows


def mean_row(label: str, parts: Sequence[tuple[Row, Float64]]) -> Row:
    """The mean over tasks, each of which counts alike; their items are drawn independently."""
    rows = [row for row, _ in parts]
    old, new = (
        float(np.mean([getattr(r, side) for r in rows])) for side in ("unsteered", "steered")
    )
    ends = interval(np.mean([draws for _, draws in parts], axis=0))
    items = sum(row.items for row in rows)
    return Row(
        rows[0].trait, rows[0].strength, label, "accuracy", items, old, new, new - old, *ends
    )


def perplexities(texts: Float64, seed: Sequence[int]) -> tuple[float, float, float, float, float]:
    """Both perplexities, their ratio and its interval.

    Args:
        texts: (n, 3) log-likelihoods before and after, and lengths.
        seed: Of the draws.
    """
    old, new, length = texts.sum(0).tolist()
    drawn = resampled(texts, seed)  # (draws, 3)
    ends = interval(np.exp((drawn[:, 0] - drawn[:, 1]) / drawn[:, 2]))
    ratio = float(np.exp((old - new) / length))
    return float(np.exp(-old / length)), float(np.exp(-new / length)), ratio, *ends


def resampled(values: Float64, seed: Sequence[int]) -> Float64:
    """Sums over rows that are drawn anew, once a draw: (draws, ...) of values (n, ...)."""
    n = len(values)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return np.asarray(counts @ values)


def interval(draws: Float64) -> tuple[float, float]:
    """95%."""
    low, high = np.quantile(draws, [0.025, 0.975]).tolist()
    return low, high


def write(
    rows: Sequence[Row],
    steerer: Steerer,
    arguments: argparse.Namespace,
    seconds: Mapping[str, float],
) -> None:
    """Write the tables and the picture, and print the table."""
    output = arguments.output
    content = {
        "model": steerer.language_model.name,
        "fingerprint": str(steerer.language_model.fingerprint),
        "dtype": arguments.dtype,
        "bundle": arguments.bundle.name,
        "scope": steerer.bundle.scope,
        "doses, nats per token": {
            name: entry.dose
            for name, entry in steerer.bundle.traits.items()
            if name in {row.trait for row in rows}
        },
        "limit": arguments.limit,
        "seed": arguments.seed,
        "draws": DRAWS,
        "versions": arena_versions(),
        "command": command("experiments/arena/capability.py"),
        "seconds of a task, unsteered": seconds,
        "rows": [asdict(row) for row in rows],
    }
    write_json(output / "capability.json", content)
    write_csv(output / "capability.csv", Row, rows)
    text = markdown(rows, arguments.seed, arguments.dtype)
    write_markdown(output / "capability.md", text)
    draw(rows, output / "capability.png")


def markdown(rows: Sequence[Row], seed: int, dtype: str) -> str:
    """The tables as Markdown: tasks at the default dose, and means over doses."""
    table = {(row.trait, row.strength, (row.task, row.metric)): row for row in rows}
    traits = list(dict.fromkeys(row.trait for row in rows))
    strengths = sorted({row.strength for row in rows})
    headline = {(task.name, task.metrics[0]) for task in TASKS if task.is_accuracy}
    means = [
        (PLAIN_MEAN, "accuracy"),
        (CHAT_MEAN, "accuracy"),
        (MEAN, "accuracy"),
        ("wikitext2", WORD),
    ]
    keys = dict.fromkeys((row.task, row.metric) for row in rows)
    shown = [key for key in keys if key in headline or key in means]
    means = [key for key in shown if key in means]
    lines = [
        "Change of accuracy in points, and ratio of perplexities, steered against unsteered on the "
        "same items, with 95% intervals. Means are over tasks; ifeval has few items, and asks for "
        f"lengths. {dtype}, seed {seed}.",
        "",
        "Strength 1, the default dose:",
        "",
        "| trait | " + " | ".join(f"{task}, {metric}" for task, metric in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
        f"| unsteered | {' | '.join(level(table[traits[0], 1.0, key]) for key in shown)} |",
        *(
            f"| {trait} | {' | '.join(cell(table[trait, 1.0, key]) for key in shown)} |"
            for trait in traits
        ),
    ]
    if len(strengths) > 1:
        lines += ["", "Over strengths:", ""]
        lines.append("| trait | strength | " + " | ".join(task for task, _ in means) + " |")
        lines.append("|---" * (len(means) + 2) + "|")
        for trait in traits:
            for s in strengths:
                cells = " | ".join(cell(table[trait, s, key]) for key in means)
                lines.append(f"| {trait} | {s:g} | {cells} |")
    lines += ["", *(verdict(table, traits, key) for key in means)]
    return "\n".join(lines) + "\n"


def level(row: Row) -> str:
    """What the unsteered model does."""
    is_ratio = row.metric.startswith("perplexity")
    return f"{row.unsteered:.2f}" if is_ratio else f"{row.unsteered:.1f}% of {row.items}"


def cell(row: Row) -> str:
    """What changes."""
    form = ".3f" if row.metric.startswith("perplexity") else "+.1f"
    return f"{row.change:{form}} ({row.low:{form}} to {row.high:{form}})"


def verdict(
    table: Mapping[tuple[str, float, tuple[str, str]], Row],
    traits: Sequence[str],
    key: tuple[str, str],
) -> str:
    """Whether the default dose keeps within a bound, for every trait."""
    is_ratio = key[1].startswith("perplexity")
    bound = f"at most {WORST_RATIO:g}" if is_ratio else f"no more than {-WORST_CHANGE:g} point less"
    changes = {trait: table[trait, 1.0, key].change for trait in traits}
    out = [
        trait
        for trait, change in changes.items()
        if (change > WORST_RATIO if is_ratio else change < WORST_CHANGE)
    ]
    held = "every trait" if not out else f"all but {', '.join(out)}"
    return f"- {key[0]}, {key[1]}, {bound}: {held}."


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy and perplexity over doses, a panel each; one line a trait."""
    figure, axes = panels(1, 2, 5.2, 3.8)
    left, right = axes[0]
    for axis, task, metric, start, bound in (
        (left, MEAN, "accuracy", 0.0, WORST_CHANGE),
        (right, "wikitext2", WORD, 1.0, WORST_RATIO),
    ):
        for trait in dict.fromkeys(row.trait for row in rows):
            mine = [r for r in rows if (r.trait, r.task, r.metric) == (trait, task, metric)]
            x = [0.0, *(row.strength for row in mine)]
            y = [start, *(row.change for row in mine)]
            (line,) = axis.plot(x, y, marker="o", markersize=3.5, lw=1.4, label=trait)
            low, high = ([start, *(getattr(r, end) for r in mine)] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.1, lw=0)
        axis.axhline(bound, color="0.4", lw=1, ls="--")
        axis.axvline(1.0, color="0.8", lw=1, zorder=0)
        axis.set_xlabel("strength (1 is the default dose)")
    left.set_title("Mean accuracy", fontsize=11)
    left.set_ylabel("change, points")
    left.legend(fontsize=8, frameon=False)
    right.set_title("WikiText-2 perplexity", fontsize=11)
    right.set_ylabel("ratio to the unsteered model")
    save(figure, path)


if __name__ == "__main__":
    main()
