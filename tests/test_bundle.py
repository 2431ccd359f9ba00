"""`steer.bundle`: what is saved is loaded exactly, and no damaged file is ever loaded."""

import copy
import hashlib
import json
import os
import pickle
import random
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as st_load
from safetensors.numpy import save as st_save

from steer import container
from steer.bundle import SCHEMA, Bundle, forget
from steer.certificate import certify
from steer.edits import ZERO, Edit, LayerEdit, additive, two_step
from steer.errors import (
    BundleError,
    BundleFormatError,
    BundleVersionError,
    FingerprintError,
    InputError,
    WeightsError,
)
from steer.gate import Gate
from steer.history import HistoryItem
from steer.interference import Interference
from steer.models import Fingerprint
from steer.objective import Objective
from steer.portfolio import Candidate, Portfolio, Trial
from steer.profile import Profile
from steer.questions import Answered
from steer.resources import atomic_path
from steer.trait_entry import TraitEntry

WIDTH = 6
FINGERPRINT = Fingerprint("TinyForCausalLM", 4, WIDTH, 50, "ab" * 32)


DOUBLE = LayerEdit(*(np.zeros(s) for s in (6, (6, 0), (6, 0), 0)), np.zeros(0, dtype=bool))


def _vectors(seed, layers=(1, 2)):
    rng = np.random.default_rng(seed)
    return {i: rng.standard_normal(WIDTH).astype(np.float32) for i in layers}


def _entry(name, edit, **changes):
    fields = {
        "name": name,
        "description": "How long an answer is. ü 😀",
        "positive": "brief",
        "negative": "long",
        "edit": edit,
        "dose": 0.25,
        "method": "mean-difference",
        "reliability": 0.7,
        "ccs_loss": {0: 0.3, 1: 0.1, 3: 0.2},
        "direction_norm": {0: 1.5, 1: 2.5, 3: 1e-7},
        "statistics": {"kept": 61, "dropped: loop": 3, "gain": 0.125, "note": "fine"},
    }
    return TraitEntry(**{**fields, **changes})


def _portfolio(**changes):
    rewards = np.array([[0.2, 0.3], [0.9, 0.1], [0.1, 0.8], [0.4, 0.5]])
    objective = Objective(fairness=0.3, penalty=0.1, kl_unit=0.5, f_max=0.3)
    kl = np.array([0.0, 0.25, 0.125, 3.0])
    kept = (2, 1)
    fields = {
        "traits": ("warmth", "brevity"),
        "rewards": ("warm words", "length ü"),
        "objective": objective,
        "candidates": (
            Candidate("deep", (0.0, 0.0)),
            Candidate("deep", (1.0, 0.0)),
            Candidate("early", (0.0, 0.7)),
            Candidate("early", (0.5, 0.5)),
        ),
        "mean_rewards": rewards,
        "kl": kl,
        "kept": kept,
        "edits": (additive(_vectors(5, (3,))), two_step(_vectors(6), _vectors(7))),
        "certificate": certify(objective.measured(rewards, kl), kept, points=3),
        "searched": (
            Trial(Candidate("deep", (0.0, 0.0)), (0.25, 0.25), 0.0),
            Trial(Candidate("deep", (0.1, 0.2)), (0.125, 1.0), 0.75),
        ),
        "answered": (
            Answered("Why ü?", ("a", "", "c\n"), np.array([[0.1, 1 / 3], [0, 1], [0.5, 0.25]])),
        ),
    }
    return Portfolio(**{**fields, **changes})


LINEAR = [[0.5, -0.1], [0.25, 1 / 3]]
QUADRATIC = [[[0.1, 0.0], [-0.2, 0.3]], [[-0.2, 0.3], [0.0, 0.25]]]
INTERFERENCE = Interference(("warmth", "brevity"), np.array(LINEAR), np.array(QUADRATIC))
NO_TERMS = np.zeros((2, 2, 2))


def _bundle(**changes):
    relu = two_step(_vectors(1), _vectors(2), alpha=0.5, sign_safe=True)
    fields = {
        "model": "tiny/model",
        "fingerprint": FINGERPRINT,
        "scope": "response",
        "traits": {
            "brevity": _entry("brevity", additive(_vectors(0))),
            "warmth": _entry("warmth", relu + additive(_vectors(3, (0,))), dose=0),
        },
        "settings": {"seed": 7, "prompts": ["a", "b"], "sampling": {"top_p": 0.9, "k": None}},
        "versions": {"torch": "2.4", "steer": "0.1"},
        "portfolio": None if "traits" in changes else _portfolio(),
        "interference": None if "traits" in changes else INTERFERENCE,
    }
    return Bundle(**{**fields, **changes})


def _same_edit(a, b):
    return list(a.layers) == list(b.layers) and all(
        getattr(a.layers[i], part).dtype == getattr(b.layers[i], part).dtype
        and getattr(a.layers[i], part).shape == getattr(b.layers[i], part).shape
        and getattr(a.layers[i], part).tobytes() == getattr(b.layers[i], part).tobytes()
        for i in a.layers
        for part in ("e", "v", "u", "c", "relu")
    )


