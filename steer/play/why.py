"""Who serves a manner, and why: what `Portfolio.entry` knows, put so that people can judge it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steer.bundle import Bundle
from steer.portfolio import Entry, Portfolio
from steer.sliders import Sliders
from steer.weights import normalise_weights


@dataclass(frozen=True)
class Earned:
    """What a trait earns, in mean reward on develop prompts.

    Attributes:
        trait: The trait.
        weight: How much it is asked for; weights sum to one.
        unsteered: Reward of the unsteered model.
        served: Reward of what serves; None where nothing measured it.
    """

    trait: str
    weight: float
    unsteered: float
    served: float | None


@dataclass(frozen=True)
class Fact:
    """A figure, and what it is."""

    name: str
    figure: str


@dataclass(frozen=True)
class Why:
    """Who serves a manner, and why.

    Attributes:
        name: Of what serves.
        number: Of the entry; 0 is the unsteered model, None an edit that is not an entry.
        reason: Why it serves, in a sentence or two.
        mixed: Of which traits' edits it is made, by how much of their own dose.
        earned: By trait of the portfolio; empty without one.
        facts: Figures that tell how good it is.
    """

    name: str
    number: int | None
    reason: str
    mixed: Mapping[str, float]
    earned: tuple[Earned, ...]
    facts: tuple[Fact, ...]


def why(bundle: Bundle, sliders: Sliders) -> Why:
    """Who serves where the sliders stand.

    Raises:
        WeightsError: If a slider is of no trait of the bundle, or not a number >= 0.
    """
    portfolio, weights = bundle.portfolio, sliders.weights
    if weights is None or not sliders.strength:
        what = "The strength is 0" if weights else "No slider is up"
        reason = f"{what}, so the model answers as it is, bit for bit."
        asked = {} if weights is None else normalise_weights(weights, bundle.traits)
        return Why("the unsteered model", 0, reason, {}, _earned(portfolio, asked, 0), ())
    shares = normalise_weights(weights, bundle.traits)
    if portfolio is None:
        reason = "The bundle has no portfolio, so the traits' own edits are added."
        return Why("a sum of edits", None, reason, shares, (), ())
    if not portfolio.serves(shares):
        others = ", ".join(name for name in shares if name not in portfolio.traits)
        reason = (
            f"The portfolio does not know {others}, so the traits' own edits are added. Nothing "
            "measured what that earns, and no bound holds."
        )
        return Why("a sum of edits", None, reason, shares, _earned(portfolio, shares, None), ())
    return _routed(portfolio, portfolio.entry(shares, sliders.strength))


def _routed(portfolio: Portfolio, entry: Entry) -> Why:
    rival, ahead = _rival(portfolio, entry)
    if entry.number is None:
        name = f"{next(iter(entry.weights))}'s own edit"
        reason = "One trait alone is served by its own edit, whose dose was found for just that."
    elif entry.number == 0:
        name = "the unsteered model"
        reason = "No entry earns more of this mixture than the model as it is."
    else:
        name = f"entry {entry.number}"
        reason = (
            f"Of {len(portfolio.kept)} entries and the unsteered model it earns most here, "
            f"J\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{entry.value:.3f}."
        )
    if entry.strength != 1:
        reason += f" The figures are of strength 1; you ask for {entry.strength:.2f}."
    worst = portfolio.certificate.delta.loss
    facts = (
        Fact("KL from the unsteered model", f"{entry.kl:.2f} nats a token"),
        Fact("below the best measured edit", f"{entry.regret:.4f} in J"),
        Fact(f"ahead of {rival}", f"{ahead:.4f} in J"),
        Fact("certified for every mixture", f"at most {worst:.4f} in J"),
    )
    mixed = {
        trait: amount
        for trait, amount in zip(portfolio.traits, entry.candidate.coefficients, strict=True)
        if amount
    }
    chosen = portfolio.candidates.index(entry.candidate)
    return Why(name, entry.number, reason, mixed, _earned(portfolio, entry.weights, chosen), facts)


def _rival(portfolio: Portfolio, entry: Entry) -> tuple[str, float]:
    """The best of what could serve otherwise, and by how much J of the entry is ahead of its."""
    w = np.array([entry.weights.get(name, 0.0) for name in portfolio.traits])
    values = portfolio.measured.value(w)
    others = [
        index for index in (0, *portfolio.kept) if portfolio.candidates[index] != entry.candidate
    ]
    best = max(others, key=lambda index: float(values[index]), default=0)
    number = portfolio.number(best)
    return f"entry {number}" if number else "unsteered", entry.value - float(values[best])


def _earned(
    portfolio: Portfolio | None, shares: Mapping[str, float], chosen: int | None
) -> tuple[Earned, ...]:
    if portfolio is None:
        return ()
    rewards = portfolio.mean_rewards
    served = [None] * len(portfolio.traits) if chosen is None else rewards[chosen].tolist()
    return tuple(
        Earned(trait, shares.get(trait, 0.0), before, after)
        for trait, before, after in zip(portfolio.traits, rewards[0].tolist(), served, strict=True)
    )
