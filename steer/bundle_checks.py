"""What must be true of a bundle's parts, of arguments and of file contents alike."""

from __future__ import annotations

from collections.abc import Container, Mapping

from steer.edit_tensors import check_storable
from steer.edits import Edit
from steer.errors import InputError
from steer.gate import Gate
from steer.interference import Interference
from steer.models import Fingerprint
from steer.portfolio import Portfolio
from steer.profile import Profile, check_name
from steer.trait_entry import TraitEntry


def trait_entry(value: object, where: str) -> TraitEntry:
    """A value that is a trait's entry.

    Raises:
        InputError: If it is not; so do the other checks here.
    """
    if not isinstance(value, TraitEntry):
        raise InputError(f"{where}: expected a TraitEntry, got {value!r:.80}")
    return value


def profile(value: object, where: str) -> Profile:
    """A value that is a profile."""
    if not isinstance(value, Profile):
        raise InputError(f"{where}: expected a Profile, got {value!r:.80}")
    return value


def check_traits(traits: Mapping[str, TraitEntry], model: Fingerprint) -> None:
    """Check that entries belong under their keys and fit the model."""
    for name, entry in traits.items():
        if entry.name != name:
            raise InputError(
                f"bundle field 'traits': the entry at {name!r} bears the name {entry.name!r}"
            )
        for key, layers in (
            ("edit", entry.edit.layers),
            ("ccs_loss", entry.ccs_loss),
            ("direction_norm", entry.direction_norm),
        ):
            _check_layers(layers, model, f"trait {name!r}, field {key!r}")
        _check_width(entry.edit, model, f"trait {name!r}, field 'edit'")


def check_profiles(profiles: Mapping[str, Profile], model: Fingerprint, *, gated: bool) -> None:
    """Check that profiles can be stored under their names and act in their bundle.

    Args:
        profiles: By name.
        model: The bundle's.
        gated: Whether the bundle has a gate.
    """
    for name, one in profiles.items():
        check_name(name)
        if one.fingerprint != model:
            raise InputError(
                f"bundle field 'profiles': {name!r} was made with another model, "
                f"{one.fingerprint}, than the bundle's, {model}; make it anew"
            )
        if one.gated and not gated:
            raise InputError(
                f"bundle field 'profiles': {name!r} acts behind a gate, and the bundle has none"
            )


def check_portfolio(portfolio: object, traits: Container[str], model: Fingerprint) -> None:
    """Check that a portfolio is of the bundle's traits and fits the model."""
    where = "bundle field 'portfolio'"
    if not isinstance(portfolio, Portfolio):
        raise InputError(f"{where}: expected a Portfolio, got {portfolio!r:.80}")
    if unknown := [name for name in portfolio.traits if name not in traits]:
        raise InputError(f"{where}: {unknown[0]!r} is not a trait of the bundle")
    for number, edit in enumerate(portfolio.edits, start=1):
        check_storable(edit, f"{where}, entry {number}")
        _check_layers(edit.layers, model, f"{where}, entry {number}")
        _check_width(edit, model, f"{where}, entry {number}")


def check_gate(gate: object, edits: Mapping[str, Edit], model: Fingerprint) -> None:
    """Check that a gate fits the model and the edits that act behind it."""
    where = "bundle field 'gate'"
    if not isinstance(gate, Gate):
        raise InputError(f"{where}: expected a Gate, got {gate!r:.80}")
    for index, v in gate.directions.items():
        if index >= model.layers or v.shape != (model.width,):
            raise InputError(
                f"{where}: expected shape ({model.width},) at layers below {model.layers}, as "
                f"the model's, got {v.shape} at layer {index}"
            )
    for owner, edit in edits.items():
        try:
            gate.check(edit)
        except InputError as error:
            raise InputError(f"{where}, {owner}: {error}") from error


def check_interference(value: object, traits: Container[str]) -> None:
    """Check that interference is of the bundle's traits."""
    where = "bundle field 'interference'"
    if not isinstance(value, Interference):
        raise InputError(f"{where}: expected an Interference, got {value!r:.80}")
    if unknown := [name for name in value.traits if name not in traits]:
        raise InputError(f"{where}: {unknown[0]!r} is not a trait of the bundle")


def _check_layers(layers: Mapping[int, object], model: Fingerprint, where: str) -> None:
    if beyond := [index for index in layers if index >= model.layers]:
        raise InputError(
            f"{where}: expected layers below {model.layers}, the model's count, got {beyond}"
        )


def _check_width(edit: Edit, model: Fingerprint, where: str) -> None:
    for index, layer in edit.layers.items():
        if layer.width != model.width:
            raise InputError(
                f"{where}: expected the model's width {model.width}, "
                f"got {layer.width} at layer {index}"
            )
