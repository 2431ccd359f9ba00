"""The playground without a browser: what it computes, and what its page does when it is called."""

from __future__ import annotations

import asyncio
import html
import json
import re
import socket

import httpx
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

if transformers.__version__.startswith("4."):
    pytest.skip("serving needs transformers 5", allow_module_level=True)
pytest.importorskip("gradio", reason="the playground needs pip install 'steer-engine[play]'")

import gradio
import gradio_client

from steer.bundle import Bundle
from steer.errors import InputError, SteerError
from steer.onboarding import Onboarding
from steer.play.conversation import Conversation, Decoding, Exchange, answers
from steer.play.mixture_map import MixtureMap
from steer.play.page import Playground, _messages, mount
from steer.play.panels import known_panel, map_background, map_place, why_panel
from steer.play.triangle import CORNERS, Point, regions
from steer.play.why import why
from steer.portfolio import Portfolio
from steer.preference import Preference
from steer.resources import default_bundle_path
from steer.route import route
from steer.serve.wire import ChatCompletion
from steer.sliders import Sliders
from tests.test_serve_http import a_server, an_app

TEN = Bundle.load(default_bundle_path())
assert TEN.portfolio is not None
FIVE: Portfolio = TEN.portfolio

standing = st.dictionaries(st.sampled_from(sorted(TEN.traits)), st.floats(0, 1), max_size=4)


# --- Sliders -------------------------------------------------------------------------------------


def test_sliders_give_a_direction_and_an_amount():
    sliders = Sliders({"brevity": 0.5, "warmth": 0.25, "humor": 0.0}, 1.5)
    assert sliders.weights == {"brevity": 0.5, "warmth": 0.25}
    assert sliders.strength == 0.75
    assert Sliders({"brevity": 3.0}).strength == 1
    assert Sliders({"brevity": 0.0}, 2.0).weights is None
    assert Sliders({}).strength == 0


