"""From a history to a profile: insights, pairs, edits, doses and groups.

A tiny model with random weights writes gibberish, so where pairs of its answers are needed they
are written for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import steer
from steer import insights, quick
from steer.bundle import Bundle
from steer.chat import render
from steer.continuations import Continuations
from steer.contrast import SAMPLING
from steer.dose import reference_meter
from steer.edits import ZERO, Edit, additive, two_step
from steer.errors import CalibrationError, DataError, InputError
from steer.gate import Gate
from steer.generation import Decoding, Generated, prompt_tokens
from steer.groups import assign, cluster, group_profiles, standing
from steer.history import HistoryItem, read_history
from steer.hooks import attach
from steer.imitate import Imitation, imitate
from steer.insights import (
    Insights,
    fit,
    measured_insight,
    measured_insights,
    prompt_of,
    shown,
    templates,
    unusable,
    write_insights,
)
from steer.likelihood import mean_log_likelihood, response_tokens
from steer.models import LanguageModel
from steer.personal_pairs import personal_pairs
from steer.personalizer import Personalization, Personalizer, personal_meter
from steer.profile import Profile
from steer.prompts import load_prompts
from steer.sentence_encoder import embed
from steer.steerer import Steerer
from tests import naive
from tests.models import LAYERS, WIDTH, tiny

WORDS = "the river old stone house bright apple slow train under green hill with many small birds"

# Made up so that no two are alike.
HISTORY = [
    ("How are you?", "I am quite well, thanks to the sea air."),
    ("What did you eat?", "Nothing but bread and a pear."),
    ("Where is my hat?", "On top of the wardrobe, I believe."),
    ("Who rang?", "It was only the postman again."),
    ("Is it raining?", "Not since noon, though clouds gather."),
    ("What is new?", "My sister has bought a small boat."),
    ("Do you sing?", "Badly, and chiefly in the bath."),
    ("Any plans?", "We shall walk to the old mill."),
    ("Is it late?", "Midnight went by an hour ago."),
    ("Why so quiet?", "One listens better that way."),
    ("Tea or coffee?", "Coffee, black as a boot."),
    ("Seen the cat?", "She sleeps behind the stove."),
]


def a_text(seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS.split(), 9).tolist()) + "."


@dataclass
class Writer:
    """Stands in for the model as it writes, and notes what it was asked."""

    texts: Sequence[str] | None = None
    asked: list[str] = field(default_factory=list)
    settings: list[tuple[Decoding, int | None]] = field(default_factory=list)

    def __call__(
        self,
        language_model: LanguageModel,
        texts: Sequence[str],
        decoding: Decoding,
        *,
        seed: int | None = None,
    ) -> list[Generated]:
        written = [a_text(len(self.asked) + i) for i in range(len(texts))]
        if self.texts is not None:
            written = [self.texts[len(self.asked) + i] for i in range(len(texts))]
        self.asked += texts
        self.settings.append((decoding, seed))
        return [Generated(one, response_tokens(language_model, one), True) for one in written]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Writes the answers of pairs."""
    found = Writer()
    monkeypatch.setattr("steer.personal_pairs.generate_batch", found)
    return found


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny("llama")


def measured(model: LanguageModel, edit: Edit, scope: Any = "response") -> float:
    """Divergence on the model's answers to the first develop prompts."""
    prompts = [prompt.text for prompt in load_prompts("develop")[:8]]
    return reference_meter(model, prompts, scope=scope).kl(edit)


def stacked(edit: Edit) -> np.ndarray:
    assert edit.rank == 0
    return np.stack([layer.e for layer in edit.layers.values()])


def cosine(a: Edit, b: Edit) -> float:
    x, y = stacked(a).ravel().astype(float), stacked(b).ravel().astype(float)
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


# --- Methods and doses ---------------------------------------------------------------------------


@pytest.mark.parametrize("kl", [0.05, 0.4])
@pytest.mark.parametrize(
    ("method", "contrast", "layers"),
    [
        ("mean-difference", "style", "middle"),
        ("mean-difference", "insights", "ccs-jump"),
        ("svd", "history", "middle"),
        ("ccs", "insights", "middle"),
        ("probe", "style", "ccs-jump"),
        ("two-step", "style", "middle"),
        ("two-step-sign-safe", "history", (0, 3)),
        ("distilled", "history", "middle"),
        ("distilled", "insights", (2,)),
    ],
)
def test_every_reading_has_the_dose_that_is_asked_for(
    method: Any, contrast: Any, layers: Any, kl: float, model: LanguageModel, writer: Writer
) -> None:
    settings = Personalization(method, contrast, prompts=12, layers=layers, kl=kl)
    found = Personalizer(model, settings=settings).profile(HISTORY)
    assert found.dose == pytest.approx(kl, rel=0.05)
    assert measured(model, found.edit) == pytest.approx(found.dose, rel=1e-5)
    if layers == "ccs-jump":
        assert set(found.edit.layers) <= {1, 2} and found.edit.layers
    else:
        assert list(found.edit.layers) == ([1, 2] if layers == "middle" else list(layers))
    assert found.edit.rank == (2 if method.startswith("two-step") else 0)
    assert (found.method, found.contrast, found.gated) == (method, contrast, False)
    assert found.fingerprint == model.fingerprint
    assert found.statistics["items"] == found.statistics["items used"] == len(HISTORY)
    assert found.statistics["pairs"] == 12 and float(found.statistics["seconds"]) > 0
    assert ("insight by" in found.statistics) == (contrast == "insights")
    assert (found.insights, found.evidence) == (None, ())


