"""Arrays by layer that take long to make: made once, then kept in a safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from steer.errors import DataError
from steer.resources import atomic_path

ByLayer = dict[int, NDArray[np.float32]]


def stored_by_layer(
    path: Path, what: str, make: Callable[[], Mapping[int, NDArray[np.float32]]]
) -> ByLayer:
    """What a file holds, which is made and written if it does not exist.

    Args:
        path: safetensors file.
        what: For the error: what the file should hold.
        make: Makes it.

    Raises:
        DataError: If the file is damaged.
    """
    if not path.exists():
        made = {str(layer): np.ascontiguousarray(array) for layer, array in make().items()}
        with atomic_path(path) as temporary:
            save_file(made, temporary)
    try:
        return {int(layer): array for layer, array in load_file(path).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: not {what} ({error}); delete it") from error
