"""The whole path on the packaged model: what a user is promised, checked where it is real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import steer
from steer.chat import render
from steer.edits import ZERO, Edit, compose
from steer.errors import BundleError, FingerprintError, WeightsError
from steer.generation import Decoding, encode, end_tokens, finish
from steer.history import HistoryItem
from steer.hooks import attach
from steer.measures import TRAIT_MEASURES, is_coherent
from steer.models import LanguageModel
from steer.packaged import packaged_model_dir
from steer.profile import Profile
from steer.prompts import load_prompts
from steer.relevance import THRESHOLD, relevance
from steer.resources import default_bundle_path
from steer.steerer import Steerer
from tests.models import tiny

pytestmark = pytest.mark.real

QUESTION = "How do I sleep better?"
PROMPTS = [prompt.text for prompt in load_prompts("develop")]


@pytest.fixture(scope="module")
def steerer() -> Steerer:
    return steer.load()


def test_brevity_halves_the_answer(steerer: Steerer) -> None:
    plain, brief = steerer.answer([QUESTION] * 2, [None, {"brevity": 1.0}])
    assert brief.ended
    assert len(brief.tokens) < len(plain.tokens) / 2
    assert is_coherent(brief.text)
    assert relevance([QUESTION], [brief.text])[0] >= THRESHOLD
    assert steer.generate(QUESTION, {"brevity": 1.0}) == brief.text


@pytest.mark.parametrize(
    "method", ["system-prompt", "few-shot", "logit-rectification", "multi-objective"]
)
def test_other_ways_shorten_answers_too(steerer: Steerer, method: str) -> None:
    decoding = Decoding(max_new_tokens=96)
    prompts = PROMPTS[-3:]
    plain = steerer.answer(prompts, None, decoding=decoding)
    brief = steerer.answer(prompts, {"brevity": 1.0}, method=method, decoding=decoding)
    assert sum(len(one.tokens) for one in brief) < 0.8 * sum(len(one.tokens) for one in plain)
    assert all(is_coherent(one.text) for one in brief)


def test_a_summary_is_worth_something(steerer: Steerer) -> None:
    """The best of several has the least loss, and costs few tokens."""
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None
    history = [
        HistoryItem(one.answers[1], prompt=one.prompt, disliked=one.answers[0])
        for one in portfolio.answered[:3]
    ]
    first, best = (steer.summarise(steerer.language_model, history, number=n) for n in (1, 4))
    assert first.loss is not None and best.loss is not None
    assert best.loss <= first.loss
    assert best.text.startswith("I like answers that") and best.tokens < best.read / 10


def test_every_measured_trait_moves_the_right_way(steerer: Steerer) -> None:
    prompts = PROMPTS[-8:]  # not among those on which doses were searched
    settings = [None, *({name: 1.0} for name in TRAIT_MEASURES)]
    rows = [weights for weights in settings for _ in prompts]
    answers = steerer.answer(prompts * len(settings), rows, decoding=Decoding(max_new_tokens=80))
    texts = [answer.text for answer in answers]
    plain = texts[: len(prompts)]
    for number, measure in enumerate(TRAIT_MEASURES.values(), start=1):
        steered = texts[number * len(prompts) : (number + 1) * len(prompts)]
        assert measure.gain(plain, steered) > 0, measure.name


def thirty_two_requests(steerer: Steerer) -> tuple[list[str], list[dict[str, float]]]:
    rng = np.random.default_rng(0)
    names = steerer.traits
    weights = [dict(zip(names, rng.dirichlet(np.ones(len(names))), strict=True)) for _ in range(32)]
    return PROMPTS[:32], weights


def norm(self: LlamaRMSNorm, hidden_states: torch.Tensor) -> torch.Tensor:
    """RMSNorm in the precision of what it is given; the model's own works in fp32."""
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


