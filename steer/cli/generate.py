"""`steer generate`."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Annotated, cast

import typer

from steer.cli.app import app
from steer.cli.console import doing, out
from steer.cli.options import (
    BundleFile,
    Compose,
    Force,
    MaxNewTokens,
    MethodName,
    Model,
    NgramSize,
    Penalty,
    PreferenceFile,
    ProfileName,
    Sample,
    Seed,
    Temperature,
    TopK,
    TopP,
    Weight,
    Wish,
    decoding_options,
    load_steerer,
    wanted,
)
from steer.errors import InputError


@app.command(
    epilog='Examples: [bold]steer generate "How do I sleep better?" -w brevity=0.8 -w warmth=0.2'
    '[/bold]; [bold]echo "Why is the sky blue?" | steer generate - -w simplicity=1[/bold]'
)
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    weight: Weight = None,
    preference: PreferenceFile = None,
    wish: Wish = None,
    profile: ProfileName = None,
    strength: Annotated[
        float | None,
        typer.Option(help="0 is the unsteered model, 1 (default) the measured dose."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the unsteered answer beside it.")
    ] = False,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = None,
    sample: Sample = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: Penalty = None,
    no_repeat_ngram_size: NgramSize = None,
    model: Model = None,
    bundle: BundleFile = None,
    compose: Compose = False,
    method: MethodName = None,
    force: Force = False,
) -> None:
    """Answer a prompt; stdout gets the answer and nothing else, by edits piece by piece.

    Weights are scaled to sum to one: they say what is wanted, and --strength how strongly.
    """
    from steer.weights import check_strength

    options = decoding_options(
        max_new_tokens,
        sample,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        no_repeat_ngram_size,
    )
    weights = wanted(weight, preference, wish, bundle)
    if strength is not None:
        check_strength(strength)
    if weights is not None and profile is not None:
        raise InputError(
            "a request has weights or a profile, got both; leave out --profile, or the weights"
        )
    steered = weights is not None or profile is not None
    if not steered and (strength is not None or compare):
        name = "--compare" if compare else "--strength"
        raise InputError(f"{name} has no effect without weights; add -w TRAIT=NUMBER")
    if weights is None and compose:
        raise InputError("--compose has no effect without weights; add -w TRAIT=NUMBER")
    if method is not None:
        check_method(method, weights, compose)
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("the prompt is empty; expected text")
    steerer = load_steerer(model, bundle, force=force, weights=weights, profile=profile)
    amount = 1.0 if strength is None else strength
    if not compare and method is None:
        write_pieces(
            steerer.stream(
                text,
                weights,
                strength=amount,
                compose=compose,
                profile=profile,
                seed=seed,
                **options,
            ),
            [],
        )
        return

    from steer.demo import answer_cell, label, side_by_side
    from steer.generation import Decoding

    with doing("answering"):
        changed, *plain = steerer.answer(
            [text, text] if compare else [text],
            [weights, None] if compare else [weights],
            strength=amount,
            compose=compose,
            profile=[profile, None] if compare else [profile],
            method=method,
            seed=seed,
            decoding=Decoding.from_options(options),
        )
    if not compare:
        sys.stdout.write(f"{changed.text}\n")
        return
    heading = profile or label(weights)
    heading += "" if amount == 1 else f", strength {amount:g}"
    heading += "" if method is None else f", {method}"
    cells = [answer_cell("unsteered", plain[0]), answer_cell(heading, changed, steered=True)]
    out.print(side_by_side(cells, out.width))


def check_method(method: str, weights: Mapping[str, float] | None, compose: bool) -> None:
    """Refuse what another method than edits cannot be asked for.

    Raises:
        InputError: If there is no such method, or it has nothing to go by.
    """
    from steer.baselines import named

    named(method)
    if weights is None:
        raise InputError("--method serves weights; add -w TRAIT=NUMBER")
    if compose:
        raise InputError("--compose mixes edits, and has no effect with --method")


def write_pieces(pieces: Iterator[str], written: list[str]) -> None:
    """Write pieces of an answer as they come, and keep in `written` what has come so far."""
    # Closing the generator stops its thread, also when Ctrl-C comes between two pieces.
    with closing(cast("Generator[str, None, None]", pieces)):
        try:
            for piece in pieces:
                written.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            if written and not written[-1].endswith("\n"):
                sys.stdout.write("\n")
            sys.stdout.flush()
