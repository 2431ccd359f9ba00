"""Files that long work appends to: what a kill, other settings or damage leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steer.errors import DataError
from steer.journal import Journal, read_journal

HEADER = {"model": "tiny", "layers": (1, 2)}
ROWS = ({"a": 1}, {"b": "two\nlines ü"}, {"c": [0.1, None]})


def written(folder: Path) -> Path:
    path = folder / "deep" / "work.jsonl"
    journal = Journal(path, HEADER)
    assert journal.rows == ()
    journal.append(ROWS[:2])
    journal.append(ROWS[2:])
    return path


def test_it_is_one_json_value_a_line(tmp_path: Path) -> None:
    lines = written(tmp_path).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"model": "tiny", "layers": [1, 2]}, *ROWS]
    header, rows = read_journal(tmp_path / "deep" / "work.jsonl")
    assert header == {"model": "tiny", "layers": [1, 2]} and tuple(rows) == ROWS


@pytest.mark.parametrize("lost", [1, 5, 12])
def test_half_a_row_is_written_anew(tmp_path: Path, lost: int) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    journal = Journal(path, HEADER)
    assert journal.rows == ROWS[:2]
    journal.append(ROWS[2:])
    assert path.read_bytes() == whole


def test_only_the_first_rows_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path)
    journal = Journal(path, HEADER)
    journal.keep(1)
    assert journal.rows == ROWS[:1]
    assert Journal(path, HEADER).rows == ROWS[:1]


def test_rows_of_two_that_write_are_not_mixed(tmp_path: Path) -> None:
    first = Journal(tmp_path / "work.jsonl", HEADER)
    second = Journal(first.path, HEADER)
    first.append(ROWS[:1])
    for late in (lambda: second.append(ROWS[1:2]), lambda: second.keep(0)):
        with pytest.raises(DataError, match="by another process; wait"):
            late()
    first.append(ROWS[1:])
    assert Journal(first.path, HEADER).rows == ROWS


def test_what_is_whole_is_not_written_again(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.stat()
    Journal(path, {"layers": (1, 2)}).keep(3)
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"other settings \(model, seed differ\).*--work-dir"):
        Journal(path, {**HEADER, "model": "large", "seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a header with rows"),
        (b'{"model": 1}', "not a header with rows"),
        (b'{"model": 1}\n[2]\n', "not a header with rows"),
        (b'{"model": 1}\n{"a": \n', "not a readable JSON Lines file"),
        (b"\xff\xfe\n", "not a readable JSON Lines file"),
    ],
)
def test_damage_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "work.jsonl"
    path.write_bytes(content)
    for open_it in (read_journal, lambda path: Journal(path, HEADER)):
        with pytest.raises(DataError, match=message):
            open_it(path)
    assert path.read_bytes() == content


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a readable"):
        read_journal(tmp_path / "none.jsonl")
