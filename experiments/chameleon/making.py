"""Profiles for experiments: made once, then kept in files of their own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from telling import drawn, interval
from tqdm import tqdm

from steer.bundle import Bundle
from steer.edits import Edit
from steer.gate import Gate, behind
from steer.groups import group_profiles
from steer.history import HistoryItem
from steer.models import LanguageModel
from steer.personalizer import Personalization, Personalizer
from steer.profile import Profile
from steer.resources import content_key, default_bundle_path
from steer.versions import versions

Histories = Sequence[Sequence[HistoryItem]]


def gate_of(arguments: argparse.Namespace) -> Gate | None:
    """Behind which edits act: of the default bundle, for its model."""
    path = default_bundle_path()
    return Bundle.load(path).gate if arguments.model is None else None


class Maker:
    """Makes profiles in one way, and keeps them in a folder."""

    def __init__(
        self,
        model: LanguageModel,
        settings: Personalization,
        gate: Gate | None,
        folder: Path,
    ) -> None:
        """Nothing is run before a profile is missing.

        Args:
            model: The model, which must not be steered meanwhile.
            settings: How profiles are made.
            gate: Behind which edits act.
            folder: Where they are kept.
        """
        self._model = model
        self._settings = settings
        self._gate = gate
        self._folder = folder
        self._personalizer: Personalizer | None = None

    def each(self, histories: Histories, starts: Sequence[Profile] | None = None) -> list[Profile]:
        """A profile for each history, each from a start if starts are given."""
        result = []
        for i, history in enumerate(tqdm(histories, desc="profiles", disable=None)):
            start = None if starts is None else starts[i]
            path = self._path(["one", _texts([history]), start and start.edit.digest])
            if not path.exists():
                profile = self._maker().profile(list(history), start=start)
                self._bundle({"one": profile}).save(path)
            result.append(Bundle.load(path).profiles["one"])
        return result

    def groups(self, histories: Histories, names: Sequence[str]) -> dict[str, Profile]:
        """A profile for each group."""
        path = self._path(["groups", _texts(histories), list(names)])
        if not path.exists():
            self._bundle(group_profiles(self._maker(), list(histories), names)).save(path)
        return dict(Bundle.load(path).profiles)

    def edits(self, profiles: Sequence[Profile]) -> list[Edit]:
        """As they act on the model."""
        return [behind(self._gate if one.gated else None, one.edit) for one in profiles]

    def _maker(self) -> Personalizer:
        if self._personalizer is None:
            self._personalizer = Personalizer(self._model, gate=self._gate, settings=self._settings)
        return self._personalizer

    def _path(self, what: Sequence[object]) -> Path:
        gated = None if self._gate is None else self._gate.digest
        key = content_key(
            [*what, asdict(self._settings), gated, self._model.fingerprint.to_dict(),
             self._model.precision]
        )  # fmt: skip
        return self._folder / "profiles" / f"{key}.safetensors"

    def _bundle(self, profiles: dict[str, Profile]) -> Bundle:
        return Bundle(
            self._model.name,
            self._model.fingerprint,
            "response",
            {},
            {},
            versions(),
            gate=self._gate,
            profiles=profiles,
        )


def seconds(profiles: Sequence[Profile]) -> tuple[float, float, float]:
    """What a profile takes, with its interval."""
    values = np.array([float(profile.statistics["seconds"]) for profile in profiles])
    return float(values.mean()), *interval(drawn(values))


def _texts(histories: Histories) -> list[list[dict[str, object]]]:
    return [[asdict(item) for item in history] for history in histories]
