"""The command line: `steer --help`.

What a command needs is imported inside it, so that help and usage errors need not wait for torch.
Results go to stdout; progress, warnings and errors go to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steer.errors import InputError, SteerError

if TYPE_CHECKING:
    from steer.bundle import Bundle
    from steer.contrast import PairSet
    from steer.cover import Cover, CoverCheck, Scale
    from steer.generation import DecodingOptions
    from steer.steerer import Steerer
    from steer.subspace import Subspace

app = typer.Typer(
    help="Personalise a frozen language model at inference, by weights on traits.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
_PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
_out = Console(**_PLAIN)
_err = Console(stderr=True, **_PLAIN)

# Click's own class, or that of the copy of Click inside newer versions of typer.
_UsageError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "UsageError")

INTERRUPTED = 130
_CHECK_SECONDS = 30.0  # for a set that is only shown for comparison


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name; None for those of this process.

    Returns:
        Exit code: 0, 1 for an error, 2 for unusable input, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end an answer half way.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = app(args=arguments, prog_name="steer", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SteerError as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "steer"
        return _fail(f"{error.format_message().rstrip('.')} (see `{command} --help`)", 2)
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does. Python would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED


def _fail(message: str, code: int) -> int:
    _say(f"error: {message}", "red")
    return code


def _say(message: str, style: str = "") -> None:
    """One line on stderr, whatever is in the message, and above any progress bar."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        _err.print(Text(" ".join(message.split()), style=style), soft_wrap=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}", "yellow")