def sequences(model: LanguageModel, history: Sequence[Any]) -> list[Any]:
    """What is imitated: each text and the end of the turn, after its prompt."""
    end = model.tokenizer.eos_token_id
    return [
        (
            prompt_tokens(model, render(model.tokenizer, item.prompt or "Write a few sentences.")),
            [*response_tokens(model, item.text), end],
        )
        for item in read_history(history)
    ]


def test_an_imitation_is_left_at_its_own_dose_if_that_is_small(model: LanguageModel) -> None:
    settings = Personalization(imitation=Imitation(steps=4, rows=5))
    history = [*HISTORY[:3], "A text that answers nothing.", HistoryItem("No.", prompt="Well?")]
    found = Personalizer(model, settings=settings).profile(history)
    expected = imitate(model, sequences(model, history), [1, 2], settings.imitation)
    assert np.array_equal(stacked(found.edit), stacked(expected))
    assert 0 < found.dose == pytest.approx(measured(model, expected), rel=1e-5)
    assert found.dose < settings.kl


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_imitation_is_made_weaker_if_its_dose_is_large(family: str) -> None:
    model = tiny(family)
    settings = Personalization(imitation=Imitation(steps=8, learning_rate=0.2), kl=0.02)
    found = Personalizer(model, settings=settings).profile(HISTORY)
    expected = imitate(model, sequences(model, HISTORY), [1, 2], settings.imitation)
    assert measured(model, expected) > 0.03, "it is small anyway"
    assert 0.95 * 0.02 <= found.dose <= 0.02  # the most that is allowed
    assert measured(model, found.edit) == pytest.approx(found.dose, rel=1e-5)
    factor = np.linalg.norm(stacked(found.edit)) / np.linalg.norm(stacked(expected))
    assert factor < 1
    np.testing.assert_allclose(stacked(found.edit), factor * stacked(expected), rtol=1e-4)


def test_gated_profiles_are_dosed_behind_the_gate(model: LanguageModel) -> None:
    rng = np.random.default_rng(0)
    gate = Gate({k: rng.standard_normal(WIDTH).astype(np.float32) for k in range(LAYERS)})
    disliked = [HistoryItem(text, prompt, a_text(i)) for i, (prompt, text) in enumerate(HISTORY)]
    for method in ("imitation", "mean-difference"):
        settings = Personalization(method, kl=0.1, imitation=Imitation(learning_rate=0.5))
        found = Personalizer(model, gate=gate, settings=settings).profile(disliked)
        assert found.gated and found.edit.rank == 0
        assert found.dose == pytest.approx(0.1, rel=0.05)
        assert measured(model, gate(found.edit)) == pytest.approx(found.dose, rel=1e-5)
    settings = Personalization(imitation=Imitation(learning_rate=0.01))  # at its own dose
    own = Personalizer(model, gate=gate, settings=settings).profile(disliked)
    assert own.gated and own.dose < 0.9
    assert measured(model, gate(own.edit)) == pytest.approx(own.dose, rel=1e-5)
    assert measured(model, own.edit) != pytest.approx(own.dose, rel=0.01)
    settings = Personalization("two-step", kl=0.1)
    found = Personalizer(model, gate=gate, settings=settings).profile(disliked)
    assert not found.gated and found.edit.rank == 2
    assert measured(model, found.edit) == pytest.approx(found.dose, rel=1e-5)


def test_doses_are_measured_where_edits_act(model: LanguageModel) -> None:
    settings = Personalization("mean-difference", kl=0.1)
    disliked = [HistoryItem(text, prompt, a_text(i)) for i, (prompt, text) in enumerate(HISTORY)]
    found = Personalizer(model, meter=personal_meter(model, "all"), settings=settings).profile(
        disliked
    )
    assert measured(model, found.edit, "all") == pytest.approx(found.dose, rel=1e-5)
    assert found.dose == pytest.approx(0.1, rel=0.05)
    assert measured(model, found.edit) != pytest.approx(found.dose, rel=0.01)


def test_no_dose_is_an_error(model: LanguageModel) -> None:
    disliked = [HistoryItem("Yes, gladly so.", "Well?", "Certainly not today.")]
    settings = Personalization("mean-difference", kl=1e5)
    with pytest.raises(CalibrationError, match="100000 nats per token .*another kl"):
        Personalizer(model, settings=settings).profile(disliked)


# --- What is read --------------------------------------------------------------------------------


def mean_activation(model: LanguageModel, prompt: str, text: str, layer: int) -> np.ndarray:
    """Over the tokens of one text after its rendered prompt, unpadded."""
    asked = prompt_tokens(model, render(model.tokenizer, prompt))
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append(output if isinstance(output, torch.Tensor) else output[0])

    handle = model.layers[layer].register_forward_hook(keep)
    with torch.no_grad():
        model.model(torch.tensor([[*asked, *response_tokens(model, text)]]), use_cache=False)
    handle.remove()
    found: np.ndarray = kept[0][0, len(asked) :].double().mean(0).numpy()
    return found


