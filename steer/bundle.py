"""The bundle: one safetensors file with the edits of several traits, built on one model.

The tensors bear names that a reader understands, `brevity/layer.08/e`; all else is one JSON text
in the file's metadata. Loading runs no code. It either gives back exactly what was saved or raises
a `BundleError`: a hash over the tensors and one over the JSON refuse a damaged file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from steer import bundle_checks as checks
from steer import container, interference, profile, trait_entry
from steer.edit_tensors import edit_of, layouts_of, ranks_to_json, tensors_of
from steer.edits import Edit
from steer.errors import (
    BundleFormatError,
    BundleVersionError,
    FingerprintError,
    InputError,
)
from steer.fields import (
    by_layer,
    check_json,
    check_mapping,
    check_object,
    check_text,
    check_whole,
    exact_keys,
    required,
)
from steer.gate import Gate, behind
from steer.interference import Interference
from steer.models import Fingerprint, check_fingerprint
from steer.portfolio import Portfolio
from steer.portfolio_json import from_json, to_json
from steer.portfolio_summary import summary
from steer.profile import Profile
from steer.resources import atomic_path, locked, remove_unfinished
from steer.trait_entry import TraitEntry

SCHEMA = 6
"""Version of the file layout that is written, and the newest one that is read.

Version 1 had no gate, version 2 no interference, version 3 no profiles,
version 4 no answers to ask people about, version 5 interference that is linear in doses.
"""


@dataclass(frozen=True, eq=False)
class Bundle:
    """The edits of several traits for one model, with what was measured of them.

    The fields are validated; mappings are copied, sorted by key and made read-only.

    Attributes:
        model: What the model was loaded as.
        fingerprint: The model it was built on.
        scope: Which tokens are edited: those of the response, or all.
        traits: By name.
        settings: How it was built: seed, prompts, sampling and the like, as JSON values.
        versions: Versions of the libraries it was built with.
        portfolio: The few measured edits that serve every mixture of some of the traits; None if
            mixtures are only composed.
        gate: Behind which all edits act (`steer.gate`), so that they leave plain text alone; None
            if they act on every token of the scope. The edits themselves are stored without it.
        interference: What the traits do to each other, by which compositions are dosed; None if it
            was not measured.
        profiles: Of persons or groups, by name.
    """

    model: str
    fingerprint: Fingerprint
    scope: Literal["response", "all"]
    traits: Mapping[str, TraitEntry]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    portfolio: Portfolio | None = None
    gate: Gate | None = None
    interference: Interference | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate."""
        check_text(self.model, "bundle field 'model'")
        check_fingerprint(self.fingerprint, "bundle field 'fingerprint'")
        if self.scope not in ("response", "all"):
            raise InputError(
                f"bundle field 'scope': expected 'response' or 'all', got {self.scope!r:.80}"
            )
        for key, convert in (
            ("traits", checks.trait_entry),
            ("settings", check_json),
            ("versions", check_text),
            ("profiles", checks.profile),
        ):
            checked: Mapping[str, Any] = check_mapping(
                getattr(self, key), check_text, convert, f"bundle field {key!r}"
            )
            object.__setattr__(self, key, checked)
        checks.check_traits(self.traits, self.fingerprint)
        checks.check_profiles(self.profiles, self.fingerprint, gated=self.gate is not None)
        if self.portfolio is not None:
            checks.check_portfolio(self.portfolio, self.traits, self.fingerprint)
        if self.gate is not None:
            checks.check_gate(self.gate, self._edits(ungated=False), self.fingerprint)
        if self.interference is not None:
            checks.check_interference(self.interference, self.traits)

    def __repr__(self) -> str:
        """Its model and traits; `info` tells the rest."""
        return f"Bundle(model={self.model!r}, traits={list(self.traits)})"

    def with_profiles(self, profiles: Mapping[str, Profile]) -> Bundle:
        """The bundle with further profiles; one of a name that it holds is replaced.

        Args:
            profiles: By name.

        Raises:
            InputError: If one is of another model, or needs a gate that the bundle does not have.
        """
        return replace(self, profiles={**self.profiles, **profiles})

    def without_profile(self, name: str) -> Bundle:
        """The bundle with nothing of a person in it.

        Args:
            name: The profile's.

        Raises:
            InputError: If there is no such profile.
        """
        self.profile(name)
        return replace(
            self, profiles={key: one for key, one in self.profiles.items() if key != name}
        )

    def profile(self, name: str) -> Profile:
        """The profile of a name.

        Raises:
            InputError: If there is no such profile.
        """
        if name not in self.profiles:
            # Names of other people are nobody's business.
            raise InputError(
                f"no profile {name!r} among the bundle's {len(self.profiles)}; make one with "
                "`steer personalize`, in Python `steer.personalize`"
            )
        return self.profiles[name]

    def behind_gate(self, edit: Edit) -> Edit:
        """An edit, additive where there is a gate, as it acts on the model."""
        return behind(self.gate, edit)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all; the same bundle gives the same bytes.

        Args:
            path: Where to; an existing file is replaced.

        Raises:
            InputError: If it is larger than what is read again.
            BundleFormatError: If its arrays are no longer what was validated.
        """
        data = self._to_bytes()
        # What could not be loaded again must not replace a file that can. (NumPy arrays are
        # mutable, so an edit may have been spoilt after it was validated.)
        _parse(data, f"bundle for {path}")
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(data)

    @classmethod
    def load(cls, path: str | Path) -> Bundle:
        """Read a bundle; no code in it is run.

        Args:
            path: The file.

        Raises:
            BundleFormatError: If it is truncated, damaged, or another kind of file.
            BundleVersionError: If a newer version of steer wrote it.
            BundleError: If there is no such file or it cannot be read.
        """
        return _parse(container.read_bytes(Path(path)), str(path))

    def info(self) -> dict[str, Any]:
        """A summary in plain JSON values; `size` is the file's, in bytes.

        Raises:
            InputError: If it is too large for a file.
        """
        return {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint.to_dict(),
            "scope": self.scope,
            "gate": None if self.gate is None else list(self.gate.directions),
            "traits": {name: trait_entry.summary(entry) for name, entry in self.traits.items()},
            "settings": check_json(self.settings, "bundle field 'settings'"),
            "versions": dict(self.versions),
            "portfolio": None if self.portfolio is None else summary(self.portfolio),
            "interference": interference.to_json(self.interference),
            "profiles": {name: profile.summary(one) for name, one in self.profiles.items()},
            "size": len(self._to_bytes()),
        }

    def check_model(self, fingerprint: Fingerprint, *, force: bool = False) -> None:
        """Refuse a model that the bundle was not built on.

        Args:
            fingerprint: The model's.
            force: Warn instead, where the edits fit the other model's layers and width.

        Raises:
            FingerprintError: If the fingerprints differ.
        """
        if fingerprint == self.fingerprint:
            return
        differing = [
            field.name
            for field in fields(Fingerprint)
            if getattr(fingerprint, field.name) != getattr(self.fingerprint, field.name)
        ]
        message = (
            f"the bundle was built on {self.model!r}, fingerprint {self.fingerprint}, but the "
            f"model is {fingerprint} (differs in: {', '.join(differing)})"
        )
        deepest = max((i for edit in self._edits().values() for i in edit.layers), default=-1)
        if fingerprint.width != self.fingerprint.width or deepest >= fingerprint.layers:
            raise FingerprintError(
                f"{message}; its edits do not fit that model's layers, so --force (force=True) "
                "cannot help: load the model it was built on, or build a bundle on this one"
            )
        if not force:
            raise FingerprintError(
                f"{message}; load the model it was built on, build a bundle on this one, or pass "
                "--force (in Python force=True) to use it all the same"
            )
        warnings.warn(f"{message}; its doses were not measured on this model", stacklevel=2)

    def _edits(self, *, ungated: bool = True) -> dict[str, Edit]:
        """The edits by what their tensors' names begin with; no trait's name has a "/".

        Args:
            ungated: Whether those of profiles that act beside the gate are among them.
        """
        edits = {name: entry.edit for name, entry in self.traits.items()}
        kept = self.portfolio.edits if self.portfolio is not None else ()
        edits |= {_entry_name(i): edit for i, edit in enumerate(kept, start=1)}
        return edits | {
            _profile_name(name): one.edit
            for name, one in self.profiles.items()
            if ungated or one.gated
        }

    def _to_bytes(self) -> bytes:
        tensors: dict[str, NDArray[Any]] = {}
        for owner, edit in self._edits().items():
            tensors |= tensors_of(owner, edit)
        for name, one in self.profiles.items():
            if one.centre is not None:
                tensors[_centre_name(name)] = np.ascontiguousarray(one.centre)
        gate = self.gate.directions if self.gate is not None else {}
        tensors |= {_gate_name(index): np.ascontiguousarray(v) for index, v in gate.items()}
        document = {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint.to_dict(),
            "scope": self.scope,
            "traits": {name: trait_entry.to_json(entry) for name, entry in self.traits.items()},
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "portfolio": None if self.portfolio is None else _portfolio_to_json(self.portfolio),
            "gate": None if self.gate is None else list(gate),
            "interference": interference.to_json(self.interference),
            "profiles": {name: profile.to_json(one) for name, one in self.profiles.items()},
        }
        return container.pack(document, tensors)


def check_output(path: str | Path, source: str | Path) -> None:
    """Refuse to write a bundle over a file that it was not made of.

    Args:
        path: Where to.
        source: The bundle that it was made of; that there is none is told where it is loaded.

    Raises:
        InputError: If what is in the file would be lost.
    """
    path, source = Path(path), Path(source)
    if path.exists() and source.exists() and not path.samefile(source):
        raise InputError(
            f"{path} exists; add --bundle {path} to keep what is in it, or name another file"
        )


def remember(path: str | Path, name: str, profile: Profile, source: str | Path) -> Bundle:
    """Add a person's profile to a bundle's file, as the file is by now.

    A profile takes a while to make, and others may be added or forgotten meanwhile.

    Args:
        path: The file, which is replaced; or a new one.
        name: The profile's; one of that name is replaced.
        profile: Made with the bundle.
        source: The bundle's file.

    Returns:
        The bundle with it.

    Raises:
        InputError: If the file is another one than the bundle's, or the profile does not fit what
            the bundle has become.
        BundleError: If the bundle cannot be read.
    """
    with locked(Path(path)):
        check_output(path, source)
        bundle = Bundle.load(source).with_profiles({name: profile})
        bundle.save(path)
    return bundle


def forget(path: str | Path, name: str) -> Bundle:
    """Delete a person's profile from a bundle's file; nothing of it stays in the new file.

    What a killed write left beside the file goes too. Copies that were made of the file are not
    reached.

    Args:
        path: The file, which is replaced.
        name: The profile's.

    Returns:
        The bundle without it.

    Raises:
        InputError: If there is no such profile.
        BundleError: If the file cannot be read.
    """
    Bundle.load(path).profile(name)  # what is refused leaves no file of a lock
    with locked(Path(path)):
        bundle = Bundle.load(path).without_profile(name)
        bundle.save(path)
        remove_unfinished(Path(path))
    return bundle


# --- Writing -------------------------------------------------------------------------------------


def _entry_name(number: int) -> str:
    """What the tensors of a portfolio's entry begin with, from 1."""
    return f"portfolio/entry.{number:02d}"


