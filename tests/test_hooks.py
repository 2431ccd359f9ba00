"""`steer.hooks`: a row in a mixed batch is the same row alone, however the tokens are made.

The oracle is `oracle_logits`: one unpadded row, the whole sequence at once, no cache, and naive
hooks that apply the NumPy formula of `LayerEdit.apply` to chosen positions.
"""

import copy
import gc
import threading
import weakref
from collections import Counter

import accelerate
import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache, StoppingCriteria

from steer.edits import ZERO, Edit, LayerEdit, additive, two_step
from steer.errors import (
    ConcurrentSteeringError,
    EditNeverFiredError,
    InputError,
    SteeringError,
)
from steer.hooks import attach
from steer.models import wrap_model
from tests import naive
from tests.models import FAMILIES, LAYERS, PAD, VOCABULARY, WIDTH, tiny, tiny_model, tiny_tokenizer

ATOL = 1e-4
NEW = 6
LENGTHS = (5, 19, 1, 11, 8)  # longer and shorter than the sliding windows


# --- Edits, prompts and the oracle ---------------------------------------------------------------


def directions(seed, layers=range(LAYERS), scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        layer: (scale * rng.standard_normal(WIDTH)).astype(np.float32) / np.sqrt(WIDTH)
        for layer in layers
    }


ADDITIVE = additive(directions(1, scale=6.0))
ADDITIVE_2 = additive(directions(11, (1, 2), scale=8.0))
RANK_2 = two_step(directions(2), directions(3), alpha=3.0)
SIGN_SAFE = two_step(
    directions(4, (0, 2)), directions(5, (0, 2)), alpha=4.0, beta=1.5, sign_safe=True
)
MIXED = 0.7 * ADDITIVE + RANK_2 - 0.5 * SIGN_SAFE
ROWS = [ADDITIVE, None, RANK_2, SIGN_SAFE, MIXED]


def make_prompts(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCABULARY, length).tolist() for length in lengths]


PROMPTS = make_prompts()


def pad(prompts):
    """Left-padded ids and mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def oracle_logits(language_model, tokens, edit, prompt_length, scope="response"):
    """Logits (T, vocabulary) of one unpadded row, from one pass over all of it."""
    first = 0 if scope == "all" else prompt_length - 1
    return naive.logits_of(language_model, tokens, edit, first)


def oracle_greedy(language_model, prompt, edit, new=NEW, scope="response"):
    """Greedy tokens, and the logits they were taken from, recomputing everything every step."""
    tokens, steps = list(prompt), []
    for _ in range(new):
        logits = oracle_logits(language_model, tokens, edit, len(prompt), scope)[-1]
        steps.append(logits)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :], torch.stack(steps)


def generate(language_model, prompts, edits=None, *, new=NEW, scope="response", **options):
    """(B, new) tokens and (B, new, vocabulary) logits of `model.generate`."""
    settings = {"do_sample": False, "max_new_tokens": new, **pad(prompts), **options}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    if edits is None:
        output = language_model.model.generate(**settings)
    else:
        with attach(language_model).steer(edits, scope=scope):
            output = language_model.model.generate(**settings)
    tokens = output.sequences[:, settings["input_ids"].shape[1] :]
    return tokens.tolist(), torch.stack(output.logits, 1)


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.fixture(scope="module")
def greedy(llama):
    """What the oracle makes of every prompt under its row's edit."""
    return [oracle_greedy(llama, p, edit) for p, edit in zip(PROMPTS, ROWS, strict=True)]


def check_against(expected, tokens, logits):
    for row, (tokens_alone, logits_alone) in enumerate(expected):
        torch.testing.assert_close(logits[row], logits_alone, atol=ATOL, rtol=0, msg=f"row {row}")
        assert tokens[row] == tokens_alone, f"row {row}"


# --- A mixed batch -------------------------------------------------------------------------------


def test_the_edits_of_these_tests_change_what_is_generated(llama, greedy):
    plain = [oracle_greedy(llama, prompt, None)[0] for prompt in PROMPTS]
    changed = [tokens != before for (tokens, _), before in zip(greedy, plain, strict=True)]
    assert changed == [True, False, True, True, True]


