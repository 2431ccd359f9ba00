"""`steer personalize` and `steer forget`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.app import app
from steer.cli.console import doing, out
from steer.cli.options import BundleFile, Model, Seed, bundle_path, load_steerer
from steer.errors import DataError, InputError

if TYPE_CHECKING:
    from steer.history import HistoryItem

_HISTORY = (
    'a .txt file with a text in each line, or .jsonl with {"text": ..., "prompt": ..., '
    '"disliked": ...} in each, of which only the first is needed'
)
# Suffixes of files whose marks and brackets would be learnt as what the person writes.
_OTHERS = {".json", ".ndjson", ".csv"}

Name = Annotated[str, typer.Option(help="Whose profile it is.")]


@app.command(
    epilog="Example: [bold]steer personalize ann.jsonl --name ann --output people.safetensors"
    '[/bold], then [bold]steer generate "Any plans?" --bundle people.safetensors --profile ann'
    "[/bold]"
)
def personalize(
    history: Annotated[
        Path,
        typer.Argument(help=f"What a person wrote or liked, in the order of time: {_HISTORY}."),
    ],
    name: Name,
    output: Annotated[
        Path,
        typer.Option(
            help="Bundle with the profile in it: a new file, or the bundle itself, for one profile "
            "more."
        ),
    ],
    keep_evidence: Annotated[
        bool, typer.Option("--keep-evidence", help="Keep texts of the history in the profile.")
    ] = False,
    seed: Seed = None,
    model: Model = None,
    bundle: BundleFile = None,
) -> None:
    """Make a profile from a person's history, without training, and save it in a bundle.

    The bundle keeps what else is in it. A profile holds no text unless --keep-evidence.
    """
    from steer.bundle import check_output, remember
    from steer.personalizer import Personalization
    from steer.profile import check_name

    # What can be refused is refused before the slow part.
    check_name(name)
    items = read_items(history)
    source = bundle_path(bundle)
    check_output(output, source)
    # A profile of another model than the bundle's could not be kept in it.
    steerer = load_steerer(model, bundle, force=False)
    with doing("reading how they write"):
        profile = steerer.personalize(
            items, Personalization(seed=seed or 0), keep_evidence=keep_evidence
        )
        remember(output, name, profile, source)
    used, given = profile.statistics["items used"], profile.statistics["items"]
    out.print(
        f"{name}: {used} of {given} texts, {profile.dose:.2f} nats per token, "
        f"{float(profile.statistics['seconds']):.0f} s -> {output}",
        soft_wrap=True,
    )


@app.command(epilog="Example: [bold]steer forget people.safetensors ann[/bold]")
def forget(
    bundle: Annotated[Path, typer.Argument(help="Bundle file with the profile in it.")],
    name: Annotated[str, typer.Argument(help="Whose profile goes.")],
) -> None:
    """Delete a person's profile from a bundle; nothing of it stays in the file."""
    from steer.bundle import forget as forget_profile

    left = len(forget_profile(bundle, name).profiles)
    out.print(f"{name} is forgotten; profiles left in {bundle}: {left}", soft_wrap=True)


def read_items(path: Path) -> list[HistoryItem]:
    """A history from a file.

    Raises:
        DataError: If it cannot be read, or a line is not what it should be.
    """
    from steer.history import HistoryItem

    kind = path.suffix.lower()
    if kind in _OTHERS:
        raise DataError(f"{path}: expected {_HISTORY}, got {kind}")
    try:
        # Not `splitlines`, which also breaks a text at the separators of Unicode within it.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    items = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line)) if kind == ".jsonl" else HistoryItem(line))
        except RecursionError as error:
            raise DataError(f"{path}, line {number}: its values are nested too deeply") from error
        except (ValueError, InputError) as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if not items:
        raise DataError(f"{path}: expected a text in a line, got none")
    return items


def _item(value: Any) -> HistoryItem:
    from steer.history import HistoryItem

    if isinstance(value, str):
        return HistoryItem(value)
    known = {"text", "prompt", "disliked"}
    if not isinstance(value, dict) or "text" not in value or value.keys() - known:
        raise InputError(
            f"expected a text, or an object with 'text' and perhaps 'prompt' and 'disliked', got "
            f"{value!r:.80}"
        )
    return HistoryItem(**value)
