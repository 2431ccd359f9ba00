"""The bundle: one safetensors file with the edits of several traits, built on one model.

The tensors bear names that a reader understands, `brevity/layer.08/e`; all else is one JSON text
in the file's metadata. Loading runs no code. It either gives back exactly what was saved or raises
a `BundleError`: a hash over the tensors and one over the JSON refuse a damaged file.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import stat
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from steer.edits import Edit, LayerEdit, additive
from steer.errors import (
    BundleError,
    BundleFormatError,
    BundleVersionError,
    FingerprintError,
    InputError,
)
from steer.models import Fingerprint
from steer.resources import atomic_path

SCHEMA = 1
"""Version of the file layout that is written, and the newest one that is read."""

# Looked at before anything is allocated: a damaged length field must not exhaust the memory.
_MAX_FILE_BYTES = 1 << 30
_MAX_HEADER_BYTES = 16 << 20

_METADATA_KEY = "steer"

# Other files that are likely to be passed by mistake, by their first bytes.
_KINDS = (
    (b"PK\x03\x04", "a zip archive (PyTorch .pt or NumPy .npz)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"\x80", "a pickle, which is never loaded"),
    (b"{", "JSON text"),
)

_T = TypeVar("_T")
_V = TypeVar("_V")


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
    ccs_loss: Mapping[int, float]
    direction_norm: Mapping[int, float]
    statistics: Mapping[str, float | int | str]

    def __post_init__(self) -> None:
        """Validate."""
        name = _text(self.name, "trait field 'name'")
        # "/" separates the parts of a tensor's name.
        if not name.strip() or "/" in name or not name.isprintable():
            raise InputError(
                f"trait field 'name': expected a printable name without '/', got {name!r}"
            )
        where = f"trait {name!r}, field "
        for key in ("description", "positive", "negative", "method"):
            _text(getattr(self, key), f"{where}{key!r}")
        for key in ("dose", "reliability"):
            object.__setattr__(self, key, _number(getattr(self, key), f"{where}{key!r}"))
        if self.dose < 0:
            raise InputError(f"{where}'dose': expected nats per token >= 0, got {self.dose}")
        _check_edit(self.edit, f"{where}'edit'")
        for key in ("ccs_loss", "direction_norm"):
            by_layer = _mapping(getattr(self, key), _layer_index, _number, f"{where}{key!r}")
            object.__setattr__(self, key, by_layer)
        if self.ccs_loss.keys() != self.direction_norm.keys():
            raise InputError(
                f"{where}'direction_norm': expected the layers of 'ccs_loss', "
                f"{list(self.ccs_loss)}, got {list(self.direction_norm)}"
            )
        statistics = _mapping(self.statistics, _text, _scalar, f"{where}'statistics'")
        object.__setattr__(self, "statistics", statistics)


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
    """

    model: str
    fingerprint: Fingerprint
    scope: Literal["response", "all"]
    traits: Mapping[str, TraitEntry]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        """Validate."""
        _text(self.model, "bundle field 'model'")
        _check_fingerprint(self.fingerprint)
        if self.scope not in ("response", "all"):
            raise InputError(
                f"bundle field 'scope': expected 'response' or 'all', got {self.scope!r}"
            )
        for key, convert in (
            ("traits", _trait_entry),
            ("settings", _json_value),
            ("versions", _text),
        ):
            checked: Mapping[str, Any] = _mapping(
                getattr(self, key), _text, convert, f"bundle field {key!r}"
            )
            object.__setattr__(self, key, checked)
        for name, entry in self.traits.items():
            self._check_fits(name, entry)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all; the same bundle gives the same bytes.

        Args:
            path: Where to; an existing file is replaced.
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
        return _parse(_read(Path(path)), str(path))

    def info(self) -> dict[str, Any]:
        """A summary in plain JSON values; `size` is the file's, in bytes."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint.to_dict(),
            "scope": self.scope,
            "traits": {name: _summary(entry) for name, entry in self.traits.items()},
            "settings": _json_value(self.settings, "bundle field 'settings'"),
            "versions": dict(self.versions),
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
        deepest = max((i for entry in self.traits.values() for i in entry.edit.layers), default=-1)
        if fingerprint.width != self.fingerprint.width or deepest >= fingerprint.layers:
            raise FingerprintError(
                f"{message}; its edits do not fit that model's layers, so force=True cannot help: "
                "load the model it was built on, or build a bundle on this one"
            )
        if not force:
            raise FingerprintError(
                f"{message}; load the model it was built on, build a bundle on this one, or pass "
                "force=True to use it all the same"
            )
        warnings.warn(f"{message}; its doses were not measured on this model", stacklevel=2)

    def _check_fits(self, name: str, entry: TraitEntry) -> None:
        """Check that an entry belongs under its key and fits the fingerprint's model."""
        if entry.name != name:
            raise InputError(
                f"bundle field 'traits': the entry at {name!r} bears the name {entry.name!r}"
            )
        model = self.fingerprint
        for key, layers in (
            ("edit", entry.edit.layers),
            ("ccs_loss", entry.ccs_loss),
            ("direction_norm", entry.direction_norm),
        ):
            if beyond := [index for index in layers if index >= model.layers]:
                raise InputError(
                    f"trait {name!r}, field {key!r}: expected layers below {model.layers}, "
                    f"the model's count, got {beyond}"
                )
        for index, layer in entry.edit.layers.items():
            if layer.width != model.width:
                raise InputError(
                    f"trait {name!r}, field 'edit': expected the model's width {model.width}, "
                    f"got {layer.width} at layer {index}"
                )

    def _to_bytes(self) -> bytes:
        tensors = {
            _tensor_name(name, index, part): np.ascontiguousarray(array)
            for name, entry in self.traits.items()
            for index, layer in entry.edit.layers.items()
            for part, array in _parts(layer).items()
        }
        document = {
            "schema": SCHEMA,
            "model": self.model,
            "fingerprint": self.fingerprint.to_dict(),
            "scope": self.scope,
            "traits": {name: _to_json(entry) for name, entry in self.traits.items()},
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "tensors_sha256": _tensors_digest(tensors),
        }
        document["sha256"] = _digest(document)
        return safetensors.save(tensors, metadata={_METADATA_KEY: _canonical(document)})


