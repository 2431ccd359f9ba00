"""The scripts behind the figures run, on small inputs, and their tables hold together."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from steer.bundle import Bundle
from steer.resources import default_bundle_path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.append(str(EXPERIMENTS))
import report  # noqa: E402
import runs  # noqa: E402

PNG = b"\x89PNG"


def run(*arguments: str | Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def evaluations(path: Path, prompts: int = 6) -> None:
    """A file as a search leaves it, of a trade-off whose best edits are known."""
    rng = np.random.default_rng(0)
    header = {"prompts": [f"p{i}" for i in range(prompts)], "rewards": ["brief", "useful"]}
    lines = [json.dumps(header)]
    steps = [round(0.1 * i, 3) for i in range(11)]
    composed = [np.round(np.array([c, 1 - c]) / np.hypot(c, 1 - c), 3).tolist() for c in steps]
    known = [(0.0, 0.0), *composed, *product((0.35, 0.65), repeat=2)]
    for a, b in known:
        means = np.array([0.2 + 0.6 * a**0.5 - 0.2 * b, 0.3 + 0.5 * b**0.5 - 0.1 * a])
        rewards = np.clip(means + 0.02 * rng.normal(size=(prompts, 2)), 0, 1)
        words = [f"answer {i} is {'very ' * int(9 * (1 - a))}short" for i in range(prompts)]
        lines.append(
            json.dumps(
                {
                    "family": "own layers",
                    "coefficients": [a, b],
                    "rewards": rewards.tolist(),
                    "kl": [0.2 * (a + b)] * prompts,
                    "fluent": [True] * prompts,
                    "tokens": [10] * prompts,
                    "texts": words,
                }
            )
        )
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_portfolio_table(tmp_path: Path) -> None:
    evaluations(tmp_path / "bfloat16" / "concise-helpful-0.jsonl")
    script = EXPERIMENTS / "palm" / "portfolio.py"
    out = run(
        script, "--task", "concise-helpful", "--work-dir", tmp_path, "--output", tmp_path / "out"
    )
    assert "16 measured edits" in out
    with (tmp_path / "out" / "portfolio.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = {(int(row["size"]), row["method"]): row for row in rows}
    losses = ("worst_delta", "worst_epsilon", "mean_delta", "mean_epsilon")
    for size in range(3, 8):
        ours = table[size, "PALM"]
        assert float(ours["kept"]) <= size and float(ours["unused"]) == 0
        for method in ("uniform", "random", "GPI", "one edit for all"):
            other = table[size, method]
            assert float(ours["worst_epsilon"]) <= float(other["worst_epsilon"]) + 1e-5
        for row in (row for (kept, _), row in table.items() if kept == size):
            values = [float(row[name]) for name in losses]
            assert 0 <= values[2] <= values[0] + 1e-5 and 0 <= values[3] <= values[1] + 1e-5
    assert (11, "composition") in table
    for name in ("figure2.png", "figure3.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(PNG)


def test_figure_1(tmp_path: Path) -> None:
    out = run(EXPERIMENTS / "palm" / "figure1.py", "--quick", "--output", tmp_path)
    assert "scale-free cover    36 weights: yes" in out
    assert "random" in out and ": no" in out
    assert (tmp_path / "figure1.png").read_bytes().startswith(PNG)


def test_a_fairer_portfolio_gives_something_of_each(tmp_path: Path) -> None:
    """Of the default bundle's edits; what is routed is found again by a plain loop."""
    run(EXPERIMENTS / "fairness.py", "--output", tmp_path)
    with (tmp_path / "fairness.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    table = {(r["compositions"], float(r["fairness"]), int(r["traits"])): r for r in rows}
    portfolio = Bundle.load(default_bundle_path()).portfolio
    traits, rewards = portfolio.traits, portfolio.mean_rewards
    closed = (rewards - rewards[0]) / (1 - rewards[0])
    for number in (2, 3):
        least = []
        for chosen in combinations(traits, number):
            for heavier in (None, *chosen):
                asked = {name: 1.0 + (name == heavier) for name in chosen}
                if not {"simplicity", "formality"} <= set(chosen):
                    here = (0, *portfolio.kept)[portfolio.entry(asked).number]
                    least.append(min(closed[here, traits.index(name)] for name in chosen))
        row = table["True", portfolio.objective.fairness, number]
        assert int(row["mixtures"]) == len(least) == {2: 27, 3: 28}[number]
        assert int(row["all_gain"]) == sum(one > 0.1 for one in least)
        assert float(row["least"]) == pytest.approx(np.mean(least), abs=1e-4)
        some = [table["True", fairness, number] for fairness in (0.0, 0.75)]
        assert float(some[0]["least"]) < float(some[1]["least"])


@pytest.mark.parametrize(
    "script",
    [
        "palm/held_out.py",
        "validate_rewards.py",
        *(f"arena/{name}.py" for name in ("arena", "ablations", "mixtures", "refusals")),
    ],
)
def test_they_say_what_they_want(script: str) -> None:
    assert "--model" in run(EXPERIMENTS / script, "--help")


def test_a_quick_run_takes_the_place_of_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def output(*arguments: str | Path) -> Path:
        parser = argparse.ArgumentParser()
        runs.add_output(parser, tmp_path / "results")
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        return runs.parse(parser).output

    assert output() == tmp_path / "results"
    assert output("--quick") == tmp_path / "results" / "quick"
    assert output("--quick", "--output", tmp_path) == output("--output", tmp_path) == tmp_path


@pytest.mark.real
def test_a_report_leaves_out_what_was_answered_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(*arguments: str) -> set[str] | None:
        fixed = ["report.py", "--prompts", "2", "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*fixed, *arguments])
        (tmp_path / "summary.json").unlink(missing_ok=True)
        report.main()
        if not (tmp_path / "summary.json").exists():
            return None
        return set(json.loads((tmp_path / "summary.json").read_text())["settings"])

    tokens = ("--max-new-tokens", "6")
    both = {"unsteered", "brevity"}
    assert settings("--settings", "unsteered", "brevity", *tokens) == both
    longer = ("--settings", "brevity", "--max-new-tokens", "7")
    assert settings(*longer) is None  # unsteered has six tokens
    assert settings("--settings", "warmth", *tokens) == {"unsteered", "warmth"}
    assert settings("--settings", "brevity", *tokens) == {*both, "warmth"}