def _profile_name(name: str) -> str:
    """What the tensors of a profile begin with."""
    return f"profile/{name}"


def _centre_name(name: str) -> str:
    return f"{_profile_name(name)}/centre"


def _gate_name(layer: int) -> str:
    return f"gate/answers/layer.{layer:02d}"


def _portfolio_to_json(portfolio: Portfolio) -> dict[str, Any]:
    return to_json(portfolio) | {"ranks": [ranks_to_json(edit) for edit in portfolio.edits]}


# --- Reading -------------------------------------------------------------------------------------


def _parse(data: bytes, source: str) -> Bundle:
    """The bundle in a file's bytes; `source` names the file in messages."""
    try:
        header, document = container.unpack(data)
        # Before anything else is looked at: a newer layout may differ in all of it.
        schema = check_whole(required(document, "schema", "metadata"), "field 'schema'")
        if schema > SCHEMA:
            raise BundleVersionError(
                f"{source}: written with schema {schema}, this version of steer reads up to "
                f"{SCHEMA}; upgrade steer"
            )
        if schema < 1:
            raise InputError(f"field 'schema': expected 1 or more, got {schema}")
        container.check_seal(document)
        return _bundle(document, header, data)
    except (InputError, SafetensorError) as error:
        raise BundleFormatError(f"{source}: {error}") from error


