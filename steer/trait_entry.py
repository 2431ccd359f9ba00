"""One trait of a bundle: its edit, and what was measured when it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from steer.edit_tensors import check_storable, ranks_to_json
from steer.edits import Edit
from steer.errors import InputError
from steer.fields import (
    by_layer,
    check_layer,
    check_mapping,
    check_number,
    check_scalar,
    check_text,
)
from steer.traits import pole_names


@dataclass(frozen=True, eq=False)
class TraitEntry:
    """One trait of a bundle. The fields are validated, the mappings copied and made read-only.

    Attributes:
        name: The trait's name, without "/".
        description: One sentence for people.
        positive: Short name of the positive pole.
        negative: Short name of the negative pole.
        edit: The edit at strength 1: the default dose is already in it.
        dose: KL in nats per token of that edit against the unedited model.
        method: How the direction was found, such as "mean-difference".
        reliability: How well the trait's difference vectors agree.
        ccs_loss: CCS loss by every layer that was measured.
        direction_norm: Length of the direction before scaling, by the same layers.
        statistics: Counts of pairs, gains on develop prompts and the like.
    """

    name: str
    description: str
    positive: str
    negative: str
    edit: Edit
    dose: float
    method: str
    reliability: float
    ccs_loss: Mapping[int, float] = field(repr=False)
    direction_norm: Mapping[int, float] = field(repr=False)
    statistics: Mapping[str, float | int | str] = field(repr=False)

    def __post_init__(self) -> None:
        """Validate."""
        name = check_text(self.name, "trait field 'name'")
        # "/" separates the parts of a tensor's name.
        if not name.strip() or "/" in name or not name.isprintable():
            raise InputError(
                f"trait field 'name': expected a printable name without '/', got {name!r}"
            )
        where = f"trait {name!r}, field "
        for key in ("description", "positive", "negative", "method"):
            check_text(getattr(self, key), f"{where}{key!r}")
        for key in ("dose", "reliability"):
            object.__setattr__(self, key, check_number(getattr(self, key), f"{where}{key!r}"))
        if self.dose < 0:
            raise InputError(f"{where}'dose': expected nats per token >= 0, got {self.dose}")
        check_storable(self.edit, f"{where}'edit'")
        for key in ("ccs_loss", "direction_norm"):
            figures = check_mapping(
                getattr(self, key), check_layer, check_number, f"{where}{key!r}"
            )
            object.__setattr__(self, key, figures)
        if self.ccs_loss.keys() != self.direction_norm.keys():
            raise InputError(
                f"{where}'direction_norm': expected the layers of 'ccs_loss', "
                f"{list(self.ccs_loss)}, got {list(self.direction_norm)}"
            )
        statistics = check_mapping(
            self.statistics, check_text, check_scalar, f"{where}'statistics'"
        )
        object.__setattr__(self, "statistics", statistics)


def to_json(entry: TraitEntry) -> dict[str, Any]:
    """What a file holds of it, beside its name and the arrays of its edit."""
    return _words_and_figures(entry) | {"ranks": ranks_to_json(entry.edit)}


KEYS = {field.name for field in fields(TraitEntry)} - {"name", "edit"} | {"ranks"}
"""Of what `to_json` gives."""


def from_json(name: str, value: Mapping[str, Any], edit: Edit) -> TraitEntry:
    """The entry of a name, what `to_json` gave, and an edit.

    Raises:
        InputError: If a field is not what it should be.
    """
    values = {key: item for key, item in value.items() if key != "ranks"}
    for key in ("ccs_loss", "direction_norm"):
        values[key] = by_layer(values[key], check_number, f"trait {name!r}, field {key!r}")
    poles = values["positive"], values["negative"]
    if "positive" in poles or "negative" in poles:  # perhaps of a bundle that left them so
        values["positive"], values["negative"] = pole_names(name, *poles)
    return TraitEntry(name=name, edit=edit, **values)


def gain(entry: TraitEntry) -> str:
    """What its edit moved on develop prompts, such as "+165 words"; "?" if that is not known."""
    moved = entry.statistics.get("gain on develop prompts")
    if not isinstance(moved, int | float):
        return "?"
    return f"{moved:+.3g} {entry.statistics.get('measure', '')}".rstrip()


def summary(entry: TraitEntry) -> dict[str, Any]:
    """What is told of it, without the arrays."""
    edit = {"layers": list(entry.edit.layers), "rank": entry.edit.rank}
    return _words_and_figures(entry) | edit


def _words_and_figures(entry: TraitEntry) -> dict[str, Any]:
    """All but the name and the edit; JSON's keys are text."""
    return {
        "description": entry.description,
        "positive": entry.positive,
        "negative": entry.negative,
        "dose": entry.dose,
        "method": entry.method,
        "reliability": entry.reliability,
        "ccs_loss": {str(index): loss for index, loss in entry.ccs_loss.items()},
        "direction_norm": {str(index): norm for index, norm in entry.direction_norm.items()},
        "statistics": dict(entry.statistics),
    }
