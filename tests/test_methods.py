"""`experiments/methods` and `experiments/popi`: what their tables are made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from steer.baselines import BestOfN, LogitRectification, MultiObjective, SystemPrompt
from steer.chat import render
from steer.errors import DataError
from steer.generation import Decoding, prompt_tokens
from steer.history import HistoryItem
from steer.likelihood import response_tokens
from steer.rewards import FunctionReward
from tests.test_baselines import (
    REWARDS,
    logits_after,
    product,
    rectified,
    under,
)
from tests.test_steerer import PROMPTS, a_steerer

sys.path.append(str(Path(__file__).parents[1] / "experiments" / "methods"))
sys.path.append(str(Path(__file__).parents[1] / "experiments" / "popi"))
import contestants  # noqa: E402
import costs  # noqa: E402
import earning  # noqa: E402
import forgetting  # noqa: E402
import judges  # noqa: E402
import open_data  # noqa: E402
import people_of  # noqa: E402
from contestants import PLAIN, Setting, Told, User  # noqa: E402

SHORT = Decoding(max_new_tokens=8, repetition_penalty=1.0, no_repeat_ngram_size=None)
ANN = User("ann", {"brevity": 0.75, "warmth": 0.25})
BOB = User("bob", {"brevity": 0.0, "warmth": 1.0})


@pytest.fixture(scope="module")
def steerer():
    return a_steerer()


# --- Answers and gains ---------------------------------------------------------------------------


def test_answers_are_kept(steerer, tmp_path):
    wanted = [PLAIN, Setting("system prompt", "1", by=SystemPrompt()), Setting("routed", "1")]
    path = tmp_path / "a.jsonl"
    found = contestants.answer_all(steerer, wanted, [ANN, BOB], PROMPTS, SHORT, path, 0)
    assert len(found) == 5  # the unsteered model answers everybody alike
    alone = steerer.answer(PROMPTS, ANN.weights, method=SystemPrompt(), decoding=SHORT)
    told = found[contestants.key(wanted[1]), contestants.user_key(wanted[1], ANN)]
    assert told.texts == tuple(one.text for one in alone)
    steered = steerer.answer(PROMPTS, BOB.weights, decoding=SHORT)
    told = found["routed: 1", contestants.user_key(wanted[2], BOB)]
    assert told.texts == tuple(one.text for one in steered)
    ids = prompt_tokens(
        steerer.language_model, render(steerer.language_model.tokenizer, PROMPTS[0])
    )
    total = 0.0
    for i, token in enumerate(steered[0].tokens):
        text = steerer.language_model.tokenizer.decode(ids)
        before = list(steered[0].tokens[:i])
        total += float(logits_after(steerer.language_model, text, before).log_softmax(-1)[token])
    assert told.log_likelihood[0] == pytest.approx(total / len(steered[0].tokens), abs=1e-3)
    rows = path.read_text().count("\n")
    again = contestants.answer_all(steerer, wanted, [ANN, BOB], PROMPTS, SHORT, path, 0)
    assert again == found and path.read_text().count("\n") == rows


def test_every_setting_has_a_key_of_its_own():
    every = contestants.settings(quick=False)
    assert len({contestants.key(one) for one in every}) == len(every)
    per_method = [sum(o.method == one.method for o in every) for one in every]
    assert max(per_method) <= 8
    assert {one.method for one in contestants.settings(quick=True)} == {o.method for o in every}


def test_users_are_on_the_simplex():
    people = contestants.users(("a", "b", "c"), 5, 3)
    assert [sum(one.weights.values()) for one in people] == pytest.approx([1.0] * 5, abs=2e-3)
    assert people == contestants.users(("a", "b", "c"), 5, 3)
    assert people != contestants.users(("a", "b", "c"), 5, 4)


def test_a_gain_is_the_weighted_share_of_the_headroom():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 2, 5, 2)) * 0.9
    before = np.repeat(before[:1], 2, axis=0)
    found = earning.gains(after, before, [ANN, BOB], 0)
    each = []
    for u, weights in enumerate(([0.75, 0.25], [0.0, 1.0])):
        for t, weight in enumerate(weights):
            room = 1 - before[0, :, t].mean()
            each.append(weight * (after[u, :, t].mean() - before[u, :, t].mean()) / room)
    assert found.value == pytest.approx(sum(each) / 2)
    assert found.interval[0] < found.value < found.interval[1]
    # A trait with next to no headroom is left out: Ann's other one weighs all, Bob has none.
    full = before.copy()
    full[:, :, 1] = 0.95
    found = earning.each_gain(after, full, [ANN, BOB])
    room = 1 - full[0, :, 0].mean()
    np.testing.assert_allclose(found[0], (after[0, :, 0] - full[0, :, 0]) / room)
    assert not found[1].any()


def test_broken_answers_earn_nothing():
    told = [Told(("abc", ""), (3, 1), (-1.0, -1.0)), Told(("a", "B"), (1, 1), (-1.0, -3.0))]
    rewards = {"lower": FunctionReward("l", lambda p, a: [float(t.islower()) for t in a])}
    found = earning.earned(rewards, ["x", "y"], told)
    assert found[:, :, 0].tolist() == [[1, 0], [1, 0]]
    whole = earning.wholeness(["x", "y"], told)
    assert whole.incoherent == 0.25 and whole.log_likelihood == -1.5


# --- Costs ---------------------------------------------------------------------------------------


def test_costs_are_counted(steerer):
    model = steerer.language_model
    chosen = [
        Setting("routed", "1"),
        Setting("logit rectification", "1", by=LogitRectification()),
        Setting("best of n", "3", by=BestOfN(n=3, rewards=REWARDS)),
    ]
    found = costs.costs(steerer, chosen, [ANN, BOB], PROMPTS[:2], SHORT, 0)
    asked = [prompt_tokens(model, render(model.tokenizer, prompt)) for prompt in PROMPTS[:2]]
    assert found["unsteered"].passes == found["routed"].passes == 1
    assert found["routed"].extra_prompt == 0 and found["unsteered"].latency == 1
    extra = [
        len(prompt_tokens(model, under(model, prompt, name, pole)))
        for prompt, user in ((PROMPTS[0], ANN), (PROMPTS[1], BOB))
        for name, weight in user.weights.items()
        if weight
        for pole in ("positive", "negative")
    ]
    assert found["logit rectification"].extra_prompt == sum(extra) / 2
    # The plain prompt and two for each trait: five rows for ann, three for bob.
    assert found["logit rectification"].passes == pytest.approx(4)
    assert found["best of n"].extra_prompt == 2 * np.mean([len(ids) for ids in asked])
    # 4 layers, keys and values, 2 heads of 8, 4 bytes.
    assert costs.cache_bytes(model) == 4 * 2 * 2 * 8 * 4
    written = [len(a.tokens) for a in steerer.answer(PROMPTS[:2], None, decoding=SHORT)]
    held = np.mean([len(ids) + n - 1 for ids, n in zip(asked, written, strict=True)])
    assert found["unsteered"].cache == pytest.approx(held * 512 / 1000)


# --- Questions with choices ----------------------------------------------------------------------

DOCUMENTS = [
    {"question": "What is rain?", "choices": ["water", "fire", "a cat"], "gold": 0},
    {"question": "Tea?", "choices": ["no", "yes please"], "gold": 1},
    {"question": "Which of these is red?", "choices": ["sky", "sea", "a rose"], "gold": 2},
]


@pytest.mark.parametrize("kind", ["unsteered", "routed", "told", "rectified", "product"])
def test_choices_are_scored_as_the_method_would_write_them(steerer, kind):
    model = steerer.language_model
    shares = ANN.weights

    def plain(prompt):
        return lambda answer: logits_after(model, render(model.tokenizer, prompt), answer)

    def told(prompt):
        chat = SystemPrompt().text(steerer.bundle, shares)
        text = render(model.tokenizer, f"{prompt}\n\n{chat}")
        return lambda answer: logits_after(model, text, answer)

    def edited(prompt):
        def score(answer):
            text = render(model.tokenizer, prompt)
            begin = len(prompt_tokens(model, text))
            with steerer.steer(shares, prompt_length=begin):
                return logits_after(model, text, answer)

        return score

    setting, scores = {
        "unsteered": (PLAIN, plain),
        "routed": (Setting("routed", "1"), edited),
        "told": (Setting("system prompt", "1", by=SystemPrompt()), told),
        "rectified": (
            Setting("logit rectification", "1", by=LogitRectification(alpha=3.0)),
            lambda prompt: rectified(model, prompt, shares, 3.0),
        ),
        "product": (
            Setting("multi-objective", "1", strength=0.7, by=MultiObjective()),
            lambda prompt: product(model, prompt, shares, 0.7),
        ),
    }[kind]
    asked = [one["question"] for one in DOCUMENTS for _ in one["choices"]]
    choices = [choice for one in DOCUMENTS for choice in one["choices"]]
    found = forgetting._scores(steerer, setting, ANN, asked, choices)
    for prompt, choice, value in zip(asked, choices, found, strict=True):
        score, wanted, before = scores(prompt), 0.0, []
        for token in response_tokens(model, choice):
            wanted += float(score(before).log_softmax(-1)[token])
            before.append(token)
        assert value == pytest.approx(wanted, abs=2e-3)
    right = forgetting.accuracy(steerer, setting, ANN, DOCUMENTS)
    place = 0
    for one, correct in zip(DOCUMENTS, right, strict=True):
        mine = [found[place + i] / len(choice) for i, choice in enumerate(one["choices"])]
        assert correct == (int(np.argmax(mine)) == one["gold"])
        place += len(mine)


# --- Judges --------------------------------------------------------------------------------------


def test_agreement_is_the_share_of_pairs_ordered_alike():
    opinions = [np.array([1.0, 2.0]), np.array([0.0, 3.0]), np.array([0.5, 3.0])]
    worth = [np.array([5.0, 1.0]), np.array([4.0, 0.0]), np.array([4.5, 9.0])]
    # First prompt: all three pairs alike. Second: one unlike, one alike, one a tie.
    assert judges.agreement(opinions, worth) == (4 / 5, 5)


class Judge:
    """Answers A to everything, or names what it was told to."""

    def __init__(self, answer):
        self.answer = lambda chat, **_: answer(chat[0]["content"])


def test_a_remote_judge_sees_both_orders():
    def prefers_good(asked):
        return "A" if "Answer A:\ngood" in asked else " b."

    assert judges.remote_preference(Judge(prefers_good), "s", "p", "good", "bad") == 1.0
    assert judges.remote_preference(Judge(prefers_good), "s", "p", "bad", "good") == 0.0
    assert judges.remote_preference(Judge(lambda _: "A"), "s", "p", "bad", "good") == 0.5
    assert judges.remote_preference(Judge(lambda _: "Both"), "s", "p", "bad", "good") is None


def test_an_opinion_is_what_a_summary_adds(steerer):
    model = steerer.language_model
    told = Told(("Yes.", "No, never."), (4, 10), (0.0, 0.0))
    found = judges.local_opinion(model, "I like tea.", PROMPTS[:2], told)
    for prompt, answer, value in zip(PROMPTS, told.texts, found, strict=False):
        means = []
        for asked in (prompt, f"{prompt}\n\nI like tea."):
            text, tokens = render(model.tokenizer, asked), response_tokens(model, answer)
            parts = [
                float(logits_after(model, text, list(tokens[:i])).log_softmax(-1)[token])
                for i, token in enumerate(tokens)
            ]
            means.append(np.mean(parts))
        assert value == pytest.approx(means[1] - means[0], abs=1e-3)


# --- People who choose ---------------------------------------------------------------------------


def a_pool(seed):
    rng = np.random.default_rng(seed)
    texts = tuple(tuple(f"{p} {k}" for k in range(4)) for p in range(5))
    return people_of.Pool(tuple(f"prompt {p}" for p in range(5)), texts, rng.random((5, 4, 3)))


def test_people_choose_by_their_weights():
    first, second = a_pool(0), a_pool(1)
    people = people_of.people_of(first, second, 40, 8, 6, 0.9, seed=2)
    right = []
    for person in people:
        assert len(person.history) == 8 and len(person.test) == 6
        hidden = person.hidden
        right += (hidden.differences @ hidden.weights > 0).tolist()
        assert (hidden.test_differences @ hidden.weights >= people_of.CLEAR).all()
        for pool, items, differences in (
            (first, person.history, hidden.differences),
            (second, person.test, hidden.test_differences),
        ):
            for item, difference in zip(items, differences, strict=True):
                p = pool.prompts.index(item.prompt)
                i, j = (pool.texts[p].index(one) for one in (item.text, item.disliked))
                np.testing.assert_allclose(difference, pool.rewards[p, i] - pool.rewards[p, j])
    # Consistent on the median pair nine times in ten; in the mean some less.
    assert 0.75 < np.mean(right) < 0.95
    again = people_of.people_of(first, second, 40, 8, 6, 0.9, seed=2)
    assert all(a.history == b.history for a, b in zip(people, again, strict=True))


def test_weights_are_inferred_from_what_was_chosen():
    sure = people_of.Hidden(np.ones(3) / 3, np.tile([0.6, -0.2, -0.2], (30, 1)), np.ones((1, 3)))
    found = sure.inferred(0)
    assert found[0] > 0.6 and found.sum() == pytest.approx(1)


# --- Open data -----------------------------------------------------------------------------------

LEVEL = {"prompt": "What is rain?", "response_x": "Wet.", "response_y": "Precipitation."}
TALK = [
    {"turn": 0, "role": "user", "content": "Hi?"},
    {"turn": 0, "role": "model", "content": "Hello.", "if_chosen": False},
    {"turn": 0, "role": "model", "content": "Hey!", "if_chosen": True},
    {"turn": 0, "role": "model", "content": "Yes?", "if_chosen": False},
    {"turn": 1, "role": "user", "content": "And?"},
    {"turn": 1, "role": "model", "content": "So.", "if_chosen": True},
]
SAMPLES = {
    "elix": [
        LEVEL | {"label": 0, "scorer_level": "child"},
        LEVEL | {"label": 1, "scorer_level": "expert"},
    ],
    "roleplay": [{"x": "Tea?", "yw": "Aye!", "yl": "Yes.", "score_persona": "a pirate"}],
    "alignx": [
        {
            "prompt": "P",
            "chosen": "C",
            "rejected": "R",
            "Pair-wise Comparative Feedback": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
            "User-Generated Content": [{"prompt": "u", "comment": "mine"}],
        }
    ],
    "prism": [{"user_id": "u7", "conversation_history": TALK}],
    "personalllm": [
        {
            "person_id": 4,
            "prompt_1": "A?",
            "response_1_a": "a",
            "response_1_b": "b",
            "chosen_1": "b",
            "prompt_2": "B?",
            "response_2_a": "c",
            "response_2_b": "d",
            "chosen_2": "a",
            "prompt_3": None,
        }
    ],
    "psoups": [{"user_input": "Hi", "completion_a": "good", "completion_b": "bad"}],
}
PAIR = HistoryItem("Wet.", prompt="What is rain?", disliked="Precipitation.")
WANTED = {
    "elix": {
        "child": [PAIR],
        "expert": [HistoryItem(PAIR.disliked, prompt=PAIR.prompt, disliked=PAIR.text)],
    },
    "roleplay": {"a pirate": [HistoryItem("Aye!", prompt="Tea?", disliked="Yes.")]},
    "alignx": {
        "person 0": [
            HistoryItem("mine", prompt="u"),
            HistoryItem("c", prompt="p", disliked="r"),
            HistoryItem("C", prompt="P", disliked="R"),
        ]
    },
    "prism": {
        "u7": [
            HistoryItem("Hey!", prompt="Hi?", disliked="Hello."),
            HistoryItem("Hey!", prompt="Hi?", disliked="Yes?"),
        ]
    },
    "personalllm": {
        "4": [
            HistoryItem("b", prompt="A?", disliked="a"),
            HistoryItem("c", prompt="B?", disliked="d"),
        ]
    },
    "psoups": {"P1A": [HistoryItem("good", prompt="Hi", disliked="bad")]},
}


@pytest.mark.parametrize("kind", list(SAMPLES))
@pytest.mark.parametrize("lines", [True, False])
def test_open_data_are_read(kind, lines, tmp_path):
    rows = SAMPLES[kind]
    stem = {"prism": "conversations", "psoups": "P1A"}.get(kind, "train")
    if lines or kind == "prism":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{stem}.jsonl").write_text(text)
    else:
        (tmp_path / f"{stem}.json").write_text(json.dumps(rows))
    assert open_data.read_people(kind, tmp_path) == WANTED[kind]
    if kind == "elix":
        assert open_data.read_people("review", tmp_path) == WANTED[kind]


def test_what_is_no_open_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_data.read_people("elix", tmp_path / "none")
    with pytest.raises(DataError, match="unknown data set 'nosuch'; known: elix"):
        open_data.read_people("nosuch", tmp_path)
    with pytest.raises(DataError, match="found none"):
        open_data.read_people("elix", tmp_path)
    for text in ("not json", '{"prompt": "x"}', json.dumps(LEVEL | {"label": 3})):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(DataError, match="not data of elix"):
            open_data.read_people("elix", tmp_path)


def test_people_with_enough_are_asked():
    pairs = [HistoryItem(f"a{i}", prompt="p", disliked="b") for i in range(5)]
    histories = {"few": pairs[:2], "enough": [HistoryItem("alone"), *pairs], "more": pairs * 2}
    found = people_of.people_in(histories, 3, 2, 9, 0)
    assert all(one.hidden is None and len(one.history) == 3 for one in found)
    assert sorted(len(one.test) for one in found) == [2, 2]
    enough = next(one for one in found if one.history == tuple(pairs[:3]))
    assert enough.test == tuple(pairs[3:])
    assert len(people_of.people_in(histories, 3, 2, 1, 0)) == 1
