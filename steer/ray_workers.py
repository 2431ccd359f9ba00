"""Workers on many processes, devices and machines: a map of Ray Data over units of work.

Each worker loads the model once and is given one unit after the other. A unit whose worker dies is
done by another, from what it had left in the work folder if that can be seen from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from steer.cluster import LOCAL, connected, gpus_of
from steer.errors import FingerprintError, SteerError
from steer.models import Fingerprint, LanguageModel, load_model
from steer.workers import Alone, T, Unit


class _Worker:
    """A process with a model of its own; Ray Data makes it."""

    def __init__(self, model: str | None, dtype: torch.dtype, expected: Fingerprint) -> None:
        self._language_model = load_model(model, dtype=dtype)
        if self._language_model.fingerprint != expected:
            raise FingerprintError(
                f"a worker loaded {self._language_model.fingerprint}, and {expected} was expected; "
                "give all machines the same model"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one unit."""
        from ray import cloudpickle

        # Units hold edits, whose mappings cannot be changed: plain pickle does not know these.
        unit = cloudpickle.loads(row["unit"])
        given: Any
        try:
            given = unit(self._language_model)
        except SteerError as error:
            # Ray Data would wrap it in an error of its own.
            given = _Raised(error)
        return {"given": cloudpickle.dumps(given)}


@dataclass(frozen=True)
class _Raised:
    error: SteerError


@dataclass(frozen=True, eq=False)
class RayWorkers:
    """Workers of a Ray cluster, each with a model of its own.

    Attributes:
        language_model: This process's, which does what is a single unit.
        model: Where the workers find the same one; None for the packaged SmolLM2.
        number: Of workers.
        gpus: Of each.
    """

    language_model: LanguageModel
    model: str | None
    number: int
    gpus: int

    def each(self, units: Sequence[Unit[T]]) -> Iterator[T]:
        """What every unit gives, in their order.

        Raises:
            SteerError: What a unit raises.
        """
        if len(units) < 2:
            yield from Alone(self.language_model).each(units)
            return
        import ray.data
        from ray import cloudpickle

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        rows = [{"unit": cloudpickle.dumps(unit)} for unit in units]
        first = next(self.language_model.model.parameters())
        work = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(self.model, first.dtype, self.language_model.fingerprint),
            compute=ray.data.ActorPoolStrategy(
                size=min(self.number, len(units)),
                # A unit takes minutes: none should wait for a worker while another has nothing.
                max_tasks_in_flight_per_actor=1,
            ),
            num_cpus=0 if self.gpus else 1,
            num_gpus=self.gpus,
        )
        for row in work.iter_rows():
            given = cloudpickle.loads(row["given"])
            if isinstance(given, _Raised):
                raise given.error
            yield given


@contextmanager
def ray_workers(
    language_model: LanguageModel, model: str | None, number: int, address: str = LOCAL
) -> Iterator[RayWorkers]:
    """Workers until the block is left, each with a GPU where there are any.

    Args:
        language_model: This process's model.
        model: Where it was loaded from: a path that all machines have, or a hub id; None for the
            packaged SmolLM2.
        number: Of workers.
        address: Of a Ray cluster; `LOCAL` for processes on this machine.

    Raises:
        SteerError: If Ray is not installed, or there is no such cluster.
    """
    with connected(address, cpus=number + 1) as ray:
        yield RayWorkers(language_model, model, number, 1 if gpus_of(ray) else 0)
