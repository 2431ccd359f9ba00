"""Who wrote this, and how would they? Steering by a profile against prompting with a history.

    python experiments/chameleon/persona.py --data FOLDER          # hours of a core; goes on
    python experiments/chameleon/persona.py --data FOLDER --quick  # only shows that it runs
    python experiments/chameleon/persona.py --authors FOLDER       # texts by author

FOLDER holds Synthetic-Persona-Chat (persons.py). Each report person's history is given to the model
in one of the ways below; then the model chooses what the person wrote to a prompt of another
conversation among 20 texts, by likelihood, and answers the prompt itself (telling.py).

    unsteered                  the prompt alone
    history in the prompt      the history listed before the prompt
    retrieval + prompt         those items of it whose prompts are most like this one, listed
    history as a dialogue      the history as earlier turns of the chat
    retrieval as a dialogue    those most like this prompt, as earlier turns
    profile (user)             steered by a profile of the history
    profile (group)            by that of a group to which the person's history belongs
    profile (unseen user)      by that of the nearest group of other people
    profile (group + user)     by a profile of the history that begins with that group's

Groups are of the report people's halves in turn, with people of one conversation: in its own half a
person is a member, in the other unseen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from making import Maker, gate_of, seconds
from persons import People, Person, Question, add_people, histories_of, people_of, questions
from telling import (
    GAINED,
    LOWER_IS_BETTER,
    MEASURES,
    Arm,
    Row,
    ask,
    by_person,
    drawn,
    interval,
    relative_gain,
    soundness,
)

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import common_parser, last_line, parse, provenance  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.baselines.prompting import dialogue, listed  # noqa: E402
from steer.edits import ZERO, Edit  # noqa: E402
from steer.groups import assign, cluster  # noqa: E402
from steer.history import HistoryItem, select  # noqa: E402
from steer.imitate import Imitation  # noqa: E402
from steer.measures import words  # noqa: E402
from steer.personalizer import Personalization  # noqa: E402
from steer.profile import Profile, summary  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.soundness import Soundness  # noqa: E402

UNSTEERED = "unsteered"
LISTED, RETRIEVED = "history in the prompt", "retrieval + prompt"
DIALOGUE, RETRIEVED_DIALOGUE = "history as a dialogue", "retrieval as a dialogue"
USER, GROUP = "profile (user)", "profile (group)"
UNSEEN, BOTH = "profile (unseen user)", "profile (group + user)"

# Of a history; and those of it that are retrieved.
ITEMS, RETRIEVAL = 8, 4
# A short history is soon learnt by heart, so few and small steps from the common start.
FROM_GROUP = Imitation(steps=6, learning_rate=0.02)


@dataclass(frozen=True)
class Cell:
    """One measure of one arm.

    Attributes:
        arm: Which way.
        measure: Which measure.
        value: Over people.
        low: Lower end of its interval.
        high: Upper end.
    """

    arm: str
    measure: str
    value: float
    low: float
    high: float


def main() -> None:
    """Ask and write the tables."""
    arguments = read_arguments()
    everybody = people_of(arguments)
    people = getattr(everybody, arguments.split)[: arguments.people]
    asked = questions(people, arguments.questions, seed=arguments.seed)
    model = loaded(arguments)
    folder = Path(arguments.work_dir) / "persona"
    histories = histories_of(people, ITEMS)
    users, groups = makers(model, arguments)
    own = users.each(histories)
    member, unseen = grouped(groups, everybody, people, arguments)
    both = from_groups(model, arguments).each(histories, member)
    arms = prompted(histories) + [
        Arm(name, plain, users.edits(profiles))
        for name, profiles in ((USER, own), (GROUP, member), (UNSEEN, unseen), (BOTH, both))
    ]
    rows = {arm.name: ask(model, asked, arm, folder) for arm in arms}
    prompts = [prompt.text for prompt in load_prompts("report")[: 4 if arguments.quick else 100]]
    whole = {
        arm.name: soundness(model, arm.edits, prompts, folder)
        for arm in arms
        if arm.name in (UNSTEERED, USER, GROUP, BOTH)
    }
    write(rows, {USER: own, GROUP: member, BOTH: both}, whole, model, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "chameleon")
    add_people(parser)
    parser.add_argument("--split", choices=("develop", "report"), default="report")
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--questions", type=int, default=4, help="about each of them")
    add_group(parser)
    arguments = parse(parser)
    if arguments.quick:
        arguments.people, arguments.questions, arguments.group_people = 4, 1, 2
    return arguments


def add_group(parser: argparse.ArgumentParser) -> None:
    """For scripts that make groups."""
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--group-people", type=int, default=24, help="of whom groups are made")


def makers(model: Any, arguments: argparse.Namespace) -> tuple[Maker, Maker]:
    """Of profiles of persons and of groups."""
    gate, folder = gate_of(arguments), Path(arguments.work_dir)
    steps = 2 if arguments.quick else 36
    person = Personalization(
        imitation=Imitation(steps=2) if arguments.quick else Imitation(), seed=arguments.seed
    )
    group = Personalization(
        items=10_000, imitation=Imitation(steps=steps), selection="recent", seed=arguments.seed
    )
    return Maker(model, person, gate, folder), Maker(model, group, gate, folder)


def from_groups(model: Any, arguments: argparse.Namespace) -> Maker:
    """Of profiles of persons that begin with a group's."""
    settings = Personalization(imitation=FROM_GROUP, seed=arguments.seed)
    return Maker(model, settings, gate_of(arguments), Path(arguments.work_dir))


