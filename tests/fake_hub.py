"""A hub on this machine: the endpoints that huggingface_hub asks to push and pull small files.

It keeps repositories in memory, knows one user, and speaks as the hub's API does: errors by status
and `X-Error-Code`, files by commit, with an ETag.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import yaml

USER, TOKEN, OTHERS_TOKEN = "ann", "hf_ann", "hf_ben"
LICENSES = ("apache-2.0", "mit")
EMPTY = hashlib.sha1(b"").hexdigest()


@dataclass
class Repository:
    """Files by commit, and commits by branch."""

    private: bool
    gated: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": EMPTY})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {EMPTY: {}})

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        """Add or replace files on a branch."""
        whole = {**self.commits[self.branches[branch]], **files}
        seed = repr((self.branches[branch], sorted(whole.items()))).encode()
        self.branches[branch] = oid = hashlib.sha1(seed).hexdigest()
        self.commits[oid] = whole
        return oid


@dataclass
class FakeHub:
    """What is stored, and what was asked: "METHOD path" of every request."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    down: bool = False  # answers 503

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """What lies on a branch."""
        held = self.repositories[repo_id]
        return held.commits[held.branches[branch]]


class _Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, body: object = None, **headers: str) -> None:
        self.status, self.headers = status, headers
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that listens inside the block."""
    hub = FakeHub()

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_GET

    def _serve(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.held.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.held.down:
                raise _Answer(503, b"down")
            self._route(path.split("/"), body)
            raise _Answer(404, b"no such endpoint: " + path.encode())
        except _Answer as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    def _route(self, path: list[str], body: bytes) -> None:
        if path == ["api", "validate-yaml"]:
            self._validate(json.loads(body)["content"])
        if path == ["api", "repos", "create"]:
            self._create(json.loads(body))
        if path[:2] == ["api", "models"]:
            repo_id, what = "/".join(path[2:4]), path[4:]
            repository = self._repository(repo_id)
            if self.command == "GET":
                if what[:1] == ["tree"]:
                    self._tree(repository, what[1])
                self._info(repo_id, repository, what[1] if what else "main")
            if self._token() != TOKEN:
                raise _Answer(403, {"error": "no"}, X_Error_Message="no write access")
            name = what[1]
            if what[0] == "branch":
                if name in repository.branches:
                    raise _Answer(409, {"error": "exists"})
                repository.branches[name] = repository.branches["main"]
                raise _Answer(200, {})
            if what[0] == "preupload":
                known = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                files = json.loads(body)["files"]
                raise _Answer(200, {"files": [{"path": one["path"], **known} for one in files]})
            self._commit(repo_id, repository, name, body)
        if path[2:3] == ["resolve"]:
            self._resolve(self._repository("/".join(path[:2])), path[3], "/".join(path[4:]))

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _validate(self, card: str) -> None:
        metadata = yaml.safe_load(card.split("---\n")[1])
        wrong = [] if metadata.get("license", "mit") in LICENSES else ["license: must be known"]
        found = {"errors": [{"message": one} for one in wrong], "warnings": []}
        raise _Answer(400 if wrong else 200, found)

    def _create(self, asked: dict[str, object]) -> None:
        if self._token() is None:
            raise _Answer(401, {"error": "Invalid username or password."})
        if self._token() != TOKEN or asked["organization"] != USER:
            raise _Answer(403, {"error": "no"}, X_Error_Message="not your namespace")
        repo_id = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.held.url}/{repo_id}"}
        if repo_id in self.held.repositories:
            raise _Answer(409, url)
        # huggingface_hub before 2.0 says the first, later ones the second.
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.held.repositories[repo_id] = Repository(private)
        raise _Answer(200, url)

    def _repository(self, repo_id: str) -> Repository:
        found = self.held.repositories.get(repo_id)
        if found is None or (found.private and self._token() != TOKEN):
            raise _Answer(404, b"", X_Error_Code="RepoNotFound")
        if found.gated and self._token() != TOKEN:
            raise _Answer(403, b"", X_Error_Code="GatedRepo")
        return found

    def _revision(self, repository: Repository, name: str) -> str:
        oid = repository.branches.get(name, name)
        if oid not in repository.commits:
            raise _Answer(404, b"", X_Error_Code="RevisionNotFound")
        return oid

    def _info(self, repo_id: str, repository: Repository, revision: str) -> None:
        oid = self._revision(repository, revision)
        files = [{"rfilename": name} for name in repository.commits[oid]]
        told = {"id": repo_id, "modelId": repo_id, "sha": oid, "private": repository.private}
        raise _Answer(200, {**told, "siblings": files, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, repository: Repository, revision: str) -> None:
        files = repository.commits[self._revision(repository, revision)]
        known = {"type": "file", "oid": EMPTY}
        listed = [{"path": name, "size": len(data), **known} for name, data in files.items()]
        raise _Answer(200, listed)

    def _commit(self, repo_id: str, repository: Repository, branch: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        added = [line["value"] for line in lines if line["key"] == "file"]
        files = {one["path"]: base64.b64decode(one["content"]) for one in added}
        oid = repository.commit(branch, files)
        url = f"{self.held.url}/{repo_id}/commit/{oid}"
        raise _Answer(200, {"commitUrl": url, "commitOid": oid})

    def _resolve(self, repository: Repository, revision: str, name: str) -> None:
        oid = self._revision(repository, revision)
        data = repository.commits[oid].get(name)
        if data is None:
            raise _Answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        tag = hashlib.sha1(data).hexdigest()
        raise _Answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=oid)
