"""`steer export`: one edit for engines that know nothing of steer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steer.cli.app import app
from steer.cli.console import doing, out
from steer.cli.options import BundleFile, Compose, Force, Model, Weight, bundle_path, weights_of
from steer.errors import InputError

if TYPE_CHECKING:
    from steer.bundle import Bundle
    from steer.edits import Edit

commands = typer.Typer(
    help="Write one edit for engines that know nothing of steer. It then acts on every request, at "
    "every position, and without the bundle's gate.",
    no_args_is_help=True,
)
app.add_typer(commands, name="export")

Number = Annotated[
    int | None, typer.Option("--entry", min=1, help="An entry of the portfolio, in place of -w.")
]
Strength = Annotated[float, typer.Option(help="Multiplies the default dose.")]


@commands.command(
    epilog="Examples: [bold]steer export gguf -w brevity=1 brief.gguf[/bold]; "
    "[bold]steer export gguf entries/[/bold]"
)
def gguf(
    output: Annotated[Path, typer.Argument(help="File, or a folder for all entries.")],
    weight: Weight = None,
    entry: Number = None,
    strength: Strength = 1.0,
    compose: Compose = False,
    bundle: BundleFile = None,
) -> None:
    """A control vector for llama.cpp (--control-vector); without -w or --entry, of every entry."""
    _vectors(output, weight, entry, strength, compose, bundle)


@commands.command(epilog="Example: [bold]steer export repeng -w warmth=1 warm.gguf[/bold]")
def repeng(
    output: Annotated[Path, typer.Argument(help="File, or a folder for all entries.")],
    weight: Weight = None,
    entry: Number = None,
    strength: Strength = 1.0,
    compose: Compose = False,
    bundle: BundleFile = None,
) -> None:
    """A file for repeng's ControlVector.import_gguf, which is the same as llama.cpp's."""
    _vectors(output, weight, entry, strength, compose, bundle)


@commands.command(epilog="Example: [bold]steer export hf -w brevity=1 brief-model[/bold]")
def hf(
    output: Annotated[Path, typer.Argument(help="Folder that is made.")],
    weight: Weight = None,
    entry: Number = None,
    strength: Strength = 1.0,
    compose: Compose = False,
    model: Model = None,
    bundle: BundleFile = None,
    force: Force = False,
) -> None:
    """A checkpoint with the edit in its biases: runs in any engine, without hooks."""
    from steer.bundle import Bundle
    from steer.export.additive import offsets
    from steer.export.checkpoint import bake
    from steer.models import load_model

    held = Bundle.load(bundle_path(bundle))
    edit, told = _asked(held, weight, entry, strength, compose)
    vectors = offsets(edit)
    with doing("loading the model"):
        loaded = load_model(model)
    held.check_model(loaded.fingerprint, force=force)
    bake(
        loaded, vectors, output, f"{loaded.name}, steered by {told}. Written by `steer export hf`."
    )
    out.print(f"{told} -> {output}")


def _vectors(
    output: Path,
    weight: list[str] | None,
    entry: int | None,
    strength: float,
    compose: bool,
    bundle: Path | None,
) -> None:
    from steer.bundle import Bundle
    from steer.export.additive import offsets
    from steer.export.control_vector import model_type, write_control_vector

    held = Bundle.load(bundle_path(bundle))
    if weight is None and entry is None:
        if held.portfolio is None:
            raise InputError("expected weights or an entry; add -w TRAIT=NUMBER or --entry N")
        wanted: dict[Path, int | None] = {
            output / f"entry-{number:02d}.gguf": number
            for number in range(1, len(held.portfolio.edits) + 1)
        }
    else:
        wanted = {output: entry}
    for path, number in wanted.items():
        edit, told = _asked(held, weight, number, strength, compose)
        write_control_vector(path, offsets(edit), model_type(held.fingerprint))
        out.print(f"{told} -> {path}")


def _asked(
    bundle: Bundle, weight: list[str] | None, entry: int | None, strength: float, compose: bool
) -> tuple[Edit, str]:
    """The edit without a gate, and what it is."""
    from steer.mixture import mixture
    from steer.weights import check_strength

    weights = weights_of(weight)
    at = "" if strength == 1 else f" at strength {strength:g}"
    if (weights is None) == (entry is None):
        raise InputError("expected either weights or an entry: -w TRAIT=NUMBER or --entry N")
    if weights is not None:
        shown = ", ".join(f"{name} {number:g}" for name, number in weights.items())
        return mixture(bundle, weights, strength, compose=compose), f"{shown}{at}"
    if bundle.portfolio is None or entry is None or entry > len(bundle.portfolio.edits):
        number = 0 if bundle.portfolio is None else len(bundle.portfolio.edits)
        raise InputError(f"entry: the bundle's portfolio has {number}, got {entry}")
    return check_strength(strength) * bundle.portfolio.edit(entry), f"entry {entry}{at}"
