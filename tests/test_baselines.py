"""`steer.baselines`: what each method writes, against its formula in a plain loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from steer.baselines import (
    METHODS,
    BestOfN,
    FewShot,
    LogitRectification,
    MultiObjective,
    Request,
    RetrievedHistory,
    RewardGuided,
    SystemPrompt,
    named,
)
from steer.baselines.combined import CombinedLogits, View, merged
from steer.baselines.prompting import after_turns, said
from steer.chat import render
from steer.contrast import instructed
from steer.errors import InputError, WeightsError
from steer.generation import Decoding, end_tokens, generate_batch, prompt_tokens
from steer.history import HistoryItem
from steer.measures import is_coherent
from steer.questions import Answered
from steer.rewards import FunctionReward
from steer.traits import Trait, load_traits
from tests.models import tiny
from tests.test_steerer import PROMPTS, a_steerer

SHORT = Decoding(max_new_tokens=12, repetition_penalty=1.0, no_repeat_ngram_size=None)
BOTH = {"brevity": 3.0, "warmth": 1.0}
ROWS = [BOTH, None, {"warmth": 1.0}]
NEVER = 10_000  # a token that ends no answer, since there is none
ZEST = Trait("zest", ["Be lively.", "Sparkle."], ["Be dull.", "Drone on."])


@pytest.fixture(scope="module")
def steerer():
    return a_steerer()


def texts(answers):
    return [answer.text for answer in answers]


def logits_after(language_model, text, answer):
    ids = torch.tensor([prompt_tokens(language_model, text) + answer])
    with torch.no_grad():
        return language_model.model(input_ids=ids, use_cache=False).logits[0, -1]


def plainly(language_model, score, steps, penalty=1.0):
    """One greedy answer by scores of what was written, without a batch and without a cache."""
    answer = []
    for _ in range(steps):
        scores = score(answer).clone()
        for token in set(answer):
            scores[token] *= penalty if scores[token] < 0 else 1 / penalty
        answer.append(int(scores.argmax()))
        if answer[-1] in end_tokens(language_model):
            break
    return answer


def under(language_model, prompt, name, pole="positive"):
    instruction = getattr(load_traits()[name], pole).instructions[0]
    return render(language_model.tokenizer, instructed(prompt, instruction))


def rectified(language_model, prompt, shares, alpha):
    """s = base + alpha sum_i w_i (log p_i+ - log p_i-)."""

    def score(answer):
        total = logits_after(language_model, render(language_model.tokenizer, prompt), answer)
        for name, share in shares.items():
            for pole, sign in (("positive", 1), ("negative", -1)):
                text = under(language_model, prompt, name, pole)
                part = logits_after(language_model, text, answer).log_softmax(-1)
                total = total + sign * alpha * share * part
        return total

    return score


def test_logit_rectification_is_a_plain_loop(steerer):
    for penalty, strength in ((1.0, 1.0), (1.3, 0.5)):
        decoding = replace(SHORT, repetition_penalty=penalty)
        method = LogitRectification(alpha=1.5)
        found = steerer.answer(PROMPTS, ROWS, strength=strength, method=method, decoding=decoding)
        for prompt, row, answer in zip(PROMPTS, ROWS, found, strict=True):
            shares = {} if row is None else {k: v / sum(row.values()) for k, v in row.items()}
            score = rectified(steerer.language_model, prompt, shares, 1.5 * strength)
            assert list(answer.tokens) == plainly(steerer.language_model, score, 12, penalty)


def test_rows_that_end_leave():
    """At different steps, over more than one segment."""
    steerer = a_steerer()
    model = steerer.language_model
    decoding = Decoding(max_new_tokens=70, repetition_penalty=1.2, no_repeat_ngram_size=None)
    method = LogitRectification(alpha=2.0)
    model.model.generation_config.eos_token_id = NEVER
    free = steerer.answer(PROMPTS, ROWS, method=method, decoding=decoding)
    end = next(t for t in free[0].tokens[:20] if t not in free[2].tokens[:40])
    model.model.generation_config.eos_token_id = end
    found = steerer.answer(PROMPTS, ROWS, method=method, decoding=decoding)
    assert found[0].ended and len(found[0].tokens) < 32 < len(found[2].tokens)
    shares = [{"brevity": 0.75, "warmth": 0.25}, {}, {"warmth": 1.0}]
    for prompt, row, answer in zip(PROMPTS, shares, found, strict=True):
        score = rectified(model, prompt, row, 2.0)
        assert list(answer.tokens) == plainly(model, score, 70, 1.2)


def test_a_row_leaves_beside_views_of_another_number():
    """The views of one row alone are read between the tokens of all."""
    steerer = a_steerer()
    model = steerer.language_model
    decoding = Decoding(max_new_tokens=70, repetition_penalty=1.2, no_repeat_ngram_size=None)
    rows = [None, None, {"warmth": 1.0}]
    model.model.generation_config.eos_token_id = NEVER
    free = steerer.answer(PROMPTS, rows, method=LogitRectification(), decoding=decoding)
    end = next(t for t in free[0].tokens[:20] if t not in free[1].tokens[:40] + free[2].tokens[:40])
    model.model.generation_config.eos_token_id = end
    found = steerer.answer(PROMPTS, rows, method=LogitRectification(), decoding=decoding)
    assert found[0].ended and len(found[0].tokens) < 32 < len(found[2].tokens)
    for one, whole in zip(found, free, strict=True):
        assert one.tokens == whole.tokens[: len(one.tokens)]


def test_rows_go_on_after_the_last_one_that_has_views():
    steerer = a_steerer()
    model = steerer.language_model
    decoding = Decoding(max_new_tokens=70, repetition_penalty=1.2, no_repeat_ngram_size=None)
    method, rows = LogitRectification(), [{"warmth": 1.0}, None, None]
    model.model.generation_config.eos_token_id = NEVER
    free = steerer.answer(PROMPTS, rows, method=method, decoding=decoding)
    others = {token for answer in free[1:] for token in answer.tokens}
    end = next(token for token in free[0].tokens[:30] if token not in others)
    model.model.generation_config.eos_token_id = end
    found = steerer.answer(PROMPTS, rows, method=method, decoding=decoding)
    assert found[0].ended and found[0].tokens == free[0].tokens[: len(found[0].tokens)]
    assert found[1:] == free[1:]


def test_a_batch_is_sampled_after_one_that_a_row_left():
    """Three rows of four are left then, and eight are sampled."""
    steerer = a_steerer()
    model = steerer.language_model
    plain = [*PROMPTS, "Will it rain?"]
    decoding = Decoding(max_new_tokens=70, repetition_penalty=1.2, no_repeat_ngram_size=None)
    model.model.generation_config.eos_token_id = NEVER
    free = steerer.answer(plain, None, decoding=decoding)
    others = {token for answer in free[1:] for token in answer.tokens}
    end = next(token for token in free[0].tokens[:30] if token not in others)
    model.model.generation_config.eos_token_id = end
    alone = steerer.answer(plain, None, decoding=decoding)
    assert [answer.ended for answer in alone] == [True, False, False, False]
    method = BestOfN(n=8, rewards=REWARDS)
    rows = [*[None] * len(plain), {"warmth": 1.0}]
    found = steerer.answer([*plain, "Why?"], rows, method=method, decoding=decoding, seed=1)
    assert found[:-1] == alone


def test_other_models_are_expert_and_anti(steerer):
    expert, anti = tiny("llama", seed=1), tiny("gpt2", seed=2)
    method = LogitRectification(alpha=0.5, expert=expert, anti=anti)
    found = steerer.answer(PROMPTS, BOTH, method=method, decoding=SHORT)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        text = render(steerer.language_model.tokenizer, prompt)

        def score(written, text=text):
            more = logits_after(expert, text, written).log_softmax(-1)
            less = logits_after(anti, text, written).log_softmax(-1)
            return logits_after(steerer.language_model, text, written) + 0.5 * (more - less)

        assert list(answer.tokens) == plainly(steerer.language_model, score, 12)


def test_models_of_other_tokens_are_refused(steerer):
    other = tiny("llama", vocab_size=120)
    with pytest.raises(InputError, match="97 tokens, got 120"):
        steerer.answer(PROMPTS, BOTH, method=LogitRectification(expert=other), decoding=SHORT)


def product(language_model, prompt, shares, strength, models=None):
    """Log p_base^(1 - s) prod_i p_i^(s w_i)."""

    def score(answer):
        plain = render(language_model.tokenizer, prompt)
        total = (1 - strength) * logits_after(language_model, plain, answer).log_softmax(-1)
        for name, share in shares.items():
            model = (models or {}).get(name)
            text = plain if model else under(language_model, prompt, name)
            part = logits_after(model or language_model, text, answer).log_softmax(-1)
            total = total + strength * share * part
        return total

    return score


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_many_objectives_are_a_product(steerer, strength):
    for models in ({}, {"warmth": tiny("llama", seed=5)}):
        method = MultiObjective(policies=models)
        found = steerer.answer(PROMPTS, BOTH, strength=strength, method=method, decoding=SHORT)
        for prompt, answer in zip(PROMPTS, found, strict=True):
            shares = {"brevity": 0.75, "warmth": 0.25}
            score = product(steerer.language_model, prompt, shares, strength, models)
            assert list(answer.tokens) == plainly(steerer.language_model, score, 12)


def test_one_objective_is_its_prompt(steerer):
    one = {"warmth": 1.0}
    by_logits = steerer.answer(PROMPTS, one, method="multi-objective", decoding=Decoding(40))
    asked = steerer.answer(PROMPTS, one, method=SystemPrompt(), decoding=Decoding(40))
    assert by_logits == asked


def test_nothing_is_left_to_the_model(steerer):
    method = MultiObjective(policies={"warmth": tiny("llama", seed=5)})
    with pytest.raises(InputError, match="no policy is left"):
        steerer.answer(PROMPTS, {"warmth": 1}, method=method, decoding=SHORT)
    with pytest.raises(InputError, match="at most 1, got 2"):
        steerer.answer(PROMPTS, {"warmth": 1}, strength=2, method=MultiObjective(), decoding=SHORT)


def test_views_of_one_text_add_up_and_cancel():
    model = tiny("llama")
    views = [View(0, "a", 0.5, model), View(0, "a", 0.25, model), View(1, "a", 1.0, model)]
    views += [View(0, "b", 0.3, model), View(0, "b", -0.3, model)]
    assert [(one.row, one.text, one.coefficient) for one in merged(views)] == [
        (0, "a", 0.75),
        (1, "a", 1.0),
    ]
    with pytest.raises(InputError, match="above 0"):
        CombinedLogits([1.0, 0.0], views)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"few-shot"}))
def test_without_weights_nothing_changes(steerer, name):
    decoding = Decoding(max_new_tokens=40)
    rendered = [render(steerer.language_model.tokenizer, prompt) for prompt in PROMPTS]
    plain = generate_batch(steerer.language_model, rendered, decoding)
    assert (
        steerer.answer(PROMPTS, [BOTH, None, None], method=name, decoding=decoding)[1:] == plain[1:]
    )
    assert steerer.answer(PROMPTS, BOTH, strength=0, method=name, decoding=decoding) == plain


@pytest.mark.parametrize("method", [LogitRectification(), MultiObjective(), BestOfN(n=3)])
def test_sampling_is_seeded(steerer, method):
    decoding = Decoding(max_new_tokens=16, do_sample=True)
    first, same, other = (
        steerer.answer(PROMPTS, BOTH, method=method, decoding=decoding, seed=seed)
        for seed in (3, 3, 4)
    )
    assert first == same and first != other


def test_a_row_is_what_it_is_alone(steerer):
    together = steerer.answer(PROMPTS, ROWS, method="logit-rectification", decoding=SHORT)
    for prompt, row, answer in zip(PROMPTS, ROWS, together, strict=True):
        method = None if row is None else "logit-rectification"
        alone = steerer.answer([prompt], row, method=method, decoding=SHORT)
        assert alone == [answer]


def test_a_system_prompt_says_the_heaviest_first(steerer):
    catalogue = load_traits()
    brief, warm = (catalogue[name].positive.instructions for name in ("brevity", "warmth"))
    bundle = steerer.bundle
    text = SystemPrompt(instruction=1).text(bundle, {"brevity": 0.4, "warmth": 0.6})
    assert text == f"{warm[1]} {brief[1]}"
    # Of two traits less than a quarter is little.
    assert SystemPrompt().text(bundle, {"brevity": 0.2, "warmth": 0.8}) == warm[0]
    words = SystemPrompt(wording="summary")
    assert words.text(bundle, {"brevity": 1.0}) == "I like answers that are more."
    for place in ("system", "user"):
        method = SystemPrompt(place=place)
        chat = said(method.text(bundle, {"warmth": 1.0}), PROMPTS[0], place)
        found = steerer.answer(PROMPTS[:1], {"warmth": 2}, method=method, decoding=SHORT)
        asked = [render(steerer.language_model.tokenizer, chat)]
        assert found == generate_batch(steerer.language_model, asked, SHORT)


def test_a_chat_keeps_its_system_message():
    system, user = {"role": "system", "content": "A"}, {"role": "user", "content": "B"}
    assert said("C", [system, user], "system") == [{"role": "system", "content": "A\n\nC"}, user]
    assert said("C", [user], "system") == [{"role": "system", "content": "C"}, user]
    assert said("C", [system, user], "user") == [system, {"role": "user", "content": "B\n\nC"}]
    turns = after_turns([("q", "a")], [system, user])
    assert [one["content"] for one in turns] == ["A", "q", "a", "B"]
    assert [one["role"] for one in turns] == ["system", "user", "assistant", "user"]
    with pytest.raises(InputError, match="ends with the user's message"):
        said("C", [user, {"role": "assistant", "content": "D"}], "user")


def test_a_trait_of_ones_own_needs_instructions(steerer):
    weights = {"zest": 1.0}
    for method in (SystemPrompt, LogitRectification, MultiObjective):
        with pytest.raises(InputError, match="'zest' is not a built-in"):
            steerer.answer(PROMPTS, weights, method=method(), decoding=SHORT)
        steerer.answer(PROMPTS, weights, method=method(traits=(ZEST,)), decoding=SHORT)
    assert SystemPrompt(traits=[ZEST]).text(steerer.bundle, {"zest": 1.0}) == "Be lively."


def with_answers(steerer):
    """A steerer whose portfolio keeps answers to three prompts."""
    rng = np.random.default_rng(0)
    kept = tuple(
        Answered(f"prompt {i}", tuple(f"answer {i}{j}" for j in range(3)), rng.random((3, 2)))
        for i in range(3)
    )
    portfolio = replace(steerer.bundle.portfolio, answered=kept)
    return type(steerer)(steerer.language_model, replace(steerer.bundle, portfolio=portfolio))


def test_few_shots_are_the_best_kept_answers(steerer):
    able = with_answers(steerer)
    for weights in (BOTH, {"warmth": 1.0}):
        w = np.array([weights.get("brevity", 0.0), weights["warmth"]])
        w = w / w.sum()
        rows = [(row, *max((row.rewards[j] @ w, j) for j in range(3)))
                for row in able.bundle.portfolio.answered]  # fmt: skip
        rows.sort(key=lambda one: one[1] - one[0].rewards[0] @ w)
        wanted = [(row.prompt, row.answers[j]) for row, _, j in rows[-2:]]
        shares = dict(zip(("brevity", "warmth"), w.tolist(), strict=True))
        assert FewShot(number=2).turns(able.bundle, shares) == wanted
        chat = after_turns(wanted, PROMPTS[1])
        asked = [render(able.language_model.tokenizer, chat)]
        found = able.answer([PROMPTS[1]], weights, method="few-shot", decoding=SHORT)
        assert found == generate_batch(able.language_model, asked, SHORT)


def test_few_shots_need_answers(steerer):
    with pytest.raises(InputError, match="portfolio keeps"):
        steerer.answer(PROMPTS, BOTH, method="few-shot", decoding=SHORT)
    with pytest.raises(InputError, match="expected weights of brevity, warmth, got zest"):
        with_answers(steerer).answer(PROMPTS, {"zest": 1}, method="few-shot", decoding=SHORT)


HISTORIES = {
    "ann": [("What about rain?", "wet!!"), ("Do you like cats?", "sooo much")],
    "bob": [HistoryItem("Cordially."), HistoryItem("Rain is water.", prompt="Rain, how?")],
}


def test_the_nearest_of_a_history_are_shown(steerer):
    method = RetrievedHistory(HISTORIES, number=1)
    bundle = steerer.bundle
    for prompt, person, wanted in (
        ("Is there rain?", "ann", "wet!!"),
        ("Tell me of cats.", "ann", "sooo much"),
        ("Why rain?", "bob", "Rain is water."),
    ):
        chat = method.chat(bundle, Request(prompt, person=person))
        assert [one["content"] for one in chat[1:]] == [wanted, prompt]
        listed = replace(method, form="list").chat(bundle, Request(prompt, person=person))
        assert f"- {wanted}\n" in listed and listed.endswith(prompt)
    assert method.chat(bundle, Request("Hi")) == "Hi"
    assert method.chat(bundle, Request("Hi", person="ann", strength=0.0)) == "Hi"
    people = [None, "ann", "bob"]
    found = steerer.answer(PROMPTS, profile=people, method=method, decoding=SHORT)
    for prompt, person, answer in zip(PROMPTS, people, found, strict=True):
        chat = method.chat(bundle, Request(prompt, person=person))
        asked = [render(steerer.language_model.tokenizer, chat)]
        assert [answer] == generate_batch(steerer.language_model, asked, SHORT)


def test_a_history_serves_people(steerer):
    method = RetrievedHistory(HISTORIES)
    with pytest.raises(InputError, match="no history of 'eve'; known: ann, bob"):
        steerer.answer(PROMPTS, profile="eve", method=method, decoding=SHORT)
    with pytest.raises(InputError, match="serves people, not weights"):
        steerer.answer(PROMPTS, BOTH, method=method, decoding=SHORT)
    with pytest.raises(InputError, match="serves weights, and knows nothing of 'ann'"):
        steerer.answer(PROMPTS, profile="ann", method="system-prompt", decoding=SHORT)


def share(text, kind):
    """Of an answer's characters that are of a kind."""
    return sum(map(kind, text)) / max(len(text), 1)