# --- Writing -------------------------------------------------------------------------------------


def _tensor_name(trait: str, layer: int, part: str) -> str:
    return f"{trait}/layer.{layer:02d}/{part}"


def _parts(layer: LayerEdit) -> dict[str, NDArray[Any]]:
    """What is stored of a layer; an additive one needs only `e`."""
    if layer.rank == 0:
        return {"e": layer.e}
    # Bytes, not BOOL: a stored 2 can then be told from True.
    relu = layer.relu.astype(np.uint8)
    return {"e": layer.e, "v": layer.v, "u": layer.u, "c": layer.c, "relu": relu}


def _layouts(width: int, rank: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type, as safetensors names it, and shape of each stored part."""
    if rank == 0:
        return {"e": ("F32", (width,))}
    return {
        "e": ("F32", (width,)),
        "v": ("F32", (width, rank)),
        "u": ("F32", (width, rank)),
        "c": ("F32", (rank,)),
        "relu": ("U8", (rank,)),
    }


def _to_json(entry: TraitEntry) -> dict[str, Any]:
    return {
        "description": entry.description,
        "positive": entry.positive,
        "negative": entry.negative,
        "ranks": {str(index): layer.rank for index, layer in entry.edit.layers.items()},
        "dose": entry.dose,
        "method": entry.method,
        "reliability": entry.reliability,
        **_layer_figures(entry),
        "statistics": dict(entry.statistics),
    }


def _summary(entry: TraitEntry) -> dict[str, Any]:
    return {
        "description": entry.description,
        "positive": entry.positive,
        "negative": entry.negative,
        "layers": list(entry.edit.layers),
        "rank": entry.edit.rank,
        "dose": entry.dose,
        "method": entry.method,
        "reliability": entry.reliability,
        **_layer_figures(entry),
        "statistics": dict(entry.statistics),
    }


def _layer_figures(entry: TraitEntry) -> dict[str, dict[str, float]]:
    """What was measured at each layer; JSON's keys are text."""
    return {
        "ccs_loss": {str(index): loss for index, loss in entry.ccs_loss.items()},
        "direction_norm": {str(index): norm for index, norm in entry.direction_norm.items()},
    }


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(_canonical(rest).encode()).hexdigest()


def _tensors_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# --- Reading -------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """The file's bytes, read once: it cannot change between a check and its use."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise BundleError(f"{path}: is a folder, expected a bundle file")
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: is not a regular file")
        if status.st_size > _MAX_FILE_BYTES:
            raise BundleFormatError(
                f"{path}: {status.st_size} bytes; a bundle has at most {_MAX_FILE_BYTES}"
            )
        with path.open("rb") as file:
            return file.read(status.st_size)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: no such file") from error
    # ValueError: a path with a NUL character.
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from error


def _parse(data: bytes, source: str) -> Bundle:
    """The bundle in a file's bytes; `source` names the file in messages."""
    try:
        header = _header(data)
        document = _document(header)
        # Before anything else is looked at: a newer layout may differ in all of it.
        schema = _whole(_get(document, "schema"), "field 'schema'")
        if schema > SCHEMA:
            raise BundleVersionError(
                f"{source}: written with schema {schema}, this version of steer reads up to "
                f"{SCHEMA}; upgrade steer"
            )
        if schema < 1:
            raise InputError(f"field 'schema': expected 1 or more, got {schema}")
        if _get(document, "sha256") != _digest(document):
            raise InputError("damaged: the metadata do not match their SHA-256")
        return _bundle(document, header, data)
    except (InputError, SafetensorError) as error:
        raise BundleFormatError(f"{source}: {error}") from error


def _header(data: bytes) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, then JSON."""
    if not data:
        raise InputError("truncated: the file is empty")
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > _MAX_HEADER_BYTES:
        for magic, kind in _KINDS:
            if data.startswith(magic):
                raise InputError(f"not a safetensors file; looks like {kind}")
        if len(data) > 8:
            raise InputError("not a safetensors file, or its header is damaged")
    if len(data) < 8 + length:
        raise InputError(f"truncated: the file has {len(data)} bytes and ends inside the header")
    return _json_object(data[8 : 8 + length], "header")


def _document(header: Mapping[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    text = metadata.get(_METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise InputError(
            f"a safetensors file, but not a steer bundle: no {_METADATA_KEY!r} in its metadata"
        )
    return _json_object(text, "metadata")


def _json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse strictly: no NaN, no key twice, an object at the top."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        # Also refuses numbers too large for a float, which the parser turns into infinity.
        _canonical({"": value})
    # ValueError: JSON and Unicode errors, and integers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise InputError(f"damaged {what}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"damaged {what}: expected a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _bundle(document: Mapping[str, Any], header: Mapping[str, Any], data: bytes) -> Bundle:
    """Build the bundle; every field is validated by the dataclasses, also in a file of ours."""
    expected = {
        "fingerprint",
        "model",
        "schema",
        "scope",
        "settings",
        "sha256",
        "tensors_sha256",
        "traits",
        "versions",
    }
    _exact_keys(document, expected, "metadata")
    identity = _object(document["fingerprint"], "field 'fingerprint'")
    _exact_keys(identity, {field.name for field in fields(Fingerprint)}, "field 'fingerprint'")
    fingerprint = Fingerprint(**identity)
    _check_fingerprint(fingerprint)

    entries = {
        name: _object(value, f"trait {name!r}")
        for name, value in _object(document["traits"], "field 'traits'").items()
    }
    ranks = {}
    for name, entry in entries.items():
        _exact_keys(entry, _ENTRY_KEYS, f"trait {name!r}")
        ranks[name] = _by_layer(entry["ranks"], _whole, f"trait {name!r}, field 'ranks'")
    tensors = _tensors(ranks, fingerprint.width, header, data)
    if document["tensors_sha256"] != _tensors_digest(tensors):
        raise InputError("damaged: the tensors do not match their SHA-256")

    traits = {}
    for name, entry in entries.items():
        where = f"trait {name!r}, field "
        values = {key: value for key, value in entry.items() if key != "ranks"}
        for key in ("ccs_loss", "direction_norm"):
            values[key] = _by_layer(values[key], _number, f"{where}{key!r}")
        layers = {
            index: _layer_edit(tensors, name, index, rank) for index, rank in ranks[name].items()
        }
        traits[name] = TraitEntry(name=name, edit=Edit(layers), **values)
    return Bundle(
        document["model"],
        fingerprint,
        document["scope"],
        traits,
        document["settings"],
        document["versions"],
    )


_ENTRY_KEYS = {field.name for field in fields(TraitEntry)} - {"name", "edit"} | {"ranks"}


def _tensors(
    ranks: Mapping[str, Mapping[int, int]],
    width: int,
    header: Mapping[str, Any],
    data: bytes,
) -> dict[str, NDArray[Any]]:
    """The tensors, which must be just those that the metadata promise."""
    start = 8 + int.from_bytes(data[:8], "little")
    end = start
    layouts = {
        _tensor_name(name, index, part): layout
        for name, layers in ranks.items()
        for index, rank in layers.items()
        for part, layout in _layouts(width, rank).items()
    }
    _exact_keys({key: None for key in header if key != "__metadata__"}, set(layouts), "tensors")
    for name, (dtype, shape) in layouts.items():
        where = f"tensor {name!r}"
        entry = _object(header[name], where)
        _exact_keys(entry, {"dtype", "shape", "data_offsets"}, where)
        if (entry["dtype"], entry["shape"]) != (dtype, list(shape)):
            raise InputError(
                f"{where}: expected {dtype} {list(shape)}, got {entry['dtype']!r} "
                f"{entry['shape']!r}"
            )
        offsets = entry["data_offsets"]
        if not isinstance(offsets, list) or len(offsets) != 2:
            raise InputError(f"{where}: expected two data offsets, got {offsets!r}")
        first, last = (_whole(offset, f"{where}, data offset") for offset in offsets)
        if last - first != math.prod(shape) * (4 if dtype == "F32" else 1):
            raise InputError(f"{where}: data offsets {offsets} do not fit its shape")
        end = max(end, start + last)
    if len(data) != end:
        problem = "truncated" if len(data) < end else "damaged"
        raise InputError(f"{problem}: expected {end} bytes, the file has {len(data)}")
    return safetensors.load(data)


def _layer_edit(
    tensors: Mapping[str, NDArray[Any]], trait: str, index: int, rank: int
) -> LayerEdit:
    e = tensors[_tensor_name(trait, index, "e")]
    if rank == 0:
        return additive({index: e}).layers[index]
    v, u, c, relu = (tensors[_tensor_name(trait, index, part)] for part in ("v", "u", "c", "relu"))
    if relu.max() > 1:
        raise InputError(f"tensor {_tensor_name(trait, index, 'relu')!r}: expected 0 and 1 only")
    return LayerEdit(e, v, u, c, relu.astype(bool))


def _by_layer(value: object, convert: Callable[[object, str], _V], where: str) -> dict[int, _V]:
    """A JSON object with layer indices for keys."""
    result = {}
    for key, item in _object(value, where).items():
        # One spelling only: "08" beside "8" would be the same layer twice.
        if not (key.isascii() and key.isdigit()) or len(key) > 9 or str(int(key)) != key:
            raise InputError(f"{where}: expected a layer index, got {key!r}")
        result[int(key)] = convert(item, f"{where}[{key}]")
    return result


def _get(document: Mapping[str, Any], key: str) -> Any:
    if key not in document:
        raise InputError(f"metadata: field {key!r} is missing")
    return document[key]


def _exact_keys(value: Mapping[str, Any], expected: set[str], where: str) -> None:
    if missing := expected - value.keys():
        raise InputError(f"{where}: {min(missing)!r} is missing")
    if unknown := value.keys() - expected:
        raise InputError(f"{where}: {min(unknown)!r} is unknown")


# --- Validation, of arguments and of file contents alike -----------------------------------------


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {value!r:.80}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, got {value!r:.80}")
    # JSON would join two lone surrogates into one character.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where}: expected valid Unicode, got {value!r:.80}")
    return value


def _number(value: object, where: str) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InputError(f"{where}: expected a number, got {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, got {value!r:.80}")
    return number


def _whole(value: object, where: str) -> int:
    """A count: 0 or more, of a size that every reader of JSON can hold."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = int(cast("int", value)) if integral else -1
    if not 0 <= number < 1 << 53:
        raise InputError(f"{where}: expected a whole number >= 0, got {value!r:.80}")
    return number


def _layer_index(value: object, where: str) -> int:
    return _whole(value, f"{where}, layer")


def _scalar(value: object, where: str) -> float | int | str:
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        if abs(int(value)) >= 1 << 64:
            raise InputError(f"{where}: expected an integer of at most 64 bits")
        return int(value)
    return _number(value, where)


def _json_value(value: object, where: str) -> Any:
    """A deep copy in plain JSON types."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {
            _text(key, where): _json_value(item, f"{where}[{key!r}]")
            for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        }
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return _scalar(value, where)


def _mapping(
    value: object,
    convert_key: Callable[[object, str], _T],
    convert: Callable[[object, str], _V],
    where: str,
) -> Mapping[_T, _V]:
    """A read-only copy with validated keys and values, in the order of the keys."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a mapping, got {value!r:.80}")
    pairs = {
        convert_key(key, where): convert(item, f"{where}[{key!r}]") for key, item in value.items()
    }
    return MappingProxyType({key: pairs[key] for key in sorted(cast("Any", pairs))})