@contextmanager
def _doing(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a while; silent elsewhere."""
    if _err.is_terminal:
        with _err.status(what):
            yield
    else:
        yield


# --- Options that several commands share ----------------------------------------------------------

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
Force = Annotated[bool, typer.Option("--force", help="Use a bundle built on another model.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.")]
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


def _decoding(
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


def _weights(given: Sequence[str] | None) -> dict[str, float] | None:
    """Weights of repeated `-w TRAIT=NUMBER`; None if there are none."""
    weights: dict[str, float] = {}
    for text in given or ():
        name, equals, number = text.partition("=")
        name = name.strip()
        if not equals:
            raise InputError(f"weight {text!r}: expected TRAIT=NUMBER, such as brevity=0.8")
        if name in weights:
            raise InputError(f"weight of {name!r} is given twice")
        weights[name] = _number(number, f"weight of {name!r}")
    return weights or None


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{what}: expected a number, got {text.strip()!r}") from None


def _bundle_path(path: Path | None) -> Path:
    from steer.resources import data_dir
    from steer.steerer import DEFAULT_BUNDLE

    default = data_dir() / "bundles" / DEFAULT_BUNDLE
    if path is None and not default.exists():
        raise SteerError(
            f"the default bundle {default} does not exist; make it with `steer build`, or name "
            "another bundle"
        )
    return default if path is None else path


def _load(
    model: str | None,
    bundle: Path | None,
    *,
    force: bool,
    weights: Mapping[str, float] | None = None,
) -> Steerer:
    """Load the bundle, then the model: a mistaken weight is told before the slow part."""
    from steer.bundle import Bundle
    from steer.steerer import load
    from steer.weights import normalise_weights

    edits = Bundle.load(_bundle_path(bundle))
    if weights is not None:
        normalise_weights(weights, edits.traits)
    with _doing("loading the model"):
        return load(model, edits, force=force)


# --- Commands -------------------------------------------------------------------------------------


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from steer.versions import __version__

        _out.print(f"steer {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        _out.print(context.get_help())
        raise typer.Exit()


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
    path = _bundle_path(bundle)
    steerer = _load(model, path, force=force)
    _out.print(f"model    {steerer.language_model.name}", soft_wrap=True)
    _out.print(f"bundle   {path}", soft_wrap=True)
    _out.print(f"loaded in {time.perf_counter() - begin:.1f} s")
    settings = choose_settings(steerer.bundle)
    if not settings:
        raise SteerError(f"{path}: the bundle has no traits; build one with `steer build`")
    _out.print(f"weights  {'; '.join(map(label, settings))}")
    with _doing("answering all prompts under all weights in one batch"):
        result = demonstrate(steerer, max_new_tokens=max_new_tokens)
    show_answers(_out, result)
    _out.print()
    _out.print(measured_table(result))
    rows = len(result.prompts) * (1 + len(settings))
    _out.print(
        f"{rows} answers of at most {max_new_tokens} tokens in one batch, generated in "
        f"{result.seconds:.1f} s; {time.perf_counter() - begin:.1f} s in all. "
        f"{len(result.prompts)} prompts only illustrate; … marks an answer that was cut."
    )


@app.command(
    epilog="Examples: [bold]steer build[/bold]; "
    "[bold]steer build --trait brevity --trait my-trait.yaml --output mine.safetensors[/bold]"
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
            help="mean-difference (default), svd, ccs, probe, two-step or two-step-sign-safe."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Rule that chooses layers: ccs-jump (default), middle or gain."),
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
    seed: Annotated[int | None, typer.Option(min=0, max=2**31, help="Default: 0.")] = None,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Where unfinished work is kept. Default: in the user's cache."),
    ] = None,
) -> None:
    """Build a bundle from the model's own answers; one that was stopped goes on where it was."""
    given: dict[str, Any] = {
        "method": method,
        "layers": layers,
        "prompts": prompts,
        "develop_prompts": develop_prompts,
        "confirm_prompts": confirm_prompts,
        "seed": seed,
    }
    from steer.pipeline import Recipe
    from steer.pipeline import build as build_bundle

    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    target = _output(output, is_default=model is None and not trait)
    traits = [_trait(name) for name in trait] if trait else None
    begin = time.perf_counter()
    try:
        bundle = build_bundle(
            model,
            traits,
            recipe=recipe,
            work_dir=work_dir,
            progress=True,
            on_subspace=_report_subspace,
        )
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on with this build where it stopped", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    bundle.save(target)
    _show_traits(bundle)
    _out.print(
        f"{target}: {len(bundle.traits)} traits, {target.stat().st_size:,} bytes, "
        f"built in {time.perf_counter() - begin:.0f} s",
        soft_wrap=True,
    )


def _report_subspace(pair_set: PairSet, subspace: Subspace) -> None:
    dropped = sum(pair_set.dropped.values())
    _say(
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
        from steer.resources import data_dir
        from steer.steerer import DEFAULT_BUNDLE

        output = data_dir() / "bundles" / DEFAULT_BUNDLE
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder; expected a file name")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: {output.parent} cannot be written to")
    return output


def _trait(text: str) -> Any:
    """A built-in trait's name as it is; a trait file as its trait."""
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        from steer.traits import read_trait

        return read_trait(text)
    return text


@app.command(
    epilog='Examples: [bold]steer generate "How do I sleep better?" -w brevity=0.8 -w warmth=0.2'
    '[/bold]; [bold]echo "Why is the sky blue?" | steer generate - -w simplicity=1[/bold]'
)
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    weight: Weight = None,
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
    force: Force = False,
) -> None:
    """Answer a prompt; stdout gets the answer, piece by piece, and nothing else.

    Weights are scaled to sum to one: they say what is wanted, and --strength how strongly.
    """
    from steer.weights import check_strength

    options = _decoding(
        max_new_tokens,
        sample,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        no_repeat_ngram_size,
    )
    weights = _weights(weight)
    if strength is not None:
        check_strength(strength)
    if weights is None and (strength is not None or compare):
        name = "--compare" if compare else "--strength"
        raise InputError(f"{name} has no effect without weights; add -w TRAIT=NUMBER")
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("the prompt is empty; expected text")
    steerer = _load(model, bundle, force=force, weights=weights)
    amount = 1.0 if strength is None else strength
    if not compare:
        _write(steerer.stream(text, weights, strength=amount, seed=seed, **options), [])
        return

    from steer.demo import answer_cell, label, side_by_side
    from steer.generation import Decoding

    with _doing("answering"):
        plain, steered = steerer.answer(
            [text, text],
            [None, weights],
            strength=amount,
            seed=seed,
            decoding=Decoding.from_options(options),
        )
    heading = label(weights) + ("" if amount == 1 else f", strength {amount:g}")
    cells = [answer_cell("unsteered", plain), answer_cell(heading, steered, steered=True)]
    _out.print(side_by_side(cells, _out.width))


def _write(pieces: Iterator[str], written: list[str]) -> None:
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


@app.command(epilog="Example: [bold]steer chat -w brevity=0.8[/bold], then [bold]/help[/bold]")
def chat(
    weight: Weight = None,
    strength: Annotated[float, typer.Option(help="Multiplies the largest slider.")] = 1.0,
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
    force: Force = False,
) -> None:
    """Talk with the model; weights are sliders that can be moved between the answers."""
    from steer.weights import check_strength

    options = _decoding(
        max_new_tokens,
        sample,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        no_repeat_ngram_size,
    )
    check_strength(strength)
    sliders = _weights(weight)
    steerer = _load(model, bundle, force=force, weights=sliders)
    if steerer.language_model.tokenizer.chat_template is None:
        raise SteerError(
            f"{steerer.language_model.name} has no chat template, so it cannot chat; use "
            "`steer generate`"
        )
    Conversation(steerer, sliders or {}, strength, options, seed).run()


