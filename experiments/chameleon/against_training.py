"""Equal wall time: a profile against training an adapter for each person (figure 4).

    python experiments/chameleon/against_training.py --data FOLDER           # hours; goes on
    python experiments/chameleon/against_training.py --data FOLDER --quick   # only shows it runs

For each report person the same history is given to

    profile           `Personalization`'s default, and one that begins with a group's (the group's
                      own time is not counted, as a server pays it once for everybody)
    DPO               LoRA by trl's DPOTrainer: what the person wrote is preferred to what the model
                      answers to the same prompt
    SFT, then DPO     the published loop of ALOE (arXiv 2410.03642): on what the person wrote first,
                      for half of the time, then on the preferences

Clocks run from the history to the use, the model's own answers included, and stand still while
questions are asked (persons.py, telling.py). A step that is under way when time is up is let
finish. Needs `make venv-chameleon`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from persona import ITEMS, add_group, from_groups, grouped, makers, plain
from persons import Person, Question, histories_of, questions, read_talk
from telling import BY_ROW, Arm, Row, ask, by_person, drawn, interval

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from palm.figures import panels, save  # noqa: E402
from precision import loaded  # noqa: E402
from runs import common_parser, last_line, parse, provenance  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.chat import render  # noqa: E402
from steer.edits import ZERO  # noqa: E402
from steer.generation import Decoding, generate_batch  # noqa: E402
from steer.history import HistoryItem  # noqa: E402
from steer.journal import Journal  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.resources import content_key  # noqa: E402

TIMES = (15, 30, 60, 120, 300)
# Of 3e-4 and 1e-3, by four develop people. After 30 and 90 s, in nats per token over the unsteered
# model (a profile: +0.62 after 19 s): DPO +0.03 and +0.24 at 3e-4, +0.26 and -0.03 at 1e-3; SFT and
# DPO after it +0.34 and +0.40 at 3e-4, +0.52 and -0.95 at 1e-3.
LEARNING_RATE = 3e-4
PROFILE, FROM_GROUP, DPO, ALOE = ARMS = ("profile", "profile from a group", "DPO", "SFT, then DPO")
COLOURS = dict(zip(ARMS, ("#1f6fb2", "#3a9d5d", "#e0872e", "#b23a48"), strict=True))


@dataclass(frozen=True)
class Point:
    """One measure of one way after some time.

    Attributes:
        arm: Which way.
        measure: Which measure.
        seconds: After which it is ready, or was stopped.
        value: The gain over the unsteered model, over people.
        low: Lower end of its interval.
        high: Upper end.
    """

    arm: str
    measure: str
    seconds: float
    value: float
    low: float
    high: float


def main() -> None:
    """Train, ask, write."""
    arguments = read_arguments()
    everybody = read_talk(arguments.data, seed=arguments.seed)
    people = getattr(everybody, arguments.split)[: arguments.people]
    asked = questions(people, arguments.questions, seed=arguments.seed)
    model = loaded(arguments)
    folder = Path(arguments.work_dir) / "training"
    histories = histories_of(people, ITEMS)
    none = ask(model, asked, Arm("unsteered", plain, [ZERO] * len(people)), folder, write=False)
    users, groups = makers(model, arguments)
    starts, _ = grouped(groups, everybody, people, arguments)
    found: dict[tuple[str, float], list[Row]] = {}
    for name, maker, profiles in (
        (PROFILE, users, users.each(histories)),
        (FROM_GROUP, from_groups(model, arguments), None),
    ):
        made = profiles if profiles is not None else maker.each(histories, starts)
        took = float(np.mean([float(one.statistics["seconds"]) for one in made]))
        arm = Arm(name, plain, maker.edits(made))
        found[name, took] = ask(model, asked, arm, folder, write=False)
    for name in (DPO, ALOE):
        rows = [
            trained(model, i, person, [q for q in asked if q.person == i], name, folder, arguments)
            for i, person in enumerate(people)
        ]
        for k, seconds in enumerate(arguments.times):
            found[name, seconds] = [row for by_time in rows for row in by_time[k]]
    write(found, none, model, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "chameleon")
    parser.add_argument("--data", type=Path, required=True, help="folder of the open data sets")
    parser.add_argument("--split", choices=("develop", "report"), default="report")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--questions", type=int, default=6, help="about each of them")
    add_group(parser)
    parser.add_argument("--times", type=float, nargs="+", default=list(TIMES))
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    arguments = parse(parser)
    if arguments.quick:
        arguments.people, arguments.questions, arguments.group_people = 4, 1, 2
        arguments.times = [2.0, 4.0]
    return arguments


def trained(
    model: LanguageModel,
    number: int,
    person: Person,
    asked: Sequence[Question],
    name: str,
    folder: Path,
    arguments: argparse.Namespace,
) -> list[list[Row]]:
    """The rows of a person after each of the times, with an adapter that is taken off again."""
    history = list(person.history[:ITEMS])
    header = {
        "arm": name,
        "person": number,
        "history": content_key([asdict(item) for item in history]),
        "asked": content_key([asdict(question) for question in asked]),
        "times": list(arguments.times),
        "learning rate": arguments.learning_rate,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "model": model.fingerprint.to_dict(),
        "dtype": model.precision,
    }
    journal = Journal(folder / f"{content_key(header)}.jsonl", header)
    if not journal.rows:
        journal.append([{"rows": rows} for rows in _train(model, history, asked, name, arguments)])
        journal = Journal(journal.path, header)
    return [[Row(**row) for row in one["rows"]] for one in journal.rows]


def _train(
    model: LanguageModel,
    history: Sequence[HistoryItem],
    asked: Sequence[Question],
    name: str,
    arguments: argparse.Namespace,
) -> list[list[dict[str, Any]]]:
    """Rows at each time."""
    # Imported late: they take seconds, and are needed for figure 4 alone.
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    disable_progress_bars()
    clock = _Clock()
    texts = [render(model.tokenizer, item.prompt or "") for item in history]
    own = [
        one.text
        for one in generate_batch(model, texts, Decoding(max_new_tokens=48), seed=arguments.seed)
    ]

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": said("user", item.prompt or ""),
            "chosen": said("assistant", item.text),
            "rejected": said("assistant", answer or "."),
        }
        for item, answer in zip(history, own, strict=True)
    ]
    noted: list[list[dict[str, Any]]] = []

    def note() -> None:
        """Ask, with the clock standing still."""
        with clock.still(), tempfile.TemporaryDirectory() as place:
            arm = Arm(name, plain, [ZERO] * (1 + max(one.person for one in asked)))
            found = ask(model, asked, arm, Path(place), write=False)
            noted.append([asdict(row) for row in found])

    class Until(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        """Asks when it is time, and ends the training at its end."""

        def __init__(self, end: float) -> None:
            self.end = end

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            while (
                len(noted) < len(arguments.times) and clock.seconds >= arguments.times[len(noted)]
            ):
                training = model.model.training
                model.model.eval()
                note()
                model.model.train(training)
            control.should_training_stop = clock.seconds >= self.end
            return control

    last = max(arguments.times)
    adapter: Any = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as place:
        common: dict[str, Any] = {
            "output_dir": place,
            "per_device_train_batch_size": 4,
            "learning_rate": arguments.learning_rate,
            "lr_scheduler_type": "constant",
            "max_steps": 100_000,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": model.device.type == "cpu",
            "dataloader_pin_memory": False,
            "seed": arguments.seed,
        }
        base: Any = model.model
        if name == ALOE:
            trainer: Any = SFTTrainer(
                base,
                args=SFTConfig(**common),
                train_dataset=Dataset.from_list(
                    [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
                ),
                processing_class=model.tokenizer,
                peft_config=adapter,
                callbacks=[Until(last / 2)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            base, adapter = trainer.model, None
        trainer = DPOTrainer(
            base,
            args=DPOConfig(**common),
            train_dataset=Dataset.from_list(rows),
            processing_class=model.tokenizer,
            peft_config=adapter,
            callbacks=[Until(last)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.model.unload()
    model.model.eval()
    return noted


class _Clock:
    """Seconds since it was made, without those in which it stood still."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._since = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    def still(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *of: object) -> None:
        self._begin += time.perf_counter() - self._since


