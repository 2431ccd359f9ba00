"""What built-in traits and any others earn, on texts whose manner is known."""

from __future__ import annotations

import pytest

from steer.contrast import Answer, Pair, PairSet
from steer.default_rewards import default_reward, text_reward
from steer.errors import InputError
from steer.likelihood import log_ratio
from steer.traits import Trait
from tests.models import tiny

PROMPTS = ["Hi", "Why?", "How?"]
LIKED = (
    "Thank you so much for asking, I would be glad to help you with this lovely plan!",
    "What a great chance to learn something new and to grow. I believe in you, and you can do it.",
    "That is a wonderful idea, and I really appreciate that you shared it. Could we begin soon?",
)
DISLIKED = (
    "Why would you do that? This makes no sense and you did not read the question.",
    "Everything goes wrong, nobody cares, and it will only get worse. I hate all of it.",
    "You are wrong. Do not waste our time with this awful, useless nonsense.",
)


def pairs(positive: tuple[str, ...] = LIKED, negative: tuple[str, ...] = DISLIKED) -> PairSet:
    made = [
        Pair(Answer(str(i), "positive", "x", p, (5,)), Answer(str(i), "negative", "x", n, (6,)))
        for i, (p, n) in enumerate(zip(positive, negative, strict=True))
    ]
    return PairSet("calm", tuple(made), {})


def trait(name: str) -> Trait:
    return Trait(name, positive="Calmly.", negative="In a panic!")


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("brevity", "Yes.", "word " * 90),
        (
            "simplicity",
            "The cat sat on the mat. It was a good cat.",
            "Extraordinary circumstances necessitated comprehensive reconsideration of everything.",
        ),
        ("formality", "The results are attached for review.", "Hey dude, it's totally awesome!"),
        ("warmth", LIKED[2], DISLIKED[2]),
        ("positivity", LIKED[1], DISLIKED[1]),
    ],
)
def test_a_text_with_more_of_a_trait_earns_more(name: str, more: str, less: str) -> None:
    reward = default_reward(tiny(), trait(name), PROMPTS, pairs())
    high, low = reward(PROMPTS[:2], [more, less])
    assert 1 >= high > low >= 0


def test_an_answer_that_was_cut_is_not_brief() -> None:
    for longest in (60, 200):
        reward = default_reward(tiny(), trait("brevity"), PROMPTS, pairs(), longest=longest)
        values = reward(["", ""], ["word " * (longest - 1), "word " * longest])
        assert values[0] > values[1] == 0


def test_contrast_pairs_set_the_scale() -> None:
    reward = text_reward("warmth", pairs())
    assert reward is not None
    outer = reward([""] * 6, [*LIKED, *DISLIKED])
    assert outer[:3].max() == 1 and outer[3:].min() == 0
    with pytest.raises(InputError, match="should show little"):
        text_reward("warmth", pairs(DISLIKED, LIKED))


def test_any_other_trait_is_judged_by_the_model() -> None:
    model, calm = tiny(), trait("calm")
    ratios = [log_ratio(model, calm, PROMPTS, side, max_tokens=128) for side in (LIKED, DISLIKED)]
    if ratios[0].mean() < ratios[1].mean():  # a random model; the other way round then
        calm = Trait("calm", positive="In a panic!", negative="Calmly.")
    assert text_reward("calm", pairs()) is None
    assert default_reward(model, calm, PROMPTS, pairs()).name == "log-ratio of calm"
