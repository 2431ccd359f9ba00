"""`steer.cli`: every command on a tiny model, through `main` as the entry point calls it."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steer import cli, demo
from steer.bundle import Bundle
from steer.certificate import certify
from steer.cli.console import harmless
from steer.cli.personalize import read_items
from steer.cover import Closeness, is_cover
from steer.edits import additive
from steer.errors import DataError, LowReliabilityWarning, ModelError, WeightsError
from steer.generation import Decoding, Generated
from steer.interference import Interference
from steer.models import Fingerprint, load_model
from steer.objective import Objective
from steer.picture import grids, heat_map
from steer.portfolio import Candidate, Portfolio
from steer.posterior import Posterior
from steer.precompute import PortfolioRecipe
from steer.preference import Preference
from steer.profile import Profile
from steer.questions import Answered
from steer.recipe import Recipe
from steer.trait_entry import TraitEntry

WIDTH, LAYERS, TOKENS = 32, 4, 6
WORDS = ["<pad>", "</s>", "<unk>", "hello", "world", "short", "kind", "user", "assistant"]
WORDS += [f"word{i}" for i in range(40)]
# The edit of a trait makes the model say one word over and over.
SAYS = {"brevity": "short", "warmth": "kind", "zest": "world"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its bundle, and the same model without a chat template."""
    folder = tmp_path_factory.mktemp("cli")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            initializer_range=0.25,
            eos_token_id=None,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    for name in ("plain", "model"):
        if name == "model":
            fast.chat_template = (
                "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"
            )
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    loaded = load_model(folder / "model", device="cpu")
    head = model.lm_head.weight.detach().numpy()
    entries = {name: entry(name, 100 * head[WORDS.index(word)]) for name, word in SAYS.items()}
    bundle = Bundle("tiny", loaded.fingerprint, "response", entries, {"seed": 0}, {"steer": "0"})
    bundle.save(folder / "bundle.safetensors")
    return folder


