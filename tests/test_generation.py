"""Decoding options, and batches whose rows leave as they end."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from steer import generation
from steer.edits import Edit, additive
from steer.errors import InputError
from steer.generation import (
    Decoding,
    chat_key,
    encode,
    generate_batch,
    prompt_tokens,
    turn_end,
)
from steer.hooks import attach
from steer.likelihood import mean_log_likelihood
from steer.models import LanguageModel
from steer.repetition import NoRepeatedNGrams, RepetitionPenalty
from tests.models import EOS, FAMILIES, LAYERS, WIDTH, tiny

TEXTS = ["Hi", "How are you?", "Tell me about rain.", "Why?", "One two three", "No", "Go", "Ah"]


def an_edit(seed: int) -> Edit:
    rng = np.random.default_rng(seed)
    return additive(
        {
            layer: 0.3 * rng.normal(size=WIDTH).astype(np.float32)
            for layer in range(1 + seed % 2, LAYERS)
        }
    )


EDITS = [None if i == 3 else an_edit(i % 5) for i in range(len(TEXTS))]


def ending(family: str) -> LanguageModel:
    """A model that ends its answers at different lengths: every fifth token is an end."""
    language_model = tiny(family)
    language_model.model.generation_config.eos_token_id = list(range(4, 97, 5))
    return language_model


def one_call(language_model: LanguageModel, decoding: Decoding) -> list[tuple[int, ...]]:
    """`model.generate`, once, cut after the first end by a plain loop."""
    inputs = encode(language_model, TEXTS)
    with attach(language_model).steer(EDITS):
        options = decoding.options(inputs["input_ids"].shape[1])
        output = language_model.model.generate(
            **inputs, **options, pad_token_id=language_model.tokenizer.pad_token_id
        )
    answers = []
    for row in output[:, inputs["input_ids"].shape[1] :].tolist():
        answer = []
        for token in row:
            answer.append(token)
            if token % 5 == 4:
                break
        answers.append(tuple(answer))
    return answers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("segment", [1, 3, 8])
def test_rows_that_leave_change_no_token(
    family: str, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_SEGMENT", segment)
    language_model = ending(family)
    decoding = Decoding(max_new_tokens=19, no_repeat_ngram_size=3, repetition_penalty=1.3)
    expected = one_call(language_model, decoding)
    lengths = {len(answer) for answer in expected}
    assert len(lengths) > 2, "the answers end at one time; this tests nothing"
    with attach(language_model).steer(EDITS):
        found = generate_batch(language_model, TEXTS, decoding)
    assert [answer.tokens for answer in found] == expected
    assert [answer.ended for answer in found] == [answer[-1] % 5 == 4 for answer in expected]


def test_the_penalty_looks_at_the_answer_alone() -> None:
    """Against a plain loop; transformers' own argument, which counts the prompt, differs."""
    language_model = tiny("llama")
    inputs = encode(language_model, TEXTS[2:3])
    ids = inputs["input_ids"][0].tolist()
    answer: list[int] = []
    for _ in range(24):
        with torch.no_grad():
            logits = language_model.model(torch.tensor([ids + answer])).logits[0, -1]
        for token in set(answer):
            logits[token] = logits[token] / 3 if logits[token] > 0 else logits[token] * 3
        answer.append(int(logits.argmax()))
    decoding = Decoding(max_new_tokens=24, repetition_penalty=3.0, no_repeat_ngram_size=None)
    assert generate_batch(language_model, TEXTS[2:3], decoding)[0].tokens == tuple(answer)
    theirs = language_model.model.generate(**inputs, max_new_tokens=24, repetition_penalty=3.0)
    assert theirs[0, len(ids) :].tolist() != answer


