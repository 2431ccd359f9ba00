"""A build that several processes share: the same bundle, also when one of them is killed.

`make test-ray` runs these: Ray takes a minute to start.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="needs Ray: make venv-cluster, and then make test-ray")

from steer.errors import CalibrationError, FingerprintError  # noqa: E402
from steer.generation import Decoding  # noqa: E402
from steer.models import LanguageModel, load_model  # noqa: E402
from steer.pipeline import build  # noqa: E402
from steer.precompute import PortfolioRecipe  # noqa: E402
from steer.ray_workers import RayWorkers, ray_workers  # noqa: E402
from steer.recipe import Recipe  # noqa: E402
from steer.search import Effort  # noqa: E402
from steer.workers import Alone  # noqa: E402
from tests.models import tiny  # noqa: E402

pytestmark = pytest.mark.ray
# Workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

SHORT = Decoding(max_new_tokens=6)
TRAITS = ["brevity", "simplicity"]
RECIPE = Recipe(
    prompts=80,  # two batches a trait
    develop_prompts=8,
    confirm_prompts=0,
    interference_prompts=64,  # one edit a batch
    kls=(0.001, 0.01),
    decoding=SHORT,
)
PORTFOLIO = PortfolioRecipe(
    ("brevity", "simplicity"),
    size=2,
    prompts=4,
    decoding=SHORT,
    confirm_prompts=60,
    confirm_decoding=SHORT,
    questions=2,
    effort=Effort(first=4, batch=2, rounds=1, pool=16),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("model")
    made = tiny("llama")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def workers(model):
    with ray_workers(model, model.name, 2) as made:
        yield made


def pid(language_model: LanguageModel, number: int) -> tuple[int, int]:
    return number, os.getpid()


def meet(language_model: LanguageModel, folder: Path, number: int) -> int:
    """Wait for the other."""
    (folder / str(number)).touch()
    deadline = time.monotonic() + 60
    while not (folder / str(1 - number)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return os.getpid()


def die_once(language_model: LanguageModel, mark: Path, number: int) -> int:
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(language_model: LanguageModel, number: int) -> int:
    raise CalibrationError(f"no dose for {number}")


def test_units_are_done_elsewhere_and_come_in_order(workers: RayWorkers):
    done = list(workers.each([partial(pid, number=number) for number in range(6)]))
    assert [number for number, _ in done] == list(range(6))
    assert os.getpid() not in {process for _, process in done}
    assert list(workers.each([partial(pid, number=7)])) == [(7, os.getpid())]
    assert list(workers.each([])) == []


def test_units_are_done_at_the_same_time(workers: RayWorkers, tmp_path: Path):
    units = [partial(meet, folder=tmp_path, number=number) for number in range(2)]
    assert len(set(workers.each(units))) == 2


def test_an_error_of_a_unit_is_raised_as_it_was(workers: RayWorkers):
    with pytest.raises(CalibrationError, match="no dose for 0"):
        list(workers.each([partial(refuse, number=number) for number in range(2)]))


def test_another_model_is_refused(workers: RayWorkers, tmp_path: Path):
    other = tiny("llama", seed=1)
    other.model.save_pretrained(tmp_path)
    other.tokenizer.save_pretrained(tmp_path)
    wrong = replace(workers, model=str(tmp_path))
    with pytest.raises(Exception, match=FingerprintError.__name__):
        list(wrong.each([partial(pid, number=number) for number in range(2)]))


def test_what_a_killed_worker_held_is_done_by_another(workers: RayWorkers, tmp_path: Path):
    units = [partial(die_once, mark=tmp_path / "died", number=number) for number in range(4)]
    assert list(workers.each(units)) == [0, 1, 2, 3]
    assert (tmp_path / "died").exists()


def test_the_bundle_is_that_of_one_process(
    workers: RayWorkers, model: LanguageModel, tmp_path: Path
):
    shared = []

    class Counted(RayWorkers):
        def each(self, units):
            shared.append(len(units))
            return super().each(units)

    counted = Counted(model, workers.model, workers.number, workers.gpus)
    content = {}
    for name, who in (("alone", Alone(model)), ("several", counted)):
        bundle = build(
            model,
            TRAITS,
            recipe=RECIPE,
            portfolio=PORTFOLIO,
            work_dir=tmp_path / name,
            workers=who,
        )
        bundle.save(tmp_path / f"{name}.safetensors")
        content[name] = (tmp_path / f"{name}.safetensors").read_bytes()
    assert content["alone"] == content["several"]
    # Pairs: two batches a trait; subspaces and what is shared; edits; then batches of answers.
    assert shared[:3] == [4, 3, 2] and max(shared[3:]) > 2
