"""The README's Python examples run, in order, in one session."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest
import transformers

from tests.test_serve_real import serving

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
        if "127.0.0.1" not in example:
            exec(compile(example, "README.md", "exec"), namespace)


@pytest.mark.real
@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="needs transformers 5")
def test_examples_of_the_server_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(folder=tmp_path) as (url, _):
        asked = [one for one in blocks("python") if "127.0.0.1:8000" in one]
        (curl,) = [one for one in blocks("sh") if one.startswith("curl")]
        assert len(asked) == 1
        example = asked[0].replace("http://127.0.0.1:8000", url)
        exec(compile(example, "README.md", "exec"), {})
        assert len(capsys.readouterr().out.split()) > 5
        command = shlex.split(curl.replace("http://127.0.0.1:8000", url))
        address, body = command[2], command[-1]
        assert command[:2] == ["curl", "-s"] and command[-2] == "-d"
        found = httpx.post(
            address, content=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        reply, (shown,) = found.json(), [one for one in blocks("json") if "chatcmpl" in one]
        assert len(reply["choices"][0]["message"]["content"].split()) > 3
        # The lines of the answer that is shown are broken at spaces.
        shown = json.loads(" ".join(shown.split()))
        assert reply.keys() == shown.keys() and reply["steer"] == shown["steer"]
        assert reply["usage"]["prompt_tokens"] == shown["usage"]["prompt_tokens"]


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
