"""What candidate edits do: rewards, divergence, fluency and cost, each measured once and kept.

Candidates are answered as rows of mixed batches: one forward pass serves many edits. Every
evaluation is one line of a JSON Lines file, so a search that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from steer.certificate import Measured
from steer.chat import render
from steer.edits import Edit, compose
from steer.errors import DataError, InputError
from steer.gate import Gate, behind
from steer.generation import Decoding, chat_key, generate_batch, prompt_tokens
from steer.hooks import Scope, attach
from steer.journal import Journal, read_journal
from steer.likelihood import divergence
from steer.models import LanguageModel
from steer.objective import Objective
from steer.portfolio import Candidate
from steer.rewards import Reward, score
from steer.versions import versions
from steer.workers import Alone, Workers

Float64 = NDArray[np.float64]

FORMAT = 1
# Rows of a batch: larger ones are no faster on a CPU, and a GPU is busy with these.
BATCH_ROWS = 96


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one candidate does on P prompts.

    Attributes:
        candidate: The candidate.
        rewards: (P, d), 0 on every trait where the answer loops or is broken.
        kl: (P,) KL(edited || unedited) on its own answer, nats per token.
        fluent: (P,) whether the answer neither loops nor is broken.
        tokens: (P,) tokens generated.
        texts: The answers.
    """

    candidate: Candidate
    rewards: Float64
    kl: Float64
    fluent: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    texts: tuple[str, ...]


