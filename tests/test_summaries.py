"""`steer.summaries`: what is written of a history, and what it is worth, in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steer.baselines.prompting import said
from steer.chat import render
from steer.errors import InputError
from steer.generation import prompt_tokens
from steer.history import HistoryItem
from steer.likelihood import response_tokens
from steer.summaries import (
    first_sentence,
    fitting,
    loss,
    margins,
    request,
    summarise,
    told_margins,
    wordings,
    written,
)
from tests.models import tiny

PAIRS = [
    HistoryItem("Yes, do!", prompt="Tea?", disliked="I could not possibly say."),
    HistoryItem("Rain is water.", prompt="What is rain?", disliked="Ah."),
    HistoryItem("So it is.", disliked="No!"),
]


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", max_position_embeddings=4096)


def log_p(language_model, asked, answer):
    """Log-probability of an answer, a token at a time."""
    ids = prompt_tokens(language_model, render(language_model.tokenizer, asked))
    total = 0.0
    for token in response_tokens(language_model, answer):
        with torch.no_grad():
            logits = language_model.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        total += float(logits[0, -1].log_softmax(-1)[token])
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("place", ["user", "system"])
def test_margins_are_differences_of_log_likelihoods(llama, place):
    texts = ["I like answers that are short.", "I like cats."]
    found = margins(llama, texts, PAIRS, place=place, batch_tokens=300)
    assert found.shape == (2, 3)
    for i, text in enumerate(texts):
        for j, pair in enumerate(PAIRS):
            prompt = pair.prompt or "Write a few sentences."
            told = said(text, prompt, place)
            wanted = [
                log_p(llama, told, answer) - log_p(llama, prompt, answer)
                for answer in (pair.text, pair.disliked)
            ]
            assert found[i, j] == pytest.approx(wanted[0] - wanted[1], abs=1e-3)


def test_the_beginnings_of_answers_are_judged(llama):
    text = ["I like answers that are short."]
    shorter = [
        HistoryItem(one.text[:5], prompt=one.prompt, disliked=one.disliked[:5]) for one in PAIRS
    ]  # a token a character
    np.testing.assert_allclose(
        margins(llama, text, PAIRS, judged=5), margins(llama, text, shorter), atol=1e-3
    )
    assert not np.allclose(margins(llama, text, PAIRS), margins(llama, text, shorter), atol=1e-2)


def test_a_reference_is_told_nothing(llama):
    other, text = tiny("llama", seed=4), "I like answers that are short."
    found = margins(llama, [text], PAIRS[:1], reference=other)[0, 0]
    told = said(text, "Tea?", "user")
    wanted = [
        log_p(llama, told, answer) - log_p(other, "Tea?", answer)
        for answer in (PAIRS[0].text, PAIRS[0].disliked)
    ]
    assert found == pytest.approx(wanted[0] - wanted[1], abs=1e-3)


def test_the_loss_is_that_of_the_paper():
    margin = np.array([[3.0, -2.0], [0.0, 0.0], [900.0, -900.0]])
    for beta in (0.1, 2.0):
        for row, found in zip(margin[:2], loss(margin[:2], beta), strict=True):
            wanted = [-math.log(1 / (1 + math.exp(-beta * m))) / beta for m in row]
            assert found == pytest.approx(sum(wanted) / 2)
        # For large margins it is what is lost, and does not overflow.
        assert loss(margin[2], beta) == pytest.approx(450, rel=0.01)
    assert loss(np.zeros(4)) == pytest.approx(math.log(2) / 0.1)
    with pytest.raises(InputError, match="above 0"):
        loss(margin, 0.0)


def test_the_best_of_several_has_the_least_loss(llama):
    text = request(llama, PAIRS)
    texts = written(llama, text, 6, 12, seed=3)
    assert len(set(texts)) == len(texts) and 1 < len(texts) <= 6
    losses = [float(loss(margins(llama, [one], PAIRS)[0], 0.2)) for one in texts]
    found = summarise(llama, PAIRS, number=6, max_tokens=12, beta=0.2, seed=3)
    assert found.text == texts[int(np.argmin(losses))] and found.tried == len(texts)
    assert found.loss == pytest.approx(min(losses), rel=1e-4)
    assert found.tokens == len(response_tokens(llama, found.text))
    assert found.read == len(prompt_tokens(llama, text)) and found.items == 3
    assert found == summarise(llama, PAIRS, number=6, max_tokens=12, beta=0.2, seed=3)
    one = summarise(llama, PAIRS, number=1, max_tokens=12)
    assert one.text == texts[0] and one.tried == 1


def test_without_pairs_the_first_is_taken(llama):
    found = summarise(llama, ["Yes, do!", "So it is."], number=3, max_tokens=8)
    assert found.loss is None and found.text.startswith(wordings()["begin"])
    assert "Not liked" not in request(llama, [HistoryItem("Yes, do!")])


def test_the_last_items_that_fit_are_shown(llama):
    lengths = [len(prompt_tokens(llama, request(llama, PAIRS[i:]))) for i in range(3)]
    assert lengths == sorted(lengths, reverse=True)
    for first, length in enumerate(lengths):
        assert fitting(llama, PAIRS, length) == (request(llama, PAIRS[first:]), 3 - first)
        assert summarise(llama, PAIRS, number=1, max_tokens=4, context=length).items == 3 - first
    with pytest.raises(InputError, match="not even one item"):
        fitting(llama, PAIRS, lengths[-1] - 1)


def test_long_items_are_shown_up_to_a_length(llama):
    long = HistoryItem("word " * 500, prompt="Tea?", disliked="no " * 500)
    shown = request(llama, [long])
    assert 10 < shown.count("word ") < 100 and 10 < shown.count("no ") < 100


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("are short. They", "are short."),
        ("are\nshort! And", "are short!"),
        ("cost 3.50 or so, and", "cost 3.50 or so, and."),
        ("are brief, ", "are brief."),
        ("", "."),
    ],
)
def test_a_summary_is_one_sentence(text, wanted):
    assert first_sentence(text) == wanted


def test_what_cannot_be_summarised_is_refused(llama):
    for name in ("number", "max_tokens", "context"):
        with pytest.raises(InputError, match=name):
            summarise(llama, PAIRS, **{name: 0})
    with pytest.raises(InputError, match="non-empty list"):
        summarise(llama, [])
    for pairs in ([], [HistoryItem("a")]):
        with pytest.raises(InputError, match="disliked response"):
            margins(llama, ["s"], pairs)
    with pytest.raises(InputError, match="3 prompts"):
        told_margins(llama, [["Tea?"]], PAIRS)
