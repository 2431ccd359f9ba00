"""Rows of results as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from steer.resources import atomic_path

DIGITS = 5


def write_csv(path: Path, kind: type[Any], rows: Sequence[Any]) -> None:
    """Dataclass values of one kind, a line each under their fields' names."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(kind)])
        writer.writerows(
            [round(x, DIGITS) if isinstance(x, float) else x for x in astuple(row)] for row in rows
        )
