"""`steer demo`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from steer.cli.app import app
from steer.cli.console import doing, out
from steer.cli.options import BundleFile, Force, Model, bundle_path, load_steerer
from steer.errors import SteerError


@app.command(epilog="Example: [bold]steer demo[/bold]")
def demo(
    model: Model = None,
    bundle: BundleFile = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    force: Force = False,
) -> None:
    """Show steered beside unsteered answers, and measure the change; under two minutes."""
    from steer.demo import choose_settings, demonstrate, label, measured_table, show_answers

    begin = time.perf_counter()
    path = bundle_path(bundle)
    steerer = load_steerer(model, path, force=force)
    out.print(f"model    {steerer.language_model.name}", soft_wrap=True)
    out.print(f"bundle   {path}", soft_wrap=True)
    out.print(f"loaded in {time.perf_counter() - begin:.1f} s")
    settings = choose_settings(steerer.bundle)
    if not settings:
        raise SteerError(f"{path}: the bundle has no traits; build one with `steer build`")
    out.print(f"weights  {'; '.join(map(label, settings))}")
    with doing("answering all prompts under all weights in one batch"):
        result = demonstrate(steerer, max_new_tokens=max_new_tokens)
    show_answers(out, result)
    out.print()
    out.print(measured_table(result))
    rows = len(result.prompts) * (1 + len(settings))
    out.print(
        f"{rows} answers of at most {max_new_tokens} tokens in one batch, generated in "
        f"{result.seconds:.1f} s; {time.perf_counter() - begin:.1f} s in all. "
        f"{len(result.prompts)} prompts only illustrate; … marks an answer that was cut."
    )