class Conversation:
    """A chat on the terminal: messages, sliders and commands."""

    COMMANDS: Mapping[str, str] = {
        "/set TRAIT NUMBER": "move a slider, 0 to 1; 0 removes it",
        "/strength NUMBER": "multiply the amount that the sliders give",
        "/weights": "show the sliders and what they amount to",
        "/traits": "list the traits",
        "/reset": "forget the conversation, keep the sliders",
        "/help": "list these commands",
        "/quit": "leave (also Ctrl-D)",
    }

    def __init__(
        self,
        steerer: Steerer,
        sliders: Mapping[str, float],
        strength: float,
        options: DecodingOptions,
        seed: int | None,
    ) -> None:
        self._steerer = steerer
        self._sliders = {name: value for name, value in sliders.items() if value > 0}
        self._strength = strength
        self._options = options
        self._seed = seed
        self._messages: list[Mapping[str, str]] = []

    @property
    def amount(self) -> float:
        """The strength of the next answer: a slider at half asks for half the dose."""
        return min(1.0, max(self._sliders.values(), default=0.0)) * self._strength

    def run(self) -> None:
        """Answer lines of stdin until they end or `/quit`."""
        interactive = sys.stdin.isatty()
        if interactive:
            with suppress(ImportError):  # line editing, where the platform has it
                import readline  # noqa: F401
            self._note("/help lists the commands, /quit leaves.")
        while True:
            try:
                line = input("you> " if interactive else "").strip()
            except EOFError:
                if interactive:
                    _out.print()
                return
            if line in ("/quit", "/exit"):
                return
            if not line:
                continue
            try:
                if line.startswith("/"):
                    self._command(line)
                else:
                    self._answer(line)
            except SteerError as error:
                _fail(str(error), 0)

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            stream = self._steerer.stream(
                self._messages,
                self._sliders or None,
                strength=self.amount,
                seed=self._seed,
                **self._options,
            )
            _write(stream, pieces)
        except KeyboardInterrupt:
            self._note("(stopped)")
        except BaseException:
            self._messages.pop()
            raise
        answer = "".join(pieces).strip()
        if answer:
            self._messages.append({"role": "assistant", "content": answer})
        else:
            self._messages.pop()

    def _command(self, line: str) -> None:
        name, *arguments = line.replace("=", " ").split()
        if name == "/set" and len(arguments) == 2:
            self._set(arguments[0], _number(arguments[1], f"slider {arguments[0]!r}"))
        elif name == "/strength" and len(arguments) == 1:
            from steer.weights import check_strength

            self._strength = check_strength(_number(arguments[0], "strength"))
            self._show_weights()
        elif name == "/weights" and not arguments:
            self._show_weights()
        elif name == "/traits" and not arguments:
            for entry in self._steerer.bundle.traits.values():
                self._note(f"{entry.name}: {entry.description}")
        elif name == "/reset" and not arguments:
            self._messages.clear()
            self._note("The conversation begins anew.")
        elif name == "/help" and not arguments:
            for usage, meaning in self.COMMANDS.items():
                self._note(f"{usage:<18}  {meaning}")
        else:
            expected = [usage for usage in self.COMMANDS if usage.split()[0] == name]
            hint = f"expected {expected[0]}" if expected else "/help lists the commands"
            raise InputError(f"{line!r} is not a command; {hint}")

    def _set(self, name: str, value: float) -> None:
        traits = self._steerer.bundle.traits
        if name not in traits:
            raise InputError(f"unknown trait {name!r}; known traits: {', '.join(traits)}")
        if not math.isfinite(value) or value < 0:
            raise InputError(f"slider {name!r}: expected a number >= 0, got {value:g}")
        self._sliders.pop(name, None)
        if value > 0:
            self._sliders[name] = value
        self._show_weights()

    def _show_weights(self) -> None:
        if not self._sliders:
            self._note(f"No trait is set: answers are unsteered (/strength {self._strength:g}).")
            return
        total = sum(self._sliders.values())
        shares = ", ".join(
            f"{name} {value:g} ({value / total:.0%})" for name, value in self._sliders.items()
        )
        self._note(f"{shares}; strength {self.amount:g}")

    def _note(self, text: str) -> None:
        _out.print(Text(text, style="dim"), soft_wrap=True)