def entry(name: str, vector: np.ndarray, layer: int = LAYERS - 1, **changes: object) -> TraitEntry:
    fields: dict[str, object] = {
        "description": f"About {name}.",
        "positive": "more",
        "negative": "less",
        "edit": additive({layer: vector}),
        "dose": 0.25,
        "method": "mean-difference",
        "reliability": 0.5 if name != "zest" else 0.05,
        "ccs_loss": {1: 0.3, 2: 0.1, 3: 0.2},
        "direction_norm": {1: 1.0, 2: 2.0, 3: 40.0},
        "statistics": {
            "pairs kept": 50,
            "pairs dropped, looping": 7,
            "gain on develop prompts": 1.5,
            "measure": "words",
        },
    }
    return TraitEntry(name, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def steer(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Runs a command line; gives its exit code and what it wrote."""

    def run(*arguments: str, on: str | None = None) -> tuple[int, str, str]:
        if on is not None:
            arguments += ("--model", str(folder / on))
            arguments += ("--bundle", str(folder / "bundle.safetensors"))
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def fails(result: tuple[int, str, str], code: int, *parts: str) -> None:
    """One line of error, no traceback, nothing on stdout."""
    assert result[0] == code, result
    assert result[1] == ""
    assert re.fullmatch(r"error: [^\n]+\n", result[2]), result[2]
    for part in parts:
        assert part in result[2]


# --- Help, version, usage -------------------------------------------------------------------------


def test_version_and_help(steer) -> None:
    from steer import __version__

    assert steer("--version") == (0, f"steer {__version__}\n", "")
    for arguments in ((), ("--help",)):
        code, out, _ = steer(*arguments)
        assert code == 0
        for command in ("demo", "build", "generate", "chat", "inspect", "personalize", "traits"):
            assert command in out
            code, text, _ = steer(command, "--help")
            assert code == 0 and "Example" in text


def test_no_sentence_of_a_help_is_broken_into_lines() -> None:
    for command in typer.main.get_command(cli.app).commands.values():
        assert not [part for part in command.help.split("\n\n")[1:] if "\n" in part], command.name


def test_defaults_in_the_help_are_those_of_the_engine() -> None:
    recipe, decoding = Recipe(), Decoding()
    source = inspect.getsource(cli.build) + inspect.getsource(cli.options)
    assert f"{recipe.method} (default)" in source
    assert f"{recipe.layers} (default)" in source
    assert f"8 to 300. Default: {recipe.prompts}." in source
    assert f"8 to 100. Default: {recipe.develop_prompts}." in source
    assert f"0 is none. Default: {recipe.confirm_prompts}." in source
    assert f"Default: {recipe.interference_prompts}." in source
    assert f"in tokens. Default: {decoding.max_new_tokens}." in source
    assert f"1 is none. Default: {decoding.repetition_penalty}." in source


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, steer.cli; steer.cli.main(['--help']); steer.cli.main(['nosuch']);"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_usage_errors(steer) -> None:
    fails(steer("nosuch"), 2, "nosuch", "steer --help")
    fails(steer("generate"), 2, "prompt", "steer generate --help")
    fails(steer("generate", "Hi", "--seed", "9" * 26), 2, "--seed")
    fails(steer("generate", "hello", "--nosuch"), 2, "--nosuch")
    fails(steer("generate", "hello", "--max-new-tokens", "0"), 2, "--max-new-tokens")
    fails(steer("generate", "hello", "-w", "brevity"), 2, "TRAIT=NUMBER")
    fails(steer("generate", "hello", "-w", "brevity=much"), 2, "expected a number, got 'much'")
    fails(steer("generate", "hello", "-w", "brevity=1", "-w", "brevity=0"), 2, "given twice")
    fails(steer("generate", "hello", "--top-p", "0.5"), 2, "--top-p", "--sample")
    fails(steer("generate", "hello", "--strength", "0.5"), 2, "no effect without weights")
    fails(steer("generate", "hello", "--compare"), 2, "no effect without weights")
    fails(steer("generate", "hello", "-w", "brevity=1", "--strength=-1"), 2, "strength")
    fails(steer("generate", " "), 2, "the prompt is empty")


# --- generate -------------------------------------------------------------------------------------


def test_generate_writes_only_the_answer(steer, folder: Path) -> None:
    code, out, err = steer("generate", "hello world", "--max-new-tokens", "6", on="model")
    assert (code, err) == (0, "")
    assert out.endswith("\n") and out.count("\n") == 1
    assert 1 <= len(out.split()) <= TOKENS and set(out.split()) <= set(WORDS)

    arguments = ("generate", "hello world", "--max-new-tokens", "6", "-w", "brevity=2")
    assert steer(*arguments, on="model") == (0, "short " * 5 + "short\n", "")
    assert steer(*arguments, "--strength", "0", on="model") == (0, out, "")


def test_generate_reads_stdin(steer, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = steer("generate", "hello world", "--max-new-tokens", "6", on="model")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello world\n"))
    assert steer("generate", "-", "--max-new-tokens", "6", on="model") == direct
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    fails(steer("generate", "-", on="model"), 2, "the prompt is empty")


def types_bytes(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)


def test_generate_refuses_bytes_that_are_no_text(steer, monkeypatch: pytest.MonkeyPatch) -> None:
    types_bytes(monkeypatch, "Où est le café?\n".encode("latin-1"))
    fails(steer("generate", "-", on="model"), 2, "prompt: expected valid Unicode", "caf")
    fails(steer("generate", "-", on="model"), 2, "the prompt is empty")  # it has been read


def test_generate_samples_repeatably(steer) -> None:
    arguments = ["generate", "hello", "--max-new-tokens", "20", "--sample"]
    arguments += ["--temperature", "2", "--top-k", "30", "--top-p", "0.99"]
    first = steer(*arguments, "--seed", "1", on="model")
    assert first[0] == 0
    assert first == steer(*arguments, "--seed", "1", on="model")
    assert first != steer(*arguments, "--seed", "2", on="model")


def test_generate_compares(steer) -> None:
    arguments = ("generate", "hello", "-w", "warmth=1", "--max-new-tokens", "6", "--compare")
    code, out, _ = steer(*arguments, on="model")
    assert code == 0
    assert re.search(r"unsteered .* warmth 1 ", out) and "kind kind kind" in out


def test_generate_by_another_method(steer) -> None:
    options = ("--max-new-tokens", "6", "--method")
    code, out, err = steer("generate", "hello", "-w", "warmth=1", *options, "best-of-n", on="model")
    assert (code, err) == (0, "") and out.count("\n") == 1 and set(out.split()) <= set(WORDS)
    arguments = ("generate", "hello", "-w", "warmth=1", "--compare", *options, "system-prompt")
    code, out, _ = steer(*arguments, on="model")
    assert code == 0 and re.search(r"unsteered .* warmth 1, system-prompt ", out)
    arguments = ("generate", "hello", "-w", "warmth=1", *options)
    fails(steer(*arguments, "magic", on="model"), 2, "unknown method 'magic'", "few-shot")
    fails(steer(*arguments, "best-of-n", "--compose", on="model"), 2, "--compose mixes edits")
    fails(steer("generate", "hello", *options, "best-of-n", on="model"), 2, "-w TRAIT=NUMBER")


def test_generate_refuses(steer, folder: Path, tmp_path: Path) -> None:
    model, bundle = str(folder / "model"), str(folder / "bundle.safetensors")
    fails(
        steer("generate", "hello", "-w", "nosuch=1", on="model"),
        2,
        "unknown trait 'nosuch'",
        "brevity, warmth, zest",
    )
    fails(steer("generate", "hello", "-w", "brevity=-1", on="model"), 2, "brevity")
    fails(steer("generate", "hello", "-w", "brevity=0", on="model"), 2, "all weights are zero")
    fails(steer("generate", "hello", "--bundle", str(tmp_path / "no")), 1, "no such file")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(Path(bundle).read_bytes()[:-10])
    fails(steer("generate", "hello", "--model", model, "--bundle", str(damaged)), 1, "truncated")
    missing = str(tmp_path / "no-model")
    fails(steer("generate", "hello", "--model", missing, "--bundle", bundle), 1, "no-model")


def test_another_model_is_refused_unless_forced(steer, folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "bundle.safetensors")
    other = Fingerprint("LlamaForCausalLM", LAYERS, WIDTH, len(WORDS), "0" * 64)
    path = tmp_path / "other.safetensors"
    Bundle("other", other, "response", bundle.traits, {}, {}).save(path)
    arguments = ["generate", "hello", "-w", "brevity=1", "--max-new-tokens", "6"]
    arguments += ["--model", str(folder / "model"), "--bundle", str(path)]
    fails(steer(*arguments), 1, "built on 'other'")
    code, out, err = steer(*arguments, "--force")
    assert (code, out) == (0, "short " * 5 + "short\n")
    assert err.startswith("warning: the bundle was built on 'other'") and err.count("\n") == 1


# --- personalize, forget --------------------------------------------------------------------------


HISTORY = [
    {"text": "word1 word2 word3", "prompt": "hello"},
    {"text": "word3 word1", "prompt": "world", "disliked": "short"},
    "word2 word1",
]


def test_a_profile_is_made_used_and_forgotten(steer, folder: Path, tmp_path: Path) -> None:
    history, people = tmp_path / "ann.jsonl", tmp_path / "people.safetensors"
    history.write_text("\n".join(map(json.dumps, HISTORY)) + "\n\n", encoding="utf-8")
    made = ("personalize", str(history), "--name", "ann", "--output", str(people))
    code, out, _ = steer(*made, on="model")
    assert code == 0
    assert re.match(r"ann: 3 of 3 texts, \d\.\d\d nats per token, \d+ s -> ", out)
    assert out.endswith(f" -> {people}\n")
    bundle = Bundle.load(people)
    assert list(bundle.profiles) == ["ann"] and set(bundle.traits) == set(SAYS)
    assert bundle.profiles["ann"].evidence == () and b"word3" not in people.read_bytes()

    code, out, _ = steer("inspect", str(people))
    assert code == 0 and re.search(r"ann +3 +\d\.\d\d +\d+ +0 +imitation", out)
    code, out, _ = steer("inspect", str(people), "--json")
    told = json.loads(out)["profiles"]["ann"]
    arrays = [layer.e.nbytes for layer in bundle.profiles["ann"].edit.layers.values()]
    assert told["size"] == sum(arrays) and told["statistics"]["items used"] == 3

    used = ["generate", "hello", "--max-new-tokens", "6", "--model", str(folder / "model")]
    used += ["--bundle", str(people)]
    plain = steer(*used)
    assert steer(*used, "--profile", "ann", "--strength", "0") == plain
    assert steer(*used, "--profile", "ann", "--strength", "9") != plain
    code, out, _ = steer(*used, "--profile", "ann", "--compare")
    assert code == 0 and re.search(r"unsteered .* ann ", out)
    fails(steer(*used, "--profile", "ben"), 2, "no profile 'ben' among the bundle's 1")
    fails(steer(*used, "--profile", "ann", "-w", "zest=1"), 2, "weights or a profile, got both")
    fails(steer(*used, "--profile", "ann", "--compose"), 2, "--compose has no effect")

    code, out, _ = steer("forget", str(people), "ann")
    assert code == 0 and out.startswith("ann is forgotten") and out.rstrip().endswith(": 0")
    assert b"ann" not in people.read_bytes()
    fails(steer("forget", str(people), "ann"), 2, "no profile 'ann'")


def test_people_who_are_stored_stay_as_others_come(steer, folder: Path, tmp_path: Path) -> None:
    history, people = tmp_path / "history.txt", tmp_path / "people.safetensors"
    history.write_text("word1 word2\nword3 word4\n", encoding="utf-8")
    model = ("--model", str(folder / "model"))

    def made(name: str, bundle: Path) -> tuple[int, str, str]:
        written = ("--name", name, "--output", str(people), "--bundle", str(bundle))
        return steer("personalize", str(history), *written, *model)

    first = folder / "bundle.safetensors"
    assert made("ann", first)[0] == 0
    kept = people.read_bytes()
    fails(made("ben", first), 2, "people.safetensors exists", f"--bundle {people}")
    assert people.read_bytes() == kept
    link = tmp_path / "link.safetensors"
    link.symlink_to(people)
    assert made("ben", people)[0] == made("eve", link)[0] == 0
    assert set(Bundle.load(people).profiles) == {"ann", "ben", "eve"}
    people.unlink()
    fails(made("ann", tmp_path / "none.safetensors"), 1, "no such file")


def test_evidence_is_kept_if_asked(steer, tmp_path: Path) -> None:
    history, people = tmp_path / "ann.txt", tmp_path / "people.safetensors"
    history.write_text("word1 word2\n\nword3 word4\n", encoding="utf-8")
    made = ("personalize", str(history), "--name", "ann", "--output", str(people))
    assert steer(*made, "--keep-evidence", on="model")[0] == 0
    kept = Bundle.load(people).profiles["ann"].evidence
    assert [item.text for item in kept] == ["word1 word2", "word3 word4"]


def test_who_is_forgotten_through_a_link_is_gone_from_the_file(steer, tmp_path: Path) -> None:
    history, people = tmp_path / "ann.txt", tmp_path / "kept" / "people.safetensors"
    history.write_text("word1 word2\n\nword3 word4\n", encoding="utf-8")
    made = ("personalize", str(history), "--name", "ann", "--output", str(people))
    assert steer(*made, "--keep-evidence", on="model")[0] == 0
    people.chmod(0o640)
    link = tmp_path / "people.safetensors"
    link.symlink_to(people)
    assert b"word3" in people.read_bytes()
    assert steer("forget", str(link), "ann")[0] == 0
    assert link.is_symlink() and Bundle.load(people).profiles == {}
    assert b"word3" not in people.read_bytes()
    assert stat.S_IMODE(people.stat().st_mode) == 0o640
    kept = {people.name, f".{people.name}.lock"}
    assert {path.name for path in people.parent.iterdir()} == kept


def test_what_others_write_while_a_profile_is_made_stays(
    steer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steer.steerer import Steerer

    history, people = tmp_path / "ann.txt", tmp_path / "people.safetensors"
    history.write_text("word1 word2\nword3 word4\n", encoding="utf-8")
    model = ("--model", str(folder / "model"))

    def made(name: str, output: Path, bundle: Path) -> tuple[int, str, str]:
        written = ("--name", name, "--output", str(output), "--bundle", str(bundle))
        return steer("personalize", str(history), *written, *model)

    source = folder / "bundle.safetensors"
    assert made("ann", people, source)[0] == 0
    personalize = Steerer.personalize

    def slowly(then):
        def slow(self, *arguments, **options):
            monkeypatch.setattr(Steerer, "personalize", personalize)
            profile = personalize(self, *arguments, **options)
            then()
            return profile

        monkeypatch.setattr(Steerer, "personalize", slow)

    def meanwhile() -> None:
        assert steer("forget", str(people), "ann")[0] == 0
        assert made("eve", people, people)[0] == 0

    slowly(meanwhile)
    assert made("ben", people, people)[0] == 0
    assert set(Bundle.load(people).profiles) == {"ben", "eve"}

    fresh = tmp_path / "fresh.safetensors"
    slowly(lambda: made("eve", fresh, source))
    code, _, err = made("ben", fresh, source)
    assert code == 2 and "fresh.safetensors exists" in err
    assert set(Bundle.load(fresh).profiles) == {"eve"}


def test_a_profile_is_made_with_the_bundles_own_model(steer, folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "bundle.safetensors")
    other = tmp_path / "other.safetensors"
    fingerprint = replace(bundle.fingerprint, weights="f" * 64)
    replace(bundle, fingerprint=fingerprint, portfolio=None).save(other)
    history = tmp_path / "ann.txt"
    history.write_text("word1 word2\n", encoding="utf-8")
    made = ("personalize", str(history), "--name", "ann", "--output", str(tmp_path / "people"))
    on = ("--model", str(folder / "model"), "--bundle", str(other))
    fails(steer(*made, *on), 1, "differs in: weights")
    fails(steer(*made, *on, "--force"), 2, "--force")


@pytest.mark.parametrize("between", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_texts_are_not_broken_within(between: str, tmp_path: Path) -> None:
    text = f"I like tea.{between}And cake."
    lines = f"{json.dumps({'text': text}, ensure_ascii=False)}\r\n\r\n" + '"So."'
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines.encode("utf-8-sig"))
    assert [item.text for item in read_items(path)] == [text, "So."]
    plain = tmp_path / "a.txt"
    plain.write_bytes(f"{text}\r\nSo.\r\n".encode("utf-8-sig"))
    assert [item.text for item in read_items(plain)] == [text, "So."]


@pytest.mark.parametrize("suffix", [".json", ".JSON", ".ndjson", ".csv"])
def test_histories_of_other_kinds_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text('[{"text": "I like tea."}]')
    with pytest.raises(DataError, match=r"expected a \.txt file .*\.jsonl"):
        read_items(path)


def test_how_the_end_of_a_name_is_written_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    path.write_text('{"text": "I like tea."}')
    assert [item.text for item in read_items(path)] == ["I like tea."]


def test_histories_that_are_none_are_refused(steer, folder: Path, tmp_path: Path) -> None:
    path, people = tmp_path / "a.jsonl", str(tmp_path / "people.safetensors")

    def tried(text: str, name: str = "ann") -> tuple[int, str, str]:
        path.write_text(text, encoding="utf-8")
        return steer("personalize", str(path), "--name", name, "--output", people, on="model")

    fails(tried("\n\n"), 1, "expected a text in a line, got none")
    fails(tried('"hi"\n{"text": 3}\n'), 1, "a.jsonl, line 2", "expected text, got 3")
    fails(tried('{"txt": "hi"}'), 1, "line 1", "an object with 'text'")
    fails(tried("{"), 1, "line 1")
    fails(tried('"hi"\n' + "[" * 100_000), 1, "a.jsonl, line 2", "nested too deeply")
    fails(tried('"hello there"', name="a/b"), 2, "without '/'")
    path.unlink()
    missing = ("personalize", str(path), "--name", "ann", "--output", people)
    fails(steer(*missing, on="model"), 1, "cannot be read")
    assert not Path(people).exists()


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-m", "steer.cli", "inspect", str(folder / "bundle.safetensors")]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


# --- chat -----------------------------------------------------------------------------------------


@pytest.fixture
def chat(steer, monkeypatch: pytest.MonkeyPatch):
    """Types lines into a chat; gives what it wrote."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, err = steer("chat", "--max-new-tokens", "6", *options, on="model")
        assert code == 0
        return out.splitlines(), err

    return run


def test_chat_sets_weights_on_the_fly(chat) -> None:
    out, err = chat(
        "hello", "/set brevity 1", "hello", "/set brevity 0", "/set warmth=0.8", "hello", "/quit"
    )
    assert err == ""
    assert out[0] != "short " * 5 + "short"
    assert out[1] == "brevity 1 (100%); strength 1"
    assert out[2] == "short " * 5 + "short"
    assert out[3] == "No trait is set: answers are unsteered (/strength 1)."
    assert out[4] == "warmth 0.8 (100%); strength 0.8"
    assert out[5] == "kind " * 5 + "kind"
    assert len(out) == 6


def test_chat_strength_is_that_of_the_largest_slider(chat, monkeypatch) -> None:
    from steer.steerer import Steerer

    asked = []
    stream = Steerer.stream

    def spy(self, prompt, weights=None, *, strength=1.0, **options):
        asked.append((dict(weights or {}), strength, [m["content"] for m in prompt]))
        return stream(self, prompt, weights, strength=strength, **options)

    monkeypatch.setattr(Steerer, "stream", spy)
    out, _ = chat("hello", "/strength 0.5", "world", "/set warmth 3", "/reset", "hello", *["", " "])
    assert asked[0] == ({}, 0.0, ["hello"])
    assert asked[1] == ({}, 0.0, ["hello", out[0], "world"])
    assert asked[2] == ({"warmth": 3.0}, 0.5, ["hello"])

    asked.clear()
    options = ("-w", "brevity=0.5", "-w", "warmth=0.25", "--strength", "0.8")
    out, _ = chat("hello", "/weights", options=options)
    assert asked == [({"brevity": 0.5, "warmth": 0.25}, 0.4, ["hello"])]
    assert out[1] == "brevity 0.5 (67%), warmth 0.25 (33%); strength 0.4"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/nosuch", "/help lists the commands"),
        ("/set brevity", "expected /set TRAIT NUMBER"),
        ("/set brevity much", "expected a number, got 'much'"),
        ("/set brevity -1", "expected a number >= 0"),
        ("/set brevity nan", "expected a number >= 0"),
        ("/set nosuch 1", "known traits: brevity, warmth, zest"),
        ("/strength -1", "strength"),
        ("/weights now", "expected /weights"),
        ("/", "/help lists the commands"),
    ],
)
def test_chat_goes_on_after_a_bad_command(chat, line: str, part: str) -> None:
    out, err = chat(line, "/weights")
    assert re.fullmatch(r"error: [^\n]+\n", err) and part in err
    assert out == ["No trait is set: answers are unsteered (/strength 1)."]


