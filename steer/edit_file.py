"""One edit as bytes, to be sent to another process: the container of bundles, without a bundle."""

from __future__ import annotations

from safetensors import SafetensorError

from steer import container
from steer.edit_tensors import edit_of, layouts_of, ranks_to_json, tensors_of
from steer.edits import Edit
from steer.errors import InputError
from steer.fields import by_layer, check_whole, exact_keys

_OWNER = "edit"
_KEYS = {"width", "ranks", *container.SEALS}


def to_bytes(edit: Edit) -> bytes:
    """The bytes of an edit; the same edit gives the same bytes."""
    width = next((layer.width for layer in edit.layers.values()), 0)
    document = {"width": width, "ranks": ranks_to_json(edit)}
    return container.pack(document, tensors_of(_OWNER, edit))


def from_bytes(data: bytes) -> Edit:
    """The edit that `to_bytes` wrote.

    Raises:
        InputError: If the bytes are damaged, or of something else.
    """
    try:
        header, document = container.unpack(data)
        container.check_seal(document)
        exact_keys(document, _KEYS, "metadata")
        ranks = by_layer(document["ranks"], check_whole, "field 'ranks'")
        layouts = layouts_of(_OWNER, ranks, check_whole(document["width"], "field 'width'"))
        tensors = container.tensors(data, header, layouts, document["tensors_sha256"])
        return edit_of(tensors, _OWNER, ranks)
    except SafetensorError as error:
        raise InputError(f"an edit's bytes: {error}") from error
