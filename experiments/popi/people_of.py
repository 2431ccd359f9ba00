"""Simulated people who choose between answers, for what is inferred of them.

A person has hidden weights over the traits of the bundle's portfolio. Its entries answer prompts;
of two answers the person prefers by Bradley and Terry, at a slope at which the median pair is
judged as the weights say so often. Test pairs are labelled by the weights alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from runs import add_bundle  # noqa: E402

from steer.baselines.rewarding import built_in_reward
from steer.chat import render
from steer.cover import random_weights
from steer.edits import ZERO
from steer.generation import Decoding, generate_batch
from steer.history import HistoryItem
from steer.hooks import attach
from steer.journal import Journal
from steer.posterior import Posterior
from steer.prompts import Split, load_prompts
from steer.rewards import score
from steer.steerer import Steerer

Float64 = NDArray[np.float64]

# Rewards of two answers must differ by so much for the person to have an opinion.
CLEAR = 0.05


@dataclass(frozen=True, eq=False)
class Pool:
    """What the unsteered model and each entry answer to prompts.

    Attributes:
        prompts: P of them.
        texts: (K + 1) answers to each (P).
        rewards: (P, K + 1, d).
    """

    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    rewards: Float64


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody whose preferences are to be inferred.

    Attributes:
        history: What they liked.
        test: Further preference pairs.
        hidden: What is known of somebody who is simulated.
    """

    history: tuple[HistoryItem, ...]
    test: tuple[HistoryItem, ...]
    hidden: Hidden | None = None


@dataclass(frozen=True, eq=False)
class Hidden:
    """What a simulated person chooses by.

    Attributes:
        weights: (d,) summing to one.
        differences: Rewards of what was chosen in the history minus those of the other (n, d).
        test_differences: The same of the further pairs, by the weights alone (m, d).
    """

    weights: Float64
    differences: Float64
    test_differences: Float64

    def inferred(self, seed: int) -> Float64:
        """Mean weights that the history's choices tell (d,)."""
        prior = Posterior.prior(np.ones(len(self.weights)), seed=seed)
        return np.asarray(prior.after(self.differences, np.ones(len(self.differences))).mean)


def add_people(parser: argparse.ArgumentParser) -> None:
    """For scripts that simulate people."""
    add_bundle(parser)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--items", type=int, default=8, help="choices of a history")
    parser.add_argument("--questions", type=int, default=12, help="further pairs of each person")
    parser.add_argument("--prompts", type=int, default=12, help="of histories, and as many others")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--consistent", type=float, default=0.9, help="on the median pair")


def pool_of(steerer: Steerer, prompts: Sequence[str], tokens: int, folder: Path) -> Pool:
    """Let the unsteered model and every entry answer; what is in the folder costs nothing."""
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    model, behind = steerer.language_model, steerer.bundle.behind_gate
    edits = [ZERO, *(behind(edit) for edit in portfolio.edits)]
    header = {
        "model": model.fingerprint.to_dict(),
        "dtype": model.precision,
        "edits": [edit.digest for edit in edits],
        "prompts": list(prompts),
        "tokens": tokens,
    }
    journal = Journal(folder / f"pool-{len(prompts)}-{tokens}.jsonl", header)
    texts = [row["texts"] for row in journal.rows]
    for prompt in prompts[len(texts) :]:
        asked = [render(model.tokenizer, prompt)] * len(edits)
        with attach(model).steer(edits, scope=steerer.bundle.scope):
            answers = generate_batch(model, asked, Decoding(max_new_tokens=tokens))
        texts.append([answer.text for answer in answers])
        journal.append([{"texts": texts[-1]}])
    rewards = [built_in_reward(name) for name in portfolio.traits]
    found = [reward for reward in rewards if reward is not None]
    assert len(found) == len(rewards), "every trait of the portfolio has one"
    values = [
        score(found, [prompt] * len(row), row)[0]
        for prompt, row in zip(prompts, texts, strict=True)
    ]
    return Pool(tuple(prompts), tuple(map(tuple, texts)), np.stack(values))


def people_of(
    history: Pool, test: Pool, number: int, items: int, questions: int, consistent: float, seed: int
) -> list[Person]:
    """People with weights uniform over the simplex, and what they chose."""
    rng = np.random.default_rng([seed, number])
    everybody = random_weights(history.rewards.shape[-1], number, seed)
    result = []
    for weights in everybody:
        shown, differences = _pairs(history, items, weights, rng)
        slope = float(logit(consistent)) / float(np.median(np.abs(differences @ weights)))
        likes = rng.random(len(shown)) < 1 / (1 + np.exp(-slope * (differences @ weights)))
        asked, clear = _pairs(test, questions, weights, rng)
        right = clear @ weights > 0
        result.append(
            Person(
                tuple(_item(pair, first) for pair, first in zip(shown, likes, strict=True)),
                tuple(_item(pair, first) for pair, first in zip(asked, right, strict=True)),
                Hidden(
                    weights,
                    np.where(likes[:, None], differences, -differences),
                    np.where(right[:, None], clear, -clear),
                ),
            )
        )
    return result


def simulated(steerer: Steerer, split: Split, arguments: argparse.Namespace) -> list[Person]:
    """People who choose on the prompts of a split; `arguments` are those of `add_people`."""
    # Those at the end: the first develop prompts are what doses are measured on.
    texts = [prompt.text for prompt in load_prompts(split)][-2 * arguments.prompts :]
    folder = arguments.work_dir
    history, test = (
        pool_of(steerer, texts[part::2], arguments.tokens, folder / f"{split}-{part}")
        for part in (0, 1)
    )
    return people_of(
        history,
        test,
        arguments.people,
        arguments.items,
        arguments.questions,
        arguments.consistent,
        # Other people for development.
        arguments.seed + (split == "develop"),
    )


def _pairs(
    pool: Pool, number: int, weights: Float64, rng: np.random.Generator
) -> tuple[list[tuple[str, str, str]], Float64]:
    """(prompt, one answer, another), and by how much their rewards differ (n, d).

    Prompts take turns, and answers that are worth the same to the person are passed over.
    """
    pairs, differences = [], []
    order = rng.permutation(len(pool.prompts)).tolist()
    place = 0
    while len(pairs) < number:
        p = order[place % len(order)]
        place += 1
        i, j = rng.choice(len(pool.texts[p]), 2, replace=False).tolist()
        difference = pool.rewards[p, i] - pool.rewards[p, j]
        if abs(difference @ weights) < CLEAR or not (pool.texts[p][i] and pool.texts[p][j]):
            if place > 1000 * number:
                raise ValueError("the answers hardly differ for somebody")
            continue
        pairs.append((pool.prompts[p], pool.texts[p][i], pool.texts[p][j]))
        differences.append(difference)
    return pairs, np.array(differences)


def _item(pair: tuple[str, str, str], first: bool) -> HistoryItem:
    prompt, one, other = pair
    return HistoryItem(one if first else other, prompt=prompt, disliked=other if first else one)


def people_in(
    histories: Mapping[str, Sequence[HistoryItem]],
    items: int,
    questions: int,
    number: int,
    seed: int,
) -> list[Person]:
    """People of open data who have so many items and preference pairs beside them, at random."""
    rng = np.random.default_rng(seed)
    result = []
    for name in rng.permutation(sorted(histories)).tolist():
        mine = histories[name]
        pairs = [item for item in mine if item.disliked is not None]
        test = pairs[-questions:]
        rest = [item for item in mine if not any(item is one for one in test)]
        if len(test) == questions and len(rest) >= items and len(result) < number:
            result.append(Person(tuple(rest[-items:]), tuple(test)))
    return result
