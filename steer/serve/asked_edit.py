"""An edit as a request to another process names it: by what is wanted, or by its numbers.

vLLM's workers hold the bundle themselves, so that a request carries a few words and not vectors;
only what no bundle holds, a stored person's profile for one, is sent whole.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steer import edit_file
from steer.bundle import Bundle
from steer.edits import Edit
from steer.errors import InputError
from steer.mixture import mixture, of_profile
from steer.weights import check_strength

MOST_STRENGTH = 10.0
"""What anybody on a network may ask for: far beyond use, far from numbers that overflow."""

_KINDS = ("weights", "profile", "edit")
_FIELDS = frozenset({*_KINDS, "strength", "compose"})


@dataclass(frozen=True)
class AskedEdit:
    """One of weights, a profile's name, or an edit's bytes, with how much of it.

    Attributes:
        weights: Numbers >= 0 by trait, sorted by name.
        profile: The name of a profile in the bundle.
        edit: Of `edit_file.to_bytes`, in base64; acts as it is, at strength 1.
        strength: 0 is the unsteered model, 1 the default dose.
        compose: Mix the traits' edits, also where a portfolio would serve.
    """

    weights: tuple[tuple[str, float], ...] | None = None
    profile: str | None = None
    edit: str | None = None
    strength: float = 1.0
    compose: bool = False

    @classmethod
    def weighted(
        cls, weights: Mapping[str, float], strength: float = 1.0, *, compose: bool = False
    ) -> AskedEdit:
        """By weights."""
        return cls(
            weights=tuple(sorted((name, float(number)) for name, number in weights.items())),
            strength=strength,
            compose=compose,
        )

    @classmethod
    def whole(cls, edit: Edit) -> AskedEdit:
        """By an edit's numbers."""
        return cls(edit=base64.b64encode(edit_file.to_bytes(edit)).decode())

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> AskedEdit | None:
        """What a request's extra arguments ask for; None if they say nothing of steering.

        Arguments of other names are others' and left alone. Weights are an object, or its JSON:
        over vLLM's own HTTP surface a value is a string, a number or a list.

        Raises:
            InputError: If they cannot be understood.
        """
        said = {name: fields[name] for name in _FIELDS & fields.keys()}
        if not said:
            return None
        kinds = [name for name in _KINDS if name in said]
        if len(kinds) != 1:
            raise InputError(f"a request has weights, a profile or an edit; got {sorted(said)}")
        compose = said.get("compose", False)
        if compose not in (False, True):
            raise InputError(f"compose: expected true or false, got {compose!r}")
        strength = check_strength(said.get("strength", 1.0))
        if strength > MOST_STRENGTH:
            raise InputError(f"strength: expected at most {MOST_STRENGTH:g}, got {strength:g}")
        if kinds == ["weights"]:
            return cls.weighted(_weights(said["weights"]), strength, compose=bool(compose))
        if not isinstance(said[kinds[0]], str):
            raise InputError(f"{kinds[0]}: expected text, got {said[kinds[0]]!r:.80}")
        if compose or (kinds == ["edit"] and strength != 1):
            raise InputError(f"compose and strength are for weights; got them with {kinds[0]}")
        return cls(**{kinds[0]: said[kinds[0]]}, strength=strength)

    def to_fields(self) -> dict[str, Any]:
        """What `read` understands."""
        if self.edit is not None:
            return {"edit": self.edit}
        if self.profile is not None:
            return {"profile": self.profile, "strength": self.strength}
        return {
            "weights": json.dumps(dict(self.weights or ())),
            "strength": self.strength,
            "compose": self.compose,
        }

    def resolve(self, bundle: Bundle) -> Edit:
        """The edit.

        Raises:
            InputError: If the bundle does not have what is asked for.
        """
        if self.edit is not None:
            try:
                data = base64.b64decode(self.edit, validate=True)
            except binascii.Error as error:
                raise InputError(f"edit: expected base64, got {self.edit!r:.40}") from error
            return edit_file.from_bytes(data)
        if self.profile is not None:
            return of_profile(bundle, bundle.profile(self.profile), self.strength)
        weights = dict(self.weights or ())
        return bundle.behind_gate(mixture(bundle, weights, self.strength, compose=self.compose))


def _weights(value: Any) -> Mapping[str, float]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"weights: expected a JSON object, got {value!r:.80}") from error
    numbers = value.values() if isinstance(value, Mapping) else [None]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
        raise InputError(f'weights: expected such as {{"brevity": 0.7}}, got {value!r:.80}')
    found: Mapping[str, float] = value
    return found
