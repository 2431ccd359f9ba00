"""Read the residual stream at chosen layers, pooled over response tokens or token by token.

Own hooks pool each layer's output as it appears, so no layer of every token is kept; the pass
ends after the last layer that is read, so neither the layers above it nor the output embedding
run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch
from einops import einsum
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from steer.errors import InputError
from steer.models import LanguageModel

Pooling = Literal["mean", "last"]
Tokens = Sequence[int]


def read_activations(
    language_model: LanguageModel,
    sequences: Sequence[tuple[Tokens, Tokens]],
    layers: Sequence[int],
    *,
    pooling: Pooling = "mean",
    batch_tokens: int = 4096,
    progress: bool = False,
) -> dict[int, NDArray[np.float32]]:
    """Read pooled activations of responses.

    Args:
        language_model: The model.
        sequences: (prompt token ids, response token ids) pairs; n of them.
        layers: 0-based decoder layers whose output is read.
        pooling: "mean" over the response tokens, or the "last" of them.
        batch_tokens: Tokens in one forward pass, padding included.
        progress: Show a progress bar when on a terminal.

    Returns:
        By layer, (n, d) activations in the order of `sequences`, accumulated in fp32.

    Raises:
        InputError: If a response is empty or a layer does not exist.
    """
    _check(language_model, sequences, layers, pooling)
    pooled = {
        layer: np.empty((len(sequences), language_model.width), np.float32) for layer in layers
    }
    bar = tqdm(total=len(sequences), desc="activations", disable=None if progress else True)
    with bar, torch.inference_mode():
        for indices in _batches(sequences, batch_tokens):
            ids, mask, weights = _pad([sequences[i] for i in indices], language_model, pooling)
            taken = _forward(language_model, layers, ids, mask, _pooler(weights))
            for layer, values in taken.items():
                pooled[layer][indices] = values.cpu().numpy()
            bar.update(len(indices))
    return pooled


def read_tokens(
    language_model: LanguageModel,
    sequences: Sequence[tuple[Tokens, Tokens]],
    layers: Sequence[int],
    *,
    batch_tokens: int = 4096,
) -> Iterator[dict[int, Tensor]]:
    """Read the activations of every response token, a batch of sequences at a time.

    Args:
        language_model: The model.
        sequences: (prompt token ids, response token ids) pairs.
        layers: 0-based decoder layers whose output is read.
        batch_tokens: Tokens in one forward pass, padding included.

    Yields:
        By layer, (N, d) activations of the N response tokens of a batch, in fp32.

    Raises:
        InputError: If a response is empty or a layer does not exist.
    """
    _check(language_model, sequences, layers, "mean")
    for indices in _batches(sequences, batch_tokens):
        ids, mask, weights = _pad([sequences[i] for i in indices], language_model, "mean")
        with torch.inference_mode():
            taken = _forward(language_model, layers, ids, mask, _picker(weights > 0))
        yield taken


def _pooler(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Means (B, d) of (B, T, d) with weights (B, T)."""
    return lambda h: einsum(h.float(), weights.to(h.device), "b t d, b t -> b d")


def _picker(chosen: Tensor) -> Callable[[Tensor], Tensor]:
    """Those of (B, T, d) that are chosen (B, T), as (N, d)."""
    return lambda h: h[chosen.to(h.device)].float()


class _Stop(Exception):
    """Ends a forward pass after the last layer that is read."""


def _forward(
    language_model: LanguageModel,
    layers: Sequence[int],
    ids: Tensor,
    mask: Tensor,
    take: Callable[[Tensor], Tensor],
) -> dict[int, Tensor]:
    """What is taken of each layer's output (B, T, d), for ids and mask (B, T)."""
    taken: dict[int, Tensor] = {}
    last = max(layers)

    def reader(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            h = output if isinstance(output, Tensor) else output[0]
            taken[layer] = take(h)
            if layer == last:
                raise _Stop

        return hook

    with hooked(language_model, {layer: reader(layer) for layer in layers}), suppress(_Stop):
        language_model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return taken


@contextmanager
def hooked(language_model: LanguageModel, hooks: Mapping[int, Any]) -> Iterator[None]:
    """Forward hooks on decoder layers, by index, that are taken off again."""
    handles = [
        language_model.layers[layer].register_forward_hook(hook) for layer, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(sequences: Sequence[tuple[Tokens, Tokens]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, so that little is padded."""
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    batch: list[int] = []
    for index in sorted(range(len(sequences)), key=lengths.__getitem__):
        # Ascending order: the newest sequence is the longest of its batch.
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pad(
    batch: Sequence[tuple[Tokens, Tokens]], language_model: LanguageModel, pooling: Pooling
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and pooling weights, each (B, T), padded on the right."""
    length = max(len(prompt) + len(response) for prompt, response in batch)
    ids = np.full((len(batch), length), language_model.tokenizer.pad_token_id)
    mask = np.zeros((len(batch), length), np.int64)
    weights = np.zeros((len(batch), length), np.float32)
    for row, (prompt, response) in enumerate(batch):
        end = len(prompt) + len(response)
        ids[row, :end] = [*prompt, *response]
        mask[row, :end] = 1
        start = len(prompt) if pooling == "mean" else end - 1
        weights[row, start:end] = 1 / (end - start)
    device = language_model.device
    return (
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask).to(device),
        torch.from_numpy(weights).to(device),
    )


def check_layers(language_model: LanguageModel, layers: Sequence[int]) -> None:
    """Refuse no layers, and layers that the model does not have.

    Raises:
        InputError: With those that it has.
    """
    depth = len(language_model.layers)
    if not layers or min(layers) < 0 or max(layers) >= depth:
        raise InputError(f"expected layers in 0..{depth - 1}, got {list(layers)}")


def _check(
    language_model: LanguageModel,
    sequences: Sequence[tuple[Tokens, Tokens]],
    layers: Sequence[int],
    pooling: Pooling,
) -> None:
    check_layers(language_model, layers)
    if pooling not in ("mean", "last"):
        raise InputError(f"unknown pooling {pooling!r}; expected 'mean' or 'last'")
    for index, (_, response) in enumerate(sequences):
        if not response:
            raise InputError(f"response {index} has no tokens; nothing can be pooled")
