"""The engine over transformers' continuous batching: each answer is what it is alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)

from transformers.generation.continuous_batching.cache import PagedAttentionMemoryHandler
from transformers.generation.continuous_batching.requests import RequestState

from steer.chat import render
from steer.edits import ZERO, Edit, LayerEdit
from steer.errors import InputError, SteeringError
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import attach
from steer.kernel import apply
from steer.models import LanguageModel
from steer.serve.choosing import Choice
from steer.serve.continuous import ContinuousEngine, Room, continuous_config
from steer.serve.engine import Job, Progress
from steer.serve.slots import Slots
from tests.models import EOS, LAYERS, VOCABULARY, WIDTH, tiny
from tests.test_generation import an_edit

PROMPTS = ["Hi", "How are you today?", "Tell me about rain.", "Why?", "Name a book.", "x" * 90]
EDITS = [an_edit(1), an_edit(2), ZERO, an_edit(3), an_edit(1), an_edit(4)]
PLAIN = Decoding(max_new_tokens=12, repetition_penalty=1.0, no_repeat_ngram_size=None)
USUAL = Decoding(max_new_tokens=12)
ROOM = Room(rows=4, step_tokens=48, cache_tokens=2048, page=16)


def jobs_of(
    model: LanguageModel, decodings: Sequence[Decoding], edits: Sequence[Edit] = EDITS
) -> list[Job]:
    return [
        Job(tuple(prompt_tokens(model, render(model.tokenizer, prompt))), edit, decoding)
        for prompt, edit, decoding in zip(PROMPTS, edits, decodings, strict=True)
    ]


def alone(model: LanguageModel, job: Job, prompt: str) -> tuple[int, ...]:
    with attach(model).steer(job.edit, scope=job.scope):
        return generate_batch(model, [render(model.tokenizer, prompt)], job.decoding)[0].tokens


def run(engine: ContinuousEngine, jobs: Sequence[Job], wait: float = 0.0) -> list[list[Progress]]:
    """What is told of each job; they come one after the other."""

    async def all_of_them() -> list[list[Progress]]:
        told: list[list[Progress]] = [[] for _ in jobs]
        ends = [asyncio.Event() for _ in jobs]

        def listener(i: int) -> Callable[[Progress], None]:
            def tell(progress: Progress) -> None:
                told[i].append(progress)
                if progress.done:
                    ends[i].set()

            return tell

        for i, job in enumerate(jobs):
            engine.submit(f"job {i}", job, listener(i))
            await asyncio.sleep(wait)
        await asyncio.wait_for(asyncio.gather(*(end.wait() for end in ends)), 60)
        return told

    return asyncio.run(all_of_them())


@pytest.fixture()
def engine():
    started = ContinuousEngine(tiny("llama"), ROOM)
    started.start()
    yield started
    started.stop()


def test_it_has_begun_when_start_returns():
    model = tiny("llama")
    (job,) = jobs_of(model, [PLAIN] * len(PROMPTS))[:1]
    expected = alone(model, job, PROMPTS[0])
    started = ContinuousEngine(model, ROOM)
    started.start()
    try:
        # What else uses the model finds hooks that know what is going on: nothing.
        assert alone(model, job, PROMPTS[0]) == expected
    finally:
        started.stop()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "olmo2"])
def test_every_row_is_as_it_is_alone(family):
    model = tiny(family)
    jobs = jobs_of(model, [PLAIN, USUAL, USUAL, PLAIN, USUAL, PLAIN])
    jobs[3] = replace(jobs[3], scope="all")
    expected = [alone(model, job, prompt) for job, prompt in zip(jobs, PROMPTS, strict=True)]
    engine = ContinuousEngine(model, ROOM)
    engine.start()
    try:
        # More jobs than rows, a prompt longer than a step, and they come while others are written.
        told = run(engine, jobs, wait=0.02)
    finally:
        engine.stop()
    assert [one[-1].tokens for one in told] == expected
    assert all(one[-1].done and one[-1].error is None for one in told)
    unsteered = [alone(model, replace(job, edit=ZERO), p) for job, p in zip(jobs, PROMPTS)]  # noqa: B905
    changed = [one != other for one, other in zip(expected, unsteered, strict=True)]
    assert sum(changed) >= 3  # the test would pass on a model that edits do not move
    assert engine.edits_in_use == 0


def test_every_token_is_told(engine):
    job = jobs_of(engine.language_model, [PLAIN] * 6)[1]
    ((*before, last),) = run(engine, [job])
    assert [len(one.tokens) for one in before] == list(range(1, 12))
    assert all(one.tokens == last.tokens[: len(one.tokens)] for one in before)
    assert last.done and not last.ended and len(last.tokens) == 12


def test_an_answer_ends_at_the_end_token():
    model = tiny("llama")
    job = jobs_of(model, [PLAIN] * 6)[1]
    model.model.generation_config.eos_token_id = alone(model, job, PROMPTS[1])[4]
    expected = alone(model, job, PROMPTS[1])
    engine = ContinuousEngine(model, ROOM)
    engine.start()
    try:
        (told,) = run(engine, [job])
    finally:
        engine.stop()
    assert told[-1].tokens == expected and told[-1].ended and len(expected) <= 5


@pytest.mark.parametrize("size", [1e30, 1e38])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "olmo2"])
def test_an_edit_out_of_all_bounds_is_its_own_requests_trouble(family, size):
    model = tiny(family)
    wild = Edit(
        {i: LayerEdit(size * one.e, *a_projection(size)) for i, one in an_edit(1).layers.items()}
    )
    jobs = jobs_of(model, [PLAIN] * 6)
    expected = [alone(model, job, prompt) for job, prompt in zip(jobs, PROMPTS, strict=True)]
    engine = ContinuousEngine(model, ROOM)
    engine.start()
    try:
        for scope in ("response", "all"):
            told = run(engine, [replace(jobs[0], edit=wild, scope=scope), *jobs[1:]])
            assert [one[-1].tokens for one in told[1:]] == expected[1:]
            assert told[0][-1].done and told[0][-1].error is None
        # Nothing of it is left in the cache.
        assert [one[-1].tokens for one in run(engine, jobs)] == expected
    finally:
        engine.stop()


def a_projection(size):
    read, written = np.random.default_rng(5).normal(size=(2, WIDTH, 2)).astype(np.float32)
    return read, np.float32(size) * written, np.ones(2, np.float32), np.zeros(2, bool)


def test_keys_of_one_edit_are_not_read_under_another(engine):
    # The same prompt over several pages of the cache, steered and not, in turn.
    model = engine.language_model
    prompt = "Tell me of the rain, and of the sun. " * 4
    ids = tuple(prompt_tokens(model, render(model.tokenizer, prompt)))
    jobs = [Job(ids, edit, PLAIN, scope="all") for edit in (an_edit(1), ZERO, an_edit(2), ZERO)]
    for job in jobs:
        (told,) = run(engine, [job])
        with attach(model).steer(job.edit, scope="all"):
            text = render(model.tokenizer, prompt)
            expected = generate_batch(model, [text], PLAIN)[0].tokens
        assert told[-1].tokens == expected


def test_requests_that_do_not_fit_into_the_cache_together_are_begun_anew(monkeypatch):
    anew = []
    begin = RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        RequestState,
        "create_equivalent_initial_request",
        lambda state: (anew.append(len(state.generated_tokens)), begin(state))[1],
    )
    model = tiny("llama")
    long = Decoding(max_new_tokens=90, no_repeat_ngram_size=None)
    jobs = jobs_of(model, [long] * 6)[:4]
    jobs = [replace(job, scope="all") if i == 1 else job for i, job in enumerate(jobs)]
    expected = [alone(model, job, prompt) for job, prompt in zip(jobs, PROMPTS, strict=False)]
    engine = ContinuousEngine(model, replace(ROOM, cache_tokens=160))
    engine.start()
    try:
        told = run(engine, jobs)
    finally:
        engine.stop()
    assert [one[-1].error for one in told] == [None] * 4
    assert [one[-1].tokens for one in told] == expected
    assert anew and max(anew) > 0  # in the middle of an answer


def test_a_cancelled_request_is_told_nothing_more_and_frees_its_slot(engine):
    long = replace(PLAIN, max_new_tokens=200)
    jobs = jobs_of(engine.language_model, [long] + [PLAIN] * 5)

    async def go() -> tuple[list[Progress], list[Progress]]:
        first: list[Progress] = []
        second: list[Progress] = []
        end = asyncio.Event()
        engine.submit("first", jobs[0], first.append)
        engine.submit(
            "second", jobs[1], lambda one: (second.append(one), end.set() if one.done else None)
        )
        while not first:
            await asyncio.sleep(0.01)
        engine.cancel("first")
        engine.cancel("first")
        engine.cancel("nobody")
        number = len(first)
        await asyncio.wait_for(end.wait(), 60)
        await asyncio.sleep(0.1)
        assert len(first) == number < 200
        return first, second

    _, second = asyncio.run(go())
    assert second[-1].tokens == alone(engine.language_model, jobs[1], PROMPTS[1])
    assert engine.edits_in_use == 0
    # Its row is free: as many as there are rows are answered again.
    assert len(run(engine, jobs[1:5])) == 4


def test_who_waits_is_answered_when_all_others_were_cancelled():
    model = tiny("llama")
    model.model.generation_config.eos_token_id = [-1]
    long = replace(PLAIN, max_new_tokens=200)
    jobs = jobs_of(model, [long] * 4 + [PLAIN] * 2)
    # Four answers fill it, and one of them has to wait.
    engine = ContinuousEngine(model, replace(ROOM, cache_tokens=320))
    engine.start()
    scheduler = engine._manager.batch_processor.scheduler

    async def go() -> list[Progress]:
        told: list[Progress] = []
        end = asyncio.Event()
        for i in range(4):
            engine.submit(f"long {i}", jobs[i], lambda _: None)
        while not scheduler.block_new_requests:
            await asyncio.sleep(0.001)
        engine.submit("new", jobs[4], lambda one: (told.append(one), one.done and end.set()))
        for i in range(4):
            engine.cancel(f"long {i}")
        await asyncio.wait_for(end.wait(), 20)
        return told

    try:
        assert asyncio.run(go())[-1].error is None
    finally:
        engine.stop(timeout=1)


def test_an_edit_may_come_while_its_table_is_made_larger(monkeypatch):
    model = tiny("llama")
    model.model.generation_config.eos_token_id = [-1]
    jobs = jobs_of(model, [replace(PLAIN, max_new_tokens=150), PLAIN] * 3)[:2]
    # The second edit is of more layers than the first.
    jobs[0] = replace(jobs[0], edit=Edit(dict(list(an_edit(1).layers.items())[:1])))
    expected = [alone(model, job, prompt) for job, prompt in zip(jobs, PROMPTS, strict=False)]
    engine = ContinuousEngine(model, ROOM)
    passes: list[int] = []
    write = Slots._write

    # As if the engine's thread went on between two steps of the one that takes requests on.
    def slow(*given):
        begun = len(passes)
        while engine.edits_in_use and engine.healthy and len(passes) < begun + 3:
            time.sleep(0.001)
        write(*given)

    monkeypatch.setattr(Slots, "_write", slow)
    engine.start()
    handle = model.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        told = run(engine, jobs, wait=0.15)
    finally:
        engine.stop()
        handle.remove()
    assert [one[-1].error for one in told] == [None, None]
    assert [one[-1].tokens for one in told] == expected


def test_an_engine_that_cannot_start_says_so_and_leaves_the_model():
    model = tiny("llama")
    engine = ContinuousEngine(model, replace(ROOM, cache_tokens=10**13))
    with pytest.raises(SteeringError, match="did not start") as told:
        engine.start()
    assert told.value.__cause__ is not None and not engine.healthy
    assert not model.model._forward_hooks and not model.model._forward_pre_hooks
    assert not any(layer._forward_hooks for layer in model.layers)


def test_what_does_not_fit_is_refused(engine):
    model = engine.language_model
    width = WIDTH + 1
    wide = Edit({0: replace_width(an_edit(1), width)})
    for job, message in (
        (Job((), ZERO, PLAIN), "at most"),
        (Job((5,) * 600, ZERO, PLAIN), "at most 512"),
        (Job((5,), ZERO, replace(PLAIN, num_beams=2)), "beams"),
        (Job((5,), wide, PLAIN), "does not fit"),
        (Job((5, VOCABULARY), ZERO, PLAIN), f"below {VOCABULARY}"),
    ):
        with pytest.raises(InputError, match=message):
            engine.submit("x", job, lambda _: None)
    assert engine.edits_in_use == 0 and engine.healthy
    with pytest.raises(SteeringError, match="running already"):
        engine.start()
    stopped = ContinuousEngine(model, ROOM)
    with pytest.raises(SteeringError, match="does not run"):
        stopped.submit("x", Job((5,), ZERO, PLAIN), lambda _: None)


def replace_width(edit, width):
    from steer.edits import additive

    return additive({0: np.ones(width, np.float32)}).layers[0]


def test_what_there_is_memory_for_is_all_that_fits(monkeypatch):
    # As on a GPU, where nobody says how many tokens are held.
    monkeypatch.setattr(
        "steer.serve.continuous.continuous_config",
        lambda *given: replace(continuous_config(*given), num_blocks=None),
    )
    monkeypatch.setattr(PagedAttentionMemoryHandler, "get_available_memory", lambda _: 300_000)
    model = tiny("llama")
    model.model.generation_config.eos_token_id = [-1]
    engine = ContinuousEngine(model, ROOM)
    assert engine.longest == 512
    engine.start()
    try:
        longest = engine.longest
        assert 100 < longest < 300 and longest % ROOM.page == 0
        fits = Job((5,) * (longest - 12), ZERO, PLAIN)
        ((*_, last),) = run(engine, [fits])
        assert last.error is None and len(last.tokens) == 12
        with pytest.raises(InputError, match=f"at most {longest} tokens"):
            engine.submit("x", replace(fits, prompt=(*fits.prompt, 5)), lambda _: None)
        assert engine.healthy
    finally:
        engine.stop()


def test_a_model_is_as_it_was_after_stopping():
    model = tiny("llama")
    attach(model)
    before = [len(layer._forward_hooks) for layer in model.layers]
    text = render(model.tokenizer, "Hi")
    expected = generate_batch(model, [text], USUAL)[0].tokens
    engine = ContinuousEngine(model, ROOM)
    engine.start()
    run(engine, jobs_of(model, [USUAL] * 6))
    engine.stop()
    assert not engine.healthy
    assert [len(layer._forward_hooks) for layer in model.layers] == before
    assert generate_batch(model, [text], USUAL)[0].tokens == expected
    engine.stop()  # a second time does nothing


def test_a_failure_is_told_and_the_engine_is_not_healthy(engine):
    job = jobs_of(engine.language_model, [PLAIN] * 6)[0]

    def breaks(*_: object) -> None:
        raise RuntimeError("no memory")

    handle = engine.language_model.layers[1].register_forward_pre_hook(breaks)
    (told,) = run(engine, [job])
    handle.remove()
    assert told[-1].error is not None and told[-1].done
    for _ in range(200):
        if not engine.healthy:
            break
        time.sleep(0.01)
    assert not engine.healthy and engine.edits_in_use == 0


# --- Choosing ------------------------------------------------------------------------------------


def test_what_is_sampled_hangs_on_the_seed_alone(engine):
    decoding = replace(PLAIN, do_sample=True, temperature=1.5)
    jobs = [
        replace(job, seed=7 + i)
        for i, job in enumerate(jobs_of(engine.language_model, [decoding] * 6))
    ]
    together = [one[-1].tokens for one in run(engine, jobs)]
    single = [run(engine, [job])[0][-1].tokens for job in jobs]
    assert together == single
    other = [run(engine, [replace(job, seed=99)])[0][-1].tokens for job in jobs]
    assert together != other


def test_samples_follow_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    decoding = replace(PLAIN, do_sample=True, temperature=0.7, top_k=4)
    number = 4000
    chosen = []
    for seed in range(8):
        choice = Choice(decoding, [0, 1], [], GenerationConfig(), seed)
        chosen += [int(choice(range(n), logits.clone()).argmax()) for n in range(number // 8)]
    found = torch.bincount(torch.tensor(chosen), minlength=5)
    scaled = logits / 0.7
    scaled[3] = -torch.inf
    expected = scaled.softmax(-1)
    assert found[3] == 0
    error = (expected * (1 - expected) / number).sqrt()
    assert ((found / number - expected).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("seed", [3, None])
def test_noise_hangs_on_the_seed_and_the_number_of_the_token_alone(seed):
    """As engines ask that read prompts in parts, or begin anew in the midst of an answer."""
    decoding = replace(PLAIN, do_sample=True)
    choice = Choice(decoding, [0, 1], [], GenerationConfig(), seed)
    logits = torch.zeros(50)
    expected = [choice(range(n), logits) for n in range(6)]
    assert len({tuple(one.tolist()) for one in expected}) == 6
    if seed is not None:  # what has always been drawn for it
        generator = torch.Generator().manual_seed(seed)
        for one in expected:
            uniform = torch.rand(1, 50, generator=generator, dtype=torch.float64)
            torch.testing.assert_close(one, -(-uniform.log()).log()[0].float())
    for n in (0, 0, 1, 1, 5, 2, 3, 0):
        assert torch.equal(choice(range(n), logits), expected[n])
    if seed is not None:
        resumed = Choice(decoding, [0, 1], [], GenerationConfig(), seed)
        assert all(torch.equal(resumed(range(n), logits), expected[n]) for n in (4, 5))


def test_greedy_choices_are_those_of_generate():
    # min_new_tokens, penalty and n-grams in one: the engine's rows against `model.generate`'s.
    model = tiny("llama")
    model.model.generation_config.eos_token_id = EOS
    decoding = Decoding(
        max_new_tokens=20, min_new_tokens=6, repetition_penalty=1.4, no_repeat_ngram_size=3
    )
    job = jobs_of(model, [decoding] * 6)[0]
    expected = alone(model, job, PROMPTS[0])
    engine = ContinuousEngine(model, ROOM)
    engine.start()
    try:
        (told,) = run(engine, [job])
    finally:
        engine.stop()
    assert told[-1].tokens == expected


class _OneDevice(TorchDispatchMode):
    """Refuses tensors of two devices in one operation, as a GPU does; scalars may come along."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        met = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()}
        assert len(met) < 2, (func, met)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("answer", [[], [3], [3, 4]])
