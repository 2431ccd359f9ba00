"""An edit as the arrays of a file, under names that a reader understands: `brevity/layer.08/e`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer import container
from steer.edits import Edit, LayerEdit, additive
from steer.errors import InputError
from steer.fields import check_whole


def tensors_of(owner: str, edit: Edit) -> dict[str, NDArray[Any]]:
    """What is stored of an edit, by name.

    Args:
        owner: What the names begin with.
        edit: The edit.
    """
    return {
        _tensor_name(owner, index, part): np.ascontiguousarray(array)
        for index, layer in edit.layers.items()
        for part, array in _parts(layer).items()
    }


def layouts_of(owner: str, ranks: Mapping[int, int], width: int) -> dict[str, container.Layout]:
    """Type and shape of each stored array, by name.

    Args:
        owner: What the names begin with.
        ranks: Of the edit, by layer.
        width: Of the model.
    """
    return {
        _tensor_name(owner, index, part): layout
        for index, rank in ranks.items()
        for part, layout in _layouts(width, rank).items()
    }


def ranks_to_json(edit: Edit) -> dict[str, int]:
    """Ranks by layer, from which a reader knows what is stored; JSON's keys are text."""
    return {str(index): layer.rank for index, layer in edit.layers.items()}


def edit_of(tensors: container.Tensors, owner: str, ranks: Mapping[int, int]) -> Edit:
    """The edit that was stored.

    Raises:
        InputError: If an array holds what `tensors_of` never gives.
    """
    return Edit({index: _layer_edit(tensors, owner, index, k) for index, k in ranks.items()})


def check_storable(edit: object, where: str) -> None:
    """Refuse what a file would not give back exactly.

    Raises:
        InputError: If it is not an edit of float32 arrays.
    """
    if not isinstance(edit, Edit):
        raise InputError(f"{where}: expected an Edit, got {edit!r:.80}")
    for index, layer in edit.layers.items():
        check_whole(index, f"{where}, layer")
        floats = {part.dtype for part in (layer.e, layer.v, layer.u, layer.c)}
        # Another type would be rounded by the file: what is loaded would not be what was saved.
        if floats != {np.dtype(np.float32)} or layer.relu.dtype != np.bool_:
            raise InputError(
                f"{where}, layer {index}: expected float32 arrays and a bool relu, got "
                f"{sorted(map(str, floats))} and {layer.relu.dtype}"
            )


def _layer_edit(tensors: container.Tensors, owner: str, index: int, rank: int) -> LayerEdit:
    e = tensors[_tensor_name(owner, index, "e")]
    if rank == 0:
        return additive({index: e}).layers[index]
    v, u, c, relu = (tensors[_tensor_name(owner, index, part)] for part in ("v", "u", "c", "relu"))
    if relu.max() > 1:
        raise InputError(f"tensor {_tensor_name(owner, index, 'relu')!r}: expected 0 and 1 only")
    return LayerEdit(e, v, u, c, relu.astype(bool))


def _tensor_name(owner: str, layer: int, part: str) -> str:
    return f"{owner}/layer.{layer:02d}/{part}"


def _parts(layer: LayerEdit) -> dict[str, NDArray[Any]]:
    """What is stored of a layer; an additive one needs only `e`."""
    if layer.rank == 0:
        return {"e": layer.e}
    # Bytes, not BOOL: a stored 2 can then be told from True.
    relu = layer.relu.astype(np.uint8)
    return {"e": layer.e, "v": layer.v, "u": layer.u, "c": layer.c, "relu": relu}


def _layouts(width: int, rank: int) -> dict[str, container.Layout]:
    """Type and shape of each stored part."""
    if rank == 0:
        return {"e": ("F32", (width,))}
    return {
        "e": ("F32", (width,)),
        "v": ("F32", (width, rank)),
        "u": ("F32", (width, rank)),
        "c": ("F32", (rank,)),
        "relu": ("U8", (rank,)),
    }
