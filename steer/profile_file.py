"""One profile as bytes, to be kept beside others of its kind: a database, a file of its own.

The same container as a bundle's: safetensors with JSON in its metadata, sealed by hashes. Reading
it runs no code.
"""

from __future__ import annotations

from safetensors import SafetensorError

from steer import container, profile
from steer.edit_tensors import edit_of, layouts_of, tensors_of
from steer.errors import BundleFormatError, InputError
from steer.fields import by_layer, check_whole, exact_keys, required
from steer.models import Fingerprint
from steer.profile import Profile

FORMAT = 1
_OWNER = "edit"
_CENTRE = "centre"


def to_bytes(one: Profile) -> bytes:
    """The bytes of a profile; the same profile gives the same bytes.

    Raises:
        InputError: If there are more of them than would be read again.
    """
    tensors = tensors_of(_OWNER, one.edit)
    if one.centre is not None:
        tensors[_CENTRE] = one.centre
    document = {
        "profile": FORMAT,
        "fingerprint": one.fingerprint.to_dict(),
        **profile.to_json(one),
    }
    return container.pack(document, tensors)


def from_bytes(data: bytes) -> Profile:
    """The profile that `to_bytes` wrote.

    Raises:
        BundleFormatError: If the bytes are damaged, or of something else.
    """
    try:
        header, document = container.unpack(data)
        if required(document, "profile", "metadata") != FORMAT:
            raise InputError(f"expected a profile of format {FORMAT}, got {document['profile']!r}")
        container.check_seal(document)
        rest = {"profile", "fingerprint", *container.SEALS}
        exact_keys(document, rest | profile.KEYS, "metadata")
        fingerprint = Fingerprint.from_json(document["fingerprint"], "field 'fingerprint'")
        ranks = by_layer(document["ranks"], check_whole, "field 'ranks'")
        layouts = layouts_of(_OWNER, ranks, fingerprint.width)
        if document["centre"] is not None:
            layouts[_CENTRE] = ("F32", (check_whole(document["centre"], "field 'centre'"),))
        tensors = container.tensors(data, header, layouts, document["tensors_sha256"])
        values = {key: document[key] for key in profile.KEYS}
        edit = edit_of(tensors, _OWNER, ranks)
        return profile.from_json(values, fingerprint, edit, tensors.get(_CENTRE))
    except (InputError, SafetensorError) as error:
        raise BundleFormatError(f"a stored profile: {error}") from error
