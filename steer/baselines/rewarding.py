"""Methods that look at rewards while they decode.

    best of n        n sampled answers, of which the one with the largest weighted reward is given
    reward-guided    at every token, of the k likeliest the one with the largest
                     log p + w * reward of the text so far (ARGS, arXiv 2402.01694)

They cost rewards, and best of n also n times the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from steer.baselines.method import Request, Serving, check_whole, shares_of
from steer.chat import render
from steer.errors import InputError
from steer.generation import Generated
from steer.probe_reward import packaged_probe
from steer.rewards import Reward, formality_reward, length_reward, readability_reward, score

_TEMPERATURE = 0.8


@cache
def built_in_reward(trait: str) -> Reward | None:
    """The reward of a built-in trait that needs neither a model nor contrast pairs, if it has one.

    They measure what default portfolios are made with (`steer.default_rewards`), on scales that
    hang on no model: of brevity words up to 400, of a probe the texts that it was fitted to.
    """
    made: dict[str, Callable[[], Reward]] = {
        "brevity": length_reward,
        "simplicity": readability_reward,
        "formality": formality_reward,
    }
    return made[trait]() if trait in made else packaged_probe(trait)


def rewards_of(shares: Mapping[str, float], given: Mapping[str, Reward]) -> list[Reward]:
    """A reward for each trait, in their order.

    Raises:
        InputError: If a trait has none.
    """
    found = []
    for name in shares:
        reward = given.get(name) or built_in_reward(name)
        if reward is None:
            raise InputError(
                f"trait {name!r} has no built-in reward; give one by `rewards={{{name!r}: ...}}`"
            )
        found.append(reward)
    return found


def asked(request: Request) -> str:
    """The text that an answer is held against: a chat's last message."""
    prompt = request.prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


