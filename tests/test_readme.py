"""The README's Python examples run, in order, in one session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.real
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("python")
    assert len(examples) >= 4
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


def test_cli_examples_name_commands_that_exist() -> None:
    from typer.main import get_command

    from steer.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = {
        match.group(1)
        for block in blocks("(?:sh|console)")
        for match in re.finditer(r"^(?:\$ )?(?:\.venv/bin/)?steer (\w+)", block, flags=re.MULTILINE)
    }
    assert named and named <= known


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
