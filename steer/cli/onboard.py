"""`steer onboard`: a few questions, and what a person is served by their answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from steer.cli.app import app
from steer.cli.console import out
from steer.cli.options import BundleFile, bundle_path, check_file, read_wish
from steer.errors import InputError

if TYPE_CHECKING:
    from steer.onboarding import Onboarding, Shown

_WIDTH = 30
_WORDS = 130


@app.command(
    epilog="Example: [bold]steer onboard --output me.json[/bold], then [bold]steer generate "
    '"How do I sleep better?" --preference me.json[/bold]'
)
def onboard(
    wish: Annotated[
        str | None, typer.Option(help='What you want, in your own words: "short, and be kind".')
    ] = None,
    questions: Annotated[int, typer.Option(min=0, help="Most questions that are asked.")] = 8,
    regret: Annotated[
        float, typer.Option(min=0.0, help="Stop when you lose less than this, 95% sure.")
    ] = 0.02,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to keep your preference in.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Preference of an earlier session, to go on with.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides what is shown on which side.")] = 0,
    bundle: BundleFile = None,
) -> None:
    """Find out what you prefer by a few choices between two answers; needs no model."""
    from steer.bundle import Bundle
    from steer.onboarding import Onboarding
    from steer.preference import Preference

    if wish is not None and start is not None:
        raise InputError("--wish begins anew; leave out --from")
    if output is not None:
        check_file(output)
    path = bundle_path(bundle)
    edits = Bundle.load(path)
    portfolio = edits.portfolio
    if portfolio is None or not portfolio.answered:
        raise InputError(f"{path}: holds no answers to ask about; build it anew with a portfolio")
    if start is not None:
        preference = Preference.load(start)
        if preference.traits != portfolio.traits:
            raise InputError(
                f"{start}: is about {', '.join(preference.traits)}, and the portfolio of {path} "
                f"about {', '.join(portfolio.traits)}"
            )
        preference = preference.later()
    else:
        weights = None if wish is None else read_wish(wish, portfolio.traits)
        preference = Preference.of(edits, weights, seed=seed)
    onboarding = _ask(
        Onboarding.begin(preference, portfolio, most=questions, regret=regret, seed=seed)
    )
    _tell(onboarding)
    if output is not None:
        onboarding.preference.save(output)
        out.print(Text(f"kept in {output}"), soft_wrap=True)


def _ask(onboarding: Onboarding) -> Onboarding:
    """Ask until what is served is good enough, or the person has had enough."""
    while (shown := onboarding.question) is not None:
        answer = _choice(shown, onboarding.most)
        if answer == "q":
            return onboarding.ended()
        onboarding = onboarding.after(None if answer == "s" else int(answer) - 1)
    return onboarding


def _choice(shown: Shown, most: int) -> str:
    """Show a question and read 1, 2, s or q; the end of the input is q."""
    table = Table(box=SIMPLE_HEAD, title=Text(shown.prompt, style="bold"), expand=True)
    for side in ("1", "2"):
        table.add_column(side, ratio=1, overflow="fold")
    table.add_row(*(Text(_cut(answer)) for answer in shown.answers))
    out.print()
    out.print(table)
    out.print(
        f"{shown.number} of at most {most}. Which do you prefer? (1, 2, s skips, q ends) ", end=""
    )
    for line in sys.stdin:
        answer = line.strip().lower()
        if answer in ("1", "2", "s", "q"):
            return answer
        out.print("1, 2, s or q: ", end="")
    out.print()
    return "q"


def _cut(answer: str) -> str:
    """An answer, or its beginning and how long it is."""
    words = answer.split()
    if len(words) <= _WORDS:
        return answer.strip()
    return f"{' '.join(words[:_WORDS])} ... ({len(words)} words in all)"


def _tell(onboarding: Onboarding) -> None:
    """What was found out: a picture of the posterior, and who serves it."""
    preference = onboarding.preference
    table = Table(box=SIMPLE_HEAD)
    table.add_column("you want", no_wrap=True)
    table.add_column("weight", justify="right")
    table.add_column("90% sure it is in", no_wrap=True)
    table.add_column("0" + " " * (_WIDTH - 2) + "1", no_wrap=True)
    intervals = preference.interval(0.9)
    for name, weight in preference.weights.items():
        low, high = intervals[name]
        table.add_row(name, f"{weight:.2f}", f"{low:.2f} to {high:.2f}", _bar(weight, low, high))
    out.print()
    out.print(table)
    out.print(Text(onboarding.told), soft_wrap=True)
    out.print(Text(f"In words: {preference.summary}"), soft_wrap=True)


def _bar(weight: float, low: float, high: float) -> Text:
    """An interval as a line, with its mean."""

    def place(share: float) -> int:
        return min(_WIDTH - 1, int(share * _WIDTH))

    drawn = [" "] * _WIDTH
    for i in range(place(low), place(high) + 1):
        drawn[i] = "─"
    drawn[place(weight)] = "●"
    return Text("".join(drawn))
