"""Profiles as values, in a bundle's file, and as they steer."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steer import personalizer
from steer.bundle import SCHEMA, Bundle
from steer.chat import render
from steer.dose import reference_meter
from steer.edits import ZERO, Edit, additive, two_step
from steer.errors import (
    BundleError,
    BundleFormatError,
    ConcurrentSteeringError,
    InputError,
    WeightsError,
)
from steer.gate import Gate
from steer.generation import Decoding, encode, generate_batch
from steer.history import HistoryItem
from steer.hooks import attach
from steer.imitate import Imitation
from steer.insights import Insights
from steer.likelihood import KLMeter
from steer.models import wrap_model
from steer.personalizer import Personalization
from steer.profile import Profile
from steer.steerer import Steerer
from tests.models import LAYERS, tiny, tiny_model, tiny_tokenizer
from tests.models import WIDTH as MODEL_WIDTH
from tests.test_bundle import (
    DOUBLE,
    FINGERPRINT,
    _bundle,
    _gated,
    _mutate_json,
    _redocument,
    _refused,
    _same,
    _same_edit,
    _set,
    _vectors,
)
from tests.test_generation import an_edit
from tests.test_steerer import TRAITS, a_steerer, same

INSIGHTS = Insights(
    personal="The text is full of marmalade.",
    neutral="The text is plain.",
    personal_by="measures",
    neutral_by="model",
    refused="it breaks off",
)
EVIDENCE = (
    HistoryItem("I sailed a zeppelin. ü 😀", prompt="What did you do?", disliked="Nothing much."),
    HistoryItem("Brzeszczot!"),
)


def a_profile(seed: int = 0, **changes: Any) -> Profile:
    fields = {
        "fingerprint": FINGERPRINT,
        "edit": additive(_vectors(seed)),
        "dose": 0.25,
        "gated": False,
        "contrast": "style",
        "method": "imitation",
        "statistics": {"items": 31, "seconds": 0.1, "insight by": "model"},
    }
    return Profile(**{**fields, **changes})


def full(seed: int = 1, **changes: Any) -> Profile:
    centre = np.random.default_rng(seed).standard_normal(384).astype(np.float32)
    return a_profile(
        seed, **{"insights": INSIGHTS, "evidence": EVIDENCE, "centre": centre, **changes}
    )


def same_profile(a: Profile, b: Profile) -> bool:
    plain = ("fingerprint", "dose", "gated", "contrast", "method", "insights", "evidence")
    centres = [None if p.centre is None else (p.centre.dtype, p.centre.tobytes()) for p in (a, b)]
    return (
        all(getattr(a, key) == getattr(b, key) for key in plain)
        and repr(dict(a.statistics)) == repr(dict(b.statistics))
        and centres[0] == centres[1]
        and _same_edit(a.edit, b.edit)
    )


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fingerprint": "x"}, "'fingerprint': expected a Fingerprint"),
        ({"edit": {}}, "'edit': expected an Edit"),
        ({"edit": Edit({1: DOUBLE})}, "float32"),
        ({"edit": additive(_vectors(0, (1, 4)))}, "layers below 4 .*layer 4 of width 6"),
        ({"edit": additive({1: np.ones(5, np.float32)})}, "width 6, got layer 1 of width 5"),
        ({"dose": -0.1}, "'dose': expected nats per token >= 0"),
        ({"dose": float("nan")}, "'dose'"),
        ({"dose": "0.1"}, "'dose'"),
        ({"dose": True}, "'dose'"),
        ({"gated": 1}, "'gated': expected true or false"),
        ({"gated": None}, "'gated'"),
        ({"contrast": None}, "'contrast': expected text"),
        ({"method": 3}, "'method': expected text"),
        ({"statistics": ["items"]}, "'statistics': expected a mapping"),
        ({"statistics": {"items": [1]}}, "'statistics'"),
        ({"statistics": {"items": float("inf")}}, "'statistics'"),
        ({"statistics": {1: 1}}, "'statistics'"),
        ({"centre": np.zeros((2, 3), np.float32)}, "'centre': expected finite float32"),
        ({"centre": np.zeros(3)}, "'centre': expected finite float32"),
        ({"centre": [0.1]}, "'centre': expected finite float32"),
        ({"insights": "x"}, "'insights': expected Insights"),
        ({"evidence": ("x",)}, "'evidence': expected a tuple of HistoryItems"),
        ({"evidence": list(EVIDENCE)}, "'evidence': expected a tuple of HistoryItems"),
        ({"centre": np.full(3, np.nan, np.float32)}, "'centre': expected finite float32"),
    ],
)
def test_fields_are_checked(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=f"profile, field .*{match}"):
        a_profile(**changes)


def test_statistics_are_copied_and_read_only() -> None:
    statistics = {"items": 3}
    profile = a_profile(statistics=statistics, dose=np.float32(0.5))
    statistics["items"] = 4
    assert profile.statistics == {"items": 3} and type(profile.dose) is float
    with pytest.raises(TypeError):
        profile.statistics["items"] = 4  # type: ignore[index]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"personal": None}, "'personal': expected text"),
        ({"refused": None}, "'refused': expected text"),
        ({"personal_by": "me"}, "personal_by to be one of model, measures"),
        ({"neutral_by": ""}, "neutral_by to be one of model, measures"),
    ],
)
def test_insights_are_checked(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        replace(INSIGHTS, **changes)


# --- In a bundle ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Ada", "Zoë 😀", "brevity", "layer.01", "centre", "."])
@pytest.mark.parametrize(
    "one",
    [
        a_profile(),
        full(),
        a_profile(centre=np.array([-0.0, 1e-45, 3e38], np.float32)),
        a_profile(insights=INSIGHTS),
        a_profile(evidence=EVIDENCE),
        a_profile(edit=two_step(_vectors(1), _vectors(2), sign_safe=True) + additive(_vectors(3))),
        a_profile(edit=ZERO, dose=0),
        full(edit=ZERO),
    ],
)
def test_round_trip_is_exact(tmp_path: Path, name: str, one: Profile) -> None:
    bundle = _bundle(profiles={name: one, "other": a_profile(7)})
    bundle.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    assert list(loaded.profiles) == sorted([name, "other"])
    assert same_profile(loaded.profile(name), one)
    assert same_profile(loaded.profiles["other"], a_profile(7))
    assert _same(loaded, bundle)


def test_round_trip_beside_a_gate(tmp_path: Path) -> None:
    """What is not gated need not fit the gate."""
    both = two_step(_vectors(1, (3,)), _vectors(2, (3,)))
    people = {"a": a_profile(gated=True), "b": a_profile(edit=both)}
    _gated(profiles=people).save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b").profiles
    assert all(same_profile(loaded[name], one) for name, one in people.items())


def test_the_order_of_profiles_is_not_in_the_bytes(tmp_path: Path) -> None:
    people = {"b": full(), "a": a_profile()}
    _bundle(profiles=people).save(tmp_path / "1")
    _bundle(profiles=dict(sorted(people.items()))).save(tmp_path / "2")
    _bundle().with_profiles({"a": a_profile()}).with_profiles({"b": full()}).save(tmp_path / "3")
    Bundle.load(tmp_path / "1").save(tmp_path / "4")
    assert len({(tmp_path / name).read_bytes() for name in "1234"}) == 1


def test_profiles_are_added_and_replaced() -> None:
    bundle = _bundle(profiles={"a": a_profile(1)})
    more = bundle.with_profiles({"b": a_profile(2), "a": a_profile(3)})
    assert list(bundle.profiles) == ["a"] and same_profile(bundle.profile("a"), a_profile(1))
    assert same_profile(more.profile("a"), a_profile(3))
    assert same_profile(more.profile("b"), a_profile(2))
    assert _same(more, bundle)
    with pytest.raises(TypeError):
        more.profiles["c"] = a_profile()  # type: ignore[index]


def test_nothing_is_left_of_a_removed_profile(tmp_path: Path) -> None:
    kept = full(3, evidence=())
    name, gone = "Wilhelmina", full(2)
    with_both = _bundle(profiles={name: gone, "other": kept})
    traces = [name.encode(), b"zeppelin", b"marmalade", gone.centre.tobytes()]  # type: ignore[union-attr]
    traces += [layer.e.tobytes() for layer in gone.edit.layers.values()]
    with_both.save(tmp_path / "b")
    before = (tmp_path / "b").read_bytes()
    assert all(trace in before for trace in traces)
    other = replace(kept, insights=None)
    without = with_both.with_profiles({"other": other}).without_profile(name)
    without.save(tmp_path / "b")
    after = (tmp_path / "b").read_bytes()
    assert not any(trace in after for trace in traces)
    _bundle(profiles={"other": other}).save(tmp_path / "c")
    assert after == (tmp_path / "c").read_bytes()
    assert list(with_both.profiles) == [name, "other"]  # bundles are values


def test_unknown_names_tell_no_others() -> None:
    bundle = _bundle(profiles={"Wilhelmina": a_profile(), "Ada": a_profile()})
    for ask in (bundle.profile, bundle.without_profile):
        with pytest.raises(InputError, match="no profile 'Bob' among the bundle's 2") as error:
            ask("Bob")
        assert "Wilhelmina" not in str(error.value) and "Ada" not in str(error.value)


def test_info_tells_whose_profiles_there_are_and_no_text() -> None:
    info = _bundle(profiles={"Wilhelmina": full(), "Adalbert": a_profile()}).info()
    assert list(info["profiles"]) == ["Adalbert", "Wilhelmina"] and info["schema"] == SCHEMA
    assert info["profiles"]["Wilhelmina"]["texts kept"] == len(EVIDENCE)
    told = json.dumps(info)
    assert not any(word in told for word in ("zeppelin", "marmalade"))


@pytest.mark.parametrize(
    ("profiles", "match"),
    [
        ({"a/b": a_profile()}, "printable name"),
        ({"": a_profile()}, "printable name"),
        ({"  ": a_profile()}, "printable name"),
        ({"a\nb": a_profile()}, "printable name"),
        ({"a\ud800": a_profile()}, "valid Unicode"),
        ({3: a_profile()}, "expected text"),
        ({"a": None}, "expected a Profile"),
        ({"a": additive(_vectors(0))}, "expected a Profile"),
        ([a_profile()], "expected a mapping"),
        ({"a": a_profile(fingerprint=replace(FINGERPRINT, weights="cd" * 32))}, "another model"),
        ({"a": a_profile(gated=True)}, "'a' acts behind a gate, and the bundle has none"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(profiles: Any, match: str) -> None:
    with pytest.raises(InputError, match=f"profile.*{match}"):
        _bundle(profiles=profiles)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (two_step(_vectors(1), _vectors(2)), "only additive edits"),
        (additive(_vectors(1, (2, 3))), r"the edit is of \[3\] too"),
    ],
)
def test_gated_profiles_must_fit_the_gate(edit: Edit, match: str) -> None:
    assert _gated(profiles={"a": a_profile(edit=edit)}).profile("a").edit is edit
    with pytest.raises(InputError, match=match):
        _gated(profiles={"a": a_profile(edit=edit, gated=True)})


def test_a_bundle_keeps_profiles_that_need_its_gate() -> None:
    bundle = _gated(profiles={"a": a_profile(gated=True)})
    with pytest.raises(InputError, match="the bundle has none"):
        replace(bundle, gate=None)


# --- Files ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "b.safetensors"
    _bundle(profiles={"Ada": full(), "Bob": a_profile()}).save(path)
    return path


def test_files_of_before_profiles_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "b"
    _bundle().save(path)
    now = path.read_bytes()

    def older(document: dict[str, Any]) -> dict[str, Any]:
        assert document.pop("profiles") == {}
        return {**document, "schema": 3}

    old = _redocument(now, older)
    path.write_bytes(old)
    loaded = Bundle.load(path)
    assert _same(loaded, _bundle()) and loaded.profiles == {}
    loaded.save(path)
    assert path.read_bytes() == now
    newer = _redocument(old, lambda document: {**document, "schema": 4})
    _refused(path, newer, BundleFormatError, "'profiles' is missing")
    earlier = _redocument(now, lambda document: {**document, "schema": 3})
    _refused(path, earlier, BundleFormatError, "'profiles' is unknown")


def _changed(*keys: str | int, value: Any) -> Any:
    return _set("profiles", "Ada", *keys, value=value)


def _dropped(key: str) -> Any:
    def change(document: dict[str, Any]) -> None:
        del document["profiles"]["Ada"][key]

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set("profiles", value=[]), "'profiles': expected an object"),
        (_set("profiles", value=None), "'profiles': expected an object"),
        (_set("profiles", value={}), "is unknown"),
        (_set("profiles", "Ada", value=None), "a profile: expected an object"),
        (_set("profiles", "Cid", value={}), "is missing"),
        *((_dropped(key), f"'{key}' is missing") for key in ("dose", "ranks", "centre", "evidence",
                                                              "insights", "statistics", "gated")),
        (_changed("edit", value={}), "'edit' is unknown"),
        (_changed("fingerprint", value="x"), "'fingerprint' is unknown"),
        (_changed("dose", value=-1.0), "'dose'"),
        (_changed("dose", value="1"), "'dose'"),
        (_changed("dose", value=None), "'dose'"),
        (_changed("gated", value=True), "acts behind a gate"),
        (_changed("gated", value=0), "'gated'"),
        (_changed("contrast", value=None), "'contrast'"),
        (_changed("method", value=[]), "'method'"),
        (_changed("statistics", value=[]), "'statistics'"),
        (_changed("statistics", value={"a": None}), "'statistics'"),
        (_changed("ranks", value=None), "'ranks'"),
        (_changed("ranks", value={"1": 0}), "is unknown"),
        (_changed("ranks", value={"01": 0, "2": 0}), "layer index"),
        (_changed("ranks", "1", value=1), "is missing"),
        (_changed("ranks", "1", value=-1), "'ranks'"),
        (_changed("centre", value=None), "is unknown"),
        (_changed("centre", value=383), "centre'"),
        (_changed("centre", value="384"), "'centre'"),
        (_changed("centre", value=[384]), "'centre'"),
        (_changed("centre", value=1 << 52), "centre'"),
        (_changed("insights", value="kind"), "'insights'"),
        (_changed("insights", value={}), "is missing"),
        (_changed("insights", "mood", value="kind"), "'mood' is unknown"),
        (_changed("insights", "personal", value=3), "'personal'"),
        (_changed("insights", "personal_by", value="you"), "personal_by"),
        (_changed("evidence", value=None), "'evidence': expected a list"),
        (_changed("evidence", value={}), "'evidence': expected a list"),
        (_changed("evidence", value=["text"]), "evidence: expected an object"),
        (_changed("evidence", value=[{"text": "a"}]), "is missing"),
        (_changed("evidence", 0, "author", value="a"), "'author' is unknown"),
        (_changed("evidence", 0, "text", value=None), "'text'"),
        (_changed("evidence", 0, "text", value=" "), "'text'"),
        (_changed("evidence", 0, "prompt", value=3), "'prompt'"),
    ],
)  # fmt: skip
def test_damaged_fields_are_refused(saved: Path, change: Any, match: str) -> None:
    _refused(saved, _redocument(saved.read_bytes(), change), BundleFormatError, match)


def test_a_profile_cannot_take_the_place_of_another(saved: Path) -> None:
    def swap(document: dict[str, Any]) -> None:
        people = document["profiles"]
        people["Ada"], people["Bob"] = people["Bob"], people["Ada"]

    def rename(document: dict[str, Any]) -> None:
        document["profiles"]["Cid"] = document["profiles"].pop("Bob")

    data = saved.read_bytes()
    # Only one of them has a centre.
    _refused(saved, _redocument(data, swap), BundleFormatError, "Bob/centre' is missing")
    renamed = _redocument(data, rename)
    _refused(saved, renamed, BundleFormatError, "profile/Cid/layer.01/e' is missing")


def test_damage_at_random_raises_nothing_but_bundle_errors(saved: Path) -> None:
    data, rng, refused = saved.read_bytes(), random.Random(5), 0
    for _ in range(400):
        mutant = _redocument(data, lambda document: _mutate_json(rng, document["profiles"]))
        saved.write_bytes(mutant)
        try:
            loaded = Bundle.load(saved)
        except BundleError:
            refused += 1
        else:
            json.dumps(loaded.info(), allow_nan=False)
    assert 200 < refused < 400


def test_no_flipped_bit_changes_a_profile(saved: Path) -> None:
    data, rng, refused = bytearray(saved.read_bytes()), random.Random(6), 0
    original = Bundle.load(saved).profiles
    for _ in range(300):
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[at] ^= bit
        saved.write_bytes(data)
        data[at] ^= bit
        try:
            loaded = Bundle.load(saved).profiles
        except BundleError:
            refused += 1
        else:
            # Such as another kind of space in the header.
            assert loaded.keys() == original.keys()
            assert all(same_profile(loaded[name], one) for name, one in original.items())
    assert refused > 290


# --- Steering ------------------------------------------------------------------------------------

OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "no_repeat_ngram_size": 0}
PROMPTS = ["Hi", "How are you?", "Tell me about rain."]


def of_model(seed: int, **changes: Any) -> Profile:
    fingerprint = tiny("llama").fingerprint
    return a_profile(**{"fingerprint": fingerprint, "edit": 2 * an_edit(seed), **changes})


def personal(*, gate: bool = False, **people: Profile) -> Steerer:
    """A steerer whose bundle holds profiles."""
    steerer = a_steerer()
    directions = {i: np.full(MODEL_WIDTH, 0.5 + i, np.float32) for i in range(LAYERS)}
    bundle = replace(steerer.bundle, gate=Gate(directions) if gate else None)
    return Steerer(steerer.language_model, bundle.with_profiles(people))


def test_a_profile_steers_as_its_edit() -> None:
    ada = of_model(6)
    steerer = personal(Ada=ada, Bob=of_model(7))
    model = steerer.language_model
    texts = [render(model.tokenizer, prompt) for prompt in PROMPTS]
    decoding = Decoding.from_options(OPTIONS)  # type: ignore[arg-type]
    with attach(model).steer(ada.edit):
        expected = [answer.text for answer in generate_batch(model, texts, decoding)]
    assert steerer.generate(PROMPTS, profile=ada, **OPTIONS) == expected
    assert steerer.generate(PROMPTS, profile="Ada", **OPTIONS) == expected
    assert steerer.generate(PROMPTS, [None] * 3, profile=[ada, "Ada", ada], **OPTIONS) == expected
    assert steerer.generate(PROMPTS[1], profile="Ada", **OPTIONS) == expected[1]
    for other in (None, "Bob"):
        assert steerer.generate(PROMPTS, profile=other, **OPTIONS) != expected


def test_strength_scales_a_profile() -> None:
    ada = of_model(6)
    steerer = personal(Ada=ada)
    for strength in (0.25, 1.0, 1.5):
        for person in (ada, "Ada"):
            found = steerer.resolve(None, strength, profile=person)
            assert same(found, strength * ada.edit) and not found.is_zero()
    assert steerer.resolve(None, 0, profile=ada).is_zero()
    plain = steerer.generate(PROMPTS, **OPTIONS)
    assert steerer.generate(PROMPTS, profile=ada, strength=0, **OPTIONS) == plain
    half = steerer.generate(PROMPTS, profile=ada, strength=0.5, **OPTIONS)
    assert half == steerer.generate(PROMPTS, profile=of_model(6, edit=0.5 * ada.edit), **OPTIONS)
    assert half not in (plain, steerer.generate(PROMPTS, profile=ada, **OPTIONS))
    with pytest.raises(WeightsError, match="strength"):
        steerer.generate(PROMPTS, profile=ada, strength=-1)


def test_gated_profiles_act_behind_the_gate_and_others_do_not() -> None:
    gated, open_ = of_model(6, gated=True), of_model(6)
    steerer = personal(gate=True, gated=gated, open=open_)
    gate = steerer.bundle.gate
    assert gate is not None
    for strength in (0.5, 1.0):
        expected = gate(strength * gated.edit).digest
        assert steerer.resolve(None, strength, profile=gated).digest == expected
        assert steerer.resolve(None, strength, profile="gated").digest == expected
        for person in (open_, "open"):
            found = steerer.resolve(None, strength, profile=person)
            assert found.digest == (strength * open_.edit).digest != expected


def test_a_stream_is_steered_too() -> None:
    ada = of_model(6)
    steerer = personal(Ada=ada)
    whole = steerer.generate(PROMPTS[2], profile=ada, **OPTIONS)
    for person in (ada, "Ada"):
        pieces = list(steerer.stream(PROMPTS[2], profile=person, **OPTIONS))
        assert "".join(pieces).strip() == whole
    assert whole != steerer.generate(PROMPTS[2], **OPTIONS)


def test_a_stream_is_refused_where_the_model_is_steered() -> None:
    """Its thread would wait for the block, and the block for it."""
    steerer = personal()
    with steerer.steer({"brevity": 1.0}):
        with pytest.raises(ConcurrentSteeringError, match="already steering"):
            next(steerer.stream("Hi", max_new_tokens=2))
        generate_batch(steerer.language_model, ["Hi"], Decoding(max_new_tokens=2))
    assert isinstance("".join(steerer.stream("Hi", max_new_tokens=2)), str)


def test_loops_of_ones_own_are_steered_too() -> None:
    ada = of_model(6)
    steerer = personal(Ada=ada)
    model, ids = steerer.language_model.model, torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        with attach(steerer.language_model).steer([ada.edit, None], prompt_length=2):
            expected = model(ids, use_cache=False).logits
        with steerer.steer(profile=["Ada", None], prompt_length=2):
            found = model(ids, use_cache=False).logits
        plain = model(ids, use_cache=False).logits
    assert torch.equal(found, expected)
    assert torch.equal(found[1], plain[1]) and not torch.allclose(found[0], plain[0], atol=0.1)


Row = tuple[dict[str, float] | None, Profile | str | None]


def many_rows() -> tuple[Steerer, list[Row]]:
    """A model in fp64; 64 profiles, half of them by name, and 16 rows with weights or nothing."""
    tiny_one = a_steerer()
    model = wrap_model(tiny_model("llama").double(), tiny_tokenizer(), name="llama")
    assert model.fingerprint == tiny_one.language_model.fingerprint
    rng = np.random.default_rng(0)
    people = []
    for number in range(64):
        layers = sorted(rng.choice(LAYERS, 1 + number % LAYERS, replace=False).tolist())
        edit = additive(
            {k: rng.standard_normal(MODEL_WIDTH).astype(np.float32) / len(layers) for k in layers}
        )
        people.append(of_model(0, edit=edit))
    named = {f"person {i}": one for i, one in enumerate(people) if i % 2}
    rows: list[Row] = [(None, f"person {i}" if i % 2 else one) for i, one in enumerate(people)]
    for _ in range(8):
        rows.append((dict(zip(TRAITS, rng.dirichlet(np.ones(3)).tolist(), strict=True)), None))
        rows.append((None, None))
    rows = [rows[i] for i in rng.permutation(80)]
    return Steerer(model, tiny_one.bundle.with_profiles(named)), rows


def test_a_mixed_batch_of_64_profiles_equals_each_row_alone() -> None:
    steerer, rows = many_rows()
    model = steerer.language_model.model
    prompts = [f"{'Well, ' * (i % 7)}what is {i}?" for i in range(len(rows))]
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "pad_token_id": steerer.language_model.tokenizer.pad_token_id,
    }

    def run(texts: Sequence[str], weights: Any, profile: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = encode(steerer.language_model, texts)
        with torch.inference_mode(), steerer.steer(weights, profile=profile):
            output = model.generate(**inputs, **options)
        return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, 1)

    weights, profiles = zip(*rows, strict=True)
    tokens, logits = run(prompts, weights, profiles)
    firsts = []
    for i, (weight, person) in enumerate(rows):
        alone, alone_logits = run(prompts[i : i + 1], weight, person)
        assert torch.equal(tokens[i], alone[0]), f"row {i}"
        # fp64 but for the fp32 in which logits are handed out.
        assert (logits[i] - alone_logits[0]).abs().max() < 1e-5, f"row {i}"
        plain = run(prompts[i : i + 1], None, None)[1][0, 0]
        firsts.append((alone_logits[0, 0] - plain).abs().max())
    steered = [weight is not None or person is not None for weight, person in rows]
    assert sum(steered) == 72
    assert all((change > 0.1) == one for change, one in zip(firsts, steered, strict=True))


def test_one_request_has_weights_or_a_profile() -> None:
    ada, weights = of_model(6), {"brevity": 1.0}
    steerer = personal(Ada=ada)
    with pytest.raises(InputError, match="weights or a profile, got both"):
        steerer.resolve(weights, profile=ada)
    with pytest.raises(InputError, match="got both"):
        steerer.generate("Hi", weights, profile="Ada")
    with pytest.raises(InputError, match="got both"):
        steerer.generate(PROMPTS, [None, weights, None], profile=[None, ada, None])
    with pytest.raises(InputError, match="got both"):
        steerer.generate(PROMPTS, weights, profile=[None, ada, None])
    with pytest.raises(InputError, match="got both"):
        steerer.generate(PROMPTS, [None, weights, None], profile="Ada")
    with pytest.raises(InputError, match="got both"):
        steerer.stream("Hi", weights, profile=ada)
    mixed = steerer.generate(PROMPTS, [None, weights, None], profile=[ada, None, None], **OPTIONS)
    for i, options in enumerate(({"profile": ada}, {"weights": weights}, {})):
        assert steerer.generate(PROMPTS[i], **options, **OPTIONS) == mixed[i]


def test_numbers_of_rows_must_agree() -> None:
    ada = of_model(6)
    steerer = personal(Ada=ada)
    with pytest.raises(InputError, match="got 2 profiles for 3 prompts"):
        steerer.generate(PROMPTS, profile=[ada, None])
    with pytest.raises(InputError, match="got 2 weights for 3 prompts"):
        steerer.generate(PROMPTS, [None, None], profile=[ada, None, ada])
    with (
        pytest.raises(InputError, match="2 weights and 3 profiles"),
        steerer.steer([None, None], profile=[ada, None, ada]),
    ):
        pass


def test_a_name_as_long_as_the_batch_is_one_name() -> None:
    steerer = personal(Ada=of_model(6))
    assert len("Ada") == len(PROMPTS)
    one = [steerer.generate(prompt, profile="Ada", **OPTIONS) for prompt in PROMPTS]
    assert steerer.generate(PROMPTS, profile="Ada", **OPTIONS) == one


def test_profiles_that_cannot_steer_are_refused() -> None:
    steerer = personal(Wilhelmina=of_model(6))
    with pytest.raises(InputError, match="no profile 'Ada' among the bundle's 1") as error:
        steerer.generate("Hi", profile="Ada")
    assert "Wilhelmina" not in str(error.value)
    other = of_model(6, fingerprint=tiny("llama", seed=1).fingerprint)
    with pytest.raises(InputError, match="made with another model"):
        steerer.generate("Hi", profile=other)
    with pytest.raises(InputError, match="made with another model"):
        steerer.stream("Hi", profile=other)
    with pytest.raises(InputError, match="acts behind a gate, and the bundle has none"):
        steerer.generate("Hi", profile=of_model(6, gated=True))
    with pytest.raises(InputError, match="expected a Profile or the name of one"):
        steerer.generate("Hi", profile=an_edit(1))  # type: ignore[call-overload]


def test_a_history_is_in_the_file_only_if_it_is_kept(tmp_path: Path) -> None:
    steerer = personal()
    history = [("What of the zeppelin?", "A quixotic marmalade."), HistoryItem("Brzeszczot, so!")]
    settings = Personalization(imitation=Imitation(steps=2))
    words = [b"zeppelin", b"quixotic", b"marmalade", b"Brzeszczot"]
    for keep in (True, False):
        profile = steerer.personalize(history, settings, keep_evidence=keep)
        assert (len(profile.evidence), profile.insights) == (2 * keep, None)
        steerer.bundle.with_profiles({"Ada": profile}).save(tmp_path / "b")
        data = (tmp_path / "b").read_bytes()
        assert [word in data for word in words] == [keep] * 4
        loaded = Bundle.load(tmp_path / "b")
        assert same_profile(loaded.profile("Ada"), profile)
        answers = [
            one.generate(PROMPTS, profile=person, strength=4, **OPTIONS)
            for one, person in (
                (steerer, profile),
                (Steerer(steerer.language_model, loaded), "Ada"),
            )
        ]
        assert answers[0] == answers[1] != steerer.generate(PROMPTS, **OPTIONS)


def test_what_profiles_share_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def meter(*args: Any, **options: Any) -> KLMeter:
        made.append(args)
        return reference_meter(*args, **options)

    monkeypatch.setattr(personalizer, "reference_meter", meter)
    steerer = personal(gate=True)
    settings = Personalization(imitation=Imitation(steps=1))
    for one in (settings, replace(settings, seed=1), replace(settings, kl=0.1)):
        assert steerer.personalize(["Hello!"], one).gated
    assert len(made) == 1
    assert not personal().personalize(["Hello!"], settings).gated


def test_by_force_a_profile_acts_by_value_as_by_name() -> None:
    bundle = a_steerer().bundle
    ada = a_profile(fingerprint=bundle.fingerprint, edit=an_edit(7), gated=False)
    bundle = bundle.with_profiles({"Ada": ada})
    with pytest.warns(UserWarning, match="its doses were not measured on this model"):
        steerer = Steerer(tiny("llama", seed=3), bundle, force=True)
    by_name = steerer.resolve(None, profile="Ada")
    assert by_name.digest == steerer.resolve(None, profile=ada).digest == an_edit(7).digest