def _same_portfolio(a, b):
    if a is None or b is None:
        return a is b
    plain = ("traits", "rewards", "objective", "candidates", "kept", "searched")
    worst = ("delta", "epsilon")
    one, other = a.certificate, b.certificate
    return (
        all(getattr(a, key) == getattr(b, key) for key in plain)
        and a.mean_rewards.tobytes() == b.mean_rewards.tobytes()
        and a.kl.tobytes() == b.kl.tobytes()
        and [(x.prompt, x.answers, x.rewards.tolist()) for x in a.answered]
        == [(x.prompt, x.answers, x.rewards.tolist()) for x in b.answered]
        and all(_same_edit(x, y) for x, y in zip(a.edits, b.edits, strict=True))
        and (one.curve, one.candidates) == (other.curve, other.candidates)
        and all(
            (x.loss, x.weights.tolist(), x.edit) == (y.loss, y.weights.tolist(), y.edit)
            for x, y in ((getattr(one, key), getattr(other, key)) for key in worst)
        )
    )


def _told(interference):
    if interference is None:
        return None
    terms = interference.linear.tolist(), interference.quadratic.tolist()
    return interference.traits, *terms


def _same(a, b):
    """Equal in every field, written without the module's own helpers."""
    plain = ("description", "positive", "negative", "dose", "method", "reliability")
    maps = ("ccs_loss", "direction_norm", "statistics")
    return (
        (a.model, a.fingerprint, a.scope) == (b.model, b.fingerprint, b.scope)
        and repr(dict(a.settings)) == repr(dict(b.settings))
        and dict(a.versions) == dict(b.versions)
        and list(a.traits) == list(b.traits)
        and _same_portfolio(a.portfolio, b.portfolio)
        and _told(a.interference) == _told(b.interference)
        and all(
            x.name == y.name
            and all(getattr(x, key) == getattr(y, key) for key in plain)
            and all(repr(dict(getattr(x, key))) == repr(dict(getattr(y, key))) for key in maps)
            and _same_edit(x.edit, y.edit)
            for x, y in zip(a.traits.values(), b.traits.values(), strict=True)
        )
    )


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "b.safetensors"
    _bundle().save(path)
    return path


def _split(data):
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def _join(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def _sign(document):
    """The digest of the metadata, written out here independently of the module."""
    rest = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _redocument(data, change, sign=True):
    """The file with its metadata changed in place, and signed anew: what a forger would do."""
    header, body = _split(data)
    document = json.loads(header["__metadata__"]["steer"])
    document = change(document) or document
    document = _sign(document) if sign else document
    header["__metadata__"]["steer"] = json.dumps(document)
    return _join(header, body)


def _refused(path, data, error, match):
    path.write_bytes(data)
    with pytest.raises(error, match=match) as caught:
        Bundle.load(path)
    assert caught.type is error
    assert str(path) in str(caught.value)


# --- Round trip ----------------------------------------------------------------------------------


def test_round_trip_is_exact(saved):
    loaded = Bundle.load(saved)
    assert _same(loaded, _bundle())
    layer = loaded.traits["warmth"].edit.layers[1]
    assert layer.rank == 2 and layer.relu.all() and layer.relu.dtype == np.bool_
    x = np.random.default_rng(5).standard_normal((3, WIDTH)).astype(np.float32)
    original = _bundle().traits["warmth"].edit.layers[1]
    np.testing.assert_array_equal(layer.apply(x), original.apply(x))


def _gated(**changes):
    traits = {name: _entry(name, additive(_vectors(i))) for i, name in enumerate(("a", "gate"))}
    fields = {"traits": traits, "gate": Gate(_vectors(9, (0, 1, 2))), "portfolio": None}
    return _bundle(**{**fields, **changes})


def test_round_trip_of_a_gate(tmp_path):
    """Also beside a trait that bears its name."""
    bundle = _gated()
    bundle.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    assert _same(loaded, bundle) and loaded.info()["gate"] == [0, 1, 2]
    assert loaded.gate.digest == bundle.gate.digest
    edit = loaded.traits["gate"].edit
    x = np.random.default_rng(5).standard_normal((3, WIDTH)).astype(np.float32)
    v, e = _vectors(9, (0, 1, 2))[1], _vectors(1)[1]
    plain = x + np.maximum(x @ v, 0)[:, None] * e
    np.testing.assert_allclose(loaded.behind_gate(edit).layers[1].apply(x), plain, atol=1e-5)
    assert _bundle().behind_gate(edit) is edit and _bundle().info()["gate"] is None


def test_a_file_without_a_gate_is_still_read(saved):
    def older(document):
        del document["gate"], document["interference"], document["profiles"]
        return {**document, "schema": 1}

    saved.write_bytes(_redocument(saved.read_bytes(), older))
    loaded = Bundle.load(saved)
    assert _same(loaded, _bundle(interference=None)) and loaded.gate is None
    _refused(
        saved,
        _redocument(saved.read_bytes(), lambda d: {**d, "gate": None}),
        BundleFormatError,
        "gate",
    )


def test_a_file_without_interference_is_still_read(saved):
    def older(document):
        del document["interference"], document["profiles"]
        return {**document, "schema": 2}

    saved.write_bytes(_redocument(saved.read_bytes(), older))
    assert _same(Bundle.load(saved), _bundle(interference=None))
    now = _redocument(saved.read_bytes(), lambda document: {**document, "schema": 3})
    _refused(saved, now, BundleFormatError, "interference")


def test_a_file_without_profiles_is_still_read(saved):
    def older(document):
        del document["profiles"]
        return {**document, "schema": 3}

    saved.write_bytes(_redocument(saved.read_bytes(), older))
    assert _same(Bundle.load(saved), _bundle())
    now = _redocument(saved.read_bytes(), lambda document: {**document, "schema": 4})
    _refused(saved, now, BundleFormatError, "profiles")


def test_interference_that_is_linear_in_doses_is_still_read(saved):
    now = {"traits": ["warmth", "brevity"], "gains": LINEAR}

    def older(document):
        return {**document, "interference": now, "schema": 5}

    saved.write_bytes(_redocument(saved.read_bytes(), older))
    linear = Interference(("warmth", "brevity"), np.array(LINEAR), NO_TERMS)
    assert _same(Bundle.load(saved), _bundle(interference=linear))


def test_interference_is_told():
    told = _bundle().info()["interference"]
    assert told == {"traits": ["warmth", "brevity"], "linear": LINEAR, "quadratic": QUADRATIC}
    assert _bundle(interference=None).info()["interference"] is None


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("yes", "expected an Interference"),
        (Interference(("brevity", "zest"), np.eye(2), NO_TERMS), "'zest' is not a trait"),
    ],
)
def test_interference_that_does_not_fit(value, match):
    with pytest.raises(InputError, match=match):
        _bundle(interference=value)