def _bundle(document: Mapping[str, Any], header: Mapping[str, Any], data: bytes) -> Bundle:
    """Build the bundle; every field is validated by the dataclasses, also in a file of ours."""
    expected = {
        "fingerprint",
        "model",
        "portfolio",
        "schema",
        "scope",
        "settings",
        "traits",
        "versions",
        *container.SEALS,
    }
    if document["schema"] > 1:
        expected.add("gate")
    if document["schema"] > 2:
        expected.add("interference")
    if document["schema"] > 3:
        expected.add("profiles")
    exact_keys(document, expected, "metadata")
    fingerprint = Fingerprint.from_json(document["fingerprint"], "bundle field 'fingerprint'")

    entries = {
        name: check_object(value, f"trait {name!r}")
        for name, value in check_object(document["traits"], "field 'traits'").items()
    }
    ranks = {}
    for name, entry in entries.items():
        exact_keys(entry, trait_entry.KEYS, f"trait {name!r}")
        ranks[name] = by_layer(entry["ranks"], check_whole, f"trait {name!r}, field 'ranks'")
    portfolio, portfolio_ranks = _portfolio_fields(document["portfolio"])
    ranks |= portfolio_ranks
    people, layouts = _profile_fields(document.get("profiles", {}))
    for name, value in people.items():
        ranks[_profile_name(name)] = by_layer(value["ranks"], check_whole, "a profile's 'ranks'")
    for owner, layers in ranks.items():
        layouts |= layouts_of(owner, layers, fingerprint.width)
    gated = _gate_layers(document.get("gate"))
    layouts |= {_gate_name(index): ("F32", (fingerprint.width,)) for index in gated or ()}
    tensors = container.tensors(data, header, layouts, document["tensors_sha256"])

    traits = {
        name: trait_entry.from_json(name, entry, edit_of(tensors, name, ranks[name]))
        for name, entry in entries.items()
    }
    kept = [edit_of(tensors, owner, layers) for owner, layers in portfolio_ranks.items()]
    return Bundle(
        document["model"],
        fingerprint,
        document["scope"],
        traits,
        document["settings"],
        document["versions"],
        None if portfolio is None else from_json(portfolio, kept),
        None if gated is None else Gate({index: tensors[_gate_name(index)] for index in gated}),
        interference.from_json(document.get("interference")),
        {
            name: profile.from_json(
                value,
                fingerprint,
                edit_of(tensors, _profile_name(name), ranks[_profile_name(name)]),
                tensors.get(_centre_name(name)),
            )
            for name, value in people.items()
        },
    )