@given(standing, st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_a_point_of_the_triangle_changes_the_mixture_and_not_the_amount(values, shares):
    traits = ("brevity", "warmth", "humor")
    sliders = Sliders(values, 0.7)
    moved = sliders.mixing(dict(zip(traits, shares, strict=True)))
    largest = max(values.values(), default=0.0)
    assert moved.strength == pytest.approx(0.7 * (largest or 1.0), abs=1e-3)
    assert set(moved.weights or {}) <= set(traits) and moved.knob == 0.7
    if largest > 0.1:  # sliders have three digits
        total = sum(moved.values[name] for name in traits)
        for name, share in zip(traits, shares, strict=True):
            assert moved.values[name] / total == pytest.approx(share / sum(shares), abs=0.02)


def test_what_the_page_says_of_a_point_is_checked():
    at = Point.read({"traits": ["a", "b", "c"], "shares": [1, 1, 2]}, "abcd")
    assert at == Point(("a", "b", "c"), (0.25, 0.25, 0.5))
    for traits, shares in [
        (["a", "b"], [1, 1]),
        (["a", "b", "b"], [1, 1, 1]),
        (["a", "b", "x"], [1, 1, 1]),
        (["a", "b", "c"], [0, 0, 0]),
        (["a", "b", "c"], [1, -1, 1]),
        (["a", "b", "c"], [1, float("nan"), 1]),
        (["a", "b", "c"], [1, "1", 1]),
        ("abc", [1, 1, 1]),
    ]:
        with pytest.raises(InputError, match="three different traits"):
            Point.read({"traits": traits, "shares": shares}, "abcd")
    with pytest.raises(InputError):
        Point.read(None, "abcd")


# --- Who serves ----------------------------------------------------------------------------------


@given(standing, st.sampled_from([0.0, 0.5, 1.0]))
def test_what_is_told_is_what_serves(values, knob):
    """Against the figures of the measured edits themselves."""
    sliders = Sliders(values, knob)
    told = why(TEN, sliders)
    weights = sliders.weights
    figures = {fact.name: fact.figure for fact in told.facts}
    if weights is None or not sliders.strength:
        assert told.name == "the unsteered model" and told.number == 0 and not figures
        return
    if not set(weights) <= set(FIVE.traits):
        assert told.name == "a sum of edits" and told.number is None and not figures
        assert all(one.served is None for one in told.earned)
        assert all(name in told.reason for name in set(weights) - set(FIVE.traits))
        return
    w = np.array([weights.get(name, 0.0) for name in FIVE.traits])
    value = FIVE.measured.value(w / w.sum())
    if len(weights) == 1:
        assert told.name == f"{next(iter(weights))}'s own edit" and told.number is None
    else:
        order = np.array([0, *FIVE.kept])
        best = np.argsort(-value[order])
        assert told.number == best[0] and told.name == f"entry {best[0]}"
        ahead = value[order][best[0]] - value[order][best[1]]
        rival = f"entry {best[1]}" if best[1] else "unsteered"
        assert figures[f"ahead of {rival}"] == f"{ahead:.4f} in J"
        chosen = order[best[0]]
        assert figures["below the best measured edit"] == f"{value.max() - value[chosen]:.4f} in J"
        assert [one.served for one in told.earned] == FIVE.mean_rewards[chosen].tolist()
        assert figures["KL from the unsteered model"] == f"{FIVE.kl[chosen]:.2f} nats a token"
    assert [one.unsteered for one in told.earned] == FIVE.mean_rewards[0].tolist()
    assert sum(one.weight for one in told.earned) == pytest.approx(1)
    assert ("strength 1" in told.reason) == (sliders.strength != 1)


def test_the_page_and_the_server_name_the_same():
    app = an_app()
    service = app.state.service
    bundle = service.steerer.bundle
    names = {
        "the unsteered model": "unsteered",
        "a sum of edits": "composed",
        "brevity's own edit": "the trait's own edit",
    }
    for values in [
        {"brevity": 1.0, "warmth": 0.3},
        {"brevity": 0.1, "warmth": 0.9},
        {"zest": 0.4},
        {"brevity": 0.0},
        {"brevity": 0.7},
    ]:
        sliders = Sliders(values)
        body = ChatCompletion.model_validate(
            {
                "messages": [{"role": "user", "content": "Hi"}],
                "weights": sliders.weights,
                "strength": sliders.strength,
            }
        )
        name = why(bundle, sliders).name
        assert service.chat(body).served == names.get(name, name)


def test_panels_tell_what_is_known():
    told = why_panel(why(TEN, Sliders({"brevity": 1.0, "warmth": 0.5})))
    for trait in FIVE.traits:
        assert trait in told
    assert "Served by <b>entry" in told
    onboarding = Onboarding.begin(Preference.of(TEN), FIVE)
    assert "You are served by" in known_panel(onboarding)


# --- The triangle and the map --------------------------------------------------------------------


def inside(place: np.ndarray, path: str) -> bool:
    """Whether a place is in a convex shape, a little inside."""
    corners = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float)
    edges, away = np.roll(corners, -1, 0) - corners, place - corners
    turns = edges[:, 0] * away[:, 1] - edges[:, 1] * away[:, 0]
    return bool((turns > 1).all() or (turns < -1).all())


@pytest.mark.parametrize("traits", [FIVE.traits[:3], ("warmth", "brevity", "positivity")])
def test_regions_hold_the_mixtures_that_are_routed_there(traits):
    shares = np.random.default_rng(0).dirichlet([1, 1, 1], 400)
    weights = np.zeros((400, 5))
    weights[:, [FIVE.traits.index(name) for name in traits]] = shares
    served = route(FIVE.measured, FIVE.kept, weights)
    found = regions(FIVE, traits)
    assert len(found) == len({one.colour for one in found}) > 3
    hit = 0
    for place, index in zip(shares @ CORNERS, served.tolist(), strict=True):
        numbers = [one.number for one in found if inside(place, one.path)]
        assert numbers in ([], [FIVE.number(index)])
        hit += len(numbers)
    assert hit > 370  # the others are too near to an edge
    assert regions(FIVE, ("brevity", "warmth", "humor")) == [] == regions(None, traits)


def test_a_map_stands_corners_and_mixtures_where_they_belong():
    drawn = MixtureMap(FIVE)
    for number, name in enumerate(FIVE.traits):
        assert drawn.place({name: 1.0}) == pytest.approx(drawn.corners[number])
    assert drawn.place(dict.fromkeys(FIVE.traits, 0.2)) == pytest.approx((0, 0), abs=1e-9)
    assert sum(len(one.places) for one in drawn.dots) == 1200
    assert sum(one.share for one in drawn.dots) == pytest.approx(1)
    for one in drawn.dots:  # shares are of another draw of mixtures
        assert len(one.places) / 1200 == pytest.approx(one.share, abs=0.05)
    svg = map_background(drawn)
    assert svg.count("<circle") > 1200 and all(name in svg for name in FIVE.traits)
    here = map_place(drawn, why(TEN, Sliders({"simplicity": 0.4, "formality": 0.4})))
    assert (here["x"], here["y"]) == pytest.approx(
        (drawn.corners[1] + drawn.corners[2]) / 2, abs=0.1
    )
    assert map_place(drawn, why(TEN, Sliders({"brevity": 1, "humor": 1})))["x"] is None
    assert map_place(drawn, why(TEN, Sliders({})))["x"] is None