@pytest.mark.parametrize("minimum", [2, 5, 9])
def test_shortest_answer_counts_all_segments(minimum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_SEGMENT", 4)
    language_model = ending("llama")
    decoding = Decoding(max_new_tokens=14, min_new_tokens=minimum)
    with attach(language_model).steer(EDITS):
        found = generate_batch(language_model, TEXTS, decoding)
    assert [answer.tokens for answer in found] == one_call(language_model, decoding)
    assert min(len(answer.tokens) for answer in found) >= minimum


def test_rows_that_ended_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "_SEGMENT", 2)
    language_model = ending("llama")
    rows: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs["input_ids"]))

    handle = language_model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        found = generate_batch(language_model, TEXTS, Decoding(max_new_tokens=40))
    finally:
        handle.remove()
    # A row may be computed until the end of the segment in which it ended.
    needed = [2 * -(-len(answer.tokens) // 2) for answer in found]
    assert sum(rows) <= sum(needed)
    assert rows[-1] < len(TEXTS)


def test_a_block_steers_the_next_batch_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rows of the first one had left, and a batch of another size came between."""
    monkeypatch.setattr(generation, "_SEGMENT", 2)
    language_model, decoding = ending("llama"), Decoding(max_new_tokens=40)
    lengths = [len(answer) for answer in one_call(language_model, decoding)]
    assert len(set(lengths)) > 2
    with attach(language_model).steer(EDITS):
        first = generate_batch(language_model, TEXTS, decoding)
        second = generate_batch(language_model, TEXTS, decoding)
        twice = generate_batch(language_model, np.repeat(TEXTS, 2).tolist(), decoding)
    assert second == first
    assert twice == [answer for answer in first for _ in range(2)]


def test_other_passes_of_the_model_do_not_count_as_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As methods make them, which read the model under other prompts between two tokens."""
    monkeypatch.setattr(generation, "_SEGMENT", 2)
    language_model, decoding = ending("llama"), Decoding(max_new_tokens=40)
    expected = generate_batch(language_model, TEXTS, decoding)

    class Reading:
        """Scores as they are; one to five other rows go through the model each time."""

        rows = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.rows = self.rows % 5 + 1
            language_model.model(torch.full((self.rows, 3), 7))
            return scores

        def keep_rows(self, rows: torch.Tensor) -> None:
            pass

    with attach(language_model).steer([None] * len(TEXTS)):
        found = generate_batch(language_model, TEXTS, decoding, processors=[Reading()])
        assert generate_batch(language_model, TEXTS[:3], decoding) == expected[:3]
    assert found == expected


@pytest.mark.parametrize(
    "settings", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_a_models_own_settings_of_its_cache_change_no_token(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_SEGMENT", 3)
    language_model, decoding = ending("llama"), Decoding(max_new_tokens=19)
    expected = one_call(language_model, decoding)
    language_model.model.generation_config.update(**settings)
    with attach(language_model).steer(EDITS):
        found = generate_batch(language_model, TEXTS, decoding)
    assert [answer.tokens for answer in found] == expected


def test_a_seed_is_for_the_devices_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of others, which may sample meanwhile, are left alone, and its own as they were."""
    language_model, decoding = tiny("llama"), Decoding(max_new_tokens=8, do_sample=True)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    first, other = (generate_batch(language_model, TEXTS, decoding, seed=seed) for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert generate_batch(language_model, TEXTS, decoding, seed=1) == first != other
    assert not seeded


def test_one_edit_for_all_rows_stays_on_those_that_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    language_model = ending("llama")
    decoding = Decoding(max_new_tokens=19)
    answers = []
    for segment in (2, 100):
        monkeypatch.setattr(generation, "_SEGMENT", segment)
        with attach(language_model).steer(an_edit(1)):
            answers.append(generate_batch(language_model, TEXTS, decoding))
    assert answers[0] == answers[1]


def test_sampled_rows_do_not_hang_on_the_length_of_others() -> None:
    language_model = ending("llama")
    decoding = Decoding(max_new_tokens=40, do_sample=True, no_repeat_ngram_size=None)
    torch.manual_seed(5)
    expected = one_call(language_model, decoding)
    with attach(language_model).steer(EDITS):
        found = generate_batch(language_model, TEXTS, decoding, seed=5)
    assert [answer.tokens for answer in found] == expected


def test_first_attached_in_inference_mode() -> None:
    """The first batch may attach the hooks; blocks outside inference mode fill them later."""
    language_model = tiny("llama")
    with torch.inference_mode():
        attach(language_model)
    with attach(language_model).steer(an_edit(1)):
        language_model.model(**encode(language_model, TEXTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_beams": 0}, "num_beams"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature"),
        ({"do_sample": True, "top_p": 0.0}, "top_p"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"temperature": 0.5}, "do_sample"),
        ({"min_new_tokens": 10, "max_new_tokens": 4}, "min_new_tokens: expected at most"),
        ({"max_new_tokens": "4"}, "max_new_tokens: expected a whole number"),
        ({"max_new_tokens": 4.5}, "max_new_tokens"),
        ({"max_new_tokens": None}, "max_new_tokens"),
        ({"min_new_tokens": "x"}, "min_new_tokens"),
        ({"do_sample": "no"}, "do_sample: expected true or false"),
        ({"do_sample": True, "temperature": "hot"}, "temperature: expected a number"),
        ({"do_sample": True, "temperature": 10**400}, "temperature"),
        ({"do_sample": True, "top_p": "0.5"}, "top_p"),
        ({"do_sample": True, "top_k": 2.5}, "top_k"),
        ({"num_beams": 2.5}, "num_beams"),
        ({"repetition_penalty": None}, "repetition_penalty"),
        ({"no_repeat_ngram_size": 2.5}, "no_repeat_ngram_size"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Decoding(**options)


def test_options_are_numbers_of_any_kind() -> None:
    given = Decoding(np.int64(8), do_sample=True, temperature=np.float32(0.5), top_k=np.int32(3))
    assert given == Decoding(8, do_sample=True, temperature=0.5, top_k=3)
    assert Decoding.from_json(json.loads(json.dumps(asdict(given))), "here") == given


# --- The end of a turn ---------------------------------------------------------------------------

MARKED = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ '|' if message['role'] == 'assistant' else ';' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_chat_has_a_key() -> None:
    keys = [chat_key(tiny("llama")), chat_key(tiny("gpt2"))]
    assert keys[0] == keys[1]
    other = tiny("llama")
    other.tokenizer.chat_template = other.tokenizer.chat_template.replace("user", "person") + " "
    keys.append(chat_key(other))
    other.tokenizer.chat_template = None
    keys.append(chat_key(other))
    other = tiny("llama")
    written = json.loads(other.tokenizer.backend_tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))
    keys.append(chat_key(other))
    assert len(set(keys)) == 4


def test_what_a_model_has_no_positions_for_is_refused() -> None:
    text, longest, longer = "a" * 100, Decoding(max_new_tokens=12), Decoding(max_new_tokens=13)
    model = tiny("gpt2", n_positions=112)
    prompt = prompt_tokens(model, text)
    assert len(generate_batch(model, [text], longest)[0].tokens) == 12
    mean_log_likelihood(model, [(prompt, [5] * 12)])
    with pytest.raises(InputError, match="knows 112 positions.* got 100 .* up to 13 "):
        generate_batch(model, ["Hi", text], longer)
    with pytest.raises(InputError, match="knows 112 positions"):
        mean_log_likelihood(model, [(prompt, [5] * 13)])
    # It computes its positions.
    computes = tiny("llama", max_position_embeddings=112)
    assert generate_batch(computes, [text], longer)[0].tokens


def test_a_turn_ends_as_the_template_ends_it() -> None:
    """Which is not always by the end of text that the tokenizer names."""
    model = tiny("llama")
    bar, semicolon = model.tokenizer("|;", add_special_tokens=False).input_ids
    assert turn_end(model) == EOS
    model.tokenizer.chat_template = MARKED
    assert turn_end(model) == EOS  # nothing that it writes ends an answer
    model.model.generation_config.eos_token_id = [EOS, semicolon, bar]
    assert turn_end(model) == bar  # and not what ends the user's
    model.tokenizer.chat_template = "{{ raise_exception('one turn') if messages|length > 1 }}?"
    assert turn_end(model) == EOS
    model.tokenizer.chat_template = None
    assert turn_end(model) == EOS
    model.tokenizer.eos_token = None
    assert turn_end(model) == min(EOS, semicolon, bar)
    model.model.generation_config.eos_token_id = None
    assert turn_end(model) is None


def test_processors_come_after_what_is_ruled_out_and_before_the_penalty() -> None:
    own = object()
    found = Decoding().options(3, [own])["logits_processor"]  # type: ignore[list-item]
    assert [type(one) for one in found] == [NoRepeatedNGrams, object, RepetitionPenalty]
    assert found[1] is own


@pytest.mark.parametrize("segment", [3, 100])
def test_a_models_own_penalties_are_not_added(
    segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_SEGMENT", segment)
    language_model = ending("llama")
    for decoding in (
        Decoding(max_new_tokens=19),
        Decoding(max_new_tokens=19, repetition_penalty=1),
    ):
        expected = generate_batch(language_model, TEXTS, decoding)
        language_model.model.generation_config.update(
            repetition_penalty=4.0, no_repeat_ngram_size=1
        )
        assert generate_batch(language_model, TEXTS, decoding) == expected
        language_model.model.generation_config.update(
            repetition_penalty=None, no_repeat_ngram_size=None
        )