def _trait_entry(value: object, where: str) -> TraitEntry:
    if not isinstance(value, TraitEntry):
        raise InputError(f"{where}: expected a TraitEntry, got {value!r:.80}")
    return value


def _check_edit(edit: object, where: str) -> None:
    if not isinstance(edit, Edit):
        raise InputError(f"{where}: expected an Edit, got {edit!r:.80}")
    for index, layer in edit.layers.items():
        _whole(index, f"{where}, layer")
        floats = {part.dtype for part in (layer.e, layer.v, layer.u, layer.c)}
        # Another type would be rounded by the file: what is loaded would not be what was saved.
        if floats != {np.dtype(np.float32)} or layer.relu.dtype != np.bool_:
            raise InputError(
                f"{where}, layer {index}: expected float32 arrays and a bool relu, got "
                f"{sorted(map(str, floats))} and {layer.relu.dtype}"
            )


def _check_fingerprint(fingerprint: object) -> None:
    where = "bundle field 'fingerprint'"
    if not isinstance(fingerprint, Fingerprint):
        raise InputError(f"{where}: expected a Fingerprint, got {fingerprint!r:.80}")
    for key in ("architecture", "weights"):
        _text(getattr(fingerprint, key), f"{where}, {key!r}")
    for key in ("layers", "width", "vocabulary"):
        if _whole(getattr(fingerprint, key), f"{where}, {key!r}") == 0:
            raise InputError(f"{where}, {key!r}: expected 1 or more, got 0")