@pytest.mark.parametrize(
    "value",
    [
        "1",
        {"traits": ["brevity", "warmth"]},
        {"traits": ["brevity", "warmth"], "gains": [[1, 0]]},
        {"traits": ["brevity", "warmth"], "gains": [[1, 0], [0]]},
        {"traits": ["brevity", "warmth"], "gains": [[1, 0], 7]},
        {"traits": ["brevity", "warmth"], "gains": [[1, 0], [0, "1"]]},
        {"traits": ["brevity", "warmth"], "gains": [[1, 0], [0, -1]]},
        {"traits": ["brevity", 3], "gains": [[1, 0], [0, 1]]},
        {"traits": ["brevity", "brevity"], "gains": [[1, 0], [0, 1]]},
        {"traits": 2, "gains": [[1, 0], [0, 1]]},
        {"traits": ["brevity"], "gains": [[1]]},
        {"gains": [[1, 0], [0, 1]]},
        {"traits": ["brevity", "warmth"], "linear": LINEAR},
        {"traits": ["brevity", "warmth"], "linear": LINEAR, "quadratic": LINEAR},
        {"traits": ["brevity", "warmth"], "linear": LINEAR, "quadratic": [[1, 2], [3]]},
        {"traits": ["brevity", "warmth"], "linear": [1], "quadratic": QUADRATIC},
        {"traits": ["brevity", "warmth"], "linear": LINEAR, "quadratic": QUADRATIC, "x": 1},
    ],
)
def test_damaged_interference(saved, value):
    data = _redocument(saved.read_bytes(), lambda d: {**d, "interference": value})
    _refused(saved, data, BundleFormatError, "interference")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gate": "yes"}, "expected a Gate"),
        ({"gate": Gate(_vectors(9, (1, 2, 4)))}, "layers below 4"),
        ({"gate": Gate({1: np.ones(7), 2: np.ones(7)})}, r"shape \(6,\)"),
        ({"gate": Gate(_vectors(9, (1,)))}, r"a: the gate knows layers \[1\]"),
        ({"portfolio": None, "traits": {"b": _entry("b", two_step(_vectors(0), _vectors(1)))}},
         "b: only additive"),
    ],
)  # fmt: skip
def test_a_gate_that_does_not_fit(changes, match):
    with pytest.raises(InputError, match=match):
        _gated(**changes)


@pytest.mark.parametrize("value", ["1", [2, 1], [1, 1], [-1], [True], {"1": 2}])
def test_damaged_gates(tmp_path, value):
    _gated().save(tmp_path / "b")
    data = _redocument((tmp_path / "b").read_bytes(), lambda d: {**d, "gate": value})
    _refused(tmp_path / "b", data, BundleFormatError, "gate")


