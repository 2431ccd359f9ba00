"""`steer.remote`, against a server of its own."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from steer.errors import InputError, ModelError
from steer.remote import RemoteModel


@pytest.fixture
def server():
    """A server that says what it was asked, or whatever `reply` holds."""
    seen: list[tuple[str, dict, dict]] = []
    reply: dict[str, object] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            length = int(self.headers["Content-Length"])
            asked = json.loads(self.rfile.read(length))
            seen.append((self.path, dict(self.headers), asked))
            said = {"choices": [{"message": {"content": asked["messages"][-1]["content"].upper()}}]}
            body = reply.get("body", json.dumps(said)).encode()
            self.send_response(reply.get("code", 200))
            if "location" in reply:
                self.send_header("Location", reply["location"])
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            seen.append((self.path, dict(self.headers), {}))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen, reply
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_asks_as_the_api_wants(server, monkeypatch: pytest.MonkeyPatch) -> None:
    url, seen, _ = server
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert RemoteModel(url, "m").answer(chat, max_tokens=5, seed=3) == "HI"
    path, headers, asked = seen[-1]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers  # nobody's key is sent that was not given
    assert asked == {
        "model": "m",
        "messages": chat,
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 3,
    }
    remote = RemoteModel(f"{url}/", "m", api_key="secret")
    assert remote.answer("hello") == "HELLO" and "secret" not in repr(remote)
    assert seen[-1][1]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    RemoteModel(url, "m").answer("hello")
    assert seen[-1][1]["Authorization"] == "Bearer other"


def test_what_is_no_answer_is_told(server) -> None:
    url, _, reply = server
    for body, wanted in (
        ("not json", "no answer"),
        ("{}", "no answer"),
        ('{"choices": []}', "no answer"),
        ('{"choices": [{"message": {"content": null}}]}', "expected an answer with text"),
    ):
        reply["body"] = body
        with pytest.raises(ModelError, match=wanted):
            RemoteModel(url, "m").answer("hi")
    reply |= {"code": 404, "body": "no such model"}
    with pytest.raises(ModelError, match="404.*no such model"):
        RemoteModel(url, "m").answer("hi")
    for wrong in ("http://127.0.0.1:1/v1", "http://localhost:abc/v1", "http://local host/v1"):
        with pytest.raises(ModelError, match="no answer"):
            RemoteModel(wrong, "m", timeout=2).answer("hi")


def test_a_key_is_sent_or_refused_but_not_told(server) -> None:
    url, seen, _ = server
    RemoteModel(url, "m", api_key="secret\n").answer("hi")
    assert seen[-1][1]["Authorization"] == "Bearer secret"
    for key in ("secret\u201d", "sec\nret"):
        with pytest.raises(InputError, match="api_key: expected printable ASCII") as told:
            RemoteModel(url, "m", api_key=key).answer("hi")
        assert "sec" not in str(told.value) and told.value.__cause__ is None


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_key_does_not_follow_a_redirect(server, code) -> None:
    url, seen, reply = server
    reply |= {"code": code, "location": f"{url}/elsewhere", "body": ""}
    with pytest.raises(ModelError, match=str(code)):
        RemoteModel(url, "m", api_key="secret").answer("hi")
    assert [path for path, _, _ in seen] == ["/v1/chat/completions"]


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(InputError, match="http"):
        RemoteModel("localhost", "m")
    remote = RemoteModel("http://localhost:1", "m")
    for chat in ([], [{"role": "king", "content": "x"}]):
        with pytest.raises(InputError):
            remote.answer(chat)
