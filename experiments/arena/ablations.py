"""Ideas for better edits, each on its own against the plain mean difference, at one dose.

    python experiments/arena/ablations.py --data FOLDER            # a quarter of an hour a trait
    python experiments/arena/ablations.py --data FOLDER --quick    # minutes: shows that it runs

FOLDER holds what people prefer (people.py) and `wikitext2/valid.txt`. The base is the mean
difference over the response's tokens, at the middle layers, added to every token of the answer.
Each variant changes one thing (variants.py, rules.py). All have the same divergence from the
unedited model on its own answers, and answer the same develop prompts, which took no part in
arena.py's search. Gains are by both measures of a trait (reads.py). What a variant does to plain
text is the ratio of WikiText-2's perplexities, per token, edited on every token.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from answering import UNSTEERED, Edited, Setting, answer_all
from contenders import Workshop, dose_factors
from judging import coherence, draws, gain, values
from reads import PAIRS, READS, People
from rules import ruled
from running import add_build_dir, common_parser, parsed, store_of, workshop_of
from variants import Variant, variants

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from palm.figures import panels, save  # noqa: E402
from precision import loaded  # noqa: E402
from runs import earlier  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.batches import Sequences  # noqa: E402
from steer.dose import reference_meter  # noqa: E402
from steer.edits import ZERO, Edit  # noqa: E402
from steer.generation import Decoding  # noqa: E402
from steer.hooks import Scope, attach  # noqa: E402
from steer.likelihood import KLMeter, mean_log_likelihood  # noqa: E402
from steer.models import LanguageModel  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.versions import versions  # noqa: E402

CHUNK, CHUNKS, APART = 256, 16, 4  # tokens of a piece of WikiText, pieces, every so many


@dataclass(frozen=True)
class Row:
    """What one variant does for one trait.

    Attributes:
        trait: The trait.
        variant: What is changed.
        dose: Divergence, nats per token.
        search: Gain by the search measure, share of the headroom.
        search_low: Lower end of its interval.
        search_high: Upper end.
        report: Gain by the other measure.
        report_low: Lower end.
        report_high: Upper end.
        incoherent: Share of answers that loop or are broken.
        relevant: Share about their prompt.
        log_likelihood: Under the unedited model, nats per token.
        perplexity: Of plain text, edited over unedited.
    """

    trait: str
    variant: str
    dose: float
    search: float
    search_low: float
    search_high: float
    report: float
    report_low: float
    report_high: float
    incoherent: float
    relevant: float
    log_likelihood: float
    perplexity: float


def main() -> None:
    """Make all variants, answer, and write the table."""
    arguments = read_arguments()
    quick, seed = arguments.quick, arguments.seed
    model = loaded(arguments)
    workshop = workshop_of(model, arguments)
    people = People(arguments.data, seed, arguments.work_dir, 100 if quick else PAIRS)
    reads = {trait: READS[trait](model, people) for trait in arguments.traits}
    number, tokens = (4, 24) if quick else (16, 96)
    prompts = [prompt.text for prompt in load_prompts("develop")][10 : 10 + number]
    decoding = Decoding(max_new_tokens=tokens)
    plain = plain_text(model, arguments.data, 2 if quick else CHUNKS)
    usual = text_likelihood(model, ZERO, "response", plain)
    drawn = draws(number, seed)
    meters = [reference_meter(model, [prompt]) for prompt in prompts]
    sources = {trait: workshop.source(trait) for trait in arguments.traits}
    content = {
        "command": command("experiments/arena/ablations.py"),
        "model": model.name,
        "fingerprint": str(model.fingerprint),
        "dtype": arguments.dtype,
        "seed": seed,
        "dose": arguments.dose,
        "versions": versions(),
        "prompts": number,
        "decoding": asdict(decoding),
    }
    rows: list[Row] = []
    told: dict[str, Any] = {}
    if arguments.add:
        before_this = earlier(arguments.output / "ablations.json", content)
        rows = [Row(**row) for row in before_this["rows"]]
        told = before_this["measures"]
    for trait, source in sources.items():
        rows = [row for row in rows if row.trait != trait]
        path = arguments.work_dir / "ablations" / f"{trait}.jsonl"
        store = store_of(path, model, prompts, decoding)
        (unsteered,) = answer_all(model, [UNSTEERED], prompts, decoding, store)
        measures = (reads[trait].search, reads[trait].report)
        before = [values(reward, prompts, unsteered.texts) for reward in measures]
        for name, make in variants(sources, quick).items():
            variant = make(workshop, source)
            with ruled(model, list(variant.edit.layers), variant.rule):
                how = dosed(workshop, name, variant, meters, arguments.dose)
                if how is None:
                    print(f"{trait}, {name}: does not reach {arguments.dose:g} nats")
                    continue
                setting = Setting(trait, name, name, how)
                (answers,) = answer_all(model, [setting], prompts, decoding, store)
                loss = usual - text_likelihood(model, mean_edit(how), how.scope, plain)
            whole = coherence(prompts, answers.texts, answers.log_likelihood)
            gains = []
            for reward, usually in zip(measures, before, strict=True):
                one = gain(values(reward, prompts, answers.texts), usually, drawn)
                gains += [one.value, *one.interval]
            rows.append(
                Row(
                    trait,
                    name,
                    arguments.dose,
                    *gains,
                    whole.incoherent,
                    whole.relevant,
                    whole.log_likelihood,
                    float(np.exp(loss)),
                )
            )
        told[trait] = {"search": measures[0].name, "report": measures[1].name}
        more = {"measures": told, "rows": [asdict(row) for row in rows]}
        write(arguments.output, {**content, **more}, rows)


def read_arguments() -> argparse.Namespace:
    """What the script is told."""
    # What arena.py has distilled serves here too.
    parser = common_parser(__doc__, "peers")
    add_build_dir(parser)
    parser.add_argument("--traits", nargs="+", choices=list(READS), default=None)
    parser.add_argument("--add", action="store_true", help="keep the traits that are written")
    parser.add_argument("--dose", type=float, default=0.2, help="nats per token")
    arguments = parsed(parser)
    if arguments.traits is None:
        arguments.traits = ["formality"] if arguments.quick else list(READS)
    return arguments


def dosed(
    workshop: Workshop, name: str, variant: Variant, meters: Sequence[KLMeter], dose: float
) -> Edited | None:
    """A variant at a dose; None if it does not reach it.

    Args:
        workshop: Finds the dose.
        name: The variant's.
        variant: The variant.
        meters: One a prompt, on its answer.
        dose: Nats per token.
    """
    edit, scope = variant.edit, variant.scope
    factor = workshop.factors(edit, scope, [dose], name if variant.rule else "").get(dose)
    if factor is None:
        return None

    def own(meter: KLMeter) -> float:
        found = dose_factors(lambda f: meter.kl(f * edit), [dose])
        # Where one does not reach it, the dose of all.
        return found.get(dose, factor) / factor

    each = tuple(map(own, meters)) if variant.each_prompt else ()
    return Edited(factor * edit, scope, each)


def mean_edit(how: Edited) -> Edit:
    """What acts on a text that is none of the prompts."""
    return float(np.mean(how.factors or 1.0)) * how.edit


def plain_text(model: LanguageModel, data: Path, chunks: int) -> Sequences:
    """Pieces of WikiText-2, each after the token that begins a text."""
    text = (data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    step = CHUNK * APART
    # Enough letters for all pieces: no token of running English has ten.
    ids = model.tokenizer(text[: 10 * step * chunks], verbose=False).input_ids
    start = model.tokenizer.bos_token_id
    pieces = [ids[i * step : i * step + CHUNK] for i in range(chunks)]
    return [([start], p) if start is not None else (p[:1], p[1:]) for p in pieces]


def text_likelihood(model: LanguageModel, edit: Edit, scope: Scope, sequences: Sequences) -> float:
    """Mean log-likelihood of the tokens of pieces of one length under an edit, in nats."""
    # One column is the prompt in all of them: the token that begins a text.
    with attach(model).steer(edit, scope=scope, prompt_length=1):
        return float(mean_log_likelihood(model, sequences, batch_tokens=2048).mean())


def write(output: Path, content: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write the tables and the picture, and print the table."""
    write_json(output / "ablations.json", content)
    write_csv(output / "ablations.csv", Row, rows)
    text = markdown(content, rows)
    write_markdown(output / "ablations.md", text)
    draw(rows, output / "ablations.png")


