"""`steer build`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.app import INTERRUPTED, app
from steer.cli.console import out, say
from steer.cli.inspect import show_traits
from steer.cli.options import Model, RayAddress, check_file, check_people
from steer.errors import InputError

if TYPE_CHECKING:
    from steer.bundle import Bundle
    from steer.contrast import PairSet
    from steer.models import LanguageModel
    from steer.subspace import Subspace


@app.command(
    epilog="Examples: [bold]steer build[/bold]; "
    "[bold]steer build --trait brevity --trait my-trait.yaml --output mine.safetensors[/bold]; "
    "[bold]steer build --edits-of mine.safetensors --traits brevity,warmth --size 5 "
    "--output mine.safetensors[/bold]"
)
def build(
    model: Model = None,
    trait: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_YAML",
            help="Built-in trait or trait file; repeat for several. Default: all built-in traits.",
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="All built-in traits, also where --traits names those of a portfolio."
        ),
    ] = False,
    portfolio: Annotated[
        str | None,
        typer.Option(
            "--traits",
            metavar="A,B,C",
            help="Make a portfolio that serves every mixture of these; with --size, or with "
            "--epsilon and --delta. Without --trait, these are the traits that are built.",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Most edits that the portfolio keeps.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Relative loss that the portfolio may have.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Absolute loss that the portfolio may have.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write. May be left out only for the packaged model with all traits.",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="distilled (default), mean-difference, svd, ccs, probe, two-step, "
            "two-step-sign-safe, or gain (the first or the second, as measured)."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Rule that chooses layers: middle (default), ccs-jump or gain."),
    ] = None,
    gate: Annotated[
        bool | None,
        typer.Option(help="Act on answers in a chat only, not on plain text. Default: --gate."),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Prompts for contrast pairs, 8 to 300. Default: 64.")
    ] = None,
    develop_prompts: Annotated[
        int | None, typer.Option(help="Prompts for the dose search, 8 to 100. Default: 40.")
    ] = None,
    confirm_prompts: Annotated[
        int | None,
        typer.Option(help="Further ones that confirm the leading dose; 0 is none. Default: 60."),
    ] = None,
    interference_prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts on which is measured what traits do to each other, for mixtures; 0 is "
            "none. Default: 16."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31, help="Default: 0.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="float32|bfloat16|float16",
            help="The model's precision while it is built on: bfloat16 takes half the time on "
            "processors with units for it. Default: float32, or the checkpoint's own on a GPU.",
        ),
    ] = None,
    edits_of: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Build no edits: keep those of this bundle, and all else in it, and make only the "
            "portfolio anew, or with --interference-prompts what traits do to each other. --trait "
            "then gives files of traits that are not built in.",
        ),
    ] = None,
    confirm_only: Annotated[
        bool,
        typer.Option(
            "--confirm-only",
            help="With --edits-of: measure anew what that bundle's search found; search nothing.",
        ),
    ] = False,
    shortlist: Annotated[
        int | None,
        typer.Option(min=1, help="Edits that a search puts up for confirmation. Default: 24."),
    ] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Where unfinished work is kept. Default: in the user's cache."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that share the work out, each with a model, and a GPU where there are.",
        ),
    ] = None,
    ray_address: RayAddress = None,
) -> None:
    """Build a bundle from the model's own answers; one that was stopped goes on where it was."""
    given: dict[str, Any] = {
        "method": method,
        "layers": layers,
        "gated": gate,
        "prompts": prompts,
        "develop_prompts": develop_prompts,
        "confirm_prompts": confirm_prompts,
        "interference_prompts": interference_prompts,
        "seed": seed,
    }
    from steer import pipeline
    from steer.bundle import Bundle
    from steer.precompute import PortfolioRecipe
    from steer.recipe import Recipe
    from steer.resources import locked

    mixed = tuple(name.strip() for name in portfolio.split(",")) if portfolio else None
    if mixed is None and (size, epsilon, delta, shortlist) != (None, None, None, None):
        raise InputError(
            "--size, --epsilon, --delta and --shortlist are of a portfolio; add --traits A,B,C"
        )
    wanted = PortfolioRecipe(mixed, size, epsilon, delta) if mixed else None
    if wanted is not None and shortlist is not None:
        wanted = replace(wanted, shortlist=shortlist)
    if confirm_only and (edits_of is None or wanted is None):
        raise InputError(
            "--confirm-only is for the portfolio of a bundle that holds a search; add --edits-of "
            "BUNDLE and --traits A,B,C"
        )
    set_here = {name: value for name, value in given.items() if value is not None}
    make: Callable[..., Bundle]
    if edits_of is None:
        make = partial(
            pipeline.build,
            recipe=Recipe(**set_here),
            portfolio=wanted,
            on_subspace=_report_subspace,
        )
    else:
        measured = set_here.pop("interference_prompts", None)
        if (wanted is None) == (measured is None):
            raise InputError(
                "--edits-of makes one thing anew: add --traits A,B,C for a portfolio of these "
                "edits, or --interference-prompts N for what the traits do to each other"
            )
        if ignored := ["all"] * everything + list(set_here):
            raise InputError(
                "--edits-of keeps the edits as they were built; leave out what is for a build: "
                f"{', '.join(ignored)}"
            )
        kept = Bundle.load(edits_of)
        make = (
            partial(pipeline.build_interference, kept, measured)
            if wanted is None
            else partial(pipeline.build_portfolio, kept, wanted, search=not confirm_only)
        )
    if everything and trait:
        raise InputError("--all and --trait exclude each other")
    names = () if everything else trait or mixed or ()
    target = _output(output, is_default=model is None and not names)
    check_people(target, edits_of)
    traits = [_trait(name) for name in names] or None
    if ray_address is not None and workers is None:
        raise InputError("--ray-address is for several workers; add --workers")
    begin = time.perf_counter()
    try:
        if workers is None:
            using = model if dtype is None else _loaded(model, dtype)
            bundle = make(using, traits, work_dir=work_dir, progress=True)
        else:
            from steer.cluster import LOCAL
            from steer.ray_workers import ray_workers

            loaded = _loaded(model, dtype)
            with ray_workers(loaded, model, workers, ray_address or LOCAL) as several:
                bundle = make(loaded, traits, work_dir=work_dir, workers=several, progress=True)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on with this build where it stopped", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    with locked(target):
        # Hours have passed: people may have been added meanwhile, or forgotten.
        check_people(target, edits_of)
        if edits_of is not None:
            bundle = replace(bundle, profiles=Bundle.load(edits_of).profiles)
        bundle.save(target)
    show_traits(bundle)
    if bundle.portfolio is not None:
        out.print(
            f"portfolio: {len(bundle.portfolio.edits)} edits for every mixture of "
            f"{', '.join(bundle.portfolio.traits)}; {bundle.portfolio.certificate}",
            soft_wrap=True,
        )
    out.print(
        f"{target}: {len(bundle.traits)} traits, {target.stat().st_size:,} bytes, "
        f"built in {time.perf_counter() - begin:.0f} s",
        soft_wrap=True,
    )


def _loaded(model: str | None, dtype: str | None) -> LanguageModel:
    """The model in a precision; None for that which it usually has."""
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise InputError(f"--dtype: expected float32, bfloat16 or float16, got {dtype!r}")
    import torch

    from steer.models import load_model

    return load_model(model, dtype=None if dtype is None else getattr(torch, dtype))


def _report_subspace(pair_set: PairSet, subspace: Subspace) -> None:
    dropped = sum(pair_set.dropped.values())
    say(
        f"{pair_set.trait}: {len(pair_set.pairs)} of {len(pair_set.pairs) + dropped} pairs kept, "
        f"reliability {subspace.reliability:.2f}; making its edit"
    )


def _output(output: Path | None, *, is_default: bool) -> Path:
    """Where a build goes; refused now rather than after an hour of work."""
    if output is None:
        if not is_default:
            raise InputError(
                "--output: expected a file name; only a build of all traits on the packaged "
                "model has a default"
            )
        from steer.resources import default_bundle_path

        output = default_bundle_path()
    check_file(output)
    return output


def _trait(text: str) -> Any:
    """A built-in trait's name as it is; a trait file as its trait."""
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        from steer.traits import read_trait

        return read_trait(text)
    return text
