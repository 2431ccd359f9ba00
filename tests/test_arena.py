"""The peers in one run: what is answered, kept, judged and compared, against hand-made numbers."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steer.activations import hooked
from steer.chat import render
from steer.contrast import Answer, Pair, PairSet, instructed
from steer.distill import adder
from steer.edits import additive
from steer.errors import DataError
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import attach
from steer.likelihood import mean_log_likelihood
from steer.measures import casual_markers, familiar_markers
from steer.prompts import load_prompts
from steer.traits import Trait
from tests.models import WIDTH, tiny

ARENA = Path(__file__).parents[1] / "experiments" / "arena"
sys.path.append(str(ARENA))
import ablations  # noqa: E402
import arena  # noqa: E402
import arena_tables  # noqa: E402
import mixtures  # noqa: E402
import prompting  # noqa: E402
import refusals  # noqa: E402
import rules  # noqa: E402
from answering import (  # noqa: E402
    UNSTEERED,
    Asked,
    Edited,
    Rectified,
    Setting,
    answer_all,
)
from answers import Answers, Key, Store  # noqa: E402
from contenders import Source, dose_factors  # noqa: E402
from judging import Coherence, coherence, difference, draws, gain, mean_gain, ratio  # noqa: E402
from judging import values as judged_values  # noqa: E402
from runs import earlier  # noqa: E402

GREEDY = Decoding(max_new_tokens=12, repetition_penalty=1.0, no_repeat_ngram_size=None)
PROMPTS = ["Hi.", "What is a comet, and why?", "Tea?"]
ROWS = [
    Rectified("Be brief.", "Ramble on and on.", 0.5),
    Rectified("Be warm.", "Be cold.", 2.0),
    Rectified("Be brief.", "Ramble on and on.", 4.0),
]


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def pair(number, positive, negative="No."):
    def answer(pole, text):
        return Answer(f"extract-{number:03d}", pole, "request", text, (5, 6))

    return Pair(answer("positive", positive), answer("negative", negative))


TRAIT = Trait("calm", ["Be calm.", "Stay cool."], ["Panic.", "Be hectic."])
SOURCE = Source(TRAIT, PairSet("calm", (pair(1, "Yes. And th"), pair(2, "Fine!")), {}), None)


def test_system_prompts(llama):
    settings = list(prompting.system_prompts(SOURCE))
    assert len({setting.key for setting in settings}) == len(settings) == 6
    chats = {setting.name: setting.how.chat("Hi.") for setting in settings}
    assert render(llama.tokenizer, chats["instruction 1, system message"]) == (
        "<s>[system] Be calm. [user] Hi. [assistant] "
    )
    assert render(llama.tokenizer, chats["all instructions, user message"]) == (
        "<s>[user] Hi.\n\nBe calm. Stay cool. [assistant] "
    )


def test_few_shot():
    prompts = {prompt.id: prompt.text for prompt in load_prompts("extract")}
    turns = {(prompts["extract-001"], "Yes."), (prompts["extract-002"], "Fine!")}
    for setting in prompting.few_shot(SOURCE, (1, 2), seed=0):
        chat = setting.how.chat("Hi.")
        shots = int(setting.name[0])
        assert chat[-1] == {"role": "user", "content": "Hi."} and len(chat) == 2 * shots + 1
        asked = [message["content"] for message in chat[:-1:2]]
        shown = [message["content"] for message in chat[1:-1:2]]
        assert set(zip(asked, shown, strict=True)) <= turns


def test_whole_sentences():
    assert prompting.whole_sentences('He said "No." Then he w') == 'He said "No."'
    assert prompting.whole_sentences("3.5 of them") == ""


def test_logit_steering_settings():
    settings = list(prompting.logit_steering(SOURCE, (0.5, 2.0)))
    assert [(s.how.positive, s.how.alpha) for s in settings] == [
        ("Be calm.", 0.5),
        ("Be calm.", 2.0),
        ("Stay cool.", 0.5),
        ("Stay cool.", 2.0),
    ]


# --- what else becomes of an edit ----------------------------------------------------------------


def strong_edit(scale=3.0):
    rng = np.random.default_rng(5)
    return additive({i: (scale * rng.standard_normal(WIDTH)).astype(np.float32) for i in (0, 2)})


def by_plain_loop(model, text, edit, weight, steps=8):
    """Greedy tokens, the whole text anew for each, an edit's change weighed by place and token."""
    ids = prompt_tokens(model, text)
    first = len(ids) - 1
    for _ in range(steps):
        weights = torch.tensor(
            [0.0 if j < first else weight(j - first, token) for j, token in enumerate(ids)]
        )
        hooks = {
            i: adder(weights[:, None] * torch.tensor(layer.e)) for i, layer in edit.layers.items()
        }
        with hooked(model, hooks), torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[first + 1 :]