def test_an_answer_does_not_end_before_its_least_length(answer):
    decoding = replace(PLAIN, min_new_tokens=2)
    ends = [2, 4, -1, 99]
    choice = Choice(decoding, [0, 1], ends, GenerationConfig(), None)
    assert not choice.plain
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
    expected = logits.clone()
    if len(answer) < 2:
        expected[[2, 4]] = -torch.inf
    torch.testing.assert_close(choice(answer, logits.clone()), expected)
    # Nothing of it stays on the CPU where the scores are elsewhere.
    with _OneDevice():
        assert choice(answer, logits.to("meta")).device.type == "meta"


def test_the_likeliest_token_needs_no_processing():
    assert Choice(PLAIN, [1], [], GenerationConfig(), None).plain
    assert not Choice(USUAL, [1], [], GenerationConfig(), None).plain
    assert not Choice(replace(PLAIN, do_sample=True), [1], [], GenerationConfig(), None).plain


# --- Slots ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 11), st.booleans()), min_size=1, max_size=60))
def test_slots_hold_just_the_edits_in_use(steps):
    model = tiny("llama")
    slots = Slots.of(model)
    edits = [ZERO, *(an_edit(seed) for seed in range(1, 12))]
    held: list[tuple[int, int]] = []  # (edit, slot)
    for which, leaves in steps:
        if leaves and held:
            _, slot = held.pop(which % len(held))
            slots.give_back(slot)
        else:
            held.append((which, slots.take(edits[which])))
        assert slots.in_use == len({edit for edit, _ in held if edit})
        assert len({slot for _, slot in held}) == len({edit for edit, _ in held})
    x = torch.randn(len(held), WIDTH)
    index = torch.tensor([slot for _, slot in held], dtype=torch.long)
    for layer in range(LAYERS):
        if layer not in slots.tables or not held:
            continue
        found = apply(x, index, slots.tables[layer], torch.ones(len(held), 1))
        for row, (edit, _) in enumerate(held):
            part = edits[edit].layers.get(layer)
            expected = x[row].numpy().astype(np.float64)
            if part is not None:
                read = expected @ part.v
                read = np.where(part.relu, np.maximum(read, 0), read)
                expected = expected + part.e + part.u @ (read * part.c)
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_tables_that_grow_and_widen_keep_what_they_hold():
    """Edits behind a gate read the stream as well: of rank one, and of others."""
    slots = Slots.of(tiny("llama"))
    rng = np.random.default_rng(0)

    def projecting(rank: int) -> Edit:
        draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
        return Edit(
            {
                layer: LayerEdit(
                    draw(WIDTH),
                    draw(WIDTH, rank),
                    draw(WIDTH, rank),
                    draw(rank),
                    rng.random(rank) < 0.7,
                )
                for layer in (1, 2)
            }
        )

    # Ten of them outgrow the first room; ranks rise and fall.
    edits = [projecting(rank) for rank in (1, 1, 2, 0, 3, 1, 2, 4, 1, 1)]
    taken = [slots.take(edit) for edit in edits]
    x = torch.randn(len(edits), WIDTH)
    for layer in (1, 2):
        found = apply(x, torch.tensor(taken), slots.tables[layer], torch.ones(len(edits), 1))
        for row, edit in enumerate(edits):
            expected = edit.layers[layer].apply(x[row].numpy())
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-4, atol=1e-3)


def test_what_a_decoding_leaves_open_is_the_models_own():
    own = GenerationConfig(temperature=0.4, top_k=3, top_p=0.8)
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    sampled = replace(PLAIN, do_sample=True)
    said = replace(sampled, temperature=0.4, top_k=3, top_p=0.8)
    for n in range(4):
        found = Choice(sampled, [0], [], own, 5)(range(n), logits)
        expected = Choice(said, [0], [], GenerationConfig(), 5)(range(n), logits)
        assert torch.equal(found, expected)
        # What is asked for comes before the model's own.
        other = Choice(replace(said, temperature=2.0), [0], [], own, 5)(range(n), logits)
        assert not torch.equal(found, other)


def test_a_name_in_flight_is_not_taken_twice(engine):
    job = jobs_of(engine.language_model, [replace(PLAIN, max_new_tokens=100)] * 6)[0]

    async def twice() -> None:
        engine.submit("x", job, lambda _: None)
        with pytest.raises(InputError, match="'x' is being answered already"):
            engine.submit("x", job, lambda _: None)
        engine.cancel("x")

    asyncio.run(twice())
    assert engine.edits_in_use == 0