def test_chat_goes_on_after_a_failed_answer(chat, monkeypatch) -> None:
    from steer.steerer import Steerer

    stream = Steerer.stream

    def broken(self, prompt, weights=None, **options):
        if prompt[-1]["content"] == "fail":
            raise WeightsError("something is wrong")
        if prompt[-1]["content"] == "stop":
            return interrupted()
        assert [m["content"] for m in prompt] in (["hello"], ["hello", "half", "hello"])
        return stream(self, prompt, weights, **options)

    def interrupted():
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Steerer, "stream", broken)
    out, err = chat("fail", "stop", "hello")
    assert err == "error: something is wrong\n"
    assert out[:1] == ["(stopped)"] and len(out) == 2


def test_chat_goes_on_after_bytes_that_are_no_text(steer, monkeypatch) -> None:
    types_bytes(monkeypatch, b"caf\xe9\n/set caf\xe9 1\nhello\n")
    code, out, err = steer("chat", "--max-new-tokens", "6", on="model")
    assert code == 0 and len(out.splitlines()) == 1
    told = err.splitlines()
    assert "expected valid Unicode" in told[0] and "unknown trait" in told[1] and len(told) == 2


def test_chat_lists_commands_and_traits(chat) -> None:
    out, err = chat("/help", "/traits", "/exit", "hello")
    assert err == ""
    assert [line.split()[0] for line in out[:7]] == [
        "/set",
        "/strength",
        "/weights",
        "/traits",
        "/reset",
        "/help",
        "/quit",
    ]
    assert out[7:] == ["brevity: About brevity.", "warmth: About warmth.", "zest: About zest."]


