"""What a person has written or liked, and which of it tells most about them.

CHAMELEON (arXiv 2503.01048) embeds a person's history, takes its first principal component, and
keeps what lies furthest along it: what the person's texts differ in most, rather than what they all
share with everybody's. The other rules are there to compare it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from steer.arrays import check_choice
from steer.errors import InputError
from steer.fields import check_text
from steer.sentence_encoder import embed

# Of a text that a model is shown: words, and characters where they are few.
_SHOWN_WORDS, _SHOWN_CHARACTERS = 60, 720

Selection = Literal["pca", "recent", "similar", "bm25", "random"]


@dataclass(frozen=True)
class HistoryItem:
    """One thing that a person wrote or liked.

    Attributes:
        text: What they wrote, or the response that they liked.
        prompt: What it answers; None if it stands alone.
        disliked: A response to the same prompt that they did not like; None if none is known.
    """

    text: str
    prompt: str | None = None
    disliked: str | None = None

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("text", "prompt", "disliked"):
            value = getattr(self, name)
            if value is None and name != "text":
                continue
            if not check_text(value, f"history item, {name!r}").strip():
                raise InputError(f"history item, {name!r}: expected text, got {value!r}")


def beginning(text: str) -> str:
    """As much of a text as a model is shown of it: not all scripts have spaces between words."""
    return " ".join(text.split()[:_SHOWN_WORDS])[:_SHOWN_CHARACTERS]


History: TypeAlias = Sequence["str | tuple[str, str] | HistoryItem"]
"""Texts, (prompt, answer) pairs, or `HistoryItem`s, in the order of time."""


def read_history(history: History) -> tuple[HistoryItem, ...]:
    """A history in one form.

    Args:
        history: Texts, (prompt, answer) pairs, or items, in the order of time.

    Raises:
        InputError: If it is empty, or one of them is something else.
    """
    if isinstance(history, str) or not isinstance(history, Sequence) or not history:
        raise InputError(f"history: expected a non-empty list, got {history!r:.80}")
    items = []
    for number, one in enumerate(history):
        if isinstance(one, HistoryItem):
            items.append(one)
        elif isinstance(one, str):
            items.append(HistoryItem(one))
        elif isinstance(one, tuple) and len(one) == 2:
            items.append(HistoryItem(one[1], prompt=one[0]))
        else:
            raise InputError(
                f"history, item {number}: expected a text, a (prompt, answer) pair or a "
                f"HistoryItem, got {one!r:.80}"
            )
    return tuple(items)


def select(
    items: Sequence[HistoryItem],
    number: int,
    rule: Selection = "pca",
    *,
    query: str | None = None,
    seed: int = 0,
) -> tuple[HistoryItem, ...]:
    """The items that are shown to the model, in the order of time.

    Args:
        items: A person's history, in the order of time.
        number: How many, or all if there are fewer.
        rule: "pca", the furthest along the first principal component of the embeddings; "recent",
            the last; "similar", the nearest to a query by their prompts, or their texts where
            there is none; "bm25", the same by the words that they share; "random".
        query: What "similar" and "bm25" are about.
        seed: Of "random".

    Raises:
        InputError: If the number or the rule is not usable, or a rule that needs a query has none.
    """
    check_choice("rule", rule, get_args(Selection))
    if number < 1:
        raise InputError(f"number: expected at least 1, got {number}")
    if rule in ("similar", "bm25") and query is None:
        raise InputError(f"rule {rule!r} needs a query")
    if number >= len(items):
        return tuple(items)
    if rule == "recent":
        return tuple(items[-number:])
    if rule == "random":
        chosen = np.random.default_rng(seed).choice(len(items), number, replace=False)
    elif rule in ("similar", "bm25"):
        assert query is not None
        nearness = _by_meaning if rule == "similar" else _by_words
        near = nearness(query, [item.prompt or item.text for item in items])
        chosen = np.argsort(-near, kind="stable")[:number]
    else:
        along = first_component(embed([item.text for item in items]))
        chosen = np.argsort(-along, kind="stable")[:number]
    return tuple(items[index] for index in sorted(chosen.tolist()))


def _by_meaning(query: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of sentence embeddings (n,)."""
    found = embed([query, *texts])
    return np.asarray(found[1:] @ found[0])


def _by_words(query: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """BM25 (Robertson et al., 1995), in the form of Lucene, without stop words (n,)."""
    # Here, since it loads numba where that is installed: a second of every start.
    import bm25s

    corpus = bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
    wanted = bm25s.tokenize(query, return_ids=False, show_progress=False)[0]
    known = {word for text in corpus for word in text}
    asked = [word for word in wanted if word in known]
    if not asked:
        return np.zeros(len(texts), np.float32)
    index = bm25s.BM25(method="lucene")
    index.index(corpus, show_progress=False)
    return np.asarray(index.get_scores(asked))


def first_component(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where points (n, d) lie along their first principal component, (n,).

    A component's sign is arbitrary; here the point that lies furthest out lies on its positive
    side.
    """
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    along = u[:, 0] * s[0]
    return np.asarray(along * (1 if along[np.abs(along).argmax()] >= 0 else -1))