@pytest.mark.parametrize("name", ["decaying", "content words"])
def test_a_rule_weighs_an_edit_token_by_token(llama, monkeypatch, name):
    monkeypatch.setattr(rules, "HALF_LIFE", 2)
    edit = strong_edit()
    decoding = replace(GREEDY, max_new_tokens=8, min_new_tokens=8)
    if name == "decaying":
        rule = rules.decaying
        weigh = lambda place, token: 0.5 ** (place / 2)  # noqa: E731
    else:
        monkeypatch.setattr(rules, "ENGLISH_STOP_WORDS", frozenset())
        monkeypatch.setattr(rules, "_SHORT", 0)  # the tiny tokenizer's tokens are letters
        rule = rules.content_words(llama)
        weigh = lambda place, token: (  # noqa: E731
            1.0 if llama.tokenizer.decode([token]).strip().isalpha() else 0.25
        )
    told = []
    for text in ("Hi.", "What is a comet?"):
        with rules.ruled(llama, [0, 2], rule), attach(llama).steer(edit, scope="response"):
            (answer,) = generate_batch(llama, [text], decoding)
        assert list(answer.tokens) == by_plain_loop(llama, text, edit, weigh)
        told.append(answer.tokens)
    with attach(llama).steer(edit, scope="response"):
        plain = [
            generate_batch(llama, [t], decoding)[0].tokens for t in ("Hi.", "What is a comet?")
        ]
    assert plain != told, "the rule makes a difference"


def test_a_rule_can_keep_the_length_of_activations(llama):
    seen = {}

    def note(name):
        return {0: lambda module, args, output: seen.update({name: output})}

    edit, inputs = strong_edit(), torch.tensor([prompt_tokens(llama, "What is a comet?")])
    with hooked(llama, note("plain")), torch.no_grad():
        llama.model(input_ids=inputs)
    steering = attach(llama).steer(edit, scope="all")
    with rules.ruled(llama, [0, 2], rules.norm_preserving), hooked(llama, note("turned")), steering:
        llama.model(input_ids=inputs)
    plain, turned = seen["plain"], seen["turned"]
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1))
    wanted = plain + torch.tensor(edit.layers[0].e)
    assert torch.cosine_similarity(turned, wanted, dim=-1).min() > 0.9999


def test_each_prompt_can_have_its_own_dose(llama, tmp_path):
    how = Edited(strong_edit(), "response", (0.0, 1.0, 0.5))
    store = Store(tmp_path / "a.jsonl", {})
    setting = Setting("calm", "each", "each", how)
    (answers,) = answer_all(llama, [setting], PROMPTS, GREEDY, store)
    for prompt, factor, text in zip(PROMPTS, how.factors, answers.texts, strict=True):
        with attach(llama).steer(factor * how.edit, scope="response"):
            (alone,) = generate_batch(llama, [render(llama.tokenizer, prompt)], GREEDY)
        assert text == alone.text


# --- kept answers -------------------------------------------------------------------------------

KEY = Key("calm", "CCS", "layers 1-2, 0.1 nats per token", "abc")
ANSWERS = Answers(("a", "b"), (1, 2), (-0.5, -1.0), (0, 0), 1)