def markdown(content: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The table as Markdown: a line a variant, gains by trait, means over traits."""
    traits = list(dict.fromkeys(row.trait for row in rows))
    lines = [
        f"{content['model']}, {content['dtype']}, seed {content['seed']}; {content['dose']:g} nats "
        f"per token, {content['prompts']} develop prompts of at most "
        f"{content['decoding']['max_new_tokens']} tokens. Gains are shares of the headroom by the "
        "search measure / the report measure. Perplexity is of plain text, edited over unedited: "
        "mean, and the largest of the traits.",
        "",
        "| | " + " | ".join(traits) + " | mean gain | looping or broken | plain perplexity |",
        "|---" * (len(traits) + 4) + "|",
    ]
    for variant in dict.fromkeys(row.variant for row in rows):
        mine = {row.trait: row for row in rows if row.variant == variant}
        cells = [
            f"{mine[t].search:+.2f} / {mine[t].report:+.2f}" if t in mine else "" for t in traits
        ]
        search, report, broken = (
            float(np.mean([getattr(row, field) for row in mine.values()]))
            for field in ("search", "report", "incoherent")
        )
        ratios = [row.perplexity for row in mine.values()]
        lines.append(
            f"| {variant} | " + " | ".join(cells) + f" | {search:+.2f} / {report:+.2f} "
            f"| {broken:.1%} | ×{np.mean(ratios):.3f}, ×{max(ratios):.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Mean gain by variant against what it does to plain text."""
    names = list(dict.fromkeys(row.variant for row in rows))
    figure, axes = panels(1, 2, 5.0, 0.3 * len(names) + 1.2)
    for axis, fields, label in (
        (axes[0, 0], ("search", "report"), "mean share of the headroom closed"),
        (axes[0, 1], ("perplexity",), "plain text: perplexity, edited over unedited"),
    ):
        for place, name in enumerate(reversed(names)):
            mine = [row for row in rows if row.variant == name]
            for field, colour in zip(fields, ("#1f6fb2", "#e0872e"), strict=False):
                mean = float(np.mean([getattr(row, field) for row in mine]))
                axis.plot(mean, place, "o", color=colour, label=field if not place else None)
        axis.set_yticks(range(len(names)), names[::-1], fontsize=8)
        axis.set_xlabel(label, fontsize=9)
        axis.grid(axis="y", color="0.9")
    axes[0, 0].axvline(0, color="0.7", lw=1)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 1].axvline(1, color="0.7", lw=1)
    save(figure, path)


if __name__ == "__main__":
    main()
