"""Bundles on a hub, through huggingface_hub, against a hub on this machine."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants, file_download, utils

from steer.bundle import Bundle
from steer.card import model_card
from steer.cli import main
from steer.errors import BundleFormatError, HubError, InputError
from steer.hub import FILE, pull, push
from steer.packaged import NAME
from steer.resources import default_bundle_path
from tests.fake_hub import OTHERS_TOKEN, TOKEN, FakeHub, Repository, fake_hub
from tests.test_bundle import _bundle, _entry
from tests.test_profile import EVIDENCE, INSIGHTS, a_profile

REPO = "ann/manners"


@pytest.fixture()
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, which the library takes for the usual one; an empty cache, and nobody logged in."""
    with fake_hub() as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        for module in (constants, file_download):  # which is a copy before 1.0
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        # The library tries again where nobody answers, later and later.
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        with _offline(monkeypatch, False):
            yield running


class _offline:
    """HF_HUB_OFFLINE, inside the block; sessions of huggingface_hub before 1.0 remember it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
        self.monkeypatch, self.value = monkeypatch, value

    def __enter__(self) -> None:
        self.before = constants.HF_HUB_OFFLINE
        self._set(self.value)

    def __exit__(self, *error: object) -> None:
        self._set(self.before)

    def _set(self, value: bool) -> None:
        self.monkeypatch.setattr(constants, "HF_HUB_OFFLINE", value)
        getattr(utils, "reset_sessions", lambda: None)()


def data(bundle: Bundle, folder: Path) -> bytes:
    """The bytes of a bundle's file, which the same bundle always gives."""
    bundle.save(folder / "x.safetensors")
    return (folder / "x.safetensors").read_bytes()


def changed() -> Bundle:
    return _bundle(settings={"seed": 8})


def test_what_is_pushed_is_pulled(hub: FakeHub, tmp_path: Path) -> None:
    bundle = _bundle()
    commit = push(bundle, REPO, license="mit", token=TOKEN)
    assert hub.repositories[REPO].branches["main"] == commit.oid
    assert commit.commit_url == f"{hub.url}/{REPO}/commit/{commit.oid}"
    files = hub.files(REPO)
    assert set(files) == {FILE, "README.md"}
    assert files[FILE] == data(bundle, tmp_path)
    assert not hub.repositories[REPO].private
    found = pull(REPO)
    assert hashlib.sha256(data(found, tmp_path)).digest() == hashlib.sha256(files[FILE]).digest()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.library_name == "steer"


def test_a_revision_is_pinned_and_fetched_once(hub: FakeHub, tmp_path: Path) -> None:
    first = push(_bundle(), REPO, token=TOKEN)
    second = push(changed(), REPO, token=TOKEN)
    assert first.oid != second.oid
    for revision, bundle in ((first.oid, _bundle()), (second.oid, changed()), (None, changed())):
        assert data(pull(REPO, revision=revision), tmp_path) == data(bundle, tmp_path)
    hub.requests.clear()
    pull(REPO, revision=first.oid)
    assert hub.requests == []
    pull(REPO)  # the main branch is looked at, not fetched
    assert hub.requests == [f"HEAD {REPO}/resolve/main/{FILE}"]


def test_a_branch_is_made_if_there_is_none(hub: FakeHub, tmp_path: Path) -> None:
    push(_bundle(), REPO, token=TOKEN)
    for _ in range(2):
        push(changed(), REPO, revision="later", token=TOKEN)
    assert data(pull(REPO, revision="later"), tmp_path) == data(changed(), tmp_path)
    assert data(pull(REPO), tmp_path) == data(_bundle(), tmp_path)


def test_private_is_private(hub: FakeHub, tmp_path: Path) -> None:
    push(_bundle(), REPO, private=True, token=TOKEN)
    assert hub.repositories[REPO].private
    with pytest.raises(HubError, match=r"no such repository, or you may not see it.*hf auth login"):
        pull(REPO, token=OTHERS_TOKEN)
    assert data(pull(REPO, token=TOKEN), tmp_path) == data(_bundle(), tmp_path)
    push(_bundle(), "ann/open", token=TOKEN)
    before = hub.files("ann/open")
    with pytest.raises(HubError, match="exists and is public, so nothing was pushed"):
        push(changed(), "ann/open", private=True, token=TOKEN)
    assert hub.files("ann/open") is before


