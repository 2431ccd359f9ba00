"""A steered model as lm-evaluation-harness sees one: any of its tasks can be asked of any edit.

    steerer = steer.load()
    lm = SteeredLM.serving(steerer, {"brevity": 1.0})
    lm_eval.evaluate(lm, {"my task": task})

The edit acts as in serving: from the last token of a context on. A text that is judged as a whole
(rolling likelihood) has no context; there it acts on all positions but the first of each window.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from capability_tasks import Document, Task
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows
from scoring import score

from steer.edits import ZERO, Edit
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import Scope, attach
from steer.models import LanguageModel
from steer.steerer import Steerer, Weights

# What the harness generates where a task does not say.
_MAX_NEW_TOKENS = 256


class SteeredLM(TemplateLM):
    """A model under one edit."""

    def __init__(
        self,
        language_model: LanguageModel,
        edit: Edit | None = None,
        *,
        scope: Scope = "response",
        max_length: int | None = None,
        batch_tokens: int = 2048,
        batch_rows: int = 40,
        seed: int = 0,
    ) -> None:
        """Put a model and an edit together.

        Args:
            language_model: The model.
            edit: What is done to it; None for nothing.
            scope: Where the edit acts, as in the bundle that it comes from.
            max_length: Most tokens that are read at once; None for as many as the model can.
            batch_tokens: Most tokens of a batch whose likelihood is asked for.
            batch_rows: Most rows of a batch that is generated.
            seed: For tasks that sample.
        """
        super().__init__()
        self.language_model = language_model
        self.edit = ZERO if edit is None else edit
        self.scope: Scope = scope
        self.tokenizer = language_model.tokenizer
        limit = language_model.model.config.get_text_config().max_position_embeddings
        self.max_length = limit if max_length is None else min(limit, max_length)
        self._batch_tokens = batch_tokens
        self._batch_rows = batch_rows
        self._seed = seed

    @classmethod
    def serving(
        cls,
        steerer: Steerer,
        weights: Weights | None,
        *,
        strength: float = 1.0,
        compose: bool = False,
    ) -> SteeredLM:
        """The model as `steerer` would serve a request with it."""
        edit = steerer.resolve(weights, strength, compose=compose)
        return cls(steerer.language_model, edit, scope=steerer.bundle.scope)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's cache of requests."""
        return self.language_model.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as text."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids; without special tokens where nothing is said."""
        ids: list[int] = self.tokenizer(
            string, add_special_tokens=bool(add_special_tokens)
        ).input_ids
        return ids

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would write it."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return answers

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = True,
    ) -> list[tuple[float, bool]]:
        pairs = []
        for _, context, continuation in requests:
            # The end of what is too long is kept; the last token is only ever predicted.
            room = max(1, self.max_length + 1 - len(continuation))
            pairs.append((context[-room:], continuation))
        found = score(
            self.language_model,
            pairs,
            self.edit,
            scope=self.scope,
            batch_tokens=self._batch_tokens,
        )
        return [(float(one.log_probs.sum()), bool(one.greedy.all())) for one in found]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of each whole text, in windows as long as the model can read."""
        pairs, counts, owners = [], [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for read, predicted in get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length, context_len=1
            ):
                # Whatever a window repeats of the one before it is read, but not counted again.
                pairs.append((read[:1], [*read[1:], predicted[-1]]))
                counts.append(len(predicted))
                owners.append(owner)
        found = score(
            self.language_model,
            pairs,
            self.edit,
            scope=self.scope,
            skip=1,
            batch_tokens=self._batch_tokens,
        )
        totals = np.zeros(len(requests))
        for one, count, owner in zip(found, counts, owners, strict=True):
            totals[owner] += one.log_probs[-count:].sum()
        return [float(total) for total in totals]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answers, each cut before the first of its stop texts."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        answers = [""] * len(requests)
        for options, members in groups.items():
            decoding, stops = read_options(json.loads(options))
            texts = {i: requests[i].args[0] for i in members}
            lengths = {i: len(prompt_tokens(self.language_model, texts[i])) for i in members}
            members = sorted(members, key=lengths.__getitem__)
            for start in range(0, len(members), self._batch_rows):
                batch = members[start : start + self._batch_rows]
                with attach(self.language_model).steer(self.edit, scope=self.scope):
                    written = generate_batch(
                        self.language_model, [texts[i] for i in batch], decoding, seed=self._seed
                    )
                for i, answer in zip(batch, written, strict=True):
                    answers[i] = cut(answer.text, stops)
        return answers


def read_options(options: Mapping[str, Any]) -> tuple[Decoding, list[str]]:
    """The decoding and the stop texts that a task of the harness asks for.

    What it leaves open is plain greedy decoding.
    """
    rest = dict(options)
    until = rest.pop("until", None) or []
    longest = rest.pop("max_gen_toks", _MAX_NEW_TOKENS)
    if not rest.get("do_sample"):
        rest.pop("temperature", None)  # tasks write 0 for greedy decoding
    plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "max_new_tokens": longest}
    return Decoding.from_options({**plain, **rest}), [until] if isinstance(until, str) else until


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first stop text."""
    found = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(found, default=len(text))]


def ask(lm: TemplateLM, task: Task, documents: Sequence[Document]) -> dict[str, list[float]]:
    """Let the harness ask a model a task.

    Returns:
        By metric, what each document earns, in their order.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each setting left alone
    dataset = {"test": datasets.Dataset.from_list(list(documents))}
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in task.metrics]
    settings = {
        **task.settings,
        "task": task.name,
        "custom_dataset": lambda: dataset,
        "test_split": "test",
        "metric_list": metrics,
        "process_results": task.judge,
    }
    # It draws bars of its own, also where there is no terminal.
    with contextlib.redirect_stderr(io.StringIO()):
        found = evaluate(
            lm,
            {task.name: ConfigurableTask(config=settings)},
            bootstrap_iters=0,
            apply_chat_template=task.chat,
        )
    samples = sorted(found["samples"][task.name], key=lambda sample: sample["doc_id"])
    return {metric: [float(sample[metric]) for sample in samples] for metric in task.metrics}
