"""JSON Lines files that long work appends to, so that a run that was killed goes on.

The first line is a header with everything that the rows hang on; a file is only continued by work
with the same header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.errors import DataError
from steer.resources import atomic_path

Row = dict[str, Any]


def read_journal(path: Path) -> tuple[Row, list[Row]]:
    """The header and the rows of a file; half a row, as a kill can leave it, is passed over.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        rows: list[Row] = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON Lines file: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: not a header with rows; delete the file")
    return rows[0], rows[1:]


class Journal:
    """A file that is being written; what was in it when it was opened is in `rows`."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open a file, or begin it.

        Args:
            path: JSON Lines file.
            header: What its rows hang on: JSON values.

        Raises:
            DataError: If the file is damaged or was made with other settings.
        """
        self.path = path
        # As it will read back, so that the two can be compared.
        self.header: Row = json.loads(json.dumps(header))
        self.rows: tuple[Row, ...] = ()
        if path.exists():
            found, rows = read_journal(path)
            wanted = self.header
            if changed := [key for key in wanted if found.get(key) != wanted[key]]:
                raise DataError(
                    f"{path} was made with other settings ({', '.join(changed)} differ); "
                    "choose another folder or delete the file"
                )
            self.rows = tuple(rows)
        self.keep(len(self.rows))

    def keep(self, number: int) -> None:
        """Drop all rows but the first ones from the file."""
        self.rows = self.rows[:number]
        with atomic_path(self.path) as temporary:
            temporary.write_text(_text([self.header, *self.rows]), encoding="utf-8")

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, and make sure that they are on disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text(rows))
            file.flush()
            os.fsync(file.fileno())


def _text(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
