"""How good answers to LaMP's questions are, as the benchmark measures it, and how sure that is."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lamp_tasks import Metric
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    root_mean_squared_error,
)

# What these experiments share with the arena.
sys.path.append(str(Path(__file__).parents[1] / "arena"))
from judging import draws, interval  # noqa: E402

from steer.errors import SteerError  # noqa: E402

_ROUGE = {"ROUGE-1": "rouge1", "ROUGE-L": "rougeL"}


def measure(
    metric: Metric, targets: Sequence[str], answers: Sequence[str], labels: Sequence[str] = ()
) -> float:
    """How good answers are.

    Args:
        metric: Which measure.
        targets: What is right.
        answers: What was answered.
        labels: All possible answers: a label that never comes counts as 0 in macro F1.
    """
    if metric in _ROUGE:
        pairs = zip(targets, answers, strict=True)
        return float(np.mean([_rouge(metric, target, answer) for target, answer in pairs]))
    if metric == "accuracy":
        return float(accuracy_score(targets, answers))
    if metric == "macro F1":
        return float(f1_score(targets, answers, labels=labels, average="macro", zero_division=0))
    error = mean_absolute_error if metric == "MAE" else root_mean_squared_error
    return float(error([float(x) for x in targets], [float(x) for x in answers]))


def measure_interval(
    metric: Metric,
    targets: Sequence[str],
    answers: Sequence[str],
    users: Sequence[str],
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """The measure's 95% interval: a bootstrap over people.

    Args:
        metric: Which measure.
        targets: What is right.
        answers: What was answered.
        users: Who was asked.
        labels: All possible answers.
        seed: Of the draws.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, user in enumerate(users):
        groups[user].append(row)
    rows = list(groups.values())
    found = []
    for people in draws(len(rows), seed):
        drawn = [row for one in people.tolist() for row in rows[one]]
        found.append(
            measure(metric, [targets[i] for i in drawn], [answers[i] for i in drawn], labels)
        )
    return interval(np.array(found))


@cache
def rouge_scorer() -> Any:
    """Scores as the benchmark's script does: words as they are, not their stems.

    Raises:
        SteerError: If the package is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise SteerError("ROUGE needs a package; run `pip install rouge-score`") from error
    return RougeScorer(list(_ROUGE.values()), use_stemmer=False)


# Each pair comes in most of the draws.
@cache
def _rouge(metric: Metric, target: str, answer: str) -> float:
    name = _ROUGE[metric]
    return float(rouge_scorer().score(target, answer)[name].fmeasure)