def test_what_is_of_persons_is_pushed_only_if_asked(hub: FakeHub, tmp_path: Path) -> None:
    numbers = _bundle(profiles={"zoë": a_profile()})
    quoted = _bundle(profiles={"zoë": a_profile(evidence=EVIDENCE)})
    told = _bundle(profiles={"zoë": a_profile(insights=INSIGHTS)})
    for bundle in (numbers, quoted, told):
        for texts in (False, True):
            with pytest.raises(InputError, match="holds 1 profiles, which are made of people's"):
                push(bundle, REPO, texts=texts, token=TOKEN)
    for bundle in (quoted, told):
        with pytest.raises(InputError, match="1 of the bundle's profiles hold texts of persons"):
            push(bundle, REPO, profiles=True, token=TOKEN)
    assert hub.requests == [] and hub.repositories == {}
    push(numbers, REPO, profiles=True, token=TOKEN)
    assert "zoë" not in hub.files(REPO)["README.md"].decode()
    push(quoted, REPO, profiles=True, texts=True, token=TOKEN)
    assert pull(REPO).profiles["zoë"].evidence == EVIDENCE


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (partial(pull, "ann/none"), "no such repository"),
        (partial(pull, REPO, revision="v9"), "it has no revision 'v9'"),
        (
            partial(pull, "ann/several"),
            r"it has no bundle.safetensors, but a.safetensors, b.safetensors; say which .* file=",
        ),
        (partial(pull, "ann/empty"), "nor any other file that could be a bundle"),
        (partial(pull, "ann/gated"), "it is gated; ask for access"),
        (partial(push, _bundle(), "ann/new"), r"the hub refuses \(401\); log in with"),
        (partial(push, _bundle(), REPO, token=OTHERS_TOKEN), r"the hub refuses \(403\)"),
        (partial(push, _bundle(), "ben/manners", token=TOKEN), r"the hub refuses \(403\)"),
        (partial(push, _bundle(), REPO, license="odd", token=TOKEN), "license: must be known"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: FakeHub, asked: Callable[[], object], said: str) -> None:
    hub.repositories = {
        REPO: Repository(private=False),
        "ann/several": Repository(private=False),
        "ann/empty": Repository(private=False),
        "ann/gated": Repository(private=False, gated=True),
    }
    several = {"b.safetensors": b"", "a.safetensors": b"", "README.md": b""}
    hub.repositories["ann/several"].commit("main", several)
    with pytest.raises(HubError, match=said) as caught:
        asked()
    assert hub.url in str(caught.value)
    assert hub.files(REPO) == {}


def test_one_of_several_bundles_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[REPO] = Repository(private=False)
    hub.repositories[REPO].commit("main", {"sub/a.safetensors": data(_bundle(), tmp_path)})
    assert data(pull(REPO, file="sub/a.safetensors"), tmp_path) == data(_bundle(), tmp_path)


def test_what_is_no_bundle_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories[REPO] = Repository(private=False)
    whole = data(_bundle(), tmp_path)
    spoilt = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (b"\x80\x04pickled nonsense", spoilt):
        hub.repositories[REPO].commit("main", {FILE: content})
        with pytest.raises(BundleFormatError):
            pull(REPO)


@pytest.mark.parametrize("repo", ["", "a/b/c", "ann/../x", "http://x/y", "ann/x.git"])
def test_ids_that_are_none_are_refused(hub: FakeHub, repo: str) -> None:
    for asked in (partial(pull, repo), partial(push, _bundle(), repo, token=TOKEN)):
        with pytest.raises(InputError, match="expected a repository's id"):
            asked()
    assert hub.requests == []


# --- No hub --------------------------------------------------------------------------------------


