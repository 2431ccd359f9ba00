"""An edit under which the model is likelier to write what a person wrote.

Additive vectors e_l at some layers, a few thousand numbers, are fitted by a few steps of gradient
ascent on the likelihood of the person's texts y to prompts x, each followed by the end of the turn,

    maximise  mean over tokens t of  log p_e(y_t | x, y_<t)

from e = 0, or from the edit of a group. At e = 0 the gradient of each term is what the person wrote
less what the model expected there: StyleVector's contrast of a person's text with the model's own
(arXiv 2503.05213), taken over all that the model might have written rather than one answer of its.
Bi-directional preference optimisation (arXiv 2406.00045) fits steering vectors as well, to pairs.
Responses y' that a person disliked add the mean of

    - log sigma(l_0(y') - l_e(y')),    l(y) the mean log-likelihood of a token of y,

so that they become less likely than they were. Few steps from a common start are what keeps so
little text from being learnt by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus
from tqdm import tqdm

from steer.activations import check_layers, hooked
from steer.arrays import check_count
from steer.batches import Sequences
from steer.continuations import Continuations
from steer.distill import adder, frozen
from steer.edits import Edit, additive
from steer.errors import InputError
from steer.models import LanguageModel


@dataclass(frozen=True)
class Imitation:
    """How an edit is fitted.

    Attributes:
        steps: Of gradient ascent, each on one batch; at least as many as there are batches.
        rows: Texts of a batch.
        tokens: Texts are read up to here.
        learning_rate: Of Adam at the start, falling to zero, in units of the residual stream.
    """

    steps: int = 12
    rows: int = 16
    tokens: int = 64
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("steps", "rows", "tokens"):
            check_count(name, getattr(self, name))
        if not 0 < self.learning_rate < np.inf:
            raise InputError(f"learning_rate: expected a positive number, got {self.learning_rate}")


def imitate(
    language_model: LanguageModel,
    sequences: Sequences,
    layers: Sequence[int],
    settings: Imitation = Imitation(),  # noqa: B008  (frozen)
    *,
    disliked: Sequences = (),
    start: Edit | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Edit:
    """Fit an additive edit to texts.

    Args:
        language_model: The model, which must not be steered meanwhile. Its weights stay as they
            are.
        sequences: (prompt token ids, text token ids) pairs.
        layers: 0-based decoder layers that are edited.
        settings: How it is fitted.
        disliked: Like the sequences: what should become less likely.
        start: Additive edit of those layers to begin with; None for none.
        seed: Of which texts form a batch.
        progress: Show a progress bar when on a terminal.

    Returns:
        The edit at the scale at which it was fitted.

    Raises:
        InputError: If there are no texts, a layer does not exist, or the start is of other layers
            or not additive.
    """
    check_layers(language_model, layers)
    device = language_model.device
    vectors = torch.from_numpy(_start(start, layers, language_model.width)).to(device)
    vectors.requires_grad_(True)
    parts = _parts(language_model, sequences, settings, seed)
    if not parts:
        raise InputError("expected texts to imitate, got none")
    avoided = _parts(language_model, disliked, settings, seed)
    with torch.no_grad():
        before = [_per_token(part) for part in avoided]
    optimiser = torch.optim.Adam([vectors], lr=settings.learning_rate, betas=(0.9, 0.95))
    # A text that is in no step would count for nothing.
    steps = max(settings.steps, len(parts), len(avoided))
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    bar = tqdm(range(steps), desc="imitate", disable=None if progress else True)
    with frozen(language_model), bar:
        for step in bar:
            part = parts[step % len(parts)]
            hooks = {layer: adder(vector) for layer, vector in zip(layers, vectors, strict=True)}
            with hooked(language_model, hooks):
                loss = -part.log_likelihood().sum() / part.mask.sum()
                if avoided:
                    number = step % len(avoided)
                    risen = _per_token(avoided[number]) - before[number]
                    loss = loss + softplus(risen).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            bar.set_postfix(nats=f"{loss.item():.3f}")
    fitted = vectors.detach().cpu().numpy().astype(np.float32)
    return additive(dict(zip(layers, fitted, strict=True)))


def _start(edit: Edit | None, layers: Sequence[int], width: int) -> np.ndarray:
    """The vectors (layers, d) of an edit."""
    if edit is None:
        return np.zeros((len(layers), width), np.float32)
    if list(edit.layers) != list(layers) or any(
        one.rank or one.width != width for one in edit.layers.values()
    ):
        raise InputError(
            f"start: expected an additive edit of width {width} of layers {list(layers)}, got one "
            f"of layers {list(edit.layers)}"
        )
    return np.stack([edit.layers[layer].e for layer in layers])


def _parts(
    language_model: LanguageModel, sequences: Sequences, settings: Imitation, seed: int
) -> list[Continuations]:
    """Texts in batches, in an order of their own."""
    cut = [(prompt, text[: settings.tokens]) for prompt, text in sequences]
    order = np.random.default_rng(seed).permutation(len(cut)).tolist()
    return [
        Continuations(language_model, [cut[i] for i in order[first : first + settings.rows]])
        for first in range(0, len(order), settings.rows)
    ]


def _per_token(texts: Continuations) -> Tensor:
    """Mean log-likelihood of a token of each text, (B,)."""
    return texts.log_likelihood() / texts.mask.sum(1)