# --- Questions -----------------------------------------------------------------------------------


def test_questions_end_and_what_was_preferred_counts_on_either_side():
    """Somebody who wants brevity alone takes the shorter answer, wherever it stands."""
    brevity = FIVE.traits.index("brevity")
    for seed in (0, 1, 2):
        now = Onboarding.begin(Preference.of(TEN), FIVE, most=5, regret=0.0, seed=seed)
        assert now.question is not None
        sides = set()
        while (shown := now.question) is not None:
            assert shown.number == now.asked + 1
            difference = shown.question.difference[brevity]
            first = (difference > 0) != shown.swapped
            expected = (shown.question.second, shown.question.first)
            assert shown.answers == (expected if shown.swapped else expected[::-1])
            sides.add(shown.swapped)
            now = now.after(0 if first else 1)
        assert now.asked == 5 and max(now.preference.weights, key=now.preference.weights.get) == (
            "brevity"
        )
        assert FIVE.number(now.served.chosen) > 0 and f"{now.served.expected:.3f}" in now.told
    with pytest.raises(InputError, match="nothing more"):
        now.after(0)


def test_questions_can_be_skipped_and_ended():
    start = Onboarding.begin(Preference.of(TEN), FIVE, regret=0.0)
    shown = start.question
    assert shown is not None
    skipped = start.after(None)
    assert skipped.preference is start.preference and skipped.asked == 1
    assert all(one is not shown.question for one in skipped.left)
    assert skipped.ended().question is None
    assert Onboarding.begin(Preference.of(TEN), FIVE, regret=1.0).question is None


# --- Conversations -------------------------------------------------------------------------------


def run(app, work):
    """Something asynchronous, while the application runs."""

    async def inside():
        async with app.router.lifespan_context(app):
            return await asyncio.wait_for(work(), 60)

    return asyncio.run(inside())


def test_each_of_the_two_goes_on_with_its_own_answers():
    app = an_app()
    service = app.state.service
    sliders = Sliders({"brevity": 1.0, "warmth": 0.5})

    async def talk() -> list[Conversation]:
        first = [now async for now in answers(service, Conversation(), "Hi", sliders, Decoding(8))]
        assert service.in_flight == 0
        again = [now async for now in answers(service, first[-1], "And?", sliders, Decoding(8))]
        return [*first, *again]

    seen = run(app, talk)
    last = seen[-1]
    steerer = service.steerer
    for steered in (True, False):
        weights = {"weights": sliders.weights} if steered else {"weights": None}
        said: list[dict[str, str]] = []
        for one in last.exchanges:
            said.append({"role": "user", "content": one.prompt})
            answer = steerer.generate(said, weights["weights"], max_new_tokens=8)
            assert (one.steered if steered else one.unsteered) == answer
            said.append({"role": "assistant", "content": answer})
        assert last.messages(steered=steered) == said
    assert last.exchanges[0].steered != last.exchanges[0].unsteered
    assert {one.served for one in last.exchanges} == {"entry 1"}
    texts = [one.exchanges[-1] for one in seen]
    assert texts[0] == Exchange("Hi", served="entry 1")


def test_who_leaves_frees_both_rows_and_what_cannot_be_answered_is_refused():
    app = an_app()
    service = app.state.service

    async def leave() -> int:
        written = answers(service, Conversation(), "Hi", Sliders({"zest": 1.0}), Decoding(200))
        async for now in written:
            if now.exchanges[-1].steered:
                break
        busy = service.in_flight
        await written.aclose()
        assert service.in_flight == 0
        while service.engine.edits_in_use:
            await asyncio.sleep(0.01)
        with pytest.raises(SteerError, match="max_tokens"):
            async for _ in answers(service, Conversation(), "Hi", Sliders({}), Decoding(10_000)):
                pass
        return busy

    assert run(app, leave) == 2


