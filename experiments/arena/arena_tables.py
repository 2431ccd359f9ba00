"""Tables and pictures of the peers in one run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from judging import BANDS, MORE_INCOHERENT  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from palm.figures import panels, save  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.soundness import LESS_RELEVANT  # noqa: E402

ENGINE, BEST_PEER = "this engine", "best peer"
DEFAULT = "gated distilled"
"""What `steer build` makes of a trait."""
TARGET = 1.5


@dataclass(frozen=True)
class Trial:
    """What one setting does on develop prompts.

    Attributes:
        trait: What is asked for.
        method: By which method.
        setting: Its layers, dose and the like.
        gain: Share of the headroom that is closed, by the search measure.
        incoherent: As all that follow but the last, see `judging.Coherence`.
        broken: The same.
        distinct: The same.
        relevant: The same.
        log_likelihood: The same.
        band: The narrowest of the bands of likelihood within which its answers are as whole as the
            unsteered model's; infinite if there is none.
    """

    trait: str
    method: str
    setting: str
    gain: float
    incoherent: float
    broken: float
    distinct: float
    relevant: float
    log_likelihood: float
    band: float


def best_settings(trials: Sequence[Trial], band: float) -> dict[str, Trial]:
    """By method, the trial of the largest gain within a band; the trials are of one trait."""
    best: dict[str, Trial] = {}
    for trial in trials:
        leading = best.get(trial.method)
        if trial.band <= band and (leading is None or trial.gain > leading.gain):
            best[trial.method] = trial
    return best


@dataclass(frozen=True)
class Row:
    """What a method's best setting within a band does on report prompts.

    Attributes:
        band: Of likelihood, nats per token.
        trait: What is asked for.
        method: By which method.
        setting: Chosen on develop prompts.
        value: Mean of the report measure, 0 to 1.
        gain: Share of the headroom that is closed.
        low: Lower end of its interval.
        high: Upper end.
        wrong_way: Share of prompts with less of the trait than unsteered.
        tokens: Mean length.
        extra_tokens: Prompt tokens beyond those of the plain prompt.
        passes: Forward passes for one token.
        incoherent: See `judging.Coherence`, as the next four.
        broken: The same.
        distinct: The same.
        relevant: The same.
        log_likelihood: The same.
        holds: Whether its answers are as whole as the unsteered model's here, too.
    """

    band: float
    trait: str
    method: str
    setting: str
    value: float
    gain: float
    low: float
    high: float
    wrong_way: float
    tokens: float
    extra_tokens: float
    passes: int
    incoherent: float
    broken: float
    distinct: float
    relevant: float
    log_likelihood: float
    holds: bool


@dataclass(frozen=True)
class Ratio:
    """How a method's gain compares with another's on report prompts; ends are of 95% intervals.

    Attributes:
        band: Of likelihood, nats per token.
        trait: A trait, or "all" for the mean over them.
        ours: One method.
        theirs: The other.
        ratio: Of their gains.
        low: Lower end.
        high: Upper end.
        difference: Of their gains.
        difference_low: Lower end.
        difference_high: Upper end.
    """

    band: float
    trait: str
    ours: str
    theirs: str
    ratio: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


def write(
    output: Path,
    content: Mapping[str, Any],
    trials: Sequence[Trial],
    rows: Sequence[Row],
    ratios: Sequence[Ratio],
) -> None:
    """Write the tables and pictures, and print the table; rows are in CSV files only."""
    whole = {
        "command": command("experiments/arena/arena.py"),
        **content,
        "bounds": {
            "more incoherent": MORE_INCOHERENT,
            "less likely, nats per token": list(BANDS),
            "less relevant": LESS_RELEVANT,
        },
    }
    write_json(output / "arena.json", whole)
    for name, kind, table in (
        ("arena_search", Trial, trials),
        ("arena_report", Row, rows),
        ("arena_ratios", Ratio, ratios),
    ):
        write_csv(output / f"{name}.csv", kind, table)
    text = markdown(content, trials, rows, ratios)
    write_markdown(output / "arena.md", text)
    for trait in dict.fromkeys(trial.trait for trial in trials):
        mine = [trial for trial in trials if trial.trait == trait]
        draw_frontier(mine, content, output / f"arena_{trait}.png")
    draw_gains(rows, output / "arena_gains.png")


def markdown(
    content: Mapping[str, Any],
    trials: Sequence[Trial],
    rows: Sequence[Row],
    ratios: Sequence[Ratio],
) -> str:
    """The tables as Markdown."""
    develop, report = content["parts"]["develop"], content["parts"]["report"]
    unsteered = report["unsteered"]
    lines = [
        f"Each method's best setting of those whose answers to {develop['prompts']} develop "
        f"prompts are whole (at most {100 * MORE_INCOHERENT:g} points more loop or are broken, "
        f"{100 * LESS_RELEVANT:g} fewer are about their prompt, and a band of nats per token less "
        f"likely under the unedited model), on {report['prompts']} report prompts of at most "
        f"{report['decoding']['max_new_tokens']} tokens. Gain is the share of the headroom that is "
        "closed, by a measure that took no part before (95%, bootstrap over prompts). "
        f"{content['model']}, {content['dtype']}, seed {content['seed']}.",
        "",
        f"Unsteered: {_whole(unsteered)}.",
    ]
    if checks := content["answers of a peer's own application that differ"]:
        said = ", ".join(f"{peer} {count}" for peer, count in checks.items())
        lines += [
            "",
            "Answers in which a peer's own application decodes other tokens than its vector "
            f"applied here: {said}, of {content['answers compared']}.",
        ]
    lines += [
        "",
        f"A method without an admissible setting gains 0. {ENGINE.capitalize()} is the best of its "
        f"methods for each trait, {BEST_PEER} the best of the others, by the develop gain; "
        f"{DEFAULT} is what is built where nothing else is asked for.",
    ]
    for band in BANDS:
        lines += ["", *_gain_table(band, content, rows), "", *_ratio_table(band, ratios)]
    for trait in dict.fromkeys(trial.trait for trial in trials):
        lines += ["", f"## {trait}", ""]
        measures = content["measures"][trait]
        lines.append(f"Searched by {measures['search']}; reported by {measures['report']}.")
        for band in BANDS:
            lines += ["", *_trait_table(band, trait, trials, rows)]
    return "\n".join(lines) + "\n"


def _gain_table(band: float, content: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Report gains by method and trait."""
    traits = list(content["measures"])
    found = {(row.method, row.trait): row for row in rows if row.band == band}
    lines = [
        f"## Within {band:g} nats per token",
        "",
        "| | " + " | ".join(traits) + " | mean |",
        "|---" * (len(traits) + 2) + "|",
    ]
    for method in dict.fromkeys(row.method for row in rows):
        mine = [found.get((method, trait)) for trait in traits]
        cells = [
            "none" if one is None else f"{one.gain:+.2f} ({one.low:+.2f} to {one.high:+.2f})"
            for one in mine
        ]
        mean = sum(0.0 if one is None else one.gain for one in mine) / len(mine)
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {mean:+.2f} |")
    return lines


