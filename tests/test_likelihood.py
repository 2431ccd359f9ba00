"""`steer.likelihood`: likelihoods and divergences, against plain loops over one row alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from steer import likelihood
from steer.chat import render
from steer.edits import ZERO, Edit, additive, two_step
from steer.errors import InputError
from steer.hooks import attach
from steer.likelihood import (
    KLMeter,
    divergence,
    log_ratio,
    mean_log_likelihood,
    response_tokens,
    token_divergence,
)
from steer.models import wrap_model
from steer.traits import Trait
from tests import naive
from tests.models import FAMILIES, LAYERS, VOCABULARY, WIDTH, tiny, tiny_model, tiny_tokenizer


def make_sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        tuple(rng.integers(4, VOCABULARY, length).tolist() for length in pair) for pair in lengths
    ]


SEQUENCES = make_sequences([(5, 3), (1, 9), (20, 1), (7, 7), (2, 2), (3, 18)])


def directions(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        layer: (scale * rng.standard_normal(WIDTH)).astype(np.float32) / np.sqrt(WIDTH)
        for layer in range(1, LAYERS)
    }


EDIT = additive(directions(1, 4.0)) + two_step(
    directions(2), directions(3), alpha=2.0, sign_safe=True
)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def log_probs(language_model, prompt, response, edit=None, first=None):
    """(R, vocabulary) of each response position; one row, naive hooks, no padding."""
    first = len(prompt) - 1 if first is None else first

    logits = naive.logits_of(language_model, [*prompt, *response], edit, first)
    rows = []
    for position in range(len(prompt) - 1, len(prompt) + len(response) - 1):
        scores = [math.exp(x) for x in logits[position].tolist()]
        rows.append([math.log(score / sum(scores)) for score in scores])
    return rows


def plain_mean(language_model, prompt, response, edit=None):
    rows = log_probs(language_model, prompt, response, edit)
    return sum(row[token] for row, token in zip(rows, response, strict=True)) / len(response)


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_log_likelihood(family):
    language_model = tiny(family)
    result = mean_log_likelihood(language_model, SEQUENCES, batch_tokens=60)
    expected = [plain_mean(language_model, *sequence) for sequence in SEQUENCES]
    np.testing.assert_allclose(result, expected, atol=1e-4)
    assert result.shape == (len(SEQUENCES),)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_batching_does_not_change_values_or_order(llama, batch_tokens):
    result = mean_log_likelihood(llama, SEQUENCES, batch_tokens=batch_tokens)
    alone = [mean_log_likelihood(llama, [sequence])[0] for sequence in SEQUENCES]
    np.testing.assert_allclose(result, alone, atol=1e-5)


def test_likelihood_under_an_edit(llama):
    for prompt, response in SEQUENCES:
        with attach(llama).steer(EDIT, prompt_length=len(prompt)):
            result = mean_log_likelihood(llama, [(prompt, response)])
        assert result[0] == pytest.approx(plain_mean(llama, prompt, response, EDIT), abs=1e-4)


def plain_kl(language_model, sequences, edit, scope="response"):
    total, tokens = 0.0, 0
    for prompt, response in sequences:
        first = 0 if scope == "all" else None
        edited = log_probs(language_model, prompt, response, edit, first)
        unedited = log_probs(language_model, prompt, response)
        for p, q in zip(edited, unedited, strict=True):
            total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("sequence", SEQUENCES[:3])
def test_divergence_of_one_answer(llama, sequence, scope):
    result = KLMeter(llama, [sequence], scope=scope).kl(EDIT)
    assert result == pytest.approx(plain_kl(llama, [sequence], EDIT, scope), rel=1e-3)
    assert result > 0.05


def test_divergence_of_each_answer_under_its_own_edit(llama):
    edits = [EDIT, ZERO, 0.5 * EDIT, EDIT, ZERO, -1 * EDIT]
    result = divergence(llama, edits, SEQUENCES, batch_tokens=60)
    expected = [
        plain_kl(llama, [sequence], edit) for sequence, edit in zip(SEQUENCES, edits, strict=True)
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="2 edits for 6 sequences"):
        divergence(llama, edits[:2], SEQUENCES)


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.sampled_from([1, 7, VOCABULARY]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 40),
    st.integers(0, 2**31),
)
def test_divergence_of_logits_by_its_formula(rows, columns, vocabulary, dtype, numbers, seed):
    """A plain loop over positions and tokens, whatever number of them is compared at once."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns, vocabulary)
    edited, reference = (torch.from_numpy(4 * rng.normal(size=shape)).to(dtype) for _ in "ab")
    mask = torch.from_numpy(rng.integers(0, 2, shape[:2]).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "_CPU_NUMBERS", numbers)
        result = token_divergence(edited, reference, mask)
    assert result.shape == mask.shape and result.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            p, q = ([math.exp(x) for x in one[row, column].tolist()] for one in (edited, reference))
            terms = [
                a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q)))
                for a, b in zip(p, q, strict=True)
            ]
            expected = sum(terms) * mask[row, column].item()
            assert result[row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_is_the_mean_over_all_response_tokens(family):
    language_model = tiny(family)
    result = KLMeter(language_model, SEQUENCES, batch_tokens=60).kl(EDIT)
    assert result == pytest.approx(plain_kl(language_model, SEQUENCES, EDIT), rel=1e-3, abs=1e-5)


def test_one_meter_measures_many_edits(llama):
    meter = KLMeter(llama, SEQUENCES, batch_tokens=60)
    for edit in (EDIT, 0.5 * EDIT, -EDIT, EDIT):
        assert meter.kl(edit) == pytest.approx(plain_kl(llama, SEQUENCES, edit), rel=2e-3)


@pytest.mark.parametrize("nothing", [ZERO, 0.0 * EDIT, Edit({})])
def test_no_edit_has_no_divergence(llama, nothing):
    assert KLMeter(llama, SEQUENCES).kl(nothing) == 0.0


def test_divergence_grows_with_the_dose(llama):
    meter = KLMeter(llama, SEQUENCES)
    values = [meter.kl(dose * EDIT) for dose in (1e-3, 1e-2, 0.1, 0.5)]
    assert values == sorted(values)
    assert -1e-6 < values[0] < 1e-3


TRAIT = Trait("calm", positive=["Calmly.", "unused"], negative="In a panic!")


def test_log_ratio(llama):
    prompts, responses = ["Hi", "How are you?", "Why"], ["I am fine", "", "no"]
    result = log_ratio(llama, TRAIT, prompts, responses)
    for value, prompt, response in zip(result, prompts, responses, strict=True):
        expected = 0.0
        if response:
            ids = llama.tokenizer(response, add_special_tokens=False).input_ids
            means = []
            for instruction in ("Calmly.", "In a panic!"):
                text = render(llama.tokenizer, f"{prompt}\n\n{instruction}")
                context = llama.tokenizer(text, add_special_tokens=False).input_ids
                means.append(plain_mean(llama, context, ids))
            expected = means[0] - means[1]
            assert abs(expected) > 1e-3
        assert value == pytest.approx(expected, abs=1e-4)


def test_log_ratio_of_the_beginning(llama):
    whole = "I am fine, and you?"
    ids = llama.tokenizer(whole, add_special_tokens=False).input_ids
    beginning = llama.tokenizer.decode(ids[:4])
    assert response_tokens(llama, beginning) == tuple(ids[:4])
    cut = log_ratio(llama, TRAIT, ["Hi", "Why"], [whole, "no"], max_tokens=4)
    expected = log_ratio(llama, TRAIT, ["Hi", "Why"], [beginning, "no"])
    assert cut == pytest.approx(expected, abs=1e-6)
    assert cut[0] != pytest.approx(log_ratio(llama, TRAIT, ["Hi"], [whole])[0], abs=1e-3)


def test_log_ratio_of_nothing(llama):
    assert log_ratio(llama, TRAIT, ["Hi"], [""]).tolist() == [0.0]
    assert log_ratio(llama, TRAIT, [], []).shape == (0,)


def test_response_tokens_have_no_special_tokens(llama):
    tokens = response_tokens(llama, "Hi there")
    assert llama.tokenizer.decode(tokens) == "Hi there"
    assert not set(tokens) & set(llama.tokenizer.all_special_ids)


@pytest.mark.parametrize("broken", [([], [5]), ([5], [])])
def test_sequences_without_tokens(llama, broken):
    with pytest.raises(InputError, match="sequence 1"):
        mean_log_likelihood(llama, [SEQUENCES[0], broken])
    with pytest.raises(InputError, match="sequence 1"):
        KLMeter(llama, [SEQUENCES[0], broken])


def test_log_ratio_of_a_model_without_a_chat_template():
    """Its prompts begin as they do in generation, here with a token of their own."""
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    model = wrap_model(tiny_model("llama"), tokenizer, name="plain")
    means = []
    for instruction in ("Calmly.", "In a panic!"):
        asked = tokenizer(f"Hi\n\n{instruction}", add_special_tokens=False).input_ids
        answered = tokenizer("no", add_special_tokens=False).input_ids
        means.append(plain_mean(model, [1, *asked], answered))
        assert plain_mean(model, asked, answered) != pytest.approx(means[-1], abs=1e-3)
    assert log_ratio(model, TRAIT, ["Hi"], ["no"])[0] == pytest.approx(
        means[0] - means[1], abs=1e-4
    )


def test_divergence_of_each_answer_under_an_edit_of_all_positions(llama):
    edits = [EDIT, ZERO, 0.5 * EDIT]
    result = divergence(llama, edits, SEQUENCES[:3], scope="all")
    expected = [
        plain_kl(llama, [sequence], edit, "all")
        for sequence, edit in zip(SEQUENCES[:3], edits, strict=True)
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)
    assert abs(expected[0] - plain_kl(llama, SEQUENCES[:1], EDIT)) > 1e-2
