"""`steer chat`: a conversation whose weights are sliders."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from steer.cli.app import app
from steer.cli.console import fail, out
from steer.cli.generate import write_pieces
from steer.cli.options import (
    BundleFile,
    Force,
    MaxNewTokens,
    Model,
    NgramSize,
    Penalty,
    Sample,
    Seed,
    Temperature,
    TopK,
    TopP,
    Weight,
    decoding_options,
    load_steerer,
    parse_number,
    weights_of,
)
from steer.errors import InputError, SteerError
from steer.sliders import Sliders

if TYPE_CHECKING:
    from steer.generation import DecodingOptions
    from steer.steerer import Steerer


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

    options = decoding_options(
        max_new_tokens,
        sample,
        temperature,
        top_p,
        top_k,
        repetition_penalty,
        no_repeat_ngram_size,
    )
    check_strength(strength)
    sliders = weights_of(weight)
    steerer = load_steerer(model, bundle, force=force, weights=sliders)
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
        self._values = dict(sliders)
        self._knob = strength
        self._options = options
        self._seed = seed
        self._messages: list[Mapping[str, str]] = []

    @property
    def sliders(self) -> Sliders:
        """What the next answer is asked for."""
        return Sliders(self._values, self._knob)

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
                    out.print()
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
                fail(str(error), 0)

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        sliders = self.sliders
        try:
            stream = self._steerer.stream(
                self._messages,
                sliders.weights,
                strength=sliders.strength,
                seed=self._seed,
                **self._options,
            )
            write_pieces(stream, pieces)
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
            self._set(arguments[0], parse_number(arguments[1], f"slider {arguments[0]!r}"))
        elif name == "/strength" and len(arguments) == 1:
            from steer.weights import check_strength

            self._knob = check_strength(parse_number(arguments[0], "strength"))
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
        self._values.pop(name, None)
        if value > 0:
            self._values[name] = value
        self._show_weights()

    def _show_weights(self) -> None:
        weights = self.sliders.weights
        if weights is None:
            self._note(f"No trait is set: answers are unsteered (/strength {self._knob:g}).")
            return
        total = sum(weights.values())
        shares = ", ".join(
            f"{name} {value:g} ({value / total:.0%})" for name, value in weights.items()
        )
        self._note(f"{shares}; strength {self.sliders.strength:g}")

    def _note(self, text: str) -> None:
        out.print(Text(text, style="dim"), soft_wrap=True)
