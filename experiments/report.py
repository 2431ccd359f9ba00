"""Measure the default bundle on the report prompts, which nothing was tuned on.

Every setting answers all report prompts; answers are stored one file a setting, so the run can be
interrupted, resumed, and split over processes with `--settings`. The table has the settings that
are there; it is written anew at the end of every run.

    python experiments/report.py                       # everything: an hour on one core
    python experiments/report.py --settings brevity    # one setting; run several side by side
    python experiments/report.py --plain               # plain greedy decoding, for comparison

Each trait is steered by its own edit at its default dose; mixtures are in arena/mixtures.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from palm.figures import save
from tables import write_json, write_markdown
from timing import command
from tqdm import tqdm

import steer
from steer.generation import Decoding
from steer.measures import TRAIT_MEASURES, is_broken, is_looping
from steer.prompts import load_prompts
from steer.relevance import THRESHOLD, relevance
from steer.resources import atomic_path, default_bundle_path
from steer.sentence_encoder import embed
from steer.steerer import Steerer
from steer.versions import versions

HERE = Path(__file__).parent
UNSTEERED = "unsteered"


def main() -> None:
    """Parse arguments, generate what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="local folder or hub id")
    parser.add_argument("--bundle", default=None, help="bundle file")
    parser.add_argument("--output", type=Path, help="default: results/report and the like")
    parser.add_argument("--settings", nargs="*", default=None, help="unsteered and trait names")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=384)
    parser.add_argument("--plain", action="store_true", help="greedy, nothing against loops")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    all_settings = [UNSTEERED, *TRAIT_MEASURES]
    decoding = Decoding(max_new_tokens=arguments.max_new_tokens)
    if arguments.plain:
        decoding = replace(decoding, repetition_penalty=1.0, no_repeat_ngram_size=None)
    if arguments.output is None:
        arguments.output = HERE / "results" / ("report-plain" if arguments.plain else "report")
    steerer = steer.load(arguments.model, arguments.bundle)
    for setting in arguments.settings or all_settings:
        answer_all(steerer, setting, decoding, arguments)
    # What was answered under another edit or decoding, or to other prompts, has no place beside.
    paths = {
        setting: path
        for setting in all_settings
        if stored_header(path := arguments.output / f"{setting}.jsonl")
        == header(steerer, setting, decoding, arguments.prompts)
    }
    if UNSTEERED in paths and len(paths) > 1:
        write_table(steerer, paths, decoding, arguments)


def answer_all(
    steerer: Steerer, setting: str, decoding: Decoding, arguments: argparse.Namespace
) -> None:
    """Answer all report prompts under one setting into its file, unless they are there already.

    The file's first line says what made it; answers of another edit or decoding are made anew.
    """
    path = arguments.output / f"{setting}.jsonl"
    made_by = header(steerer, setting, decoding, arguments.prompts)
    if stored_header(path) == made_by:
        return
    prompts = sorted(load_prompts("report")[: arguments.prompts], key=lambda p: len(p.text))
    weights = weights_of(setting)
    rows = []
    for start in tqdm(range(0, len(prompts), arguments.batch), desc=setting, disable=None):
        batch = prompts[start : start + arguments.batch]
        answers = steerer.answer([p.text for p in batch], weights, compose=True, decoding=decoding)
        rows += [
            {"id": p.id, "text": a.text, "tokens": len(a.tokens), "ended": a.ended}
            for p, a in zip(batch, answers, strict=True)
        ]
    with atomic_path(path) as temporary:
        lines = [made_by, *sorted(rows, key=row_id)]
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def weights_of(setting: str) -> dict[str, float] | None:
    """What a setting asks for."""
    return None if setting == UNSTEERED else {setting: 1.0}


def header(steerer: Steerer, setting: str, decoding: Decoding, prompts: int) -> dict[str, Any]:
    """What makes a setting's answers."""
    return {
        "fingerprint": str(steerer.language_model.fingerprint),
        "edit": steerer.resolve(weights_of(setting), compose=True).digest,
        "decoding": asdict(decoding),
        "prompts": len(load_prompts("report")[:prompts]),
    }