def test_without_a_network_what_is_cached_is_used(hub: FakeHub, tmp_path: Path) -> None:
    oid = push(_bundle(), REPO, token=TOKEN).oid
    pull(REPO)
    hub.down = True
    for revision in (None, oid):
        assert data(pull(REPO, revision=revision), tmp_path) == data(_bundle(), tmp_path)
    with pytest.raises(HubError, match=rf"cannot be reached, and {FILE} is not in the cache.*503"):
        pull("ann/other")
    with pytest.raises(HubError, match="the hub answers 503"):
        push(_bundle(), REPO, token=TOKEN)


def test_a_hub_that_does_not_answer(hub: FakeHub) -> None:
    with socket.socket() as closed:  # bound, and not listening
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(HubError, match=f"cannot push to {REPO} at {nobody}: .*network"):
            push(_bundle(), REPO, token=TOKEN, endpoint=nobody)
        with pytest.raises(HubError, match=f"at {nobody}: the hub cannot be reached, and {FILE}"):
            pull(REPO, endpoint=nobody)


def test_offline_is_said(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(_bundle(), REPO, token=TOKEN)
    pull(REPO)
    hub.requests.clear()
    with _offline(monkeypatch, True):
        assert data(pull(REPO), tmp_path) == data(_bundle(), tmp_path)  # it is in the cache
        with pytest.raises(HubError, match=f"HF_HUB_OFFLINE is set, and {FILE} is not in the"):
            pull("ann/other")
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set; unset it"):
            push(_bundle(), REPO, token=TOKEN)
    assert hub.requests == []


# --- The card ------------------------------------------------------------------------------------


def front_matter(card: ModelCard) -> dict[str, object]:
    return yaml.safe_load(str(card).split("---\n")[1])


def test_a_card_tells_what_the_bundle_holds() -> None:
    bundle = Bundle.load(default_bundle_path())
    card = model_card(bundle, REPO, license="apache-2.0")
    assert front_matter(card) == {
        "base_model": f"HuggingFaceTB/{NAME}",
        "base_model_relation": "adapter",
        "library_name": "steer",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["steer", "activation-steering", "steering-vectors", "personalization"],
    }
    text = card.text
    assert str(bundle.fingerprint) in text and str(bundle.portfolio.certificate) in text
    for name, entry in bundle.traits.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:4] == [name, entry.negative, entry.positive, f"{entry.dose:.2f}"]
        assert cells[4] == (
            f"{entry.statistics['gain on develop prompts']:+.3g} {entry.statistics['measure']}"
        )
    assert "for safety: expect a weak" in text  # the one with low reliability
    rows = [line for line in text.splitlines() if line.startswith("| entry ")]
    assert len(rows) == len(bundle.portfolio.kept)
    shares = [int(row.split("|")[2].strip().rstrip("%")) for row in rows]
    assert abs(sum(shares) - 100) <= 3


def test_a_cards_example_loads_the_bundle(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import steer

    asked = []

    class Loaded:
        def generate(self, prompt: str, weights: dict[str, float]) -> str:
            asked.append((prompt, weights))
            return "answer"

    def load(model: object = None, bundle: Bundle | None = None) -> Loaded:
        asked.append((model, list(bundle.traits)))
        return Loaded()

    monkeypatch.setattr(steer, "load", load)
    odd = 'dr"y'
    bundle = _bundle(traits={odd: _entry(odd, _bundle().traits["brevity"].edit)})
    for made, base, model in (
        (bundle, None, "tiny/model"),
        (bundle, "ann/tiny", "ann/tiny"),
        (replace(bundle, model=NAME), None, None),
    ):
        push(made, REPO, base_model=base, token=TOKEN)
        card = hub.files(REPO)["README.md"].decode()
        exec(card.split("```python\n")[1].split("```")[0], {})
        assert asked == [(model, [odd]), ("How do I sleep better?", {odd: 1.0})]
        asked.clear()


def test_a_folder_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "model").mkdir(parents=True)
    for model in (str(tmp_path / "secret" / "model"), "my/model", "model"):
        card = model_card(replace(_bundle(), model=model), REPO)
        assert not {"base_model", "base_model_relation", "license"} & front_matter(card).keys()
        assert "| built on | `model` |" in card.text and "secret" not in card.text
    with pytest.raises(InputError, match="expected a repository's id"):
        model_card(_bundle(), REPO, base_model="/a/b")