def characters(kind):
    return FunctionReward(
        kind.__name__, lambda prompts, answers: [share(text, kind) for text in answers]
    )


KINDS = {"brevity": str.islower, "warmth": str.isdigit}
REWARDS = {name: characters(kind) for name, kind in KINDS.items()}


def test_the_best_of_n_is_the_best(steerer):
    method = BestOfN(n=4, temperature=1.3, rewards=REWARDS)
    found = steerer.answer(PROMPTS, ROWS, method=method, decoding=SHORT, seed=7)
    rendered = [render(steerer.language_model.tokenizer, PROMPTS[row]) for row in (0, 2)]
    sampling = replace(SHORT, do_sample=True, temperature=1.3)
    many = [text for text in rendered for _ in range(4)]
    sampled = generate_batch(steerer.language_model, many, sampling, seed=7)
    for row, place, w in ((0, 0, (0.75, 0.25)), (2, 1, (0.0, 1.0))):
        worth = [
            sum(weight * share(one.text, kind)
                for weight, kind in zip(w, KINDS.values(), strict=True)) * is_coherent(one.text)
            for one in sampled[place * 4 : place * 4 + 4]
        ]  # fmt: skip
        assert found[row] == sampled[place * 4 + int(np.argmax(worth))]
    plain = [render(steerer.language_model.tokenizer, PROMPTS[1])]
    assert found[1] == generate_batch(steerer.language_model, plain, SHORT)[0]


