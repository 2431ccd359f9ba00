"""What a history may look like, and which of its items are chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.decomposition import PCA

from steer import history
from steer.errors import InputError
from steer.history import HistoryItem, beginning, first_component, read_history, select
from steer.sentence_encoder import embed

TEXTS = [
    "My tomatoes are ripe.",
    "The match went to penalties.",
    "I pruned the roses today.",
    "Our goalkeeper was injured.",
    "Compost does wonders for beans.",
    "A comet will pass in March.",
    "They won the league at last.",
    "Water the seedlings at dawn.",
]


def items(count: int) -> list[HistoryItem]:
    return [HistoryItem(f"text {i}") for i in range(count)]


def on_points(monkeypatch: pytest.MonkeyPatch, points: dict[str, Any]) -> None:
    """Put texts at points of our choice."""

    def found(texts: list[str]) -> np.ndarray:
        return np.array([points[text] for text in texts], np.float32)

    monkeypatch.setattr(history, "embed", found)


# --- Reading -------------------------------------------------------------------------------------


def test_every_form_is_read_in_order() -> None:
    item = HistoryItem("No.", prompt="Well?", disliked="Yes.")
    expected = (
        HistoryItem("Hi", prompt=None, disliked=None),
        HistoryItem("Fine.", prompt="How are you?", disliked=None),
        item,
        HistoryItem("Hi"),
    )
    given_ = ["Hi", ("How are you?", "Fine."), item, "Hi"]
    assert read_history(given_) == read_history(tuple(given_)) == expected
    assert read_history(read_history(given_)) == expected


def test_two_texts_in_a_tuple_are_two_texts() -> None:
    assert read_history(("one", "two")) == (HistoryItem("one"), HistoryItem("two"))


@pytest.mark.parametrize("value", [[], (), "a text", None, 3, {"a": "b"}, iter(["a"]), {"a"}])
def test_what_is_no_list_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="non-empty list"):
        read_history(value)


@pytest.mark.parametrize("one", [3, None, ["a", "b"], ("a",), ("a", "b", "c"), b"a", {"text": "a"}])
def test_what_is_no_item_is_named_by_its_number(one: Any) -> None:
    with pytest.raises(InputError, match="item 1: expected a text, a"):
        read_history(["Hi", one])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"text": ""}, "'text': expected text"),
        ({"text": " \n"}, "'text': expected text"),
        ({"text": None}, "'text': expected text"),
        ({"text": 3}, "'text': expected text"),
        ({"text": "a\ud800"}, "'text': expected valid Unicode"),
        ({"text": "a", "prompt": " "}, "'prompt': expected text"),
        ({"text": "a", "prompt": 3}, "'prompt': expected text"),
        ({"text": "a", "disliked": ""}, "'disliked': expected text"),
        ({"text": "a", "disliked": ["b"]}, "'disliked': expected text"),
    ],
)
def test_items_without_text_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        HistoryItem(**fields)


@pytest.mark.parametrize("one", ["", "  ", ("", "answer"), ("prompt", ""), ("prompt", None)])
def test_empty_texts_in_a_history_are_refused(one: Any) -> None:
    with pytest.raises(InputError, match="expected text"):
        read_history(["Hi", one])


# --- Selecting -----------------------------------------------------------------------------------


def test_the_recent_are_the_last() -> None:
    assert select(items(5), 2, "recent") == (HistoryItem("text 3"), HistoryItem("text 4"))


def test_random_ones_hang_on_the_seed_and_keep_their_order() -> None:
    everything = items(40)
    found = select(everything, 10, "random", seed=3)
    places = [everything.index(item) for item in found]
    assert len(set(places)) == 10 and places == sorted(places)
    assert select(everything, 10, "random", seed=3) == found
    assert select(everything, 10, "random", seed=4) != found
    often = {item for seed in range(60) for item in select(everything, 10, "random", seed=seed)}
    assert often == set(everything)


def test_the_same_text_twice_may_be_chosen_twice() -> None:
    twice = [HistoryItem("a"), HistoryItem("b"), HistoryItem("a")]
    assert len(select(twice, 2, "recent")) == 2


def test_similar_ones_are_nearest_by_their_prompts_else_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = {"q": [1, 0], "near": [0.9, 0.1], "mid": [0.5, 0.5], "far": [0, 1], "back": [-1, 0]}
    on_points(monkeypatch, points)
    asked = [
        HistoryItem("far", prompt="near"),
        HistoryItem("near", prompt="far"),
        HistoryItem("back"),
        HistoryItem("mid"),
        HistoryItem("near"),
    ]
    assert select(asked, 1, "similar", query="q") == (asked[0],)
    assert select(asked, 3, "similar", query="q") == (asked[0], asked[3], asked[4])
    assert select(asked, 4, "similar", query="q") == (asked[0], asked[1], asked[3], asked[4])


def test_similar_ones_are_on_the_subject() -> None:
    everything = [HistoryItem(text) for text in TEXTS]
    found = select(everything, 4, "similar", query="How do I grow vegetables in my garden?")
    assert [TEXTS.index(item.text) for item in found] == [0, 2, 4, 7]


def bm25_plainly(query: set[str], texts: list[list[str]]) -> list[float]:
    """Robertson's formula as Lucene has it, k1 = 1.5 and b = 0.75."""
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            df = sum(word in other for other in texts)
            tf = text.count(word)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(text) / mean))
        scores.append(score)
    return scores


