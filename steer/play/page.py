"""The Gradio page: what is on it, and what happens when it is touched."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.responses import RedirectResponse, Response

from steer.demo import PROMPTS
from steer.errors import SteerError
from steer.onboarding import Onboarding
from steer.play import panels
from steer.play.conversation import Conversation, Decoding, answers
from steer.play.mixture_map import MixtureMap
from steer.play.triangle import Point, regions
from steer.play.why import why
from steer.preference import Preference
from steer.serve.service import Service
from steer.sliders import Sliders

PATH = "/play"

_HERE = Path(__file__).parent
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<path d='M8 1 15 14H1Z' fill='#0d9488'/></svg>"
)
# Of the system: the page fetches nothing from elsewhere.
_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")

Update = dict[Any, Any]
"""New values, by the component that takes them."""


def mount(app: FastAPI, service: Service) -> FastAPI:
    """The application of a server, with the playground on it.

    Args:
        app: Of `steer.serve.app.create_app`.
        service: What it serves.

    Raises:
        SteerError: If the model cannot chat.
    """

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")

    # A browser asks for these two, whatever the page says.
    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(_ICON, media_type="image/svg+xml")

    @app.get("/manifest.json", include_in_schema=False)
    async def manifest() -> dict[str, str]:
        return {"name": "steer play", "display": "browser"}

    gr.mount_gradio_app(
        app,
        Playground(service).blocks,
        PATH,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        theme=gr.themes.Soft(
            primary_hue="teal",
            secondary_hue="teal",
            neutral_hue="slate",
            radius_size="md",
            font=_FONT,
            font_mono=_MONO,
        ),
        css=(_HERE / "page.css").read_text(),
    )
    return app


class Playground:
    """The page of one service; what a visitor does is kept in their session alone.

    Attributes:
        blocks: The page.
    """

    def __init__(self, service: Service) -> None:
        """Lay it out.

        Raises:
            SteerError: If the model cannot chat.
        """
        language_model = service.steerer.language_model
        if language_model.tokenizer.chat_template is None:
            raise SteerError(f"{language_model.name} has no chat template, so it cannot chat")
        self._service = service
        self._writing: set[str | None] = set()  # sessions; a page writes one answer at a time
        self._bundle = service.steerer.bundle
        self._portfolio = self._bundle.portfolio
        routed = () if self._portfolio is None else self._portfolio.traits
        others = tuple(name for name in self._bundle.traits if name not in routed)
        self._routed, self._others = routed or others, others if routed else ()
        self._traits = (*self._routed, *self._others)
        amounts = zip(self._routed, (1.0, 0.5, 0.3), strict=False)
        self._start = Sliders({**dict.fromkeys(self._traits, 0.0), **dict(amounts)})
        self._map = None if self._portfolio is None else MixtureMap(self._portfolio)
        with gr.Blocks(title="steer play", analytics_enabled=False, fill_width=True) as self.blocks:
            _panel(panels.header(service.model), "header")
            with gr.Tabs(elem_id="tabs") as self._tabs:
                with gr.Tab("Chat", id="chat"), gr.Row(elem_id="workbench"):
                    with gr.Column(scale=3, min_width=290, elem_id="manner"):
                        self._lay_manner()
                    with gr.Column(scale=8, min_width=320, elem_id="talk"):
                        self._lay_talk()
                if self._portfolio is not None and self._portfolio.answered:
                    with gr.Tab("Find your manner", id="onboarding"):
                        self._lay_onboarding()
        self.blocks.queue(default_concurrency_limit=None)  # the engine has its own limits

    # --- Layout and events ------------------------------------------------------------------------

    def _lay_manner(self) -> None:
        with gr.Column(elem_classes="card"):
            self._sliders = [self._slider(name) for name in self._routed]
            if self._others:
                with gr.Accordion("More traits, not routed", open=False):
                    self._sliders += [self._slider(name) for name in self._others]
            self._knob = gr.Slider(0, 2, 1, step=0.05, label="strength", elem_id="knob")
        self._triangle: gr.HTML | None = None
        if len(self._traits) >= 3:
            traits = self._traits[:3]
            self._triangle = gr.HTML(
                {"values": dict(self._start.values), "traits": list(traits)},
                html_template=(_HERE / "triangle.html").read_text(),
                js_on_load=(_HERE / "triangle.js").read_text(),
                apply_default_css=False,
                elem_id="triangle",
                elem_classes="card",
                **self._corners(traits),
            )
        usual, most = Decoding(), self._service.limits.answer_tokens
        with (
            gr.Column(elem_classes="card"),
            gr.Accordion("How answers are written", open=False, elem_id="decoding"),
        ):
            self._decoding = [
                gr.Slider(1, most, min(usual.tokens, most), step=1, label="most tokens"),
                gr.Slider(0, 2, usual.temperature, step=0.05, label="temperature"),
                gr.Slider(0, 100, usual.seed, step=1, label="seed"),
            ]

    def _slider(self, name: str) -> gr.Slider:
        start = self._start.values[name]
        return gr.Slider(0, 1, start, step=0.01, label=name, elem_id=f"of-{name}")

    def _lay_talk(self) -> None:
        with gr.Row(elem_id="panes"):
            self._caption, self._steered = self._pane("steered")
            _, self._unsteered = self._pane("unsteered")
        with gr.Row(elem_id="ask"):
            self._box = gr.Textbox(
                placeholder="Say something to both",
                label="What you say",
                show_label=False,
                submit_btn=True,
                scale=8,
                elem_id="box",
                autofocus=True,
            )
            self._again = gr.Button("Again", min_width=70, scale=0, elem_id="again")
            anew = gr.Button("Clear", min_width=70, scale=0, elem_id="clear")
        found = why(self._bundle, self._start)
        with gr.Row(elem_id="told"):
            self._why = _panel(panels.why_panel(found), "why", "card")
            self._place = None
            if self._map is not None:
                self._place = gr.HTML(
                    panels.map_place(self._map, found),
                    html_template=panels.map_background(self._map),
                    js_on_load=(_HERE / "map.js").read_text(),
                    apply_default_css=False,
                    elem_id="map",
                    elem_classes="card",
                )
        self._talk = gr.State(Conversation())
        self._bind_manner()
        self._bind_talk(anew)

    def _pane(self, kind: str) -> tuple[gr.HTML, gr.Chatbot]:
        steered = kind == "steered"
        with gr.Column(min_width=260, elem_classes="pane"):
            caption = _panel(panels.caption(kind), None, "caption")
            pane = gr.Chatbot(
                label=kind,
                show_label=False,
                elem_id=kind,
                height=290,
                buttons=[],
                # Text as it was written: an image in an answer would be fetched from elsewhere.
                render_markdown=False,
                latex_delimiters=[],
                feedback_options=None,
                allow_file_downloads=False,
                examples=[{"text": prompt} for prompt in PROMPTS] if steered else None,
                placeholder="Say something below, or one of these:" if steered else "",
            )
        return caption, pane

    def _bind_manner(self) -> None:
        manner = [self._knob, *self._sliders]
        told = [one for one in (self._why, self._place) if one is not None]
        quick: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "trigger_mode": "always_last",
            "api_visibility": "private",
        }
        triangle = [] if self._triangle is None else [self._triangle]
        # All in one, so that of many moves the answer to the last one comes last.
        gr.on([one.input for one in manner], self._moved, manner, [*triangle, *told], **quick)
        for point in triangle:
            point.input(self._pulled, [point, *manner], [*self._sliders, *told], **quick)
            point.select(self._cornered, [point], [point], **quick)

    def _bind_talk(self, anew: gr.Button) -> None:
        inputs = [self._box, self._talk, *self._decoding, self._knob, *self._sliders]
        outputs = [
            self._box, self._again, self._talk, self._caption, self._steered, self._unsteered
        ]  # fmt: skip
        settings: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # An example stands in the box first, as if it had been typed.
        example = self._steered.example_select(
            _example, None, [self._box], queue=False, api_visibility="private"
        ).then(self._answer, inputs, outputs, **settings)
        repeated = self._again.click(self._repeat, inputs, outputs, **settings)
        asked = self._box.submit(
            self._answer,
            inputs,
            outputs,
            show_progress="hidden",
            api_name="answer",
            api_visibility="undocumented",
        )
        running = [asked, example, repeated]
        self._box.stop(self._idle, None, [self._box, self._again], cancels=running, **settings)
        anew.click(
            lambda: {**self._idle(), **self._heard(Conversation())},
            None,
            outputs,
            cancels=running,
            **settings,
        )

    def _lay_onboarding(self) -> None:
        self._onboarding = gr.State(None)
        with gr.Row(elem_id="onboarding"):
            with gr.Column(scale=8, min_width=320):
                self._question = _panel(panels.WELCOME, "question", "card")
                begin = gr.Button("Begin", variant="primary", elem_id="begin")
                with gr.Column(visible=False, elem_id="choices") as self._choices:
                    with gr.Row():
                        sides = [self._side(number) for number in (0, 1)]
                    with gr.Row():
                        skip = gr.Button("Neither: ask me another", elem_id="skip")
                        enough = gr.Button("That is enough", elem_id="enough")
                go = gr.Button(
                    "Chat in this manner", variant="primary", visible=False, elem_id="go"
                )
            with gr.Column(scale=4, min_width=290):
                known = _panel("", "known", "card", visible=False)
        self._answers = [answer for answer, _ in sides]
        self._begin, self._go, self._known = begin, go, known
        outputs = [
            self._onboarding, self._question, begin, self._choices, *self._answers, go, known,
            *self._sliders, *(one for one in (self._triangle, self._why, self._place) if one),
        ]  # fmt: skip
        settings: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        begin.click(self._begun, [self._knob], outputs, **settings)
        for number, (_, button) in enumerate(sides):
            button.click(
                partial(self._chosen, number), [self._onboarding, self._knob], outputs, **settings
            )
        skip.click(partial(self._chosen, None), [self._onboarding, self._knob], outputs, **settings)
        enough.click(self._ended, [self._onboarding, self._knob], outputs, **settings)
        go.click(lambda: gr.Tabs(selected="chat"), None, [self._tabs], **settings)

    def _side(self, number: int) -> tuple[gr.HTML, gr.Button]:
        with gr.Column(min_width=260):
            answer = _panel("", f"answer-{number}", "card answer")
            button = gr.Button("I prefer this one", variant="primary", elem_id=f"prefer-{number}")
        return answer, button

    # --- The manner -------------------------------------------------------------------------------

    def _moved(self, knob: float, *values: float) -> Update:
        """A slider was moved: the triangle's point follows."""
        sliders = self._set(knob, values)
        return {**self._told(sliders), **self._pointed(sliders)}

    def _pulled(self, point: Any, knob: float, *values: float) -> Update:
        """The triangle's point was moved: the sliders follow, those of other traits to 0."""
        at = self._read(point)
        sliders = self._set(knob, values).mixing(dict(zip(at.traits, at.shares, strict=True)))
        return {**self._slid(sliders), **self._told(sliders)}

    def _cornered(self, point: Any) -> Update:
        """Another trait was chosen for a corner; nothing of the manner changes."""
        return {self._triangle: gr.HTML(**self._corners(self._read(point).traits))}

    def _set(self, knob: float, values: Sequence[float]) -> Sliders:
        return Sliders(dict(zip(self._traits, values, strict=True)), knob)

    def _read(self, point: Any) -> Point:
        with _errors_told():
            return Point.read(point, self._traits)

    def _pointed(self, sliders: Sliders) -> Update:
        return {} if self._triangle is None else {self._triangle: {"values": sliders.values}}

    def _slid(self, sliders: Sliders) -> Update:
        values = (sliders.values[name] for name in self._traits)
        return dict(zip(self._sliders, values, strict=True))

    def _told(self, sliders: Sliders) -> Update:
        found = why(self._bundle, sliders)
        place = {} if self._map is None else {self._place: panels.map_place(self._map, found)}
        return {self._why: panels.why_panel(found), **place}

    def _corners(self, traits: Sequence[str]) -> dict[str, Any]:
        """What the triangle is drawn from, beside its point."""
        shapes = [asdict(one) for one in regions(self._portfolio, traits)]
        return {
            "options": list(self._traits),
            "regions": {"traits": list(traits), "shapes": shapes},
        }

    # --- The conversation -------------------------------------------------------------------------

    async def _answer(
        self, request: gr.Request, text: str, talk: Conversation, *numbers: float
    ) -> AsyncGenerator[Update, None]:
        """Both answers to what is in the box, as they are written."""
        written = self._written(request, text, talk, numbers, text.strip(), talk, "")
        async with aclosing(written):
            async for update in written:
                yield update

    async def _repeat(
        self, request: gr.Request, text: str, talk: Conversation, *numbers: float
    ) -> AsyncGenerator[Update, None]:
        """Both answers to the last prompt anew; what is in the box stays."""
        prompt = talk.exchanges[-1].prompt if talk.exchanges else ""
        written = self._written(request, text, talk, numbers, prompt, talk.without_last(), text)
        async with aclosing(written):
            async for update in written:
                yield update

    async def _written(
        self,
        request: gr.Request,
        text: str,
        talk: Conversation,
        numbers: Sequence[float],
        prompt: str,
        before: Conversation,
        left: str,
    ) -> AsyncGenerator[Update, None]:
        """Both answers to a prompt, or the page as it was where it cannot be answered.

        Args:
            request: Of the page.
            text: What is in the box.
            talk: What was said so far.
            numbers: How answers are written, the strength, and a number a trait.
            prompt: What is answered; nothing is done where it is empty.
            before: What was said before it.
            left: What stays in the box.
        """
        if not prompt or request.session_hash in self._writing:
            yield {self._box: gr.skip()}
            return
        tokens, temperature, seed, knob, *values = numbers
        decoding = Decoding(round(tokens), temperature, round(seed))
        written = answers(self._service, before, prompt, self._set(knob, values), decoding)
        self._writing.add(request.session_hash)
        try:
            # Once: what is still on its way when somebody stops must not make the box busy again.
            yield self._busy(left)
            async with aclosing(written):
                async for now in written:
                    yield self._heard(now)
        except SteerError as error:
            gr.Warning(str(error))
            yield {
                **self._heard(talk),
                **self._idle(),
                self._box: gr.Textbox(text, submit_btn=True, stop_btn=False),
            }
        else:
            yield self._idle()
        finally:
            self._writing.discard(request.session_hash)

    def _idle(self) -> Update:
        """There is something to be said; what was typed meanwhile stays."""
        return {
            self._box: gr.Textbox(submit_btn=True, stop_btn=False),
            self._again: gr.Button(interactive=True),
        }

    def _busy(self, left: str) -> Update:
        """Answers are being written; so much is left in the box."""
        return {
            self._box: gr.Textbox(left, submit_btn=False, stop_btn=True),
            self._again: gr.Button(interactive=False),
        }

    def _heard(self, talk: Conversation) -> Update:
        return {
            self._talk: talk,
            self._caption: panels.caption("steered", talk),
            self._steered: _messages(talk, steered=True),
            self._unsteered: _messages(talk, steered=False),
        }

    # --- Questions --------------------------------------------------------------------------------

    def _begun(self, knob: float) -> Update:
        """The first question."""
        assert self._portfolio is not None  # or there would be no button
        start = Preference.of(self._bundle)
        return self._asked(Onboarding.begin(start, self._portfolio, seed=None), knob)

    def _chosen(self, choice: int | None, onboarding: Onboarding, knob: float) -> Update:
        """The next one."""
        return self._asked(onboarding.after(choice), knob)

    def _ended(self, onboarding: Onboarding, knob: float) -> Update:
        return self._asked(onboarding.ended(), knob)

    def _asked(self, onboarding: Onboarding, knob: float) -> Update:
        """A question or, after the last one, the weights on the sliders."""
        shown = onboarding.question
        known = gr.HTML(panels.known_panel(onboarding), visible=True)
        if shown is not None:
            first, second = map(panels.answer_panel, shown.answers)
            return {
                self._onboarding: onboarding,
                self._question: panels.prompt_panel(shown.number, onboarding.most, shown.prompt),
                self._begin: gr.Button(visible=False),
                self._choices: gr.Column(visible=True),
                self._answers[0]: first,
                self._answers[1]: second,
                self._go: gr.Button(visible=False),
                self._known: known,
            }
        weights = onboarding.preference.weights
        sliders = Sliders(dict.fromkeys(self._traits, 0.0), knob).mixing(weights)
        return {
            self._onboarding: onboarding,
            self._question: panels.DONE,
            self._begin: gr.Button("Begin again", visible=True),
            self._choices: gr.Column(visible=False),
            self._go: gr.Button(visible=True),
            self._known: known,
            **self._slid(sliders),
            **self._told(sliders),
            **self._turned(sorted(weights, key=lambda name: -weights[name])[:3], sliders),
        }

    def _turned(self, traits: Sequence[str], sliders: Sliders) -> Update:
        """The triangle with these traits at its corners, if they are three."""
        if self._triangle is None or len(traits) < 3:
            return {}
        point = {"values": sliders.values, "traits": traits}
        return {self._triangle: gr.HTML(point, **self._corners(traits))}


@contextmanager
def _errors_told() -> Iterator[None]:
    """Errors of the engine are told on the page, and are none of the page's own."""
    try:
        yield
    except SteerError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _messages(talk: Conversation, *, steered: bool) -> list[dict[str, Any]]:
    """A conversation as a pane has it."""
    told = []
    for one in talk.exchanges:
        answer = one.steered if steered else one.unsteered
        told += [_message("user", one.prompt), _message("assistant", answer or "…")]
    return told


def _message(role: str, text: str) -> dict[str, Any]:
    """What shows as the text itself: without Markdown, Gradio still takes HTML for what it is."""
    # As a part: of a plain string Gradio takes the indentation away.
    return {"role": role, "content": [{"type": "text", "text": escape(text)}]}


def _example(chosen: gr.SelectData) -> str:
    text: str = chosen.value["text"]
    return text


def _panel(
    value: str, elem_id: str | None = None, elem_classes: str | None = None, *, visible: bool = True
) -> gr.HTML:
    """HTML of our own, styled by `page.css` alone."""
    return gr.HTML(
        value,
        js_on_load=None,
        apply_default_css=False,
        elem_id=elem_id,
        elem_classes=elem_classes,
        visible=visible,
    )
