"""Methods that only say something else to the model: in the prompt, or in turns before it.

    system prompt       what is wanted, in words
    few-shot            earlier turns that are answered as is wanted
    retrieved history   what the person wrote, nearest to the prompt first

They cost prompt tokens and nothing else (survey, arXiv 2504.07070, "prompting").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from steer.arrays import check_choice
from steer.baselines.method import Request, Serving, check_whole, shares_of, trait_of
from steer.bundle import Bundle
from steer.chat import Chat, Message, render
from steer.contrast import instructed
from steer.errors import InputError
from steer.generation import Generated
from steer.history import HistoryItem, Selection, read_history, select
from steer.insights import templates
from steer.preference import LITTLE, in_words
from steer.traits import Trait

Place = Literal["system", "user"]
Wording = Literal["instructions", "summary"]
Form = Literal["dialogue", "list"]


class Telling(ABC):
    """A method that is a change of the chat."""

    @abstractmethod
    def chat(self, bundle: Bundle, request: Request) -> str | Chat:
        """What the model is asked instead.

        Raises:
            InputError: If the method cannot serve the request.
        """

    def answer(self, serving: Serving, requests: Sequence[Request]) -> list[Generated]:
        """Answer a batch; see `Method.answer`."""
        chats = [self.chat(serving.bundle, request) for request in requests]
        tokenizer = serving.language_model.tokenizer
        return serving.generate([render(tokenizer, chat) for chat in chats])


@dataclass(frozen=True)
class SystemPrompt(Telling):
    """Says what is wanted, heaviest first; what weighs little is left out.

    Attributes:
        wording: "instructions", one of each trait's, or "summary", a sentence of all
            (`steer.preference`).
        place: In the system message, or in the user's, after what they say.
        instruction: Which of a trait's instructions, from 0.
        traits: With instructions, where they are not built in.
    """

    wording: Wording = "instructions"
    place: Place = "user"
    instruction: int = 0
    traits: tuple[Trait, ...] = ()

    def __post_init__(self) -> None:
        check_choice("wording", self.wording, get_args(Wording))
        check_choice("place", self.place, get_args(Place))
        object.__setattr__(self, "traits", tuple(self.traits))

    def text(self, bundle: Bundle, shares: Mapping[str, float]) -> str:
        """What is said for weights that sum to one.

        Raises:
            InputError: If a trait's instructions are not known.
        """
        if self.wording == "summary":
            poles = {name: bundle.traits[name].positive for name in shares}
            return in_words(poles, shares)
        poles_of = [trait_of(name, self.traits).positive for name in heavy(shares)]
        return " ".join(pole.instruction(self.instruction) for pole in poles_of)

    def chat(self, bundle: Bundle, request: Request) -> str | Chat:
        """What the model is asked instead."""
        shares = shares_of(request, "SystemPrompt")
        check_whole(request, "SystemPrompt")
        if not shares:
            return request.prompt
        return said(self.text(bundle, shares), request.prompt, self.place)


def heavy(shares: Mapping[str, float]) -> list[str]:
    """Traits that are worth an instruction, heaviest first; what weighs little is left out."""
    some = [name for name, share in shares.items() if share >= LITTLE / len(shares)]
    return sorted(some, key=lambda name: -shares[name])


def said(text: str, prompt: str | Chat, place: Place) -> str | Chat:
    """A prompt with something said in the system message, or after the last user's message.

    A chat's own system message is kept, and comes first.
    """
    if isinstance(prompt, str) and place == "user":
        return instructed(prompt, text)
    chat = _messages(prompt)
    if place == "user":
        if not chat or chat[-1].get("role") != "user":
            raise InputError("expected a chat that ends with the user's message")
        return [*chat[:-1], {"role": "user", "content": instructed(chat[-1]["content"], text)}]
    if chat and chat[0].get("role") == "system":
        return [{"role": "system", "content": f"{chat[0]['content']}\n\n{text}"}, *chat[1:]]
    return [{"role": "system", "content": text}, *chat]


@dataclass(frozen=True)
class FewShot(Telling):
    """Earlier turns, answered as the weights want: of a portfolio's kept answers the best.

    Attributes:
        number: Of turns.
    """

    number: int = 2

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InputError(f"number: expected at least 1, got {self.number}")

    def turns(self, bundle: Bundle, shares: Mapping[str, float]) -> list[tuple[str, str]]:
        """(prompt, answer) pairs, the best last, where a model minds them most.

        Of each prompt the answer with the largest weighted reward is taken, and of the prompts
        those where it is furthest above the unsteered model's.

        Raises:
            InputError: If the bundle keeps no answers that these weights' traits were rewarded in.
        """
        portfolio = bundle.portfolio
        kept = () if portfolio is None else portfolio.answered
        if portfolio is None or not kept or not set(shares) <= set(portfolio.traits):
            known = () if portfolio is None else portfolio.traits
            raise InputError(
                "FewShot shows answers that a bundle's portfolio keeps: expected weights of "
                f"{', '.join(known) or 'a bundle with one'}, got {', '.join(shares)}"
            )
        weights = np.array([shares.get(name, 0.0) for name in portfolio.traits])
        found = []
        for one in kept:
            values = one.rewards @ weights  # (K + 1,)
            best = int(values.argmax())
            found.append((float(values[best] - values[0]), one.prompt, one.answers[best]))
        found.sort(key=lambda row: row[0])
        return [(prompt, answer) for _, prompt, answer in found[-self.number :]]

    def chat(self, bundle: Bundle, request: Request) -> str | Chat:
        """What the model is asked instead."""
        shares = shares_of(request, "FewShot")
        check_whole(request, "FewShot")
        if not shares:
            return request.prompt
        return after_turns(self.turns(bundle, shares), request.prompt)


@dataclass(frozen=True, eq=False)
class RetrievedHistory(Telling):
    """Shows the model what the person wrote about the like.

    Attributes:
        histories: By person; requests name them as `profile=`.
        number: Of items that are shown.
        rule: How they are chosen, of `steer.history.select`: "bm25" by words, "similar" by
            embeddings, or without looking at the prompt.
        form: As earlier turns of the model's, or listed before the prompt.
        seed: Of the rule "random".
    """

    histories: Mapping[str, Sequence[HistoryItem]]
    number: int = 4
    rule: Selection = "bm25"
    form: Form = "dialogue"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, get_args(Selection))
        check_choice("form", self.form, get_args(Form))
        if self.number < 1:
            raise InputError(f"number: expected at least 1, got {self.number}")
        read = {name: read_history(one) for name, one in self.histories.items()}
        object.__setattr__(self, "histories", read)

    def chat(self, bundle: Bundle, request: Request) -> str | Chat:
        """What the model is asked instead."""
        if request.shares is not None:
            raise InputError("RetrievedHistory serves people, not weights; name one as `profile=`")
        check_whole(request, "RetrievedHistory")
        if request.person is None or request.strength == 0:
            return request.prompt
        if request.person not in self.histories:
            raise InputError(
                f"no history of {request.person!r}; known: {', '.join(sorted(self.histories))}"
            )
        history = self.histories[request.person]
        query = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
        items = select(history, self.number, self.rule, query=query, seed=self.seed)
        shown = dialogue if self.form == "dialogue" else listed
        return shown(items, request.prompt)


def listed(items: Sequence[HistoryItem], prompt: str | Chat) -> str | Chat:
    """What a person wrote as a list, then the prompt, in the last message."""
    history = "\n".join(f"- {item.text}" for item in items)
    shown = templates()["shown"]
    if isinstance(prompt, str):
        return shown.format(history=history, text=prompt)
    last = shown.format(history=history, text=prompt[-1]["content"])
    return [*prompt[:-1], {"role": prompt[-1]["role"], "content": last}]


def dialogue(items: Sequence[HistoryItem], prompt: str | Chat) -> Chat:
    """What a person wrote as the model's own turns, then the prompt."""
    alone = templates()["alone"]
    return after_turns([(item.prompt or alone, item.text) for item in items], prompt)


def after_turns(turns: Sequence[tuple[str, str]], prompt: str | Chat) -> Chat:
    """A prompt after (question, answer) turns; a chat's own system message stays first."""
    chat = _messages(prompt)
    first = 1 if chat and chat[0].get("role") == "system" else 0
    earlier: list[Message] = []
    for asked, answered in turns:
        earlier.append({"role": "user", "content": asked})
        earlier.append({"role": "assistant", "content": answered})
    return [*chat[:first], *earlier, *chat[first:]]


def _messages(prompt: str | Chat) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
