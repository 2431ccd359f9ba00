"""How a setting answers: by an edit, by what the prompt says, or by logits under other prompts.

Settings of one kind are answered as rows of mixed batches, whatever their methods and doses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from answers import Answers, Key, Store
from torch import Tensor
from tqdm import tqdm
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from steer.chat import Message, render
from steer.contrast import instructed
from steer.edits import Edit
from steer.errors import InputError
from steer.generation import (
    Decoding,
    Generated,
    encode,
    end_tokens,
    finish,
    generate_batch,
    prompt_tokens,
)
from steer.hooks import Scope, attach
from steer.kvcache import growing_cache
from steer.likelihood import mean_log_likelihood
from steer.models import LanguageModel
from steer.resources import content_key

ROWS = 96
# Rows that have ended leave after so many steps.
SEGMENT = 32


@dataclass(frozen=True, eq=False)
class Edited:
    """The model under an edit."""

    edit: Edit
    scope: Scope

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return content_key(["edited", self.scope, self.edit.digest])


@dataclass(frozen=True)
class Asked:
    """The model asked differently.

    Attributes:
        before: Messages before the prompt.
        instruction: What follows the prompt in the user's message; empty for nothing.
    """

    before: tuple[tuple[str, str], ...] = ()
    instruction: str = ""

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return content_key(["asked", asdict(self)])

    def chat(self, prompt: str) -> list[Message]:
        """The messages that ask it."""
        last = instructed(prompt, self.instruction) if self.instruction else prompt
        turns = [*self.before, ("user", last)]
        return [{"role": role, "content": content} for role, content in turns]


@dataclass(frozen=True)
class Rectified:
    """Logits s = base + alpha (log p(t | x+) - log p(t | x-)), x+ and x- with an instruction."""

    positive: str
    negative: str
    alpha: float

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return content_key(["rectified", asdict(self)])


PLAIN = Asked()
"""The unsteered model."""

How = Edited | Asked | Rectified


@dataclass(frozen=True, eq=False)
class Setting:
    """One way in which a method goes about a trait."""

    trait: str
    method: str
    name: str
    how: How

    @property
    def key(self) -> Key:
        """Under which its answers are kept."""
        return Key(self.trait, self.method, self.name, self.how.digest)


UNSTEERED = Setting("", "unsteered", "unsteered", PLAIN)


def answer_all(
    language_model: LanguageModel,
    settings: Iterable[Setting],
    prompts: Sequence[str],
    decoding: Decoding,
    store: Store,
) -> list[Answers]:
    """The answers of settings to all prompts; those that are in the store cost nothing."""
    wanted = list(settings)
    groups: dict[str, list[Setting]] = defaultdict(list)
    for setting in {one.key: one for one in wanted}.values():
        if setting.key not in store.known:
            how = setting.how
            kind = how.scope if isinstance(how, Edited) else type(how).__name__
            groups[kind].append(setting)
    total = sum(map(len, groups.values()))
    with tqdm(total=total, desc="settings", disable=None if total else True) as bar:
        for kind, group in groups.items():
            # Each row of rectified logits is three rows of the model.
            rows = ROWS // 3 if kind == "Rectified" else ROWS
            step = max(1, rows // len(prompts))
            for start in range(0, len(group), step):
                part = group[start : start + step]
                store.add(_answer(language_model, part, prompts, decoding))
                bar.update(len(part))
    return [store.known[setting.key] for setting in wanted]


def _answer(
    language_model: LanguageModel,
    settings: Sequence[Setting],
    prompts: Sequence[str],
    decoding: Decoding,
) -> dict[Key, Answers]:
    """Answers of settings of one kind, as rows of one batch."""
    number = len(prompts)
    hows = [setting.how for setting in settings for _ in prompts]
    asked = [*prompts] * len(settings)
    tokenizer = language_model.tokenizer
    plain = [prompt_tokens(language_model, render(tokenizer, prompt)) for prompt in prompts]
    edits = [how.edit for how in hows if isinstance(how, Edited)]
    passes, extra = 1, [0] * len(asked)
    if edits:
        scope = next(how.scope for how in hows if isinstance(how, Edited))
        texts = [render(tokenizer, prompt) for prompt in asked]
        with attach(language_model).steer(edits, scope=scope):
            written = generate_batch(language_model, texts, decoding)
    elif all(isinstance(how, Asked) for how in hows):
        texts = [
            render(tokenizer, how.chat(prompt))
            for how, prompt in zip(hows, asked, strict=True)
            if isinstance(how, Asked)
        ]
        lengths = [len(prompt_tokens(language_model, text)) for text in texts]
        extra = [n - len(plain[i % number]) for i, n in enumerate(lengths)]
        written = generate_batch(language_model, texts, decoding)
    else:
        rows = [how for how in hows if isinstance(how, Rectified)]
        written = generate_rectified(language_model, rows, asked, decoding)
        passes, extra = 3, _rectified_extra(language_model, rows, asked)
    sequences = [(plain[i % number], one.tokens) for i, one in enumerate(written)]
    likelihood = mean_log_likelihood(language_model, sequences, batch_tokens=2048)
    result = {}
    for i, setting in enumerate(settings):
        part = slice(i * number, (i + 1) * number)
        result[setting.key] = Answers(
            tuple(one.text for one in written[part]),
            tuple(len(one.tokens) for one in written[part]),
            tuple(likelihood[part].tolist()),
            tuple(extra[part]),
            passes,
        )
    return result


def _poles(
    language_model: LanguageModel, rows: Sequence[Rectified], prompts: Sequence[str]
) -> list[list[str]]:
    """The rendered prompts: plain ones, with the positive and with the negative instruction."""
    pairs = list(zip(rows, prompts, strict=True))
    requests = (
        prompts,
        [instructed(prompt, row.positive) for row, prompt in pairs],
        [instructed(prompt, row.negative) for row, prompt in pairs],
    )
    return [[render(language_model.tokenizer, text) for text in part] for part in requests]


def _rectified_extra(
    language_model: LanguageModel, rows: Sequence[Rectified], prompts: Sequence[str]
) -> list[int]:
    """Prompt tokens of the two further prompts."""
    poles = _poles(language_model, rows, prompts)
    lengths = [[len(prompt_tokens(language_model, text)) for text in part] for part in poles]
    return [positive + negative for _, positive, negative in zip(*lengths, strict=True)]


@torch.inference_mode()
def generate_rectified(
    language_model: LanguageModel,
    rows: Sequence[Rectified],
    prompts: Sequence[str],
    decoding: Decoding,
) -> list[Generated]:
    """Greedy answers under rectified logits (arXiv 2504.07070).

    The three prompts of an answer are three rows of one batch, that get the same next token. The
    base are the model's raw logits, so alpha = 0 gives what `generate_batch` gives: a repetition
    penalty hangs on where zero is.

    Args:
        language_model: The model, which must not be steered meanwhile.
        rows: One a prompt.
        prompts: B prompts.
        decoding: Must be greedy.

    Raises:
        InputError: If it is not.
    """
    if decoding.do_sample or decoding.num_beams > 1:
        raise InputError("rectified logits are decoded greedily, without beams")
    poles = _poles(language_model, rows, prompts)
    inputs = encode(language_model, [text for part in poles for text in part])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (3B, T)
    width = ids.shape[1]
    alpha = torch.tensor([row.alpha for row in rows], device=ids.device)[:, None]
    ends = end_tokens(language_model)
    stop = torch.tensor(sorted(ends), device=ids.device, dtype=torch.long)
    processors = _processors(decoding, width)
    cache = growing_cache(language_model.model)
    place, answers = list(range(len(rows))), [[] for _ in rows]
    fresh = ids
    for step in range(1, decoding.max_new_tokens + 1):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -fresh.shape[1] :]
        logits = language_model.model(
            input_ids=fresh,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = processors(ids[: len(place)], _rectify(logits.float(), alpha))
        if step <= (decoding.min_new_tokens or 0):
            scores[:, stop] = -torch.inf
        token = scores.argmax(-1, keepdim=True)
        fresh = token.repeat(3, 1)
        ids, mask = torch.cat([ids, fresh], 1), torch.cat([mask, mask.new_ones(len(fresh), 1)], 1)
        last = step == decoding.max_new_tokens
        if not last and step % SEGMENT:
            continue
        going = ~torch.isin(ids[: len(place), width:], stop).any(1) & (not last)
        for row in torch.nonzero(~going)[:, 0].tolist():
            answers[place[row]] = ids[row, width:].tolist()
        kept = torch.nonzero(going)[:, 0]
        if not len(kept):
            break
        if len(kept) < len(place):
            all_three = torch.cat([kept + part * len(place) for part in range(3)])
            cache.batch_select_indices(all_three)
            ids, mask, fresh, alpha = ids[all_three], mask[all_three], fresh[all_three], alpha[kept]
            place = [place[row] for row in kept.tolist()]
    return [finish(language_model, row, ends) for row in answers]


def _rectify(logits: Tensor, alpha: Tensor) -> Tensor:
    """Scores (B, vocabulary) from the logits (3B, vocabulary) of the three prompts."""
    base, positive, negative = logits.chunk(3)
    return base + alpha * (positive.log_softmax(-1) - negative.log_softmax(-1))


def _processors(decoding: Decoding, prompt: int) -> LogitsProcessorList:
    """What `generate_batch` makes of the decoding, in its order."""
    processors = LogitsProcessorList()
    if decoding.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
    if decoding.repetition_penalty != 1.0:
        penalty = decoding.repetition_penalty
        processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt))
    return processors