def test_the_store_resumes(tmp_path):
    path, header = tmp_path / "a.jsonl", {"model": "tiny", "prompts": ("x", "y")}
    Store(path, header).add({KEY: ANSWERS})
    half = path.read_text() + '{"key": {"tr'  # a kill
    path.write_text(half)
    store = Store(path, header)
    assert store.known == {KEY: ANSWERS}
    plain = Answers(("c", "d"), (1, 1), (-1.0, -1.0), (3, 4), 3)
    other = Key("calm", "few-shot", "1 shot", "def")
    store.add({other: plain})
    assert Store(path, header).known == {KEY: ANSWERS, other: plain}


def test_the_store_refuses_other_settings(tmp_path):
    path = tmp_path / "a.jsonl"
    Store(path, {"model": "tiny", "prompts": ["x"]})
    with pytest.raises(DataError, match=r"other settings \(prompts differ\)"):
        Store(path, {"model": "tiny", "prompts": ["y"]})


@pytest.mark.parametrize("line", ["[]", "{}", '{"key": {}, "answers": {}}'])
def test_the_store_refuses_damage(tmp_path, line):
    path = tmp_path / "a.jsonl"
    Store(path, {})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match="delete"):
        Store(path, {})


def test_answers_of_different_lengths():
    with pytest.raises(DataError, match="one length"):
        Answers(("a", "b"), (1,), (-0.5, -1.0), (0, 0), 1)


