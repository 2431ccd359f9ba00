"""From what a server is told to what serves: one place for each process that does.

The settings are plain values, so that they can be sent to another process or machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI

from steer.bundle import Bundle
from steer.errors import InputError, SteerError
from steer.packaged import NAME as PACKAGED_NAME
from steer.resources import default_bundle_path, state_dir
from steer.serve.app import Access, create_app
from steer.serve.cors import check_origins
from steer.serve.engine import Engine
from steer.serve.service import Limits, Service
from steer.serve.store import Store, absolute_url
from steer.serve.tenants import Tenants
from steer.steerer import Steerer, load

EngineName = Literal["transformers", "vllm"]
ENGINES: tuple[EngineName, ...] = ("transformers", "vllm")


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        model: Local folder or hub id; None for the packaged model.
        bundle: The edits; None for the packaged model's.
        force: Use a bundle that was built on another model.
        store: Database of people, as SQLAlchemy has it; None for SQLite in the user's state folder.
        keys: File of API keys; None to let everybody in.
        origins: Pages that may ask from a browser.
        any_host: Whether it may be asked under any name where there are no keys.
        limits: What is taken on.
        engine: What runs the model.
        engine_options: Of vLLM's `AsyncEngineArgs`.
        rows: Most answers that transformers' engine writes at once; None for its default.
    """

    model: str | None = None
    bundle: Path | None = None
    force: bool = False
    store: str | None = None
    keys: Path | None = None
    origins: tuple[str, ...] = ()
    any_host: bool = False
    limits: Limits = Limits()
    engine: EngineName = "transformers"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(f"engine: expected one of {ENGINES}, got {self.engine!r}")
        check_origins(self.origins)
        if self.engine_options and self.engine != "vllm":
            raise InputError("engine options are for vLLM; choose that engine")
        if self.rows is not None and self.engine != "transformers":
            raise InputError("rows are for transformers' engine; vLLM's option is max_num_seqs")

    def absolute(self) -> Settings:
        """The same for a process in another folder, or with another environment."""
        model = self.model
        if model is not None and Path(model).exists():
            model = str(Path(model).absolute())
        return replace(
            self,
            model=model,
            bundle=None if self.bundle is None else self.bundle.absolute(),
            keys=None if self.keys is None else self.keys.absolute(),
            store=absolute_url(self.store or _default_store()),
        )

    @property
    def tenants(self) -> Tenants:
        """Who may ask.

        Raises:
            InputError: If the file of keys cannot be read.
        """
        return Tenants({}) if self.keys is None else Tenants.read(self.keys)


def make_service(settings: Settings) -> Service:
    """The model, its engine and stored people; the engine is not started yet.

    Raises:
        SteerError: If one of them cannot be loaded.
    """
    bundle = default_bundle_path() if settings.bundle is None else settings.bundle
    # First, so that a mistaken address is told before the slow part.
    store = Store(settings.store or _default_store())
    steerer, engine = (_vllm if settings.engine == "vllm" else _plain)(settings, bundle)
    return Service(steerer, engine, store, settings.limits)


def make_app(settings: Settings, metrics: Callable[[], Awaitable[bytes]] | None = None) -> FastAPI:
    """The application that serves.

    Args:
        settings: What it is told.
        metrics: What Prometheus is told; None for the service's own.

    Raises:
        SteerError: As `make_service`.
    """
    access = Access(settings.tenants, settings.origins, settings.any_host)
    return create_app(make_service(settings), access, metrics)


def _plain(settings: Settings, bundle: Path) -> tuple[Steerer, Engine]:
    from steer.serve.continuous import ContinuousEngine, Room

    steerer = load(settings.model, bundle, force=settings.force)
    return steerer, ContinuousEngine(steerer.language_model, Room(rows=settings.rows))


def _vllm(settings: Settings, bundle: Path) -> tuple[Steerer, Engine]:
    from steer.skeleton import checkpoint_folder, load_skeleton

    try:
        from steer.serve.vllm_engine import VllmEngine
    except ImportError as error:
        raise SteerError(
            f"{error}; the vLLM engine needs vLLM: pip install vllm==0.32.*"
        ) from error

    # Looked for once: on a hub it may change meanwhile.
    folder = checkpoint_folder(settings.model)
    skeleton = load_skeleton(folder, str(settings.model or PACKAGED_NAME))
    steerer = Steerer(skeleton, Bundle.load(bundle), force=settings.force)
    engine = VllmEngine(steerer, folder, bundle, settings.engine_options, force=settings.force)
    return steerer, engine


def _default_store() -> str:
    folder = state_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{folder / 'people.sqlite'}"