def test_liked_and_disliked_responses_are_the_poles(model: LanguageModel, writer: Writer) -> None:
    liked = [HistoryItem(text, prompt, a_text(i)) for i, (prompt, text) in enumerate(HISTORY[:3])]
    settings = Personalization("mean-difference", kl=0.2)
    maker = Personalizer(model, settings=settings)
    found = maker.profile(liked).edit
    assert not writer.asked, "nothing need be written"
    difference = additive(
        {
            layer: np.mean(
                [
                    mean_activation(model, one.prompt or "", one.text, layer)
                    - mean_activation(model, one.prompt or "", one.disliked or "", layer)
                    for one in liked
                ],
                axis=0,
            )
            for layer in (1, 2)
        }
    )
    assert cosine(found, difference) > 0.9999
    turned = [HistoryItem(one.disliked or "", one.prompt, one.text) for one in liked]
    assert cosine(maker.profile(turned).edit, difference) < -0.9999


def test_style_pairs_answer_the_plain_prompt(model: LanguageModel, writer: Writer) -> None:
    items = [
        HistoryItem("I liked this one more.", "Which one?", "The other was nicer by far."),
        HistoryItem("It was only the postman again.", "Who rang?"),
        HistoryItem("She sleeps behind the stove."),
    ]
    pairs, plain = personal_pairs(model, items, "style", None, seed=7)
    assert pairs.positive == [item.text for item in items]
    assert pairs.negative == ["The other was nicer by far.", a_text(0), a_text(1)]
    assert plain == ["Which one?", "Who rang?", templates()["alone"]]
    for pair, request in zip(pairs.pairs, plain, strict=True):
        for answer in (pair.positive, pair.negative):
            assert answer.request == request
            assert model.tokenizer.decode(answer.tokens) == answer.text
    # What stands alone is said in other words.
    assert len(writer.asked) == 2 and writer.settings == [(SAMPLING, 7)]
    assert writer.asked[0] == render(model.tokenizer, "Who rang?")
    reworded = templates()["reworded"].format(text=items[2].text)
    assert writer.asked[1] == render(model.tokenizer, reworded)


@pytest.mark.parametrize(("prompts", "own"), [(6, 2), (2, 2), (1, 1)])
def test_prompts_of_the_history_are_answered_first(
    prompts: int, own: int, model: LanguageModel, writer: Writer
) -> None:
    items = read_history([HISTORY[0], "A text alone.", HISTORY[1]])
    asked = ["How are you?", "What did you eat?"][:own]
    asked += [prompt.text for prompt in load_prompts("extract")[: prompts - own]]
    pairs, plain = personal_pairs(model, items, "history", None, prompts=prompts, seed=3)
    assert plain == asked and writer.settings == [(SAMPLING, 3)]
    assert pairs.positive == [a_text(i) for i in range(prompts)]
    assert pairs.negative == [a_text(prompts + i) for i in range(prompts)]
    for pair, one in zip(pairs.pairs, asked, strict=True):
        assert pair.negative.request == one
        assert one in pair.positive.request
        assert all(item.text in pair.positive.request for item in items)
    requests = [pair.positive.request for pair in pairs.pairs] + asked
    assert writer.asked == [render(model.tokenizer, request) for request in requests]


def test_insights_are_put_after_the_prompt(model: LanguageModel, writer: Writer) -> None:
    told = Insights("So kind.", "So plain.", "model", "model")
    pairs, plain = personal_pairs(model, read_history(["Hi."]), "insights", told, prompts=3)
    assert plain == [prompt.text for prompt in load_prompts("extract")[:3]]
    for pair, one in zip(pairs.pairs, plain, strict=True):
        for answer, words in ((pair.positive, "So kind."), (pair.negative, "So plain.")):
            assert answer.request.startswith(one) and answer.request.endswith(words)
    with pytest.raises(InputError, match="'insights' needs insights"):
        personal_pairs(model, read_history(["Hi."]), "insights", None)


