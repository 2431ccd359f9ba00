"""`steer traits`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from steer.cli.app import app
from steer.cli.console import out


@app.command(epilog="Example: [bold]steer traits --folder my-traits[/bold]")
def traits(
    folder: Annotated[
        Path | None, typer.Option(help="Folder of trait files. Default: the built-in traits.")
    ] = None,
) -> None:
    """List traits with their two poles."""
    from steer.traits import load_traits

    table = Table(box=SIMPLE_HEAD)
    for heading in ("trait", "positive pole", "negative pole"):
        table.add_column(heading, no_wrap=heading == "trait")
    table.add_column("description", overflow="fold")
    for name, trait in load_traits(folder).items():
        table.add_row(
            *map(Text, (name, trait.positive.pole, trait.negative.pole, trait.description))
        )
    out.print(table)