# --- The page ------------------------------------------------------------------------------------


def test_a_page_is_made_without_asking_anybody(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"asked {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked, **more: refuse(None, asked))
    service = an_app().state.service
    config = Playground(service).blocks.get_config_file()
    assert config["analytics_enabled"] is False


def test_what_is_said_shows_as_it_was_written():
    """Neither as Markdown nor as HTML, whose images a browser would fetch."""
    config = Playground(an_app().state.service).blocks.get_config_file()
    panes = [one["props"] for one in config["components"] if one["type"] == "chatbot"]
    assert [pane["elem_id"] for pane in panes] == ["steered", "unsteered"]
    assert all(not pane["render_markdown"] and not pane["latex_delimiters"] for pane in panes)
    prompt = "<img src='//example.org/a.png'> & why?"
    code = "def f():\n    if 1 < 2:\n\treturn 3"
    talk = Conversation((Exchange(prompt, code, "![an image](http://example.org/b.png)"),))
    for steered, answer in ((True, code), (False, talk.exchanges[0].unsteered)):
        shown = gradio.Chatbot().postprocess(_messages(talk, steered=steered)).model_dump()
        texts = [part["text"] for message in shown for part in message["content"]]
        assert [html.unescape(text) for text in texts] == [prompt, answer]
        assert not any("<" in text for text in texts)


def test_again_leaves_what_was_said_and_typed_where_it_cannot_be_answered():
    app = an_app()
    page = Playground(app.state.service)
    talk = Conversation((Exchange("Hi", "a", "b"), Exchange("And?", "c", "d")))

    def again(talk: Conversation, tokens: int) -> list[dict]:
        async def work() -> list[dict]:
            request = gradio.Request(session_hash="mine")
            numbers = (tokens, 0.0, 0, 1.0, 1.0, 0.5, 0.0)
            return [update async for update in page._repeat(request, "Typed", talk, *numbers)]

        return run(app, work)

    shown = again(talk, 8)
    assert shown[0][page._box].value == "Typed" and page._box not in shown[1]
    first, last = shown[-2][page._talk].exchanges
    assert first == talk.exchanges[0] and last.prompt == "And?"
    assert last.steered not in ("", "c") and last.unsteered not in ("", "d")
    with pytest.warns(UserWarning, match="max_tokens"):
        shown = again(talk, 10_000)[-1]
    assert shown[page._talk] == talk and shown[page._box].value == "Typed"
    assert shown[page._steered] == _messages(talk, steered=True)
    assert again(Conversation(), 8) == [{page._box: gradio.skip()}]


def test_a_model_that_only_continues_text_cannot_play():
    service = an_app().state.service
    service.steerer.language_model.tokenizer.chat_template = None
    with pytest.raises(SteerError, match="no chat template"):
        Playground(service)


@pytest.fixture(scope="module")
def url():
    app = an_app()
    # A page, and gradio's client too, holds a connection as long as there is a server.
    with a_server(mount(app, app.state.service), shutdown_seconds=1) as address:
        yield address


def test_the_page_stands_beside_the_interface(url):
    page = httpx.get(url, follow_redirects=True)
    assert page.url.path == "/play/" and "steer play" in page.text
    assert httpx.get(f"{url}/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert httpx.get(f"{url}/manifest.json").json()["name"] == "steer play"
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    assert httpx.get(f"{url}/v1/nothing").status_code == 404


@pytest.mark.parametrize("knob", [1.0, 0.0])
def test_answers_come_in_pieces_over_the_page(url, knob, monkeypatch):
    # On an idle machine the tiny model has written everything before the page is told again.
    monkeypatch.setattr("steer.play.conversation._PAUSE", 0.0)
    client = gradio_client.Client(f"{url}/play/", verbose=False, analytics_enabled=False)
    brevity, warmth, zest = 1.0, 0.5, 0.0
    job = client.submit("Hi", 40, 0.0, 0, knob, brevity, warmth, zest, api_name="/answer")
    job.result(60)
    heard = [output[-2:] for output in job.outputs() if isinstance(output[-1], list)]
    assert len({json.dumps(steered) for steered, _ in heard}) > 3
    steered, unsteered = heard[-1]
    assert (steered[-1] == unsteered[-1]) == (knob == 0)
    assert [one["role"] for one in steered] == ["user", "assistant"]