def test_all_kinds_are_answered_once(llama, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    edit = additive({1: rng.standard_normal(WIDTH).astype(np.float32)})
    settings = [
        UNSTEERED,
        Setting("calm", "CCS", "response", Edited(edit, "response")),
        Setting("calm", "repeng", "all", Edited(edit, "all")),
        Setting("calm", "system prompt", "1", Asked(instruction="Be calm.")),
        Setting("calm", "logit steering", "1", ROWS[0]),
    ]
    found = answer_all(llama, settings, PROMPTS, GREEDY, Store(tmp_path / "a.jsonl", {}))
    texts = [render(llama.tokenizer, prompt) for prompt in PROMPTS]
    plain = generate_batch(llama, texts, GREEDY)
    assert found[0].texts == tuple(answer.text for answer in plain)
    for one, scope in ((found[1], "response"), (found[2], "all")):
        with attach(llama).steer(edit, scope=scope):
            alone = generate_batch(llama, texts, GREEDY)
        assert one.texts == tuple(answer.text for answer in alone)
        sequences = [
            (prompt_tokens(llama, text), answer.tokens)
            for text, answer in zip(texts, alone, strict=True)
        ]
        expected = mean_log_likelihood(llama, sequences)
        np.testing.assert_allclose(one.log_likelihood, expected, rtol=1e-4)
    asked = render(llama.tokenizer, instructed(PROMPTS[0], "Be calm."))
    more = len(prompt_tokens(llama, asked)) - len(prompt_tokens(llama, texts[0]))
    assert found[3].extra_tokens == (more,) * 3 and more > 0
    assert [one.passes for one in found] == [1, 1, 1, 1, 3]
    monkeypatch.setattr("answering._answer", None)  # nothing is answered again
    again = answer_all(llama, settings, PROMPTS, GREEDY, Store(tmp_path / "a.jsonl", {}))
    assert again == found


# --- judging ------------------------------------------------------------------------------------


def trial(method, setting, gain, band=0.5):
    return arena_tables.Trial("calm", method, setting, gain, 0.0, 0.0, 1.0, 1.0, -0.5, band)


def test_equal_coherence():
    base = Coherence(0.10, 0.0, 0.9, 0.8, -0.5)
    assert base.holds_against(base, 0.25)
    assert Coherence(0.15, 0.0, 0.5, 0.7, -1.5).holds_against(base, 1.0)
    assert not Coherence(0.15, 0.0, 0.5, 0.7, -1.5).holds_against(base, 0.5)
    assert not Coherence(0.16, 0.0, 0.9, 0.8, -0.5).holds_against(base, 1.0)
    assert not Coherence(0.10, 0.0, 0.9, 0.69, -0.5).holds_against(base, 1.0)
    assert not Coherence(0.10, 0.0, 0.9, 0.8, -1.51).holds_against(base, 1.0)


def test_coherence_of_answers():
    texts = ("A comet is a ball of ice and dust.", "no " * 40, "\ufffd\ufffd", "Comets are icy.")
    answers = Answers(texts, (9, 40, 2, 4), (-1.0, -0.1, -5.0, -0.9), (0,) * 4, 1)
    found = coherence(["What is a comet?"] * 4, answers.texts, answers.log_likelihood)
    assert (found.incoherent, found.broken) == (0.5, 0.25)
    assert found.log_likelihood == pytest.approx(-1.75)


class Ones:
    name = "one"

    def __call__(self, prompts, responses):
        return np.ones(len(responses))


def test_incoherent_answers_earn_nothing():
    answers = Answers(("A fine day.", "no " * 40), (3, 40), (-1.0, -0.1), (0, 0), 1)
    assert judged_values(Ones(), ["x", "y"], answers.texts).tolist() == [1.0, 0.0]


def test_the_best_setting_within_a_band():
    trials = [
        trial("CCS", "1", 0.2, 0.25),
        trial("CCS", "2", 0.4),
        trial("CCS", "3", 0.9, np.inf),
        trial("SVD", "1", 0.3, 0.25),
        trial("few-shot", "1", 0.8, 1.0),
        trial("few-shot", "2", -0.1, 0.25),
    ]
    expected = {0.25: ("1", "1", "2"), 0.5: ("2", "1", "2"), 1.0: ("2", "1", "1")}
    for band, settings in expected.items():
        best = arena_tables.best_settings(trials, band)
        assert tuple(best[name].setting for name in ("CCS", "SVD", "few-shot")) == settings
    best = arena_tables.best_settings(trials[1:4], 0.25)
    assert list(best) == ["SVD"]
    assert arena.leader(best, ("CCS", "SVD")) == "SVD"
    assert arena.leader(best, ("CCS",)) is None


def test_gains_and_ratios():
    unsteered = np.array([0.2, 0.2, 0.4, 0.0])  # headroom 0.8
    ours, theirs = unsteered + 0.4, unsteered + np.array([0.1, 0.3, 0.2, 0.2])
    drawn = draws(4, seed=0)
    a, b = gain(ours, unsteered, drawn), gain(theirs, unsteered, drawn)
    assert (a.value, b.value) == pytest.approx((0.5, 0.25))
    value, low, high = ratio(a, b)
    assert value == pytest.approx(2.0) and 1 < low < 2 < high
    # Where all prompts gain alike, headroom cancels.
    assert ratio(a, a) == pytest.approx((1.0, 1.0, 1.0))
    assert difference(a, b)[0] == pytest.approx(0.25)
    assert mean_gain([a, b]).value == pytest.approx(0.375)
    assert ratio(a, arena.NO_GAIN) == (np.inf, np.inf, np.inf)
    assert ratio(arena.NO_GAIN, a) == (0.0, 0.0, 0.0)


def test_no_headroom_no_gain():
    full = np.ones(4)
    assert gain(full, full, draws(4, seed=0)).value == 0.0


def test_dose_factors():
    found = dose_factors(lambda factor: 0.3 * factor**2, (0.05, 0.2, 0.8))
    for kl, factor in found.items():
        assert 0.3 * factor**2 == pytest.approx(kl)
    # One that saturates never reaches a large dose.
    assert set(dose_factors(lambda factor: min(0.1 * factor, 0.3), (0.05, 0.2, 0.8))) == {0.05, 0.2}


def test_familiar_marks_are_a_part_of_the_casual_ones():
    text = "Hey, I don't really know! You're cool, okay? My mom would, though."
    # I, don't, you're and my, of 12 words; the rest is slang.
    assert familiar_markers(text) == pytest.approx(100 * 4 / 12)
    assert casual_markers(text) > familiar_markers(text)


# --- tables -------------------------------------------------------------------------------------


def test_the_frontier():
    points = [(5.0, 0.9), (0.0, 0.1), (0.0, 0.3), (2.0, 0.2), (3.0, 0.5)]
    assert arena_tables.frontier(points) == [(0.0, 0.3), (3.0, 0.5), (5.0, 0.9)]


def test_tables_and_pictures(tmp_path):
    trials = [
        trial("CCS", "1", 0.2, 1.0),
        trial("CCS", "2", 0.4),
        trial("few-shot", "1", 0.1, np.inf),
    ]
    row = arena_tables.Row(
        0.5, "calm", "CCS", "2", 0.6, 0.4, 0.3, 0.5, 0.0, 9.0, 0.0, 1,
        0.0, 0.0, 1.0, 1.0, -0.5, True,
    )  # fmt: skip
    unsteered = np.array([0.2, 0.2, 0.4, 0.0])
    one = gain(unsteered + 0.4, unsteered, draws(4, seed=0))
    names = (arena_tables.ENGINE, "CCS")
    gains = {name: {"calm": one} for name in names}
    gains |= {name: {"calm": arena.NO_GAIN} for name in (arena_tables.BEST_PEER, "few-shot")}
    part = {
        "prompts": 4,
        "decoding": {"max_new_tokens": 24},
        "unsteered": {"incoherent": 0.0, "relevant": 1.0, "log_likelihood": -0.5},
    }
    content = {
        "model": "tiny",
        "dtype": "float32",
        "ours": ["CCS"],
        "seed": 0,
        "answers of a peer's own application that differ": {"repeng": 0},
        "answers compared": 3,
        "parts": {"develop": part, "report": part},
        "measures": {"calm": {"search": "x", "report": "y"}},
    }
    ratios = [one for band in arena_tables.BANDS for one in arena.compared(band, gains, ["calm"])]
    rows = [replace(row, band=band) for band in arena_tables.BANDS[1:]]
    arena_tables.write(tmp_path, content, trials, rows, ratios)
    text = (tmp_path / "arena.md").read_text()
    assert "| CCS | 2 | +0.40 | +0.40 (+0.30 to +0.50) | 0%" in text
    assert text.count("| few-shot | none admissible |") == 3
    assert text.count("| CCS | +0.40 (+0.30 to +0.50) | +0.40 |") == 2
    assert text.count("| CCS | none admissible |") == 1  # within 0.25
    assert text.count("| CCS | none | +0.00 |") == 1
    assert "| this engine | inf (inf to inf) | inf (inf to inf) |" in text
    assert json.loads((tmp_path / "arena.json").read_text())["bounds"]["less relevant"] == 0.1
    assert (
        "0.5,all,this engine,best peer,inf,inf,inf" in (tmp_path / "arena_ratios.csv").read_text()
    )
    for name in ("arena_calm", "arena_gains"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# --- several traits at once ---------------------------------------------------------------------


def test_all_mixtures():
    found = [tuple(sorted(weights.items())) for weights in mixtures.all_mixtures("abcd")]
    # 4 alone; 6 pairs in 3 ways; 4 triples in 4 ways.
    assert len(found) == len(set(found)) == 4 + 6 * 3 + 4 * 4
    assert (("a", 1.0), ("c", 2.0)) in found and (("a", 1.0), ("b", 1.0), ("d", 2.0)) in found


def test_lots_of_prompts(llama, tmp_path, monkeypatch):
    edit = additive({1: np.ones(WIDTH, np.float32)})
    settings = [UNSTEERED, Setting("calm", "composed", "1", Edited(edit, "response"))]
    at_once = mixtures.answered(llama, settings, PROMPTS, GREEDY, tmp_path / "at once")
    monkeypatch.setattr(mixtures, "LOT", 2)
    first = mixtures.answered(llama, settings, PROMPTS[:2], GREEDY, tmp_path)
    before = (tmp_path / "0.jsonl").read_bytes()
    found = mixtures.answered(llama, settings, PROMPTS, GREEDY, tmp_path)
    assert (tmp_path / "0.jsonl").read_bytes() == before  # the first lot is not answered again
    for one, whole, part in zip(found, at_once, first, strict=True):
        assert one.texts == whole.texts and one.texts[:2] == part.texts
        assert (one.tokens, one.extra_tokens) == (whole.tokens, whole.extra_tokens)
        np.testing.assert_allclose(one.log_likelihood, whole.log_likelihood, rtol=1e-5)


def cell(mode, weights, trait, gain, apart=False):
    traits = [part.split()[0] for part in weights.split(", ")]
    return mixtures.Cell(
        mode, weights, len(traits), trait, trait in traits, gain, gain - 0.1, gain + 0.1, 0.0, apart
    )


MIXED = [
    cell("composed", "a 1", "a", 0.5),
    cell("composed", "a 1", "b", -0.5),
    cell("composed", "b 1", "a", 0.0),
    cell("composed", "b 1", "b", 0.05),
    cell("composed", "a 1, b 1", "a", 0.3, apart=True),
    cell("composed", "a 1, b 1", "b", -0.2, apart=True),
]


def test_shares_of_cells_that_are_right():
    alone, both = mixtures.summary(MIXED)
    assert (alone["traits"], alone["cells"], alone["antagonistic"]) == (1, 2, False)
    # What is not asked for may fall, and b's own gain may be chance.
    assert alone["in the mean"] == 1.0 and alone["surely"] == 0.5
    assert (both["traits"], both["cells"], both["antagonistic"]) == (2, 1, True)
    assert both["in the mean"] == both["surely"] == 0.0


def test_the_interference_picture(tmp_path):
    content = {
        "model": "tiny", "prompts": 2, "decoding": {"max_new_tokens": 8}, "seed": 0,
        "dtype": "float32", "incoherent, unsteered": 0.0, "cosines": {"a, b": -0.5},
        "summary": mixtures.summary(MIXED),
    }  # fmt: skip
    mixtures.write(tmp_path, content, MIXED, ["a", "b"])
    text = (tmp_path / "mixtures.md").read_text()
    assert "| a | +0.50 (+0.40 to +0.60) | -0.50 (-0.60 to -0.40) |" in text
    assert "| composed | 2 | yes | 1 | 0% | 0% | 0.0% |" in text
    assert (tmp_path / "interference.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("answer", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot give instructions for this.", True),
        ("As an AI, I have no opinion.", True),
        ("It's illegal to do so. Please stop.", True),
        ("To kill a Python process, use `kill`. I can help with more.", False),
        ("Be careful: knives are sharp. First, hold it by the handle.", False),
        ("Sure! " + "Here is how. " * 30 + "I'm sorry that it is long.", False),
    ],
)
def test_refusals(answer, declines):
    assert refusals.is_refusal(answer) is declines


def test_a_run_adds_to_what_is_written(tmp_path):
    numbers = [0.2, 0.5, 0.4, 0.6, 0.3, 0.2, 0.4, 0.0, 1.0, -1.0, 1.02]
    row = ablations.Row("brevity", "base", *numbers)
    made_with = {
        "command": "before", "model": "tiny", "dtype": "float32", "seed": 0, "dose": 0.2,
        "prompts": 2, "decoding": {"max_new_tokens": 8, "top_p": None},
    }  # fmt: skip
    path = tmp_path / "ablations.json"
    with pytest.raises(DataError, match="nothing to add to"):
        earlier(path, made_with)
    measures = {"brevity": {"search": "words", "report": "sentences"}}
    written = {**made_with, "measures": measures, "rows": [vars(row)]}
    ablations.write(tmp_path, written, [row])
    again = {**made_with, "command": "now"}
    found = earlier(path, again)
    assert found == written
    assert [ablations.Row(**one) for one in found["rows"]] == [row]
    with pytest.raises(DataError, match="made with seed 0, now it is 1"):
        earlier(path, {**again, "seed": 1})
    with pytest.raises(DataError, match="made with people None, now it is 3"):
        earlier(path, {**again, "people": 3})