@pytest.mark.parametrize(
    ("dtype", "number", "bound"), [(torch.float32, 24, 2e-4), (torch.float64, 12, 1e-5)]
)
def test_mixed_batch_of_32_edits_equals_each_row_alone(
    steerer: Steerer,
    dtype: torch.dtype,
    number: int,
    bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same greedy tokens, and the same logits but for rounding.

    Logits are as large as 39. In fp32 those of the unedited model differ by up to 9e-5 between a
    batch and a row alone; in fp64, norms included, rounding hides nothing but the fp32 in
    which they are handed out.
    """
    if dtype != torch.float32:
        monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
        steerer = steer.load(steer.load_model(dtype=dtype))
    prompts, weights = thirty_two_requests(steerer)
    edits = [steerer.resolve(row) for row in weights]
    assert all_different(edits)
    model, hooks = steerer.language_model.model, attach(steerer.language_model)
    texts = [render(steerer.language_model.tokenizer, prompt) for prompt in prompts]
    options = {
        "max_new_tokens": number,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "pad_token_id": steerer.language_model.tokenizer.pad_token_id,
    }

    def run(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = encode(steerer.language_model, [texts[row] for row in rows])
        with torch.inference_mode(), hooks.steer([edits[row] for row in rows]):
            output = model.generate(**inputs, **options)
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        return new, torch.stack(output.logits, dim=1)  # (B, T), (B, T, vocabulary)

    tokens, logits = run(list(range(32)))
    assert len({tuple(row) for row in tokens.tolist()}) == 32
    for row in range(32):
        alone, alone_logits = run([row])
        assert torch.equal(tokens[row, : alone.shape[1]], alone[0])
        difference = logits[row, : alone.shape[1]] - alone_logits[0]
        assert difference.abs().max() < bound


def test_64_people_in_a_batch_are_each_served_as_alone(steerer: Steerer) -> None:
    """The same tokens, and the same logits but for rounding, as of 32 requests above."""
    lm, own = steerer.language_model, [entry.edit for entry in steerer.bundle.traits.values()]
    rng = np.random.default_rng(64)
    people = {
        f"person {i}": Profile(
            lm.fingerprint, compose(own, rng.dirichlet(np.ones(len(own)))), 0.1, True, "style", "x"
        )
        for i in range(64)
    }
    served = Steerer(lm, steerer.bundle.with_profiles(people))
    edits = [served.resolve(None, profile=name) for name in people]
    assert all_different(edits)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(64)]
    short = Decoding(max_new_tokens=4)
    together = served.answer(prompts, profile=list(people), decoding=short)
    logits = first_logits(lm, prompts, edits)
    plain = first_logits(lm, prompts, [ZERO] * 64)
    assert ((logits - plain).abs().amax(1) > 0.1).all()
    for row, name in enumerate(people):
        alone = served.answer([prompts[row]], profile=name, decoding=short)[0]
        assert alone.tokens == together[row].tokens
        assert (first_logits(lm, [prompts[row]], [edits[row]])[0] - logits[row]).abs().max() < 2e-4


def first_logits(lm: LanguageModel, prompts: list[str], edits: list[Edit]) -> torch.Tensor:
    """Of the first token of each answer, (B, vocabulary)."""
    inputs = encode(lm, [render(lm.tokenizer, prompt) for prompt in prompts])
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    width = inputs["input_ids"].shape[1]
    with torch.inference_mode(), attach(lm).steer(edits, prompt_length=width):
        found: torch.Tensor = lm.model(**inputs, position_ids=positions, logits_to_keep=1).logits[
            :, -1
        ]
    return found


def all_different(edits: list[Edit]) -> bool:
    # Behind a gate the vectors are columns of U.
    flat = [
        np.concatenate(
            [part.ravel() for layer in edit.layers.values() for part in (layer.e, layer.u)]
        )
        for edit in edits
    ]
    return all(not np.allclose(a, b, atol=1e-6) for i, a in enumerate(flat) for b in flat[i + 1 :])


def test_strength_zero_is_the_plain_model_bit_for_bit(steerer: Steerer) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(packaged_model_dir(), dtype=torch.float32).eval()
    inputs = encode(
        steerer.language_model,
        [render(steerer.language_model.tokenizer, prompt) for prompt in PROMPTS[:4]],
    )
    with torch.inference_mode():
        expected = plain(**inputs).logits
        with steerer.steer({"brevity": 1.0}, strength=0):
            assert torch.equal(steerer.language_model.model(**inputs).logits, expected)
        with steerer.steer({"brevity": 1.0}):
            assert not torch.equal(steerer.language_model.model(**inputs).logits, expected)
        assert torch.equal(steerer.language_model.model(**inputs).logits, expected)


def test_a_character_cut_at_the_limit_is_left_out(steerer: Steerer) -> None:
    model = steerer.language_model
    tokens = model.tokenizer("Good night 🌙", add_special_tokens=False)["input_ids"]
    cut = next(
        n for n in range(len(tokens)) if model.tokenizer.decode(tokens[:n]).endswith("\ufffd")
    )
    answer = finish(model, tokens[:cut], end_tokens(model))
    assert (answer.text, answer.ended) == ("Good night", False)


def test_stream_pieces_join_to_the_answer(steerer: Steerer) -> None:
    pieces = list(steerer.stream(QUESTION, {"simplicity": 1.0}, max_new_tokens=32))
    whole = steerer.generate(QUESTION, {"simplicity": 1.0}, max_new_tokens=32)
    assert len(pieces) > 3
    assert "".join(pieces).strip() == whole


def test_a_dropped_stream_frees_the_model(steerer: Steerer) -> None:
    stream: Iterator[str] = steerer.stream(QUESTION, {"warmth": 1.0}, max_new_tokens=300)
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    started = time.monotonic()
    assert steerer.generate("Hello!", max_new_tokens=4)
    assert time.monotonic() - started < 30


def test_chats_batches_and_sampling(steerer: Steerer) -> None:
    chat = [
        {"role": "user", "content": "I lost my keys."},
        {"role": "assistant", "content": "Oh no. Where did you last see them?"},
        {"role": "user", "content": "At work."},
    ]
    answer = steerer.generate(chat, {"warmth": 1}, max_new_tokens=8)
    assert isinstance(answer, str)
    both = steerer.generate([chat, QUESTION], [{"warmth": 1}, None], max_new_tokens=8)
    assert both == [answer, steerer.generate(QUESTION, max_new_tokens=8)]
    sampled = [
        steerer.generate(
            QUESTION, {"humor": 1}, seed=seed, do_sample=True, temperature=1.0, max_new_tokens=12
        )
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_unknown_traits_name_the_known_ones(steerer: Steerer) -> None:
    with pytest.raises(WeightsError, match=r"'sarcasm'.*brevity.*warmth"):
        steerer.generate(QUESTION, {"sarcasm": 1.0})


def test_the_default_bundle_is_small_and_belongs_to_the_packaged_model(steerer: Steerer) -> None:
    path = default_bundle_path()
    assert path.stat().st_size < 1_000_000
    assert set(steerer.traits) == set(steer.load_traits())
    with pytest.raises(FingerprintError) as error:
        steer.load(tiny("llama"))
    assert str(steerer.language_model.fingerprint) in str(error.value)
    with pytest.raises(BundleError):
        steer.load(steerer.language_model, path.with_name("missing.safetensors"))


def test_the_default_portfolio_serves_every_mixture_of_its_traits(steerer: Steerer) -> None:
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None and len(portfolio.traits) >= 4
    # 4000 of all traits, then as many of few: some entries serve only near an edge.
    rng, even = np.random.default_rng(5), np.ones(len(portfolio.traits))
    mixtures = np.concatenate([rng.dirichlet(even, 4000), rng.dirichlet(even / 10, 4000)])
    # J by its formula, for every candidate and mixture.
    r, r0 = portfolio.mean_rewards, portfolio.mean_rewards[0]
    utilities = np.where(r > r0, r0 + (1 - r0) * (np.maximum(r - r0, 0) / (1 - r0)) ** 0.25, r)
    f = np.minimum(0.05 * portfolio.kl / 0.5, 0.2)
    values = mixtures @ utilities.T - f
    kept = values[:, [0, *portfolio.kept]]
    lost, best = values.max(1) - kept.max(1), values.max(1)
    assert lost.max() <= portfolio.certificate.delta.loss + 1e-9
    assert (lost / best).max() <= portfolio.certificate.epsilon.loss + 1e-9
    best_kept = kept.argmax(1)
    assert (best_kept[:4000] == 0).mean() <= 0.5 and set(best_kept) >= set(range(1, kept.shape[1]))
    for row, number in zip(mixtures[:50], kept[:50].argmax(1).tolist(), strict=True):
        weights = dict(zip(portfolio.traits, row.tolist(), strict=True))
        assert steerer.route(weights).number == number
    weights = {"brevity": 0.6, "positivity": 0.4}
    routed, composed = (
        steerer.generate(QUESTION, weights, max_new_tokens=24, compose=compose)
        for compose in (False, True)
    )
    assert routed != composed


def test_each_trait_earns_most_by_its_own_edit(steerer: Steerer) -> None:
    """Else the reward is of something else, and mixtures are served by the wrong edits."""
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None
    own = [steerer.route({name: 1.0}) for name in portfolio.traits]
    assert [entry.number for entry in own] == [None] * len(own)
    for name, entry in zip(portfolio.traits, own, strict=True):
        assert entry.rewards[name] == max(other.rewards[name] for other in own)
        assert entry.rewards[name] > portfolio.mean_rewards[0][portfolio.traits.index(name)]


def test_compositions_give_every_trait_its_share(steerer: Steerer) -> None:
    interference = steerer.bundle.interference
    assert interference is not None and set(interference.traits) <= set(steerer.traits)
    own = dict(zip(interference.traits, interference.gains.diagonal(), strict=True))
    assert min(own[name] for name in ("brevity", "simplicity", "formality", "warmth")) > 0.1
    rising = 0
    pairs = list(combinations([name for name in interference.traits if own[name] > 0], 2))
    for pair in pairs:
        doses = interference.doses(dict.fromkeys(pair, 0.5))
        assert sum(dose**2 for dose in doses.values()) == pytest.approx(1)
        at = [interference.traits.index(name) for name in pair]
        c = np.array([doses[name] for name in pair])
        linear = interference.linear[np.ix_(at, at)]
        quadratic = interference.quadratic[np.ix_(at, at, at)]
        rising += bool((c @ linear + np.einsum("i,k,ikj->j", c, c, quadratic) > 0).all())
    # But for traits that undo each other.
    assert rising >= 0.8 * len(pairs)


SCRIPT = textwrap.dedent(
    """
    import sys
    import torch
    torch.set_num_threads(1)
    import steer
    recipe = steer.Recipe(method="mean-difference", prompts=8, develop_prompts=8,
                          confirm_prompts=4, kls=(0.2,),
                          decoding=steer.Decoding(max_new_tokens=48))
    bundle = steer.build(traits=["brevity"], recipe=recipe, work_dir=sys.argv[1])
    bundle.save(sys.argv[2])
    """
)


def test_a_killed_build_resumes_to_the_same_bundle(tmp_path: Path) -> None:
    def command(name: str) -> list[str]:
        folder, bundle = tmp_path / name, tmp_path / f"{name}.safetensors"
        return [sys.executable, "-c", SCRIPT, str(folder), str(bundle)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, env=environment)
    process = subprocess.Popen(command("killed"), env=environment)
    pairs = tmp_path / "killed" / "float32" / "pairs" / "brevity.jsonl"
    while not pairs.exists() or pairs.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, "the build was over before the kill"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.safetensors").exists()
    subprocess.run(command("killed"), check=True, env=environment)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "killed.safetensors").read_bytes() == whole
    bundle = steer.Bundle.load(tmp_path / "whole.safetensors")
    assert bundle.traits["brevity"].statistics["gain on develop prompts"] > 0