@pytest.mark.parametrize("scope", ["response", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_in_a_mixed_batch_is_the_row_alone(family, scope):
    language_model = tiny(family)
    expected = [
        oracle_greedy(language_model, prompt, edit, new=4, scope=scope)
        for prompt, edit in zip(PROMPTS, ROWS, strict=True)
    ]
    tokens, logits = generate(language_model, PROMPTS, ROWS, new=4, scope=scope)
    check_against(expected, tokens, logits)
    # The same through the hooks alone: one row, nothing padded.
    for row, (prompt, edit) in enumerate(zip(PROMPTS, ROWS, strict=True)):
        alone, alone_logits = generate(language_model, [prompt], [edit], new=4, scope=scope)
        check_against([expected[row]], alone, alone_logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_without_an_edit_are_the_plain_model(family):
    language_model = tiny(family)
    plain = copy.deepcopy(language_model.model)
    attach(language_model)
    edits = [ADDITIVE, None, None, RANK_2, ZERO]
    inputs = pad(PROMPTS)
    with torch.no_grad(), attach(language_model).steer(edits, scope="all"):
        steered = language_model.model(**inputs).logits
    with torch.no_grad():
        before = plain(**inputs).logits
    assert torch.equal(steered[[1, 2, 4]], before[[1, 2, 4]])
    assert not torch.allclose(steered[[0, 3]], before[[0, 3]], atol=0.1)


def test_one_edit_for_all_rows(llama):
    expected = [oracle_greedy(llama, prompt, MIXED) for prompt in PROMPTS]
    check_against(expected, *generate(llama, PROMPTS, MIXED))


def test_more_rows_than_the_first_buffers_hold(llama):
    prompts = make_prompts([3 + i % 5 for i in range(37)], seed=1)
    edits = [ROWS[i % len(ROWS)] for i in range(37)]
    expected = [
        oracle_greedy(llama, p, edit, new=2) for p, edit in zip(prompts, edits, strict=True)
    ]
    check_against(expected, *generate(llama, prompts, edits, new=2))


def test_blocks_in_turn_do_not_leak_into_each_other(llama, greedy):
    for _ in range(2):
        check_against(greedy, *generate(llama, PROMPTS, ROWS))
        tokens, logits = generate(llama, PROMPTS[:2], [None, ADDITIVE_2])
        check_against([oracle_greedy(llama, PROMPTS[0], None)], tokens, logits)
        check_against([oracle_greedy(llama, PROMPTS[1], ADDITIVE_2)], tokens[1:], logits[1:])


def test_several_generations_in_one_block_each_have_their_own_prompt(llama):
    expected = [oracle_greedy(llama, prompt, MIXED) for prompt in PROMPTS]
    with attach(llama).steer(MIXED):
        for alone, prompt in zip(expected, PROMPTS, strict=True):
            check_against([alone], *generate(llama, [prompt]))


def test_the_number_of_rows_may_change_in_a_block(llama):
    expected = [oracle_greedy(llama, prompt, MIXED) for prompt in PROMPTS]
    with attach(llama).steer(MIXED):
        for rows in (1, 5, 2, 5):
            check_against(expected[:rows], *generate(llama, PROMPTS[:rows]))


# --- Which positions -----------------------------------------------------------------------------


def test_the_response_starts_at_the_last_prompt_position(llama):
    prompt, prompt_length = PROMPTS[1] + PROMPTS[0], len(PROMPTS[1])
    plain = oracle_logits(llama, prompt, None, prompt_length)
    with torch.no_grad(), attach(llama).steer(ADDITIVE, prompt_length=prompt_length):
        steered = llama.model(torch.tensor([prompt]), use_cache=False).logits[0]
    changed = (steered - plain).abs().amax(1) > 1e-3
    assert changed.tolist() == [i >= prompt_length - 1 for i in range(len(prompt))]
    torch.testing.assert_close(
        steered, oracle_logits(llama, prompt, ADDITIVE, prompt_length), atol=ATOL, rtol=0
    )


def test_the_first_generated_token_is_steered(llama):
    prompt = PROMPTS[1]
    _, logits = generate(llama, [prompt], ADDITIVE, new=1)
    plain = oracle_logits(llama, prompt, None, len(prompt))[-1]
    steered = oracle_logits(llama, prompt, ADDITIVE, len(prompt))[-1]
    assert (steered - plain).abs().max() > 0.1
    torch.testing.assert_close(logits[0, 0], steered, atol=ATOL, rtol=0)


def test_scope_all_edits_every_position(llama):
    prompt = PROMPTS[1]
    with torch.no_grad(), attach(llama).steer(MIXED, scope="all"):
        steered = llama.model(torch.tensor([prompt])).logits[0]
    expected = oracle_logits(llama, prompt, MIXED, len(prompt), "all")
    torch.testing.assert_close(steered, expected, atol=ATOL, rtol=0)


# --- Every way of making tokens ------------------------------------------------------------------


def test_without_a_cache(llama, greedy):
    check_against(greedy, *generate(llama, PROMPTS, ROWS, use_cache=False))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_static_cache(family):
    language_model = tiny(family)
    expected = [
        oracle_greedy(language_model, p, edit, new=4) for p, edit in zip(PROMPTS, ROWS, strict=True)
    ]
    tokens, logits = generate(
        language_model, PROMPTS, ROWS, new=4, cache_implementation="static", disable_compile=True
    )
    check_against(expected, tokens, logits)


@pytest.mark.parametrize("chunk", [1, 4, 19, 64])
def test_chunked_prefill(llama, greedy, chunk):
    if transformers.__version__.startswith("4."):
        with pytest.raises(SteeringError, match="chunks"):
            generate(llama, PROMPTS, ROWS, prefill_chunk_size=chunk)
        return
    check_against(greedy, *generate(llama, PROMPTS, ROWS, prefill_chunk_size=chunk))


@pytest.mark.parametrize("prefilled", [1, 7, 18])
def test_generate_with_a_filled_cache(llama, prefilled):
    prompts = [PROMPTS[1], PROMPTS[1][::-1]]
    edits = [MIXED, SIGN_SAFE]
    cache = DynamicCache()
    with torch.no_grad():
        llama.model(pad(prompts)["input_ids"][:, :prefilled], past_key_values=cache)
    expected = [oracle_greedy(llama, p, edit) for p, edit in zip(prompts, edits, strict=True)]
    check_against(expected, *generate(llama, prompts, edits, past_key_values=cache))


def test_generate_from_embeddings(llama, greedy):
    inputs = pad(PROMPTS)
    with attach(llama).steer(ROWS):
        output = llama.model.generate(
            inputs_embeds=llama.model.get_input_embeddings()(inputs["input_ids"]),
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    check_against(greedy, output.sequences.tolist(), torch.stack(output.logits, 1))


def test_prompt_given_by_position(llama, greedy):
    row = 4
    with attach(llama).steer(ROWS[row]):
        output = llama.model.generate(torch.tensor([PROMPTS[row]]), max_new_tokens=NEW)
    assert output[0, len(PROMPTS[row]) :].tolist() == greedy[row][0]


def test_beams_follow_their_row(llama):
    tokens, _ = generate(llama, PROMPTS, ROWS, num_beams=3)
    for row, (prompt, edit) in enumerate(zip(PROMPTS, ROWS, strict=True)):
        alone, _ = generate(llama, [prompt], None if edit is None else [edit], num_beams=3)
        assert tokens[row] == alone[0], f"row {row}"
        # An independent score: the sum of the oracle's log-probabilities of what was found is no
        # lower than that of greedy decoding.
        if edit is not None:
            plain, _ = generate(llama, [prompt], num_beams=3)
            assert alone != plain


def test_beam_scores_are_those_of_the_edited_model(llama):
    inputs = pad(PROMPTS)
    with attach(llama).steer(ROWS):
        output = llama.model.generate(
            **inputs,
            num_beams=3,
            do_sample=False,
            length_penalty=0.0,
            max_new_tokens=4,
            return_dict_in_generate=True,
            output_scores=True,
        )
    width = inputs["input_ids"].shape[1]
    for row, (prompt, edit) in enumerate(zip(PROMPTS, ROWS, strict=True)):
        response = output.sequences[row, width:].tolist()
        logits = oracle_logits(llama, prompt + response, edit, len(prompt))
        log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        score = sum(log_probs[i, token].item() for i, token in enumerate(response))
        assert output.sequences_scores[row].item() == pytest.approx(score, abs=1e-3)


def test_returned_sequences_follow_their_row(llama):
    torch.manual_seed(7)
    tokens, logits = generate(llama, PROMPTS, ROWS, do_sample=True, num_return_sequences=2)
    assert any(tokens[2 * row] != tokens[2 * row + 1] for row in range(len(ROWS)))
    for i, response in enumerate(tokens):
        prompt, edit = PROMPTS[i // 2], ROWS[i // 2]
        expected = oracle_logits(llama, prompt + response, edit, len(prompt))
        torch.testing.assert_close(
            logits[i], expected[len(prompt) - 1 : -1], atol=ATOL, rtol=0, msg=f"row {i}"
        )


def test_sampling_with_a_seed_draws_from_the_edited_distribution(llama):
    prompt = PROMPTS[1]
    torch.manual_seed(3)
    sampled, _ = generate(llama, [prompt], MIXED, do_sample=True, top_k=0)
    torch.manual_seed(3)
    tokens = list(prompt)
    for _ in range(NEW):
        logits = oracle_logits(llama, tokens, MIXED, len(prompt))[-1]
        tokens.append(int(torch.multinomial(logits.softmax(-1)[None], 1)))
    assert sampled[0] == tokens[len(prompt) :]


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_assisted_by_the_prompt(llama, row):
    prompt = PROMPTS[row] * 3  # something to look up
    # transformers 4.57 looks for the end of the text; this token does not exist.
    options = {"prompt_lookup_num_tokens": 3, "eos_token_id": VOCABULARY}
    expected, _ = oracle_greedy(llama, prompt, ROWS[row], new=10)
    tokens, _ = generate(llama, [prompt], [ROWS[row]], new=10, **options)
    assert tokens[0] == expected


@pytest.mark.parametrize("seed", [0, 1])  # 0: the model itself, so that guesses are accepted
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_assisted_by_another_model(llama, row, seed):
    assistant = tiny_model("llama", seed=seed)
    expected, _ = oracle_greedy(llama, PROMPTS[row], ROWS[row], new=10)
    tokens, _ = generate(llama, [PROMPTS[row]], [ROWS[row]], new=10, assistant_model=assistant)
    assert tokens[0] == expected


def own_loop(language_model, prompts, new=NEW, cache=None, split=None):
    """Greedy decoding by hand; `split` cuts the prompt into two passes."""
    inputs = pad(prompts)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache() if cache is None else cache
    tokens, logits = [], []
    passes = [ids] if split is None else [ids[:, :split], ids[:, split:]]
    seen = 0
    with torch.no_grad():
        for part in passes:
            end = seen + part.shape[1]
            output = language_model.model(
                part,
                attention_mask=mask[:, :end],
                position_ids=positions[:, seen:end],
                past_key_values=cache,
                use_cache=True,
            )
            seen = end
        for step in range(new):
            logits.append(output.logits[:, -1])
            tokens.append(logits[-1].argmax(-1))
            if step == new - 1:
                break
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            output = language_model.model(
                tokens[-1][:, None],
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
    return torch.stack(tokens, 1).tolist(), torch.stack(logits, 1)


def test_own_loop_with_a_cache(llama, greedy):
    with attach(llama).steer(ROWS):
        check_against(greedy, *own_loop(llama, PROMPTS))
        # A new cache is a new sequence.
        check_against(greedy, *own_loop(llama, PROMPTS))


def test_own_loop_without_passing_a_cache_at_first(llama, greedy):
    row = 4
    ids, tokens, cache = torch.tensor([PROMPTS[row]]), [], None
    with torch.no_grad(), attach(llama).steer(ROWS[row]):
        for _ in range(NEW):
            options = {} if cache is None else {"past_key_values": cache}
            output = llama.model(ids, use_cache=True, **options)
            cache, ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(ids.item())
    assert tokens == greedy[row][0]


def test_own_loop_with_a_static_cache(llama, greedy):
    cache = StaticCache(config=llama.model.config, max_cache_len=32)
    with attach(llama).steer(ROWS[4]):
        check_against([greedy[4]], *own_loop(llama, [PROMPTS[4]], cache=cache))


@pytest.mark.parametrize("split", [1, 10, 18])
def test_own_loop_with_the_prompt_in_two_passes(llama, greedy, split):
    width = max(LENGTHS)
    with attach(llama).steer(ROWS, prompt_length=width):
        check_against(greedy, *own_loop(llama, PROMPTS, split=split))
        check_against(greedy, *own_loop(llama, PROMPTS, split=split))


def test_own_loop_without_a_cache(llama, greedy):
    for row, edit in enumerate(ROWS):
        tokens = list(PROMPTS[row])
        with torch.no_grad(), attach(llama).steer([edit], prompt_length=len(tokens)):
            for _ in range(NEW):
                logits = llama.model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
                tokens.append(int(logits.argmax()))
        assert tokens[len(PROMPTS[row]) :] == greedy[row][0]


def test_one_pass_from_embeddings(llama):
    ids = torch.tensor([PROMPTS[1]])
    embeddings = llama.model.get_input_embeddings()(ids)
    with torch.no_grad(), attach(llama).steer(MIXED, prompt_length=4):
        steered = llama.model(inputs_embeds=embeddings, use_cache=False).logits[0]
    expected = oracle_logits(llama, PROMPTS[1], MIXED, 4)
    torch.testing.assert_close(steered, expected, atol=ATOL, rtol=0)


def test_more_columns_than_the_first_gates_hold():
    language_model = tiny("llama", num_hidden_layers=1, max_position_embeddings=4096)
    prompt = make_prompts([2100])[0]
    edit = additive(directions(1, (0,), scale=6.0))
    with torch.no_grad(), attach(language_model).steer(edit, prompt_length=2060):
        short = language_model.model(torch.tensor([prompt[:2062]]), use_cache=False).logits[0]
        long = language_model.model(torch.tensor([prompt]), use_cache=False).logits[0]
    expected = oracle_logits(language_model, prompt, edit, 2060)
    torch.testing.assert_close(short, expected[:2062], atol=ATOL, rtol=0)
    torch.testing.assert_close(long, expected, atol=ATOL, rtol=0)


def test_gradients_flow_through_an_edit(llama):
    embeddings = llama.model.get_input_embeddings()(torch.tensor([PROMPTS[0]])).detach()
    embeddings.requires_grad_(True)
    with attach(llama).steer(MIXED, scope="all"):
        llama.model(inputs_embeds=embeddings, use_cache=False).logits.sum().backward()
    assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_autograd_modes_may_be_mixed(llama, greedy, mode):
    with mode(), attach(llama).steer(ROWS):
        check_against(greedy, *generate(llama, PROMPTS))
    with attach(llama).steer(ROWS), mode():
        check_against(greedy, *generate(llama, PROMPTS))


# --- Hooks that are not in use -------------------------------------------------------------------


def logits_of(model):
    with torch.no_grad():
        return model(**pad(PROMPTS)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_inactive_hooks_leave_the_model_bit_identical(family):
    language_model = tiny(family)
    expected = logits_of(copy.deepcopy(language_model.model))
    hooks = attach(language_model)
    assert torch.equal(logits_of(language_model.model), expected)
    with hooks.steer(ROWS):
        assert not torch.equal(logits_of(language_model.model), expected)
    assert torch.equal(logits_of(language_model.model), expected)
    with pytest.raises(ZeroDivisionError), hooks.steer(ROWS):
        logits_of(language_model.model)
        raise ZeroDivisionError
    assert torch.equal(logits_of(language_model.model), expected)
    hooks.remove()
    assert torch.equal(logits_of(language_model.model), expected)


def test_after_an_exception_in_generate(llama):
    expected = logits_of(copy.deepcopy(llama.model))

    class Boom(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        generate(llama, PROMPTS, ROWS, logits_processor=transformers.LogitsProcessorList([Boom()]))
    assert torch.equal(logits_of(llama.model), expected)
    assert "generate" not in vars(llama.model)
    with attach(llama).steer(ROWS):  # nobody holds the lock
        logits_of(llama.model)


def test_an_exception_in_generate_inside_a_block_does_not_spoil_the_next_call(llama, greedy):
    class Boom(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > max(LENGTHS) + 1:
                raise ZeroDivisionError
            return scores

    boom = transformers.LogitsProcessorList([Boom()])
    with attach(llama).steer(ROWS):
        with pytest.raises(ZeroDivisionError):
            generate(llama, PROMPTS, logits_processor=boom)
        check_against(greedy, *generate(llama, PROMPTS))
        with pytest.raises(ZeroDivisionError):
            generate(llama, PROMPTS, logits_processor=boom)
        check_against(greedy, *own_loop(llama, PROMPTS))


@pytest.mark.parametrize("nothing", [ZERO, 0.0 * MIXED, 0.0 * SIGN_SAFE, None, Edit({})])
def test_strength_zero_is_bit_identical(llama, nothing):
    expected = logits_of(copy.deepcopy(llama.model))
    with attach(llama).steer([nothing], scope="all"):
        assert torch.equal(logits_of(llama.model), expected)


def test_generate_is_restored(llama):
    before = llama.model.generate
    with attach(llama).steer(MIXED):
        assert llama.model.generate != before
        logits_of(llama.model)
    assert llama.model.generate == before
    assert "generate" not in vars(llama.model)


def test_an_own_generate_of_the_model_is_restored():
    language_model = tiny("llama")

    def own(*args, **kwargs):
        return type(language_model.model).generate(language_model.model, *args, **kwargs)

    language_model.model.generate = own
    tokens, _ = generate(language_model, PROMPTS, ROWS)
    assert tokens[4] == oracle_greedy(language_model, PROMPTS[4], ROWS[4])[0]
    assert language_model.model.generate is own


def test_attach_installs_one_set_of_hooks(llama):
    hooks = attach(llama)
    counts = [len(layer._forward_hooks) for layer in llama.layers]
    assert attach(llama) is hooks
    assert attach(wrap_model(llama.model, llama.tokenizer)) is hooks
    assert [len(layer._forward_hooks) for layer in llama.layers] == counts


def test_remove_takes_off_only_its_own_hooks():
    language_model = tiny("llama")
    calls = Counter()
    for index, layer in enumerate(language_model.layers):
        layer.register_forward_hook(lambda *_, i=index: calls.update([f"before {i}"]))
    hooks = attach(language_model)
    for index, layer in enumerate(language_model.layers):
        layer.register_forward_hook(lambda *_, i=index: calls.update([f"after {i}"]))
    hooks.remove()
    assert all(len(layer._forward_hooks) == 2 for layer in language_model.layers)
    assert not language_model.model._forward_pre_hooks
    logits_of(language_model.model)
    assert calls == {f"{when} {i}": 1 for when in ("before", "after") for i in range(LAYERS)}
    assert attach(language_model) is not hooks
    assert [len(layer._forward_hooks) for layer in language_model.layers] == [3] * LAYERS


def test_remove_is_refused_while_steering(llama):
    hooks = attach(llama)
    with hooks.steer(ROWS):
        with pytest.raises(ConcurrentSteeringError):
            hooks.remove()
        logits_of(llama.model)


def test_a_copy_of_a_model_with_hooks_has_hooks_of_its_own(greedy):
    original = tiny("llama")
    generate(original, PROMPTS, ADDITIVE)
    expected = logits_of(original.model)
    copied = wrap_model(copy.deepcopy(original.model), original.tokenizer)
    assert attach(copied) is not attach(original)
    assert all(len(layer._forward_hooks) == 1 for layer in copied.layers)
    with attach(original).steer(ADDITIVE_2):  # both at once: no state is shared
        check_against(greedy, *generate(copied, PROMPTS, ROWS))
        assert torch.equal(logits_of(copied.model), expected)
        logits_of(original.model)
        with pytest.raises(ConcurrentSteeringError):
            copy.deepcopy(original.model)
    attach(copied).remove()
    check_against(greedy, *generate(original, PROMPTS, ROWS))


def test_a_model_with_hooks_is_freed():
    language_model = tiny("llama")
    generate(language_model, PROMPTS, ROWS, new=1)
    model = weakref.ref(language_model.model)
    del language_model
    gc.collect()
    assert model() is None


# --- What is refused -----------------------------------------------------------------------------


def test_nothing_runs_in_the_block(llama):
    with pytest.raises(EditNeverFiredError), attach(llama).steer(MIXED):
        pass


def keep_layers(language_model, layers):
    """The model runs these of its layers only."""
    base = language_model.model.model
    base.layers = nn.ModuleList([language_model.layers[i] for i in layers])
    base.config.num_hidden_layers = len(layers)


def test_a_layer_that_is_bypassed():
    language_model = tiny("llama")
    keep_layers(language_model, range(LAYERS - 1))
    with pytest.raises(EditNeverFiredError, match=rf"\[{LAYERS - 1}\]"):
        generate(language_model, PROMPTS, ROWS)
    with (
        pytest.raises(EditNeverFiredError, match=rf"\[{LAYERS - 1}\]"),
        attach(language_model).steer(ROWS),
    ):
        logits_of(language_model.model)
    generate(language_model, PROMPTS, additive(directions(1, (0, 1))))


def test_a_second_generation_that_bypasses_a_layer():
    language_model = tiny("llama")
    with attach(language_model).steer(MIXED):
        generate(language_model, PROMPTS)
        keep_layers(language_model, range(LAYERS - 1))
        with pytest.raises(EditNeverFiredError):
            generate(language_model, PROMPTS)
        keep_layers(language_model, range(LAYERS))
        generate(language_model, PROMPTS)


def test_no_response_position_is_reached(llama):
    with (
        pytest.raises(EditNeverFiredError, match="response position"),
        attach(llama).steer(MIXED, prompt_length=50),
    ):
        logits_of(llama.model)


def test_an_exception_in_the_block_is_not_replaced(llama):
    with pytest.raises(ZeroDivisionError), attach(llama).steer(MIXED):
        raise ZeroDivisionError


@pytest.mark.parametrize("edits", [3, 4])
def test_wrong_number_of_rows(llama, edits):
    with pytest.raises(SteeringError, match=f"{edits} edits.*5 rows"):
        generate(llama, PROMPTS, ROWS[:edits])
    with attach(llama).steer(MIXED):
        logits_of(llama.model)


@pytest.mark.parametrize(
    "edit",
    [
        additive({LAYERS: np.ones(WIDTH, np.float32)}),
        additive({0: np.ones(WIDTH + 1, np.float32)}),
        two_step({0: np.ones(8, np.float32)}, {0: np.ones(8, np.float32)}),
    ],
)
def test_an_edit_that_does_not_fit(llama, edit):
    with pytest.raises(InputError, match="does not fit"), attach(llama).steer([None, edit]):
        pytest.fail("entered")
    with attach(llama).steer(MIXED):
        logits_of(llama.model)


def test_no_edits_and_unknown_scopes(llama):
    with pytest.raises(InputError), attach(llama).steer([]):
        pytest.fail("entered")
    with pytest.raises(InputError, match="prompt"), attach(llama).steer(MIXED, scope="prompt"):
        pytest.fail("entered")


# --- Threads -------------------------------------------------------------------------------------


def test_a_nested_block_is_refused_and_the_outer_one_goes_on(llama, greedy):
    with attach(llama).steer(ROWS):
        with pytest.raises(ConcurrentSteeringError), attach(llama).steer(ADDITIVE):
            pytest.fail("entered")
        check_against(greedy, *generate(llama, PROMPTS))


def test_a_bare_call_of_another_thread_is_refused(llama, greedy):
    errors = []

    def bare():
        try:
            logits_of(llama.model)
        except ConcurrentSteeringError as error:
            errors.append(error)

    with attach(llama).steer(ROWS):
        thread = threading.Thread(target=bare)
        thread.start()
        thread.join()
        assert len(errors) == 1
        check_against(greedy, *generate(llama, PROMPTS))
    bare()
    assert len(errors) == 1


class Meanwhile(StoppingCriteria):
    """Lets another thread do something after each token of a generation."""

    def __init__(self, work):
        self.work = work

    def __call__(self, ids, scores, **options):
        thread = threading.Thread(target=self.work)
        thread.start()
        thread.join()
        return torch.zeros(len(ids), dtype=torch.bool)


def test_a_bare_generation_of_another_thread_changes_nothing_of_this_ones(llama, greedy):
    refused = []

    def bare():
        with pytest.raises(ConcurrentSteeringError, match="another thread"):
            generate(llama, make_prompts([30]))
        refused.append(True)

    found = generate(llama, PROMPTS, ROWS, stopping_criteria=[Meanwhile(bare)])
    assert len(refused) == NEW
    check_against(greedy, *found)


def test_rows_of_another_thread_do_not_dwindle_this_ones(llama, greedy):
    inside, over = threading.Event(), threading.Event()

    def stay():
        with attach(llama).dwindling(len(PROMPTS)) as keep:
            keep(torch.tensor([1]))
            inside.set()
            assert over.wait(10)

    with attach(llama).steer(ROWS):
        thread = threading.Thread(target=stay)
        thread.start()
        assert inside.wait(10)
        check_against(greedy, *generate(llama, PROMPTS))
        over.set()
        thread.join()


def test_threads_take_turns(llama, greedy):
    expected = {"rows": greedy, "one": [oracle_greedy(llama, PROMPTS[1], ADDITIVE_2)]}
    failures, done = [], Counter()
    barrier = threading.Barrier(2)

    def work(name, prompts, edits):
        try:
            barrier.wait()
            for _ in range(5):
                check_against(expected[name], *generate(llama, prompts, edits))
                done[name] += 1
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=("rows", PROMPTS, ROWS)),
        threading.Thread(target=work, args=("one", PROMPTS[1:2], ADDITIVE_2)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert done == {"rows": 5, "one": 5}


# --- torch.compile -------------------------------------------------------------------------------


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def compiled_forward(model, backend):
    model.forward = torch.compile(model.forward, backend=backend, dynamic=False)
    return model


def compiled_layers(model, backend):
    for layer in model.model.layers:
        layer.compile(backend=backend, dynamic=False)
    return model


def compiled_model(model, backend):
    return torch.compile(model, backend=backend, dynamic=False)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("how", [compiled_forward, compiled_layers, compiled_model])
def test_compiled_is_steered_like_uncompiled_without_recompiling(dynamo, how, backend):
    language_model = tiny("llama")
    reference = tiny("llama")
    hooks = attach(language_model)
    model = how(language_model.model, backend)
    inputs = pad(PROMPTS)

    def run(model):
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits

    with hooks.steer(ROWS):  # warm-up: the largest rank, and outside a block
        run(model)
    run(model)
    blocks = [
        (ROWS, "response"),
        (ROWS[::-1], "all"),
        (ADDITIVE, "response"),
        ([0.3 * MIXED + ADDITIVE_2] * 5, "response"),
        (SIGN_SAFE, "all"),
    ]
    with dynamo.config.patch(error_on_recompile=True):
        for edits, scope in blocks:
            if isinstance(edits, list) and edits[0].rank > MIXED.rank:
                continue
            with attach(reference).steer(edits, scope=scope):
                expected = run(reference.model)
            with hooks.steer(edits, scope=scope):
                for _ in range(2):
                    torch.testing.assert_close(run(model), expected, atol=ATOL, rtol=0)
            plain = run(reference.model)
            torch.testing.assert_close(run(model), plain, atol=ATOL, rtol=0)
            assert not torch.allclose(plain, expected, atol=0.1)


def test_compiled_decoding_is_steered(dynamo):
    language_model = tiny("llama")
    attach(language_model)
    expected = [
        oracle_greedy(language_model, p, edit, new=4) for p, edit in zip(PROMPTS, ROWS, strict=True)
    ]
    compiled_layers(language_model.model, "eager")
    check_against(expected, *generate(language_model, PROMPTS, ROWS, new=4))


@pytest.mark.parametrize("how", [compiled_forward, compiled_layers])
def test_a_compiled_batch_may_be_larger_than_any_before(dynamo, how):
    """Of 40 rows or 2100 columns: the layers without an edit keep the buffers they had."""
    language_model = tiny("llama", max_position_embeddings=2200)
    reference = tiny("llama", max_position_embeddings=2200)
    hooks, edit = attach(language_model), additive({2: np.ones(WIDTH, np.float32)})
    model = how(language_model.model, "eager")
    for shape in ((40, 3), (1, 2100)):
        ids = torch.randint(4, 90, shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            plain = reference.model(ids, use_cache=False).logits
            torch.testing.assert_close(model(ids, use_cache=False).logits, plain, atol=ATOL, rtol=0)
            with attach(reference).steer(edit, scope="all"):
                expected = reference.model(ids, use_cache=False).logits
            with hooks.steer(edit, scope="all"):
                found = model(ids, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=ATOL, rtol=0)
        assert not torch.allclose(plain, expected, atol=0.1)


def test_layers_with_hooks_compile_into_one_graph(dynamo):
    language_model = tiny("llama")
    hooks = attach(language_model)
    inner = language_model.model.model
    whole = torch.compile(inner, backend="eager", fullgraph=True, dynamic=False)
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        with hooks.steer(MIXED, scope="all"):
            language_model.model(ids, use_cache=False)  # the model's own hook opens the gates
            expected = inner(ids, use_cache=False).last_hidden_state
            steered = whole(ids, use_cache=False).last_hidden_state
        plain = inner(ids, use_cache=False).last_hidden_state
        torch.testing.assert_close(steered, expected, atol=ATOL, rtol=0)
        torch.testing.assert_close(
            whole(ids, use_cache=False).last_hidden_state, plain, atol=ATOL, rtol=0
        )
    assert not torch.allclose(plain, expected, atol=0.1)


def test_code_compiled_before_the_hooks_raises_or_is_steered(dynamo):
    language_model = tiny("llama")
    model = compiled_forward(language_model.model, "eager")
    before = logits_of(model)
    try:
        with attach(language_model).steer(ROWS):
            after = logits_of(model)
    except EditNeverFiredError:
        return
    assert not torch.allclose(before, after, atol=0.1)


# --- Cost: what the hooks may and may not do -----------------------------------------------------


class Record(TorchDispatchMode):
    """Every ATen operation that runs."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


# Views cost nothing; the rest is the formula: projection, phi, back, and the sum.
VIEWS = {"slice", "unsqueeze", "expand", "view", "transpose", "alias", "_unsafe_view", "squeeze"}
FORMULA = {"bmm", "maximum", "baddbmm", "addcmul"}


@pytest.mark.parametrize(("edits", "formula"), [(ROWS, FORMULA), ([ADDITIVE] * 5, {"addcmul"})])
def test_a_hook_runs_the_formula_and_nothing_else(edits, formula):
    language_model = tiny("llama")
    hooks = attach(language_model)
    h = torch.randn(len(PROMPTS), max(LENGTHS), WIDTH)
    with hooks.steer(edits), torch.no_grad():
        logits_of(language_model.model)
        for site in hooks._sites:
            with Record() as record:
                site(language_model.layers[site.index], (), h)
            assert set(record.calls) - VIEWS == formula
            assert all(record.calls[name] == 1 for name in formula)


def test_an_inactive_hook_runs_nothing(llama):
    hooks = attach(llama)
    h, ids = torch.randn(2, 3, WIDTH), torch.tensor([[1]])
    with Record() as record:
        assert all(site(None, (), h) is None for site in hooks._sites)
        hooks._before_forward(llama.model, (ids,), {})
    assert not record.calls


def test_no_host_sync_and_nothing_per_step_before_the_layers():
    """Steering adds to a decode step only the formulas; no synchronisation, copy or mask."""
    language_model = tiny("llama")
    hooks = attach(language_model)
    counts = {}
    for name, edits in {"plain": None, "steered": ROWS}.items():
        for new in (3, 4):
            with Record() as record:
                if edits is None:
                    generate(language_model, PROMPTS, new=new)
                else:
                    with hooks.steer(edits):
                        # The first call fills the buffers.
                        generate(language_model, PROMPTS, new=new)
            counts[name, new] = record.calls
    for sync in ("_local_scalar_dense", "nonzero", "item", "is_nonzero"):
        assert counts["plain", 4][sync] == counts["steered", 4][sync]
    step = {name: counts[name, 4] - counts[name, 3] for name in ("plain", "steered")}
    added = step["steered"] - step["plain"]
    assert set(added) - VIEWS <= FORMULA
    assert added["addcmul"] == LAYERS
    assert added["baddbmm"] <= LAYERS


def addresses(hooks):
    tensors = [part for site in hooks._sites for part in (*site.rows, site.gate)]
    return [tensor.data_ptr() for tensor in tensors if tensor.numel()]


def test_buffers_keep_their_addresses():
    language_model = tiny("llama")
    hooks = attach(language_model)
    generate(language_model, PROMPTS, ROWS)
    before = addresses(hooks)
    generate(language_model, PROMPTS, ROWS[::-1])
    generate(language_model, PROMPTS, ADDITIVE, scope="all")
    generate(language_model, PROMPTS[:2], ROWS[:2], num_beams=3)
    logits_of(language_model.model)
    assert addresses(hooks) == before


# --- Types, placements, quantised weights --------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_half_precision(family, dtype):
    language_model = wrap_model(tiny_model(family).to(dtype), tiny_tokenizer())
    seen = []
    attach(language_model)
    for layer in language_model.layers:
        layer.register_forward_hook(
            lambda _, __, output: seen.append(
                (output if isinstance(output, torch.Tensor) else output[0]).dtype
            )
        )
    inputs = pad(PROMPTS)
    with torch.no_grad(), attach(language_model).steer(ROWS):
        steered = language_model.model(**inputs).logits
    assert steered.dtype == dtype
    assert set(seen) == {dtype}
    exact = tiny(family)
    with torch.no_grad(), attach(exact).steer(ROWS):
        expected = exact.model(**inputs).logits
    plain = logits_of(exact.model)
    for row in (0, 2, 3, 4):
        error = (steered[row, -1].float() - expected[row, -1]).norm()
        assert error < 0.25 * (expected[row, -1] - plain[row, -1]).norm()


def test_layers_placed_by_accelerate(greedy):
    model = accelerate.dispatch_model(tiny_model("llama"), {"": "cpu"}, force_hooks=True)
    language_model = wrap_model(model, tiny_tokenizer())
    check_against(greedy, *generate(language_model, PROMPTS, ROWS))


def test_layers_offloaded_by_accelerate(greedy):
    model = accelerate.cpu_offload(tiny_model("llama"), execution_device=torch.device("cpu"))
    language_model = wrap_model(model, tiny_tokenizer())
    check_against(greedy, *generate(language_model, PROMPTS, ROWS))


class Int8Linear(nn.Module):
    """Weight-only int8, as quantisation libraries store it: no floating-point parameter."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter(
            (linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False
        )
        self.register_buffer("scale", scale)

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).T


def test_weight_only_int8():
    model = tiny_model("llama")
    for layer in model.model.layers:
        for module in (layer.self_attn, layer.mlp):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
    language_model = wrap_model(model, tiny_tokenizer())
    expected = [
        oracle_greedy(language_model, p, edit) for p, edit in zip(PROMPTS, ROWS, strict=True)
    ]
    check_against(expected, *generate(language_model, PROMPTS, ROWS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamic_int8():
    """Activations are quantised with one scale a batch, so batches of one row are compared."""
    model = torch.ao.quantization.quantize_dynamic(tiny_model("llama"), {nn.Linear}, torch.qint8)
    language_model = wrap_model(model, tiny_tokenizer())
    for prompt, edit in zip(PROMPTS, ROWS, strict=True):
        with torch.no_grad(), attach(language_model).steer([edit], scope="all"):
            steered = language_model.model(torch.tensor([prompt]), use_cache=False).logits[0]
        expected = oracle_logits(language_model, prompt, edit, len(prompt), "all")
        torch.testing.assert_close(steered, expected, atol=5e-2, rtol=0)


# --- LayerEdits by hand --------------------------------------------------------------------------


def test_one_layer_by_hand(llama):
    """A single edit of known effect: the last layer's output is replaced by zero plus e."""
    rng = np.random.default_rng(0)
    e = rng.standard_normal(WIDTH).astype(np.float32)
    eye = np.eye(WIDTH, dtype=np.float32)
    replace = LayerEdit(e, eye, eye, np.full(WIDTH, -1, np.float32), np.zeros(WIDTH, bool))
    with torch.no_grad(), attach(llama).steer(Edit({LAYERS - 1: replace}), scope="all"):
        steered = llama.model(torch.tensor([PROMPTS[0]])).logits[0]
        final = llama.model.lm_head(llama.model.model.norm(torch.from_numpy(e)[None]))
    torch.testing.assert_close(steered, final.expand_as(steered), atol=ATOL, rtol=0)


def test_a_compiled_half_precision_model_is_plain_after_a_large_projection(dynamo):
    """What a graph still reads after the block must not overflow: infinity times 0 is not 0."""
    language_model = wrap_model(tiny_model("llama").half(), tiny_tokenizer())
    reference = tiny_model("llama").half()
    hooks = attach(language_model)
    model = compiled_layers(language_model.model, "eager")
    read = np.full((WIDTH, 1), 6e4, np.float32)
    write = np.full((WIDTH, 1), 1e-7, np.float32)
    nothing = np.zeros(WIDTH, np.float32)
    large = LayerEdit(nothing, read, write, np.ones(1, np.float32), np.ones(1, bool))
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        with hooks.steer(Edit({1: large}), scope="all"):
            model(ids, use_cache=False)
        found = model(ids, use_cache=False).logits
        expected = reference(ids, use_cache=False).logits
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
