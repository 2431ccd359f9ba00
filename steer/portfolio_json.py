"""A portfolio as JSON values and back; its edits are tensors and stored beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from steer.certificate import Certificate, Worst
from steer.edits import Edit
from steer.errors import InputError
from steer.fields import (
    check_list,
    check_number,
    check_numbers,
    check_object,
    check_text,
    check_whole,
    exact_keys,
)
from steer.objective import Objective
from steer.portfolio import Candidate, Portfolio, Trial
from steer.questions import Answered

_WHERE = "field 'portfolio'"
_KEYS = {
    "traits",
    "rewards",
    "objective",
    "candidates",
    "kept",
    "certificate",
    "searched",
    "answered",
}


def to_json(portfolio: Portfolio) -> dict[str, Any]:
    """All of a portfolio but its edits."""
    return {
        "traits": list(portfolio.traits),
        "rewards": list(portfolio.rewards),
        "objective": asdict(portfolio.objective),
        "candidates": [
            _trial_to_json(Trial(candidate, tuple(rewards), kl))
            for candidate, rewards, kl in zip(
                portfolio.candidates,
                portfolio.mean_rewards.tolist(),
                portfolio.kl.tolist(),
                strict=True,
            )
        ],
        "kept": list(portfolio.kept),
        "certificate": _certificate_to_json(portfolio.certificate),
        "searched": [_trial_to_json(trial) for trial in portfolio.searched],
        "answered": [
            {
                "prompt": one.prompt,
                "answers": list(one.answers),
                "rewards": one.rewards.tolist(),
            }
            for one in portfolio.answered
        ],
    }


def from_json(value: object, edits: Sequence[Edit]) -> Portfolio:
    """A portfolio from JSON values.

    Args:
        value: As `to_json` gives them.
        edits: The kept edits, in order.

    Raises:
        InputError: If a field is missing, unknown or not usable.
    """
    # A portfolio of before there were any has no answers.
    fields = {"answered": [], **check_object(value, _WHERE)}
    exact_keys(fields, _KEYS, _WHERE)
    # Without fairness it was written before there was any.
    objective = {"fairness": 0.0, **check_object(fields["objective"], f"{_WHERE}, 'objective'")}
    exact_keys(objective, {"fairness", "penalty", "kl_unit", "f_max"}, f"{_WHERE}, 'objective'")
    trials = _trials(fields["candidates"], "candidates")
    if len({len(trial.rewards) for trial in trials}) > 1:
        raise InputError(f"{_WHERE}: candidates differ in their number of rewards")
    return Portfolio(
        traits=_texts(fields["traits"], "'traits'"),
        rewards=_texts(fields["rewards"], "'rewards'"),
        objective=Objective(
            **{
                name: check_number(number, f"{_WHERE}, objective {name!r}")
                for name, number in objective.items()
            }
        ),
        candidates=tuple(trial.candidate for trial in trials),
        mean_rewards=np.array([trial.rewards for trial in trials], np.float64),
        kl=np.array([trial.kl for trial in trials], np.float64),
        kept=tuple(check_whole(i, f"{_WHERE}, 'kept'") for i in _list(fields["kept"], "'kept'")),
        edits=tuple(edits),
        certificate=_certificate_from_json(fields["certificate"]),
        searched=_trials(fields["searched"], "searched"),
        answered=tuple(_answered(one) for one in _list(fields["answered"], "'answered'")),
    )


def _answered(value: object) -> Answered:
    where = f"{_WHERE}, 'answered'"
    fields = check_object(value, where)
    exact_keys(fields, {"prompt", "answers", "rewards"}, where)
    rewards = [_numbers(row, "answered, rewards") for row in _list(fields["rewards"], "'rewards'")]
    if len({len(row) for row in rewards}) > 1:
        raise InputError(f"{where}: answers differ in their number of rewards")
    return Answered(
        check_text(fields["prompt"], where),
        _texts(fields["answers"], "'answers'"),
        np.array(rewards, np.float64),
    )


def _trial_to_json(trial: Trial) -> dict[str, Any]:
    return {
        "family": trial.candidate.family,
        "coefficients": list(trial.candidate.coefficients),
        "rewards": list(trial.rewards),
        "kl": trial.kl,
    }


def _trials(value: object, key: str) -> tuple[Trial, ...]:
    trials = []
    for number, item in enumerate(_list(value, repr(key))):
        where = f"{_WHERE}, {key} {number}"
        row = check_object(item, where)
        exact_keys(row, {"family", "coefficients", "rewards", "kl"}, where)
        coefficients = tuple(_numbers(row["coefficients"], f"{key} {number}, coefficients"))
        trials.append(
            Trial(
                Candidate(check_text(row["family"], where), coefficients),
                tuple(_numbers(row["rewards"], f"{key} {number}, rewards")),
                check_number(row["kl"], f"{where}, 'kl'"),
            )
        )
    return tuple(trials)


def _certificate_to_json(certificate: Certificate) -> dict[str, Any]:
    return {
        "delta": _worst_to_json(certificate.delta),
        "epsilon": _worst_to_json(certificate.epsilon),
        "curve": [list(point) for point in certificate.curve],
        "candidates": certificate.candidates,
    }


def _certificate_from_json(value: object) -> Certificate:
    where = f"{_WHERE}, 'certificate'"
    fields = check_object(value, where)
    exact_keys(fields, {"delta", "epsilon", "curve", "candidates"}, where)
    curve = [_numbers(point, "a point of the curve") for point in _list(fields["curve"], "'curve'")]
    if any(len(point) != 2 for point in curve):
        raise InputError(f"{where}: expected pairs (epsilon, delta) in 'curve'")
    return Certificate(
        delta=_worst_from_json(fields["delta"], f"{where}, 'delta'"),
        epsilon=_worst_from_json(fields["epsilon"], f"{where}, 'epsilon'"),
        curve=tuple((point[0], point[1]) for point in curve),
        candidates=check_whole(fields["candidates"], f"{where}, 'candidates'"),
    )


def _worst_to_json(worst: Worst) -> dict[str, Any]:
    return {"loss": worst.loss, "weights": worst.weights.tolist(), "edit": worst.edit}


def _worst_from_json(value: object, where: str) -> Worst:
    fields = check_object(value, where)
    exact_keys(fields, {"loss", "weights", "edit"}, where)
    return Worst(
        check_number(fields["loss"], f"{where}, 'loss'"),
        np.array(_numbers(fields["weights"], "weights"), np.float64),
        check_whole(fields["edit"], f"{where}, 'edit'"),
    )


def _list(value: object, what: str) -> list[Any]:
    return check_list(value, f"{_WHERE}, {what}")


def _texts(value: object, what: str) -> tuple[str, ...]:
    return tuple(check_text(item, f"{_WHERE}, {what}") for item in _list(value, what))


def _numbers(value: object, what: str) -> list[float]:
    return check_numbers(value, f"{_WHERE}, {what}")
