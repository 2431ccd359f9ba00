"""Options that several commands share, and what is made of them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steer.cli.console import doing, say
from steer.errors import InputError, SteerError

if TYPE_CHECKING:
    from steer.generation import DecodingOptions
    from steer.steerer import Steerer

Model = Annotated[
    str | None,
    typer.Option(help="Local folder or hub id. Default: the packaged SmolLM2-135M-Instruct."),
]
BundleFile = Annotated[
    Path | None,
    typer.Option("--bundle", help="Bundle file. Default: the packaged model's bundle."),
]
Weight = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        "-w",
        metavar="TRAIT=NUMBER",
        help="How much a trait is wanted, >= 0; repeat for a mixture.",
    ),
]
PreferenceFile = Annotated[
    Path | None,
    typer.Option("--preference", help="What `steer onboard` kept, in place of weights."),
]
Wish = Annotated[
    str | None,
    typer.Option("--wish", help='In place of weights, in words: "keep it short, and be kind".'),
]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="A profile of the bundle, in place of weights."),
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="Another way than edits: system-prompt, few-shot, logit-rectification, "
        "multi-objective, best-of-n or reward-guided.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Use a bundle built on another model.")]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="A running Ray cluster. Default: processes on this machine.",
    ),
]
Compose = Annotated[
    bool,
    typer.Option("--compose", help="Mix the traits' edits, also where a portfolio would serve."),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Makes sampling repeatable.")]
Sample = Annotated[bool, typer.Option("--sample", help="Sample, rather than decode greedily.")]
Temperature = Annotated[
    float | None, typer.Option(min=1e-4, help="Divides the logits; with --sample.")
]
TopP = Annotated[
    float | None,
    typer.Option(min=1e-4, max=1.0, help="Likeliest tokens of this probability; with --sample."),
]
TopK = Annotated[int | None, typer.Option(min=1, help="This many likeliest tokens; with --sample.")]
Penalty = Annotated[
    float | None, typer.Option(min=1e-4, help="Of tokens that appeared; 1 is none. Default: 1.1.")
]
NgramSize = Annotated[
    int | None, typer.Option(min=0, help="Sequences of this many tokens come once. Default: 6.")
]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, in tokens. Default: 384.")
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]
NoKeys = Annotated[
    bool, typer.Option("--no-keys", help="Let everybody in who reaches the address.")
]
Rows = Annotated[
    int | None,
    typer.Option(min=1, help="Most answers written at once. Default: 16 on a CPU, else 256."),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]


def decoding_options(
    max_new_tokens: int | None,
    sample: bool,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    repetition_penalty: float | None,
    no_repeat_ngram_size: int | None,
) -> DecodingOptions:
    """The decoding options that were given."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    for name, value in sampling.items():
        if value is not None and not sample:
            option = name.replace("_", "-")
            raise InputError(f"--{option} has no effect on greedy decoding; add --sample")
    given = {
        "max_new_tokens": max_new_tokens,
        "do_sample": sample or None,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        **sampling,
    }
    options: Any = {name: value for name, value in given.items() if value is not None}
    checked: DecodingOptions = options
    return checked


def weights_of(given: Sequence[str] | None) -> dict[str, float] | None:
    """Weights of repeated `-w TRAIT=NUMBER`; None if there are none."""
    weights: dict[str, float] = {}
    for text in given or ():
        name, equals, number = text.partition("=")
        name = name.strip()
        if not equals:
            raise InputError(f"weight {text!r}: expected TRAIT=NUMBER, such as brevity=0.8")
        if name in weights:
            raise InputError(f"weight of {name!r} is given twice")
        weights[name] = parse_number(number, f"weight of {name!r}")
    return weights or None


def wanted(
    weight: Sequence[str] | None, preference: Path | None, wish: str | None, bundle: Path | None
) -> dict[str, float] | None:
    """Weights, however they are given; None if they are not. A wish is for a bundle's traits."""
    if sum(given is not None for given in (weight or None, preference, wish)) > 1:
        raise InputError("give weights by one of -w, --preference and --wish")
    if preference is not None:
        from steer.preference import Preference

        return Preference.load(preference).weights
    if wish is not None:
        from steer.bundle import Bundle

        return read_wish(wish, Bundle.load(bundle_path(bundle)).traits)
    return weights_of(weight)


def read_wish(wish: str, known: Collection[str]) -> dict[str, float]:
    """Weights that words ask for; what was read is told on stderr."""
    from steer.wishes import weights_from_words

    weights = weights_from_words(wish, known)
    say(f"read as {', '.join(f'{name} {weight:.2f}' for name, weight in weights.items())}")
    return weights


def parse_number(text: str, what: str) -> float:
    """A number; `what` names it in the error."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{what}: expected a number, got {text.strip()!r}") from None


def bundle_path(path: Path | None) -> Path:
    """The bundle that is meant; the default one must exist."""
    from steer.resources import default_bundle_path

    default = default_bundle_path()
    if path is None and not default.exists():
        raise SteerError(
            f"the default bundle {default} does not exist; make it with `steer build`, or name "
            "another bundle"
        )
    return default if path is None else path


def check_file(output: Path) -> None:
    """Refuse an --output that cannot be written to now, rather than after what makes it.

    Raises:
        InputError: If it is a folder, or lies in one that nothing may be written to.
    """
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder; expected a file name")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: {output.parent} cannot be written to")


def check_people(target: Path, source: Path | None = None) -> None:
    """Refuse to write over people's profiles, but for those that the new bundle has.

    Args:
        target: The file.
        source: Of the bundle whose profiles it has.

    Raises:
        InputError: If there are any.
    """
    from steer.bundle import Bundle
    from steer.errors import BundleFormatError

    if not target.exists() or (source is not None and target.samefile(source)):
        return
    try:
        number = len(Bundle.load(target).profiles)
    except BundleFormatError:
        return
    if number:
        raise InputError(
            f"--output: {target} holds {number} profiles, which would be lost; name another file, "
            "or delete that one"
        )


def load_steerer(
    model: str | None,
    bundle: Path | None,
    *,
    force: bool,
    weights: Mapping[str, float] | None = None,
    profile: str | None = None,
) -> Steerer:
    """Load the bundle, then the model: a mistaken request is told before the slow part."""
    from steer.bundle import Bundle
    from steer.steerer import load
    from steer.weights import normalise_weights

    edits = Bundle.load(bundle_path(bundle))
    if weights is not None:
        normalise_weights(weights, edits.traits)
    if profile is not None:
        edits.profile(profile)
    with doing("loading the model"):
        return load(model, edits, force=force)


def check_reach(host: str, *, open_to_all: bool, instead: str) -> None:
    """Refuse to listen where others could come in unasked.

    Args:
        host: Address to listen on.
        open_to_all: Whether whoever reaches it may use it.
        instead: What to do about that.
    """
    if open_to_all and not _is_loopback(host):
        raise InputError(
            f"anybody who reaches {host} could use the model and read stored people; {instead}"
        )


def url(host: str, port: int) -> str:
    """Where a server answers; an address of IPv6 stands in brackets."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
