"""Measure edits for the portfolio experiments: the search, lazy and full, and plain compositions.

    python experiments/palm/measure.py --task concise-helpful         # one, or several
    python experiments/palm/measure.py --data FOLDER                  # every task: hours

Edits are those of a bundle (--bundle; the default one). What is measured is kept line by line in
--work-dir, so a run that was stopped goes on; tasks may run side by side. For each task,
results/palm/measured/ gets a CSV and a picture of every measured edit and a JSON file of what the
searches cost. `portfolio.py` makes the tables and figures of them.

The lazy search runs first and pays for all that it measures. The full one searches at every
weight of the cover; where both propose an edit it is measured once and counted for both. A third,
for three traits, searches at evenly spread weights with another seed: what is best then rests on
no one search.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from figures import panels, save
from tasks import (
    OBJECTIVE,
    PROMPTS,
    SERVED,
    TASKS,
    Task,
    arguments_of,
    composed,
    effort,
    evaluations_path,
    evaluator,
)

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from tables import write_json  # noqa: E402

from steer.cover import minimal_cover, uniform_weights  # noqa: E402
from steer.evaluation import Evaluation  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.portfolio import OWN  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.resources import atomic_path  # noqa: E402
from steer.search import SearchResult, search  # noqa: E402
from steer.versions import versions  # noqa: E402


def main() -> None:
    """Measure the tasks that are asked for."""
    arguments = arguments_of(__doc__)
    model = loaded(arguments)
    for name in arguments.task:
        measure(model, TASKS[name], arguments)


def measure(model: LanguageModel, task: Task, arguments: argparse.Namespace) -> None:
    """Search, compose, and write what was found."""
    quick, seed = arguments.quick, arguments.seed
    prompts = [prompt.text for prompt in load_prompts("develop")[: 4 if quick else PROMPTS]]
    measures = evaluator(model, task, prompts, evaluations_path(task, arguments), arguments)
    cover = minimal_cover(len(task.traits), task.closeness, seed=seed)
    started = time.monotonic()
    costs: dict[str, Any] = {"weights of the cover": len(cover.weights)}
    spread = uniform_weights(len(task.traits), 2 * len(cover.weights) // 3)
    starts = {
        "lazy": (cover.weights, seed),
        "full": (cover.weights, seed),
        "spread": (spread, seed + 1),
    }
    for kind in task.searches:
        weights, start = starts[kind]
        found = search(
            measures,
            weights,
            OBJECTIVE,
            delta=SERVED,
            effort=effort(quick),
            lazy=kind == "lazy",
            seed=start,
        )
        costs[kind] = cost(found)
        print(f"{task.name}, {kind}: {costs[kind]}", flush=True)
    measures.evaluate(composed(task))
    content = {
        "command": "python experiments/palm/measure.py",
        "model": model.name,
        "fingerprint": str(model.fingerprint),
        "dtype": arguments.dtype,
        "edits": {
            name: edit.digest
            for name, edit in zip(task.traits, measures.families[OWN], strict=True)
        },
        "seed": seed,
        "quick": quick,
        "task": asdict(task),
        "prompts": len(prompts),
        "objective": asdict(OBJECTIVE),
        "served": SERVED,
        "effort": asdict(effort(quick)),
        "cost": costs,
        "measured edits": len(measures.evaluations),
        "versions": versions(),
    }
    write_json(arguments.output / "measured" / f"{task.name}.json", content)
    with (
        atomic_path(arguments.output / "measured" / f"{task.name}.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        rewarded = [f"reward {name}" for name in task.rewards]
        writer.writerow(["family", *task.traits, *rewarded, "kl", "fluent", "tokens"])
        for one in measures.evaluations:
            writer.writerow(
                [
                    one.candidate.family,
                    *one.candidate.coefficients,
                    *(f"{value:.5f}" for value in one.rewards.mean(0)),
                    f"{one.kl.mean():.5f}",
                    f"{one.fluent.mean():.4f}",
                    int(one.tokens.sum()),
                ]
            )
    draw(task, measures.evaluations, arguments.output / "measured" / f"{task.name}.png")
    print(f"{task.name}: {len(measures.evaluations)} edits, {time.monotonic() - started:.0f} s")


def draw(task: Task, evaluations: Sequence[Evaluation], path: Path) -> None:
    """Every measured edit: each reward by divergence, a panel a reward."""
    figure, places = panels(1, len(task.rewards), 3.2, 3)
    families = list(dict.fromkeys(one.candidate.family for one in evaluations))
    for column, (axes, name) in enumerate(zip(places[0], task.rewards, strict=True)):
        for family, colour in zip(families, ("#1f6fb2", "#e0872e"), strict=False):
            mine = [one for one in evaluations if one.candidate.family == family]
            kl, reward = [[one.kl.mean() for one in mine], [one.rewards.mean(0) for one in mine]]
            axes.scatter(kl, np.array(reward)[:, column], s=9, color=colour, label=family)
        unsteered = evaluations[0].rewards.mean(0)[column]
        axes.plot(0, unsteered, "*", color="#202124", markersize=11, label="unsteered")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("KL, nats per token")
    places[0, 0].set_ylabel("mean reward")
    handles, labels = places[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def cost(found: SearchResult) -> dict[str, int]:
    """What a search asked for."""
    return {
        "oracle calls": len(found.calls),
        "measured edits": len(found.evaluations),
        "generated tokens": found.tokens,
    }


if __name__ == "__main__":
    main()
