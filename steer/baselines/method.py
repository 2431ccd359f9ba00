"""What a method is: requests in, answers out, through the unsteered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from steer.bundle import Bundle
from steer.chat import Chat
from steer.errors import InputError
from steer.generation import Decoding, Generated, RowProcessor, generate_batch
from steer.models import LanguageModel
from steer.traits import Trait, load_traits


@dataclass(frozen=True)
class Request:
    """One prompt, and what the person who asks wants.

    Attributes:
        prompt: A text or a chat.
        shares: Weights that sum to one, without zeros; None if no traits are asked for.
        strength: 0 is the unsteered model, 1 what the method does by default.
        person: Who asks, for methods that know people.
    """

    prompt: str | Chat
    shares: Mapping[str, float] | None = None
    strength: float = 1.0
    person: str | None = None


@dataclass(frozen=True, eq=False)
class Serving:
    """What a batch is answered with.

    Attributes:
        language_model: The model, which must not be steered meanwhile.
        bundle: Whose traits are asked for.
        decoding: How tokens are chosen.
        seed: Makes sampling repeatable.
    """

    language_model: LanguageModel
    bundle: Bundle
    decoding: Decoding
    seed: int | None

    def generate(
        self,
        texts: Sequence[str],
        *,
        decoding: Decoding | None = None,
        processors: Sequence[RowProcessor] = (),
    ) -> list[Generated]:
        """Answer rendered prompts (B,), by this decoding or another one."""
        return generate_batch(
            self.language_model,
            texts,
            decoding or self.decoding,
            seed=self.seed,
            processors=processors,
        )


class Method(Protocol):
    """A way to personalise a model without editing its activations."""

    def answer(self, serving: Serving, requests: Sequence[Request]) -> list[Generated]:
        """Answer a batch.

        Args:
            serving: What they are answered with.
            requests: B of them.

        Returns:
            B answers.

        Raises:
            InputError: If the method cannot serve a request, or decode so.
        """
        ...


def shares_of(request: Request, method: str) -> Mapping[str, float]:
    """The weights of a request to a method that serves weights and nobody in particular.

    Raises:
        InputError: If a person is named.
    """
    if request.person is not None:
        raise InputError(
            f"the method {method} serves weights, and knows nothing of {request.person!r}; give "
            "weights, or use RetrievedHistory"
        )
    return {} if request.shares is None or request.strength == 0 else request.shares


def check_whole(request: Request, method: str) -> None:
    """Refuse a strength of a method that can only be on or off.

    Raises:
        InputError: If the strength is neither 0 nor 1.
    """
    if request.strength not in (0.0, 1.0):
        raise InputError(
            f"the method {method} cannot be made weaker or stronger: expected a strength of 0 or "
            f"1, got {request.strength:g}"
        )


def trait_of(name: str, given: Sequence[Trait]) -> Trait:
    """The trait with its instructions: of those that a method was given, or a built-in one.

    Raises:
        InputError: If it is neither, since a bundle holds no instructions.
    """
    known = load_traits() | {trait.name: trait for trait in given}
    if name not in known:
        raise InputError(
            f"trait {name!r} is not a built-in one, and a bundle holds no instructions; give it "
            "to the method by `traits=[...]`"
        )
    return known[name]