def stored_header(path: Path) -> Any:
    """The header of a file of answers; None if there is none."""
    return json.loads(path.read_text().splitlines()[0]) if path.exists() else None


def row_id(row: dict[str, Any]) -> str:
    """Sorting key."""
    return str(row["id"])


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> list[float]:
    """95% bootstrap interval over prompts, seeded."""
    rng = np.random.default_rng(0)
    draws = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(2000)]
    return [float(x) for x in np.quantile(draws, [0.025, 0.975])]


def write_table(
    steerer: Steerer, paths: dict[str, Path], decoding: Decoding, arguments: argparse.Namespace
) -> None:
    """Summarise all settings into `summary.json` and `summary.md`."""
    answers = {
        setting: [json.loads(line) for line in path.read_text().splitlines()[1:]]
        for setting, path in paths.items()
    }
    texts = {p.id: p.text for p in load_prompts("report")}
    prompts = [texts[row["id"]] for row in answers[UNSTEERED]]
    base = answers[UNSTEERED]
    rows = {s: summarise(s, prompts, base, answers[s]) for s in answers}
    summary = {
        "model": steerer.language_model.name,
        "fingerprint": str(steerer.language_model.fingerprint),
        "bundle": Path(arguments.bundle or default_bundle_path()).name,
        "doses, nats per token": {n: e.dose for n, e in steerer.bundle.traits.items()},
        "decoding": asdict(decoding),
        "prompts": len(prompts),
        "versions": versions(),
        "command": command("experiments/report.py"),
        "relevance threshold": THRESHOLD,
        "answers to other prompts above the threshold": shuffled_share(prompts, base),
        "settings": rows,
    }
    write_json(arguments.output / "summary.json", summary)
    write_markdown(arguments.output / "summary.md", markdown(rows, decoding))
    draw(rows, arguments.output / "changes.png")


def shuffled_share(prompts: Sequence[str], base: Sequence[dict[str, Any]]) -> float:
    """How often an answer passes as relevant to a prompt that it does not belong to."""
    similarity = embed(prompts) @ embed([row["text"] for row in base]).T
    others = similarity[~np.eye(len(prompts), dtype=bool)]
    return float((others >= THRESHOLD).mean())