def test_dropped_pairs_leave_their_prompts_behind(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["no", a_text(2), a_text(0), a_text(3), a_text(2), a_text(4)]
    monkeypatch.setattr("steer.personal_pairs.generate_batch", Writer(texts))
    pairs, plain = personal_pairs(model, read_history(HISTORY[:3]), "history", None, prompts=3)
    assert plain == ["Where is my hat?"] and pairs.positive == [a_text(0)]
    assert pairs.dropped == {"empty": 1, "same": 1, "broken": 0, "looping": 0}
    items = [HistoryItem("Yes.", "So?", "No."), HistoryItem("Not so.", "Is it?", "It is indeed.")]
    pairs, plain = personal_pairs(model, items, "style", None)
    assert plain == ["Is it?"] and pairs.positive == ["Not so."]


def test_a_history_without_usable_pairs_is_an_error(model: LanguageModel) -> None:
    same = [HistoryItem("It is just the same.", "Well?", "It is just the same.")]
    settings = Personalization("mean-difference")
    with pytest.raises(DataError, match="history of 1 items gives no usable pairs .*'same': 1"):
        Personalizer(model, settings=settings).profile(same)


# --- Histories of every size ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["imitation", "mean-difference"])
@pytest.mark.parametrize("one", ["Only the postman again.", HISTORY[0]])
def test_one_item_is_enough(method: Any, one: Any, model: LanguageModel, writer: Writer) -> None:
    settings = Personalization(method, kl=0.1)
    found = Personalizer(model, settings=settings).profile([one])
    assert not found.edit.is_zero() and 0 < found.dose <= 0.105
    assert found.statistics["items"] == found.statistics["items used"] == 1


@pytest.mark.parametrize("method", ["svd", "ccs", "probe", "two-step"])
def test_a_subspace_needs_more_than_one(method: Any, model: LanguageModel, writer: Writer) -> None:
    with pytest.raises(InputError, match="at least 8 pairs"):
        Personalizer(model, settings=Personalization(method)).profile(HISTORY[:1])


def test_hundreds_of_items_are_selected_from(model: LanguageModel) -> None:
    history = [(f"Number {i}?", a_text(i)) for i in range(300)]
    settings = Personalization(items=5, imitation=Imitation(steps=2))
    found = Personalizer(model, settings=settings).profile(history, keep_evidence=True)
    assert (found.statistics["items"], found.statistics["items used"]) == (300, 5)
    everything = read_history(history)
    places = [everything.index(item) for item in found.evidence]
    assert len(places) == 5 and places == sorted(places)
    expected = imitate(model, sequences(model, found.evidence), [1, 2], settings.imitation)
    assert np.array_equal(stacked(found.edit), stacked(expected))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"selection": "recent", "items": 2}, HISTORY[-2:]),
        ({"selection": "similar", "items": 1, "query": "Where may my cat be?"}, HISTORY[11:]),
        ({"selection": "random", "items": 99}, HISTORY),
    ],
)
def test_evidence_is_what_was_used(
    changes: dict[str, Any], expected: list[Any], model: LanguageModel
) -> None:
    settings = Personalization(imitation=Imitation(steps=1), **changes)
    found = Personalizer(model, settings=settings).profile(HISTORY, keep_evidence=True)
    assert [(item.prompt, item.text) for item in found.evidence] == expected
    assert found.insights is None


def test_insights_are_kept_with_the_evidence(model: LanguageModel, writer: Writer) -> None:
    settings = Personalization("mean-difference", "insights", prompts=8, kl=0.1)
    maker = Personalizer(model, settings=settings)
    kept, not_kept = (maker.profile(HISTORY, keep_evidence=keep) for keep in (True, False))
    assert kept.insights is not None and kept.evidence == read_history(HISTORY)
    # The gibberish of the model is of no use.
    assert kept.insights.personal_by == kept.statistics["insight by"] == "measures"
    assert kept.insights.personal == measured_insight([text for _, text in HISTORY])
    assert (not_kept.insights, not_kept.evidence) == (None, ())
    assert kept.insights.personal in writer.asked[0]


def test_the_same_history_gives_the_same_profile(writer: Writer) -> None:
    found = []
    for seed in (0, 0, 1):
        writer.asked.clear()
        model = tiny("llama")
        weights = [p.detach().clone() for p in model.model.parameters()]
        settings = Personalization(
            items=4, selection="random", seed=seed, imitation=Imitation(steps=2, rows=2)
        )
        found.append(stacked(Personalizer(model, settings=settings).profile(HISTORY).edit))
        after = model.model.parameters()
        assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2], atol=1e-3)


# --- A start -------------------------------------------------------------------------------------


def test_an_imitation_begins_with_the_edit_of_a_group(model: LanguageModel) -> None:
    group = Personalizer(model, settings=Personalization()).profile(HISTORY[6:])
    settings = Personalization(imitation=Imitation(steps=3, learning_rate=0.02))
    maker = Personalizer(model, settings=settings)
    found = maker.profile(HISTORY[:2], start=group)
    expected = imitate(
        model, sequences(model, HISTORY[:2]), [1, 2], settings.imitation, start=group.edit
    )
    assert np.array_equal(stacked(found.edit), stacked(expected))
    assert cosine(found.edit, group.edit) > cosine(maker.profile(HISTORY[:2]).edit, group.edit)