def guided(language_model, prompt, shares, weight, k):
    text = render(language_model.tokenizer, prompt)

    def score(answer):
        log_p = logits_after(language_model, text, answer).log_softmax(-1)
        scores = torch.full_like(log_p, -torch.inf)
        for token in log_p.argsort(descending=True)[:k].tolist():
            written = language_model.tokenizer.decode([*answer, token], skip_special_tokens=True)
            worth = sum(
                weight_of * share(written, KINDS[name]) for name, weight_of in shares.items()
            )
            scores[token] = log_p[token] + weight * worth
        return scores

    return score


def test_rewards_guide_tokens_as_in_a_plain_loop():
    steerer = a_steerer()
    model = steerer.language_model
    method = RewardGuided(weight=20.0, k=5, rewards=REWARDS)
    decoding = replace(SHORT, max_new_tokens=40)
    model.model.generation_config.eos_token_id = NEVER
    free = steerer.answer(PROMPTS, BOTH, strength=0.5, method=method, decoding=decoding)
    plain = steerer.answer(PROMPTS, None, decoding=decoding)
    for more, less in zip(free, plain, strict=True):
        assert share(more.text, str.islower) > share(less.text, str.islower)
    # One row ends in the first segment and leaves the batch.
    end = next(t for t in free[0].tokens[:20] if t not in free[1].tokens[:34])
    model.model.generation_config.eos_token_id = end
    found = steerer.answer(PROMPTS, BOTH, strength=0.5, method=method, decoding=decoding)
    assert len(found[0].tokens) < 32 < len(found[1].tokens)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        score = guided(model, prompt, {"brevity": 0.75, "warmth": 0.25}, 10.0, 5)
        assert list(answer.tokens) == plainly(model, score, 40)