def test_chat_needs_a_chat_template(steer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    fails(steer("chat", on="plain"), 1, "no chat template", "steer generate")


# --- inspect and its pictures ---------------------------------------------------------------------


def test_inspect_prints_json(steer, folder: Path) -> None:
    path = folder / "bundle.safetensors"
    code, out, err = steer("inspect", str(path), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == Bundle.load(path).info()


HOSTILE = "\x1b]0;gone\x07\x1b[2J\x1b[31m\x9b\u202ered\u2066"


def test_text_of_a_bundle_cannot_command_a_terminal(steer, folder: Path, tmp_path: Path) -> None:
    assert harmless(HOSTILE + "\n\tä") == "\ufffd]0;gone\ufffd\ufffd[2J\ufffd[31m" + (
        "\ufffd\ufffdred\ufffd\n\tä"
    )
    bundle = Bundle.load(folder / "bundle.safetensors")
    told = {"gain on develop prompts": 1.0, "measure": HOSTILE, "layer rule": HOSTILE}
    traits = {name: replace(one, statistics=told) for name, one in bundle.traits.items()}
    hostile = replace(bundle, model=HOSTILE, versions={HOSTILE: HOSTILE}, traits=traits)
    path = tmp_path / "hostile.safetensors"
    hostile.save(path)

    def check(written: str) -> None:
        assert "red" in written and not set("\x07\x1b\x9b\u202e\u2066") & set(written)

    code, out, _ = steer("inspect", str(path))
    assert code == 0
    check(out)
    code, out, _ = steer("push", str(path), "ann/manners", "--show-card")
    assert code == 0
    check(out)
    code, _, err = steer("inspect", f"no{HOSTILE}")
    assert code == 1
    check(err)


def test_inspect_shows_traits_and_heat_maps(steer, folder: Path) -> None:
    code, out, err = steer("inspect", str(folder / "bundle.safetensors"))
    assert (code, err) == (0, "")
    assert re.search(r"brevity +0\.50 +3 +0\.25 +\+1\.5 words", out)
    assert re.search(r"zest +LOW 0\.05", out) and "hardly agree on a direction" in out
    assert re.search(r"brevity +50 +7", out)
    assert "CCS loss" in out and re.search(r"brevity +█ ▁ ▅•", out)
    assert "Norm of the mean difference" in out and re.search(r"brevity +▁ ▂ █•", out)


def test_inspect_tells_of_a_portfolio_on_its_own(steer, folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "bundle.safetensors")
    assert "made on its own" not in steer("inspect", str(folder / "bundle.safetensors"))[1]
    made_with = {"precision": "bfloat16", "versions": {"steer": "9.8.7"}}
    told = replace(bundle, settings={**bundle.settings, "portfolio_made_with": made_with})
    told.save(tmp_path / "b")
    code, out, _ = steer("inspect", str(tmp_path / "b"))
    assert code == 0
    assert re.search(r"portfolio +made on its own: precision bfloat16, versions .*9\.8\.7", out)


def test_inspect_draws_a_picture(steer, folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "layers.png"
    path = str(folder / "bundle.safetensors")
    code, _, err = steer("inspect", path, "--picture", str(picture))
    assert code == 0 and err == f"wrote {picture}\n"
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000 and height > 400
    assert os.listdir(tmp_path) == ["layers.png"]

    fails(steer("inspect", path, "--picture", str(tmp_path / "layers.txt")), 2, ".png")
    svg = tmp_path / "layers.svg"
    code, out, _ = steer("inspect", path, "--picture", str(svg), "--json")
    assert code == 0 and json.loads(out) and "<svg" in svg.read_text()


def test_inspect_refuses(steer, tmp_path: Path) -> None:
    fails(steer("inspect", str(tmp_path / "no")), 1, "no such file")
    fails(steer("inspect", str(tmp_path)), 1, "is a folder")
    text = tmp_path / "text"
    text.write_text("this is not a bundle")
    fails(steer("inspect", str(text)), 1, "not a safetensors file")


def test_the_default_bundle_may_be_missing(steer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("steer.resources.data_dir", lambda: tmp_path)
    for command in (["inspect"], ["demo"], ["generate", "hello"]):
        fails(steer(*command), 1, "steer build")


def test_heat_map_of_ragged_and_flat_grids(steer, folder: Path, tmp_path: Path) -> None:
    vector = np.ones(WIDTH, dtype=np.float32)
    ragged = {"ccs_loss": {0: 0.2, 5: 0.2}, "direction_norm": {0: 0.0, 5: 0.0}}
    fingerprint = Fingerprint("Llama", 6, WIDTH, 9, "0" * 64)
    traits = {"a": entry("a", vector, **ragged), "b": entry("b", vector)}
    bundle = Bundle("m", fingerprint, "all", traits, {}, {})
    loss, norm = grids(bundle)
    assert loss.layers == (0, 1, 2, 3, 4, 5)
    assert np.isnan(loss.values[0, 1]) and loss.edited[:, 3].all()
    assert heat_map(norm, 80).plain.splitlines()[2] == "a  ▁ · · ·•· ▁ "
    assert "•" not in heat_map(norm, 12).plain
    path = tmp_path / "ragged.safetensors"
    bundle.save(path)
    assert steer("inspect", str(path), "--picture", str(tmp_path / "p.png"))[0] == 0

    empty = {"ccs_loss": {}, "direction_norm": {}}
    Bundle("m", fingerprint, "all", {"a": entry("a", vector, **empty)}, {}, {}).save(path)
    assert steer("inspect", str(path))[0] == 0
    fails(steer("inspect", str(path), "--picture", str(tmp_path / "q.png")), 2, "nothing to draw")


# --- demo -----------------------------------------------------------------------------------------


def test_demo(steer, folder: Path) -> None:
    code, out, err = steer("demo", "--max-new-tokens", "6", on="model")
    assert (code, err) == (0, "")
    for prompt in demo.PROMPTS:
        assert prompt in out
    assert f"model    {folder / 'model'}\n" in out
    assert f"bundle   {folder / 'bundle.safetensors'}\n" in out
    assert "weights  brevity 1; warmth 1; brevity 0.5 + warmth 0.5\n" in out
    assert re.search(r"│ unsteered  \d words +│ brevity 1  6 words +│", out)
    assert re.search(r"brevity 1 +│ words \(lower", out) and "short short short" in out
    assert re.search(r"16 answers .* in \d", out)
    assert max(map(len, out.splitlines()[4:-3])) <= 80


def test_demo_prompts_are_its_own() -> None:
    from steer.prompts import load_prompts

    stored = {p.text for split in ("extract", "develop", "report") for p in load_prompts(split)}
    assert not stored & set(demo.PROMPTS)


def test_demo_settings_fit_the_bundle() -> None:
    def settings(*names: str) -> list[dict[str, float]]:
        vector = np.ones(WIDTH, dtype=np.float32)
        fingerprint = Fingerprint("Llama", LAYERS, WIDTH, 9, "0" * 64)
        traits = {name: entry(name, vector) for name in names}
        return [
            dict(w) for w in demo.choose_settings(Bundle("m", fingerprint, "all", traits, {}, {}))
        ]

    full = settings("brevity", "formality", "humor", "positivity", "simplicity", "warmth")
    assert full[0] == {"brevity": 1.0} and len(full) == 4
    assert full[-1] == {"warmth": 0.5, "positivity": 0.5}
    assert settings("brevity", "humor") == [
        {"brevity": 1.0},
        {"humor": 1.0},
        {"brevity": 0.5, "humor": 0.5},
    ]
    assert settings("humor") == [{"humor": 1.0}]
    assert settings() == []


def test_demo_measures_the_change() -> None:
    def answers(*texts: str) -> list[Generated]:
        return [Generated(text, (1,), True) for text in texts]

    result = demo.Demonstration(
        ("one", "two"),
        [{"brevity": 1.0}, {"humor": 1.0}],
        answers("One two three four five six.", "One two three four."),
        [answers("One two.", "One two."), answers("", "ha " * 20)],
        1.0,
    )
    columns = [list(column.cells) for column in demo.measured_table(result).columns]
    rows = [[str(cell) for cell in row] for row in zip(*columns, strict=True)]
    assert rows == [
        ["unsteered", "", "", "", "", "0/2", "0/2"],
        ["brevity 1", "words (lower wanted)", "5.00", "2.00", "-3.00", "0/2", "0/2"],
        ["humor 1", "(has no text measure)", "", "", "", "1/2", "1/2"],
    ]


# --- build ----------------------------------------------------------------------------------------


@pytest.fixture
def builds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The calls of a stand-in for the engine's `build`."""
    from steer.contrast import PairSet

    calls: list[tuple] = []

    def build(model, traits, *, recipe, portfolio, work_dir, progress, on_subspace):
        import warnings
        from types import SimpleNamespace

        assert progress
        calls.append((model, traits, recipe, portfolio, work_dir))
        if model == "interrupt":
            raise KeyboardInterrupt
        if model == "fail":
            raise ModelError("several\nlines")
        on_subspace(PairSet("zest", (), {"same": 3}), SimpleNamespace(reliability=0.05))
        warnings.warn("reliability is low", LowReliabilityWarning, stacklevel=2)
        return Bundle.load(folder / "bundle.safetensors")

    monkeypatch.setattr("steer.pipeline.build", build)
    return calls


def test_build(steer, builds, tmp_path: Path) -> None:
    trait = tmp_path / "zest.yaml"
    trait.write_text("name: zest\npositive: Be zesty.\nnegative: Be dull.\n")
    output = tmp_path / "new" / "mine.safetensors"
    arguments = ["build", "--model", "m", "--trait", "brevity", "--trait", str(trait)]
    arguments += ["--method", "svd", "--layers", "middle", "--prompts", "9", "--seed", "3"]
    arguments += ["--interference-prompts", "5"]
    arguments += ["--develop-prompts", "8", "--work-dir", str(tmp_path), "-o", str(output)]
    code, out, err = steer(*arguments)
    assert code == 0
    assert Bundle.load(output).model == "tiny"
    ((model, traits, recipe, portfolio, work_dir),) = builds
    assert (model, portfolio, work_dir) == ("m", None, tmp_path)
    assert traits[0] == "brevity" and traits[1].name == "zest"
    assert recipe == Recipe(
        method="svd",
        layers="middle",
        prompts=9,
        develop_prompts=8,
        interference_prompts=5,
        seed=3,
    )
    assert err.splitlines() == [
        "zest: 0 of 3 pairs kept, reliability 0.05; making its edit",
        "warning: reliability is low",
    ]
    assert re.search(r"zest +LOW 0\.05 +3 +0\.25 +\+1\.5 words", out)
    assert f"{output}: 3 traits, {output.stat().st_size:,} bytes, built in " in out


def test_build_has_a_default_output_for_the_whole_packaged_model(
    steer, builds, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("steer.resources.data_dir", lambda: tmp_path)
    assert steer("build")[0] == 0
    assert builds == [(None, None, Recipe(), None, None)]
    assert (tmp_path / "bundles" / "smollm2-135m-instruct.safetensors").is_file()
    fails(steer("build", "--model", "m"), 2, "--output")
    fails(steer("build", "--trait", "brevity"), 2, "--output")
    fails(steer("build", "--output", str(tmp_path)), 2, "is a folder")
    fails(steer("build", "--prompts", "3"), 2, "prompts: expected 8 to 300, got 3")
    fails(steer("build", "--interference-prompts", "3"), 2, "expected 0 or 4 to 100, got 3")
    fails(steer("build", "--method", "magic"), 2, "magic")
    fails(steer("build", "--ray-address", "auto"), 2, "add --workers")
    fails(steer("build", "--trait", "no.yaml", "-o", str(tmp_path / "b")), 2, "no.yaml")
    assert len(builds) == 1


def peopled(folder: Path, path: Path, *names: str) -> None:
    """A bundle's file with profiles in it."""
    bundle = Bundle.load(folder / "bundle.safetensors")
    edit = additive({2: np.ones(WIDTH, np.float32)})
    one = Profile(bundle.fingerprint, edit, 0.1, False, "style", "imitation", {}, None, ())
    bundle.with_profiles(dict.fromkeys(names, one)).save(path)


def test_build_writes_over_no_profiles(steer, builds, folder: Path, tmp_path: Path) -> None:
    people = tmp_path / "people.safetensors"
    peopled(folder, people, "ann")
    kept = people.read_bytes()
    fails(steer("build", "-o", str(people)), 2, "holds 1 profiles, which would be lost")
    assert people.read_bytes() == kept and not builds
    people.write_bytes(kept[:-1])
    assert steer("build", "-o", str(people))[0] == 0


def test_build_of_a_bundles_edits_has_its_people_as_they_are_by_then(
    steer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, other = tmp_path / "people.safetensors", tmp_path / "other.safetensors"
    then: list[tuple[str, ...]] = []

    def build_portfolio(bundle, *arguments, **options):
        peopled(folder, people, *then.pop())
        return replace(bundle, settings={"made": "anew"})

    monkeypatch.setattr("steer.pipeline.build_portfolio", build_portfolio)
    anew = ("build", "--edits-of", str(people), "--traits", "brevity,zest", "--size", "3")
    for output in (people, other):
        peopled(folder, people, "ann", "ben")
        then.append(("ben", "eve"))
        assert steer(*anew, "-o", str(output))[0] == 0
        made = Bundle.load(output)
        assert set(made.profiles) == {"ben", "eve"} and made.settings == {"made": "anew"}


def test_build_in_a_precision(steer, builds, tmp_path: Path, monkeypatch) -> None:
    loaded: list[tuple] = []
    monkeypatch.setattr(
        "steer.models.load_model", lambda model, *, dtype: loaded.append((model, dtype)) or "loaded"
    )
    output = ("--output", str(tmp_path / "b"))
    assert steer("build", "--model", "m", "--dtype", "bfloat16", *output)[0] == 0
    assert loaded == [("m", torch.bfloat16)] and builds[0][0] == "loaded"
    fails(steer("build", "--model", "m", "--dtype", "int8", *output), 2, "--dtype", "int8")
    assert len(loaded) == 1


def test_build_makes_a_portfolio(steer, builds, tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "b"))
    assert steer("build", "--traits", "brevity, warmth", "--size", "3", *output)[0] == 0
    assert builds[0][1] == ["brevity", "warmth"]
    assert builds[0][3] == PortfolioRecipe(("brevity", "warmth"), size=3)
    arguments = ("--trait", "zest.yaml", "--traits", "brevity,warmth", "--delta", "0.02")
    fails(steer("build", *arguments, *output), 2, "zest.yaml")
    fails(steer("build", "--size", "3", *output), 2, "--traits")
    fails(steer("build", "--traits", "brevity,warmth", *output), 2, "size")
    fails(steer("build", "--traits", "brevity,warmth", "--size", "3"), 2, "--output")
    assert len(builds) == 1
    everything = ("build", "--all", "--traits", "brevity,warmth", "--size", "3")
    assert steer(*everything, *output)[0] == 0
    assert builds[1][1] is None and builds[1][3] == builds[0][3]
    fails(steer(*everything, "--trait", "brevity", *output), 2, "exclude each other")


def test_build_makes_only_a_portfolio(
    steer, builds, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    calls: list[tuple] = []

    def build_portfolio(bundle, portfolio, model, traits, *, search, work_dir, progress):
        assert progress
        calls.append((bundle, portfolio, model, traits, search, work_dir))
        if model == "interrupt":
            raise KeyboardInterrupt
        return bundle

    monkeypatch.setattr("steer.pipeline.build_portfolio", build_portfolio)
    trait = tmp_path / "zest.yaml"
    trait.write_text("name: zest\npositive: Be zesty.\nnegative: Be dull.\n")
    edits, output = folder / "bundle.safetensors", tmp_path / "mine.safetensors"
    arguments = ("build", "--edits-of", str(edits), "-o", str(output))
    mixed = ("--traits", "brevity,zest", "--size", "3")
    own = ("--trait", str(trait), "--work-dir", str(tmp_path), "--model", "m")
    code, out, _ = steer(*arguments, *mixed, *own)
    assert code == 0 and "3 traits" in out
    ((bundle, portfolio, model, traits, search, work_dir),) = calls
    assert search
    assert output.read_bytes() == edits.read_bytes() and bundle.model == "tiny"
    assert portfolio == PortfolioRecipe(("brevity", "zest"), size=3)
    assert (model, work_dir) == ("m", tmp_path)
    assert [one.name for one in traits] == ["zest"]
    code, _, err = steer(*arguments, *mixed, "--model", "interrupt")
    assert code == 130 and "goes on with this build where it stopped" in err
    calls.clear()
    assert steer(*arguments, *mixed, "--confirm-only", "--shortlist", "40")[0] == 0
    _, again, _, _, search, _ = calls.pop()
    assert (again, search) == (replace(portfolio, shortlist=40), False)
    fails(steer("build", "-o", str(output), "--confirm-only"), 2, "--edits-of")
    fails(steer("build", "-o", str(output), "--shortlist", "3"), 2, "--traits")
    fails(steer("build", "--edits-of", str(edits), "--confirm-only"), 2, "--traits A,B,C")
    fails(steer(*arguments), 2, "--traits A,B,C", "--interference-prompts N")
    fails(steer(*arguments, *mixed, "--interference-prompts", "8"), 2, "one thing anew")
    fails(steer(*arguments, *mixed, "--all"), 2, "leave out", "all")
    fails(steer(*arguments, *mixed, "--no-gate", "--seed", "3"), 2, "leave out", "gated, seed")
    fails(steer("build", "--edits-of", str(edits), *mixed), 2, "--output")
    missing = ("build", "--edits-of", str(tmp_path / "none"), "-o", str(output))
    fails(steer(*missing, *mixed), 1, "none")
    assert not calls and not builds


def test_build_interference_alone(
    steer, builds, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def build_interference(bundle, prompts, model, traits, *, work_dir, progress):
        assert progress
        calls.append((prompts, model, traits, work_dir))
        return bundle

    monkeypatch.setattr("steer.pipeline.build_interference", build_interference)
    edits, output = folder / "bundle.safetensors", tmp_path / "mine.safetensors"
    arguments = ("build", "--edits-of", str(edits), "-o", str(output))
    code, out, _ = steer(*arguments, "--interference-prompts", "8", "--work-dir", str(tmp_path))
    assert code == 0 and "3 traits" in out
    assert calls == [(8, None, None, tmp_path)] and not builds
    assert output.read_bytes() == edits.read_bytes()
    fails(steer(*arguments, "--interference-prompts", "8", "--seed", "3"), 2, "leave out", "seed")


def test_build_stops(steer, builds, tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "b"))
    code, out, err = steer("build", "--model", "interrupt", *output)
    assert (code, out) == (130, "") and "goes on with this build where it stopped" in err
    fails(steer("build", "--model", "fail", *output), 1, "several lines")
    assert not (tmp_path / "b").exists()


def test_ctrl_c_ends_the_process(folder: Path) -> None:
    command = [sys.executable, "-m", "steer.cli", "chat", "--model", str(folder / "model")]
    command += ["--bundle", str(folder / "bundle.safetensors")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background, signals of the keyboard are ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("/weights\n")
        process.stdin.flush()
        assert "No trait is set" in process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err


# --- traits ---------------------------------------------------------------------------------------


def test_traits(steer, tmp_path: Path) -> None:
    code, out, _ = steer("traits")
    assert code == 0 and re.search(r"brevity +brief +long +How few words", out)
    (tmp_path / "zest.yaml").write_text("name: zest\npositive: Be zesty.\nnegative: Be dull.\n")
    code, out, _ = steer("traits", "--folder", str(tmp_path))
    assert code == 0 and "zest" in out and "brevity" not in out
    fails(steer("traits", "--folder", str(tmp_path / "no")), 2, "no such folder")
    (tmp_path / "bad.yaml").write_text("name: [")
    fails(steer("traits", "--folder", str(tmp_path)), 2, "bad.yaml")


# --- Cover ----------------------------------------------------------------------------------------


def test_cover(steer, tmp_path: Path) -> None:
    path = tmp_path / "cover.csv"
    closeness = ("--eps-prime", "0.4", "--delta-prime", "0.0125")
    code, out, _ = steer("cover", "--dim", "3", *closeness, "--out", str(path))
    assert code == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "w1,w2,w3"
    weights = np.array([[float(x) for x in line.split(",")] for line in lines[1:]])
    assert len(weights) <= 36
    assert is_cover(weights, Closeness(0.4, 0.0125)).verdict == "yes"
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["combined"][2:] == ["46", "yes"]
    assert rows["optimised"][1:] == [str(len(weights)), "yes"]
    assert rows["uniform"][2] == rows["random"][2] == "no"
    assert "Lower bound: 36" in out


def test_cover_for_a_guarantee_and_of_a_size(steer) -> None:
    code, out, _ = steer("cover", "--dim", "2", "--epsilon", "0.5", "--delta", "0.2")
    first = out.splitlines()[0]
    epsilon, delta = (float(x) for x in re.findall(r"\((\S+), (\S+)\)-optimal", first)[0])
    assert code == 0 and epsilon <= 0.5 and delta <= 0.2
    code, out, _ = steer("cover", "--dim", "2", "--epsilon", "0.2", "--size", "4")
    (optimised,) = [line.split() for line in out.splitlines() if "optimised" in line]
    assert code == 0 and int(optimised[1]) <= 4 and optimised[2] == "yes"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "--eps-prime"),
        (("--eps-prime", "0.4"), "--delta-prime"),
        (("--eps-prime", "0.4", "--delta-prime", "0.1", "--size", "4"), "--size"),
        (("--epsilon", "0.4", "--delta", "0"), "delta"),
        (("--eps-prime", "0.4", "--delta-prime", "0.1", "--method", "best"), "best"),
        (("--epsilon", "0.2", "--size", "7", "--refinement", "5"), "--refinement has no effect"),
    ],
)
def test_cover_of_bad_arguments(steer, options: tuple[str, ...], part: str) -> None:
    fails(steer("cover", "--dim", "3", *options), 2, part)


# --- route ----------------------------------------------------------------------------------------


@pytest.fixture
def routed(folder: Path, tmp_path: Path) -> Path:
    """The bundle with a portfolio of one entry, which says "world" to any mixture."""
    bundle = Bundle.load(folder / "bundle.safetensors")
    rewards, kl = np.array([[0.1, 0.2], [0.8, 0.6]]), np.array([0.0, 0.25])
    objective = Objective()
    portfolio = Portfolio(
        ("brevity", "warmth"),
        ("length", "warm words"),
        objective,
        (Candidate("own", (0.0, 0.0)), Candidate("own", (0.5, 0.5))),
        rewards,
        kl,
        (1,),
        (bundle.traits["zest"].edit,),
        certify(objective.measured(rewards, kl), (1,)),
    )
    path = tmp_path / "routed.safetensors"
    replace(bundle, portfolio=portfolio).save(path)
    return path


def test_route_tells_the_entry(steer, routed: Path) -> None:
    code, out, err = steer("route", "-w", "brevity=3", "-w", "warmth=1", "--bundle", str(routed))
    assert (code, err) == (0, "")
    assert "entry 1" in out and "warm words" in out and "0.75" in out
    assert "relative to the 2 measured edits" in out
    code, out, _ = steer("route", "-w", "brevity=1", "--strength", "0.5", "--bundle", str(routed))
    assert code == 0 and "not 0.5" in out


def test_route_refuses(steer, folder: Path, routed: Path) -> None:
    fails(steer("route", "--bundle", str(routed)), 2, "-w")
    for wanted in (("-w", "zest=1"), ("-w", "zest=1", "-w", "brevity=1")):
        refused = steer("route", *wanted, "--bundle", str(routed))
        fails(refused, 2, "'zest' is not in the portfolio, so it is composed", "brevity, warmth")
    fails(steer("route", "-w", "nosuch=1", "--bundle", str(routed)), 2, "unknown trait 'nosuch'")
    plain = str(folder / "bundle.safetensors")
    fails(steer("route", "-w", "brevity=1", "--bundle", plain), 2, "no portfolio")


def test_generate_routes_or_composes(steer, folder: Path, routed: Path) -> None:
    arguments = ["hello", "-w", "brevity=1", "--max-new-tokens", "3", "--no-repeat-ngram-size", "0"]
    files = ["--model", str(folder / "model"), "--bundle", str(routed)]
    _, out, _ = steer("generate", *arguments, *files)
    assert out.split() == ["world"] * 3
    _, out, _ = steer("generate", *arguments, "--compose", *files)
    assert out.split() == ["short"] * 3
    fails(steer("generate", "hello", "--compose", *files), 2, "--compose")


# --- onboard --------------------------------------------------------------------------------------


@pytest.fixture
def asked(routed: Path) -> Path:
    """The routed bundle with prompts that both of its edits answered."""
    bundle = Bundle.load(routed)
    assert bundle.portfolio is not None
    answered = (
        Answered("Why?", ("plain " * 200, "kind words"), np.array([[0.9, 0.1], [0.1, 0.9]])),
        Answered("How?", ("so", "like this"), np.array([[0.8, 0.2], [0.3, 0.7]])),
        Answered("When?", ("now", "soon, dear"), np.array([[0.9, 0.3], [0.2, 0.6]])),
    )
    replace(bundle, portfolio=replace(bundle.portfolio, answered=answered)).save(routed)
    return routed


def says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_onboard_asks_and_keeps(
    steer, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person who always takes the warm answer is found out, whichever side it is on."""
    bundle = ("--bundle", str(asked), "--regret", "0")
    sides = set()
    for seed in ("0", "1", "2"):
        chosen = ""
        for count in range(1, 4):
            says(monkeypatch, chosen + "q\n")
            shown = steer("onboard", *bundle, "--seed", seed)[1]
            last = shown.split("Which do you prefer?")[count - 1]
            (line,) = [one for one in last.splitlines() if re.search("kind|like this|soon", one)]
            chosen += "1\n" if re.match(r"\s{1,4}(kind|like|soon)", line) else "2\n"
        sides |= set(chosen.split())
        says(monkeypatch, chosen)
        me = tmp_path / f"{seed}{'-me' * 20}.json"
        code, out, err = steer("onboard", *bundle, "--seed", seed, "--output", str(me))
        assert (code, err) == (0, "") and out.count("Which do you prefer?") == 3
        assert "(200 words in all)" in " ".join(out.split()) and "●" in out
        assert "You are served by entry 1" in out and f"\nkept in {me}\n" in out
        assert Preference.load(me).weights["warmth"] > 0.6
    assert sides == {"1", "2"}


def test_onboard_reads_again_skips_and_ends(steer, asked: Path, monkeypatch) -> None:
    for answers, questions in (("x\ns\nS\ns\n", 3), ("s\n", 2), ("", 1), ("q", 1)):
        says(monkeypatch, answers)
        code, out, _ = steer("onboard", "--bundle", str(asked), "--regret", "0")
        assert code == 0 and out.count("Which do you prefer?") == questions
        assert out.count("1, 2, s or q") == answers.count("x")
        assert "0.50" in out
    types_bytes(monkeypatch, b"caf\xe9\nq\n")
    code, out, _ = steer("onboard", "--bundle", str(asked), "--regret", "0")
    assert code == 0 and out.count("1, 2, s or q") == 1
    says(monkeypatch, "")
    _, out, _ = steer("onboard", "--bundle", str(asked), "--regret", "1")
    assert "Which" not in out  # it is certain enough


def test_onboard_goes_on(steer, asked: Path, tmp_path: Path) -> None:
    me, bundle = tmp_path / "me.json", ("--bundle", str(asked), "--questions", "0")
    _, _, err = steer("onboard", *bundle, "--wish", "Be kind and warm.", "--output", str(me))
    assert err == "read as warmth 1.00\n"
    assert Preference.load(me).weights["warmth"] > 0.7
    code, out, _ = steer("onboard", *bundle, "--from", str(me))
    assert code == 0 and "above all more" in out
    fails(steer("onboard", *bundle, "--from", str(me), "--wish", "be kind"), 2, "--from")
    fails(steer("onboard", *bundle, "--wish", "The train was late."), 2, "brevity, warmth")
    Preference({"zest": "zesty"}, Posterior.prior([1.0])).save(me)
    fails(steer("onboard", *bundle, "--from", str(me)), 2, "zest")


def test_onboard_asks_nothing_that_cannot_be_kept(steer, asked: Path, tmp_path: Path) -> None:
    fails(steer("onboard", "--bundle", str(asked), "-o", str(tmp_path)), 2, "is a folder")


def test_onboard_needs_answers(steer, folder: Path, routed: Path) -> None:
    for path in (routed, folder / "bundle.safetensors"):
        fails(steer("onboard", "--bundle", str(path)), 2, "no answers to ask about")


def test_generate_by_wish_or_preference(steer, folder: Path, asked: Path, tmp_path: Path) -> None:
    me = tmp_path / "me.json"
    Preference.of(Bundle.load(asked), {"warmth": 1}).save(me)
    files = ("--model", str(folder / "model"), "--bundle", str(asked))
    options = ("--max-new-tokens", "3", "--no-repeat-ngram-size", "0", *files)
    _, out, _ = steer("generate", "hello", "--preference", str(me), *options)
    assert out.split() == ["world"] * 3
    _, out, err = steer("generate", "hello", "--wish", "Keep it short.", "--compose", *options)
    assert out.split() == ["short"] * 3
    assert err == "read as brevity 1.00\n"
    kind = ("--wish", "Be funny, and kind.", "--compose")
    _, out, err = steer("generate", "hello", *kind, *options)
    assert out.split() == ["kind"] * 3 and err == "read as warmth 1.00\n"
    fails(
        steer("generate", "hello", "--wish", "Be formal.", *options), 2, "traits: brevity, warmth"
    )
    both = ("--wish", "Keep it short.", "-w", "brevity=1")
    fails(steer("generate", "hello", *both, *options), 2, "one of -w, --preference and --wish")
    fails(steer("generate", "hello", "--preference", f"{me}x", *options), 1, "me.jsonx")


def test_inspect_shows_interference(steer, folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(folder / "bundle.safetensors")
    linear = np.array([[0.4, 0.0, -0.31], [0.12, 0.0, 0.09], [-0.4, 0.0, 0.75]])
    quadratic = np.zeros((3, 3, 3))
    quadratic[0, 0, 0] = 0.1  # half a dose does less than half
    names = ("brevity", "warmth", "zest")
    path = tmp_path / "interfering.safetensors"
    replace(bundle, interference=Interference(names, linear, quadratic)).save(path)
    code, out, _ = steer("inspect", str(path))
    assert code == 0
    told = {row[0]: row[1:] for row in map(str.split, out.splitlines()) if row}
    (brief,) = [line for line in out.splitlines() if "zest -0.31" in line]
    assert brief.split() == ["brevity", "0.50", "zest", "-0.31"]
    assert told["zest"] == ["0.75", "brevity", "-0.40"]
    assert told["warmth"] == ["unknown", "brevity", "0.12"]
    assert "raises" not in steer("inspect", str(folder / "bundle.safetensors"))[1]


def test_inspect_holds_the_portfolio(steer, routed: Path) -> None:
    content = json.loads(steer("inspect", str(routed), "--json")[1])["portfolio"]
    rewards = [{"brevity": 0.1, "warmth": 0.2}, {"brevity": 0.8, "warmth": 0.6}]
    assert [row["rewards"] for row in content["candidates"]] == rewards
    unsteered, entry = content["entries"]
    assert (unsteered["serves"], unsteered["weights"], unsteered["kl"]) == (0, None, 0)
    assert (entry["candidate"], entry["serves"], entry["kl"]) == (1, 1, 0.25)
    assert entry["rewards"] == rewards[1]
    assert entry["weights"] == pytest.approx({"brevity": 0.5, "warmth": 0.5}, abs=0.01)
    certificate = content["certificate"]
    assert (certificate["epsilon"], certificate["delta"], certificate["candidates"]) == (0, 0, 2)
    assert set(certificate["worst_w"]["delta"]) == {"brevity", "warmth"}


def test_inspect_shows_and_draws_the_portfolio(steer, folder: Path, routed: Path) -> None:
    picture = routed.with_suffix(".png")
    code, out, err = steer("inspect", str(routed), "--portfolio-picture", str(picture))
    assert code == 0 and err == f"wrote {picture}\n"
    assert re.search(r"entry 1 +100\.0% +0\.250 +0\.80 +0\.60 *\n", out)
    assert re.search(r"entry 1 +0\.50 brevity, 0\.50 warmth +own", out)
    assert re.search(r"unsteered +0\.0% +0\.000", out)
    assert "relative to the 2 measured edits" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    plain = str(folder / "bundle.safetensors")
    fails(steer("inspect", plain, "--portfolio-picture", str(picture)), 2, "nothing to draw")
    wrong = str(routed.with_suffix(".txt"))
    fails(steer("inspect", str(routed), "--portfolio-picture", wrong), 2, ".png")


# --- serve ---------------------------------------------------------------------------------------


def test_a_server_that_anybody_could_reach_wants_keys(steer, tmp_path) -> None:
    fails(steer("serve", "--host", "0.0.0.0"), 2, "0.0.0.0", "--keys FILE")
    fails(steer("serve", "--host", "example.org"), 2, "--no-keys")
    fails(steer("serve", "--keys", str(tmp_path / "none")), 2, "not a readable file of keys")
    fails(steer("serve", "--store", "nosuch"), 2, "database URL")
    fails(steer("serve", "--rows", "0"), 2, "--rows")


def test_options_of_several_engines_are_refused_for_one(steer) -> None:
    pytest.importorskip("steer.serve.server", reason="serving needs transformers 5")
    fails(steer("serve", "--ray-address", "auto"), 2, "--ray-address", "add --replicas")
    fails(steer("serve", "--replica-cpus", "8"), 2, "--replica-cpus has no effect", "--replicas")


@pytest.mark.parametrize(
    ("host", "shown"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")]
)
def test_a_server_tells_where_it_can_be_reached(
    steer, monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    pytest.importorskip("steer.serve.server", reason="serving needs transformers 5")
    model = f"a-model{'-with-a-name' * 6}"
    state = SimpleNamespace(service=SimpleNamespace(model=model))
    monkeypatch.setattr("steer.serve.server.make_app", lambda _: SimpleNamespace(state=state))
    monkeypatch.setattr("steer.serve.logs.log_as_json", lambda: None)
    listened = []
    monkeypatch.setattr("steer.serve.listen.bound", lambda *at: contextlib.nullcontext(at))
    monkeypatch.setattr("steer.serve.listen.listen", lambda *told: listened.append(told[1]))
    code, out, _ = steer("serve", "--host", host)
    assert (code, out) == (0, f"serving {model} at http://{shown}:8000/v1\n")
    assert listened == [(host, 8000)]


@pytest.mark.parametrize("more", [(), ("--replicas", "2")])
def test_a_port_in_use_is_told_before_the_slow_part(steer, monkeypatch, more) -> None:
    pytest.importorskip("steer.serve.server", reason="serving needs transformers 5")
    monkeypatch.setattr("steer.serve.server.make_app", lambda _: pytest.fail("loaded a model"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        told = f"cannot listen on 127.0.0.1, port {port}: Address already in use"
        fails(steer("serve", "--port", port, *more), 1, told, "--port")
    fails(steer("serve", "--host", "256.0.0.1", "--no-keys", *more), 1, "256.0.0.1, port 8000")


def test_pages_that_no_browser_names_so_are_refused(steer) -> None:
    pytest.importorskip("steer.serve.server", reason="serving needs transformers 5")
    for origin in ("example.org", "https://app.example.org/", "https://Example.org", "https://"):
        fails(steer("serve", "--origin", origin), 2, "scheme://host", origin)


# --- play ----------------------------------------------------------------------------------------


def test_a_playground_is_for_oneself_unless_that_is_not_meant(steer) -> None:
    pytest.importorskip("gradio", reason="the playground needs pip install 'steer-engine[play]'")
    fails(steer("play", "--host", "0.0.0.0"), 2, "0.0.0.0", "--no-keys")


def test_a_playground_says_what_it_needs(steer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "steer.play.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    fails(steer("play"), 1, "pip install 'steer-engine[play]'")
