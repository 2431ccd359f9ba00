"""Bundles on a hub: pushed with a card, pulled through huggingface_hub's cache.

Which hub, the token and the cache are the library's own matter: `HF_ENDPOINT`, `HF_TOKEN` or
`hf auth login`, `HF_HOME`. Nothing here is called unless somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from steer.bundle import Bundle
from steer.card import check_hub_id, model_card, published
from steer.errors import HubError, InputError
from steer.profile import holds_text
from steer.versions import __version__

FILE = "bundle.safetensors"
"""What a bundle is called in a repository."""

# What the library's HTTP client raises where no answer comes. Which client that is has changed from
# version to version; the error for a bad answer derives from its base class in all of them.
_NO_ANSWER: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], OSError)


def push(
    bundle: Bundle,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    profiles: bool = False,
    texts: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> CommitInfo:
    """Publish a bundle with its card, in one commit; the repository is made if there is none.

    Args:
        bundle: The bundle.
        repo_id: Of the repository, "user/name".
        private: Only for those who may read the repository. One that exists stays what it is, and
            is refused if it is public.
        license: Of the bundle, as the hub names it; see `steer.card.model_card`.
        base_model: Hub id of the model it was built on; likewise.
        revision: Branch, made if there is none; None for the main one.
        message: Of the commit.
        profiles: Publish the profiles of persons in the bundle.
        texts: Publish what profiles hold of a person's texts, and words about them.
        token: None for the one that huggingface_hub knows.
        endpoint: Of the hub; None for the one that huggingface_hub knows.

    Returns:
        What was committed: `oid` is the revision to pin, `commit_url` where to look.

    Raises:
        InputError: If the bundle holds something of persons that was not asked to be published, or
            an argument is unusable.
        HubError: If the hub cannot be reached or refuses.
    """
    _check_personal(bundle, profiles, texts)
    card = model_card(bundle, repo_id, base_model=base_model, license=license)
    api = _api(token, endpoint)
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        published(bundle, base_model).save(path)
        with _told(api, repo_id, "push to", revision):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise HubError(
                    f"{repo_id} exists and is public, so nothing was pushed to it; make it private "
                    "on the hub, name another repository, or push without asking for a private one"
                )
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            return api.create_commit(
                repo_id,
                [
                    CommitOperationAdd(FILE, path),
                    CommitOperationAdd("README.md", str(card).encode()),
                ],
                commit_message=message or "A steering bundle, with its card",
                revision=revision,
            )


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    file: str = FILE,
    token: str | None = None,
    endpoint: str | None = None,
) -> Bundle:
    """Load a bundle from a hub, and check it as `Bundle.load` does; no code in it is run.

    What was fetched once is not fetched again. Where the hub cannot be reached, what is in
    huggingface_hub's cache for this revision is used.

    Args:
        repo_id: Of the repository, "user/name".
        revision: Branch, tag or commit; None for the main branch, which may change under you.
        file: Of the bundle, in the repository.
        token: None for the one that huggingface_hub knows.
        endpoint: Of the hub; None for the one that huggingface_hub knows.

    Raises:
        InputError: If the id is none.
        HubError: If there is no such repository, revision or file, or the hub cannot be reached.
        BundleError: If the file is no bundle.
    """
    check_hub_id(repo_id)
    api = _api(token, endpoint)
    with _told(api, repo_id, "pull from", revision, file):
        path = api.hf_hub_download(repo_id, file, revision=revision)
    return Bundle.load(path)


def _check_personal(bundle: Bundle, profiles: bool, texts: bool) -> None:
    """Refuse to publish what is of persons, unless it was said to be meant."""
    if bundle.profiles and not profiles:
        raise InputError(
            f"the bundle holds {len(bundle.profiles)} profiles, which are made of people's texts; "
            "delete them with `steer forget`, or pass profiles=True (--profiles) to publish them"
        )
    telling = sum(map(holds_text, bundle.profiles.values()))
    if telling and not texts:
        raise InputError(
            f"{telling} of the bundle's profiles hold texts of persons or words about them; make "
            "them anew without keep_evidence, or pass texts=True (--texts) to publish those too"
        )


def _api(token: str | None, endpoint: str | None) -> HfApi:
    return HfApi(endpoint=endpoint, token=token, library_name="steer", library_version=__version__)


@contextmanager
def _told(
    api: HfApi, repo_id: str, doing: str, revision: str | None, file: str | None = None
) -> Iterator[None]:
    """Turn what the library raises into what was expected, what came, and what to do."""
    where = f"cannot {doing} {repo_id} at {api.endpoint}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        raise HubError(f"{where}: it is gated; ask for access there, and {log_in}") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{where}: there is no such repository, or you may not see it; check the name, and if "
            f"it is private {log_in}"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{where}: it has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cached = "" if file is None else f", and {file} is not in the cache"
        if constants.HF_HUB_OFFLINE:
            raise HubError(
                f"{where}: HF_HUB_OFFLINE is set{cached}; unset it to reach the hub"
            ) from error
        why = error.__cause__ or error
        raise HubError(f"{where}: the hub cannot be reached{cached} ({why})") from error
    except EntryNotFoundError as error:
        with _told(api, repo_id, doing, revision):
            names = api.list_repo_files(repo_id, revision=revision)
        raise HubError(f"{where}: it has no {file}, {_others(names)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise HubError(
                f"{where}: the hub refuses ({status}); {log_in}, with a token that may write there"
            ) from error
        raise HubError(f"{where}: the hub answers {status}: {error}") from error
    except _NO_ANSWER as error:
        raise HubError(f"{where}: {error}; check the network, and the disk") from error
    except ValueError as error:  # an answer that the library cannot read, or a card it refuses
        raise HubError(f"{where}: {error}") from error


def _others(names: list[str]) -> str:
    """Which of a repository's files could be bundles."""
    there = sorted(name for name in names if name.endswith(".safetensors"))
    if not there:
        return "nor any other file that could be a bundle"
    return f"but {', '.join(there)}; say which is meant with file= (--file)"