def test_bm25_ones_share_words() -> None:
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "omega", "sigma"]
    for _ in range(20):
        texts = [rng.choice(words, rng.integers(1, 9)).tolist() for _ in range(8)]
        query = set(rng.choice(words, 2).tolist())
        scores = bm25_plainly(query, texts)
        best = sorted(sorted(range(8), key=lambda i: -round(scores[i], 5))[:3])
        asked = [
            HistoryItem(" ".join(text)) if i % 2 else HistoryItem("else", prompt=" ".join(text))
            for i, text in enumerate(texts)
        ]
        found = select(asked, 3, "bm25", query=" and ".join(sorted(query)) + "?")
        assert sorted(scores[asked.index(item)] for item in found) == pytest.approx(
            sorted(scores[i] for i in best), abs=1e-5
        )
    # Nothing is shared: the first in time.
    assert select(asked, 1, "bm25", query="Quite another thing.") == (asked[0],)


def by_oracle(points: np.ndarray, number: int) -> list[int]:
    """The furthest along scikit-learn's first component, with its longest score positive."""
    scores = PCA(1, svd_solver="full").fit_transform(points.astype(np.float64))[:, 0]
    if scores[np.argmax(np.abs(scores))] < 0:
        scores = -scores
    return sorted(sorted(range(len(points)), key=lambda i: scores[i], reverse=True)[:number])


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
def test_pca_takes_the_furthest_along_the_first_component(number: int) -> None:
    expected = [TEXTS[i] for i in by_oracle(embed(TEXTS), number)]
    found = select([HistoryItem(text, prompt="Tell me.") for text in TEXTS], number)
    assert [item.text for item in found] == expected


@pytest.mark.parametrize("seed", range(20))
def test_pca_of_random_points(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    points = (rng.standard_normal((30, 6)) * [3, 1, 1, 1, 1, 1] + 5).astype(np.float32)
    everything = items(30)
    on_points(
        monkeypatch, {item.text: p for item, p in zip(everything, points.tolist(), strict=True)}
    )
    for number in (1, 8, 29):
        found = select(everything, number, "pca")
        assert [everything.index(item) for item in found] == by_oracle(points, number)


@pytest.mark.parametrize("rule", ["pca", "recent", "similar", "bm25", "random"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_short_history_is_taken_whole(rule: Any, count: int) -> None:
    for number in (count, count + 1, 1000):
        assert select(items(count), number, rule, query="what?") == tuple(items(count))


def test_what_cannot_select_is_refused() -> None:
    with pytest.raises(InputError, match="rule to be one of pca, recent, similar, bm25, random"):
        select(items(3), 1, "best")  # type: ignore[arg-type]
    for number in (0, -1):
        with pytest.raises(InputError, match=f"at least 1, got {number}"):
            select(items(3), number)
    for number in (1, 9):
        for rule in ("similar", "bm25"):
            with pytest.raises(InputError, match=f"{rule!r} needs a query"):
                select(items(3), number, rule)


# --- The first component -------------------------------------------------------------------------

CLOUDS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
    elements=st.integers(-50, 50).map(float),
)


def clear(points: np.ndarray) -> None:
    """Refuse clouds whose first component, or whose furthest point, is a matter of rounding."""
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    assume(spread[0] > 1 and (len(spread) == 1 or spread[1] < 0.99 * spread[0]))
    along = np.sort(np.abs(PCA(1, svd_solver="full").fit_transform(points)[:, 0]))
    assume(along[-2] < along[-1] - 1e-3)


@given(CLOUDS)
def test_the_first_component_is_that_of_pca_up_to_sign(points: np.ndarray) -> None:
    clear(points)
    found = first_component(points)
    expected = PCA(1, svd_solver="full").fit_transform(points.astype(np.float64))[:, 0]
    np.testing.assert_allclose(found * np.sign(found @ expected), expected, atol=1e-6)
    assert found.shape == (len(points),)


@given(CLOUDS)
def test_the_furthest_point_lies_on_the_positive_side(points: np.ndarray) -> None:
    clear(points)
    along = first_component(points)
    assert along.max() == np.abs(along).max() > 0
    np.testing.assert_allclose(first_component(-points), along, atol=1e-6)


@given(CLOUDS, st.integers(-1000, 1000))
def test_shifts_change_nothing(points: np.ndarray, shift: int) -> None:
    clear(points)
    moved = points + np.float32(shift) * np.arange(1, points.shape[1] + 1, dtype=np.float32)
    np.testing.assert_allclose(first_component(moved), first_component(points), atol=1e-6)


@given(CLOUDS, st.randoms(use_true_random=False))
def test_points_in_another_order_lie_where_they_lay(points: np.ndarray, shuffle: Any) -> None:
    clear(points)
    order = list(range(len(points)))
    shuffle.shuffle(order)
    expected = first_component(points)[order]
    np.testing.assert_allclose(first_component(points[order]), expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4])
def test_one_point_or_many_alike_lie_nowhere(count: int) -> None:
    points = np.tile(np.array([[3.0, 4.0, 5.0]], np.float32), (count, 1))
    np.testing.assert_array_equal(first_component(points), np.zeros(count))


def test_the_beginning_of_a_text_is_short_in_every_script() -> None:
    assert beginning("one  two\nthree") == "one two three"
    assert len(beginning("word " * 500).split()) == 60
    assert len(beginning("\u6587" * 5000)) <= 720