@dataclass(frozen=True)
class BestOfN:
    """The best of n sampled answers, by weighted rewards; one that loops or is broken earns none.

    Attributes:
        n: How many are sampled.
        temperature: Of sampling, where the decoding does not sample already.
        rewards: By trait, where the built-in ones are not meant.
    """

    n: int = 8
    temperature: float = _TEMPERATURE
    rewards: Mapping[str, Reward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n: expected at least 1, got {self.n}")
        object.__setattr__(self, "rewards", dict(self.rewards))

    def answer(self, serving: Serving, requests: Sequence[Request]) -> list[Generated]:
        """Answer a batch; see `Method.answer`."""
        for request in requests:
            check_whole(request, "BestOfN")
        wanted = [shares_of(request, "BestOfN") for request in requests]
        rewards = [rewards_of(shares, self.rewards) for shares in wanted]
        tokenizer = serving.language_model.tokenizer
        texts = [render(tokenizer, request.prompt) for request in requests]
        chosen: list[Generated | None] = [None] * len(requests)
        plain = [row for row, shares in enumerate(wanted) if not shares]
        if plain:
            written = serving.generate([texts[row] for row in plain])
            for row, answer in zip(plain, written, strict=True):
                chosen[row] = answer
        rows = [row for row, shares in enumerate(wanted) if shares]
        if rows:
            sampling = serving.decoding
            if not sampling.do_sample:
                sampling = replace(sampling, do_sample=True, temperature=self.temperature)
            many = [texts[row] for row in rows for _ in range(self.n)]
            written = serving.generate(many, decoding=sampling)
            for place, row in enumerate(rows):
                answers = written[place * self.n : (place + 1) * self.n]
                prompts = [asked(requests[row])] * self.n
                found, _ = score(rewards[row], prompts, [one.text for one in answers])
                worth = found @ np.array(list(wanted[row].values()))  # (n,)
                chosen[row] = answers[int(worth.argmax())]
        return [answer for answer in chosen if answer is not None]


@dataclass(frozen=True)
class RewardGuided:
    """score(v) = log p(v) + weight * sum_i w_i r_i(text so far + v), over the k likeliest tokens.

    Attributes:
        weight: Of rewards beside a log-probability; a request's strength multiplies it.
        k: How many tokens are looked at.
        rewards: By trait, where the built-in ones are not meant.
    """

    weight: float = 4.0
    k: int = 10
    rewards: Mapping[str, Reward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k: expected at least 1, got {self.k}")
        if not 0 <= self.weight < float("inf"):
            raise InputError(f"weight: expected a finite number of at least 0, got {self.weight}")
        object.__setattr__(self, "rewards", dict(self.rewards))

    def answer(self, serving: Serving, requests: Sequence[Request]) -> list[Generated]:
        """Answer a batch; see `Method.answer`."""
        if serving.decoding.num_beams > 1:
            raise InputError("rewards guide single tokens; expected num_beams=1")
        guides = []
        for request in requests:
            shares = shares_of(request, "RewardGuided")
            amount = self.weight * request.strength
            weights = amount * np.array(list(shares.values()))
            guides.append(Guide(asked(request), weights, tuple(rewards_of(shares, self.rewards))))
        tokenizer = serving.language_model.tokenizer
        texts = [render(tokenizer, request.prompt) for request in requests]
        return serving.generate(texts, processors=[RewardLogits(tokenizer, guides, self.k)])


@dataclass(frozen=True, eq=False)
class Guide:
    """By what the tokens of one answer are chosen.

    Attributes:
        prompt: What is answered.
        weights: Of rewards (d,); d may be 0.
        rewards: d of them.
    """

    prompt: str
    weights: NDArray[np.float64]
    rewards: tuple[Reward, ...]


class RewardLogits(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Scores of the k likeliest tokens with the rewards of what they make of the answer.

    All others are left out. Rows without rewards are left as they are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, guides: Sequence[Guide], k: int) -> None:
        """For one batch of B answers.

        Args:
            tokenizer: The model's.
            guides: One a row.
            k: How many tokens are looked at.
        """
        self._tokenizer = tokenizer
        self._guides = list(guides)
        self._k = k
        self._prompt: int | None = None  # columns before the answers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, vocabulary) of the tokens after `input_ids` (B, T)."""
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        log_p, candidates = scores.log_softmax(-1).topk(min(self._k, scores.shape[1]), dim=-1)
        written = input_ids[:, self._prompt :].tolist()
        texts = [
            self._tokenizer.batch_decode(
                [[*written[row], token] for token in candidates[row].tolist()],
                skip_special_tokens=True,
            )
            for row in range(len(written))
        ]
        worth = self._worth(texts)  # (B, k)
        guided = scores.clone()
        for row, guide in enumerate(self._guides):
            if guide.weights.any():
                guided[row] = -torch.inf
                guided[row, candidates[row]] = log_p[row] + torch.from_numpy(worth[row]).to(scores)
        return guided

    def _worth(self, texts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Weighted rewards (B, k) of the candidates' texts; each reward is asked once for all."""
        worth = np.zeros((len(texts), len(texts[0])))
        rows_of: dict[int, list[tuple[int, int]]] = {}
        for row, guide in enumerate(self._guides):
            for place, reward in enumerate(guide.rewards):
                if guide.weights[place]:
                    rows_of.setdefault(id(reward), []).append((row, place))
        for asked in rows_of.values():
            row, place = asked[0]
            prompts = [self._guides[row].prompt for row, _ in asked for _ in texts[row]]
            values = self._guides[row].rewards[place](
                prompts, [text for row, _ in asked for text in texts[row]]
            )
            for (row, place), mine in zip(asked, values.reshape(len(asked), -1), strict=True):
                worth[row] += self._guides[row].weights[place] * mine
        return worth

    def keep_rows(self, rows: Tensor) -> None:
        """The next call has only these rows (B',) of the last one."""
        self._guides = [self._guides[row] for row in rows.tolist()]
