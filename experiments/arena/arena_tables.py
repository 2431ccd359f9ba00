"""Tables and pictures of the peers in one run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from judging import LESS_LIKELY, MORE_INCOHERENT  # noqa: E402
from matplotlib import colormaps  # noqa: E402
from palm.figures import panels, save  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.soundness import LESS_RELEVANT  # noqa: E402

ENGINE, BEST_PEER = "this engine", "best peer"
TARGET = 1.5
BANDS = (0.25, 0.5, LESS_LIKELY)  # nats per token


@dataclass(frozen=True)
class Trial:
    """What one setting does on develop prompts.

    Attributes:
        trait: What is asked for.
        method: By which method.
        setting: Its layers, dose and the like.
        gain: Share of the headroom that is closed, by the search measure.
        incoherent: As all that follow but the last two, see `judging.Coherence`.
        broken: The same.
        distinct: The same.
        relevant: The same.
        log_likelihood: The same.
        admissible: Whether its answers are as whole as the unsteered model's.
        chosen: Whether it is its method's best.
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
    admissible: bool
    chosen: bool

    def marked(self, chosen: bool) -> Trial:
        """The same, chosen or not."""
        return replace(self, chosen=chosen)


@dataclass(frozen=True)
class Row:
    """What a method's best setting does on report prompts.

    Attributes:
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
            "less likely, nats per token": LESS_LIKELY,
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
        f"{100 * LESS_RELEVANT:g} fewer are about their prompt, {LESS_LIKELY:g} nats per token "
        f"less likely under the unedited model), on {report['prompts']} report prompts of at most "
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
    for trait in dict.fromkeys(trial.trait for trial in trials):
        lines += ["", *_trait_table(trait, content, trials, rows)]
    lines += ["", *_ratio_table(ratios), "", *_band_table(content, trials)]
    return "\n".join(lines) + "\n"


def _whole(one: Mapping[str, float]) -> str:
    return (
        f"{one['incoherent']:.1%} loop or are broken, {one['relevant']:.0%} are about their "
        f"prompt, {one['log_likelihood']:.2f} nats per token"
    )


def _trait_table(
    trait: str, content: Mapping[str, Any], trials: Sequence[Trial], rows: Sequence[Row]
) -> list[str]:
    measures = content["measures"][trait]
    found = {row.method: row for row in rows if row.trait == trait}
    lines = [
        f"### {trait}",
        "",
        f"Searched by {measures['search']}; reported by {measures['report']}.",
        "",
        "| method | setting | develop gain | report gain (95%) | wrong way | looping or broken "
        "| distinct trigrams | relevant | nats per token | whole | prompt tokens | passes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(trial.method for trial in trials):
        mine = [t for t in trials if (t.trait, t.method) == (trait, method)]
        chosen = next((trial for trial in mine if trial.chosen), None)
        if chosen is None:
            lines.append(f"| {method} | none of {len(mine)} admissible |" + " |" * 10)
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


def _ratio_table(ratios: Sequence[Ratio]) -> list[str]:
    whole = {(one.ours, one.theirs): one for one in ratios if one.trait == "all"}
    columns = list(dict.fromkeys(theirs for _, theirs in whole))
    lines = [
        "### Ratio of mean gains",
        "",
        f"A method without an admissible setting gains 0. {ENGINE.capitalize()} is the best of its "
        f"methods for each trait, {BEST_PEER} the best of the others, by the develop gain.",
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
    lead = whole[ENGINE, BEST_PEER]
    worse = [
        one.trait
        for one in ratios
        if (one.ours, one.theirs) == (ENGINE, BEST_PEER)
        and one.trait != "all"
        and one.difference_high < 0
    ]
    held = lead.ratio >= TARGET and lead.low > 1
    lines += [
        "",
        f"- {ENGINE} against {BEST_PEER}, at least {TARGET:g} times and surely more than once: "
        f"{'yes' if held else 'no'}.",
        f"- Traits on which it is surely worse: {', '.join(worse) or 'none'}.",
    ]
    return lines


def by_band(
    trials: Sequence[Trial], methods: Sequence[str], unsteered: Mapping[str, float], band: float
) -> float:
    """Mean over traits of the largest develop gain of some methods, within a band of likelihood.

    Settings are held to the other bounds too; where none is left the gain is 0.
    """
    best = dict.fromkeys((trial.trait for trial in trials), 0.0)
    for trial in trials:
        within = trial.log_likelihood >= unsteered["log_likelihood"] - band
        if trial.method in methods and trial.admissible and within:
            best[trial.trait] = max(best[trial.trait], trial.gain)
    return sum(best.values()) / len(best)


def _band_table(content: Mapping[str, Any], trials: Sequence[Trial]) -> list[str]:
    """What each method gains if answers must stay closer to the unsteered model's."""
    unsteered = content["parts"]["develop"]["unsteered"]
    methods = list(dict.fromkeys(trial.method for trial in trials))
    groups = {method: [method] for method in methods}
    groups |= {ENGINE: content["ours"], BEST_PEER: [m for m in methods if m not in content["ours"]]}
    lines = [
        "### Closer to the unsteered model",
        "",
        "Mean over traits of each method's largest develop gain, by the search measure, among "
        "settings whose answers lose at most so many nats per token under the unedited model.",
        "",
        "| | " + " | ".join(f"{band:g} nats" for band in BANDS) + " |",
        "|---" * (len(BANDS) + 1) + "|",
    ]
    for name, members in groups.items():
        cells = (f"{by_band(trials, members, unsteered, band):+.2f}" for band in BANDS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
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
            LESS_LIKELY,
        ),
    )
    for axis, (label, field, scale, bound) in zip(axes[0], costs, strict=True):
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
        axis.axvline(bound, color="0.4", lw=1, ls="--")
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("share of the headroom closed")
    axes[0, 0].set_title(trials[0].trait, fontsize=12, loc="left")
    axes[0, 1].legend(fontsize=7, frameon=False)
    save(figure, path)


def draw_gains(rows: Sequence[Row], path: Path) -> None:
    """Gains on report prompts, a panel a trait."""
    traits = list(dict.fromkeys(row.trait for row in rows))
    methods = [m for m in dict.fromkeys(row.method for row in rows) if m != "unsteered"]
    colours = _colours(methods)
    figure, axes = panels(1, len(traits), 3.2, 3.6)
    for axis, trait in zip(axes[0], traits, strict=True):
        found = {row.method: row for row in rows if row.trait == trait}
        for place, method in enumerate(reversed(methods)):
            row = found.get(method)
            if row is None:
                axis.text(0, place, " none admissible", va="center", fontsize=7, color="0.4")
                continue
            axis.barh(place, row.gain, color=colours[method], alpha=1.0 if row.holds else 0.4)
            axis.plot([row.low, row.high], [place, place], color="0.2", lw=1.2)
        axis.set_yticks(range(len(methods)), methods[::-1], fontsize=8)
        axis.axvline(0, color="0.6", lw=1)
        axis.set_title(trait, fontsize=11)
        axis.set_xlabel("share of the headroom closed", fontsize=8)
    save(figure, path)