def test_a_trait_without_a_reward_needs_one(steerer):
    for method in (BestOfN, RewardGuided):
        with pytest.raises(InputError, match="'zest' has no built-in reward"):
            steerer.answer(PROMPTS, {"zest": 1}, method=method(), decoding=SHORT)
        given = method(rewards={"zest": characters(str.isupper)})
        assert len(steerer.answer(PROMPTS, {"zest": 1}, method=given, decoding=SHORT)) == 3


def test_what_cannot_be_served_is_refused(steerer):
    beams = Decoding(max_new_tokens=4, num_beams=2)
    for name in ("logit-rectification", "multi-objective", "reward-guided"):
        with pytest.raises(InputError, match="num_beams=1"):
            steerer.answer(PROMPTS, BOTH, method=name, decoding=beams)
    for name in ("system-prompt", "best-of-n"):
        with pytest.raises(InputError, match="strength of 0 or 1, got 0.5"):
            steerer.answer(PROMPTS, BOTH, strength=0.5, method=name, decoding=SHORT)
    with pytest.raises(InputError, match="unknown method 'magic'; known: system-prompt"):
        steerer.generate("Hi", BOTH, method="magic")
    with pytest.raises(InputError, match="compose mixes edits"):
        steerer.generate("Hi", BOTH, method="system-prompt", compose=True)
    for method in ("few-shot", RetrievedHistory({"ann": ["Hi."]})):
        with pytest.raises(InputError, match="no effect without weights or a profile"):
            steerer.generate(["Hi", "Why?"], method=method)
    with pytest.raises(WeightsError, match="unknown trait 'speed'"):
        steerer.generate("Hi", {"speed": 1}, method="system-prompt")
    for bad in (
        lambda: LogitRectification(alpha=-1),
        lambda: FewShot(number=0),
        lambda: BestOfN(n=0),
        lambda: RewardGuided(k=0),
        lambda: RewardGuided(weight=float("nan")),
        lambda: SystemPrompt(place="margin"),
        lambda: RetrievedHistory(HISTORIES, number=0),
    ):
        with pytest.raises(InputError, match="expected"):
            bad()


def test_generate_gives_texts(steerer):
    one = steerer.generate("Hi", {"warmth": 1}, method="system-prompt", max_new_tokens=8)
    many = steerer.generate(["Hi"], {"warmth": 1}, method=named("system-prompt"), max_new_tokens=8)
    assert [one] == many


def test_the_prompt_to_which_history_is_random_is_seeded(steerer):
    many = {"ann": [(f"What of {i}?", f"said {i}") for i in range(40)]}
    shown = {}
    for seed in (0, 0, 1, 2):
        method = RetrievedHistory(many, number=4, rule="random", seed=seed)
        chat = method.chat(steerer.bundle, Request("Hi", person="ann"))
        items = [one["content"] for one in chat]
        assert shown.setdefault(seed, items) == items
    assert len({tuple(items) for items in shown.values()}) == 3
