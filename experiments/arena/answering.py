"""How a setting answers: by an edit, by what the prompt says, or by logits under other prompts.

Settings of one kind are answered as rows of mixed batches, whatever their methods and doses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from answers import Answers, Key, Store
from tqdm import tqdm

from steer.baselines.combined import CombinedLogits, View
from steer.chat import Message, render
from steer.contrast import instructed
from steer.edits import Edit
from steer.generation import Decoding, generate_batch, prompt_tokens
from steer.hooks import Scope, attach
from steer.likelihood import mean_log_likelihood
from steer.models import LanguageModel
from steer.resources import content_key

ROWS = 96


@dataclass(frozen=True, eq=False)
class Edited:
    """The model under an edit.

    Attributes:
        edit: The edit.
        scope: Where it acts.
        factors: By prompt, what it is multiplied by; empty for one.
    """

    edit: Edit
    scope: Scope
    factors: tuple[float, ...] = ()

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return content_key(["edited", self.scope, self.edit.digest, *self.factors])

    def edits(self, prompts: int) -> list[Edit]:
        """The edit of each prompt."""
        return [f * self.edit for f in self.factors] if self.factors else [self.edit] * prompts


@dataclass(frozen=True)
class Asked:
    """The model asked differently.

    Attributes:
        before: Messages before the prompt.
        instruction: What follows the prompt in the user's message; empty for nothing.
    """

    before: tuple[tuple[str, str], ...] = ()
    instruction: str = ""

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return content_key(["asked", asdict(self)])

    def chat(self, prompt: str) -> list[Message]:
        """The messages that ask it."""
        last = instructed(prompt, self.instruction) if self.instruction else prompt
        turns = [*self.before, ("user", last)]
        return [{"role": role, "content": content} for role, content in turns]


@dataclass(frozen=True)
class Rectified:
    """Logits s = base + alpha (log p(t | x+) - log p(t | x-)), x+ and x- with an instruction."""

    positive: str
    negative: str
    alpha: float

    @property
    def digest(self) -> str:
        """What tells it from others."""
        return content_key(["rectified", asdict(self)])


PLAIN = Asked()
"""The unsteered model."""

How = Edited | Asked | Rectified


@dataclass(frozen=True, eq=False)
class Setting:
    """One way in which a method goes about a trait."""

    trait: str
    method: str
    name: str
    how: How

    @property
    def key(self) -> Key:
        """Under which its answers are kept."""
        return Key(self.trait, self.method, self.name, self.how.digest)


UNSTEERED = Setting("", "unsteered", "unsteered", PLAIN)


def answer_all(
    language_model: LanguageModel,
    settings: Iterable[Setting],
    prompts: Sequence[str],
    decoding: Decoding,
    store: Store,
) -> list[Answers]:
    """The answers of settings to all prompts; those that are in the store cost nothing."""
    wanted = list(settings)
    groups: dict[str, list[Setting]] = defaultdict(list)
    for setting in {one.key: one for one in wanted}.values():
        if setting.key not in store.known:
            how = setting.how
            kind = how.scope if isinstance(how, Edited) else type(how).__name__
            groups[kind].append(setting)
    total = sum(map(len, groups.values()))
    with tqdm(total=total, desc="settings", disable=None if total else True) as bar:
        for kind, group in groups.items():
            # Each row of rectified logits is three rows of the model.
            rows = ROWS // 3 if kind == "Rectified" else ROWS
            step = max(1, rows // len(prompts))
            for start in range(0, len(group), step):
                part = group[start : start + step]
                store.add(_answer(language_model, part, prompts, decoding))
                bar.update(len(part))
    return [store.known[setting.key] for setting in wanted]


def _answer(
    language_model: LanguageModel,
    settings: Sequence[Setting],
    prompts: Sequence[str],
    decoding: Decoding,
) -> dict[Key, Answers]:
    """Answers of settings of one kind, as rows of one batch."""
    number = len(prompts)
    hows = [setting.how for setting in settings for _ in prompts]
    asked = [*prompts] * len(settings)
    tokenizer = language_model.tokenizer
    plain = [prompt_tokens(language_model, render(tokenizer, prompt)) for prompt in prompts]
    edits = [
        edit
        for setting in settings
        if isinstance(setting.how, Edited)
        for edit in setting.how.edits(number)
    ]
    passes, extra = 1, [0] * len(asked)
    if edits:
        scope = next(how.scope for how in hows if isinstance(how, Edited))
        texts = [render(tokenizer, prompt) for prompt in asked]
        with attach(language_model).steer(edits, scope=scope):
            written = generate_batch(language_model, texts, decoding)
    elif all(isinstance(how, Asked) for how in hows):
        texts = [
            render(tokenizer, how.chat(prompt))
            for how, prompt in zip(hows, asked, strict=True)
            if isinstance(how, Asked)
        ]
        lengths = [len(prompt_tokens(language_model, text)) for text in texts]
        extra = [n - len(plain[i % number]) for i, n in enumerate(lengths)]
        written = generate_batch(language_model, texts, decoding)
    else:
        rows = [how for how in hows if isinstance(how, Rectified)]
        texts = [render(tokenizer, prompt) for prompt in asked]
        views = _views(language_model, rows, asked)
        combined = CombinedLogits([1.0] * len(rows), views)
        written = generate_batch(language_model, texts, decoding, processors=[combined])
        lengths = [len(prompt_tokens(language_model, view.text)) for view in views]
        passes, extra = 3, [sum(lengths[2 * i : 2 * i + 2]) for i in range(len(rows))]
    sequences = [(plain[i % number], one.tokens) for i, one in enumerate(written)]
    likelihood = mean_log_likelihood(language_model, sequences, batch_tokens=2048)
    result = {}
    for i, setting in enumerate(settings):
        part = slice(i * number, (i + 1) * number)
        result[setting.key] = Answers(
            tuple(one.text for one in written[part]),
            tuple(len(one.tokens) for one in written[part]),
            tuple(likelihood[part].tolist()),
            tuple(extra[part]),
            passes,
        )
    return result


def _views(
    language_model: LanguageModel, rows: Sequence[Rectified], prompts: Sequence[str]
) -> list[View]:
    """What is added to the plain prompt's logits, and what is taken away, two a row."""
    return [
        View(i, render(language_model.tokenizer, instructed(prompt, text)), alpha, language_model)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
        for text, alpha in ((row.positive, row.alpha), (row.negative, -row.alpha))
    ]
