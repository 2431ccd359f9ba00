"""A profile: what personalises a model for one person or a group, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.edit_tensors import check_storable, ranks_to_json, tensors_of
from steer.edits import Edit
from steer.errors import InputError
from steer.fields import (
    check_bool,
    check_fields,
    check_mapping,
    check_number,
    check_scalar,
    check_text,
)
from steer.history import HistoryItem
from steer.insights import Insights
from steer.models import Fingerprint, check_fingerprint


@dataclass(frozen=True, eq=False)
class Profile:
    """What personalises a model for one person or a group. The fields are validated.

    It holds numbers and no text, unless it was made with `keep_evidence=True`.

    Attributes:
        fingerprint: The model it was made with.
        edit: At its dose, without the gate.
        dose: KL in nats per token of that edit against the unedited model.
        gated: Whether it acts behind the bundle's gate.
        contrast: What the history was held against.
        method: How the edit was found.
        statistics: Of how it was made: items, pairs, seconds.
        insights: How the person writes, in words; None if not kept, or not needed.
        evidence: The items that it was made from, if kept.
        centre: Of a group: the mean embedding (k,) of its people, by which others are assigned to
            it (`steer.groups`); float32.
    """

    fingerprint: Fingerprint
    edit: Edit
    dose: float
    gated: bool
    contrast: str
    method: str
    statistics: Mapping[str, float | int | str] = field(default_factory=dict)
    insights: Insights | None = None
    evidence: tuple[HistoryItem, ...] = field(default=(), repr=False)
    centre: NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Validate."""
        where = "profile, field "
        check_fingerprint(self.fingerprint, f"{where}'fingerprint'")
        check_storable(self.edit, f"{where}'edit'")
        for index, layer in self.edit.layers.items():
            if index >= self.fingerprint.layers or layer.width != self.fingerprint.width:
                raise InputError(
                    f"{where}'edit': expected layers below {self.fingerprint.layers} of width "
                    f"{self.fingerprint.width}, got layer {index} of width {layer.width}"
                )
        object.__setattr__(self, "dose", check_number(self.dose, f"{where}'dose'"))
        if self.dose < 0:
            raise InputError(f"{where}'dose': expected nats per token >= 0, got {self.dose}")
        check_bool(self.gated, f"{where}'gated'")
        for key in ("contrast", "method"):
            check_text(getattr(self, key), f"{where}{key!r}")
        statistics = check_mapping(
            self.statistics, check_text, check_scalar, f"{where}'statistics'"
        )
        object.__setattr__(self, "statistics", statistics)
        if self.insights is not None and not isinstance(self.insights, Insights):
            raise InputError(f"{where}'insights': expected Insights, got {self.insights!r:.80}")
        if not isinstance(self.evidence, tuple) or not all(
            isinstance(item, HistoryItem) for item in self.evidence
        ):
            raise InputError(
                f"{where}'evidence': expected a tuple of HistoryItems, got {self.evidence!r:.80}"
            )
        centre = self.centre
        if centre is not None and (
            not isinstance(centre, np.ndarray)
            or centre.ndim != 1
            or centre.dtype != np.float32
            or not np.isfinite(centre).all()
        ):
            raise InputError(f"{where}'centre': expected finite float32 numbers (k,)")


def check_name(name: str) -> None:
    """Refuse a name under which no file could hold a profile.

    Raises:
        InputError: If it is blank, not printable, or has a "/".
    """
    # "/" separates the parts of a tensor's name.
    if not name.strip() or "/" in name or not name.isprintable():
        raise InputError(f"profile: expected a printable name without '/', got {name!r}")


def to_json(profile: Profile) -> dict[str, Any]:
    """What a file holds of it, beside its fingerprint and the arrays of its edit."""
    return {
        "dose": profile.dose,
        "gated": profile.gated,
        "contrast": profile.contrast,
        "method": profile.method,
        "statistics": dict(profile.statistics),
        "insights": None if profile.insights is None else asdict(profile.insights),
        "evidence": [asdict(item) for item in profile.evidence],
        "centre": None if profile.centre is None else len(profile.centre),
        "ranks": ranks_to_json(profile.edit),
    }


def holds_text(profile: Profile) -> bool:
    """Whether texts of the person, or words about them, are in it."""
    return bool(profile.evidence) or profile.insights is not None


def summary(profile: Profile) -> dict[str, Any]:
    """What is told of it, without numbers and texts of the person; `size` is of its arrays."""
    arrays = [*tensors_of("", profile.edit).values()]
    if profile.centre is not None:
        arrays.append(profile.centre)
    return {
        "method": profile.method,
        "contrast": profile.contrast,
        "dose": profile.dose,
        "gated": profile.gated,
        "layers": list(profile.edit.layers),
        "texts kept": len(profile.evidence),
        "size": sum(array.nbytes for array in arrays),
        "statistics": dict(profile.statistics),
    }


KEYS = {one.name for one in fields(Profile)} - {"fingerprint", "edit"} | {"ranks"}
"""Of what `to_json` gives."""


def from_json(
    value: Mapping[str, Any],
    fingerprint: Fingerprint,
    edit: Edit,
    centre: NDArray[np.float32] | None,
) -> Profile:
    """The profile of what `to_json` gave, a fingerprint and the arrays.

    Raises:
        InputError: If a field is not what it should be.
    """
    values = {key: item for key, item in value.items() if key != "ranks"}
    evidence = values["evidence"]
    if not isinstance(evidence, list):
        raise InputError(f"profile, field 'evidence': expected a list, got {evidence!r:.80}")
    values["evidence"] = tuple(
        HistoryItem(**check_fields(item, HistoryItem, "profile, evidence")) for item in evidence
    )
    if values["insights"] is not None:
        values["insights"] = Insights(
            **check_fields(values["insights"], Insights, "profile, field 'insights'")
        )
    return Profile(**{**values, "fingerprint": fingerprint, "edit": edit, "centre": centre})