def _whole(one: Mapping[str, float]) -> str:
    return (
        f"{one['incoherent']:.1%} loop or are broken, {one['relevant']:.0%} are about their "
        f"prompt, {one['log_likelihood']:.2f} nats per token"
    )


def _trait_table(
    band: float, trait: str, trials: Sequence[Trial], rows: Sequence[Row]
) -> list[str]:
    found = {row.method: row for row in rows if (row.band, row.trait) == (band, trait)}
    best = best_settings([trial for trial in trials if trial.trait == trait], band)
    lines = [
        f"### {trait}, within {band:g} nats per token",
        "",
        "| method | setting | develop gain | report gain (95%) | wrong way | looping or broken "
        "| distinct trigrams | relevant | nats per token | whole | prompt tokens | passes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(trial.method for trial in trials):
        chosen = best.get(method)
        if chosen is None:
            lines.append(f"| {method} | none admissible |" + " |" * 10)
            continue
        row = found[method]
        lines.append(
            f"| {method} | {chosen.setting} | {chosen.gain:+.2f} "
            f"| {row.gain:+.2f} ({row.low:+.2f} to {row.high:+.2f}) | {row.wrong_way:.0%} "
            f"| {row.incoherent:.1%} | {row.distinct:.2f} | {row.relevant:.0%} "
            f"| {row.log_likelihood:.2f} | {'yes' if row.holds else 'no'} "
            f"| {row.extra_tokens:+.0f} | {row.passes} |"
        )
    return lines


def _ratio_table(band: float, ratios: Sequence[Ratio]) -> list[str]:
    within = [one for one in ratios if one.band == band]
    whole = {(one.ours, one.theirs): one for one in within if one.trait == "all"}
    columns = list(dict.fromkeys(theirs for _, theirs in whole))
    lines = [
        f"Ratio of mean gains, within {band:g} nats per token:",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for ours in dict.fromkeys(ours for ours, _ in whole):
        cells = (whole[ours, theirs] for theirs in columns)
        lines.append(
            f"| {ours} | "
            + " | ".join(f"{x.ratio:.2f} ({x.low:.2f} to {x.high:.2f})" for x in cells)
            + " |"
        )
    lines.append("")
    for ours in (one for one in (DEFAULT, ENGINE) if (one, BEST_PEER) in whole):
        lead = whole[ours, BEST_PEER]
        held = lead.ratio >= TARGET and lead.low > 1
        # Than any peer: the best of a trait is told by develop prompts.
        worse = [
            f"{one.trait} ({one.theirs})"
            for one in within
            if one.ours == ours and one.trait != "all" and one.difference_high < 0
        ]
        lines.append(
            f"- {ours} against {BEST_PEER}, at least {TARGET:g} times and surely more than once: "
            f"{'yes' if held else 'no'}; surely worse on: {', '.join(worse) or 'no trait'}."
        )
    return lines


def _colours(methods: Sequence[str]) -> dict[str, Any]:
    # Strong ones only: pale bars are answers that are not whole.
    palette = [*colormaps["tab10"].colors, "#111111", "#b8860b"]
    return {method: palette[i % len(palette)] for i, method in enumerate(methods)}


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The largest gain at a cost of at most x, where it rises; points are (cost, gain)."""
    line: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not line or gain > line[-1][1]:
            line.append((cost, gain))
    return line


def draw_frontier(trials: Sequence[Trial], content: Mapping[str, Any], path: Path) -> None:
    """Gain by what it costs in coherence, on develop prompts: all settings, and their frontier."""
    unsteered = content["parts"]["develop"]["unsteered"]
    figure, axes = panels(1, 2, 6.0, 4.2)
    colours = _colours(list(dict.fromkeys(trial.method for trial in trials)))
    costs = (
        ("more answers loop or are broken, points", "incoherent", 100.0, 100 * MORE_INCOHERENT),
        (
            "less likely under the unedited model, nats per token",
            "log_likelihood",
            -1.0,
            *BANDS,
        ),
    )
    for axis, (label, field, scale, *bounds) in zip(axes[0], costs, strict=True):
        for method, colour in colours.items():
            points = [
                (scale * (getattr(trial, field) - unsteered[field]), trial.gain)
                for trial in trials
                if trial.method == method
            ]
            axis.scatter(*zip(*points, strict=True), s=9, color=colour, alpha=0.35, lw=0)
            line = frontier(points)
            axis.plot(
                *zip(*line, strict=True),
                color=colour,
                marker="o",
                markersize=4,
                lw=1.4,
                drawstyle="steps-post",
                label=method,
            )
        for bound in bounds:
            axis.axvline(bound, color="0.4", lw=1, ls="--")
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("share of the headroom closed")
    axes[0, 0].set_title(trials[0].trait, fontsize=12, loc="left")
    axes[0, 1].legend(fontsize=7, frameon=False)
    save(figure, path)


def draw_gains(rows: Sequence[Row], path: Path) -> None:
    """Gains on report prompts, a panel a band and trait."""
    traits = list(dict.fromkeys(row.trait for row in rows))
    methods = [m for m in dict.fromkeys(row.method for row in rows) if m != "unsteered"]
    colours = _colours(methods)
    figure, axes = panels(len(BANDS), len(traits), 3.2, 3.2)
    for line, band in zip(axes, BANDS, strict=True):
        for axis, trait in zip(line, traits, strict=True):
            found = {row.method: row for row in rows if (row.band, row.trait) == (band, trait)}
            for place, method in enumerate(reversed(methods)):
                row = found.get(method)
                if row is None:
                    axis.text(0, place, " none admissible", va="center", fontsize=7, color="0.4")
                    continue
                axis.barh(place, row.gain, color=colours[method], alpha=1.0 if row.holds else 0.4)
                axis.plot([row.low, row.high], [place, place], color="0.2", lw=1.2)
            axis.set_yticks(range(len(methods)), methods[::-1], fontsize=8)
            axis.axvline(0, color="0.6", lw=1)
            axis.set_xlim(-0.7, 1)
            axis.set_title(f"{trait}, within {band:g} nats", fontsize=10)
            axis.set_xlabel("share of the headroom closed", fontsize=8)
    save(figure, path)
