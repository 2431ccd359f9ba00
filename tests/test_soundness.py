"""`steer.soundness`: answers that fall behind the unsteered model's, in either way."""

from __future__ import annotations

import pytest

from steer.soundness import LESS_RELEVANT, Soundness

PROMPTS = ["How do I make tea?", "Why is the sky blue?"] * 2
GOOD = [
    "To make tea, boil water, pour it over the leaves and wait for a few minutes.",
    "The sky is blue because air scatters blue light more than red light.",
] * 2


def test_shares() -> None:
    assert Soundness.of(PROMPTS, GOOD) == Soundness(0.0, 1.0)
    loop = "and so on " * 40
    broken = "\ufffd\ufffd\ufffd \ufffd\ufffd"
    found = Soundness.of(PROMPTS, [GOOD[0], loop, broken, "Sharks have many teeth."])
    assert found.incoherent == 0.5 and found.relevant == 0.25


@pytest.mark.parametrize(
    ("found", "unsteered", "holds"),
    [
        (Soundness(0.0, 1.0), Soundness(0.0, 1.0), True),
        (Soundness(0.1, 1.0), Soundness(0.1, 1.0), True),
        (Soundness(0.025, 1.0), Soundness(0.0, 1.0), False),
        (Soundness(0.0, 1.0 - LESS_RELEVANT), Soundness(0.0, 1.0), True),
        (Soundness(0.0, 0.99 - LESS_RELEVANT), Soundness(0.0, 1.0), False),
        (Soundness(0.0, 0.5), Soundness(0.1, 0.6), True),
    ],
)
def test_against_the_unsteered_model(found: Soundness, unsteered: Soundness, holds: bool) -> None:
    assert found.holds_against(unsteered) is holds


def test_some_may_be_put_down_to_chance() -> None:
    unsteered = Soundness(0.025, 1.0)
    assert Soundness(0.05, 1.0).holds_against(unsteered, 0.025)
    assert not Soundness(0.075, 1.0).holds_against(unsteered, 0.025)
    assert not Soundness(0.0, 0.99 - LESS_RELEVANT).holds_against(unsteered, 0.025)
