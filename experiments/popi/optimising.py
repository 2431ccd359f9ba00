"""Does training make summaries better, and a generator better at them? (POPI, arXiv 2510.17881)

    python experiments/popi/optimising.py                    # small, on a CPU: an hour of a core
    python experiments/popi/optimising.py --model ID --people 64 --steps 200 --rounds 2   # a GPU
    python experiments/popi/optimising.py --quick            # only shows that it runs

The inference model writes a summary of a person's choices, the generator is told it (people_of.py,
steer/summaries.py). Training people choose on develop prompts, test people on report prompts. In
each round

    rejection    of the summaries sampled for each training person, LoRA learns the best by loss
    GRPO         from there on, with minus the loss as the reward (trl)
    DPO          LoRA of the generator on the training people's pairs, told the new summaries. As
                 trl has it the reference is told them too; POPI's is not

and after each of them greedy summaries for the test people are judged: POPI's loss and reward
accuracy on further pairs. Needs `make venv-chameleon`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inferring import JUDGED
from people_of import Person, add_people, simulated
from tqdm import tqdm

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import common_parser, last_line, parse, provenance, set_apart  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.baselines.prompting import said  # noqa: E402
from steer.bundle import Bundle  # noqa: E402
from steer.chat import render  # noqa: E402
from steer.history import HistoryItem  # noqa: E402
from steer.models import LanguageModel, load_model, wrap_model  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.summaries import (  # noqa: E402
    first_sentence,
    fitting,
    loss,
    margins,
    wordings,
    written,
)

CONTEXT = 768  # tokens of a request
LENGTH = 32  # of a summary


@dataclass(frozen=True)
class Line:
    """What test people's summaries are worth after a stage.

    Attributes:
        stage: Which.
        loss: POPI's, mean over people, nats.
        low: Lower end of its interval.
        high: Upper end.
        accuracy: Share of further pairs that are ordered right.
        accuracy_low: Lower end of its interval.
        accuracy_high: Upper end.
        example: The first person's summary.
    """

    stage: str
    loss: float
    low: float
    high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    example: str


def main() -> None:
    """Train, judge, write."""
    arguments = read_arguments()
    reference = generator = loaded(arguments)
    steerer = Steerer(reference, Bundle.load(arguments.bundle))
    training = simulated(steerer, "develop", arguments)
    test = simulated(steerer, "report", arguments)
    # Copies in the precision that trains well.
    writer, learner = load_model(arguments.model), load_model(arguments.model)

    def judge(stage: str) -> Line:
        return judged(stage, writer, generator, reference, test, arguments.seed)

    lines = [judge("untrained")]
    for number in range(1, arguments.rounds + 1):
        writer = rejection(writer, generator, training, arguments)
        lines.append(judge(f"rejection, round {number}"))
        writer = grpo(writer, generator, training, arguments)
        lines.append(judge(f"GRPO, round {number}"))
        generator = learner = dpo(writer, learner, training, arguments)
        lines.append(judge(f"DPO, round {number}"))
    write(lines, steerer.language_model, len(training), len(test), arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "popi")
    add_people(parser)
    parser.add_argument("--number", type=int, default=8, help="summaries of which one is learnt")
    parser.add_argument("--steps", type=int, default=12, help="of each stage")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parse(parser)
    set_apart(arguments)
    if arguments.quick:
        arguments.people, arguments.items, arguments.questions = 2, 2, 2
        arguments.prompts, arguments.tokens, arguments.number, arguments.steps = 2, 16, 2, 1
    return arguments


def requests_of(writer: LanguageModel, everybody: Sequence[Person]) -> list[str]:
    """What the inference model is asked of each person."""
    return [fitting(writer, person.history, CONTEXT)[0] for person in everybody]


def judged(
    stage: str,
    writer: LanguageModel,
    generator: LanguageModel,
    reference: LanguageModel,
    everybody: Sequence[Person],
    seed: int,
) -> Line:
    """Greedy summaries of people, on their further pairs."""
    losses, right, texts = [], [], []
    requests = requests_of(writer, everybody)
    for person, asked in tqdm(
        list(zip(everybody, requests, strict=True)), desc=stage, disable=None
    ):
        texts += written(writer, asked, 1, LENGTH, seed)
        found = margins(generator, texts[-1:], person.test, judged=JUDGED, reference=reference)[0]
        losses.append(float(loss(found)))
        right.append(float((found > 0).mean()))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(losses), size=(2000, len(losses)))
    spread = [
        np.quantile(np.array(values)[drawn].mean(1), [0.025, 0.975]).tolist()
        for values in (losses, right)
    ]
    return Line(
        stage, float(np.mean(losses)), *spread[0], float(np.mean(right)), *spread[1], texts[0]
    )


def rejection(
    writer: LanguageModel,
    generator: LanguageModel,
    everybody: Sequence[Person],
    arguments: argparse.Namespace,
) -> LanguageModel:
    """LoRA on the best of several summaries of each person."""
    from trl import SFTConfig, SFTTrainer

    rows = []
    for person, asked in zip(everybody, requests_of(writer, everybody), strict=True):
        texts = written(writer, asked, arguments.number, LENGTH, arguments.seed)
        losses = loss(margins(generator, texts, person.history, judged=JUDGED))
        best = texts[int(np.argmin(losses))].removeprefix(wordings()["begin"])
        rows.append({"prompt": asked, "completion": f"{best}{writer.tokenizer.eos_token}"})
    return _trained(SFTTrainer, SFTConfig, writer, rows, arguments, {}, {})


def grpo(
    writer: LanguageModel,
    generator: LanguageModel,
    everybody: Sequence[Person],
    arguments: argparse.Namespace,
) -> LanguageModel:
    """Group-relative policy optimisation, with minus the loss as the reward."""
    from trl import GRPOConfig, GRPOTrainer

    requests = requests_of(writer, everybody)
    rows = [{"prompt": asked, "person": number} for number, asked in enumerate(requests)]

    def reward(completions: Sequence[str], person: Sequence[int], **_: Any) -> list[float]:
        # trl gives whatever columns and state it has; only the person is needed.
        begin = wordings()["begin"]
        texts = [f"{begin} {first_sentence(one)}" for one in completions]
        return [
            -float(loss(margins(generator, [text], everybody[i].history, judged=JUDGED)[0]))
            for text, i in zip(texts, person, strict=True)
        ]

    generations = 2 if arguments.quick else 4
    more = {
        "num_generations": generations,
        "max_completion_length": LENGTH,
        "beta": 0.02,
        "per_device_train_batch_size": generations,
    }
    return _trained(
        GRPOTrainer, GRPOConfig, writer, rows, arguments, more, {"reward_funcs": reward}
    )


def dpo(
    writer: LanguageModel,
    generator: LanguageModel,
    everybody: Sequence[Person],
    arguments: argparse.Namespace,
) -> LanguageModel:
    """LoRA of the generator on what people chose, told their summaries."""
    from trl import DPOConfig, DPOTrainer

    rows = []
    for person, asked in zip(everybody, requests_of(writer, everybody), strict=True):
        summary = written(writer, asked, 1, LENGTH, arguments.seed)[0]
        rows += [_preference(generator, summary, item) for item in person.history]
    return _trained(DPOTrainer, DPOConfig, generator, rows, arguments, {"beta": 0.1}, {})


def _preference(generator: LanguageModel, summary: str, item: HistoryItem) -> dict[str, str]:
    told = said(summary, item.prompt or "", "user")
    end = generator.tokenizer.eos_token
    return {
        "prompt": render(generator.tokenizer, told),
        "chosen": f"{item.text}{end}",
        "rejected": f"{item.disliked}{end}",
    }


def _trained(
    trainer: Any,
    config: Any,
    model: LanguageModel,
    rows: Sequence[dict[str, Any]],
    arguments: argparse.Namespace,
    more: dict[str, Any],
    given: dict[str, Any],
) -> LanguageModel:
    """The model after some steps of a trainer of trl, its adapter merged."""
    # Imported late: they take seconds.
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback

    disable_progress_bars()
    adapter = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as place:
        settings: dict[str, Any] = {
            "output_dir": place,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "max_steps": arguments.steps,
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
        made = trainer(
            model=model.model,
            args=config(**{**settings, **more}),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=model.tokenizer,
            peft_config=adapter,
            **given,
        )
        made.remove_callback(PrinterCallback)
        made.train()
        merged = made.model.merge_and_unload().eval()
    return wrap_model(merged, model.tokenizer, name=model.name)


def write(
    lines: Sequence[Line],
    model: LanguageModel,
    training: int,
    test: int,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON, CSV and Markdown."""
    content = {
        **provenance("experiments/popi/optimising.py", model, arguments),
        "training people": training,
        "test people": test,
        "steps": arguments.steps,
        "lines": [asdict(one) for one in lines],
    }
    write_json(arguments.output / "optimising.json", content)
    write_csv(arguments.output / "optimising.csv", Line, lines)
    rows = [
        f"{training} training people on develop prompts, {test} test people on report prompts, "
        f"{arguments.items} choices each, {arguments.steps} steps a stage. {content['model']}, "
        f"{content['dtype']}, seed {content['seed']}. In brackets: 95%, bootstrap over people.",
        "",
        "| after | loss, nats (lower is better) | reward accuracy | the first person's summary |",
        "|---" * 4 + "|",
    ]
    rows += [
        f"| {one.stage} | {one.loss:.2f} ({one.low:.2f} to {one.high:.2f}) | {one.accuracy:.3f} "
        f"({one.accuracy_low:.3f} to {one.accuracy_high:.3f}) | {one.example} |"
        for one in lines
    ]
    rows += ["", last_line(content)]
    write_markdown(arguments.output / "optimising.md", "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
