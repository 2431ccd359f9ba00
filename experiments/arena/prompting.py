"""Methods that edit nothing: what stands in the prompt, and logits under contrast prompts.

system prompt    each positive instruction, and all at once, as the system message or in the
                 user's message after the prompt
few-shot         1, 2 or 4 positive answers to other prompts as earlier turns, drawn four times
logit steering   with each pair of instructions, alpha 0.5, 1 or 2
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from answering import Asked, Rectified, Setting
from contenders import Source

from steer.undosed import plain_prompts

DRAWS = 4


def system_prompts(source: Source) -> Iterator[Setting]:
    """Instructions as the system message, and in the user's message."""
    name = source.trait.name
    instructions = source.trait.positive.instructions
    asked = [*instructions, " ".join(instructions)]
    for number, instruction in enumerate(dict.fromkeys(asked), start=1):
        which = "all instructions" if number > len(instructions) else f"instruction {number}"
        system = Asked(before=(("system", instruction),))
        yield Setting(name, "system prompt", f"{which}, system message", system)
        user = Asked(instruction=instruction)
        yield Setting(name, "system prompt", f"{which}, user message", user)


def few_shot(source: Source, shots: Sequence[int], seed: int) -> Iterator[Setting]:
    """Positive answers as earlier turns."""
    prompts = plain_prompts(source.pairs)
    answers = [whole_sentences(pair.positive.text) for pair in source.pairs.pairs]
    usable = [i for i, answer in enumerate(answers) if answer]
    for draw in range(DRAWS):
        order = np.random.default_rng([seed, draw]).permutation(usable).tolist()
        for k in shots:
            turns = [
                turn
                for i in order[:k]
                for turn in (("user", prompts[i]), ("assistant", answers[i]))
            ]
            setting = f"{k} shots, draw {draw + 1}"
            yield Setting(source.trait.name, "few-shot", setting, Asked(before=tuple(turns)))


def whole_sentences(text: str) -> str:
    """A text up to its last sentence's end: contrast answers are cut at a token limit."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"'”)]*(?=\s|$)", text)]
    return text[: ends[-1]] if ends else ""


def logit_steering(source: Source, alphas: Sequence[float]) -> Iterator[Setting]:
    """Logits rectified by the contrast prompts."""
    poles = source.trait.positive.instructions, source.trait.negative.instructions
    for number, (positive, negative) in enumerate(zip(*poles, strict=False), start=1):
        for alpha in alphas:
            how = Rectified(positive, negative, alpha)
            setting = f"instruction {number}, alpha {alpha:g}"
            yield Setting(source.trait.name, "logit steering", setting, how)