@pytest.mark.parametrize(
    ("method", "edit", "match"),
    [
        ("mean-difference", None, "'mean-difference' begins with no profile"),
        ("distilled", None, "'distilled' begins with no profile"),
        ("imitation", additive({1: np.ones(WIDTH, np.float32)}), "additive edit of width"),
        ("imitation", ZERO, "additive edit of width"),
        (
            "imitation",
            two_step(*({k: np.ones(WIDTH, np.float32) for k in (1, 2)} for _ in range(2))),
            "additive edit of width",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    method: Any, edit: Edit | None, match: str, model: LanguageModel, writer: Writer
) -> None:
    start = Personalizer(model).profile(HISTORY[:1])
    start = start if edit is None else replace(start, edit=edit)
    settings = Personalization(method, "history" if method == "distilled" else "style")
    with pytest.raises(InputError, match=match):
        Personalizer(model, settings=settings).profile(HISTORY, start=start)


def test_a_start_is_of_the_same_model_and_kind(model: LanguageModel) -> None:
    maker = Personalizer(model)
    start = maker.profile(["Hi there."])
    other = tiny("llama", seed=1).fingerprint
    for value, match in (
        (replace(start, fingerprint=other), "start: was made with another model"),
        (replace(start, gated=True), "one of the two profiles acts behind a gate"),
        ("group-1", "start: expected a Profile, got 'group-1'"),
    ):
        with pytest.raises(InputError, match=match):
            maker.profile(["Hi."], start=value)  # type: ignore[arg-type]


def test_what_is_disliked_is_avoided_by_an_imitation(model: LanguageModel) -> None:
    liked = [HistoryItem("Yes, gladly so.", "Well?")]
    pairs = [HistoryItem("Yes, gladly so.", "Well?", "Certainly not today.")]
    maker = Personalizer(model)
    without, with_it = maker.profile(liked).edit, maker.profile(pairs).edit
    prompt = prompt_tokens(model, render(model.tokenizer, "Well?"))
    sequence = (prompt, [*response_tokens(model, "Certainly not today.")])

    def likelihood(edit: Edit) -> float:
        texts = Continuations(model, [sequence])
        with torch.inference_mode(), attach(model).steer(edit, prompt_length=1):
            return float(texts.log_likelihood())

    assert likelihood(with_it) < likelihood(without)


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"method": "best"}, "method to be one of imitation, mean-difference"),
        ({"contrast": "labels"}, "contrast to be one of insights, style, history"),
        ({"insights": "me"}, "insights to be one of model, measures"),
        ({"selection": "all"}, "selection to be one of pca"),
        ({"items": 0}, "items to be a whole number >= 1, got 0"),
        ({"prompts": -3}, "prompts to be a whole number >= 1, got -3"),
        *(({"kl": kl}, "kl: expected a positive") for kl in (0, -1, float("inf"), float("nan"))),
        ({"method": "distilled"}, "'style' gives no requests"),
        ({"contrast": "history"}, "'imitation' is of the person's own texts"),
        ({"contrast": "insights"}, "'imitation' is of the person's own texts"),
        *(({"seed": seed}, "seed: expected a whole") for seed in (-1, 1.5, "1", 2**63)),
        ({"items": 2.5}, "items to be a whole number >= 1, got 2.5"),
        *(
            ({"layers": layers}, "layers: expected 'middle', 'ccs-jump' or a tuple of ascending")
            for layers in ("deep", [1, 2], (2, 1), (1, 1), (), (-1, 0), (1.0,), (True, 2))
        ),
        ({"layers": "ccs-jump"}, "'imitation' reads no pairs"),
        (
            {"method": "distilled", "contrast": "history", "layers": "ccs-jump"},
            "'distilled' reads no pairs",
        ),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Personalization(**changes)


def test_histories_that_are_refused(model: LanguageModel) -> None:
    maker = Personalizer(model, settings=Personalization(selection="similar"))
    for history in ([], "a text", [3]):
        with pytest.raises(InputError, match="history"):
            maker.profile(history)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="needs a query"):
        maker.profile(HISTORY)
    with pytest.raises(InputError, match="layers in 0..3"):
        Personalizer(model, settings=Personalization(layers=(4,))).profile(HISTORY)


# --- Insights ------------------------------------------------------------------------------------

SHORT = ["Yes.", "Not now.", "Fine by me."]
LONG = ["The river runs past the mill and under the old bridge into the wide plain. " * 8]
CHEERFUL = [
    "What a wonderful, lovely day, and I love this happy place.",
    "Great joy and delight, a beautiful and brilliant success.",
]
GLOOMY = [
    "A terrible, miserable day, and sadness is in this awful place.",
    "Grief and pain, a horrible and hopeless failure.",
]
EVEN = ["The box holds twelve pencils.", "The train leaves from platform two at nine."]
CASUAL = ["hey dude, i'm gonna grab lunch, wanna come? it's super cool!", "lol yeah, you rock!"]
FORMAL = [
    "The committee has considered the application and regrets to inform the applicant.",
    "Further correspondence regarding this matter should be addressed to the secretary.",
]
CHILDISH = ["The cat sat on a mat. The dog ran to it. It was a big red hat."]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (SHORT, "is very short, about 2 words"),
        (["One text of some thirty words. " * 5], "is short, about 30 words"),
        (LONG, "is long, about 120 words"),
        (CHEERFUL, "mood cheerful"),
        (GLOOMY, "mood gloomy"),
        (EVEN, "mood even"),
        (CASUAL, "tone is casual"),
        (FORMAL, "tone is formal"),
        (FORMAL, "words are learned"),
        (CHILDISH, "words are plain"),
        (LONG, "often the same"),
        (FORMAL, "seldom the same"),
        (["..."], "about 1 word."),
    ],
)
def test_measures_say_how_a_person_writes(texts: list[str], says: str) -> None:
    found = measured_insight(texts)
    assert says in found
    assert unusable(found, read_history(texts)) == ""


GOOD = "The writer is brief and dry. Sentences seldom run past a line, and jokes are rare."


