"""An edit learnt from what instructions do to the model's own next-token distributions.

A directions-in-activations edit (`steer.undosed.make_edit`) is read off the contrast pairs. This
one is fitted: additive vectors e_l, a few thousand numbers, take the plain prompt x to where the
instructed prompts x+ and x- point. The teacher sharpens their contrast, as logit rectification does
(arXiv 2504.07070, s = s_base + alpha (s_expert - s_anti)),

    log q(t) = log p(t | x, y) + alpha [log p(t | x+, y) - log p(t | x-, y)] + const

for the next token t after the part y of an answer, and the edit minimises KL(q || p_e(. | x, y)),
a mean over the tokens of the pairs' positive answers. The teacher needs three forward passes a
token; the edit needs one, and no instruction. Instructions differ in how much they change, so alpha
is not given but found: where KL(q || p(. | x, y)) is as large as asked for.

A sharpened contrast exaggerates accidents too. Where the model is unsure, as at an answer's first
token, "be warm" raises pictographs a little and its exaggeration a lot, and a small model that has
begun with them goes on with nothing else. So a trait may be distilled without them: the contrast of
their tokens is then at most zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from steer.activations import check_layers, hooked
from steer.chat import render
from steer.continuations import Continuations
from steer.contrast import PairSet
from steer.edits import Edit, additive
from steer.errors import CalibrationError, InputError
from steer.generation import prompt_tokens
from steer.likelihood import token_divergence
from steer.measures import is_pictograph
from steer.models import LanguageModel

# Tokens of the teacher's distribution that are kept: nearly all of its mass.
_KEPT = 128
# Beyond, the contrast is noise.
_SHARPEST = 32.0


@dataclass(frozen=True)
class Distillation:
    """How an edit is fitted.

    Attributes:
        divergence: Of the teacher from the plain model, in nats per token.
        epochs: Passes over the pairs.
        tokens: Answers are read up to here: a trait shows early.
        rows: Answers of a batch.
        learning_rate: Of Adam at the start, falling to zero, in units of the residual stream.
        pictographs: Whether the teacher may make pictographs (emoji) likelier. If not, nor does it
            make likelier any token that is a part of a character, as which many are spelt.
        seed: Of the order of the batches.
    """

    divergence: float = 0.5
    epochs: int = 4
    tokens: int = 64
    rows: int = 8
    learning_rate: float = 0.05
    pictographs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("divergence", "epochs", "tokens", "rows", "learning_rate"):
            if not 0 < getattr(self, name) < np.inf:
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")


@dataclass(frozen=True)
class _Lesson:
    """Answers to plain prompts, and what the teacher says of each next token."""

    texts: Continuations
    tokens: Tensor  # (B, R, k)
    log_q: Tensor  # (B, R, k)


def distill(
    language_model: LanguageModel,
    pairs: PairSet,
    prompts: Sequence[str],
    layers: Sequence[int],
    settings: Distillation = Distillation(),  # noqa: B008  (frozen)
    *,
    progress: bool = False,
) -> Edit:
    """Fit an additive edit to the contrast between a trait's instructions.

    Args:
        language_model: The model, which must not be steered meanwhile. Its weights stay as they
            are.
        pairs: The trait's contrast pairs.
        prompts: The plain prompts of the pairs, without instructions, in their order.
        layers: 0-based decoder layers that are edited.
        settings: How it is fitted.
        progress: Show a progress bar when on a terminal.

    Returns:
        The edit at the scale at which it was fitted; its dose is still to be searched.

    Raises:
        InputError: If there are no pairs, numbers differ, or a layer does not exist.
        CalibrationError: If the instructions make no difference to the model.
    """
    check_layers(language_model, layers)
    if not pairs.pairs or len(prompts) != len(pairs.pairs):
        raise InputError(f"got {len(prompts)} prompts for {len(pairs.pairs)} pairs")
    with frozen(language_model):
        lessons = list(_lessons(language_model, pairs, prompts, settings))
        vectors = torch.zeros(
            len(layers), language_model.width, device=language_model.device, requires_grad=True
        )
        optimiser = torch.optim.Adam([vectors], lr=settings.learning_rate, betas=(0.9, 0.95))
        steps = settings.epochs * len(lessons)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
        order = np.random.default_rng(settings.seed)
        bar = tqdm(total=steps, desc=pairs.trait, disable=None if progress else True)
        with bar:
            for _ in range(settings.epochs):
                for index in order.permutation(len(lessons)).tolist():
                    loss = _loss(language_model, lessons[index], layers, vectors)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    schedule.step()
                    bar.update()
                    bar.set_postfix(kl=f"{loss.item():.3f}")
    fitted = vectors.detach().cpu().numpy().astype(np.float32)
    return additive(dict(zip(layers, fitted, strict=True)))


@contextmanager
def frozen(language_model: LanguageModel) -> Iterator[None]:
    """Gradients, but none for the weights; afterwards as before.

    Args:
        language_model: The model.
    """
    parameters = [p for p in language_model.model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _lessons(
    language_model: LanguageModel, pairs: PairSet, prompts: Sequence[str], settings: Distillation
) -> Iterator[_Lesson]:
    """What the teacher says of the positive answers, in batches of similar length."""

    def asked(request: str) -> list[int]:
        return prompt_tokens(language_model, render(language_model.tokenizer, request))

    answers = [pair.positive.tokens[: settings.tokens] for pair in pairs.pairs]
    plain = [asked(prompt) for prompt in prompts]
    positive = [asked(pair.positive.request) for pair in pairs.pairs]
    negative = [asked(pair.negative.request) for pair in pairs.pairs]
    order = sorted(range(len(answers)), key=lambda i: len(plain[i]) + len(answers[i]))
    quiet = [] if settings.pictographs else pictograph_tokens(language_model)

    def said(rows: Sequence[int]) -> tuple[Continuations, Tensor, Tensor]:
        """The plain texts, the plain model's log-probabilities, the contrast (B, R, vocabulary)."""
        asked_plainly, *instructed = (
            Continuations(language_model, [(requests[i], answers[i]) for i in rows])
            for requests in (plain, positive, negative)
        )
        with torch.no_grad():
            base, more, less = (
                texts.logits().float().log_softmax(-1) for texts in (asked_plainly, *instructed)
            )
        contrast = more - less
        contrast[..., quiet] = contrast[..., quiet].clamp(max=0)
        return asked_plainly, base, contrast

    # Answers of every length.
    spread = order[:: -(-len(order) // settings.rows)]
    texts, base, contrast = said(spread)
    alpha = _sharpness(texts.mask, base, contrast, settings.divergence, pairs.trait)
    for start in range(0, len(order), settings.rows):
        rows = order[start : start + settings.rows]
        texts, base, contrast = said(rows)
        teacher = (base + alpha * contrast).log_softmax(-1)
        log_q, tokens = teacher.topk(min(_KEPT, teacher.shape[-1]), dim=-1)
        yield _Lesson(texts, tokens, log_q)


def pictograph_tokens(language_model: LanguageModel) -> list[int]:
    """The tokens that hold a pictograph, or a part of a character.

    Args:
        language_model: The model.
    """
    tokenizer = language_model.tokenizer
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    # A part of a character is decoded to U+FFFD, which counts as one.
    return [token for token, text in enumerate(texts) if any(map(is_pictograph, text))]


def _sharpness(
    mask: Tensor, base: Tensor, contrast: Tensor, divergence: float, trait: str
) -> float:
    """The alpha at which the teacher has a given divergence, which grows with it."""

    def reached(alpha: float) -> bool:
        total = token_divergence(base + alpha * contrast, base, mask).sum()
        return float(total / mask.sum()) >= divergence

    low, high = 0.0, 1.0
    while not reached(high):
        low, high = high, 2 * high
        if high > _SHARPEST:
            raise CalibrationError(
                f"trait {trait!r}: its instructions make too little difference to the model's "
                f"next tokens to be exaggerated to {divergence:g} nats; use clearer ones"
            )
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _loss(
    language_model: LanguageModel, lesson: _Lesson, layers: Sequence[int], vectors: Tensor
) -> Tensor:
    """Mean KL(q || p_e) over the response's tokens."""
    # What comes before the last prompt position is read already, so they act from it on.
    hooks = {layer: adder(vector) for layer, vector in zip(layers, vectors, strict=True)}
    with hooked(language_model, hooks):
        log_p = lesson.texts.logits().float().log_softmax(-1)
    each = lesson.log_q.exp() * (lesson.log_q - log_p.gather(-1, lesson.tokens))  # (B, R, k)
    return (each.sum(-1) * lesson.texts.mask).sum() / lesson.texts.mask.sum()


def adder(change: Tensor) -> Any:
    """A hook that adds to a layer's output and lets gradients through.

    Those of `steer.hooks` apply finished edits and let none through.

    Args:
        change: What is added, of a shape that broadcasts to (B, T, d).
    """

    def hook(module: Any, args: Any, output: Any) -> Any:
        h = output if isinstance(output, Tensor) else output[0]
        edited = h + change.to(h.device, h.dtype)
        return edited if isinstance(output, Tensor) else (edited, *output[1:])

    return hook
