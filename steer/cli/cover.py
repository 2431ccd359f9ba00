"""`steer cover`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from steer.cli.app import app
from steer.cli.console import doing, out, say
from steer.cli.options import Seed
from steer.errors import InputError

if TYPE_CHECKING:
    from steer.cover import Cover, CoverCheck, Scale

_CHECK_SECONDS = 30.0  # for a set that is only shown for comparison


@app.command(
    epilog="Examples: [bold]steer cover --dim 3 --eps-prime 0.4 --delta-prime 0.0125[/bold]; "
    "[bold]steer cover --dim 3 --epsilon 0.2 --size 7 --out cover.csv[/bold]"
)
def cover(
    dim: Annotated[int, typer.Option(min=2, max=8, help="Number of traits.")],
    eps_prime: Annotated[
        float | None, typer.Option(help="Relative closeness of a weight to a preference.")
    ] = None,
    delta_prime: Annotated[float | None, typer.Option(help="Absolute closeness.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Guarantee asked for: relative loss.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Guarantee: absolute loss, above 0.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="With --epsilon: the best cover of so many weights.")
    ] = None,
    f_max: Annotated[float, typer.Option(help="Largest regulariser.")] = 0.2,
    r_max: Annotated[
        float | None, typer.Option(help="Largest sum of rewards. Default: --dim.")
    ] = None,
    method: Annotated[str, typer.Option(help="exact (default) or greedy.")] = "exact",
    refinement: Annotated[
        int | None,
        typer.Option(min=1, max=8, help="How fine the candidate weights are. Default: 2."),
    ] = None,
    time_limit: Annotated[float, typer.Option(min=0.0, help="Seconds to search.")] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Write the cover as CSV, a weight a row.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Find few weights that stand for every preference, and prove it.

    The closeness is --eps-prime with --delta-prime, or is chosen for a guarantee.

    A guarantee is --epsilon with --delta, or --epsilon with --size.
    """
    from steer.cover import Closeness, Scale, closeness_for, cover_of_size, minimal_cover

    scale = Scale(f_max, float(dim) if r_max is None else r_max)
    given = tuple(value is not None for value in (eps_prime, delta_prime, epsilon, delta, size))
    search: Any = {"method": method, "time_limit": time_limit, "seed": seed or 0}
    if refinement is not None:
        if size is not None:
            raise InputError("--refinement has no effect with --size; leave it out")
        search["refinement"] = refinement
    with doing("covering the simplex"):
        if given == (True, True, False, False, False):
            closeness = Closeness(cast(float, eps_prime), cast(float, delta_prime))
            found = minimal_cover(dim, closeness, **search)
        elif given == (False, False, True, True, False):
            closeness = closeness_for(dim, cast(float, epsilon), cast(float, delta), scale)
            found = minimal_cover(dim, closeness, **search)
        elif given == (False, False, True, False, True):
            found = cover_of_size(dim, cast(int, size), cast(float, epsilon), scale, **search)
        else:
            raise InputError(
                "give --eps-prime with --delta-prime, or --epsilon with --delta, or --epsilon "
                "with --size"
            )
        _show_cover(dim, found, scale, seed or 0)
    if out is not None:
        _write_csv(out, found.weights)
        say(f"wrote {out}")


def _show_cover(dim: int, found: Cover, scale: Scale, seed: int) -> None:
    """The cover beside the grids and two sets that are no covers."""
    from steer.cover import KINDS, grid, is_cover, random_weights, uniform_weights

    closeness = found.closeness
    epsilon, delta = scale.guarantee(closeness)
    out.print(
        f"eps' = {closeness.eps_prime:g}, delta' = {closeness.delta_prime:g}: an optimum for a "
        f"weight is ({epsilon:.3g}, {delta:.3g})-optimal for what it covers "
        f"(f_max {scale.f_max:g}, R_max {scale.r_max:g})",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD)
    for heading in ("set", "weights", "covers the simplex", "a preference that it misses"):
        table.add_column(heading, justify="right" if heading == "weights" else "left")

    def add(name: str, weights: Any, check: CoverCheck) -> None:
        missed = check.counterexample
        shown = "" if missed is None else ", ".join(f"{float(x):.4f}" for x in missed)
        table.add_row(name, str(len(weights)), check.verdict, shown)

    number = 1
    for kind in KINDS:
        if kind == "multiplicative" and closeness.eps_prime == 0:
            continue
        try:
            weights = grid(dim, closeness, kind)
        except InputError as error:
            table.add_row(f"{kind} grid", "?", str(error), "")
            continue
        number = len(weights) if kind == "combined" else number
        add(f"{kind} grid", weights, is_cover(weights, closeness, time_limit=_CHECK_SECONDS))
    add("optimised", found.weights, found.check)
    uniform = uniform_weights(dim, number)
    others = {"uniform": uniform, "random": random_weights(dim, len(uniform), seed)}
    for name, weights in others.items():
        add(name, weights, is_cover(weights, closeness, time_limit=_CHECK_SECONDS))
    out.print(table)
    out.print(
        f"Lower bound: {found.lower_bound}; no cover out of the candidate weights is smaller.",
        soft_wrap=True,
    )


def _write_csv(path: Path, weights: Any) -> None:
    """One raw weight a row, under the header w1..wd."""
    from steer.resources import atomic_path

    header = ",".join(f"w{i + 1}" for i in range(weights.shape[1]))
    rows = (",".join(repr(float(x)) for x in row) for row in weights)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
