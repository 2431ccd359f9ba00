"""How likely a model finds each of several answers to one prompt, under each of several edits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from steer.activations import Tokens
from steer.continuations import Continuations
from steer.edits import ZERO, Edit
from steer.hooks import attach
from steer.models import LanguageModel


def choice_log_likelihood(
    model: LanguageModel,
    prompt: Tokens,
    choices: Sequence[Tokens],
    edits: Sequence[Edit] = (ZERO,),
) -> NDArray[np.float64]:
    """Mean log-probability (nats per token) of each answer under each edit, (edits, answers).

    The prompt is read once for all.

    Args:
        model: The model, which must not be steered meanwhile.
        prompt: Token ids of the rendered prompt.
        choices: Token ids of each answer.
        edits: What the model is steered by.
    """
    answers = Continuations(model, [(prompt, choice) for choice in choices])
    hooks = attach(model)
    rows = []
    for edit in edits:
        with torch.inference_mode(), hooks.steer(edit, prompt_length=1):
            summed = answers.log_likelihood()
        rows.append((summed / answers.mask.sum(1)).cpu().double().numpy())
    return np.stack(rows)