def grouped(
    maker: Maker, everybody: People, people: Sequence[Person], arguments: argparse.Namespace
) -> tuple[list[Profile], list[Profile]]:
    """For each person the profile of a group with them in it, and of the nearest group without."""
    halves = [list(range(half, len(people), 2)) for half in (0, 1)]
    made = []
    for half in halves:
        more = everybody.others[: max(0, arguments.group_people - len(half))]
        members = [*(people[i] for i in half), *more]
        histories = histories_of(members, ITEMS)
        names = cluster(histories, arguments.groups, seed=arguments.seed)
        profiles = maker.groups(histories, names)
        made.append((profiles, dict(zip(half, names, strict=False))))
    member, unseen = [], []
    for i, person in enumerate(people):
        profiles, names = made[i % 2]
        member.append(profiles[names[i]])
        others = made[1 - i % 2][0]
        unseen.append(others[assign(list(person.history[:4]), others)])
    return member, unseen


def plain(question: Question) -> str:
    """The prompt alone."""
    return question.prompt


def prompted(histories: Sequence[list[HistoryItem]]) -> list[Arm]:
    """The ways without steering."""
    nothing: list[Edit] = [ZERO] * len(histories)

    def nearest(question: Question) -> Sequence[HistoryItem]:
        history = histories[question.person]
        return select(history, RETRIEVAL, "similar", query=question.prompt)

    def everything(question: Question) -> Sequence[HistoryItem]:
        return histories[question.person]

    return [
        Arm(UNSTEERED, plain, nothing),
        Arm(LISTED, lambda question: listed(everything(question), question.prompt), nothing),
        Arm(RETRIEVED, lambda question: listed(nearest(question), question.prompt), nothing),
        Arm(DIALOGUE, lambda question: dialogue(everything(question), question.prompt), nothing),
        Arm(
            RETRIEVED_DIALOGUE,
            lambda question: dialogue(nearest(question), question.prompt),
            nothing,
        ),
    ]


