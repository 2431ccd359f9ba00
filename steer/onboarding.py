"""A few choices between two answers, and what a person is served by them.

onboarding = Onboarding.begin(Preference.of(bundle), bundle.portfolio)
while (question := onboarding.question) is not None:
    onboarding = onboarding.after(...)   # which of question.answers they prefer
onboarding.preference.weights
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from steer.asking import Service, best_question, service
from steer.errors import InputError
from steer.portfolio import Portfolio
from steer.preference import Preference
from steer.questions import Question, questions_of


@dataclass(frozen=True, eq=False)
class Shown:
    """A question as it is put to a person.

    Attributes:
        number: Which it is, from 1.
        question: The question.
        swapped: Whether its second answer stands first.
    """

    number: int
    question: Question
    swapped: bool

    @property
    def prompt(self) -> str:
        """What is answered."""
        return self.question.prompt

    @property
    def answers(self) -> tuple[str, str]:
        """As they stand."""
        first, second = self.question.first, self.question.second
        return (second, first) if self.swapped else (first, second)


@dataclass(frozen=True, eq=False)
class Onboarding:
    """How far somebody has come with their questions.

    Attributes:
        portfolio: What can serve them.
        preference: What is known of them.
        left: What they can still be asked.
        sides: Of each question that they may be asked, whether its answers are swapped.
        regret: Nothing more is asked once they lose less than this, 95% sure.
        asked: How many questions they have been asked.
    """

    portfolio: Portfolio
    preference: Preference
    left: tuple[Question, ...]
    sides: tuple[bool, ...]
    regret: float
    asked: int = 0

    @classmethod
    def begin(
        cls,
        preference: Preference,
        portfolio: Portfolio,
        *,
        most: int = 8,
        regret: float = 0.02,
        seed: int | None = 0,
    ) -> Onboarding:
        """Before the first question.

        Args:
            preference: What is known of the person so far.
            portfolio: With answers to ask about.
            most: Most questions that are asked.
            regret: Nothing more is asked once they lose less than this, 95% sure.
            seed: Decides what is shown on which side; None for a new one.
        """
        sides = np.random.default_rng(seed).integers(2, size=most).astype(bool).tolist()
        left = tuple(questions_of(portfolio.answered))
        return cls(portfolio, preference, left, tuple(sides), regret)

    @property
    def most(self) -> int:
        """Most questions that are asked."""
        return len(self.sides)

    @cached_property
    def served(self) -> Service:
        """What they are served now, and what that may lose."""
        return service(self.preference.posterior, self.portfolio.measured, self.portfolio.kept)

    @cached_property
    def question(self) -> Shown | None:
        """What to ask next; None if what is served is good enough, or enough has been asked."""
        if self.asked >= self.most or not self.left or self.served.certified < self.regret:
            return None
        chosen = best_question(
            self.preference.posterior,
            np.array([question.difference for question in self.left]),
            self.portfolio.measured,
            self.portfolio.kept,
        )
        return Shown(self.asked + 1, self.left[chosen], self.sides[self.asked])

    def after(self, choice: int | None) -> Onboarding:
        """After the question was answered, or skipped.

        Args:
            choice: 0 or 1 for the answer that they prefer, as they stand; None for neither.

        Raises:
            InputError: If there is no question.
        """
        shown = self.question
        if shown is None:
            raise InputError("there is nothing more to ask")
        preference = self.preference
        if choice is not None:
            preference = preference.answered(shown.question, first=(choice == 0) != shown.swapped)
        left = tuple(one for one in self.left if one is not shown.question)
        return replace(self, preference=preference, left=left, asked=self.asked + 1)

    def ended(self) -> Onboarding:
        """The person has had enough: nothing more is asked."""
        return replace(self, sides=self.sides[: self.asked])

    @property
    def told(self) -> str:
        """Who serves them, in a sentence or two."""
        number = self.portfolio.number(self.served.chosen)
        name = f"entry {number}" if number else "the unsteered model"
        return (
            f"You are served by {name}. It may lose {self.served.expected:.3f} in J against the "
            f"best edit for you, 95% sure less than {self.served.certified:.3f}."
        )
