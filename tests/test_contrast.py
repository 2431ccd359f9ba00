"""Contrast data: what is kept, what is dropped, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from steer import contrast
from steer.contrast import generate_pairs, instructed, read_pairs
from steer.errors import DataError
from steer.generation import Decoding, Generated
from steer.models import LanguageModel
from steer.prompts import Prompt, load_prompts
from steer.traits import Trait
from tests.models import tiny

TRAIT = Trait(
    "calm", ["Be calm.", "Stay quiet."], ["Panic!", "Shout!"], description="How calm it is."
)
PROMPTS = load_prompts("extract")[:20]
SAMPLING = Decoding(max_new_tokens=6, do_sample=True, temperature=1.0, repetition_penalty=1.0)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "BATCH_PROMPTS", 4)


def scripted(answers: Callable[[str], str]) -> Callable[..., list[Generated]]:
    """A stand-in for generation that answers each rendered prompt by rule."""

    def generate(model: object, texts: list[str], *_: object, **__: object) -> list[Generated]:
        return [Generated(answers(text), (5, 6, 7), True) for text in texts]

    return generate


GOOD = {
    "Be calm.": "All is well, so rest and breathe slowly.",
    "Panic!": "Oh no, everything burns and we must run right now!",
}


@pytest.mark.parametrize(
    ("calm", "panic", "reason"),
    [
        (GOOD["Be calm."], GOOD["Panic!"], None),
        ("", GOOD["Panic!"], "empty"),
        (GOOD["Be calm."], "Stop.", "empty"),
        ("We rest now and " * 9, GOOD["Panic!"], "looping"),
        (GOOD["Be calm."] + " \ufffd", GOOD["Panic!"], "broken"),
        (GOOD["Panic!"], GOOD["Panic!"], "same"),
    ],
)
def test_pairs_that_teach_nothing_are_dropped_and_counted(
    calm: str, panic: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(text: str) -> str:
        return calm if "Be calm." in text or "Stay quiet." in text else panic

    monkeypatch.setattr(contrast, "generate_batch", scripted(answer))
    pair_set = generate_pairs(tiny("llama"), TRAIT, PROMPTS, tmp_path / "calm.jsonl")
    if reason is None:
        assert len(pair_set.pairs) == len(PROMPTS)
        assert sum(pair_set.dropped.values()) == 0
        assert all(p.positive.text == calm and p.negative.text == panic for p in pair_set.pairs)
    else:
        assert pair_set.pairs == ()
        assert pair_set.dropped == {
            **dict.fromkeys(("empty", "broken", "looping", "same"), 0),
            reason: len(PROMPTS),
        }


def test_each_prompt_meets_both_poles_with_matching_paraphrases(
    tmp_path: Path, small_batches: None
) -> None:
    path = tmp_path / "calm.jsonl"
    generate_pairs(tiny("llama"), TRAIT, PROMPTS, path, sampling=SAMPLING)
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    expected = []
    for i, prompt in enumerate(PROMPTS):
        for pole, end in (("positive", TRAIT.positive), ("negative", TRAIT.negative)):
            expected.append((prompt.id, pole, instructed(prompt.text, end.instructions[i % 2])))
    assert [(row["prompt_id"], row["pole"], row["request"]) for row in rows] == expected


def test_header_holds_what_is_needed_to_repeat_it(tmp_path: Path) -> None:
    model, path = tiny("llama"), tmp_path / "calm.jsonl"
    generate_pairs(model, TRAIT, PROMPTS[:2], path, seed=7, sampling=SAMPLING)
    header = json.loads(path.read_text().splitlines()[0])
    assert header["fingerprint"] == model.fingerprint.to_dict()
    assert header["seed"] == 7
    assert header["sampling"]["temperature"] == 1.0
    assert header["prompts"] == [PROMPTS[0].id, PROMPTS[1].id]
    assert header["trait"]["positive"]["instructions"] == ["Be calm.", "Stay quiet."]
    # What becomes of an edit changes no answer.
    found = path.read_bytes()
    same = replace(TRAIT, pictographs=False)
    generate_pairs(model, same, PROMPTS[:2], path, seed=7, sampling=SAMPLING)
    assert path.read_bytes() == found
    assert {"torch", "transformers", "steer"} <= header["versions"].keys()


def test_seed_decides(tmp_path: Path, small_batches: None) -> None:
    def run(name: str, seed: int) -> str:
        path = tmp_path / name
        generate_pairs(tiny("llama"), TRAIT, PROMPTS, path, seed=seed, sampling=SAMPLING)
        return path.read_text()

    first = run("a", 1)
    assert run("b", 1) == first
    assert run("c", 2).splitlines()[1:] != first.splitlines()[1:]


@pytest.mark.parametrize("cut", [0.3, 0.55, 0.8, 0.99])
def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(
    cut: float, tmp_path: Path, small_batches: None
) -> None:
    model: LanguageModel = tiny("llama")
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    generate_pairs(model, TRAIT, PROMPTS, whole, sampling=SAMPLING)
    content = whole.read_bytes()
    header = content.index(b"\n") + 1
    part.write_bytes(content[: header + int(cut * (len(content) - header))])
    generate_pairs(model, TRAIT, PROMPTS, part, sampling=SAMPLING)
    assert part.read_bytes() == content


def test_rows_that_two_builds_mixed_are_made_again(tmp_path: Path, small_batches: None) -> None:
    model: LanguageModel = tiny("llama")
    path = tmp_path / "calm.jsonl"
    generate_pairs(model, TRAIT, PROMPTS, path, sampling=SAMPLING)
    content = path.read_bytes()
    header, *rows = content.splitlines(keepends=True)
    # The second batch of four prompts twice, and so one batch too few of the others.
    path.write_bytes(b"".join([header, *rows[:16], *rows[8:16], *rows[24:]]))
    with pytest.raises(DataError, match="not a finished file"):
        read_pairs(path)
    generate_pairs(model, TRAIT, PROMPTS, path, sampling=SAMPLING)
    assert path.read_bytes() == content


def test_a_finished_file_is_read_without_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calm.jsonl"
    monkeypatch.setattr(
        contrast,
        "generate_batch",
        scripted(lambda text: GOOD["Be calm."] if "calm" in text else GOOD["Panic!"]),
    )
    first = generate_pairs(tiny("llama"), TRAIT, PROMPTS, path)

    def fail(*_: object, **__: object) -> list[Generated]:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(contrast, "generate_batch", fail)
    assert generate_pairs(tiny("llama"), TRAIT, PROMPTS, path) == first
    assert read_pairs(path) == first


def test_other_settings_are_refused_and_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calm.jsonl"
    generate_pairs(tiny("llama"), TRAIT, PROMPTS[:2], path, seed=1, sampling=SAMPLING)
    content = path.read_bytes()
    with pytest.raises(DataError, match="seed"):
        generate_pairs(tiny("llama"), TRAIT, PROMPTS[:2], path, seed=2, sampling=SAMPLING)
    with pytest.raises(DataError, match="fingerprint"):
        generate_pairs(tiny("gpt2"), TRAIT, PROMPTS[:2], path, seed=1, sampling=SAMPLING)
    other = tiny("llama")
    other.tokenizer.chat_template = other.tokenizer.chat_template.replace("[assistant]", "[bot]")
    with pytest.raises(DataError, match=r"\(chat differ\)"):
        generate_pairs(other, TRAIT, PROMPTS[:2], path, seed=1, sampling=SAMPLING)
    spelled = replace(tiny("llama"), name="./llama")
    generate_pairs(spelled, TRAIT, PROMPTS[:2], path, seed=1, sampling=SAMPLING)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["", "not json\n", '{"format": 1}\n'])
def test_damaged_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "calm.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"calm\.jsonl"):
        generate_pairs(tiny("llama"), TRAIT, PROMPTS[:2], path, sampling=SAMPLING)
    with pytest.raises(DataError):
        read_pairs(path)


def test_splits_have_their_sizes_and_share_nothing() -> None:
    splits = {name: load_prompts(name) for name in ("extract", "develop", "report")}
    assert {name: len(split) for name, split in splits.items()} == {
        "extract": 300,
        "develop": 100,
        "report": 200,
    }
    texts: list[Prompt] = [prompt for split in splits.values() for prompt in split]
    assert len({prompt.text.lower() for prompt in texts}) == 600
    assert len({prompt.id for prompt in texts}) == 600


def test_kill_and_resume_gives_the_same_file(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from steer import contrast
        from tests.models import tiny
        from tests.test_contrast import SAMPLING, TRAIT
        from steer.prompts import load_prompts
        contrast.BATCH_PROMPTS = 2
        contrast.generate_pairs(
            tiny("llama"), TRAIT, load_prompts("extract")[:120], Path(sys.argv[1]),
            sampling=SAMPLING,
        )
        """
    )
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    subprocess.run([*command, str(whole)], check=True, cwd=root, env=environment)
    process = subprocess.Popen([*command, str(killed)], cwd=root, env=environment)
    deadline = time.monotonic() + 120
    while not killed.exists() or killed.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed.read_bytes() != whole.read_bytes(), "the run was over before the kill"
    subprocess.run([*command, str(killed)], check=True, cwd=root, env=environment)
    assert killed.read_bytes() == whole.read_bytes()
