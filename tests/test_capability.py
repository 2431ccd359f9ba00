"""Capability under steering: scores and the harness's wrapper against plain loops; the tasks."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steer.bundle import Bundle
from steer.edits import ZERO, additive, two_step
from steer.errors import DataError, InputError
from steer.hooks import attach
from steer.likelihood import mean_log_likelihood
from steer.steerer import Steerer
from steer.trait_entry import TraitEntry
from steer.versions import versions
from tests import naive
from tests.models import BOS, FAMILIES, LAYERS, VOCABULARY, WIDTH, tiny

ARENA = Path(__file__).parents[1] / "experiments" / "arena"
sys.path.append(str(ARENA))
import capability  # noqa: E402
import capability_tasks as tasks  # noqa: E402
from scoring import score  # noqa: E402


def directions(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        layer: (scale * rng.standard_normal(WIDTH)).astype(np.float32) / np.sqrt(WIDTH)
        for layer in range(1, LAYERS)
    }


EDIT = additive(directions(1, 4.0)) + two_step(
    directions(2), directions(3), alpha=2.0, sign_safe=True
)


def make_pairs():
    """Contexts of several lengths, three of which have several continuations."""
    rng = np.random.default_rng(0)

    def tokens(length):
        return rng.integers(4, VOCABULARY, length).tolist()

    long, short, one = tokens(17), tokens(4), tokens(1)
    pairs = [(long, tokens(n)) for n in (1, 6, 3)]
    pairs += [(tokens(5), tokens(2)), (one, tokens(9)), (one, tokens(1)), (tokens(30), tokens(1))]
    return [*pairs, (short, tokens(4)), (long, tokens(2)), (short, tokens(12))]


PAIRS = make_pairs()


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def plainly(language_model, context, continuation, edit=ZERO, first=None):
    """Log-probabilities (R,) and whether each is the largest; one row, naive hooks, no cache."""
    first = len(context) - 1 if first is None else first

    logits = naive.logits_of(language_model, [*context, *continuation], edit, first).double()
    values, largest = [], []
    for position, token in enumerate(continuation, start=len(context) - 1):
        row = logits[position]
        values.append(float(row[token]) - math.log(float(row.exp().sum())))
        largest.append(int(row.argmax()) == token)
    return values, largest


def greedy_pair(language_model, edit, context, length):
    """A continuation that greedy decoding writes."""
    with attach(language_model).steer(edit):
        ids = language_model.model.generate(
            torch.tensor([context]), max_new_tokens=length, do_sample=False
        )
    return context, ids[0, len(context) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_each_pair_alone(family):
    model = tiny(family)
    for edit in (ZERO, EDIT):
        found = score(model, PAIRS, edit, batch_tokens=120)
        for one, (context, continuation) in zip(found, PAIRS, strict=True):
            values, largest = plainly(model, context, continuation, edit)
            np.testing.assert_allclose(one.log_probs, values, atol=2e-4)
            assert one.greedy.tolist() == largest


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batches_change_nothing(llama, batch_tokens):
    found = score(llama, PAIRS, EDIT, batch_tokens=batch_tokens)
    for one, pair in zip(found, PAIRS, strict=True):
        alone = score(llama, [pair], EDIT)[0]
        np.testing.assert_allclose(one.log_probs, alone.log_probs, atol=1e-5)


def test_unsteered_scores_agree_with_the_library(llama):
    means = [one.log_probs.mean() for one in score(llama, PAIRS)]
    np.testing.assert_allclose(means, mean_log_likelihood(llama, PAIRS), atol=1e-5)


def test_scope_and_skip(llama):
    for options, first in (
        ({"scope": "all"}, lambda c: 0),
        ({"skip": 1}, len),
        ({"skip": 2}, None),
    ):
        found = score(llama, PAIRS, EDIT, **options)
        for one, (context, continuation) in zip(found, PAIRS, strict=True):
            start = len(context) + 1 if first is None else first(context)
            values, _ = plainly(llama, context, continuation, EDIT, start)
            np.testing.assert_allclose(one.log_probs, values, atol=2e-4)


def test_what_greedy_decoding_writes_is_greedy(llama):
    for edit in (ZERO, EDIT):
        context, continuation = greedy_pair(llama, edit, PAIRS[0][0], 6)
        other = [*continuation[:-1], (continuation[-1] + 1) % VOCABULARY]
        yes, no = score(llama, [(context, continuation), (context, other)], edit)
        assert yes.greedy.all()
        assert no.greedy.tolist() == [True] * 5 + [False]


def test_no_tokens_are_refused(llama):
    for pair in (([], [5]), ([5], [])):
        with pytest.raises(InputError, match="pair 1: expected a context"):
            score(llama, [PAIRS[0], pair])


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="the `arena` extra is not installed")
    import steered_lm

    return steered_lm


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


TEXTS = [("What is it?", " A hat"), ("What is it?", " An old cat, I think."), ("", "So be it")]


def test_loglikelihood(harness, llama):
    for edit in (None, EDIT):
        lm = harness.SteeredLM(llama, edit)
        found = lm.loglikelihood(requests(*TEXTS))
        for (context, continuation), (total, greedy) in zip(TEXTS, found, strict=True):
            read = lm.tok_encode(context) or [BOS]
            values, largest = plainly(llama, read, lm.tok_encode(continuation), edit or ZERO)
            assert total == pytest.approx(sum(values), abs=1e-3)
            assert greedy is all(largest)


def test_is_greedy(harness, llama):
    lm = harness.SteeredLM(llama, EDIT)
    context, continuation = greedy_pair(llama, EDIT, lm.tok_encode("What is it?"), 5)
    text = llama.tokenizer.decode(continuation)
    assert lm.tok_encode(text) == continuation, "the text must not hold special tokens"
    assert lm.loglikelihood(requests(("What is it?", text)))[0][1] is True
    assert harness.SteeredLM(llama).loglikelihood(requests(("What is it?", text)))[0][1] is False


def test_a_context_that_is_too_long_keeps_its_end(harness, llama):
    lm = harness.SteeredLM(llama, EDIT, max_length=12)
    ((total, _),) = lm.loglikelihood(requests(("word " * 9 + "last", " end")))
    ((same, _),) = lm.loglikelihood(requests(("ord last", " end")))
    tokens = lm.tok_encode("word last")
    values, _ = plainly(llama, tokens, lm.tok_encode(" end"), EDIT)
    assert total == pytest.approx(sum(values), abs=1e-3)
    assert total != pytest.approx(same, abs=1e-3)


@pytest.mark.parametrize(
    "text", ["a", "A short text.", "A text that is longer than a window. " * 2]
)
def test_rolling_likelihood(harness, llama, text):
    lm = harness.SteeredLM(llama, EDIT, max_length=20)
    found = lm.loglikelihood_rolling(requests((text,), ("Another",)))
    tokens = [BOS, *lm.tok_encode(text)]
    expected, counted = 0.0, 0
    while counted < len(tokens) - 1:
        end = min(counted + 20, len(tokens) - 1)
        # The last window is as long as the others, of which it repeats the end.
        start = max(0, end - 20)
        values, _ = plainly(llama, tokens[start : start + 1], tokens[start + 1 : end + 1], EDIT, 1)
        expected += sum(values[counted - end :])
        counted = end
    assert found[0] == pytest.approx(expected, abs=2e-3)
    unsteered = harness.SteeredLM(llama).loglikelihood_rolling(requests(("A short text.",)))
    read = lm.tok_encode("A short text.")
    assert unsteered[0] == pytest.approx(sum(plainly(llama, [BOS], read)[0]), abs=1e-3)


def test_generate_until(harness, llama):
    lm = harness.SteeredLM(llama, EDIT, batch_rows=2)
    greedy = {"until": [], "max_gen_toks": 7, "do_sample": False, "temperature": 0.0}
    prompts = ["What is it?", "Why?", "Tell me of the old days."]
    found = lm.generate_until(requests(*((prompt, greedy) for prompt in prompts)))
    for prompt, answer in zip(prompts, found, strict=True):
        _, ids = greedy_pair(llama, EDIT, lm.tok_encode(prompt), 7)
        assert answer == llama.tokenizer.decode(ids, skip_special_tokens=True).strip()
    stop = found[0][3]
    (short,) = lm.generate_until(requests((prompts[0], {**greedy, "until": stop})))
    assert short == found[0].partition(stop)[0]
    with pytest.raises(InputError, match="unknown option 'best_of'"):
        lm.generate_until(requests((prompts[0], {**greedy, "best_of": 2})))


def a_bundle(model):
    entries = {
        name: TraitEntry(name, "", "", "", edit, 0.1, "mean-difference", 0.5, {}, {}, {})
        for name, edit in (("brevity", EDIT), ("warmth", -EDIT))
    }
    return Bundle("tiny", model.fingerprint, "response", entries, {}, versions())


def test_as_it_is_served(harness, llama):
    steerer = Steerer(llama, a_bundle(llama))
    lm = harness.SteeredLM.serving(steerer, {"brevity": 3.0}, strength=0.5, compose=True)
    assert lm.edit.digest == (0.5 * EDIT).digest
    assert lm.scope == "response"
    assert harness.SteeredLM.serving(steerer, None).edit is ZERO
    chat = lm.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert chat == "<s>[user] Hello [assistant] "


QUESTION = {
    "instruction": "Please choose the correct answer to the question: Which?\n\nAnswer1: a bat "
    "Answer2: the Answer3 Answer3: no hat\n\nAnswer format: answer1/answer2/answer3",
    "input": "",
    "output": "the correct answer is answer3",
    "answer": "answer3",
}
SOLUTION = {
    "instruction": "Please choose the correct solution to the question: How to\nbegin: now?\n\n"
    "Solution1: start: first\n\nsecond \n\nSolution2: wait\n\nAnswer format: solution1/solution2",
    "input": "",
    "output": "the correct answer is solution1",
    "answer": "solution1",
}


def test_questions():
    first, second = tasks.questions(json.dumps([QUESTION, SOLUTION]))
    assert first == {"question": "Which?", "choices": ["a bat", "the Answer3", "no hat"], "gold": 2}
    assert second["question"] == "How to\nbegin: now?"
    assert second["choices"] == ["start: first\n\nsecond", "wait"] and second["gold"] == 0


@pytest.mark.parametrize(
    ("old", "new"), [("Answer2: ", ""), ("Please", "Do"), ("answer3", "answer4"), ("no hat", "")]
)
def test_other_questions_are_refused(old, new):
    broken = {key: value.replace(old, new, 1) for key, value in QUESTION.items()}
    with pytest.raises(DataError):
        tasks.questions(json.dumps([broken]))


def test_last_words():
    (one,) = tasks.last_words(json.dumps({"text": 'He asked.\n\n"Who are you, Shane'}) + "\n")
    assert one == {"context": 'He asked.\n\n"Who are you,', "word": " Shane"}


def test_articles():
    text = (
        " \n = First ( a title ) = \n \n It weighs 3 @.@ 5 kg ( 8 lb ) , or so . \n"
        " \n = = Part = = \n \n The red @-@ tipped \" tail \" isn 't long ; it 's $ 3 . \n"
        f" \n = Second = \n \n {'word ' * 400}\n"
    )
    first, second = tasks.articles(text)
    assert first["text"] == (
        'It weighs 3.5 kg (8 lb), or so.\n\n= = Part = =\n\nThe red-tipped "tail" isn\'t long; '
        "it's $3."
    )
    assert first["words"] == 35
    assert second == {"text": " ".join(["word"] * 300), "words": 300}


def test_lengths():
    prompts = [
        (["length_constraints:number_words"], [{"relation": "less than", "num_words": 5}]),
        (["length_constraints:number_words", "punctuation:no_comma"], [{"num_words": 5}, {}]),
        (["length_constraints:number_paragraphs"], [{"num_paragraphs": 2}]),
    ]
    lines = [
        json.dumps({"prompt": "Write.", "instruction_id_list": kinds, "kwargs": given})
        for kinds, given in prompts
    ]
    found = tasks.lengths("\n".join(lines))
    assert [one["wanted"] for one in found] == [
        [{"kind": "num_words", "number": 5, "relation": "less than"}],
        [{"kind": "num_paragraphs", "number": 2, "relation": "exactly"}],
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "relation", "number", "right"),
    [
        ("one two three", "num_words", "less than", 4, True),
        ("one two-three four", "num_words", "less than", 4, False),
        ("one two-three four", "num_words", "at least", 4, True),
        ("", "num_words", "less than", 4, False),
        (" \n", "num_sentences", "less than", 4, False),
        ("It is 3.5 kg. Is it? Yes!", "num_sentences", "at least", 3, True),
        ("It is 3.5 kg. Is it? Yes!", "num_sentences", "less than", 3, False),
        ('"Go." He went... and came.', "num_sentences", "at least", 4, False),
        ("1. Sit.\n2. Stand", "num_sentences", "less than", 3, True),
        ("one\n***\ntwo", "num_paragraphs", "exactly", 2, True),
        ("***\none\n\n***\ntwo\n***\n", "num_paragraphs", "exactly", 2, True),
        ("one\n***\n***\ntwo", "num_paragraphs", "exactly", 2, False),
        ("one\n\ntwo", "num_paragraphs", "exactly", 2, False),
        ("***", "num_paragraphs", "exactly", 1, False),
    ],
)
def test_follows(answer, kind, relation, number, right):
    assert tasks.follows(answer, [{"kind": kind, "relation": relation, "number": number}]) is right


def test_every_instruction_must_be_followed():
    wanted = [
        {"kind": "num_words", "relation": "at least", "number": 2},
        {"kind": "num_words", "relation": "less than", "number": 4},
    ]
    assert [tasks.follows("word " * n, wanted) for n in (1, 2, 3, 4)] == [False, True, True, False]


def test_a_sample_is_the_same_for_a_seed(tmp_path):
    task = next(task for task in tasks.TASKS if task.name == "lambada")
    (tmp_path / "lambada").mkdir()
    lines = [json.dumps({"text": f"so many words {i}"}) for i in range(50)]
    (tmp_path / task.path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    some = task.documents(tmp_path, 10, 3)
    assert len(some) == 10 and some == task.documents(tmp_path, 10, 3)
    assert some != task.documents(tmp_path, 10, 4)
    assert [int(one["word"]) for one in task.documents(tmp_path, None, 3)] == list(range(50))


def test_compare():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 400).astype(float)
    after = before.copy()
    after[:40] = 0.0
    lost = 100 * (before - after).mean()
    likelihoods = np.full(20, -300.0)
    texts = {"words": np.full(20, 100.0), "tokens": np.full(20, 150.0)}

    def measured(right, log_likelihood):
        return {
            "lambada": capability.Measured({"acc": right}, 1.0),
            "piqa in a chat": capability.Measured({"acc_norm": right[::-1], "acc": right}, 1.0),
            "ifeval": capability.Measured({"follows": np.ones(5)}, 1.0),
            "wikitext2": capability.Measured({"log_likelihood": log_likelihood, **texts}, 1.0),
        }

    base = measured(before, likelihoods)
    rows = capability.compare("warmth", 1.0, base, measured(after, likelihoods - 5), 0)
    table = {(row.task, row.metric): row for row in rows}
    row = table["lambada", "acc"]
    assert row.change == pytest.approx(-lost) and row.low < -lost < row.high < 0
    # Paired: half of the items that changed, not the noise of either model alone.
    assert row.high - row.low < 6
    assert table["mean in plain text", "accuracy"].change == pytest.approx(-lost)
    chat = table["mean in a chat without ifeval", "accuracy"]
    assert chat.change == pytest.approx(-lost) and chat.items == 400
    every = table["mean", "accuracy"]
    assert every.change == pytest.approx(-2 * lost / 3) and every.items == 805
    # Two independent tasks of one width, and one that nothing changes in.
    assert every.high - every.low == pytest.approx(2**0.5 * (row.high - row.low) / 3, rel=0.1)
    words = table["wikitext2", "perplexity per word"]
    assert words.unsteered == pytest.approx(math.exp(3))
    assert words.change == pytest.approx(math.exp(0.05))
    assert (words.low, words.high) == pytest.approx((words.change, words.change))
    tokens = table["wikitext2", "perplexity per token"]
    assert tokens.change == pytest.approx(math.exp(5 / 150))
    same = capability.compare("warmth", 1.0, base, base, 0)
    assert all(row.change == row.low == row.high for row in same)


def write_data(folder):
    """Three items of each task."""
    for path, text in {
        **{
            f"commonsense_mc/{name}_test.json": json.dumps([QUESTION, SOLUTION, QUESTION])
            for name in ("ARC-Easy", "piqa", "openbookqa")
        },
        "lambada/lambada_test.jsonl": '{"text": "I saw the cat and fed the cat"}\n' * 3,
        "wikitext2/valid.txt": " = A title = \n\n Some words , and more . \n" * 3,
        "ifeval/input_data.jsonl": json.dumps(
            {
                "prompt": "Be brief.",
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"relation": "less than", "num_words": 2000}],
            }
        ),
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def test_the_harness_asks_every_task(harness, llama, tmp_path):
    write_data(tmp_path)
    for task in tasks.TASKS:
        task = tasks.short(task)  # the tiny model never ends an answer
        documents = task.documents(tmp_path, None, 0)
        found = capability.measure(llama, EDIT, "response", task, documents, tmp_path / "work")
        lm = harness.SteeredLM(llama, EDIT)
        if task.name == "piqa":
            right = []
            for one in documents:
                context = f"Question: {one['question']}\nAnswer:"
                totals = lm.loglikelihood(requests(*((context, f" {c}") for c in one["choices"])))
                sizes = [len(choice) for choice in one["choices"]]
                norms = [total / size for (total, _), size in zip(totals, sizes, strict=True)]
                right.append(float(np.argmax(norms) == one["gold"]))
            assert found.items["acc_norm"].tolist() == right
        if task.name == "wikitext2":
            expected = lm.loglikelihood_rolling(requests(("Some words, and more.",)))
            np.testing.assert_allclose(found.items["log_likelihood"], expected * 3, atol=1e-4)
            assert found.items["words"].tolist() == [6.0] * 3
            assert found.items["tokens"].tolist() == [21.0] * 3
        if task.name == "ifeval":
            assert found.items["follows"].tolist() == [1.0]


def test_what_the_harness_asks(harness, llama, tmp_path, monkeypatch):
    write_data(tmp_path)
    asked = []

    def record(self, requests, disable_tqdm=True):
        asked.extend(request.args for request in requests)
        return [(0.0, False)] * len(requests)

    monkeypatch.setattr(harness.SteeredLM, "loglikelihood", record)
    for task in tasks.TASKS:
        if task.settings["output_type"] in ("multiple_choice", "loglikelihood"):
            harness.ask(harness.SteeredLM(llama), task, task.documents(tmp_path, 1, 2))
    choices = [" a bat", " the Answer3", " no hat"]
    assert asked == [
        *(("Question: Which?\nAnswer:", choice) for choice in choices),
        *(("Question: Which?\nAnswer:", choice) for choice in choices),
        *(("Which?", choice) for choice in choices),
        *(("<s>[user] Which? [assistant] ", choice.strip()) for choice in choices * 3),
        ("I saw the cat and fed the", " cat"),
    ]


def test_the_whole_script(harness, tmp_path, monkeypatch, capsys):
    model = tiny("llama")
    monkeypatch.setattr(capability, "loaded", lambda _: model)
    monkeypatch.setattr(capability, "steerer_of", lambda *_: Steerer(model, a_bundle(model)))
    monkeypatch.setattr(capability, "TASKS", tuple(map(tasks.short, tasks.TASKS)))
    write_data(tmp_path)
    command = ["capability.py", "--data", tmp_path, "--strengths", 2, "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--work-dir", str(tmp_path / "work")])
    capability.main()
    text = capsys.readouterr().out
    written = {path.suffix: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written[".md"].decode() == text[:-1]
    assert len([line for line in text.splitlines() if line.startswith("| warmth |")]) == 3
    assert "- wikitext2, perplexity per word, at most 1.05: " in text
    assert len(list((tmp_path / "work" / "bfloat16").glob("*.jsonl"))) == 5 * len(tasks.TASKS)
    content = json.loads(written[".json"])
    assert content["doses, nats per token"] == {"brevity": 0.1, "warmth": 0.1}
    assert content["seed"] == 0 and content["versions"]["lm_eval"]
    # Two traits at two strengths: 14 metrics of accuracy, two perplexities, three means.
    assert len(content["rows"]) == 4 * 19 == len(written[".csv"].splitlines()) - 1
    assert written[".png"].startswith(b"\x89PNG")


def test_what_was_measured_is_not_measured_again(harness, tmp_path, monkeypatch):
    llama = tiny("llama")
    write_data(tmp_path)
    task = tasks.TASKS[0]
    documents = task.documents(tmp_path, None, 0)
    first = capability.measure(llama, EDIT, "response", task, documents, tmp_path / "work")
    monkeypatch.setattr(harness, "ask", None)
    again = capability.measure(llama, EDIT, "response", task, documents, tmp_path / "work")
    assert first.seconds == again.seconds
    assert all((first.items[key] == again.items[key]).all() for key in task.metrics)
    for other in (2 * EDIT, ZERO):
        with pytest.raises(TypeError):
            capability.measure(llama, other, "response", task, documents, tmp_path / "work")


def test_it_says_what_data_are_missing(tmp_path, monkeypatch, capsys):
    write_data(tmp_path)
    (tmp_path / "lambada" / "lambada_test.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", ["capability.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        capability.read_arguments()
    assert "has no lambada/lambada_test.jsonl\n" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--tasks", "piqa", "--strengths", "2", "0.5"])
    assert capability.read_arguments().strengths == [0.5, 1.0, 2.0]
