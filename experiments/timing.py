"""What the timing experiments share: interleaved arms, intervals, the machine, plain tables.

Imported before `steer`, it makes the checkout importable, so that nothing need be installed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from steer.edits import Edit, LayerEdit  # noqa: E402

FORMS = {"additive": 0, "rank-4": 4}


def small_edit(
    width: int, layers: Sequence[int], rank: int, rng: np.random.Generator, size: float = 1e-3
) -> Edit:
    """An edit that costs what any other of its form costs and hardly changes what is written."""

    def unit(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(width)).astype(np.float32)

    edits = {}
    for layer in layers:
        e = np.float32(size) * unit(width) if rank == 0 else np.zeros(width, np.float32)
        c = np.full(rank, size, np.float32)
        edits[layer] = LayerEdit(e, unit(width, rank), unit(width, rank), c, np.zeros(rank, bool))
    return Edit(edits)


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model on the same weights, without the hooks that the first will get.

    The weights are shared both ways: do not convert or move either model afterwards.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def interleave(
    arms: Mapping[str, Callable[[], float]], rounds: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Seconds of each arm in each round; the arms' order is drawn anew in every round.

    What else the machine does drifts slowly against a round, and so falls out of the ratios.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for _ in range(rounds):
        for index in rng.permutation(len(names)):
            seconds[names[index]].append(arms[names[index]]())
    return seconds


def ratios(numerator: Sequence[float], denominator: Sequence[float], seed: int) -> dict[str, float]:
    """Median of the rounds' ratios of seconds with a 95% bootstrap interval."""
    values = np.asarray(numerator) / np.asarray(denominator)
    rng = np.random.default_rng(seed)
    draws = np.median(rng.choice(values, size=(10_000, len(values))), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a result needs to be repeated: when, what, on which machine, beside how much load."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *(without_folder(word) for word in sys.argv)]),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "seed": arguments.seed,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
            "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "settings": {
            key: without_folder(str(value)) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
        },
    }


def command(script: str) -> str:
    """How a script was called, folders left out; `script` is its path in the project."""
    return " ".join(["python", script, *map(without_folder, sys.argv[1:])])


def without_folder(word: str) -> str:
    """An absolute path cut to its name: where things lie on one machine helps nobody on another."""
    return Path(word).name if os.path.isabs(word) else word


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