@app.command(
    epilog="Examples: [bold]steer inspect[/bold]; "
    "[bold]steer inspect mine.safetensors --picture layers.png[/bold]"
)
def inspect(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle file. Default: the packaged model's bundle.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Write heat maps, trait by layer, as .png, .svg or .pdf."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what is in a bundle: traits, doses, layers, and how it was built."""
    from steer.bundle import Bundle
    from steer.picture import draw

    content = Bundle.load(_bundle_path(bundle))
    if picture is not None:
        draw(content, picture)
    if as_json:
        # Not through rich, which would wrap long lines.
        print(json.dumps(content.info(), indent=2))
    else:
        _show_bundle(content)
    if picture is not None:
        _say(f"wrote {picture}")


def _show_bundle(bundle: Bundle) -> None:
    from steer.picture import grids, heat_map

    info = bundle.info()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("model", Text(bundle.model))
    facts.add_row("fingerprint", Text(str(bundle.fingerprint)))
    facts.add_row("scope", bundle.scope)
    facts.add_row("size", f"{info['size']:,} bytes")
    recipe = bundle.settings.get("recipe")
    if isinstance(recipe, Mapping):
        facts.add_row("recipe", Text(", ".join(f"{k} {_plain(v)}" for k, v in recipe.items())))
    versions = (f"{name} {version}" for name, version in bundle.versions.items())
    facts.add_row("built with", Text(", ".join(versions)))
    _out.print(facts)
    _show_traits(bundle)
    if any(entry.ccs_loss for entry in bundle.traits.values()):
        for grid in grids(bundle):
            _out.print()
            _out.print(heat_map(grid, _out.width))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None) + ")"
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def _show_traits(bundle: Bundle) -> None:
    """Two tables: every trait's edit, and the contrast pairs that it was made from."""
    from steer.pipeline import LOW_RELIABILITY

    edits = Table(box=SIMPLE_HEAD)
    for heading in ("trait", "reliability", "layers", "dose, KL"):
        justify: Any = "right" if heading in ("reliability", "dose, KL") else "left"
        edits.add_column(heading, justify=justify, no_wrap=heading != "layers", overflow="fold")
    edits.add_column("gain on develop prompts", overflow="fold")
    pairs = Table(box=SIMPLE_HEAD)
    pairs.add_column("contrast pairs", no_wrap=True)
    prefix = "pairs dropped, "
    reasons = {
        name.removeprefix(prefix)
        for entry in bundle.traits.values()
        for name in entry.statistics
        if name.startswith(prefix)
    }
    for heading in ("kept", *(f"dropped: {reason}" for reason in sorted(reasons))):
        pairs.add_column(heading, justify="right")
    for name, entry in bundle.traits.items():
        low = entry.reliability < LOW_RELIABILITY
        gain = entry.statistics.get("gain on develop prompts")
        edits.add_row(
            name,
            Text(f"{'LOW ' * low}{entry.reliability:.2f}", style="bold red" if low else ""),
            _ranges(list(entry.edit.layers)),
            f"{entry.dose:.2f}",
            f"{gain:+.3g} {entry.statistics.get('measure', '')}"
            if isinstance(gain, int | float)
            else "?",
        )
        counts = ("pairs kept", *(prefix + reason for reason in sorted(reasons)))
        pairs.add_row(name, *(str(entry.statistics.get(count, "?")) for count in counts))
    _out.print(edits)
    _out.print(pairs)
    if any(entry.reliability < LOW_RELIABILITY for entry in bundle.traits.values()):
        warning = (
            f"LOW: below {LOW_RELIABILITY} the contrast pairs hardly agree on a direction; "
            "expect a weak or uneven effect."
        )
        _out.print(Text(warning, style="bold red"))


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs joined, such as "8-12, 15"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


