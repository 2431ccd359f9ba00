"""Measure edits for the portfolio experiments: the search, lazy and full, and plain compositions.

    python experiments/palm/measure.py --task concise-helpful         # one, or several
    python experiments/palm/measure.py --data FOLDER                  # every task: hours

Edits come from a build (`steer build`), whose work folder is gone on from: --build-dir. What is
measured is kept line by line in --work-dir, so a run that was stopped goes on; tasks may run side
by side. For each task, results/palm/measured/ gets a CSV of every measured edit and a JSON file of
what the searches cost. `portfolio.py` makes the tables and figures of them.

The lazy search runs first and pays for all that it measures. The full one searches at every
weight of the cover; where both propose an edit it is measured once and counted for both.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tasks import (
    OBJECTIVE,
    PROMPTS,
    RESULTS,
    SERVED,
    TASKS,
    Task,
    composed,
    effort,
    evaluator,
    recipe,
)

import steer
from steer.cover import minimal_cover
from steer.models import LanguageModel
from steer.pipeline import search_space
from steer.resources import atomic_path, cache_dir
from steer.search import SearchResult, search
from steer.versions import versions


def main() -> None:
    """Measure the tasks that are asked for."""
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    torch.set_num_threads(arguments.threads)
    model = steer.load_model(arguments.model)
    for name in arguments.task or TASKS:
        measure(model, TASKS[name], arguments)


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What every script that runs the model is told."""
    parser.add_argument("--task", choices=list(TASKS), action="append", help="default: all")
    parser.add_argument("--model", default=None, help="local folder or hub id")
    parser.add_argument("--data", type=Path, help="people's preferences, for safety")
    parser.add_argument("--build-dir", type=Path, help="work folder of a build; default: its own")
    parser.add_argument("--work-dir", type=Path, default=cache_dir() / "palm")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def measure(model: LanguageModel, task: Task, arguments: argparse.Namespace) -> None:
    """Search, compose, and write what was found."""
    quick, seed = arguments.quick, arguments.seed
    space = search_space(
        model, task.traits, recipe=recipe(quick), work_dir=arguments.build_dir, progress=True
    )
    prompts = space.prompts[: 4 if quick else PROMPTS]
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.work_dir / f"{task.name}-{seed}{'-quick' if quick else ''}.jsonl"
    measures = evaluator(model, task, space, prompts, path, data=arguments.data, quick=quick)
    cover = minimal_cover(len(task.traits), task.closeness, seed=seed)
    started = time.monotonic()
    costs: dict[str, Any] = {"weights of the cover": len(cover.weights)}
    for kind in ("lazy", "full") if task.full else ("lazy",):
        found = search(
            measures,
            cover.weights,
            OBJECTIVE,
            delta=SERVED,
            effort=effort(quick),
            lazy=kind == "lazy",
            seed=seed,
        )
        costs[kind] = cost(found)
        print(f"{task.name}, {kind}: {costs[kind]}", flush=True)
    measures.evaluate(composed(task))
    content = {
        "command": "python experiments/palm/measure.py",
        "model": model.name,
        "fingerprint": str(model.fingerprint),
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
    with atomic_path(arguments.output / "measured" / f"{task.name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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
    print(f"{task.name}: {len(measures.evaluations)} edits, {time.monotonic() - started:.0f} s")


def cost(found: SearchResult) -> dict[str, int]:
    """What a search asked for."""
    return {
        "oracle calls": len(found.calls),
        "measured edits": len(found.evaluations),
        "generated tokens": found.tokens,
    }


if __name__ == "__main__":
    main()
