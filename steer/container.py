"""A safetensors file with one JSON text in its metadata: the bytes of a bundle.

Reading it runs no code, and takes nothing on trust: sizes are looked at before memory is allocated,
JSON is parsed strictly, and a hash over the tensors and one over the JSON refuse a damaged file.
What the fields mean is for the bundle to say.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import numpy as safetensors

from steer.errors import BundleError, BundleFormatError, InputError
from steer.fields import check_object, check_whole, exact_keys, required

Tensors = Mapping[str, NDArray[Any]]
Layout = tuple[str, tuple[int, ...]]
"""Type, as safetensors names it, and shape of a tensor."""

SEALS = ("sha256", "tensors_sha256")
"""Fields of the JSON that `pack` adds."""

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


def pack(document: Mapping[str, Any], tensors: Tensors) -> bytes:
    """The bytes of a file; the same content gives the same bytes.

    Raises:
        InputError: If there are more of them than would be read again.
    """
    content = {**document, "tensors_sha256": _tensors_digest(tensors)}
    content["sha256"] = _digest(content)
    data = safetensors.save(dict(tensors), metadata={_METADATA_KEY: _canonical(content)})
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(
            f"too large: expected at most {_MAX_FILE_BYTES} bytes, got {len(data)}; keep fewer "
            "edits or profiles in one file"
        )
    if (length := _header_length(data)) > _MAX_HEADER_BYTES:
        raise InputError(
            f"too large: expected at most {_MAX_HEADER_BYTES} bytes of all but arrays, got "
            f"{length}; keep fewer profiles in one file, or no evidence"
        )
    return data


def read_bytes(path: Path) -> bytes:
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


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the JSON of a file; whether its seals hold is asked with `check_seal`.

    Raises:
        InputError: If it is truncated, damaged, or another kind of file.
    """
    header = _header(data)
    return header, _document(header)


def check_seal(document: Mapping[str, Any]) -> None:
    """Refuse JSON that does not match its SHA-256.

    Raises:
        InputError: If it does not.
    """
    if required(document, "sha256", "metadata") != _digest(document):
        raise InputError("damaged: the metadata do not match their SHA-256")


def tensors(
    data: bytes, header: Mapping[str, Any], layouts: Mapping[str, Layout], sha256: object
) -> Tensors:
    """The tensors, which must be just those that are expected.

    Args:
        data: The file's bytes.
        header: Its header.
        layouts: Type and shape of each tensor.
        sha256: The hash over the tensors that the JSON holds.

    Raises:
        InputError: If the file holds others, less or more, or other values than it was written
            with.
        SafetensorError: If safetensors finds fault with it.
    """
    start = 8 + _header_length(data)
    end = start
    exact_keys({key: None for key in header if key != "__metadata__"}, set(layouts), "tensors")
    for name, (dtype, shape) in layouts.items():
        where = f"tensor {name!r}"
        entry = check_object(header[name], where)
        exact_keys(entry, {"dtype", "shape", "data_offsets"}, where)
        if (entry["dtype"], entry["shape"]) != (dtype, list(shape)):
            raise InputError(
                f"{where}: expected {dtype} {list(shape)}, got {entry['dtype']!r} "
                f"{entry['shape']!r}"
            )
        offsets = entry["data_offsets"]
        if not isinstance(offsets, list) or len(offsets) != 2:
            raise InputError(f"{where}: expected two data offsets, got {offsets!r}")
        first, last = (check_whole(offset, f"{where}, data offset") for offset in offsets)
        if last - first != math.prod(shape) * (4 if dtype == "F32" else 1):
            raise InputError(f"{where}: data offsets {offsets} do not fit its shape")
        end = max(end, start + last)
    if len(data) != end:
        problem = "truncated" if len(data) < end else "damaged"
        raise InputError(f"{problem}: expected {end} bytes, the file has {len(data)}")
    found = safetensors.load(data)
    if sha256 != _tensors_digest(found):
        raise InputError("damaged: the tensors do not match their SHA-256")
    return found


def _header_length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _header(data: bytes) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, then JSON."""
    if not data:
        raise InputError("truncated: the file is empty")
    length = _header_length(data)
    # Fewer bytes are no more than a length, which may begin like anything.
    if len(data) > 8 and (data[8:9] != b"{" or length > _MAX_HEADER_BYTES):
        for magic, kind in _KINDS:
            if data.startswith(magic):
                raise InputError(f"not a safetensors file; looks like {kind}")
        if data[8:9] == b"{":
            raise InputError(
                f"not a safetensors file, or its header is damaged: expected at most "
                f"{_MAX_HEADER_BYTES} bytes of it, got a length of {length}"
            )
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
