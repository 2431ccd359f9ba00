"""What stands in Ray Serve's proxy, the metrics of several servers, and settings that travel."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from steer.errors import InputError, SteerError
from steer.serve.metrics import Metrics, merged
from steer.serve.proxy import FAILED, GONE, LATE, NOBODY, ORIGINS, ClearErrors, middlewares
from steer.serve.replicas import Replica, Replicas
from steer.serve.server import Settings
from steer.serve.service import Limits

NAMES = ("steer_requests_total", "steer_in_flight", "steer_first_token_seconds_sum")


def start(status: int, kind: str) -> Message:
    headers = [[b"content-type", kind.encode()]]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(text: str, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def answered(*messages: Message, path: str = "/v1/models"):
    """What a client gets where the proxy sends these messages and ends."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return TestClient(ClearErrors(proxy), raise_server_exceptions=False).get(path)


@pytest.mark.parametrize(
    ("messages", "status", "message"),
    [
        ([], 503, GONE),
        ([start(503, "text/plain; charset=utf-8"), body("No replicas")], 503, NOBODY),
        ([start(404, "text/plain"), body("Path not found")], 503, NOBODY),
        ([start(408, "text/plain"), body("timed out")], 504, LATE),
        ([start(500, "text/plain"), body("Internal Server Error")], 500, FAILED),
    ],
)
def test_an_error_of_the_proxy_is_told_as_clients_read_it(messages, status, message):
    response = answered(*messages)
    assert response.status_code == status and response.headers["content-type"] == "application/json"
    assert response.json() == {
        "error": {"message": message, "type": "server_error", "param": None, "code": None}
    }
    assert response.headers["retry-after"] == "1"


def test_a_stream_that_breaks_off_ends_with_an_error():
    response = answered(
        start(200, "text/event-stream; charset=utf-8"), body("data: {}\n\n", more=True)
    )
    first, error, end, rest = response.text.split("\n\n")
    assert (first, end, rest) == ("data: {}", "data: [DONE]", "")
    assert GONE in error and error.startswith('data: {"error"')


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "application/json"), (200, "text/plain"), (429, "application/json")],
)
def test_what_a_replica_says_is_passed_on(status, kind):
    response = answered(start(status, kind), body('{"a"', more=True), body(": 1}"))
    assert (response.status_code, response.text) == (status, '{"a": 1}')


def test_a_whole_stream_is_passed_on():
    said = "data: {}\n\ndata: [DONE]\n\n"
    assert answered(start(200, "text/event-stream"), body(said, more=True), body("")).text == said


def test_pages_of_rays_own_are_left_alone():
    messages = [start(503, "text/plain"), body("no routes")]
    assert answered(*messages, path="/-/routes").text == "no routes"


def test_nothing_is_sent_to_a_client_that_has_gone():
    sent: list[Message] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, "text/event-stream"))
        await receive()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/chat/completions"}
    # Nothing is waited for, so one step is enough.
    with pytest.raises(StopIteration):
        ClearErrors(proxy)(scope, receive, send).send(None)
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_ray_is_given_a_middleware():
    (one,) = middlewares()
    assert one.cls is ClearErrors


def test_pages_can_read_an_error_of_the_proxy(monkeypatch: pytest.MonkeyPatch):
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """A replica that dies."""

    monkeypatch.setenv(ORIGINS, '["https://app.example.org"]')
    for one in middlewares():  # as Ray puts them around its proxy
        app = one.cls(app, *one.args, **one.kwargs)
    for origin, allowed in (("https://app.example.org",) * 2, ("https://other.example.org", None)):
        response = TestClient(app).get("/v1/models", headers={"Origin": origin})
        assert response.status_code == 503
        assert response.headers.get("access-control-allow-origin") == allowed


def test_pages_of_metrics_become_one():
    pages = {}
    for number, name in enumerate(("one", "two"), start=1):
        metrics = Metrics(lambda number=number: number, lambda: 0)
        metrics.requests.labels("/health", 200).inc(number)
        metrics.first_token.observe(number)
        pages[name] = metrics.text()
    text = merged(pages).decode()
    assert text.count("# TYPE steer_requests_total counter") == 1
    found = {
        (sample.name, sample.labels["replica"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name
        in ("steer_requests_total", "steer_in_flight", "steer_first_token_seconds_sum")
    }
    assert found == {
        (name, replica): number
        for name in NAMES
        for replica, number in (("one", 1.0), ("two", 2.0))
    }


def test_settings_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "model").mkdir()
    settings = Settings("model", Path("b"), keys=Path("k"), limits=Limits(in_flight=3), rows=2)
    there = pickle.loads(pickle.dumps(settings.absolute()))
    assert there == Settings(
        str(tmp_path / "model"),
        tmp_path / "b",
        keys=tmp_path / "k",
        store=f"sqlite:///{tmp_path}/data/steer/people.sqlite",
        limits=Limits(in_flight=3),
        rows=2,
    )
    hub = Settings("org/model", store="sqlite://").absolute()
    assert (hub.model, hub.store, hub.bundle, hub.keys) == ("org/model", "sqlite://", None, None)
    assert Settings(store="sqlite:///p").absolute().store == f"sqlite:///{tmp_path}/p"
    elsewhere = "postgresql+psycopg://me:secret@db/steer"
    assert Settings(store=elsewhere).absolute().store == elsewhere


def test_a_replica_whose_engine_stopped_is_not_healthy():
    replica = Replica(Settings())
    replica.check_health()  # it is still coming up
    replica._service = SimpleNamespace(engine=SimpleNamespace(healthy=True))
    replica.check_health()
    replica._service.engine.healthy = False
    with pytest.raises(SteerError, match="does not run"):
        replica.check_health()


@pytest.mark.parametrize("wrong", [{"number": 0}, {"number": 2, "cpus": 0}])
def test_replicas_that_cannot_be(wrong):
    with pytest.raises(InputError, match="expected 1 or more"):
        Replicas(**wrong)
