"""An answer in pieces, as the model writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from steer.generation import Decoding, generate_batch
from steer.hooks import attach
from steer.models import LanguageModel


def pieces(
    language_model: LanguageModel,
    text: str,
    decoding: Decoding,
    *,
    seed: int | None,
    steering: Callable[[], AbstractContextManager[object]],
) -> Iterator[str]:
    """Generate in a thread of its own, which ends early where the iterator is closed.

    Args:
        language_model: The model.
        text: The rendered prompt.
        decoding: Without beams.
        seed: Makes sampling repeatable.
        steering: Gives the block in which the model is steered.

    Yields:
        Pieces of text; joined they are the answer, before white space around it is stripped.

    Raises:
        ConcurrentSteeringError: If this thread is steering the model already.
    """
    # The thread below would wait for this one, and this one for it.
    attach(language_model).refuse_nested()
    streamer = TextIteratorStreamer(
        language_model.tokenizer, skip_prompt=True, skip_special_tokens=True
    )
    cancelled = threading.Event()
    failures: list[BaseException] = []
    options = {
        "streamer": streamer,
        "stopping_criteria": StoppingCriteriaList([_Cancelled(cancelled)]),
    }

    def work() -> None:
        # The block lives in this thread from beginning to end, so an iterator that is dropped
        # half way cannot leave the model steered.
        try:
            with steering():
                generate_batch(
                    language_model, [text], decoding, seed=seed, generation_options=options
                )
        except BaseException as error:  # handed to the reading thread, which raises it
            failures.append(error)
        finally:
            streamer.end()

    thread = threading.Thread(target=work, name="steer-stream", daemon=True)
    thread.start()
    try:
        for piece in streamer:
            # Only the last one can end inside a character, if the limit cut it.
            if whole := piece.rstrip("\ufffd"):
                yield whole
    finally:
        cancelled.set()
        thread.join()
    if failures:
        raise failures[0]


class _Cancelled(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Stops a generation whose reader has gone."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
