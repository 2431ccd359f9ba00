"""What the playground tells, as HTML and SVG."""

from __future__ import annotations

from html import escape

from steer.onboarding import Onboarding
from steer.play.conversation import Conversation
from steer.play.mixture_map import RADIUS, MixtureMap
from steer.play.why import Why

WELCOME = (
    "<h3>You need not know your weights</h3><p>A few times you are shown a prompt with two "
    "answers, and say which you prefer. That tells how much each trait matters to you. The "
    "questions stop as soon as it is clear which edit serves you.</p>"
)
DONE = (
    "<h3>That is all</h3><p>The sliders stand where your answers put them. Go on in the chat, or "
    "begin again.</p>"
)

_NAMES_OUT = 1.1  # of the radius: where corners' names stand
_FEWEST = 0.004  # share of all mixtures below which an entry's number would only be in the way


def why_panel(why: Why) -> str:
    """Who serves, and why."""
    rows = "".join(
        f"<tr class='{'asked' if one.weight else 'not-asked'}'><th>{escape(one.trait)}</th>"
        f"<td class='weight'>{f'{one.weight:.0%}' if one.weight else ''}</td>"
        f"<td class='bar'>{_bar(one.unsteered, one.served)}</td>"
        f"<td class='change'>{_change(one.unsteered, one.served)}</td></tr>"
        for one in why.earned
    )
    table = (
        "<table><thead><tr><th></th><td class='weight'>asked</td>"
        "<td>reward, from <i class='tick'></i> unsteered</td><td></td></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        if rows
        else ""
    )
    mixed = ", ".join(f"{amount:.2f} {escape(name)}" for name, amount in why.mixed.items())
    facts = "".join(
        f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.figure)}</dd></div>"
        for fact in why.facts
    )
    return (
        f"<h3>Served by <b>{escape(why.name)}</b></h3><p>{escape(why.reason)}</p>{table}"
        f"{f'<dl>{facts}</dl>' if facts else ''}"
        f"{f'<p class=mixed>Its edit: {mixed}</p>' if mixed else ''}"
    )


def _bar(before: float, after: float | None) -> str:
    end = before if after is None else after
    low, high = sorted((before, end))
    kind = "up" if end >= before else "down"
    return (
        f"<span class='track'><span class='base' style='width:{low:.1%}'></span>"
        f"<span class='{kind}' style='left:{low:.1%};width:{high - low:.1%}'></span>"
        f"<i class='tick' style='left:{before:.1%}'></i></span>"
    )


def _change(before: float, after: float | None) -> str:
    return f"{before:.2f}" if after is None else f"{before:.2f} → {after:.2f}"


def map_background(drawn: MixtureMap) -> str:
    """The mixtures and who serves them; `map_place` marks one of them."""
    corners = drawn.corners.tolist()
    outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    names = "".join(
        f"<text class='corner' x='{_NAMES_OUT * x:.1f}' y='{_NAMES_OUT * y + 3:.1f}' "
        f"text-anchor='{_anchor(x)}'>{escape(name)}</text>"
        for name, (x, y) in zip(drawn.portfolio.traits, corners, strict=True)
    )
    groups = "".join(
        f"<g class='dots' data-entry='{one.number}' fill='{one.colour}'>"
        + "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='1.7'/>" for x, y in one.places.tolist())
        + "</g>"
        for one in drawn.dots
    )
    labels = "".join(
        f"<g class='entry' data-entry='{one.number}'><title>{_name(one.number)} serves "
        f"{one.share:.1%} of all mixtures</title>"
        f"<circle cx='{one.middle[0]:.1f}' cy='{one.middle[1]:.1f}' r='7' fill='{one.colour}'/>"
        f"<text x='{one.middle[0]:.1f}' y='{one.middle[1] + 3:.1f}' text-anchor='middle'>"
        f"{one.number}</text></g>"
        for one in drawn.dots
        if one.share >= _FEWEST
    )
    left, top = -1.75 * RADIUS, -1.25 * RADIUS
    return (
        "<h3>Who serves which mixture</h3>"
        f"<svg viewBox='{left} {top} {-2 * left} {2.3 * RADIUS}' role='img' "
        "aria-label='Who serves which mixture'>"
        f"<polygon points='{outline}'/>{groups}{labels}{names}"
        "<circle class='here' r='5.5' cx='0' cy='0'/></svg>"
        "<p class='mixed'>Each dot is a mixture, in the colour of the entry that serves it; bright "
        "are those served as yours is. The ring is yours.</p>"
    )


def map_place(drawn: MixtureMap, why: Why) -> dict[str, float | int | None]:
    """Where the manner stands on the map, and which entry serves it; nowhere without weights."""
    weights = {one.trait: one.weight for one in why.earned if one.weight}
    # Only part of a mixture is on the map where a trait is not among the portfolio's.
    if abs(sum(weights.values()) - 1) > 1e-6:
        return {"x": None, "y": None, "entry": None}
    x, y = drawn.place(weights)
    return {"x": round(x, 1), "y": round(y, 1), "entry": why.number}


def _anchor(x: float) -> str:
    if abs(x) < RADIUS / 10:
        return "middle"
    return "start" if x > 0 else "end"


def _name(number: int) -> str:
    return f"entry {number}" if number else "the unsteered model"


def prompt_panel(number: int, most: int, prompt: str) -> str:
    """What is asked about."""
    return (
        f"<p class='count'>Question {number} of at most {most}</p>"
        f"<h3>{escape(prompt)}</h3><p>Which answer do you prefer?</p>"
    )


def answer_panel(text: str) -> str:
    """One of the answers to choose from."""
    paragraphs = (escape(part.strip()) for part in text.strip().split("\n"))
    return "".join(f"<p>{part}</p>" for part in paragraphs if part)


def known_panel(onboarding: Onboarding) -> str:
    """What is known of somebody: their weights, how sure they are, and who serves them."""
    preference = onboarding.preference
    intervals = preference.interval(0.9)
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td class='bar'>{_interval(weight, *intervals[name])}</td>"
        f"<td class='change'>{weight:.0%}</td></tr>"
        for name, weight in preference.weights.items()
    )
    return (
        "<h3>What your answers tell</h3>"
        f"<table><tbody>{rows}</tbody></table>"
        "<p class='mixed'>The dot is the weight, the line where it is with 90% certainty.</p>"
        f"<p>{escape(onboarding.told)}</p><p>In words: {escape(preference.summary)}</p>"
    )


def _interval(weight: float, low: float, high: float) -> str:
    return (
        f"<span class='track'><span class='up' style='left:{low:.1%};width:{high - low:.1%}'>"
        f"</span><i class='dot' style='left:{weight:.1%}'></i></span>"
    )


def header(model: str) -> str:
    """What stands above everything."""
    return (
        "<h1>steer</h1><p>One frozen model, any manner. "
        f"<b>{escape(model)}</b> answers steered and unsteered, side by side.</p>"
    )


def caption(kind: str, talk: Conversation | None = None) -> str:
    """What stands above a pane: whose answers these are, and what served the last one."""
    served = talk.exchanges[-1].served if talk is not None and talk.exchanges else ""
    return f"<b>{kind}</b> <i>{escape(served)}</i>"
