"""Fit the reader of wishes (`steer.wishes`) to the wordings of data/wishes.yaml.

    python experiments/fit_wishes.py    # two minutes of a core

Adjectives, nouns and verbs become sentences that wish, refuse or do without; scenes are sentences
already. What is refused of a pole is a wish for the other one; what one can do without is none.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

from steer.resources import atomic_path, data_dir
from steer.wishes import FILE, NOTHING, features

WISHED = {
    "adjectives": (
        "Be {}.",
        "I like {} answers.",
        "Please make it {}.",
        "I want your answers to be {}.",
        "It should be {}.",
        "{}, please.",
        "Try to be {}.",
        "I wish you were more {}.",
        "{}",
    ),
    "nouns": (
        "I want {}.",
        "Give me {}.",
        "I'd like {}.",
        "{}, please.",
        "I prefer {}.",
        "I'm all for {}.",
        "More {}, please.",
        "{}",
    ),
    "verbs": ("Please {}.", "{}", "I want you to {}.", "You should {}."),
}
REFUSED = {
    "adjectives": (
        "Don't be {}.",
        "I don't want {} answers.",
        "Never be {}.",
        "Nothing {}.",
        "It must not be {}.",
        "not {}",
        "I can't stand {} answers.",
        "Your answers are too {}.",
        "I'm tired of {} answers.",
        "Anything but {}.",
    ),
    "nouns": (
        "No {}.",
        "I don't want {}.",
        "Without {}.",
        "I hate {}.",
        "Stop giving me {}.",
        "Spare me {}.",
        "Avoid {}.",
        "I've had enough of {}.",
        "Less {}, please.",
        "not {}",
    ),
    "verbs": (
        "Don't {}.",
        "Please don't {}.",
        "Never {}.",
        "I don't want you to {}.",
        "Stop it when you {}.",
    ),
}
NOT_NEEDED = {
    "adjectives": (
        "It doesn't have to be {}.",
        "You needn't be {}.",
        "It doesn't matter whether it's {}.",
    ),
    "nouns": ("I don't need {}.", "I don't care about {}.", "I can do without {}."),
    "verbs": ("You needn't {}.", "You don't have to {}."),
}
# A wording counts once, however many sentences are made of it; a whole sentence says more.
SCENE, BACKGROUND = 4.0, 2.0
OTHER = {"positive": "negative", "negative": "positive"}


@dataclass(frozen=True)
class Example:
    """A sentence, what it asks for, and how much it counts."""

    text: str
    label: str
    count: float


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordings", type=Path, default=data_dir() / "wishes.yaml")
    parser.add_argument("--output", type=Path, default=data_dir() / FILE)
    parser.add_argument("--inverse-decay", type=float, default=3.0, help="C of scikit-learn")
    arguments = parser.parse_args()
    made = examples(yaml.safe_load(arguments.wordings.read_text(encoding="utf-8")))
    classifier = LogisticRegression(C=arguments.inverse_decay, max_iter=2000).fit(
        features([one.text for one in made]),
        [one.label for one in made],
        sample_weight=[one.count for one in made],
    )
    table = np.column_stack([classifier.coef_, classifier.intercept_])
    # safetensors writes the memory of an array, whatever its strides.
    rows = {
        str(name): np.ascontiguousarray(row, np.float32)
        for name, row in zip(classifier.classes_, table, strict=True)
    }
    with atomic_path(arguments.output) as temporary:
        save_file(rows, temporary)
    print(f"{len(made)} sentences, {len(classifier.classes_)} classes -> {arguments.output}")


def examples(wordings: dict[str, dict[str, dict[str, list[str]]]]) -> list[Example]:
    """Every sentence that is made of the wordings."""
    result = [Example(text, NOTHING, BACKGROUND) for text in wordings[NOTHING]]
    for trait, poles in wordings.items():
        if trait == NOTHING:
            continue
        for pole, kinds in poles.items():
            labels = (f"{trait}/{pole}", f"{trait}/{OTHER[pole]}", NOTHING)
            for kind in WISHED:
                for label, frames in zip(labels, (WISHED, REFUSED, NOT_NEEDED), strict=True):
                    result += [
                        Example(frame.format(words), label, 1 / len(frames[kind]))
                        for words in kinds[kind]
                        for frame in frames[kind]
                    ]
            result += [Example(text, labels[0], SCENE) for text in kinds["scenes"]]
    return result


if __name__ == "__main__":
    main()
