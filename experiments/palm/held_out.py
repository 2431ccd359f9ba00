"""Portfolios of five on the report prompts, which took no part in anything before.

    python experiments/palm/held_out.py --data FOLDER      # after measure.py; an hour a task

The kept edits, and every edit that was best for some mixture on the develop prompts, answer the
report prompts. Regret is what routing to the kept ones loses there against the edit that was best
on the develop prompts. Beside the rewards that were searched with stands a measure that took no
part: the unedited model's log-ratio between a trait's instructions. Written are held_out.md,
held_out.png and, for each task, held_out/TASK.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import panels, save
from tasks import OBJECTIVE, TASKS, Task, arguments_of, evaluations_path, evaluator

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from tables import write_json, write_markdown  # noqa: E402

from steer.certificate import Measured  # noqa: E402
from steer.cover import random_weights  # noqa: E402
from steer.evaluation import Evaluation, measured, read_evaluations  # noqa: E402
from steer.likelihood import log_ratio  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.prune import prune_to_size  # noqa: E402
from steer.resources import atomic_path  # noqa: E402
from steer.route import route  # noqa: E402
from steer.traits import load_traits  # noqa: E402
from steer.uncertainty import Regret, held_out_regret  # noqa: E402
from steer.versions import versions  # noqa: E402

SIZE = 5
MIXTURES = 1000
JUDGED = 50  # answers of an entry that the model gives its opinion of


def main() -> None:
    """Measure the tasks that are asked for; write the tables."""
    arguments = arguments_of(__doc__)
    model = loaded(arguments)
    for name in arguments.task:
        study(model, TASKS[name], arguments)
    paths = [arguments.output / "held_out" / f"{name}.json" for name in TASKS]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    lines = ["Portfolios of five on report prompts, routed by what develop prompts showed.", ""]
    for content in found:
        lines += [content["text"], ""]
    draw(found, arguments.output / "held_out.png")
    write_markdown(arguments.output / "held_out.md", "\n".join(lines))


def study(model: LanguageModel, task: Task, arguments: argparse.Namespace) -> None:
    """One task."""
    seed = arguments.seed
    everything = read_evaluations(evaluations_path(task, arguments))
    whole = measured(everything, OBJECTIVE)
    kept = prune_to_size(whole, SIZE)
    mixtures = random_weights(len(task.traits), MIXTURES, seed)
    winners = np.unique(whole.value(mixtures).argmax(1)).tolist()
    chosen = sorted({0, *kept, *winners})
    prompts = [prompt.text for prompt in load_prompts("report")[: 6 if arguments.quick else None]]
    path = evaluations_path(task, arguments, "report-")
    measures = evaluator(model, task, prompts, path, arguments)
    found = measures.evaluate([everything[index].candidate for index in chosen])
    ours = tuple(chosen.index(index) for index in kept)
    part = Measured(whole.utilities[chosen], whole.regulariser[chosen])
    regret = held_out_regret(part, found, ours, OBJECTIVE, mixtures, seed=seed)
    # What the unsteered model alone loses against the portfolio.
    entry_rows = [0, *ours]
    gain = held_out_regret(
        Measured(part.utilities[entry_rows], part.regulariser[entry_rows]),
        [found[place] for place in entry_rows],
        (),
        OBJECTIVE,
        mixtures,
        seed=seed,
    )
    served = route(part, ours, mixtures)
    entries = [
        {
            "entry": number,
            "family": found[place].candidate.family,
            **dict(zip(task.traits, found[place].candidate.coefficients, strict=True)),
            "serves": float((served == place).mean()),
            **{
                f"reward {name}": float(value)
                for name, value in zip(task.rewards, found[place].rewards.mean(0), strict=True)
            },
            **{
                f"develop {name}": float(value)
                for name, value in zip(
                    task.rewards, everything[chosen[place]].rewards.mean(0), strict=True
                )
            },
            "kl": float(found[place].kl.mean()),
            "fluent": float(found[place].fluent.mean()),
            "tokens": float(found[place].tokens.mean()),
            **opinions(model, task, prompts, found[place]),
        }
        for number, place in enumerate(entry_rows)
    ]
    content = {
        "command": "python experiments/palm/held_out.py --data FOLDER",
        "task": task.title,
        "model": model.name,
        "fingerprint": str(model.fingerprint),
        "dtype": arguments.dtype,
        "seed": seed,
        "prompts": len(prompts),
        "mixtures": MIXTURES,
        "rivals": len(chosen) - len(ours) - 1,
        "regret": {"mean": regret.mean, "interval": regret.interval, "worst": regret.worst},
        "gain": {"mean": gain.mean, "interval": gain.interval, "most": gain.worst},
        "entries": entries,
        "versions": versions(),
        "text": text(task, regret, gain, entries, len(prompts), len(chosen)),
    }
    folder = arguments.output / "held_out"
    write_json(folder / f"{task.name}.json", content)
    with (
        atomic_path(folder / f"{task.name}.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Rewards on report prompts by those on develop prompts, a panel a task."""
    figure, places = panels(1, len(found), 3.4, 3.6)
    for axes, content in zip(places[0], found, strict=True):
        for name in (key[7:] for key in content["entries"][0] if key.startswith("reward ")):
            pairs = [(row[f"develop {name}"], row[f"reward {name}"]) for row in content["entries"]]
            axes.scatter(*zip(*pairs, strict=True), s=22, label=name)
        axes.axline((0, 0), slope=1, color="#9aa0a6", lw=1, zorder=0)
        axes.set_title(
            f"{content['task']}\nmean regret {content['regret']['mean']:.4f}", fontsize=9
        )
        axes.set_xlabel("mean reward, develop prompts")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(fontsize=7, frameon=False)
    places[0, 0].set_ylabel("mean reward, report prompts")
    save(figure, path)


def opinions(
    model: LanguageModel, task: Task, prompts: list[str], one: Evaluation
) -> dict[str, float]:
    """The unedited model's log-ratio of each trait, nats per token."""
    known = load_traits()
    return {
        f"log-ratio {name}": float(
            log_ratio(
                model, known[name], prompts[:JUDGED], one.texts[:JUDGED], max_tokens=64
            ).mean()
        )
        for name in task.traits
    }


def text(
    task: Task,
    regret: Regret,
    gain: Regret,
    entries: list[dict[str, Any]],
    prompts: int,
    candidates: int,
) -> str:
    """A task's table."""
    columns = [
        "entry",
        "serves",
        *(f"reward {name}" for name in task.rewards),
        "kl",
        "fluent",
        *(f"log-ratio {name}" for name in task.traits),
    ]

    def within(found: Regret) -> str:
        low, high = found.interval
        return f"{found.mean:.4f} ({low:.4f} to {high:.4f})"

    return "\n".join(
        [
            f"**{task.title}**: {prompts} prompts, {candidates} edits compared. Mean regret "
            f"{within(regret)}, worst mixture {regret.worst:.4f}. Mean gain over the unsteered "
            f"model {within(gain)}, most {gain.worst:.4f}.",
            "",
            "| " + " | ".join(columns) + " |",
            "|" + "---|" * len(columns),
            *(
                "| "
                + " | ".join(
                    str(row[name]) if name == "entry" else f"{row[name]:.3f}" for name in columns
                )
                + " |"
                for row in entries
            ),
        ]
    )


if __name__ == "__main__":
    main()
