"""Stored people: what is kept, whose it is, and that nothing is left of who is deleted."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("sqlalchemy")

from steer import container
from steer.errors import BundleFormatError, InputError, StoreError
from steer.history import HistoryItem
from steer.insights import Insights
from steer.posterior import Posterior
from steer.preference import Preference
from steer.profile import Profile
from steer.profile_file import from_bytes, to_bytes
from steer.serve.kept_preferences import KeptPreferences
from steer.serve.store import Person, Store
from steer.serve.tenants import LOCAL, Tenants
from tests.models import tiny
from tests.test_generation import an_edit

MODEL = tiny("llama")


def a_preference(choices: int = 0) -> Preference:
    known = Preference({"brevity": "brief", "warmth": "warm"}, Posterior.prior([1.0, 3.0], seed=4))
    for _ in range(choices):
        known = known.choose([0.9, 0.1], [0.2, 0.3])
    return known


def a_profile(*, evidence: bool = False) -> Profile:
    return Profile(
        fingerprint=MODEL.fingerprint,
        edit=an_edit(3),
        dose=0.4,
        gated=False,
        contrast="style",
        method="imitation",
        statistics={"items": 4},
        insights=Insights("short", "long", "model", "measures") if evidence else None,
        evidence=(HistoryItem("We met in SECRETVILLE."),) if evidence else (),
        centre=np.arange(5, dtype=np.float32),
    )


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    made = Store("sqlite://" if request.param == "memory" else f"sqlite:///{tmp_path / 'a.sqlite'}")
    yield made
    made.close()


def test_a_person_is_read_as_they_were_written(store):
    known = a_preference(2)
    store.put("acme", "ann", Person(preference=known, said={"warmth": 1.0}))
    found = store.get("acme", "ann")
    assert found is not None and found.said == {"warmth": 1.0} and found.profile is None
    assert found.preference.weights == pytest.approx(known.weights, abs=0.02)
    np.testing.assert_array_equal(
        found.preference.posterior.differences, known.posterior.differences
    )
    profile = a_profile(evidence=True)
    store.put("acme", "ann", Person(profile=profile))
    found = store.get("acme", "ann")
    assert found.preference is None and found.said is None
    assert found.profile.edit.digest == profile.edit.digest
    assert to_bytes(found.profile) == to_bytes(profile)
    assert found.profile.evidence == profile.evidence
    np.testing.assert_array_equal(found.profile.centre, profile.centre)
    assert store.get("acme", "bob") is None and store.count("acme") == 1


def test_people_are_served_what_they_said_until_they_choose():
    said = {"warmth": 1.0}
    assert Person(preference=a_preference(), said=said).weights == said
    chose = a_preference(1)
    assert Person(preference=chose, said=said).weights == chose.weights
    assert Person(preference=a_preference()).weights == a_preference().weights
    assert Person(said=said).weights == said
    assert Person(profile=a_profile()).weights is None
    for both in (
        {},
        {"preference": a_preference(), "profile": a_profile()},
        {"said": said, "profile": a_profile()},
    ):
        with pytest.raises(InputError, match="a preference or a profile"):
            Person(**both)


def test_a_tenant_sees_its_own_people_only(store):
    store.put("acme", "ann", Person(preference=a_preference()))
    assert store.get("other", "ann") is None
    assert not store.delete("other", "ann")
    store.put("other", "ann", Person(profile=a_profile()))
    assert store.get("acme", "ann").profile is None and store.count("other") == 1
    assert store.delete("acme", "ann") and not store.delete("acme", "ann")
    assert store.get("acme", "ann") is None and store.get("other", "ann") is not None


def test_nothing_is_left_of_who_is_deleted(tmp_path):
    path = tmp_path / "people.sqlite"
    store = Store(f"sqlite:///{path}")
    store.put("acme", "SECRETNAME", Person(profile=a_profile(evidence=True)))
    store.put("acme", "bob", Person(preference=a_preference()))
    assert b"SECRETVILLE" in path.read_bytes() and b"SECRETNAME" in path.read_bytes()
    store.delete("acme", "SECRETNAME")
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"SECRETVILLE" not in left and b"SECRETNAME" not in left
    assert store.get("acme", "bob") is not None
    store.close()


def test_no_change_is_lost(tmp_path):
    stores = [Store(f"sqlite:///{tmp_path / 'people.sqlite'}") for _ in range(2)]

    def choose(person: Person | None) -> Person:
        known = a_preference() if person is None else person.preference
        return Person(preference=known.choose([0.9, 0.1], [0.2, 0.3]))

    def many(store: Store) -> None:
        for _ in range(5):
            store.change("acme", "ann", choose)

    threads = [threading.Thread(target=many, args=(stores[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = stores[0].get("acme", "ann")
    assert len(found.preference.posterior.differences) == 20
    for store in stores:
        store.close()


def test_threads_share_a_store_in_memory():
    store = Store("sqlite+pysqlite:///:memory:")
    lost = []

    def work(number: int) -> None:
        try:
            for i in range(20):
                store.put("acme", f"p{number}", Person(said={"warmth": float(i)}))
                found = store.get("acme", f"p{number}")
                if found is None or found.said != {"warmth": i}:
                    lost.append(found)
        except Exception as error:
            lost.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost and store.count("acme") == 8
    store.close()


def test_choices_are_not_gone_through_for_each_reading(tmp_path, monkeypatch):
    read = Preference.from_json
    gone_through: list[object] = []
    monkeypatch.setattr(Preference, "from_json", lambda v: (gone_through.append(v), read(v))[1])
    mine, other = (Store(f"sqlite:///{tmp_path / 'people.sqlite'}") for _ in range(2))
    mine.put("acme", "ann", Person(preference=a_preference(2)))
    for _ in range(3):
        assert mine.get("acme", "ann").preference.weights == a_preference(2).weights
    changed = mine.change(
        "acme", "ann", lambda one: Person(preference=one.preference.choose([0.9, 0.1], [0.2, 0.3]))
    )
    assert changed.preference.weights == a_preference(3).weights and gone_through == []
    # Another process goes through them once; what it writes is not what is kept here.
    for _ in range(3):
        assert other.get("acme", "ann").preference.weights == changed.preference.weights
    assert len(gone_through) == 1
    other.put("acme", "ann", Person(preference=a_preference(1)))
    assert len(gone_through) == 1
    # Erased and stored anew it has the number of its first version again.
    other.delete("acme", "ann")
    assert mine.get("acme", "ann") is None
    other.put("acme", "ann", Person(preference=a_preference()))
    for _ in range(3):
        assert mine.get("acme", "ann").preference.weights == a_preference().weights
    assert len(gone_through) == 2
    for store in (mine, other):
        store.close()


def test_the_preferences_that_are_kept_are_bounded_and_forgotten():
    kept = KeptPreferences()
    known = a_preference(1)
    text = json.dumps(known.to_json())
    for number in range(200):
        kept.keep(("acme", str(number)), text, known)
    assert kept.read(("acme", "199"), text) is known
    assert kept.read(("acme", "0"), text) is not known
    kept.forget(("acme", "199"))
    assert kept.read(("acme", "199"), text) is not known


def test_a_change_that_fails_changes_nothing(store):
    store.put("acme", "ann", Person(preference=a_preference(1)))

    def fails(_: Person | None) -> Person:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        store.change("acme", "ann", fails)
    assert len(store.get("acme", "ann").preference.posterior.differences) == 1


def test_what_cannot_be_stored_is_refused(store, tmp_path):
    for name in ("", "  ", "a\nb", "x" * 129):
        for act in (store.get, store.delete):
            with pytest.raises(InputError, match="printable name"):
                act("acme", name)
        with pytest.raises(InputError, match="printable name"):
            store.put("acme", name, Person(preference=a_preference()))
    for url in ("people", "nosuch://x", ""):
        with pytest.raises(InputError, match="database URL"):
            Store(url)
    with pytest.raises(StoreError, match="could not be opened"):
        Store(f"sqlite:///{tmp_path / 'no' / 'folder' / 'a.sqlite'}")


def test_damaged_rows_are_told(tmp_path):
    import sqlite3

    path = tmp_path / "people.sqlite"
    store = Store(f"sqlite:///{path}")
    store.put("acme", "ann", Person(preference=a_preference()))
    for column, value in (("preference", "{"), ("preference", '{"a": 1}'), ("said", "[1]")):
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE steer_people SET {column} = ?", (value,))
        connection.close()
        with pytest.raises(StoreError, match="damaged"):
            store.get("acme", "ann")
    store.put("acme", "ann", Person(preference=a_preference()))
    assert store.get("acme", "ann").weights == a_preference().weights
    store.put("acme", "bob", Person(profile=a_profile()))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE steer_people SET profile = ?", (b"\x80\x04.",))
    connection.close()
    with pytest.raises(StoreError, match="damaged"):
        store.get("acme", "bob")
    store.close()


def test_a_profile_is_the_same_from_its_bytes():
    for profile in (a_profile(), a_profile(evidence=True)):
        data = to_bytes(profile)
        again = from_bytes(data)
        assert to_bytes(again) == data and again.fingerprint == profile.fingerprint
    assert b"SECRET" not in to_bytes(a_profile())


@pytest.mark.parametrize("place", range(0, 4000, 97))
def test_a_damaged_profile_is_refused(place):
    data = bytearray(to_bytes(a_profile()))
    data[place % len(data)] ^= 0xFF
    with pytest.raises(BundleFormatError):
        from_bytes(bytes(data))
    with pytest.raises(BundleFormatError):
        from_bytes(bytes(data[: place % len(data)]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("layers", None), ("layers", 0), ("width", "32"), ("vocabulary", -1), ("weights", 7)],
)
def test_a_profile_of_no_such_model_is_refused(key, value):
    data = to_bytes(a_profile())
    _, document = container.unpack(data)
    document = {name: document[name] for name in document if name not in container.SEALS}
    document["fingerprint"][key] = value
    forged = container.pack(document, safetensors.numpy.load(data))
    with pytest.raises(BundleFormatError, match=f"'fingerprint', '{key}'"):
        from_bytes(forged)
    with pytest.raises(InputError, match=f"'fingerprint', '{key}'"):
        replace(a_profile(), fingerprint=replace(MODEL.fingerprint, **{key: value}))


# --- Tenants -------------------------------------------------------------------------------------


def test_keys_tell_tenants(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# people\nacme: 0123456789abcdef\n\nother:fedcba9876543210\n")
    tenants = Tenants.read(file)
    assert tenants.of("Bearer 0123456789abcdef") == "acme"
    assert tenants.of("bearer fedcba9876543210") == "other"
    for header in (None, "", "Bearer", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef"):
        assert tenants.of(header) is None
    assert tenants.of("Bearer 0123456789abcdeg") is None and not tenants.open
    assert Tenants({}).of(None) == LOCAL and Tenants({}).open
    assert "0123456789abcdef" not in repr(vars(tenants))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got none"),
        ("acme 0123456789abcdef", "line 1"),
        ("acme: short", "at least 16"),
        ("a b: 0123456789abcdef", "letters, digits"),
        ("a: 0123456789abcdef\nb: 0123456789abcdef", "line 2"),
    ],
)
def test_unusable_keys_are_refused(tmp_path, text, message):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        Tenants.read(file)
    with pytest.raises(InputError, match="not a readable file"):
        Tenants.read(tmp_path / "none")


@pytest.mark.parametrize("by_another", [False, True])
def test_nothing_of_who_is_erased_stays_in_memory(tmp_path, by_another):
    mine, other = (Store(f"sqlite:///{tmp_path / 'people.sqlite'}") for _ in range(2))
    known = a_preference(1)
    left = weakref.ref(known)
    mine.put("acme", "ann", Person(preference=known))
    del known
    gc.collect()
    assert left() is not None  # kept, so that its choices are not gone through again
    (other if by_another else mine).delete("acme", "ann")
    if by_another:
        assert mine.get("acme", "ann") is None
    gc.collect()
    assert left() is None
    for store in (mine, other):
        store.close()
