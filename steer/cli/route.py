"""`steer route`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from steer.cli.app import app
from steer.cli.console import out
from steer.cli.options import BundleFile, Weight, bundle_path, weights_of
from steer.errors import InputError


@app.command(epilog="Example: [bold]steer route -w brevity=0.7 -w warmth=0.3[/bold]")
def route(
    weight: Weight = None,
    strength: Annotated[
        float, typer.Option(help="0 is the unsteered model, 1 (default) the measured edit.")
    ] = 1.0,
    bundle: BundleFile = None,
) -> None:
    """Tell which edit of a bundle serves a mixture, and what that is worth."""
    from steer.bundle import Bundle
    from steer.weights import check_strength, normalise_weights

    path = bundle_path(bundle)
    weights = weights_of(weight)
    if weights is None:
        raise InputError("expected weights; add -w TRAIT=NUMBER")
    edits = Bundle.load(path)
    portfolio = edits.portfolio
    if portfolio is None:
        raise InputError(f"{path}: holds no portfolio, so mixtures are composed")
    shares = normalise_weights(weights, edits.traits)
    if outside := [name for name in shares if name not in portfolio.traits]:
        raise InputError(
            f"{outside[0]!r} is not in the portfolio, so it is composed of the traits' own edits; "
            f"the portfolio is of {', '.join(portfolio.traits)}"
        )
    entry = portfolio.entry(shares, check_strength(strength))
    table = Table(box=SIMPLE_HEAD)
    table.add_column("trait", no_wrap=True)
    for heading in ("weight", "reward"):
        table.add_column(heading, justify="right")
    table.add_column("rewarded is", overflow="fold")
    for name, rewarded in zip(portfolio.traits, portfolio.rewards, strict=True):
        table.add_row(
            Text(name),
            f"{entry.weights.get(name, 0.0):.2f}",
            f"{entry.rewards[name]:.2f}",
            Text(rewarded),
        )
    out.print(Text(str(entry)), soft_wrap=True)
    out.print(table)
    out.print(Text(f"Over all mixtures: {portfolio.certificate}."), soft_wrap=True)