def test_round_trip_of_awkward_arrays(tmp_path):
    """Views that are not contiguous, denormals, -0.0, mixed relu, three-digit layers, no layers."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((3, WIDTH)).astype(np.float32).T
    u = np.asfortranarray(rng.standard_normal((WIDTH, 6)).astype(np.float32))[:, ::2]
    e = np.array([-0.0, 1e-45, 3e38, -1e-38, 0, 1], dtype=np.float32)
    layer = LayerEdit(e, v, u, e[:3], np.array([True, False, True]))
    bundle = _bundle(
        fingerprint=replace(FINGERPRINT, layers=128),
        traits={"a": _entry("a", Edit({120: layer, 8: layer})), "b": _entry("b", ZERO)},
    )
    bundle.save(tmp_path / "b")
    assert _same(Bundle.load(tmp_path / "b"), bundle)


def _utility(reward, unsteered):
    if reward <= unsteered:
        return reward
    return unsteered + (1 - unsteered) * ((reward - unsteered) / (1 - unsteered)) ** 0.7


def test_a_loaded_portfolio_serves_alike(saved):
    ours, theirs = _portfolio(), Bundle.load(saved).portfolio
    for warmth in np.linspace(0, 1, 21).tolist():
        weights = {"warmth": warmth, "brevity": 1 - warmth}
        one, other = ours.entry(weights), theirs.entry(weights)
        assert one == other
        # The plain formula, entry by entry.
        values = [
            warmth * _utility(r[0], ours.mean_rewards[0, 0])
            + (1 - warmth) * _utility(r[1], ours.mean_rewards[0, 1])
            - min(0.1 * kl / 0.5, 0.3)
            for r, kl in zip(ours.mean_rewards, ours.kl, strict=True)
        ]
        served = max((0, *ours.kept), key=lambda i: values[i])
        assert one.candidate == ours.candidates[served]
        assert one.value == pytest.approx(values[served])
        assert one.regret == pytest.approx(max(values) - values[served], abs=1e-12)
        assert one.number == (0, *ours.kept).index(served)
        assert _same_edit(theirs.edit(one.number), [ZERO, *ours.edits][one.number])
    assert theirs.serves({"warmth": 1, "zest": 0}) and not theirs.serves({"zest": 1})
    # A page of sliders sends all of them.
    assert theirs.entry({"warmth": 1, "brevity": 2, "zest": 0}) == theirs.entry(
        {"warmth": 1, "brevity": 2}
    )
    assert _same_edit(theirs.served({"warmth": 1, "zest": 0.0}), theirs.served({"warmth": 1}))
    for wrong in ({"warmth": 1, "zest": 1}, {"zest": 0}, {"warmth": 1, "zest": float("nan")}):
        with pytest.raises(WeightsError):
            theirs.entry(wrong)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"traits": ("warmth", "warmth")}, "different traits"),
        ({"rewards": ("one",)}, "reward"),
        ({"mean_rewards": np.zeros((3, 2))}, "rewards"),
        ({"kl": np.array([1.0, 1, 1, 1])}, "unsteered"),
        ({"kept": (0, 1)}, "kept"),
        ({"kept": (1, 1)}, "kept"),
        ({"kept": (1, 9)}, "kept"),
        ({"edits": ()}, "0 edits for 2"),
        ({"answered": (Answered("?", ("a", "b"), np.zeros((2, 2))),)}, "each of the 2 kept"),
        ({"answered": (Answered("?", ("a", "b", "c"), np.zeros((3, 1))),)}, "2 rewards"),
    ],
)
def test_portfolio_arguments(changes, match):
    with pytest.raises(InputError, match=match):
        _portfolio(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"traits": ("warmth", "zest")}, "zest"),
        ({"edits": (additive(_vectors(5, (4,))), ZERO)}, "layers below 4"),
        ({"edits": (additive({1: np.ones(5, np.float32)}), ZERO)}, "width"),
        ({"edits": (Edit({1: DOUBLE}), ZERO)}, "float32"),
    ],
)
def test_a_portfolio_that_does_not_fit(changes, match):
    with pytest.raises(InputError, match=match):
        _bundle(portfolio=_portfolio(**changes))


def test_no_traits(tmp_path):
    _bundle(traits={}).save(tmp_path / "b")
    assert _same(Bundle.load(tmp_path / "b"), _bundle(traits={}))


def test_names_in_the_file(saved):
    tensors = st_load(saved.read_bytes())
    assert set(tensors) == {
        "brevity/layer.01/e",
        "brevity/layer.02/e",
        "warmth/layer.00/e",
        *(f"warmth/layer.0{i}/{part}" for i in (1, 2) for part in ("e", "v", "u", "c", "relu")),
        "portfolio/entry.01/layer.03/e",
        *(
            f"portfolio/entry.02/layer.0{i}/{part}"
            for i in (1, 2)
            for part in ("e", "v", "u", "c", "relu")
        ),
    }
    assert {array.dtype.name for array in tensors.values()} == {"float32", "uint8"}


def test_bytes_are_deterministic(tmp_path):
    bundle = _bundle()
    shuffled = _bundle(
        traits=dict(reversed(bundle.traits.items())),
        settings=dict(reversed(bundle.settings.items())),
        portfolio=_portfolio(),
        interference=INTERFERENCE,
    )
    for name, value in (("a", bundle), ("b", shuffled)):
        value.save(tmp_path / name)
    Bundle.load(tmp_path / "a").save(tmp_path / "c")
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_mappings_are_copied_and_read_only():
    settings = {"prompts": ["a"]}
    bundle = _bundle(settings=settings)
    settings["prompts"].append("b")
    assert bundle.settings["prompts"] == ["a"]
    entry = bundle.traits["brevity"]
    for mapping in (bundle.traits, bundle.settings, bundle.versions, entry.ccs_loss):
        with pytest.raises(TypeError):
            mapping["x"] = 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_the_same_and_read_only(saved, copied):
    bundle = Bundle.load(saved)
    other = copied(bundle)
    other.save(saved)
    assert _same(Bundle.load(saved), bundle)
    with pytest.raises(TypeError):
        other.traits["x"] = other.traits["brevity"]
    for array in (other.portfolio.kl, other.portfolio.mean_rewards, other.interference.linear):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_a_bundle_and_its_parts_are_told_shortly():
    bundle = _bundle()
    assert repr(bundle) == f"Bundle(model={bundle.model!r}, traits={list(bundle.traits)})"
    for part in (bundle.portfolio, bundle.interference, *bundle.traits.values()):
        assert not any(name in repr(part) for name in ("mean_rewards", "linear", "ccs_loss"))


def test_failure_while_writing_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        _bundle(scope="all").save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("limit", ["_MAX_FILE_BYTES", "_MAX_HEADER_BYTES"])
def test_what_is_too_large_to_be_loaded_replaces_nothing(saved, monkeypatch, limit):
    before = saved.read_bytes()
    _bundle(scope="all").save(saved)
    data = saved.read_bytes()
    size = len(data) if limit == "_MAX_FILE_BYTES" else int.from_bytes(data[:8], "little")
    saved.write_bytes(before)
    monkeypatch.setattr(container, limit, size - 1)
    with pytest.raises(InputError, match=f"at most {size - 1} bytes.*, got {size};"):
        _bundle(scope="all").save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
    monkeypatch.setattr(container, limit, size)
    _bundle(scope="all").save(saved)
    assert _same(Bundle.load(saved), _bundle(scope="all"))


def test_a_file_that_is_written_twice_at_once_is_whole(saved):
    with atomic_path(saved) as first:
        first.write_bytes(b"fir")
        _bundle().save(saved)
        assert first.read_bytes() == b"fir"
        assert _same(Bundle.load(saved), _bundle())
        first.write_bytes(b"first")
    assert saved.read_bytes() == b"first" and list(saved.parent.iterdir()) == [saved]


def test_what_a_killed_write_left_of_a_person_is_forgotten_too(saved):
    bundle = _bundle()
    edit = bundle.traits["brevity"].edit
    one = Profile(
        bundle.fingerprint,
        edit,
        0.1,
        False,
        "style",
        "imitation",
        {},
        None,
        (HistoryItem("Ann lives in Basel."),),
    )
    bundle.with_profiles({"ann": one}).save(saved)
    left = saved.with_name(f".{saved.name}.0123456789abcdef.tmp")
    left.write_bytes(saved.read_bytes())
    other = saved.with_name(f".other-{saved.name}.0123456789abcdef.tmp")
    other.write_bytes(b"")
    with pytest.raises(InputError, match="no profile 'ben'"):
        forget(saved, "ben")
    assert left.exists()
    assert _same(forget(saved, "ann"), bundle)
    assert not left.exists() and other.exists()
    assert not [path for path in saved.parent.iterdir() if b"Basel" in path.read_bytes()]
    with pytest.raises(BundleError, match="no such file"):
        forget(saved.parent / "deep" / "none", "ann")
    assert not (saved.parent / "deep").exists()


def test_info_is_json(saved):
    info = json.loads(json.dumps(Bundle.load(saved).info()))
    assert info["schema"] == SCHEMA and info["model"] == "tiny/model"
    assert info["fingerprint"] == FINGERPRINT.to_dict()
    assert info["size"] == saved.stat().st_size
    warmth = info["traits"]["warmth"]
    assert (warmth["layers"], warmth["rank"], warmth["dose"]) == ([0, 1, 2], 2, 0)
    assert warmth["statistics"]["gain"] == 0.125
    for name, entry in _bundle().traits.items():
        shown = info["traits"][name]
        assert {int(k): v for k, v in shown["ccs_loss"].items()} == entry.ccs_loss
        assert {int(k): v for k, v in shown["direction_norm"].items()} == entry.direction_norm
    assert any(entry["ccs_loss"] for entry in info["traits"].values())


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "a/b"}, "'name'"),
        ({"name": ""}, "'name'"),
        ({"name": "a\nb"}, "'name'"),
        ({"description": None}, "'description'"),
        ({"description": "\ud83d\ude00"}, "'description'.*Unicode"),
        ({"dose": -0.1}, "'dose'"),
        ({"dose": float("nan")}, "'dose'"),
        ({"dose": True}, "'dose'"),
        ({"dose": 10**400}, "'dose'"),
        ({"reliability": float("inf")}, "'reliability'"),
        ({"edit": {}}, "'edit'"),
        ({"edit": Edit({1: DOUBLE})}, "float32"),
        ({"ccs_loss": {"1": 0.1}}, "'ccs_loss'"),
        ({"ccs_loss": {1: 0.1}}, "'direction_norm'"),
        ({"ccs_loss": [0.1]}, "'ccs_loss'"),
        ({"statistics": {"a": [1]}}, "'statistics'"),
        ({"statistics": {"a": float("nan")}}, "'statistics'"),
        ({"statistics": {"a": 1 << 70}}, "'statistics'"),
    ],
)
def test_entry_arguments(changes, match):
    with pytest.raises(InputError, match=match):
        _entry(**{"name": "brevity", "edit": additive(_vectors(0)), **changes})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scope": "prompt"}, "'scope'"),
        ({"model": 1}, "'model'"),
        ({"fingerprint": "x"}, "'fingerprint'"),
        ({"fingerprint": replace(FINGERPRINT, width=0)}, "'width'"),
        ({"fingerprint": replace(FINGERPRINT, width=WIDTH + 1)}, "width"),
        ({"fingerprint": replace(FINGERPRINT, layers=2)}, "layers below 2"),
        ({"fingerprint": replace(FINGERPRINT, layers=3)}, "'ccs_loss': expected layers below 3"),
        ({"traits": {"other": _entry("brevity", ZERO)}}, "bears the name"),
        ({"traits": {"other": None}}, "TraitEntry"),
        ({"settings": {"a": {1: 2}}}, "'settings'"),
        ({"settings": {"a": object()}}, "'settings'"),
        ({"settings": {"a": [float("inf")]}}, "'settings'"),
        ({"versions": {"a": 1}}, "'versions'"),
    ],
)
def test_bundle_arguments(changes, match):
    with pytest.raises(InputError, match=match):
        _bundle(**changes)


def test_numpy_numbers_are_taken(tmp_path):
    entry = _entry(
        "a",
        ZERO,
        dose=np.float32(0.5),
        ccs_loss={np.int64(1): np.float32(0.25)},
        direction_norm={1: 1},
        statistics={"n": np.int64(3)},
    )
    _bundle(traits={"a": entry}).save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b").traits["a"]
    assert (loaded.dose, loaded.ccs_loss, loaded.statistics) == (0.5, {1: 0.25}, {"n": 3})


# --- Fingerprint ---------------------------------------------------------------------------------


def test_other_model_is_refused_or_warned_of():
    bundle = _bundle()
    bundle.check_model(replace(FINGERPRINT))
    other = replace(FINGERPRINT, weights="cd" * 32, vocabulary=51)
    with pytest.raises(FingerprintError, match=r"--force \(in Python force=True\)") as caught:
        bundle.check_model(other)
    assert str(FINGERPRINT) in str(caught.value) and str(other) in str(caught.value)
    assert "vocabulary, weights" in str(caught.value)
    with pytest.warns(UserWarning, match="cdcdcd"):
        bundle.check_model(other, force=True)


@pytest.mark.parametrize("change", [{"width": WIDTH + 1}, {"layers": 2}])
def test_force_cannot_make_edits_fit(change):
    with pytest.raises(FingerprintError, match=r"--force \(force=True\) cannot help"):
        _bundle().check_model(replace(FINGERPRINT, **change), force=True)


# --- Damage, one kind at a time ------------------------------------------------------------------


def test_every_truncation(saved):
    data = saved.read_bytes()
    header_end = 8 + int.from_bytes(data[:8], "little")
    lengths = {*range(0, 12), *range(12, len(data), 37), header_end, len(data) - 1}
    for length in sorted(lengths):
        _refused(saved, data[:length], BundleFormatError, "truncated")


def test_trailing_bytes(saved):
    _refused(saved, saved.read_bytes() + b"\0", BundleFormatError, "damaged: expected")


def test_missing_file_and_folder(tmp_path):
    for path, match in (
        (tmp_path / "none", "no such file"),
        (tmp_path / "none\0", "cannot be read"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(BundleError, match=match) as caught:
            Bundle.load(path)
        assert caught.type is BundleError


class _Bomb:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_never_loaded(tmp_path, protocol):
    match = "pickle" if protocol >= 2 else "not a safetensors"
    data = pickle.dumps(_Bomb(tmp_path / "bomb"), protocol=protocol)
    _refused(tmp_path / "b.safetensors", data, BundleFormatError, match)
    assert not (tmp_path / "bomb").exists()
    pickle.loads(data)
    assert (tmp_path / "bomb").exists()  # the trap works


def test_other_kinds_of_file(tmp_path):
    path = tmp_path / "b.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    _refused(path, path.read_bytes(), BundleFormatError, "zip")
    np.save(tmp_path / "a.npy", np.zeros(3))
    _refused(path, (tmp_path / "a.npy").read_bytes(), BundleFormatError, "NumPy")
    _refused(path, b'{"schema": 1, "model": 2}', BundleFormatError, "JSON")
    _refused(path, b"version https://git-lfs.github.com/spec/v1\n", BundleFormatError, "LFS")
    _refused(path, bytes(100), BundleFormatError, "not a safetensors file")
    weights = st_save({"w": np.zeros(3, dtype=np.float32)})
    _refused(path, weights, BundleFormatError, "not a steer bundle")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, (16 << 20) + 1])
def test_huge_header_length(saved, length):
    data = length.to_bytes(8, "little") + saved.read_bytes()[8:]
    tracemalloc.start()
    match = f"header is damaged: expected at most {16 << 20} bytes of it, got a length of {length}"
    _refused(saved, data, BundleFormatError, match)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_huge_file_is_not_read(tmp_path):
    path = tmp_path / "b"
    with open(path, "wb") as file:
        file.truncate((1 << 30) + 1)  # sparse
    with pytest.raises(BundleFormatError, match="at most"):
        Bundle.load(path)


def test_newer_schema_asks_for_an_upgrade(saved):
    """Even if all else differs: a newer layout may have other fields and another digest."""
    data = _redocument(saved.read_bytes(), lambda d: {"schema": SCHEMA + 1, "x": 1}, sign=False)
    _refused(saved, data, BundleVersionError, "upgrade steer")


def test_swapped_and_renamed_tensors(saved):
    data = saved.read_bytes()
    a, b = "brevity/layer.01/e", "brevity/layer.02/e"
    header, body = _split(data)
    header[a]["data_offsets"], header[b]["data_offsets"] = (
        header[b]["data_offsets"],
        header[a]["data_offsets"],
    )
    _refused(saved, _join(header, body), BundleFormatError, "tensors do not match")
    header, body = _split(data)
    header["brevity/layer.03/e"] = header.pop(a)
    _refused(saved, _join(header, body), BundleFormatError, f"{a}' is missing")
    header, body = _split(data)
    header["extra"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    _refused(saved, _join(header, body), BundleFormatError, "'extra' is unknown")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, WIDTH]},
        {"shape": [WIDTH * 2]},
        {"shape": [-1]},
        {"shape": None},
        {"dtype": "I32"},
        {"dtype": "F64"},
        {"dtype": ["F32"]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 1]},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [2**63, 2**63 + 24]},
        {"data_offsets": [0.0, 24.0]},
        {"more": 1},
    ],
)
def test_damaged_tensor_header(saved, change):
    header, body = _split(saved.read_bytes())
    header["warmth/layer.01/e"].update(change)
    _refused(saved, _join(header, body), BundleFormatError, "tensor 'warmth/layer.01/e'")


@pytest.mark.parametrize(
    ("tensor", "value", "match"),
    [
        ("brevity/layer.01/e", np.full(WIDTH, np.nan, np.float32), "finite"),
        ("warmth/layer.01/c", np.full(2, np.inf, np.float32), "finite"),
        ("warmth/layer.01/relu", np.full(2, 2, np.uint8), "0 and 1 only"),
    ],
)
def test_wrong_values_with_right_digests(saved, tensor, value, match):
    tensors = {**st_load(saved.read_bytes()), tensor: value}
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    header, _ = _split(saved.read_bytes())
    document = json.loads(header["__metadata__"]["steer"])
    document = _sign({**document, "tensors_sha256": digest.hexdigest()})
    data = st_save(tensors, metadata={"steer": json.dumps(document)})
    _refused(saved, data, BundleFormatError, match)


def _set(*keys, value):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def _nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_set("schema", value=0), "'schema'"),
        (_set("schema", value="1"), "'schema'"),
        (_set("schema", value=True), "'schema'"),
        (_set("schema", value=1.0), "'schema'"),
        (_set("model", value=None), "'model'"),
        (_set("scope", value="prompt"), "'scope'"),
        (_set("scope", value=[]), "'scope'"),
        (_set("other", value=1), "'other' is unknown"),
        (_set("traits", value=[]), "'traits'"),
        (_set("traits", "brevity", value=None), "'brevity'"),
        (_set("traits", "brevity", "dose", value=-1.0), "'dose'"),
        (_set("traits", "brevity", "dose", value="0.1"), "'dose'"),
        (_set("traits", "brevity", "name", value="x"), "'name' is unknown"),
        (_set("traits", "brevity", "ccs_loss", value={"01": 0.1}), "layer index"),
        (_set("traits", "brevity", "ccs_loss", value={"²": 0.1}), "layer index"),
        (_set("traits", "brevity", "ccs_loss", value={"4": 0.1}), "'direction_norm'"),
        (_set("traits", "brevity", "ccs_loss", "0", value=None), "'ccs_loss'"),
        (_set("traits", "brevity", "ranks", value={"1": 0}), "is unknown"),
        (_set("traits", "brevity", "ranks", "1", value=1), "is missing"),
        (_set("traits", "brevity", "ranks", "1", value=10**300), "'ranks'"),
        (_set("traits", "brevity", "statistics", value={"a": None}), "'statistics'"),
        (_set("traits", "a/b", value={}), "is missing"),
        (_set("fingerprint", "width", value=WIDTH + 1), "tensor"),
        (_set("fingerprint", "width", value="6"), "'width'"),
        (_set("fingerprint", "layers", value=2), "layers below 2"),
        (_set("fingerprint", "depth", value=1), "'depth' is unknown"),
        (_set("settings", value=None), "'settings'"),
        (_set("settings", value={"a": 1 << 80}), "'settings'"),
        (_set("settings", value=_nested(70)), "'settings'.* at most 64 deep"),
        (_set("settings", value=_nested(600)), "at most 64 deep"),
        (_set("versions", value={"a": 1}), "'versions'"),
        (_set("tensors_sha256", value=None), "tensors do not match"),
        (_set("portfolio", value=None), "is unknown"),
        (_set("portfolio", value=[]), "'portfolio'"),
        (_set("portfolio", "ranks", value=None), "'ranks'"),
        (_set("portfolio", "ranks", value=[{"3": 0}]), "is unknown"),
        (_set("portfolio", "ranks", 0, value={"2": 0}), "is missing"),
        (_set("portfolio", "candidates", 1, "coefficients", value=[1.0]), "coefficients"),
        (_set("portfolio", "candidates", 1, "rewards", 0, value=-0.5), "utilities"),
        (_set("portfolio", "candidates", 1, "kl", value=-0.5), "regulariser"),
        (_set("portfolio", "certificate", "delta", "weights", value=[1.0]), "certificate"),
        (_set("portfolio", "kept", value=[1]), "2 edits for 1"),
        (_set("portfolio", "kept", value=[1, -1]), "'kept'"),
        (_set("portfolio", "kept", value=[1, 7]), "kept"),
        (_set("portfolio", "traits", value=["warmth", "zest"]), "zest"),
        (_set("portfolio", "traits", value="warmth"), "a list"),
        (_set("portfolio", "objective", value={"penalty": 1}), "is missing"),
        (_set("portfolio", "objective", "f_max", value=-1), "f_max"),
        (_set("portfolio", "candidates", value=[]), "portfolio"),
        (_set("portfolio", "candidates", 1, "rewards", value=[0.5]), "number of rewards"),
        (_set("portfolio", "candidates", 1, "kl", value="0.1"), "'kl'"),
        (_set("portfolio", "candidates", 0, "coefficients", value=[1.0, 0.0]), "unsteered"),
        (_set("portfolio", "certificate", "delta", value=0.1), "'delta'"),
        (_set("portfolio", "searched", value=None), "a list"),
        (_set("portfolio", "searched", 1, "rewards", value=[0.5]), "2 rewards"),
        (_set("portfolio", "searched", 1, "kl", value="0.1"), "searched 1, 'kl'"),
        (_set("portfolio", "certificate", "curve", value=[[0.1]]), "pairs"),
        (_set("portfolio", "certificate", "edit", value=1), "'edit' is unknown"),
    ],
)
def test_wrong_metadata_with_right_digest(saved, change, match):
    _refused(saved, _redocument(saved.read_bytes(), change), BundleFormatError, match)


def test_a_portfolio_of_before_fairness(saved):
    def drop(document):
        del document["portfolio"]["objective"]["fairness"]

    saved.write_bytes(_redocument(saved.read_bytes(), drop))
    found = Bundle.load(saved).portfolio
    assert found.objective == Objective(fairness=0.0, penalty=0.1, kl_unit=0.5, f_max=0.3)
    np.testing.assert_allclose(found.measured.utilities, found.mean_rewards)


def test_a_portfolio_of_before_answers(saved):
    def older(document):
        del document["portfolio"]["answered"]
        return {**document, "schema": 4}

    saved.write_bytes(_redocument(saved.read_bytes(), older))
    assert _same(Bundle.load(saved), _bundle(portfolio=_portfolio(answered=())))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (1, "expected a list"),
        ([{"prompt": "a", "answers": ["b"]}], "rewards"),
        ([{"prompt": "a", "answers": [1], "rewards": [[1, 1]]}], "expected text"),
        ([{"prompt": "a", "answers": ["b"] * 3, "rewards": [[1, 1], [1], [1, 1]]}], "differ"),
        ([{"prompt": "a", "answers": ["b"] * 3, "rewards": [[2, 1]] * 3}], "from 0 to 1"),
        ([{"prompt": "a", "answers": ["b"] * 2, "rewards": [[1, 1]] * 2}], "each of the 2 kept"),
    ],
)
def test_answers_in_a_file_that_are_refused(saved, value, match):
    change = _set("portfolio", "answered", value=value)
    _refused(saved, _redocument(saved.read_bytes(), change), BundleFormatError, match)


@pytest.mark.parametrize("change", [_set("scope", value="all"), _set("sha256", value=None)])
def test_changed_metadata(saved, change):
    data = _redocument(saved.read_bytes(), change, sign=False)
    _refused(saved, data, BundleFormatError, "metadata do not match")


@pytest.mark.parametrize(
    "text",
    ["", "1", "[]", "NaN", '{"schema":NaN}', '{"schema":1e999}', '{"schema":1,"schema":1}']
    + ["[" * 100_000, '{"schema":' + "9" * 5000 + "}"],
)
def test_metadata_that_is_not_strict_json(saved, text):
    header, body = _split(saved.read_bytes())
    header["__metadata__"]["steer"] = text
    _refused(saved, _join(header, body), BundleFormatError, "damaged metadata")


@pytest.mark.parametrize("text", [b'{"a":NaN}', b'{"\xff":1}', b"{", b'{"a":1,"a":1}', b"{\0}"])
def test_header_that_is_not_strict_json(saved, text):
    _refused(saved, _join(text, b""), BundleFormatError, "damaged header")


# --- Damage at random ----------------------------------------------------------------------------


def _mutate_bytes(rng, data):
    kind = rng.randrange(7)
    # Half of the time in the first bytes or around the header's end, where parsing turns.
    edges = [0, 8, 8 + int.from_bytes(data[:8], "little")]
    at = (
        rng.randrange(len(data))
        if rng.random() < 0.5
        else min(len(data) - 1, max(0, rng.choice(edges) + rng.randrange(-9, 9)))
    )
    size = rng.choice([1, 1, 2, 4, 8, 24, 100])
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + rng.randbytes(size) + data[at:]
    if kind == 2:
        return data[:at] + data[at + size :]
    if kind == 3:
        return data[: at + size] + data[at:]
    if kind == 4:
        other = rng.randrange(len(data))
        low, high = sorted((at, other))
        high = max(high, low + size)
        middle = data[low + size : high]
        return (
            data[:low]
            + data[high : high + size]
            + middle
            + data[low : low + size]
            + (data[high + size :])
        )
    if kind == 5:
        return data[:at]
    return data[:at] + rng.randbytes(size) + data[at + size :]


_VALUES = [None, True, 0, 1, 2, -1, 6, 24, 2**63, 0.5, "", "F32", "U8", [], [6], [0, 24], {}, "é"]


def _nodes(value, found):
    """Every container in a JSON value."""
    if isinstance(value, dict | list) and value:
        found.append(value)
        for item in value.values() if isinstance(value, dict) else value:
            _nodes(item, found)
    return found


def _mutate_json(rng, value):
    node = rng.choice(_nodes(value, []))
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, kind = rng.choice(keys), rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node[key], int | float):
        node[key] += rng.choice([-24, -1, 1, 24, 1e-9])
    elif kind == 2:
        other = rng.choice(keys)
        node[key], node[other] = node[other], node[key]
    elif kind == 3 and isinstance(node, dict):
        node[rng.choice(["x", "03", str(key) + "0", "schema"])] = node.pop(key)
    elif kind == 4 and isinstance(node, dict):
        node[str(key) + rng.choice(["0", "x"])] = node[key]
    else:
        node[key] = rng.choice(_VALUES)


def _mutate_header(rng, data, sign):
    header, body = _split(data)
    document = json.loads(header["__metadata__"]["steer"])
    if rng.random() < 0.5:
        _mutate_json(rng, header)
    else:
        _mutate_json(rng, document)
        document = _sign(document) if sign else document
        header["__metadata__"]["steer"] = json.dumps(document)
    return _join(header, body)


def _outcome(path, data):
    """The bundle, or None if it was refused; any other exception fails the test."""
    path.write_bytes(data)
    try:
        return Bundle.load(path)
    except BundleError:
        return None


def test_no_random_damage_is_loaded(saved):
    data, original = saved.read_bytes(), _bundle()
    rng = random.Random(20240)
    refused = 0
    for round_ in range(2500):
        mutant = data
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if mutant and (round_ % 2 == 0 or mutant is not data):
                mutant = _mutate_bytes(rng, mutant)
            else:
                mutant = _mutate_header(rng, data, sign=False)
        loaded = _outcome(saved, mutant)
        refused += loaded is None
        assert loaded is None or _same(loaded, original), f"round {round_}"
    assert refused > 2300  # the rest left the meaning as it was


def test_forged_metadata_raise_nothing_but_bundle_errors(saved):
    """Signed anew, a change may be a valid other bundle; it must then hold together."""
    data = saved.read_bytes()
    rng = random.Random(7)
    accepted = 0
    for _ in range(800):
        loaded = _outcome(saved, _mutate_header(rng, data, sign=True))
        if loaded is not None:
            accepted += 1
            json.dumps(loaded.info(), allow_nan=False)
    assert 0 < accepted < 400