def write(
    rows: dict[str, list[Row]],
    profiles: dict[str, list[Profile]],
    whole: dict[str, Soundness],
    model: Any,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON, CSV and Markdown."""
    cells = []
    for arm, found in rows.items():
        for measure in MEASURES:
            values = by_person(found, measure)
            cells.append(
                Cell(arm, measure, float(values.mean()), *interval(drawn(values, arguments.seed)))
            )
    gains = {
        ours: {
            theirs: relative_gain(rows[ours], rows[theirs])
            for theirs in (UNSTEERED, LISTED, RETRIEVED, DIALOGUE, RETRIEVED_DIALOGUE)
        }
        for ours in (USER, GROUP, UNSEEN, BOTH)
    }
    kept = {
        measure: kept_share(rows, measure, arguments.seed)
        for measure in (*GAINED, "log-likelihood")
    }
    content = {
        **provenance("experiments/chameleon/persona.py", model, arguments),
        "split": arguments.split,
        "people": len({row.person for row in rows[UNSTEERED]}),
        "questions": len(rows[UNSTEERED]),
        "groups": arguments.groups,
        "group people": arguments.group_people,
        "cells": [asdict(cell) for cell in cells],
        "relative gains": gains,
        "unseen of group gain": kept,
        "soundness": {arm: asdict(one) for arm, one in whole.items()},
        "seconds": {arm: seconds(made) for arm, made in profiles.items()},
        "bytes": {arm: summary(made[0])["size"] for arm, made in profiles.items()},
        "dose": {arm: float(np.mean([one.dose for one in made])) for arm, made in profiles.items()},
    }
    name = "persona" if arguments.authors is None else "authors"
    write_json(arguments.output / f"{name}.json", content)
    write_csv(arguments.output / f"{name}.csv", Cell, cells)
    write_markdown(arguments.output / f"{name}.md", markdown(content, cells, rows))


def kept_share(
    rows: dict[str, list[Row]], measure: str, seed: int
) -> tuple[float, float, float] | None:
    """What somebody unseen has of the gain over the unsteered model that a group's member has.

    None where that gain is not surely one.
    """
    none, member, unseen = (by_person(rows[arm], measure) for arm in (UNSTEERED, GROUP, UNSEEN))
    sign = -1 if measure in LOWER_IS_BETTER else 1
    top, bottom = drawn(sign * (unseen - none), seed), drawn(sign * (member - none), seed)
    if interval(bottom)[0] <= 0:
        return None
    return float((unseen - none).mean() / (member - none).mean()), *interval(top / bottom)


def markdown(content: dict[str, Any], cells: Sequence[Cell], rows: dict[str, list[Row]]) -> str:
    """The tables as Markdown."""
    lines = [
        f"{content['people']} {content['split']} people, {content['questions']} questions, "
        f"histories of at most {ITEMS} items. {content['model']}, {content['dtype']}, seed "
        f"{content['seed']}. In brackets: 95%, bootstrap over people.",
        "",
        "| | " + " | ".join(MEASURES) + " | words | incoherent | prompt tokens |",
        "|---" * (len(MEASURES) + 4) + "|",
    ]
    for arm, found in rows.items():
        mine = {cell.measure: cell for cell in cells if cell.arm == arm}
        shown = " | ".join(
            f"{mine[m].value:.3f} ({mine[m].low:.3f} to {mine[m].high:.3f})" for m in MEASURES
        )
        lines.append(
            f"| {arm} | {shown} | {np.mean([len(words(row.answer)) for row in found]):.0f} | "
            f"{np.mean([row.incoherent for row in found]):.1%} | "
            f"{np.mean([row.prompt_tokens for row in found]):.0f} |"
        )
    gains = content["relative gains"]
    theirs = list(next(iter(gains.values())))
    lines += [
        "",
        f"Relative gain over each way without steering, mean of {', '.join(GAINED)}:",
        "",
        "| | " + " | ".join(theirs) + " |",
        "|---" * (len(theirs) + 1) + "|",
    ]
    for arm, by_rival in gains.items():
        lines.append(f"| {arm} | " + " | ".join(_share(by_rival[one]) for one in theirs) + " |")
    kept = content["unseen of group gain"]
    lines += [
        "",
        "Of a member's gain over the unsteered model somebody unseen has: "
        + ", ".join(
            f"{measure} {'(no sure gain)' if value is None else _share(value, sign='')}"
            for measure, value in kept.items()
        )
        + ".",
        "",
        "Of answers to report prompts that concern nobody in particular, about them / incoherent: "
        + ", ".join(
            f"{arm} {one['relevant']:.0%} / {one['incoherent']:.0%}"
            for arm, one in content["soundness"].items()
        )
        + ".",
        "",
        "A profile takes "
        + ", ".join(
            f"{content['seconds'][arm][0]:.0f} s and {content['bytes'][arm] / 1000:.0f} kB ({arm}, "
            f"{content['dose'][arm]:.2f} nats per token)"
            for arm in content["seconds"]
        )
        + f" on {content['threads']} thread{'s' * (content['threads'] > 1)}.",
        "",
        last_line(content),
    ]
    return "\n".join(lines) + "\n"


def _share(value: Sequence[float], sign: str = "+") -> str:
    middle, low, high = (f"{one:{sign}.0%}" for one in value)
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
