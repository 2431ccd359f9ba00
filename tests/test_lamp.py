"""LaMP: what is read, asked, counted and tabled, on a made-up sample in the published format."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from steer.edits import ZERO, additive
from steer.errors import DataError
from steer.generation import prompt_tokens
from steer.history import HistoryItem
from steer.hooks import attach
from steer.likelihood import response_tokens
from tests.models import LAYERS, WIDTH, tiny

CHAMELEON = Path(__file__).parents[1] / "experiments" / "chameleon"
SAMPLE = CHAMELEON / "lamp_sample"
sys.path.append(str(CHAMELEON))
import lamp  # noqa: E402
from choosing import choice_log_likelihood  # noqa: E402
from lamp_data import Question, load, task_folder  # noqa: E402
from lamp_metrics import measure, measure_interval  # noqa: E402
from lamp_tasks import NUMBERS, TASKS, own_text, task_of, with_history  # noqa: E402

BY_NAME = {task.name: task for task in TASKS}


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_the_sample_is_read(number):
    task, questions = load(task_folder(SAMPLE, number), number)
    assert task.number == number and len(questions) == 3
    published = json.loads((SAMPLE / f"LaMP_{number}" / "dev_questions.json").read_text())
    for question, row in zip(questions, published, strict=True):
        assert (question.id, question.user, question.input) == (row["id"], row["id"], row["input"])
        assert 4 <= len(question.profile) == len(row["profile"]) <= 6
        for item, entry in zip(question.profile, row["profile"], strict=True):
            assert item.text == entry[task.text]
            assert item.prompt == (entry[task.prompt] if task.prompt else None)
    assert not task.labels or all(question.target in task.labels for question in questions)


def test_people_are_drawn_by_a_seed():
    folder = SAMPLE / "LaMP_4"
    drawn = [load(folder, 4, limit=2, seed=seed)[1] for seed in (0, 0, 1, 2, 3, 4)]
    assert all(len(questions) == 2 for questions in drawn)
    assert drawn[0] == drawn[1]
    assert len({tuple(one.id for one in questions) for questions in drawn}) > 1
    everybody = [one.id for one in load(folder, 4)[1]]
    assert all(one.id in everybody for questions in drawn for one in questions)


@pytest.fixture
def folder(tmp_path):
    """A copy of the product ratings."""
    return Path(shutil.copytree(SAMPLE / "LaMP_3", tmp_path / "LaMP-3"))


def change(folder, part, edit):
    """Change one file of a copy."""
    path = folder / f"dev_{part}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("place", ["dev", "new/dev"])
def test_the_places_on_the_site(folder, place):
    (folder / place).mkdir(parents=True)
    for path in folder.glob("*.json"):
        path.rename(folder / place / path.name)
    assert task_folder(folder.parent, 3) == folder
    assert load(folder, 3) == load(SAMPLE / "LaMP_3", 3)
    assert task_folder(folder.parent, 4) is None


def test_the_other_split(folder):
    with pytest.raises(DataError, match="train_questions.json"):
        load(folder, 3, split="train")
    for path in folder.glob("*.json"):
        path.rename(folder / path.name.replace("dev", "train"))
    assert load(folder, 3, split="train") == load(SAMPLE / "LaMP_3", 3)


def test_questions_of_one_person_stay_together(folder):
    def same_user(rows):
        for row, user in zip(rows, (7, 8, 7), strict=True):
            row["user_id"] = user

    change(folder, "questions", same_user)
    assert [one.user for one in load(folder, 3)[1]] == ["7", "8", "7"]
    assert {len(load(folder, 3, limit=1, seed=seed)[1]) for seed in range(8)} == {1, 2}


def test_scores_may_be_numbers_and_blank_entries_tell_nothing(folder):
    def edit(rows):
        rows[0]["profile"][0]["score"] = 4
        rows[0]["profile"][1]["text"] = " "

    change(folder, "questions", edit)
    profile = load(folder, 3)[1][0].profile
    assert profile[0].text == "4" and len(profile) == 4


def test_news_categories_are_told_by_their_entries():
    news = task_of(2, {"id": "1", "category": "travel", "title": "T", "text": "A ferry."})
    assert news is BY_NAME["LaMP-2 (news)"] and "travel" in news.labels
    assert task_of(2, {"id": "1", "tag": "comedy", "description": "D"}) is BY_NAME["LaMP-2"]
    assert all(len(BY_NAME[name].labels) == 15 for name in ("LaMP-2", "LaMP-2 (news)"))


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("outputs", lambda c: c["golds"].pop(), "output with id"),
        ("outputs", lambda c: c.pop("golds"), "'golds' is missing"),
        ("outputs", lambda c: c.update(task="LaMP_4"), "expected outputs of LaMP_3"),
        ("outputs", lambda c: c["golds"][0].update(output="6"), "none of 1, 2"),
        ("outputs", lambda c: c["golds"][0].update(output=None), "expected text"),
        ("questions", lambda c: c.append("x"), "entry 3: expected an object, got 'x'"),
        ("outputs", lambda c: c.update(golds="x"), "expected a list, got 'x'"),
        ("questions", lambda c: c.clear(), "got none"),
        ("questions", lambda c: c[0].pop("id"), "'id' is missing"),
        ("questions", lambda c: c[0].update(input=" "), "got blanks"),
        ("questions", lambda c: c[0].update(input=["x"]), "expected text"),
        ("questions", lambda c: c[0].update(profile=[]), "list of entries"),
        ("questions", lambda c: [e.update(text=" ") for e in c[0]["profile"]], "only blank ones"),
        ("questions", lambda c: c[0].update(profile=["x"]), "expected an object"),
        ("questions", lambda c: c[0]["profile"][0].pop("score"), "entries with fields"),
        ("questions", lambda c: c[1]["profile"][2].update(text=3.5), "expected text"),
    ],
)
def test_damaged_files_are_refused_by_name(folder, part, edit, message):
    change(folder, part, edit)
    with pytest.raises(DataError, match=message) as error:
        load(folder, 3)
    assert str(folder) in str(error.value) and "anew" in str(error.value)


def test_other_files_are_refused(folder):
    with pytest.raises(DataError, match="unknown task 8"):
        task_of(8, {})
    with pytest.raises(DataError, match="expected outputs of LaMP_5"):
        load(SAMPLE / "LaMP_4", 5)
    (folder / "dev_outputs.json").write_text("{")
    with pytest.raises(DataError, match="dev_outputs.json: expected a JSON file"):
        load(folder, 3)


def test_emails_must_be_filled_in(tmp_path):
    folder = Path(shutil.copytree(SAMPLE / "LaMP_6", tmp_path / "LaMP_6"))
    change(folder, "questions", lambda rows: rows[0].update(input="147-000874-EM.txt"))
    with pytest.raises(DataError, match="Avocado"):
        load(folder, 6)


# --- prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_prompts_hold_the_question_and_the_history_but_not_what_is_right(number):
    task, questions = load(SAMPLE / f"LaMP_{number}", number)
    for question in questions:
        prompt = with_history(task, question.input, question.profile)
        parts = question.input.partition('", which')
        assert parts[0] in prompt and prompt.endswith(parts[2] or question.input)
        for item in question.profile:
            assert (item.prompt or item.text) in prompt
        assert with_history(task, question.input, ()) == question.input
        if not task.labels:
            assert question.target not in prompt
        own = own_text(task, question.input)
        assert own and question.input.endswith(own) and len(own) < len(question.input)
    assert own_text(task, "x") == "x"


def test_papers_stand_beside_the_title():
    task = BY_NAME["LaMP-1"]
    items = [HistoryItem("All of it.", "On {Braces}"), HistoryItem("More.", "On Tea")]
    question = 'the title "New", which reference is related? [1]: "A" [2]: "B"'
    assert with_history(task, question, items) == (
        'the title "New", and "On {Braces}", and "On Tea", which reference is related? '
        '[1]: "A" [2]: "B"'
    )
    with pytest.raises(DataError, match="expected a title"):
        with_history(task, "Which one?", items)


def arguments(items=3, tokens=500):
    return lamp.argparse.Namespace(items=items, prompt_tokens=tokens)


def test_as_many_entries_as_fit(llama):
    task = BY_NAME["LaMP-7"]
    items = tuple(HistoryItem(text) for text in ("tea " * 9, "rain", "buses and trains", "soup"))
    question = Question("1", "1", "Paraphrase the following tweet: a bus.", "x", items)

    def prompt(arm, number, tokens):
        return lamp.prompt_of(llama, task, question, arm, arguments(number, tokens))

    plain = prompt(lamp.UNSTEERED, 3, 500)
    assert plain == prompt(lamp.PROFILE, 3, 500) and "soup" not in plain
    first = prompt(lamp.FIRST, 3, 500)
    assert all(item.text in first for item in items[:3]) and "soup" not in first
    shorter = prompt(lamp.FIRST, 3, len(prompt_tokens(llama, first)) - 1)
    assert "rain" in shorter and "trains" not in shorter
    assert prompt(lamp.FIRST, 3, 1) == plain


def test_the_entries_most_like_the_question(llama, monkeypatch):
    places = {"bus": [1, 0], "trains": [0.9, 0.1], "soup": [0, 1], "cars": [0.8, 0.2]}

    def embed(texts):
        return np.array([next(v for k, v in places.items() if k in text) for text in texts])

    monkeypatch.setattr("steer.history.embed", embed)
    items = tuple(map(HistoryItem, ("soup", "cars", "trains")))
    question = Question("1", "1", "Paraphrase it, nothing before or after it: a bus.", "x", items)

    def prompt(tokens):
        settings = arguments(2, tokens)
        return lamp.prompt_of(llama, BY_NAME["LaMP-7"], question, lamp.SIMILAR, settings)

    both = prompt(500)
    assert "cars" in both and "trains" in both and "soup" not in both
    one = prompt(len(prompt_tokens(llama, both)) - 1)
    assert "trains" in one and "cars" not in one
    assert "trains" not in prompt(1)


# --- measures -----------------------------------------------------------------------------------


def plain_f1(targets, answers, labels):
    scores = []
    for label in labels:
        right = sum(t == a == label for t, a in zip(targets, answers, strict=True))
        total = targets.count(label) + answers.count(label)
        scores.append(2 * right / total if total else 0.0)
    return sum(scores) / len(scores)


def f_measure(common, target, answer):
    if not common:
        return 0.0
    precision, recall = common / len(answer), common / len(target)
    return 2 * precision * recall / (precision + recall)


def plain_rouge_1(target, answer):
    a, b = target.lower().split(), answer.lower().split()
    return f_measure(sum((Counter(a) & Counter(b)).values()), a, b)


def plain_rouge_l(target, answer):
    a, b = target.lower().split(), answer.lower().split()
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            around = max(longest[i][j + 1], longest[i + 1][j])
            longest[i + 1][j + 1] = longest[i][j] + 1 if x == y else around
    return f_measure(longest[-1][-1], a, b)


def test_measures_by_hand():
    targets, answers = ["1", "2", "5", "4"], ["3", "1", "5", "2"]
    assert measure("MAE", targets, answers) == pytest.approx(5 / 4)
    assert measure("RMSE", targets, answers) == pytest.approx(math.sqrt(9 / 4))
    assert measure("accuracy", targets, answers) == pytest.approx(1 / 4)
    labels = ("a", "b", "c", "never")
    f1 = measure("macro F1", list("aabbc"), list("abbbc"), labels)
    assert f1 == pytest.approx((2 / 3 + 4 / 5 + 1 + 0) / 4)


def test_macro_f1_against_a_plain_loop():
    rng = np.random.default_rng(0)
    labels = BY_NAME["LaMP-2"].labels
    for _ in range(20):
        targets, answers = ([labels[i] for i in rng.integers(0, 9, 30)] for _ in range(2))
        expected = plain_f1(targets, answers, labels)
        assert measure("macro F1", targets, answers, labels) == pytest.approx(expected)


def test_rouge_against_plain_loops():
    pytest.importorskip("rouge_score", reason="the `arena` extra is not installed")
    rng = np.random.default_rng(0)
    words = ["tea", "rain", "the", "running", "runs", "Bus"]
    pairs = [
        tuple(" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(2)) for _ in range(50)
    ]
    for metric, plain in (("ROUGE-1", plain_rouge_1), ("ROUGE-L", plain_rouge_l)):
        for target, answer in [*pairs, ("tea", "")]:
            expected = plain(target, answer)
            assert measure(metric, [target], [answer]) == pytest.approx(expected)
        mean = np.mean([plain(*pair) for pair in pairs])
        assert measure(metric, *zip(*pairs, strict=True)) == pytest.approx(mean)
    assert measure("ROUGE-L", ["the cat sat"], ["a cat sat down"]) == pytest.approx(4 / 7)


def test_intervals_are_over_people():
    targets = ["1", "2"] * 20
    answers = ["1"] * 40
    users = [str(i) for i in range(40)]
    low, high = measure_interval("accuracy", targets, answers, users)
    assert 0.3 < low < 0.5 < high < 0.7
    assert (low, high) == measure_interval("accuracy", targets, answers, users)
    # Twenty people who are asked two questions each get one of them right: nothing is unsure.
    users = [str(i // 2) for i in range(40)]
    assert measure_interval("accuracy", targets, answers, users) == (0.5, 0.5)


# --- answers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def pushes(number):
    rng = np.random.default_rng(number)
    return additive({LAYERS // 2: (8 * rng.standard_normal(WIDTH)).astype(np.float32)})


def plain_likelihood(model, ids, label, edit):
    """Of one label, from the log-softmax of a pass without a batch."""
    tokens = torch.tensor([ids + label])
    with torch.inference_mode(), attach(model).steer(edit, prompt_length=len(ids)):
        logits = model.model(input_ids=tokens, use_cache=False).logits[0].float()
    chosen = logits.log_softmax(-1)[len(ids) - 1 : -1]
    return float(np.mean([float(chosen[i, token]) for i, token in enumerate(label)]))


def test_labels_are_chosen_as_by_a_plain_loop(llama):
    task = BY_NAME["LaMP-2"]
    prompts = ["A ship.", "A long and winding road to a bakery.", "Tea?", "Rain in a court."]
    edits = [pushes(0), ZERO, ZERO, pushes(1)]
    labels = [list(response_tokens(llama, label)) for label in task.labels]
    plain = np.array(
        [
            [plain_likelihood(llama, prompt_tokens(llama, p), label, e) for label in labels]
            for p, e in zip(prompts, edits, strict=True)
        ]
    )
    found = [
        choice_log_likelihood(llama, prompt_tokens(llama, prompt), labels, [edit])[0]
        for prompt, edit in zip(prompts, edits, strict=True)
    ]
    np.testing.assert_allclose(found, plain, atol=1e-4)
    expected = [task.labels[i] for i in plain.argmax(1)]
    assert lamp.answer(llama, task, prompts, edits, 8) == expected
    assert expected != lamp.answer(llama, task, prompts, [ZERO] * 4, 8)


def test_written_answers_come_in_order(llama, monkeypatch):
    prompts = ["A longer one than the others.", "Tea?", "Why is it so?"]
    edits = [pushes(0), ZERO, pushes(1)]
    together = lamp.answer(llama, BY_NAME["LaMP-4"], prompts, edits, 6)
    alone = [lamp.written(llama, [p], [e], 6)[0] for p, e in zip(prompts, edits, strict=True)]
    assert together == alone and together != lamp.written(llama, prompts, [ZERO] * 3, 6)
    monkeypatch.setattr(lamp, "ROWS", 2)
    assert lamp.written(llama, prompts, edits, 6) == alone


# --- tables -------------------------------------------------------------------------------------


def run(*options: str | Path) -> str:
    command = [sys.executable, str(CHAMELEON / "lamp.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "lamp.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_not_there_is_not_run(tmp_path):
    out = run("--output", tmp_path)
    assert "Get the LaMP benchmark" in out and "LaMP_7" in out
    rows = rows_of(tmp_path)
    assert len(rows) == len(lamp.ARMS) * 13 and {row["task"] for row in rows} == {
        f"LaMP-{number}" for number in NUMBERS
    }
    for row in rows:
        assert {value for key, value in row.items() if key not in ("task", "arm", "metric")} == {
            "not run"
        }
    table = [line for line in (tmp_path / "lamp.md").read_text().splitlines() if "| LaMP-" in line]
    assert len(table) == 13 + 7
    assert all(line.endswith(" | not run" * 4 + " |") for line in table)
    content = json.loads((tmp_path / "lamp.json").read_text())
    assert content["model"] == "not run" and content["versions"]["torch"]


def call(monkeypatch, *options: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["lamp.py", *map(str, options)])
    lamp.main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lamp", "typo"), "expected the folder of the LaMP benchmark"),
        (("--users", "0"), "expected at least 1"),
        (("--task", "8"), "invalid choice"),
    ],
)
def test_options_that_make_no_sense_are_refused(monkeypatch, capsys, options, message):
    with pytest.raises(SystemExit):
        call(monkeypatch, *options)
    assert message in capsys.readouterr().err


def check(rows):
    """Rows of two people, by arm and metric."""
    for row in rows:
        low, value, high = (float(row[name]) for name in ("low", "value", "high"))
        assert 0 <= low <= value <= high
        assert high <= (4 if row["metric"] in ("MAE", "RMSE") else 1)
    costs = {row["arm"]: float(row["prompt_tokens"]) for row in rows}
    assert costs[lamp.PROFILE] == costs[lamp.UNSTEERED]
    assert costs[lamp.UNSTEERED] < min(costs[lamp.FIRST], costs[lamp.SIMILAR])


def test_the_table(llama, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("judging.DRAWS", 50)
    # The profile of the second person cannot be made.
    monkeypatch.setattr(lamp, "loaded", lambda arguments: llama)
    monkeypatch.setattr(lamp, "profile_edits", lambda *of: [pushes(0), ZERO])
    monkeypatch.setattr(lamp, "select", lambda items, number, *rule, query: items[-number:])
    (tmp_path / "lamp").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "lamp" / f"LaMP-{number}").symlink_to(SAMPLE / f"LaMP_{number}")
    options = ("--task", 1, 2, 3, 7, "--users", 2, "--prompt-tokens", 4096)
    call(monkeypatch, "--lamp", tmp_path / "lamp", *options, "--output", tmp_path / "out")
    assert "Not run: LaMP_7. Get the LaMP benchmark" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    for name in ("LaMP-1", "LaMP-2", "LaMP-3"):
        mine = [row for row in rows if row["task"] == name]
        assert {(row["arm"], row["metric"]) for row in mine} == {
            (arm, metric) for arm in lamp.ARMS for metric in BY_NAME[name].metrics
        }
        check(mine)
        assert all(row["questions"] == "2" for row in mine)
        assert {row["without_profile"] for row in mine if row["arm"] == lamp.PROFILE} == {"1"}
    assert {row["value"] for row in rows if row["task"] == "LaMP-7"} == {"not run"}
    text = (tmp_path / "out" / "lamp.md").read_text()
    assert "no profile: LaMP-1 1 of 2, LaMP-2 1 of 2, LaMP-3 1 of 2." in text
    lines = [
        line.split(" | ") for line in text.splitlines() if " (" in line and "is better" in line
    ]
    assert len(lines) == 5
    for task, metric, *cells in lines:
        mine = [row for row in rows if row["task"] == task[2:] and row["metric"] in metric]
        for row, cell in zip(mine, cells, strict=True):
            assert float(cell.split()[0]) == pytest.approx(float(row["value"]), abs=6e-4)
    content = json.loads((tmp_path / "out" / "lamp.json").read_text())
    assert content["model"] == "llama" and content["seed"] == 0 and len(content["cells"]) == 28
    assert str(tmp_path) not in json.dumps(content)


@pytest.mark.real
def test_a_person_in_all_ways(monkeypatch, tmp_path, capsys):
    pytest.importorskip("rouge_score", reason="the `arena` extra is not installed")
    options = ("--task", 7, "--users", 1, "--quick", "--dtype", "float32", "--output", tmp_path)
    call(monkeypatch, "--lamp", SAMPLE, *options)
    assert "Not run" not in capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * len(lamp.ARMS)
    assert all(row["without_profile"] == "0" for row in rows)
    check(rows)
