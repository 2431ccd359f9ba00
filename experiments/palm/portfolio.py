"""The portfolio table (sizes 3 to 7 and beyond, against other ways to choose) and figures 2 and 3.

    python experiments/palm/portfolio.py        # after measure.py; minutes a task

Every method keeps some of the same measured edits, so that nothing but the choice differs: PALM's
(a minimum set cover in reward space with a certificate), the best edits at evenly spread or random
weights, GPI, one edit for all; and what plain composition of the traits' edits by each user's own
weights gives, which needs no portfolio. Losses are relative to the measured edits: the worst over
the continuous simplex by linear programs, the mean over random mixtures. The random choice is the
mean over seeds. Written are portfolio.csv, portfolio.md, figure2.png (losses by size) and
figure3.png (who is served by what at size 5).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from figures import panels, save
from numpy.typing import NDArray

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from tables import write_csv  # noqa: E402
from tasks import OBJECTIVE, TASKS, Task, common_arguments, composed, evaluations_path  # noqa: E402

from steer.certificate import with_unsteered, worst_delta, worst_epsilon  # noqa: E402
from steer.cover import Closeness, grid, random_weights  # noqa: E402
from steer.evaluation import Evaluation, measured, read_evaluations  # noqa: E402
from steer.portfolio_baselines import at_random, gpi, one_for_all, uniform  # noqa: E402
from steer.prune import prune_to_size  # noqa: E402
from steer.resources import atomic_path  # noqa: E402
from steer.route import route, usage  # noqa: E402
from steer.sentence_encoder import embed  # noqa: E402
from steer.uncertainty import certificate_intervals  # noqa: E402

Float64 = NDArray[np.float64]

SHOWN = 5  # the size of figure 3, and of the comparison of outputs
MIXTURES = 5000
RANDOM_SEEDS = 20
USERS = 40  # whose answers are compared
COLOURS = {
    "PALM": "#1f6fb2",
    "uniform": "#e0872e",
    "random": "#9aa0a6",
    "GPI": "#3a9d5d",
    "one edit for all": "#b23a48",
}


@dataclass(frozen=True)
class Row:
    """One method at one size.

    Attributes:
        task: The task.
        size: Edits that may be kept.
        method: How they are chosen.
        kept: Edits that are.
        worst_delta: Largest loss of J anywhere on the simplex.
        worst_epsilon: Largest relative loss.
        mean_delta: Mean loss of J over mixtures.
        mean_epsilon: Mean relative loss.
        unsteered: Share of mixtures that the unsteered model serves.
        unused: Kept edits that serve none of the mixtures.
        perplexity: Of the shares of the kept edits.
        distance: Mean cosine distance between the answers of two users to one prompt.
        distinct: Share of different pairs of words in the answers of many users to one prompt.
    """

    task: str
    size: int
    method: str
    kept: float
    worst_delta: float
    worst_epsilon: float
    mean_delta: float
    mean_epsilon: float
    unsteered: float
    unused: float
    perplexity: float
    distance: float
    distinct: float


def main() -> None:
    """Read what was measured; write the table and the figures."""
    arguments = common_arguments(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    rows: list[Row] = []
    served: dict[str, dict[str, Float64]] = {}
    notes = []
    for name in arguments.task:
        task = TASKS[name]
        evaluations = read_evaluations(evaluations_path(task, arguments))
        study = Study(task, evaluations, arguments.seed)
        rows += study.rows()
        served[task.title] = study.shares(SHOWN)
        path = arguments.output / "measured" / f"{name}.json"
        searches = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        notes.append(study.note(SHOWN) + spent(searches))
    write_csv(arguments.output / "portfolio.csv", Row, rows)
    text = markdown(rows, notes)
    with atomic_path(arguments.output / "portfolio.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    losses_by_size(rows, arguments.output / "figure2.png")
    who_serves_whom(served, arguments.output / "figure3.png")


class Study:
    """One task: its measured edits, and what each method keeps of them."""

    def __init__(self, task: Task, evaluations: Sequence[Evaluation], seed: int) -> None:
        self.task = task
        self.evaluations = evaluations
        self.measured = measured(evaluations, OBJECTIVE)
        self.seed = seed
        self.mixtures = random_weights(len(task.traits), MIXTURES, seed)
        values = self.measured.value(self.mixtures)
        self.best = values.max(1)
        # What each method keeps, by size, and the embeddings of answers: made when first asked for.
        self._kept: dict[int, dict[str, list[tuple[int, ...]]]] = {}
        self._embedded: dict[int, NDArray[np.float32]] = {}

    def methods(self, size: int) -> dict[str, list[tuple[int, ...]]]:
        """What each method keeps; several sets are averaged over."""
        if size not in self._kept:
            data, seed = self.measured, self.seed
            self._kept[size] = {
                "PALM": [prune_to_size(data, size)],
                "uniform": [uniform(data, size)],
                "random": [at_random(data, size, seed + i) for i in range(RANDOM_SEEDS)],
                "GPI": [gpi(data, size, seed)],
                "one edit for all": [one_for_all(data, seed)],
            }
        return self._kept[size]

    def rows(self) -> list[Row]:
        """Every method at every size, and composition."""
        found = [
            self.row(size, method, sets)
            for size in self.task.sizes
            for method, sets in self.methods(size).items()
        ]
        return [*found, self.composition()]

    def row(self, size: int, method: str, sets: Sequence[tuple[int, ...]]) -> Row:
        """Means over sets of kept edits."""
        numbers = np.array([self.figures(kept, size) for kept in sets]).mean(0).tolist()
        return Row(self.task.title, size, method, *numbers)

    def figures(self, kept: tuple[int, ...], size: int) -> list[float]:
        """The columns of a row from `kept` on."""
        data = self.measured
        shares, perplexity = usage(data, kept, self.mixtures)
        routed = route(data, kept, self.mixtures)
        lost = self.best - data.value(self.mixtures)[np.arange(len(routed)), routed]
        relative = np.where(self.best > 0, lost / np.maximum(self.best, 1e-12), 0)
        both = with_unsteered(data, kept)
        distance, distinct = self.diversity(routed) if size == SHOWN else (np.nan, np.nan)
        return [
            len(kept),
            worst_delta(data, both, 0.0).loss,
            worst_epsilon(data, both).loss,
            float(lost.mean()),
            float(relative.mean()),
            1 - float(shares.sum()),
            float((shares == 0).sum()),
            perplexity,
            distance,
            distinct,
        ]

    def composition(self) -> Row:
        """Each user's own weighted sum, at the mixtures at which it was measured."""
        place = {one.candidate: i for i, one in enumerate(self.evaluations)}
        own = [place[candidate] for candidate in composed(self.task)]
        weights = np.array([one.coefficients for one in composed(self.task)])
        weights /= weights.sum(1, keepdims=True)
        values = self.measured.value(weights)
        lost = values.max(1) - values[np.arange(len(own)), own]
        relative = lost / np.maximum(values.max(1), 1e-12)
        return Row(
            self.task.title,
            len(own),
            "composition",
            len(own),
            float(lost.max()),
            float(relative.max()),
            float(lost.mean()),
            float(relative.mean()),
            0.0,
            0.0,
            float(len(own)),
            *self.diversity(np.array(own)),
        )

    def diversity(self, served: NDArray[np.int64]) -> tuple[float, float]:
        """How much the answers of users differ, on average over the prompts."""
        users = np.random.default_rng(self.seed).choice(served, USERS).tolist()
        for index in set(users) - set(self._embedded):
            self._embedded[index] = embed(self.evaluations[index].texts)
        embedded = np.stack([self._embedded[index] for index in users], axis=1)  # (P, U, 384)
        similar = embedded @ embedded.transpose(0, 2, 1)  # (P, U, U)
        pairs = ~np.eye(USERS, dtype=bool)
        distinct = []
        for prompt in range(len(embedded)):
            bigrams: list[tuple[str, str]] = []
            for index in users:
                words = self.evaluations[index].texts[prompt].split()
                bigrams += zip(words, words[1:], strict=False)
            distinct.append(len(set(bigrams)) / max(1, len(bigrams)))
        return float(1 - similar[:, pairs].mean()), float(np.mean(distinct))

    def shares(self, size: int) -> dict[str, Float64]:
        """By method, the share of mixtures of the unsteered model and of each kept edit."""
        result = {}
        for method, sets in self.methods(size).items():
            shares, _ = usage(self.measured, sets[0], self.mixtures)
            result[method] = np.append(1 - shares.sum(), np.sort(shares)[::-1])
        return result

    def note(self, size: int) -> str:
        """The certificate at one size with its interval over prompts."""
        (kept,) = self.methods(size)["PALM"]
        over = certificate_intervals(self.evaluations, kept, OBJECTIVE, seed=self.seed)
        both = with_unsteered(self.measured, kept)
        delta = worst_delta(self.measured, both, 0.0).loss
        epsilon = worst_epsilon(self.measured, both).loss
        return (
            f"- {self.task.title}: {len(self.evaluations)} measured edits. Size {size}: delta = "
            f"{delta:.4f} at epsilon = 0 ({over.delta[0]:.4f} to {over.delta[1]:.4f} over prompts "
            f"drawn anew), epsilon = {epsilon:.4f} at delta = 0 ({over.epsilon[0]:.4f} to "
            f"{over.epsilon[1]:.4f})."
        )


