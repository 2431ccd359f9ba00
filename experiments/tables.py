"""Results as files: what is known of a run, its rows, and the tables that people read."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
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


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """What is known of a run."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_markdown(path: Path, text: str) -> None:
    """Tables for people, printed as well."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