@app.command(
    epilog="Examples: [bold]steer cover --dim 3 --eps-prime 0.4 --delta-prime 0.0125[/bold]; "
    "[bold]steer cover --dim 3 --epsilon 0.2 --size 7 --out cover.csv[/bold]"
)
def cover(
    dim: Annotated[int, typer.Option(min=2, max=8, help="Number of traits.")],
    eps_prime: Annotated[
        float | None, typer.Option(help="Relative closeness of a weight to a preference.")
    ] = None,
    delta_prime: Annotated[float | None, typer.Option(help="Absolute closeness.")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Guarantee asked for: relative loss.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Guarantee: absolute loss, above 0.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="With --epsilon: the best cover of so many weights.")
    ] = None,
    f_max: Annotated[float, typer.Option(help="Largest regulariser.")] = 0.2,
    r_max: Annotated[
        float | None, typer.Option(help="Largest sum of rewards. Default: --dim.")
    ] = None,
    method: Annotated[str, typer.Option(help="exact (default) or greedy.")] = "exact",
    refinement: Annotated[
        int, typer.Option(min=1, max=8, help="How fine the candidate weights are.")
    ] = 2,
    time_limit: Annotated[float, typer.Option(min=0.0, help="Seconds to search.")] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Write the cover as CSV, a weight a row.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Find few weights that stand for every preference, and prove it.

    The closeness is --eps-prime with --delta-prime, or is chosen for a guarantee: --epsilon with
    --delta, or --epsilon with --size.
    """
    from steer.cover import Closeness, Scale, closeness_for, cover_of_size, minimal_cover

    scale = Scale(f_max, float(dim) if r_max is None else r_max)
    given = tuple(value is not None for value in (eps_prime, delta_prime, epsilon, delta, size))
    search: Any = {"method": method, "time_limit": time_limit, "seed": seed or 0}
    with _doing("covering the simplex"):
        if given == (True, True, False, False, False):
            closeness = Closeness(cast(float, eps_prime), cast(float, delta_prime))
            found = minimal_cover(dim, closeness, refinement=refinement, **search)
        elif given == (False, False, True, True, False):
            closeness = closeness_for(dim, cast(float, epsilon), cast(float, delta), scale)
            found = minimal_cover(dim, closeness, refinement=refinement, **search)
        elif given == (False, False, True, False, True):
            found = cover_of_size(dim, cast(int, size), cast(float, epsilon), scale, **search)
        else:
            raise InputError(
                "give --eps-prime with --delta-prime, or --epsilon with --delta, or --epsilon "
                "with --size"
            )
        _show_cover(dim, found, scale, seed or 0)
    if out is not None:
        _write_csv(out, found.weights)
        _say(f"wrote {out}")


def _show_cover(dim: int, found: Cover, scale: Scale, seed: int) -> None:
    """The cover beside the grids and two sets that are no covers."""
    from steer.cover import KINDS, grid, is_cover, random_weights, uniform_weights

    closeness = found.closeness
    epsilon, delta = scale.guarantee(closeness)
    _out.print(
        f"eps' = {closeness.eps_prime:g}, delta' = {closeness.delta_prime:g}: an optimum for a "
        f"weight is ({epsilon:.3g}, {delta:.3g})-optimal for what it covers "
        f"(f_max {scale.f_max:g}, R_max {scale.r_max:g})",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD)
    for heading in ("set", "weights", "covers the simplex", "a preference that it misses"):
        table.add_column(heading, justify="right" if heading == "weights" else "left")

    def add(name: str, weights: Any, check: CoverCheck) -> None:
        missed = check.counterexample
        shown = "" if missed is None else ", ".join(f"{float(x):.4f}" for x in missed)
        table.add_row(name, str(len(weights)), check.verdict, shown)

    number = 1
    for kind in KINDS:
        if kind == "multiplicative" and closeness.eps_prime == 0:
            continue
        try:
            weights = grid(dim, closeness, kind)
        except InputError as error:
            table.add_row(f"{kind} grid", "?", str(error), "")
            continue
        number = len(weights) if kind == "combined" else number
        add(f"{kind} grid", weights, is_cover(weights, closeness, time_limit=_CHECK_SECONDS))
    add("optimised", found.weights, found.check)
    uniform = uniform_weights(dim, number)
    others = {"uniform": uniform, "random": random_weights(dim, len(uniform), seed)}
    for name, weights in others.items():
        add(name, weights, is_cover(weights, closeness, time_limit=_CHECK_SECONDS))
    _out.print(table)
    _out.print(
        f"Lower bound: {found.lower_bound}; no cover out of the candidate weights is smaller.",
        soft_wrap=True,
    )


def _write_csv(path: Path, weights: Any) -> None:
    """One raw weight a row, under the header w1..wd."""
    from steer.resources import atomic_path

    header = ",".join(f"w{i + 1}" for i in range(weights.shape[1]))
    rows = (",".join(repr(float(x)) for x in row) for row in weights)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


@app.command(epilog="Example: [bold]steer traits --folder my-traits[/bold]")
def traits(
    folder: Annotated[
        Path | None, typer.Option(help="Folder of trait files. Default: the built-in traits.")
    ] = None,
) -> None:
    """List traits with their two poles."""
    from steer.traits import load_traits

    table = Table(box=SIMPLE_HEAD)
    for heading in ("trait", "positive pole", "negative pole"):
        table.add_column(heading, no_wrap=heading == "trait")
    table.add_column("description", overflow="fold")
    for name, trait in load_traits(folder).items():
        table.add_row(
            *map(Text, (name, trait.positive.pole, trait.negative.pole, trait.description))
        )
    _out.print(table)


if __name__ == "__main__":
    sys.exit(main())
