"""Decoding options, and one batched generation loop for everything that makes text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from os.path import commonprefix
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from steer.chat import Message, render
from steer.errors import InputError
from steer.fields import check_bool, check_fields, check_number, check_whole
from steer.hooks import attach
from steer.kvcache import growing_cache
from steer.models import LanguageModel, check_positions
from steer.repetition import NoRepeatedNGrams, RepetitionPenalty
from steer.resources import content_key

# Short enough that rows leave soon after their end; a call costs some milliseconds.
_SEGMENT = 32


_CHECKS: Mapping[str, Callable[[object, str], object]] = {
    "max_new_tokens": check_whole,
    "min_new_tokens": check_whole,
    "do_sample": check_bool,
    "temperature": check_number,
    "top_p": check_number,
    "top_k": check_whole,
    "num_beams": check_whole,
    "repetition_penalty": check_number,
    "no_repeat_ngram_size": check_whole,
}
_MAY_BE_NONE = ("min_new_tokens", "temperature", "top_p", "top_k", "no_repeat_ngram_size")


class DecodingOptions(TypedDict, total=False):
    """The fields of `Decoding`, as keyword arguments of `generate` and `stream`."""

    max_new_tokens: int
    min_new_tokens: int | None
    do_sample: bool
    temperature: float | None
    top_p: float | None
    top_k: int | None
    num_beams: int
    repetition_penalty: float
    no_repeat_ngram_size: int | None


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen; the fields have the names and meanings of `transformers`.

    The defaults are greedy decoding with a mild repetition penalty, and without repeating six
    tokens in a row: small models fall into loops under plain greedy decoding (README, "Results").

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        min_new_tokens: Shortest answer, in tokens.
        do_sample: Sample, rather than take the likeliest token.
        temperature: Divides the logits before sampling.
        top_p: Sample from the likeliest tokens that hold this much probability.
        top_k: Sample from this many likeliest tokens; 0 is all.
        num_beams: Beams of beam search.
        repetition_penalty: Divides the logits of tokens that stand in the answer; 1 is none.
        no_repeat_ngram_size: Length of token sequences that must not come twice, the prompt
            included; 0 is none.
    """

    max_new_tokens: int = 384
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    repetition_penalty: float = 1.1
    no_repeat_ngram_size: int | None = 6

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                object.__setattr__(self, name, check(value, name))
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected at least 1, got {self.max_new_tokens}")
        if self.min_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens: expected at most max_new_tokens, {self.max_new_tokens}, got "
                f"{self.min_new_tokens}"
            )
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = [name for name, value in sampling.items() if value is not None]
        if given and not self.do_sample:
            raise InputError(f"{given[0]} has no effect on greedy decoding; pass do_sample=True")
        if self.num_beams < 1:
            raise InputError(f"num_beams: expected at least 1, got {self.num_beams}")
        if self.temperature is not None and not self.temperature > 0:
            raise InputError(f"temperature: expected a number above 0, got {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected a number above 0, at most 1, got {self.top_p}")
        if not self.repetition_penalty > 0:
            raise InputError(
                f"repetition_penalty: expected a number above 0, got {self.repetition_penalty}"
            )

    @classmethod
    def from_options(cls, options: DecodingOptions) -> Decoding:
        """Decoding from keyword arguments.

        Raises:
            InputError: If there is no such option; the message names those there are.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in options if name not in known]:
            raise InputError(f"unknown option {unknown[0]!r}; options: {', '.join(known)}")
        return cls(**options)

    @classmethod
    def from_json(cls, value: object, where: str) -> Decoding:
        """The decoding that `asdict` made a JSON object of.

        Args:
            value: The object.
            where: It stands, for the error.

        Raises:
            InputError: If it has other fields, or a number is out of range.
        """
        return cls(**check_fields(value, cls, where))

    def options(self, prompt: int, processors: Sequence[RowProcessor] = ()) -> dict[str, Any]:
        """The fields that are set, as arguments of `model.generate`.

        Args:
            prompt: Number of tokens before the answer, padding included.
            processors: Of the scores, after what must not come twice is ruled out and before the
                penalty.
        """
        options = {name: value for name, value in asdict(self).items() if value is not None}
        steps: list[Any] = list(processors)
        # The model's own defaults may be other ones, so these are given as none.
        options["repetition_penalty"] = 1.0
        if self.repetition_penalty != 1.0:
            steps.append(RepetitionPenalty(self.repetition_penalty, prompt))
        if self.no_repeat_ngram_size:
            options["no_repeat_ngram_size"] = 0
            steps.insert(0, NoRepeatedNGrams(self.no_repeat_ngram_size))
        if steps:
            options["logits_processor"] = LogitsProcessorList(steps)
        return options


class RowProcessor(Protocol):
    """A logits processor that knows the rows of a batch, and follows those that go on."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) of the tokens after `input_ids` (B, T)."""
        ...

    def keep_rows(self, rows: Tensor) -> None:
        """The next call has only these rows (B',) of the last one."""
        ...


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Attributes:
        text: The answer, without special tokens, and without a character cut at the limit.
        tokens: Its token ids, the end-of-sequence token included if it came.
        ended: Whether the model ended it by itself, rather than being cut at the token limit.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool


def encode(language_model: LanguageModel, texts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and attention mask (B, T), padded on the left.

    Chat templates already contain the special tokens, so none are added to rendered chats.
    """
    encoded = _tokenised(language_model, texts).to(language_model.device)
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def prompt_tokens(language_model: LanguageModel, text: str) -> list[int]:
    """Token ids of one rendered prompt, as `encode` gives them."""
    ids: list[int] = _tokenised(language_model, [text])["input_ids"][0].tolist()
    return ids


def chat_key(language_model: LanguageModel) -> str:
    """Names how a chat becomes tokens, on which every answer hangs beside the model's weights."""
    tokenizer = language_model.tokenizer
    # Not a rendered chat, in which some templates write the date: work goes on after midnight.
    read = prompt_tokens(language_model, "Well, it's 10:45 - \u00e4 l\u00e0 carte?")
    return content_key([tokenizer.chat_template, tokenizer.special_tokens_map, read])


def who_answers(language_model: LanguageModel) -> list[Any]:
    """What every answer hangs on beside what is asked; part of the keys by which they are kept."""
    return [language_model.fingerprint.to_dict(), chat_key(language_model)]


def _tokenised(language_model: LanguageModel, texts: Sequence[str]) -> Any:
    tokenizer = language_model.tokenizer
    special = tokenizer.chat_template is None
    return tokenizer(list(texts), return_tensors="pt", padding=True, add_special_tokens=special)


def end_tokens(language_model: LanguageModel) -> frozenset[int]:
    """Token ids that end an answer."""
    ids = language_model.model.generation_config.eos_token_id
    if ids is None:
        ids = language_model.tokenizer.eos_token_id
    return frozenset() if ids is None else frozenset([ids] if isinstance(ids, int) else ids)


def turn_end(language_model: LanguageModel) -> int | None:
    """Token id with which an answer ends in a chat; None if nothing is known to end one.

    Of those that end answers the one that the chat template writes after one: a tokenizer's
    end-of-text is often another, which the model does not write there.
    """
    ends, tokenizer = end_tokens(language_model), language_model.tokenizer
    asked: list[Message] = [{"role": "user", "content": "?"}]
    with suppress(InputError):  # no template, or one that refuses this chat
        answered = [*asked, {"role": "assistant", "content": "!"}, *asked]
        before, text = render(tokenizer, asked), render(tokenizer, answered)
        # A template may write an answer of the past otherwise than it asks for one.
        after = text[len(commonprefix([before, text])) :]
        for token in tokenizer(after, add_special_tokens=False).input_ids:
            if token in ends:
                return int(token)
    end = tokenizer.eos_token_id
    return min(ends, default=None) if end is None else int(end)


def generate_batch(
    language_model: LanguageModel,
    texts: Sequence[str],
    decoding: Decoding,
    *,
    seed: int | None = None,
    processors: Sequence[RowProcessor] = (),
    generation_options: dict[str, Any] | None = None,
) -> list[Generated]:
    """Generate for a batch of rendered prompts, under whatever edits are attached.

    Answers differ in length, and a row that has ended would be computed until the longest one
    ends. So a greedy batch is generated a segment at a time and rows that have ended leave it
    between segments: the same tokens as from one call, in less time.

    Args:
        language_model: The model.
        texts: B rendered prompts.
        decoding: How tokens are chosen.
        seed: Seeds torch's generators for this call and leaves them as they were after it.
        processors: Of the scores; each is used for this call only.
        generation_options: Further arguments of `model.generate`, such as a streamer; the batch
            is then generated in one call.

    Returns:
        B answers.

    Raises:
        InputError: If the model has no positions for so many tokens.
    """
    inputs = encode(language_model, texts)
    prompt = inputs["input_ids"].shape[1]
    check_positions(language_model, prompt, decoding.max_new_tokens)
    # Beams share a row's cache; a streamer wants one call; and what a row samples must not hang on
    # when the others end.
    one_call = (
        len(texts) == 1 or decoding.num_beams > 1 or decoding.do_sample or bool(generation_options)
    )
    segment = decoding.max_new_tokens if one_call else _SEGMENT
    hooks = attach(language_model)
    with (
        torch.inference_mode(),
        _seeded(language_model, seed),
        hooks.dwindling(len(texts)) as keep_rows,
    ):
        rows = _segments(
            language_model,
            inputs,
            decoding,
            segment,
            processors,
            generation_options or {},
            keep_rows,
        )
    ends = end_tokens(language_model)
    return [finish(language_model, row[prompt:], ends) for row in rows]


@contextmanager
def _seeded(language_model: LanguageModel, seed: int | None) -> Iterator[None]:
    """Seed the generators of the model's devices alone, and leave them as they were."""
    if seed is None:
        yield
        return
    devices = {parameter.device for parameter in language_model.model.parameters()}
    cuda = sorted(device.index for device in devices if device.type == "cuda")
    mps = torch.mps.get_rng_state() if any(device.type == "mps" for device in devices) else None
    with torch.random.fork_rng(cuda):
        # Not `torch.manual_seed`, which seeds devices that others use too.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        if mps is not None:
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def _segments(
    language_model: LanguageModel,
    inputs: dict[str, Tensor],
    decoding: Decoding,
    segment: int,
    processors: Sequence[RowProcessor],
    options: dict[str, Any],
    keep_rows: Callable[[Tensor], None],
) -> list[list[int]]:
    """Token ids of each row, prompt included; rows that have ended leave between segments."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (B, T)
    ends = torch.tensor(sorted(end_tokens(language_model)), device=ids.device)
    place = list(range(len(ids)))  # which answer each row of the batch is
    answers: list[list[int]] = [[] for _ in place]
    # A single call may be of a kind that wants a cache of its own, or none.
    cache: Any = None
    caching: dict[str, Any] = {}
    if segment < decoding.max_new_tokens:
        cache = growing_cache(language_model.model)
        # Whatever the model's own settings say: a cache that is given and not used is misread.
        caching = {"use_cache": True, "cache_implementation": None}
    prompt, done = ids.shape[1], 0
    while place:
        step = min(segment, decoding.max_new_tokens - done)
        output = language_model.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            **caching,
            pad_token_id=language_model.tokenizer.pad_token_id,
            # A model's own settings may name none, where its tokenizer does.
            eos_token_id=ends.tolist() or None,
            return_dict_in_generate=True,
            **decoding.options(prompt, processors)
            | {
                "max_new_tokens": step,
                "min_new_tokens": min(step, max((decoding.min_new_tokens or 0) - done, 0)),
            },
            **options,
        )
        ids, cache = output.sequences, output.past_key_values
        mask = torch.cat([mask, mask.new_ones((len(ids), ids.shape[1] - mask.shape[1]))], dim=1)
        done += step
        # On the CPU: from there rows can be chosen of tensors on any device, and a model's layers,
        # and so its keys and values, may lie on several.
        going = ~torch.isin(ids[:, -step:], ends).any(dim=1).cpu()
        if done >= decoding.max_new_tokens:
            going[:] = False
        for row in torch.nonzero(~going)[:, 0].tolist():
            answers[place[row]] = ids[row].tolist()
        kept = torch.nonzero(going)[:, 0]
        if len(kept) < len(place):
            place = [place[row] for row in kept.tolist()]
            if not place:
                break
            ids, mask = ids[kept], mask[kept]
            cache.batch_select_indices(kept)
            keep_rows(kept)
            for processor in processors:
                processor.keep_rows(kept)
    return answers


def finish(language_model: LanguageModel, row: list[int], ends: frozenset[int]) -> Generated:
    """An answer from the token ids of its row, cut after the first of the tokens that end it."""
    length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
    tokens = row if length is None else row[:length]
    text = language_model.tokenizer.decode(tokens, skip_special_tokens=True)
    if length is None:
        text = text.rstrip("\ufffd")  # the token limit can fall inside a character
    return Generated(text.strip(), tuple(tokens), length is not None)