def summarise(
    setting: str,
    prompts: Sequence[str],
    base: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Coherence of a setting, and what its trait's measure says, with intervals."""
    after = [row["text"] for row in rows]
    similar = relevance(prompts, after)
    looping = np.array([is_looping(text) for text in after])
    broken = np.array([is_broken(text) for text in after])
    ended = np.array([row["ended"] for row in rows])
    result: dict[str, Any] = {
        "tokens": float(np.mean([row["tokens"] for row in rows])),
        "ended": float(ended.mean()),
        "looping": float(looping.mean()),
        "broken": float(broken.mean()),
        "incoherent": float((looping | broken).mean()),
        "incoherent, interval": interval((looping | broken).astype(float), np.mean),
        "relevance": float(similar.mean()),
        "relevant": float((similar >= THRESHOLD).mean()),
    }
    if setting == UNSTEERED:
        return result
    measure = TRAIT_MEASURES[setting]
    values = np.array(
        [
            (measure.value(b["text"]), measure.value(text))
            for b, text in zip(base, after, strict=True)
        ]
    )
    change = values[:, 1] - values[:, 0]
    result |= {
        "measure": measure.name,
        "direction": measure.sign,
        "unsteered": float(values[:, 0].mean()),
        "unsteered, interval": interval(values[:, 0], np.mean),
        "steered": float(values[:, 1].mean()),
        "steered, interval": interval(values[:, 1], np.mean),
        "change": float(change.mean()),
        "change, interval": interval(change, np.mean),
        "moved the wrong way": float((measure.sign * change < 0).mean()),
    }
    if setting == "brevity":
        # An answer that was cut, left the subject or fell apart is no brief answer: it counts
        # with the length of the unsteered one.
        counts = ended & (similar >= THRESHOLD) & ~looping & ~broken
        before = np.array([row["tokens"] for row in base], float)
        now = np.where(counts, [row["tokens"] for row in rows], before)
        pairs = np.stack([before, now], axis=1)

        def fewer(sample: np.ndarray) -> float:
            return float(1 - sample[:, 1].sum() / sample[:, 0].sum())

        result |= {
            "count as brief": float(counts.mean()),
            "fewer tokens": fewer(pairs),
            "fewer tokens, interval": interval(pairs, fewer),
        }
    return result


def described(decoding: Decoding) -> str:
    """The decoding in words."""
    how = ["Greedy decoding"]
    if decoding.repetition_penalty != 1:
        how.append(f"repetition penalty {decoding.repetition_penalty} on the answer")
    if decoding.no_repeat_ngram_size:
        how.append(f"no {decoding.no_repeat_ngram_size} tokens in a row twice")
    return ", ".join([*how, f"at most {decoding.max_new_tokens} tokens"]) + "."


def markdown(rows: dict[str, dict[str, Any]], decoding: Decoding) -> str:
    """The table as Markdown."""
    lines = [
        described(decoding),
        "",
        "| setting | tokens | measure | unsteered | steered | change (95%) | wrong way "
        "| looping or broken | relevant |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for setting, row in rows.items():
        coherence = f"{row['incoherent']:.1%} | {row['relevant']:.1%} |"
        if setting == UNSTEERED:
            lines.append(f"| {setting} | {row['tokens']:.0f} | | | | | | {coherence}")
            continue
        low, high = row["change, interval"]
        lines.append(
            f"| {setting} | {row['tokens']:.0f} | {row['measure']} | {row['unsteered']:.2f} | "
            f"{row['steered']:.2f} | {row['change']:+.2f} ({low:+.2f} to {high:+.2f}) | "
            f"{row['moved the wrong way']:.0%} | {coherence}"
        )
    if brief := rows.get("brevity"):
        low, high = brief["fewer tokens, interval"]
        lines += [
            "",
            f"Brevity: {brief['fewer tokens']:.1%} fewer tokens ({low:.1%} to {high:.1%}), "
            f"counting an answer only if it ends by itself, is coherent and relevant "
            f"({brief['count as brief']:.1%} do); any other counts with its unsteered length.",
        ]
    return "\n".join(lines) + "\n"


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel a trait: its measure without and with steering; and one for coherence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    traits = [setting for setting in rows if setting != UNSTEERED]
    grey, blue = "#9aa0a6", "#1f6fb2"
    figure, axes = plt.subplots(1, len(traits) + 1, figsize=(14, 3.6), layout="constrained")
    for axis, trait in zip(axes, traits, strict=False):
        row = rows[trait]
        for x, (key, colour) in enumerate((("unsteered", grey), ("steered", blue))):
            low, high = row[f"{key}, interval"]
            axis.bar(x, row[key], color=colour, width=0.7)
            axis.errorbar(
                x,
                row[key],
                yerr=[[row[key] - low], [high - row[key]]],
                color="#202124",
                capsize=4,
                lw=1.2,
            )
        axis.set_xticks([0, 1], ["unsteered", "steered"])
        towards = "more" if row["direction"] > 0 else "less"
        axis.set_title(f"{trait}\n\n", fontsize=12, fontweight="bold")
        axis.text(
            0.5,
            1.02,
            f"{row['measure']}\n({towards} is the trait)",
            transform=axis.transAxes,
            ha="center",
            fontsize=8,
        )
        axis.spines[["top", "right"]].set_visible(False)
    axis = axes[-1]
    names = list(rows)
    axis.barh(
        names[::-1],
        [100 * rows[name]["incoherent"] for name in names[::-1]],
        color=[grey if name == UNSTEERED else blue for name in names[::-1]],
    )
    axis.set_title("coherence\n\n", fontsize=12, fontweight="bold")
    axis.text(
        0.5,
        1.02,
        "% of answers that loop or are broken\n(less is better)",
        transform=axis.transAxes,
        ha="center",
        fontsize=8,
    )
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)
    plt.close(figure)


if __name__ == "__main__":
    main()
