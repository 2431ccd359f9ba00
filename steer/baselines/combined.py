"""Methods that combine what the next token would be after several prompts, or of several models.

    logit rectification   s = s_base + alpha (log p_expert - log p_anti)    (survey, 2504.07070)
    many objectives       p proportional to the product of p_i^w_i          (MOD, 2406.18853)

Without other models the expert is the same model under a trait's positive instruction, the
anti-expert under its negative one (context steering, arXiv 2405.01768), and an objective's policy
the same model under the positive one. Each further view is one more row of the model a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor

from steer.baselines.method import Request, Serving, shares_of, trait_of
from steer.baselines.prompting import said
from steer.chat import render
from steer.errors import InputError
from steer.generation import Generated, encode
from steer.kvcache import growing_cache
from steer.models import LanguageModel
from steer.traits import Trait


@dataclass(frozen=True, eq=False)
class View:
    """What else the next token of an answer could be like.

    Attributes:
        row: Which answer of the batch.
        text: The rendered prompt before the answer.
        coefficient: Of the log-probability.
        language_model: Whose.
    """

    row: int
    text: str
    coefficient: float
    language_model: LanguageModel


class _Group:
    """Views of one model, as rows of one batch with a cache of its own."""

    def __init__(self, views: Sequence[View]) -> None:
        self.language_model = views[0].language_model
        device = self.language_model.device
        inputs = encode(self.language_model, [view.text for view in views])
        self.fresh, self.mask = inputs["input_ids"], inputs["attention_mask"]  # (n, T)
        self.owner = torch.tensor([view.row for view in views], device=device)
        self.coefficient = torch.tensor([view.coefficient for view in views], device=device)
        self.cache = growing_cache(self.language_model.model)
        self.begun = False

    @torch.inference_mode()
    def log_probabilities(self, ids: Tensor) -> Tensor:
        """Of the next token (n, vocabulary), after the answers' token ids (B, T)."""
        if self.begun:
            self.fresh = ids[:, -1:].to(self.fresh.device)[self.owner]
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.begun = True
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -self.fresh.shape[1] :]
        logits = self.language_model.model(
            input_ids=self.fresh,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits[:, -1]
        found: Tensor = logits.float().log_softmax(-1)
        return found

    def keep(self, rows: Tensor, number: int) -> None:
        """Go on with some of the answers (B',), of so many."""
        rows = rows.to(self.owner.device)
        place = torch.full((number,), -1, device=self.owner.device)
        place[rows] = torch.arange(len(rows), device=self.owner.device)
        kept = torch.nonzero(place[self.owner] >= 0)[:, 0]
        self.owner, self.coefficient = place[self.owner[kept]], self.coefficient[kept]
        self.mask = self.mask[kept]
        # From the CPU rows can be chosen of keys and values on any device.
        self.cache.batch_select_indices(kept.cpu())


class CombinedLogits(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Adds weighted log-probabilities of further views to the scores of a batch.

    scores <- own scores + sum_j c_j (log p_j + log Z), log Z the scores' normaliser, so that a
    combination whose coefficients sum to one stands where the scores stood: a repetition penalty
    hangs on where zero is.
    """

    def __init__(self, own: Sequence[float], views: Sequence[View]) -> None:
        """For one batch.

        Args:
            own: The coefficient of each row's own scores (B,), above 0.
            views: Of the rows; a row may have none.

        Raises:
            InputError: If an own coefficient is not above 0, or a model has other tokens.
        """
        if not all(0 < one < float("inf") for one in own):
            raise InputError(f"own: expected finite numbers above 0, got {list(own)}")
        self._own = torch.tensor(list(own), dtype=torch.float32)
        by_model: dict[int, list[View]] = {}
        for view in views:
            by_model.setdefault(id(view.language_model), []).append(view)
        self._groups = [_Group(group) for group in by_model.values()]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) of the tokens after `input_ids` (B, T)."""
        own = self._own.to(scores.device)[:, None]  # (B, 1)
        normaliser = scores.logsumexp(-1, keepdim=True)  # (B, 1)
        combined = own * scores
        for group in self._groups:
            found = group.log_probabilities(input_ids)
            if found.shape[1] != scores.shape[1]:
                raise InputError(
                    f"{group.language_model.name}: expected a model with the same "
                    f"{scores.shape[1]} tokens, got {found.shape[1]}"
                )
            part = (found + normaliser[group.owner.to(scores.device)].to(found.device)) * (
                group.coefficient[:, None]
            )
            combined.index_add_(0, group.owner.to(scores.device), part.to(scores))
        return combined

    def keep_rows(self, rows: Tensor) -> None:
        """The next call has only these rows (B',) of the last one."""
        for group in self._groups:
            group.keep(rows, len(self._own))
        self._groups = [group for group in self._groups if len(group.owner)]
        self._own = self._own[rows.to(self._own.device)]


@dataclass(frozen=True, eq=False)
class Combination:
    """What the answers of a batch are written from.

    Attributes:
        texts: The rendered prompt of each answer's own scores (B,).
        own: Their coefficients (B,).
        views: What is added to them.
    """

    texts: Sequence[str]
    own: Sequence[float]
    views: Sequence[View]


class Combining(ABC):
    """A method that combines logits."""

    @abstractmethod
    def combination(
        self, language_model: LanguageModel, requests: Sequence[Request]
    ) -> Combination:
        """What the answers to requests are written from.

        Raises:
            InputError: If the method cannot serve a request.
        """

    def answer(self, serving: Serving, requests: Sequence[Request]) -> list[Generated]:
        """Answer a batch; see `Method.answer`."""
        if serving.decoding.num_beams > 1:
            raise InputError("logits are combined without beams; expected num_beams=1")
        made = self.combination(serving.language_model, requests)
        return serving.generate(made.texts, processors=[CombinedLogits(made.own, made.views)])


@dataclass(frozen=True)
class LogitRectification(Combining):
    """s = s_base + alpha * sum_i w_i (log p(t | expert_i) - log p(t | anti_i)).

    Attributes:
        alpha: How strongly; a request's strength multiplies it.
        expert: A model that writes as is wanted, under the plain prompt; None for the same model
            under each weighted trait's positive instruction.
        anti: One that does not; None for the same model under the negative instructions.
        instruction: Which of a trait's instructions, from 0.
        traits: With instructions, where they are not built in.
    """

    alpha: float = 1.0
    expert: LanguageModel | None = None
    anti: LanguageModel | None = None
    instruction: int = 0
    traits: tuple[Trait, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise InputError(f"alpha: expected a finite number of at least 0, got {self.alpha}")
        object.__setattr__(self, "traits", tuple(self.traits))

    def combination(
        self, language_model: LanguageModel, requests: Sequence[Request]
    ) -> Combination:
        """What the answers to requests are written from.

        Raises:
            InputError: If a request names a person, or a trait's instructions are not known.
        """
        texts = [render(language_model.tokenizer, request.prompt) for request in requests]
        views = []
        for row, (request, text) in enumerate(zip(requests, texts, strict=True)):
            amount = self.alpha * request.strength
            shares = shares_of(request, "LogitRectification")
            if not amount:
                continue
            for name, share in shares.items():
                for positive, model in ((True, self.expert), (False, self.anti)):
                    signed = amount * share * (1 if positive else -1)
                    if model is None:
                        under = self._under(language_model, request, name, positive)
                        views.append(View(row, under, signed, language_model))
                    else:
                        views.append(View(row, text, signed, model))
        return Combination(texts, [1.0] * len(texts), merged(views))

    def _under(
        self, language_model: LanguageModel, request: Request, name: str, positive: bool
    ) -> str:
        trait = trait_of(name, self.traits)
        pole = trait.positive if positive else trait.negative
        instruction = pole.instruction(self.instruction)
        return render(language_model.tokenizer, said(instruction, request.prompt, "user"))


@dataclass(frozen=True)
class MultiObjective(Combining):
    """p(t) proportional to p_base(t)^(1 - s) * prod_i p_i(t)^(s w_i), s the strength.

    Attributes:
        policies: By trait, a model that serves it; the same model under the trait's positive
            instruction serves the others.
        instruction: Which of a trait's instructions, from 0.
        traits: With instructions, where they are not built in.
    """

    policies: Mapping[str, LanguageModel] = field(default_factory=dict)
    instruction: int = 0
    traits: tuple[Trait, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", dict(self.policies))
        object.__setattr__(self, "traits", tuple(self.traits))

    def combination(
        self, language_model: LanguageModel, requests: Sequence[Request]
    ) -> Combination:
        """What the answers to requests are written from.

        Raises:
            InputError: If a request names a person, a trait's instructions are not known, the
                strength exceeds 1, or nothing is left to the model itself.
        """
        texts, own, views = [], [], []
        for row, request in enumerate(requests):
            shares = shares_of(request, "MultiObjective")
            if request.strength > 1:
                raise InputError(
                    "MultiObjective: the powers sum to one, so expected a strength of at most 1, "
                    f"got {request.strength:g}"
                )
            plain = render(language_model.tokenizer, request.prompt)
            parts = [
                View(row, self._text(language_model, request, name), request.strength * share, by)
                for name, share in shares.items()
                for by in [self.policies.get(name, language_model)]
            ]
            if shares:
                parts.append(View(row, plain, 1 - request.strength, language_model))
            else:
                parts.append(View(row, plain, 1.0, language_model))
            parts = [part for part in parts if part.coefficient > 0]
            # The row's own scores are of the heaviest view that is this model's.
            mine = [part for part in parts if part.language_model is language_model]
            if not mine:
                raise InputError(
                    "MultiObjective: no policy is left to the model itself; load one of the "
                    "policies as the model, or ask for a strength below 1"
                )
            heaviest = max(mine, key=lambda part: part.coefficient)
            texts.append(heaviest.text)
            own.append(heaviest.coefficient)
            views += [part for part in parts if part is not heaviest]
        return Combination(texts, own, merged(views))

    def _text(self, language_model: LanguageModel, request: Request, name: str) -> str:
        if name in self.policies:
            return render(language_model.tokenizer, request.prompt)
        pole = trait_of(name, self.traits).positive
        instruction = pole.instruction(self.instruction)
        return render(language_model.tokenizer, said(instruction, request.prompt, "user"))


def merged(views: Sequence[View]) -> list[View]:
    """Views with those of one row that read the same added up, and without those that cancel."""
    sums: dict[tuple[int, str, int], tuple[View, float]] = {}
    for view in views:
        key = (view.row, view.text, id(view.language_model))
        before = sums[key][1] if key in sums else 0.0
        sums[key] = (view, before + view.coefficient)
    return [
        View(view.row, view.text, coefficient, view.language_model)
        for view, coefficient in sums.values()
        if coefficient
    ]
