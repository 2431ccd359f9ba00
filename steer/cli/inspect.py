"""`steer inspect`: what is in a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from steer.cli.app import app
from steer.cli.console import out, say
from steer.cli.options import bundle_path
from steer.errors import InputError

if TYPE_CHECKING:
    from steer.bundle import Bundle
    from steer.interference import Interference

# Shares of headroom below this are not told.
_TOLD = 0.1


@app.command(
    epilog="Examples: [bold]steer inspect[/bold]; "
    "[bold]steer inspect mine.safetensors --picture layers.png[/bold]"
)
def inspect(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle file. Default: the packaged model's bundle.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Write heat maps, trait by layer, as .png, .svg or .pdf."),
    ] = None,
    portfolio_picture: Annotated[
        Path | None,
        typer.Option(help="Write which entry of the portfolio serves which mixture, as an image."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what is in a bundle: traits, doses, layers, and how it was built."""
    from steer.bundle import Bundle
    from steer.picture import draw
    from steer.portfolio_picture import draw_portfolio

    content = Bundle.load(bundle_path(bundle))
    if picture is not None:
        draw(content, picture)
    if portfolio_picture is not None:
        if content.portfolio is None:
            raise InputError("the bundle holds no portfolio; there is nothing to draw")
        draw_portfolio(content.portfolio, portfolio_picture)
    if as_json:
        # Not through rich, which would wrap long lines.
        print(json.dumps(content.info(), indent=2))
    else:
        _show_bundle(content)
    for path in (picture, portfolio_picture):
        if path is not None:
            say(f"wrote {path}")


def _show_bundle(bundle: Bundle) -> None:
    from steer.picture import grids, heat_map

    info = bundle.info()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", Text(bundle.model))
    facts.add_row("fingerprint", Text(str(bundle.fingerprint)))
    where = "every token" if bundle.gate is None else "answers in a chat, not plain text"
    facts.add_row("scope", f"{bundle.scope}, {where}")
    facts.add_row("size", f"{info['size']:,} bytes")
    recipe = bundle.settings.get("recipe")
    if isinstance(recipe, Mapping):
        facts.add_row("recipe", Text(", ".join(f"{k} {_plain(v)}" for k, v in recipe.items())))
    if "precision" in bundle.settings:
        facts.add_row("precision", Text(_plain(bundle.settings["precision"])))
    versions = (f"{name} {version}" for name, version in bundle.versions.items())
    facts.add_row("built with", Text(", ".join(versions)))
    for what in ("portfolio", "interference"):
        later = bundle.settings.get(f"{what}_made_with")
        if isinstance(later, Mapping):
            told = ", ".join(f"{k} {_plain(v)}" for k, v in later.items())
            facts.add_row(what, Text(f"made on its own: {told}"))
    out.print(facts)
    show_traits(bundle)
    if any(entry.ccs_loss for entry in bundle.traits.values()):
        for grid in grids(bundle):
            out.print()
            out.print(heat_map(grid, out.width))
    if bundle.interference is not None:
        _show_interference(bundle.interference)
    if info["portfolio"] is not None:
        _show_portfolio(info["portfolio"])
    if info["profiles"]:
        _show_profiles(info["profiles"])


def _show_profiles(profiles: Mapping[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("profile", overflow="fold")
    for heading in ("items", "dose", "bytes", "texts kept"):
        table.add_column(heading, justify="right")
    table.add_column("method", no_wrap=True)
    for name, one in profiles.items():
        table.add_row(
            Text(name),
            _plain(one["statistics"].get("items", "")),
            f"{one['dose']:.2f}",
            f"{one['size']:,}",
            str(one["texts kept"]),
            Text(one["method"]),
        )
    out.print(table)


def _show_interference(interference: Interference) -> None:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("interference", no_wrap=True)
    table.add_column("own gain", justify="right")
    table.add_column("raises", overflow="fold")
    table.add_column("lowers", overflow="fold")
    names = interference.traits
    for i, name in enumerate(names):
        row = interference.gains[i]
        others = [j for j in abs(row).argsort()[::-1].tolist() if j != i]
        raised, lowered = (
            ", ".join(f"{names[j]} {row[j]:.2f}" for j in others if sign * row[j] >= _TOLD)
            for sign in (1, -1)
        )
        own = f"{row[i]:.2f}" if row[i] else "unknown"
        table.add_row(name, own, raised, lowered)
    out.print(table)
    out.print(
        Text("What a default dose gains, of what the unsteered model leaves to gain."),
        soft_wrap=True,
    )


def _show_portfolio(portfolio: Mapping[str, Any]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=0)  # five traits fit 80 columns
    made_of = Table(box=SIMPLE_HEAD)
    table.add_column("portfolio", no_wrap=True)
    for heading in ("serves", "KL", *portfolio["traits"]):
        table.add_column(heading, justify="right")
    made_of.add_column("entry", no_wrap=True)
    made_of.add_column("mixed of", overflow="fold")
    made_of.add_column("at", no_wrap=True)
    for entry in portfolio["entries"]:
        name = f"entry {entry['entry']}" if entry["entry"] else "unsteered"
        rewards = (f"{reward:.2f}" for reward in entry["rewards"].values())
        table.add_row(name, f"{entry['serves']:.1%}", f"{entry['kl']:.3f}", *rewards)
        if entry["entry"]:
            mixture = ", ".join(
                f"{c:.2f} {trait}" for trait, c in entry["coefficients"].items() if c
            )
            made_of.add_row(name, Text(mixture), Text(entry["family"]))
    out.print(table)
    out.print(made_of)
    out.print(Text(f"{portfolio['certificate']['words']}."), soft_wrap=True)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None) + ")"
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def show_traits(bundle: Bundle) -> None:
    """Two tables: every trait's edit, and the contrast pairs that it was made from."""
    from steer.pipeline import LOW_RELIABILITY
    from steer.trait_entry import gain

    edits = Table(box=SIMPLE_HEAD)
    for heading in ("trait", "reliability", "layers", "dose, KL"):
        justify: Any = "right" if heading in ("reliability", "dose, KL") else "left"
        edits.add_column(heading, justify=justify, no_wrap=heading != "layers", overflow="fold")
    edits.add_column("gain on develop prompts", overflow="fold")
    pairs = Table(box=SIMPLE_HEAD)
    pairs.add_column("contrast pairs", no_wrap=True)
    prefix = "pairs dropped, "
    reasons = {
        name.removeprefix(prefix)
        for entry in bundle.traits.values()
        for name in entry.statistics
        if name.startswith(prefix)
    }
    for heading in ("kept", *(f"dropped: {reason}" for reason in sorted(reasons))):
        pairs.add_column(heading, justify="right")
    for name, entry in bundle.traits.items():
        low = entry.reliability < LOW_RELIABILITY
        edits.add_row(
            name,
            Text(f"{'LOW ' * low}{entry.reliability:.2f}", style="bold red" if low else ""),
            _ranges(list(entry.edit.layers)),
            f"{entry.dose:.2f}",
            gain(entry),
        )
        counts = ("pairs kept", *(prefix + reason for reason in sorted(reasons)))
        pairs.add_row(name, *(str(entry.statistics.get(count, "?")) for count in counts))
    out.print(edits)
    out.print(pairs)
    if any(entry.reliability < LOW_RELIABILITY for entry in bundle.traits.values()):
        warning = (
            f"LOW: below {LOW_RELIABILITY} the contrast pairs hardly agree on a direction; "
            "expect a weak or uneven effect."
        )
        out.print(Text(warning, style="bold red"))


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs joined, such as "8-12, 15"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
