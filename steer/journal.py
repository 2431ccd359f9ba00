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
from steer.resources import atomic_path, locked

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
    """A file that is being written; what was in it when it was opened is in `rows`.

    Only one may write a file at a time: rows of another process are not mixed with its own.
    """

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
        with locked(path):
            if path.exists():
                found, rows = read_journal(path)
                wanted = self.header
                if changed := [key for key in wanted if found.get(key) != wanted[key]]:
                    raise DataError(
                        f"{path} was made with other settings ({', '.join(changed)} differ); "
                        "choose another folder (--work-dir) or delete the file"
                    )
                self.header, self.rows = found, tuple(rows)
            self._size = self._write()

    def keep(self, number: int) -> None:
        """Drop all rows but the first ones from the file.

        Raises:
            DataError: If another process has written it meanwhile.
        """
        with locked(self.path):
            self._check_unchanged()
            self.rows = self.rows[:number]
            self._size = self._write()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, and make sure that they are on disk.

        Raises:
            DataError: If another process has written the file meanwhile.
        """
        data = _bytes(rows)
        with locked(self.path):
            self._check_unchanged()
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._size += len(data)

    def _write(self) -> int:
        """Make the file what it should be, if it is something else; gives its size."""
        data = _bytes([self.header, *self.rows])
        if not self.path.exists() or self.path.read_bytes() != data:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(data)
        return len(data)

    def _check_unchanged(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._size:
            raise DataError(
                f"{self.path} has changed while it was being written, by another process; wait "
                "until that is done and begin again, or choose another folder"
            )


def _bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