@pytest.mark.parametrize(
    ("insight", "why"),
    [
        (GOOD, ""),
        (GOOD[:-1] + "!", ""),
        ('They say "I see what you mean by this, my friend."', ""),
        (GOOD[:-1], "breaks off"),
        (GOOD + " And then", "breaks off"),
        (GOOD + " Dry as a", "breaks off"),
        ("Short and dry.", "it has 3 words, expected 6 to 70"),
        ("", "it has 0 words"),
        (" ".join(f"word{i}" for i in range(71)) + ".", "it has 71 words"),
        ("They write well and warmly. " * 6, "loops"),
        ("ha " * 30 + "ha.", "loops"),
        ("They write <|im_end|> with warmth, and at some length too.", "broken"),
        ("They write \ufffd with warmth, and at some length too.", "broken"),
        ("It was only the postman again and my sister has bought a small boat.", "history over"),
    ],
)
def test_what_is_no_use_as_an_insight(insight: str, why: str) -> None:
    found = unusable(insight, read_history(HISTORY))
    assert (found == "") if why == "" else (why in found)


def test_a_few_words_of_the_history_may_be_quoted() -> None:
    quoting = GOOD + " They ended once with: it was only the postman."
    assert unusable(quoting, read_history(HISTORY)) == ""
    assert "history over" in unusable(GOOD, [HistoryItem(GOOD)])
    assert unusable(GOOD, []) == ""


def test_the_beginnings_of_texts_are_shown() -> None:
    long = " ".join(f"w{i}" for i in range(100))
    lines = shown(read_history(["One\n two.", long])).split("\n")
    assert lines == ["- One two.", "- " + " ".join(f"w{i}" for i in range(60))]


def test_fit_is_the_gain_in_likelihood_per_token(model: LanguageModel) -> None:
    items = read_history([HISTORY[0], "Only the postman again."])
    each = []
    for item in items:
        text = list(response_tokens(model, item.text))
        means = []
        for way, insight in (("as_personal", "Dry."), ("as_neutral", "Plain.")):
            request = f"{prompt_of(item)}\n\n{templates()[way].format(insight=insight)}"
            prompt = prompt_tokens(model, render(model.tokenizer, request))
            scores = naive.logits_of(model, [*prompt, *text], None, 0).double().log_softmax(-1)
            rows = range(len(prompt) - 1, len(prompt) + len(text) - 1)
            means.append(float(np.mean([scores[i, t] for i, t in zip(rows, text, strict=True)])))
        each.append(means[0] - means[1])
    assert fit(model, items, "Dry.", "Plain.") == pytest.approx(np.mean(each), abs=1e-5)
    assert abs(np.mean(each)) > 1e-3