class Evaluator:
    """Measures candidates on fixed prompts with fixed rewards; each only once."""

    def __init__(
        self,
        language_model: LanguageModel,
        families: Mapping[str, Sequence[Edit]],
        prompts: Sequence[str],
        rewards: Sequence[Reward],
        *,
        path: Path,
        decoding: Decoding = Decoding(),  # noqa: B008  (frozen)
        scope: Scope = "response",
        gate: Gate | None = None,
        workers: Workers | None = None,
        progress: bool = False,
    ) -> None:
        """Open the file of evaluations, or begin it.

        Args:
            language_model: The model.
            families: By name, the edits (k of them) that are mixed.
            prompts: P prompts that every candidate answers.
            rewards: d rewards.
            path: JSON Lines file, created or continued.
            decoding: How answers are generated.
            scope: Where edits act.
            gate: Behind which, if behind one; the edits are given without it.
            workers: Who answers; None for this process.
            progress: Show a progress bar when on a terminal.

        Raises:
            InputError: If there is nothing to mix, to ask or to reward, or families differ in
                their number of edits.
            DataError: If the file is damaged or was made with other settings.
        """
        sizes = {len(edits) for edits in families.values()}
        if len(sizes) != 1 or not prompts or not rewards:
            raise InputError(
                "expected prompts, rewards, and families with one number of edits, got "
                f"{len(prompts)} prompts, {len(rewards)} rewards, and families of {sorted(sizes)}"
            )
        self.families = {name: tuple(edits) for name, edits in families.items()}
        self.dimensions = sizes.pop()
        self.prompts = tuple(prompts)
        self.rewards = tuple(rewards)
        self._model = language_model
        self._decoding = decoding
        self._scope = scope
        self._gate = gate
        self._workers = Alone(language_model) if workers is None else workers
        self._progress = progress
        self._journal = Journal(path, self._header())
        header = self._journal.header
        parsed = [_parse(row, header, path) for row in self._journal.rows]
        self._known = {evaluation.candidate: evaluation for evaluation in parsed}

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """Every evaluation in the file, in the order in which they were made."""
        return tuple(self._known.values())

    def edit(self, candidate: Candidate) -> Edit:
        """The edit of a candidate.

        Raises:
            InputError: If its family is not known, or its coefficients are too many, too few,
                negative or not finite.
        """
        if candidate.family not in self.families:
            raise InputError(
                f"unknown family {candidate.family!r}; known: {', '.join(self.families)}"
            )
        c = np.asarray(candidate.coefficients)
        if c.shape != (self.dimensions,) or not (np.isfinite(c).all() and (c >= 0).all()):
            raise InputError(
                f"expected {self.dimensions} finite coefficients >= 0, got {candidate.coefficients}"
            )
        return compose(self.families[candidate.family], candidate.coefficients)

    def evaluate(self, candidates: Iterable[Candidate]) -> list[Evaluation]:
        """Measure candidates; those that are in the file cost nothing.

        Returns:
            An evaluation per candidate, in their order.
        """
        wanted = list(candidates)
        fresh = [c for c in dict.fromkeys(wanted) if c not in self._known]
        at_once = max(1, BATCH_ROWS // len(self.prompts))
        parts = [fresh[start : start + at_once] for start in range(0, len(fresh), at_once)]
        units = [
            partial(
                _answered,
                edits=[behind(self._gate, self.edit(candidate)) for candidate in part],
                prompts=self.prompts,
                decoding=self._decoding,
                scope=self._scope,
            )
            for part in parts
        ]
        with tqdm(
            total=len(fresh), desc="edits", disable=None if self._progress and fresh else True
        ) as bar:
            for part, answered in zip(parts, self._workers.each(units), strict=True):
                self._append(self._rewarded(part, answered))
                bar.update(len(part))
        return [self._known[candidate] for candidate in wanted]

    def _rewarded(self, candidates: Sequence[Candidate], answered: _Answered) -> list[Evaluation]:
        number = len(self.prompts)
        written, tokens, kl = answered.texts, answered.tokens, answered.kl
        rewards, fluent = score(self.rewards, self.prompts * len(candidates), written)
        result = []
        for i, candidate in enumerate(candidates):
            rows = slice(i * number, (i + 1) * number)
            result.append(
                Evaluation(
                    candidate,
                    rewards[rows],
                    kl[rows],
                    fluent[rows],
                    tokens[rows],
                    written[rows],
                )
            )
        return result

    def _header(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self._model.fingerprint.to_dict(),
            "chat": chat_key(self._model),
            "edits": {name: [e.digest for e in edits] for name, edits in self.families.items()},
            "prompts": list(self.prompts),
            "rewards": [reward.key for reward in self.rewards],
            "decoding": asdict(self._decoding),
            "scope": self._scope,
            "gate": None if self._gate is None else self._gate.digest,
            "versions": versions(),
        }

    def _append(self, evaluations: Sequence[Evaluation]) -> None:
        self._journal.append([_row(one) for one in evaluations])
        self._known |= {one.candidate: one for one in evaluations}


@dataclass(frozen=True, eq=False)
class _Answered:
    """What n edits write to P prompts, in their order.

    Attributes:
        texts: n times P answers.
        tokens: Of each.
        kl: Of each.
    """

    texts: tuple[str, ...]
    tokens: NDArray[np.int64]
    kl: Float64


def _answered(
    language_model: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[str],
    decoding: Decoding,
    scope: Scope,
) -> _Answered:
    """Answer all prompts under each edit, in one batch."""
    rows = [edit for edit in edits for _ in prompts]
    texts = [render(language_model.tokenizer, prompt) for prompt in prompts] * len(edits)
    with attach(language_model).steer(rows, scope=scope):
        answers = generate_batch(language_model, texts, decoding)
    asked = {text: prompt_tokens(language_model, text) for text in dict.fromkeys(texts)}
    sequences = [(asked[text], answer.tokens) for text, answer in zip(texts, answers, strict=True)]
    return _Answered(
        tuple(answer.text for answer in answers),
        np.array([len(answer.tokens) for answer in answers]),
        divergence(language_model, rows, sequences, scope=scope),
    )


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """What an `Evaluator` kept in a file, in the order in which it was measured.

    Raises:
        DataError: If the file cannot be read, or is not one of evaluations.
    """
    header, rows = read_journal(path)
    return tuple(_parse(row, header, path) for row in rows)


def _parse(row: Any, header: Mapping[str, Any], path: Path) -> Evaluation:
    try:
        shape = (len(header["prompts"]), len(header["rewards"]))
        one = Evaluation(
            Candidate(row["family"], tuple(map(float, row["coefficients"]))),
            np.asarray(row["rewards"], np.float64),
            np.asarray(row["kl"], np.float64),
            np.asarray(row["fluent"], np.bool_),
            np.asarray(row["tokens"], np.int64),
            tuple(map(str, row["texts"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a line is not an evaluation ({error!r}); delete the file"
        ) from error
    lengths = {len(one.kl), len(one.fluent), len(one.tokens), len(one.texts)}
    if one.rewards.shape != shape or lengths != {shape[0]}:
        raise DataError(f"{path}: a line is not an evaluation of {shape[0]} prompts")
    return one


def mean_rewards(evaluations: Sequence[Evaluation]) -> Float64:
    """Mean rewards over the prompts (n, d)."""
    return np.stack([one.rewards.mean(0) for one in evaluations])


def measured(evaluations: Sequence[Evaluation], objective: Objective) -> Measured:
    """What portfolios and certificates are made of, from means over the prompts.

    Args:
        evaluations: The first of the unsteered model.
        objective: Turns mean rewards into utilities and divergences into the regulariser.

    Raises:
        InputError: If the first is not of the unsteered model.
    """
    if not evaluations or not evaluations[0].candidate.is_unsteered():
        raise InputError("expected the unsteered model's evaluation first")
    return objective.measured(mean_rewards(evaluations), [one.kl.mean() for one in evaluations])


def _row(one: Evaluation) -> dict[str, Any]:
    return {
        "family": one.candidate.family,
        "coefficients": list(one.candidate.coefficients),
        "rewards": one.rewards.tolist(),
        "kl": one.kl.tolist(),
        "fluent": one.fluent.tolist(),
        "tokens": one.tokens.tolist(),
        "texts": list(one.texts),
    }
