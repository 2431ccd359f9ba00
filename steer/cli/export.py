"""`steer export`: one edit for engines that know nothing of steer."""

from __future__ import annotations

from enum import Enum
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


class Format(str, Enum):
    """What is written."""

    GGUF = "gguf"
    REPENG = "repeng"
    HF = "hf"


@app.command(
    epilog="Examples: [bold]steer export gguf -w brevity=1 brief.gguf[/bold]; "
    "[bold]steer export gguf entries/[/bold]; [bold]steer export hf -w brevity=1 brief-model[/bold]"
)
def export(
    form: Annotated[
        Format,
        typer.Argument(
            metavar="gguf|repeng|hf",
            help="A control vector for llama.cpp (--control-vector), the same for repeng "
            "(ControlVector.import_gguf), or a checkpoint with the edit in its biases, which runs "
            "in any engine without hooks.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="File, or a folder: for a checkpoint, or for a control vector of every entry, "
            "which are written without -w and --entry."
        ),
    ],
    weight: Weight = None,
    entry: Annotated[
        int | None,
        typer.Option("--entry", min=1, help="An entry of the portfolio, in place of -w."),
    ] = None,
    strength: Annotated[float, typer.Option(help="Multiplies the default dose.")] = 1.0,
    compose: Compose = False,
    model: Model = None,
    bundle: BundleFile = None,
    force: Force = False,
) -> None:
    """Write one edit for engines that know nothing of steer.

    It then acts on every request, at every position, and without the bundle's gate.
    """
    from steer.bundle import Bundle

    if form is not Format.HF and (model is not None or force):
        raise InputError("--model and --force are for checkpoints; a control vector needs no model")
    if compose and weight is None:
        raise InputError("--compose has no effect without weights; add -w TRAIT=NUMBER")
    held = Bundle.load(bundle_path(bundle))
    if form is Format.HF:
        edit, told = _asked(held, weight, entry, strength, compose)
        _write_checkpoint(held, edit, told, output, model, force)
        out.print(f"{told} -> {output}", soft_wrap=True)
        return
    wanted = _entries(held, output) if weight is None and entry is None else {output: entry}
    for path, number in wanted.items():
        edit, told = _asked(held, weight, number, strength, compose)
        _write_vector(held, edit, path)
        out.print(f"{told} -> {path}", soft_wrap=True)


def _write_checkpoint(
    bundle: Bundle, edit: Edit, told: str, output: Path, model: str | None, force: bool
) -> None:
    from steer.export.additive import offsets
    from steer.export.checkpoint import bake, check_new
    from steer.models import load_model

    # What cannot be exported, or not there, is refused before the slow part.
    vectors = offsets(edit)
    check_new(output)
    with doing("loading the model"):
        loaded = load_model(model)
    bundle.check_model(loaded.fingerprint, force=force)
    bake(
        loaded, vectors, output, f"{loaded.name}, steered by {told}. Written by `steer export hf`."
    )


def _write_vector(bundle: Bundle, edit: Edit, path: Path) -> None:
    from steer.export.additive import offsets
    from steer.export.control_vector import model_type, write_control_vector

    write_control_vector(path, offsets(edit), model_type(bundle.fingerprint))


def _entries(bundle: Bundle, folder: Path) -> dict[Path, int | None]:
    """A file for every entry of the portfolio."""
    if bundle.portfolio is None:
        raise InputError("expected weights or an entry; add -w TRAIT=NUMBER or --entry N")
    if folder.suffix == ".gguf" or folder.is_file():
        raise InputError(
            f"{folder}: expected a folder, for a file of every entry; add -w TRAIT=NUMBER or "
            "--entry N, or name a folder"
        )
    numbers = range(1, len(bundle.portfolio.edits) + 1)
    return {folder / f"entry-{number:02d}.gguf": number for number in numbers}


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