def _profile_fields(
    value: object,
) -> tuple[dict[str, dict[str, Any]], dict[str, container.Layout]]:
    """The fields of profiles, and the layouts of the centres of those that have one."""
    people = {
        name: check_object(one, "a profile")
        for name, one in check_object(value, "field 'profiles'").items()
    }
    layouts: dict[str, container.Layout] = {}
    for name, one in people.items():
        exact_keys(one, profile.KEYS, "a profile")
        if one["centre"] is not None:
            length = check_whole(one["centre"], "a profile's 'centre'")
            layouts[_centre_name(name)] = ("F32", (length,))
    return people, layouts


def _gate_layers(value: object) -> list[int] | None:
    """The layers that a gate knows."""
    if value is None:
        return None
    if not isinstance(value, list):
        raise InputError(f"field 'gate': expected a list of layers, got {value!r:.80}")
    layers = [check_whole(index, "field 'gate'") for index in value]
    if layers != sorted(set(layers)):
        raise InputError(f"field 'gate': expected ascending layers, got {layers}")
    return layers


def _portfolio_fields(value: object) -> tuple[dict[str, Any] | None, dict[str, dict[int, int]]]:
    """A portfolio's fields without the ranks, and the ranks of its entries by their owners."""
    if value is None:
        return None, {}
    where = "field 'portfolio'"
    fields = check_object(value, where)
    ranks = fields.get("ranks")
    if not isinstance(ranks, list):
        raise InputError(f"{where}, 'ranks': expected a list, got {ranks!r:.80}")
    owners = {
        _entry_name(number): by_layer(layers, check_whole, f"{where}, 'ranks'")
        for number, layers in enumerate(ranks, start=1)
    }
    return {key: item for key, item in fields.items() if key != "ranks"}, owners
