"""Keep `transformers` from drawing its own progress bars while it loads or writes a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers.utils import logging

try:
    from transformers import modeling_gguf_pytorch_utils
except ImportError:  # a version without it
    modeling_gguf_pytorch_utils = None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch the library's progress bars off inside the block, and back to what they were."""
    enabled = logging.is_progress_bar_enabled()
    # What reads GGUF has a bar of its own, which does not ask.
    reader: Any = modeling_gguf_pytorch_utils
    bar = getattr(reader, "tqdm", None)
    logging.disable_progress_bar()
    if bar is not None:
        reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        if bar is not None:
            reader.tqdm = bar
        if enabled:
            logging.enable_progress_bar()
