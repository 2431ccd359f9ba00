"""What stands in the table: this engine and the other ways, each with the settings that are tried.

routed                 a portfolio's entry, at a strength
composed               the traits' own edits, mixed
system prompt          instructions or a summary, in the user's message or the system's
few-shot               kept answers as earlier turns
logit rectification    contrast prompts, alpha
multi-objective        a product of prompted models, the strength of the powers
best of n              n
reward-guided          the weight of rewards beside a log-probability
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from steer import interference
from steer.baselines import (
    BestOfN,
    FewShot,
    LogitRectification,
    Method,
    MultiObjective,
    RewardGuided,
    SystemPrompt,
)
from steer.bundle import Bundle
from steer.chat import render
from steer.cover import random_weights
from steer.generation import Decoding, Generated, prompt_tokens
from steer.journal import Journal
from steer.likelihood import mean_log_likelihood
from steer.resources import content_key
from steer.steerer import Steerer
from steer.versions import versions

UNSTEERED, ROUTED, COMPOSED = "unsteered", "routed", "composed"


@dataclass(frozen=True)
class User:
    """Somebody with weights.

    Attributes:
        name: For files.
        weights: By trait.
    """

    name: str
    weights: dict[str, float]


@dataclass(frozen=True)
class Setting:
    """One way to serve everybody.

    Attributes:
        method: Its row of the table.
        name: What sets it apart from the method's others.
        knob: The number that is swept; None where it is none.
        strength: Of requests.
        compose: Mix edits.
        by: Another way than edits.
        weighted: Whether weights are given at all.
    """

    method: str
    name: str
    knob: float | None = None
    strength: float = 1.0
    compose: bool = False
    by: Method | None = None
    weighted: bool = True

    def answer(
        self,
        steerer: Steerer,
        user: User,
        prompts: Sequence[str],
        decoding: Decoding,
        seed: int,
    ) -> list[Generated]:
        """What a user is answered."""
        return steerer.answer(
            prompts,
            user.weights if self.weighted else None,
            strength=self.strength,
            compose=self.compose,
            method=self.by,
            seed=seed,
            decoding=decoding,
        )


PLAIN = Setting(UNSTEERED, "unsteered", weighted=False)


def settings(quick: bool) -> list[Setting]:
    """All that are tried, at most eight a method."""
    strengths = (0.5, 1.0, 1.5)
    found = [Setting(ROUTED, f"strength {s:g}", s, strength=s) for s in strengths]
    found += [Setting(COMPOSED, f"strength {s:g}", s, strength=s, compose=True) for s in strengths]
    found += [
        Setting("system prompt", f"instruction {i + 1}, user", by=SystemPrompt(instruction=i))
        for i in range(4)
    ]
    found += [
        Setting("system prompt", "instruction 1, system", by=SystemPrompt(place="system")),
        Setting("system prompt", "summary, user", by=SystemPrompt(wording="summary")),
        Setting("system prompt", "summary, system", by=SystemPrompt("summary", "system")),
    ]
    found += [Setting("few-shot", f"{k} shots", k, by=FewShot(k)) for k in (1, 2, 4)]
    for alpha in (0.5, 1.0, 2.0):
        by = LogitRectification(alpha=alpha)
        found.append(Setting("logit rectification", f"alpha {alpha:g}", alpha, by=by))
    for strength in (0.5, 0.75, 1.0):
        name = f"strength {strength:g}"
        by_product = MultiObjective()
        one = Setting("multi-objective", name, strength, strength=strength, by=by_product)
        found.append(one)
    found += [Setting("best of n", f"n = {n}", n, by=BestOfN(n)) for n in (4, 16)]
    for weight in (4.0, 16.0):
        guided = RewardGuided(weight=weight, k=5)
        found.append(Setting("reward-guided", f"weight {weight:g}", weight, by=guided))
    if quick:
        found = list({one.method: one for one in found}.values())
    return found


def users(traits: Sequence[str], number: int, seed: int) -> list[User]:
    """People whose weights are uniform over the simplex."""
    rows = random_weights(len(traits), number, seed).round(3).tolist()
    return [
        User(f"user {seed}-{i}", dict(zip(traits, row, strict=True))) for i, row in enumerate(rows)
    ]


@dataclass(frozen=True)
class Told:
    """What a setting answered to one user's prompts.

    Attributes:
        texts: (P,) the answers.
        tokens: (P,) tokens of each.
        log_likelihood: (P,) of each under the unedited model after the plain prompt, nats per
            token.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    log_likelihood: tuple[float, ...]


def answer_all(
    steerer: Steerer,
    wanted: Sequence[Setting],
    people: Sequence[User],
    prompts: Sequence[str],
    decoding: Decoding,
    path: Path,
    seed: int,
) -> dict[tuple[str, str], Told]:
    """What every setting answers to every user, by the setting's and the user's key.

    What is in the file costs nothing.
    """
    header = {
        "model": steerer.language_model.fingerprint.to_dict(),
        "dtype": steerer.language_model.precision,
        "bundle": bundle_key(steerer.bundle),
        "prompts": list(prompts),
        "decoding": asdict(decoding),
        "seed": seed,
        "versions": versions(),
    }
    journal = Journal(path, header)
    found = {(row["setting"], row["user"]): _told(row["told"]) for row in journal.rows}
    missing = [
        (setting, user)
        for setting in wanted
        for user in people
        if (key(setting), user_key(setting, user)) not in found
    ]
    for setting, user in tqdm(missing, desc="answers", disable=None):
        name, who = key(setting), user_key(setting, user)
        if (name, who) in found:
            continue  # the unsteered model answers everybody alike
        told = _answer(steerer, setting, user, prompts, decoding, seed)
        journal.append([{"setting": name, "user": who, "told": asdict(told)}])
        found[name, who] = told
    return found


def bundle_key(bundle: Bundle) -> str:
    """Of what answers hang on: all edits, how they are composed, and the answers it keeps."""
    portfolio = bundle.portfolio
    edits = [entry.edit.digest for entry in bundle.traits.values()]
    composed = interference.to_json(bundle.interference)
    if portfolio is None:
        return content_key([edits, composed])
    kept = [[one.prompt, *one.answers] for one in portfolio.answered]
    return content_key([edits, composed, [edit.digest for edit in portfolio.edits], kept])


def key(setting: Setting) -> str:
    """Under which a setting's answers are kept."""
    return f"{setting.method}: {setting.name}"


def user_key(setting: Setting, user: User) -> str:
    """Under which a user's answers are kept."""
    return content_key(user.weights) if setting.weighted else "everybody"


def _told(row: dict[str, Any]) -> Told:
    return Told(**{name: tuple(value) for name, value in row.items()})


def _answer(
    steerer: Steerer,
    setting: Setting,
    user: User,
    prompts: Sequence[str],
    decoding: Decoding,
    seed: int,
) -> Told:
    model = steerer.language_model
    answers = setting.answer(steerer, user, prompts, decoding, seed)
    plain = [prompt_tokens(model, render(model.tokenizer, prompt)) for prompt in prompts]
    sequences = [(asked, one.tokens) for asked, one in zip(plain, answers, strict=True)]
    likelihood = mean_log_likelihood(model, sequences, batch_tokens=2048)
    return Told(
        tuple(one.text for one in answers),
        tuple(len(one.tokens) for one in answers),
        tuple(np.round(likelihood, 4).tolist()),
    )