def write(
    found: dict[tuple[str, float], list[Row]],
    none: Sequence[Row],
    model: LanguageModel,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON, CSV, Markdown and the figure."""
    points = []
    for (arm, seconds), rows in found.items():
        for measure in BY_ROW:
            gains = by_person(rows, measure) - by_person(none, measure)
            spread = interval(drawn(gains, arguments.seed))
            points.append(Point(arm, measure, seconds, float(gains.mean()), *spread))
    content = {
        **provenance("experiments/chameleon/against_training.py", model, arguments),
        "split": arguments.split,
        "people": len({row.person for row in none}),
        "questions": len(none),
        "learning rate": arguments.learning_rate,
        "points": [asdict(point) for point in points],
    }
    write_json(arguments.output / "figure4.json", content)
    write_csv(arguments.output / "figure4.csv", Point, points)
    write_markdown(arguments.output / "figure4.md", markdown(content, points))
    draw(points, arguments.output / "figure4.png")


def markdown(content: dict[str, Any], points: Sequence[Point]) -> str:
    """The table as Markdown."""
    lines = [
        f"Gain over the unsteered model by time. {content['people']} {content['split']} people, "
        f"{content['questions']} questions. {content['model']}, {content['dtype']}, seed "
        f"{content['seed']}, {content['threads']} thread. In brackets: 95%, bootstrap over people.",
        "",
        "| | seconds | " + " | ".join(BY_ROW) + " |",
        "|---" * (len(BY_ROW) + 2) + "|",
    ]
    for first in range(0, len(points), len(BY_ROW)):
        row = points[first : first + len(BY_ROW)]
        shown = " | ".join(f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for one in row)
        lines.append(f"| {row[0].arm} | {row[0].seconds:.0f} | {shown} |")
    lines += ["", last_line(content)]
    return "\n".join(lines) + "\n"


def draw(points: Sequence[Point], path: Path) -> None:
    """A measure in each panel, by seconds."""
    figure, axes = panels(1, len(BY_ROW), 3.9, 3.2)
    last = max(point.seconds for point in points)
    for axis, measure in zip(axes[0], BY_ROW, strict=True):
        for arm in ARMS:
            mine = [one for one in points if one.arm == arm and one.measure == measure]
            # A profile that is ready stays as it is.
            x = [one.seconds for one in mine] + ([last] if len(mine) == 1 else [])
            y, low, high = (
                [getattr(one, key) for one in mine] * (2 if len(mine) == 1 else 1)
                for key in ("value", "low", "high")
            )
            axis.fill_between(x, low, high, color=COLOURS[arm], alpha=0.15, lw=0)
            axis.plot(x, y, "o-", ms=4, color=COLOURS[arm], label=arm)
        axis.axhline(0, color="#9aa0a6", ls="--", lw=1)
        axis.set_xscale("log")
        axis.set_xticks(list(TIMES), [str(one) for one in TIMES])
        axis.minorticks_off()
        axis.set_xlabel("seconds")
        axis.set_ylabel(f"gain in {measure}")
    axes[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