def test_a_folders_path_is_not_published(hub: FakeHub, tmp_path: Path) -> None:
    told = {None: "model", "org/model": "org/model"}
    for base_model, expected in told.items():
        for model in (str(tmp_path / "secret" / "model"), "./secret/model"):
            push(replace(_bundle(), model=model), REPO, base_model=base_model, token=TOKEN)
            pulled = pull(REPO, token=TOKEN)
            assert pulled.model == expected
            assert (
                b"secret" not in data(pulled, tmp_path)
                and b"secret" not in hub.files(REPO)["README.md"]
            )
    for model in (NAME, "org/model"):
        push(replace(_bundle(), model=model), REPO, token=TOKEN)
        assert pull(REPO, token=TOKEN).model == model


def test_words_of_others_stay_in_their_cells() -> None:
    names = {"a|b": "x|\n| y", "c": "<b>"}
    edit = _bundle().traits["brevity"].edit
    traits = {name: _entry(name, edit, positive=pole) for name, pole in names.items()}
    text = model_card(_bundle(traits=traits), REPO).text
    rows = [line for line in text.splitlines() if "mean-difference" in line]
    assert [row.replace("\\|", "").count("|") for row in rows] == [8, 8]
    assert "<b>" not in text
    assert "sums of the traits' own edits" in text and "Without a gate" in text


# --- The command line ----------------------------------------------------------------------------


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    _bundle().save("mine.safetensors")
    return folder


def test_push_and_pull(
    hub: FakeHub, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "mine.safetensors", REPO]) == 1
    assert "log in with `hf auth login` or set HF_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", "mine.safetensors", REPO, "--license", "mit", "-m", "A first one"]) == 0
    oid = hub.repositories[REPO].branches["main"]
    assert f"mine.safetensors -> {hub.url}/{REPO}/commit/{oid}\n" in capsys.readouterr().out
    assert main(["pull", REPO]) == 0
    assert "brevity, warmth, for tiny/model -> manners.safetensors\n" in capsys.readouterr().out
    assert Path("manners.safetensors").read_bytes() == Path("mine.safetensors").read_bytes()
    assert main(["pull", REPO]) == 2
    assert "manners.safetensors exists; name the file" in capsys.readouterr().err
    assert main(["pull", REPO, "--output", "manners.safetensors", "--revision", oid]) == 0
    assert main(["pull", REPO, "--output", "x.safetensors", "--file", "no"]) == 1
    assert not Path("x.safetensors").exists()


def test_profiles_on_the_command_line(
    hub: FakeHub, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    _bundle(profiles={"zoë": a_profile(evidence=EVIDENCE)}).save("people.safetensors")
    asked = ["push", "people.safetensors", REPO, "--private"]
    assert main(asked) == 2 and "--profiles" in capsys.readouterr().err
    assert main([*asked, "--profiles"]) == 2 and "--texts" in capsys.readouterr().err
    assert main([*asked, "--profiles", "--texts"]) == 0
    assert hub.repositories[REPO].private
    assert main(["pull", REPO]) == 0
    assert "it holds 1 profiles of persons" in capsys.readouterr().err
    held = Path("manners.safetensors").read_bytes()
    assert main(["pull", REPO, "--output", "manners.safetensors"]) == 2
    assert "holds 1 profiles, which would be lost" in capsys.readouterr().err
    assert Path("manners.safetensors").read_bytes() == held


def test_a_card_is_shown_without_a_hub(
    hub: FakeHub, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ["push", "mine.safetensors", REPO, "--license", "mit", "--show-card"]
    assert main(shown) == 0
    assert capsys.readouterr().out == f"{model_card(_bundle(), REPO, license='mit')}\n"
    assert hub.requests == []