def spent(content: dict[str, Any]) -> str:
    """What the searches of a task asked for, and with what, where `measure.py` is through."""
    if not content:
        return ""
    costs = content["cost"]
    weights = costs["weights of the cover"]
    wanted = content["task"]["closeness"]
    paper = len(grid(len(content["task"]["traits"]), Closeness(**wanted)))
    searches = f" A cover of {weights} weights; the paper's grid has {paper}." + "".join(
        f" The {kind} search: {costs[kind]['oracle calls']} oracle calls, "
        f"{costs[kind]['measured edits']} edits, {costs[kind]['generated tokens']} tokens."
        for kind in ("lazy", "full")
        if kind in costs
    )
    used = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"{searches} Model {content['model']}, seed {content['seed']}; {used}."


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table."""
    lines = [
        "Losses are relative to the measured edits, on the prompts that they were measured on. The",
        "intervals lie above what they are of: for prompts that are drawn anew, luck makes another",
        "edit the best somewhere. `python experiments/palm/portfolio.py`",
        "",
        *notes,
        "",
        "| task | size | method | worst δ | worst ε | mean δ | mean ε | unsteered | unused "
        "| perplexity | distance | distinct-2 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        outputs = "" if np.isnan(row.distance) else f"{row.distance:.3f}"
        distinct = "" if np.isnan(row.distinct) else f"{row.distinct:.3f}"
        lines.append(
            f"| {row.task} | {row.size} | {row.method} | {row.worst_delta:.4f} | "
            f"{row.worst_epsilon:.4f} | {row.mean_delta:.4f} | {row.mean_epsilon:.4f} | "
            f"{row.unsteered:.0%} | {row.unused:.1f} | {row.perplexity:.2f} | {outputs} | "
            f"{distinct} |"
        )
    return "\n".join(lines) + "\n"


def losses_by_size(rows: Sequence[Row], path: Path) -> None:
    """Figure 2: the four losses of every method by size, a row of panels a task."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    columns = ("worst_delta", "worst_epsilon", "mean_delta", "mean_epsilon")
    titles = ("worst δ at ε = 0", "worst ε at δ = 0", "mean δ", "mean ε")
    figure, places = panels(len(tasks), 4, 3.25, 2.9)
    for task, line in zip(tasks, places, strict=True):
        for axes, column, title in zip(line, columns, titles, strict=True):
            for method, colour in COLOURS.items():
                points = [r for r in rows if r.task == task and r.method == method]
                sizes = [r.size for r in points]
                values = [getattr(r, column) for r in points]
                wide = 2.4 if method == "PALM" else 1.3
                axes.plot(sizes, values, "o-", color=colour, label=method, lw=wide, ms=4)
            (plain,) = (r for r in rows if r.task == task and r.method == "composition")
            axes.axhline(
                getattr(plain, column), color="#5f6368", ls=":", lw=1.3, label=plain.method
            )
            axes.set_title(f"{task}\n{title}", fontsize=9)
            axes.set_xticks([r.size for r in rows if r.task == task and r.method == "PALM"])
            # Composition loses a thousand times what the best portfolios do; some lose nothing.
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_ylim(bottom=0)
    for axes in places[-1]:
        axes.set_xlabel("edits kept")
    handles, labels = places[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    save(figure, path)


def who_serves_whom(served: dict[str, dict[str, Float64]], path: Path) -> None:
    """Figure 3: shares of mixtures, a bar a method, the unsteered model in grey."""
    figure, places = panels(1, len(served), 4.1, 3.2)
    blues = ["#d5d8dc", "#08306b", "#2171b5", "#4f9bcb", "#86bcdc", "#b5d4e9", "#dceaf6", "#eef5fb"]
    for axes, (task, methods) in zip(places[0], served.items(), strict=True):
        for place, shares in enumerate(methods.values()):
            left = 0.0
            for share, colour in zip(shares, blues, strict=False):
                axes.barh(place, share, left=left, color=colour, edgecolor="white", lw=0.6)
                if share > 0.06:
                    dark = colour in ("#08306b", "#2171b5", "#4f9bcb")
                    axes.text(
                        left + share / 2,
                        place,
                        f"{share:.0%}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "#202124",
                    )
                left += share
        axes.set_yticks(range(len(methods)), list(methods))
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("share of mixtures; grey: the unsteered model")
    save(figure, path)


if __name__ == "__main__":
    main()
