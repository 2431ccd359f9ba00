"""Contrast pairs: the model answers each prompt under a trait's positive and negative poles.

The pairs of a trait are one JSON Lines file: a header with everything needed to repeat it, then
one line an answer. Batches are seeded one by one and written as they are finished, so a run that
was killed goes on where it stopped and ends with the same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from steer.chat import render
from steer.errors import DataError
from steer.generation import Decoding, chat_key, generate_batch
from steer.journal import Journal, Row, read_journal
from steer.measures import is_broken, is_looping, words
from steer.models import LanguageModel
from steer.prompts import Prompt
from steer.traits import Trait
from steer.versions import versions
from steer.workers import Unit

FORMAT = 1
# Sampling, so that the answers under two poles differ in more than one likely continuation; a
# top-k rather than a nucleus, because sorting the vocabulary costs more than the model on a CPU.
SAMPLING = Decoding(
    max_new_tokens=64,
    do_sample=True,
    temperature=0.7,
    top_k=50,
    repetition_penalty=1.0,
    no_repeat_ngram_size=None,
)
BATCH_PROMPTS = 64


@dataclass(frozen=True)
class Answer:
    """What the model wrote to one prompt under one instruction.

    Attributes:
        prompt_id: Id of the prompt.
        pole: "positive" or "negative".
        request: The user message: the prompt with its instruction.
        text: The answer.
        tokens: Its token ids.
    """

    prompt_id: str
    pole: str
    request: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """The answers to one prompt under the two poles."""

    positive: Answer
    negative: Answer


@dataclass(frozen=True)
class PairSet:
    """The pairs of a trait that are kept, and how many were dropped, by reason."""

    trait: str
    pairs: tuple[Pair, ...]
    dropped: Mapping[str, int]

    @property
    def positive(self) -> list[str]:
        """The texts that show more of the trait, one a pair."""
        return [pair.positive.text for pair in self.pairs]

    @property
    def negative(self) -> list[str]:
        """The others, in the same order."""
        return [pair.negative.text for pair in self.pairs]


def instructed(prompt: str, instruction: str) -> str:
    """The user message that asks for a pole.

    The instruction stands in the user's own message, after the prompt: small models follow it
    there far more often than in a system prompt.
    """
    return f"{prompt}\n\n{instruction}"


def generate_pairs(
    language_model: LanguageModel,
    trait: Trait,
    prompts: Sequence[Prompt],
    path: Path,
    *,
    seed: int = 0,
    sampling: Decoding = SAMPLING,
    progress: bool = False,
) -> PairSet:
    """Generate a trait's contrast data into a file, or go on with one that was left unfinished.

    Args:
        language_model: The model; it makes its own data.
        trait: The trait. Prompt i uses instruction i modulo their number, in both poles.
        prompts: The prompts, of the extract split.
        path: JSON Lines file, created or continued.
        seed: Together with the batch's number it seeds every batch.
        sampling: How answers are sampled.
        progress: Show a progress bar when on a terminal.

    Returns:
        The pairs that are kept.

    Raises:
        DataError: If the file was made with other settings.
    """
    file = PairsFile(language_model, trait, prompts, path, seed=seed, sampling=sampling)
    for unit in tqdm(file.left, desc=trait.name, disable=None if progress else True):
        file.add(unit(language_model))
    return file.pairs


class PairsFile:
    """A trait's file of contrast data, as far as it has come.

    Attributes:
        left: What is left to do, a batch of prompts each; what they give is added in their order.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        trait: Trait,
        prompts: Sequence[Prompt],
        path: Path,
        *,
        seed: int = 0,
        sampling: Decoding = SAMPLING,
    ) -> None:
        """Open the file, or begin it; as `generate_pairs`.

        Raises:
            DataError: If the file was made with other settings.
        """
        self._trait = trait
        self._journal = Journal(path, _header(language_model, trait, prompts, seed, sampling))
        batches = [prompts[i : i + BATCH_PROMPTS] for i in range(0, len(prompts), BATCH_PROMPTS)]
        right = _right_rows(self._journal.rows, [prompt.id for prompt in prompts])
        done = whole = 0
        for batch in batches:
            if right < done + 2 * len(batch):
                break
            done += 2 * len(batch)
            whole += 1
        self._journal.keep(done)
        self._answers = [_answer(path, row) for row in self._journal.rows]
        self.left: tuple[Unit[list[Answer]], ...] = tuple(
            partial(
                _generate,
                trait=trait,
                batch=batches[number],
                offset=number * BATCH_PROMPTS,
                seed=seed + number,
                sampling=sampling,
            )
            for number in range(whole, len(batches))
        )

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep what the next of `left` gave."""
        self._journal.append([asdict(answer) for answer in answers])
        self._answers += answers

    @property
    def pairs(self) -> PairSet:
        """The pairs that are kept, once nothing is left."""
        return select_pairs(self._trait.name, self._answers)


def read_pairs(path: Path) -> PairSet:
    """Read a finished file of contrast data.

    Raises:
        DataError: If it is missing, damaged or unfinished.
    """
    header, rows = read_journal(path)
    prompts = header.get("prompts") or []
    whole = _right_rows(rows, prompts) == len(rows) == 2 * len(prompts)
    if header.get("format") != FORMAT or not prompts or not whole:
        raise DataError(f"{path}: not a finished file of contrast data; build it again")
    return select_pairs(header["trait"]["name"], [_answer(path, row) for row in rows])


def _right_rows(rows: Sequence[Row], prompts: Sequence[str]) -> int:
    """How many rows, from the first, answer the prompts of these ids under both poles in turn."""
    right = 0
    for row, asked in zip(rows, product(prompts, ("positive", "negative")), strict=False):
        if (row.get("prompt_id"), row.get("pole")) != asked:
            break
        right += 1
    return right


def _generate(
    language_model: LanguageModel,
    trait: Trait,
    batch: Sequence[Prompt],
    offset: int,
    seed: int,
    sampling: Decoding,
) -> list[Answer]:
    plan = []
    for i, prompt in enumerate(batch, start=offset):
        for pole, end in (("positive", trait.positive), ("negative", trait.negative)):
            instruction = end.instruction(i)
            plan.append((prompt.id, pole, instructed(prompt.text, instruction)))
    texts = [render(language_model.tokenizer, request) for _, _, request in plan]
    results = generate_batch(language_model, texts, sampling, seed=seed)
    return [
        Answer(prompt_id, pole, request, result.text, result.tokens)
        for (prompt_id, pole, request), result in zip(plan, results, strict=True)
    ]


def select_pairs(trait: str, answers: Sequence[Answer]) -> PairSet:
    """The pairs that are kept.

    Args:
        trait: What they are of.
        answers: The positive and the negative one to each prompt in turn.
    """
    pairs, dropped = [], Counter({"empty": 0, "broken": 0, "looping": 0, "same": 0})
    for positive, negative in zip(answers[0::2], answers[1::2], strict=True):
        reason = _reason_to_drop(positive.text, negative.text)
        if reason is None:
            pairs.append(Pair(positive, negative))
        else:
            dropped[reason] += 1
    return PairSet(trait, tuple(pairs), dict(dropped))


def _reason_to_drop(positive: str, negative: str) -> str | None:
    texts = (positive, negative)
    if any(len(words(text)) < 2 for text in texts):
        return "empty"
    if any(is_broken(text) for text in texts):
        return "broken"
    if any(is_looping(text) for text in texts):
        return "looping"
    similarity = SequenceMatcher(None, words(positive), words(negative), autojunk=False).ratio()
    return "same" if similarity > 0.8 else None


def _header(
    language_model: LanguageModel,
    trait: Trait,
    prompts: Sequence[Prompt],
    seed: int,
    sampling: Decoding,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "trait": trait.asked,
        "fingerprint": language_model.fingerprint.to_dict(),
        "chat": chat_key(language_model),
        "prompts": [prompt.id for prompt in prompts],
        "seed": seed,
        "sampling": asdict(sampling),
        "versions": versions(),
    }


def _answer(path: Path, line: Mapping[str, Any]) -> Answer:
    try:
        return Answer(
            line["prompt_id"], line["pole"], line["request"], line["text"], tuple(line["tokens"])
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: a line is not an answer ({error!r}); delete the file") from error