@pytest.mark.parametrize(
    ("written", "gain", "by", "refused"),
    [
        ((GOOD, "Plain words are used, and the mood stays even."), 0.1, ("model", "model"), ""),
        ((GOOD, "Plain."), 0.1, ("model", "measures"), ""),
        ((GOOD, GOOD), 0.0, ("measures", "model"), "no likelier than the neutral one"),
        ((GOOD, GOOD), -0.1, ("measures", "model"), "no likelier than the neutral one"),
        ((GOOD[:-1], GOOD), 0.1, ("measures", "model"), "breaks off"),
        (("My sister has bought a small boat.", GOOD), 0.1, ("measures", "model"), "over again"),
    ],
)
def test_insights_that_are_no_use_are_replaced(
    written: tuple[str, str],
    gain: float,
    by: tuple[str, str],
    refused: str,
    model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer([one.replace(". ", ".\n ") for one in written])
    monkeypatch.setattr(insights, "generate_batch", writer)
    compared = []

    def told(model: Any, items: Any, personal: str, neutral: str) -> float:
        compared.append((personal, neutral))
        return gain

    monkeypatch.setattr(insights, "fit", told)
    items = read_history(HISTORY)
    found = write_insights(model, items)
    assert (found.personal_by, found.neutral_by) == by
    assert (found.refused == "") if refused == "" else (refused in found.refused)
    personal = written[0] if by[0] == "model" else measured_insight([one[1] for one in HISTORY])
    assert found.personal == personal
    assert (found.neutral == written[1]) == (by[1] == "model")
    assert unusable(found.neutral, ()) == ""
    if compared:
        assert compared == [(written[0], found.neutral)]
    # The model is shown the history for the personal one alone.
    assert [shown(items) in text for text in writer.asked] == [True, False]


def test_insights_by_measures_ask_no_model(model: LanguageModel, writer: Writer) -> None:
    settings = Personalization("mean-difference", "insights", "measures", prompts=8, kl=0.1)
    maker = Personalizer(model, settings=settings)
    found = maker.profile(HISTORY, keep_evidence=True)
    assert found.insights == measured_insights(read_history(HISTORY))
    assert found.insights.personal == measured_insight([text for _, text in HISTORY])
    assert (found.insights.personal_by, found.insights.neutral_by) == ("measures", "measures")
    assert found.statistics["insight by"] == "measures"
    # Only prompts are answered, under the one insight and under the other.
    assert len(writer.asked) == 16
    for number, insight in enumerate((found.insights.personal, found.insights.neutral)):
        assert all(insight in text for text in writer.asked[8 * number : 8 * (number + 1)])


# --- Groups --------------------------------------------------------------------------------------

GARDEN = [
    ["My tomatoes are ripe at last.", "Compost does wonders for beans."],
    ["I pruned the roses today.", "The hedge wants cutting, and the lawn needs rain."],
    ["Slugs ate every lettuce in the vegetable bed.", ("And then?", "I sowed seeds again.")],
]
FOOTBALL = [
    ["The match went to penalties.", "Our goalkeeper was injured."],
    ["They won the league at last.", "What a goal by the striker!"],
    ["The referee sent off two defenders.", ("And then?", "The team lost in extra time.")],
]
PEOPLE = [GARDEN[0], FOOTBALL[0], FOOTBALL[1], GARDEN[1], GARDEN[2], FOOTBALL[2]]


def test_people_who_write_of_the_same_belong_together() -> None:
    for seed in range(4):
        names = cluster(PEOPLE, 2, seed=seed)
        assert set(names) == {"group-1", "group-2"}
        assert names[0] == names[3] == names[4] and names[1] == names[2] == names[5]
        assert cluster(PEOPLE, 2, seed=seed) == names
    assert set(cluster(PEOPLE, 1)) == {"group-1"}
    assert len(set(cluster(PEOPLE, 6))) == 6


def test_a_person_stands_at_the_mean_of_their_texts() -> None:
    texts = ["Slugs ate every lettuce in the vegetable bed.", "I sowed seeds again."]
    found = standing(GARDEN[2])
    np.testing.assert_allclose(found, (embed(texts[:1])[0] + embed(texts[1:])[0]) / 2, atol=1e-6)
    assert found.shape == (384,) and found.dtype == np.float32


def test_somebody_new_is_sent_to_the_nearest_group(model: LanguageModel) -> None:
    maker = Personalizer(model, settings=Personalization(imitation=Imitation(steps=2)))
    names = ["garden" if one in GARDEN else "football" for one in PEOPLE]
    profiles = group_profiles(maker, PEOPLE, names)
    assert list(profiles) == ["football", "garden"]
    for name, members in (("garden", GARDEN), ("football", FOOTBALL)):
        one = profiles[name]
        assert one.centre is not None and one.centre.dtype == np.float32
        expected = np.mean([standing(member) for member in members], axis=0)
        np.testing.assert_allclose(one.centre, expected, atol=1e-6)
        assert (one.statistics["people"], one.statistics["items"]) == (3, 6)
        # The last items are the last of each.
        first, last = ([member[place] for member in members] for place in (0, 1))
        together = maker.profile([*first, *last])
        assert np.array_equal(stacked(one.edit), stacked(together.edit))
    assert assign(["How often should I water my seedlings?"], profiles) == "garden"
    assert assign(["The coach chose a young midfielder."], profiles) == "football"
    # Those of no group are left out.
    alone = {**profiles, "Ada": maker.profile(["How often should I water my seedlings?"])}
    assert assign(["How often should I water my seedlings?"], alone) == "garden"
    with pytest.raises(InputError, match="none of the profiles is of a group"):
        assign(["Hello."], {"Ada": alone["Ada"]})
    with pytest.raises(InputError, match="history"):
        assign([], profiles)


def test_a_group_of_two_people_counts_people_not_texts() -> None:
    """Someone who wrote much does not pull the centre."""
    maker = Personalizer(tiny("llama"), settings=Personalization(imitation=Imitation(steps=1)))
    much = [text for member in FOOTBALL for text in read_history(member)]
    one = group_profiles(maker, [GARDEN[0], much], ["all", "all"])["all"]
    expected = (standing(GARDEN[0]) + standing(much)) / 2
    assert one.centre is not None
    np.testing.assert_allclose(one.centre, expected, atol=1e-6)


def test_the_last_items_of_a_group_are_the_last_of_each(model: LanguageModel) -> None:
    settings = Personalization(items=3, selection="recent", imitation=Imitation(steps=1))
    maker = Personalizer(model, settings=settings)
    members = [["a one", "a two", "a three"], ["b one"], ["c one", "c two"]]
    one = group_profiles(maker, members, ["all"] * 3)["all"]
    expected = maker.profile(["a three", "b one", "c two"])
    assert np.array_equal(stacked(one.edit), stacked(expected.edit))


def test_what_an_item_answers_may_be_longer_than_the_context(model: LanguageModel) -> None:
    """Its end is read."""
    maker = Personalizer(model, settings=Personalization(imitation=Imitation(steps=2)))
    end = "x" * 600
    long, longer = (maker.profile([(start + end, "Fine!")]) for start in ("", "y" * 5000))
    assert np.array_equal(stacked(long.edit), stacked(longer.edit))


def test_a_seed_is_of_the_imitation_too(model: LanguageModel) -> None:
    history = [f"This is text number {i}." for i in range(6)]
    edits = []
    for seed in (0, 0, 1):
        settings = Personalization(seed=seed, imitation=Imitation(steps=2, rows=2))
        edits.append(stacked(Personalizer(model, settings=settings).profile(history).edit))
    assert np.array_equal(edits[0], edits[1]) and not np.allclose(edits[0], edits[2], atol=1e-4)


def test_groups_that_are_refused(model: LanguageModel) -> None:
    for number in (0, -1, 7):
        with pytest.raises(InputError, match=f"expected 1 to 6, the people, got {number}"):
            cluster(PEOPLE, number)
    with pytest.raises(InputError, match="history"):
        cluster([["Hi."], []], 1)
    maker = Personalizer(model)
    for histories, names in (([], []), (PEOPLE, ["a"]), (PEOPLE[:1], ["a", "b"])):
        with pytest.raises(InputError, match="names of groups for"):
            group_profiles(maker, histories, names)


# --- The packaged model --------------------------------------------------------------------------

CHATTY = [
    ("What should I cook tonight?", "ooh tacos!! like, easiest thing ever lol, just do it"),
    ("How was your weekend?", "omg so good!! we went to the beach and i got sooo sunburnt haha"),
    ("Can you recommend a book?", "yesss ok so i just read this crazy thriller, you'd love it!!"),
    ("Is it worth learning to drive?", "honestly?? yeah!! i was so scared at first lol but wow"),
    ("What do you think of winter?", "ugh no thanks haha, way too cold for me, gimme summer!!"),
    ("Do you like your job?", "lol most days yeah!! my boss is kinda weird but it's all good"),
    ("How do I relax?", "ok so hot bath, phone OFF, some dumb tv show, trust me haha!!"),
    ("Tell me about your pet.", "omg my cat is the BEST!! total drama queen tho lol"),
]
HELD_OUT = [
    ("What did you do today?", "haha not much!! slept till like noon and then got coffee lol"),
    ("Should I buy a bike?", "omg yes do it!! i got mine last year and it's sooo fun haha"),
    ("How do I make friends?", "ok honestly just say hi to people lol, it's not that scary!!"),
    ("What music do you like?", "ooh everything haha but like, mostly loud stuff!! sorry lol"),
]
TERSE = [("Is it late?", "Yes."), ("Who rang?", "The postman."), ("Any plans?", "None so far.")]


# Few steps: what is asked here needs no more.
QUICK = Personalization(imitation=Imitation(steps=6))


@pytest.fixture(scope="module")
def steerer() -> Steerer:
    return steer.load()


@pytest.fixture(scope="module")
def chatty(steerer: Steerer) -> Profile:
    return steerer.personalize(CHATTY, QUICK)


@pytest.mark.real
def test_texts_of_a_person_become_likelier(steerer: Steerer, chatty: Profile) -> None:
    assert 0 < chatty.dose <= 1.05 and chatty.gated

    def gain(prompt: list[int], text: list[int]) -> float:
        """In nats per token."""
        before = mean_log_likelihood(steerer.language_model, [(prompt, text)])[0]
        with steerer.steer(profile=chatty, prompt_length=len(prompt)):
            after = mean_log_likelihood(steerer.language_model, [(prompt, text)])[0]
        return float(after - before)

    own = [gain(*one) for one in sequences(steerer.language_model, HELD_OUT)]
    others = [(prompt, text) for (prompt, _), text in zip(HELD_OUT, FORMAL + EVEN, strict=True)]
    other = [gain(*one) for one in sequences(steerer.language_model, others)]
    assert min(own) > 0 and np.mean(own) > 0.4
    assert np.mean(own) > np.mean(other) + 0.4


@pytest.mark.real
def test_a_mixed_batch_of_three_profiles_equals_each_alone(
    steerer: Steerer, chatty: Profile
) -> None:
    people = [chatty, *(steerer.personalize(one, QUICK) for one in (TERSE, GARDEN[0])), None]
    prompts = ["How do I sleep better?", "Tell me about rain.", "What should I cook tonight?"]
    prompts.append(prompts[0])
    decoding = Decoding(max_new_tokens=16)
    batch = steerer.answer(prompts, profile=people, decoding=decoding)
    plain = steerer.answer(prompts, decoding=decoding)
    for i, person in enumerate(people):
        (alone,) = steerer.answer(prompts[i : i + 1], profile=person, decoding=decoding)
        assert alone.tokens == batch[i].tokens
        assert (alone.tokens == plain[i].tokens) == (person is None)


def test_the_default_steerer_makes_profiles(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle("tiny", model.fingerprint, "response", {}, {}, {})
    steerer = Steerer(model, bundle)
    monkeypatch.setattr(quick, "default_steerer", lambda: steerer)
    made = steer.personalize(HISTORY[:2], keep_evidence=True)
    assert made.edit.digest == steerer.personalize(HISTORY[:2]).edit.digest
    assert made.evidence == read_history(HISTORY[:2])
    strong = replace(made, edit=20.0 * made.edit)
    said = steer.generate("Hi there", profile=strong, max_new_tokens=8)
    assert said == steerer.generate("Hi there", profile=strong, max_new_tokens=8)
    assert said != steer.generate("Hi there", max_new_tokens=8)


def test_threads_that_ask_at_once_share_the_default_steerer(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> Steerer:
        time.sleep(0.1)  # all ask meanwhile
        return Steerer(model, Bundle("tiny", model.fingerprint, "response", {}, {}, {}))

    monkeypatch.setattr(quick, "_kept", cache(load))
    with ThreadPoolExecutor(4) as pool:
        found = {one.result() for one in [pool.submit(quick.default_steerer) for _ in range(4)]}
    assert len(found) == 1
