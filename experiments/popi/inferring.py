"""Is a summary better than the history it is of? (POPI, arXiv 2510.17881)

    python experiments/popi/inferring.py            # half an hour of a core; goes on
    python experiments/popi/inferring.py --quick    # only shows that it runs

Simulated people (people_of.py) have chosen a few times. The generator is told what is known of a
person, and is right about a further pair if what they would choose becomes likelier against what
they would not, than it is without being told: reward accuracy.

    history            the choices, liked and not liked, listed before the prompt
    history, turns     what was liked, as earlier turns
    summary            of the model, greedily written
    summary, best      of several, by POPI's loss on the history
    weights in words   the posterior's mean weights, in a sentence (`steer.preference.in_words`)
    one instruction    of the trait that weighs most in the posterior's mean
    true weights       in a sentence
    true instruction   of the trait that truly weighs most
    weights            no generator: pairs ordered by the posterior's mean weights and rewards

With --data-set people of open data take their place (open_data.py), of whom no weights are known.
With --reader a second model reads the unchanged summaries: what is known of a person is text, and
serves any model. The intervals are 95% bootstraps over people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_data import KINDS, read_people
from people_of import Person, add_people, people_in, simulated
from tqdm import tqdm

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from precision import loaded  # noqa: E402
from runs import common_parser, last_line, parse, provenance, set_apart  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.baselines.method import trait_of  # noqa: E402
from steer.baselines.prompting import dialogue, said  # noqa: E402
from steer.bundle import Bundle  # noqa: E402
from steer.chat import Chat, render  # noqa: E402
from steer.errors import DataError  # noqa: E402
from steer.generation import prompt_tokens  # noqa: E402
from steer.insights import prompt_of  # noqa: E402
from steer.journal import Journal  # noqa: E402
from steer.likelihood import response_tokens  # noqa: E402
from steer.models import LanguageModel, load_model  # noqa: E402
from steer.preference import in_words  # noqa: E402
from steer.resources import content_key  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.summaries import summarise, told_margins, wordings  # noqa: E402

Float64 = NDArray[np.float64]

HISTORY, TURNS, GREEDY, BEST = "history", "history, turns", "summary", "summary, best"
IN_WORDS, TRUE, WEIGHTS = "weights in words", "true weights", "weights"
ONE, TRUE_ONE = "one instruction", "true instruction"
SUMMARIES = (GREEDY, BEST, IN_WORDS, ONE, TRUE, TRUE_ONE)
JUDGED = 64  # tokens of an answer


@dataclass(frozen=True)
class Line:
    """One way to tell a generator of a person.

    Attributes:
        way: Which.
        reader: Whose reward accuracy it is.
        accuracy: Mean over people.
        low: Lower end of its interval.
        high: Upper end.
        margin: Mean margin, nats.
        tokens: That are added to a prompt, mean.
    """

    way: str
    reader: str
    accuracy: float
    low: float
    high: float
    margin: float
    tokens: float


def main() -> None:
    """Infer, ask and write."""
    arguments = read_arguments()
    model = loaded(arguments)
    steerer = Steerer(model, Bundle.load(arguments.bundle))
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    folder = arguments.work_dir
    people = everybody(steerer, arguments)
    poles = {name: steerer.bundle.traits[name].positive for name in portfolio.traits}
    told = [told_of(model, person, poles, arguments) for person in tqdm(people, desc="summaries")]
    readers = [model] if arguments.reader is None else [model, load_model(arguments.reader)]
    lines, examples = [], [dict(one) for one in told[:6]]
    for reader in readers:
        found = asked(reader, people, told, folder, arguments)
        lines += [
            line(reader, way, people, told, rows, arguments.seed) for way, rows in found.items()
        ]
    write(lines, people, examples, model, arguments)


def everybody(steerer: Steerer, arguments: argparse.Namespace) -> list[Person]:
    """People of a data set, or simulated ones."""
    if arguments.data_set is not None:
        found = people_in(
            read_people(arguments.data_set, arguments.folder),
            arguments.items,
            arguments.questions,
            arguments.people,
            arguments.seed,
        )
        if not found:
            raise DataError(
                f"{arguments.folder}: nobody has {arguments.items} items and {arguments.questions} "
                "further pairs; ask for fewer"
            )
        return found
    return simulated(steerer, arguments.split, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "popi")
    add_people(parser)
    parser.add_argument("--reader", default=None, help="another model that reads the summaries")
    parser.add_argument("--split", choices=("develop", "report"), default="report")
    parser.add_argument("--number", type=int, default=8, help="summaries of which one is best")
    parser.add_argument("--data-set", choices=list(KINDS), help="people of open data")
    parser.add_argument("--folder", type=Path, help="where that lies")
    arguments = parse(parser)
    if (arguments.data_set is None) != (arguments.folder is None):
        parser.error("--data-set and --folder go together")
    set_apart(arguments)
    if arguments.quick:
        arguments.people, arguments.items, arguments.questions = 2, 2, 2
        arguments.prompts, arguments.tokens, arguments.number = 2, 16, 2
    return arguments


def told_of(
    model: LanguageModel, person: Person, poles: dict[str, str], arguments: argparse.Namespace
) -> dict[str, str]:
    """What is said of a person, by way; kept as it is written."""
    header = {
        "model": model.fingerprint.to_dict(),
        "dtype": model.precision,
        "history": content_key([asdict(item) for item in person.history]),
        "wordings": content_key(wordings()),
        "number": arguments.number,
        "seed": arguments.seed,
    }
    path = arguments.work_dir / "told" / f"{content_key(header)}.jsonl"
    journal = Journal(path, header)
    if not journal.rows:
        settings: dict[str, Any] = {"judged": JUDGED, "seed": arguments.seed}
        one = summarise(model, person.history, number=1, **settings)
        best = summarise(model, person.history, number=arguments.number, **settings)
        journal.append([{GREEDY: one.text, BEST: best.text}])
        journal = Journal(path, header)
    told = dict(journal.rows[0])
    if person.hidden is not None:
        for way, instruction, weights in (
            (IN_WORDS, ONE, person.hidden.inferred(arguments.seed)),
            (TRUE, TRUE_ONE, person.hidden.weights),
        ):
            by_trait = dict(zip(poles, weights.tolist(), strict=True))
            told[way] = in_words(poles, by_trait)
            heaviest = trait_of(max(by_trait, key=lambda name: by_trait[name]), ())
            told[instruction] = heaviest.positive.instructions[0]
    return told


def with_history(person: Person, prompt: str) -> str:
    """A prompt after the listed choices."""
    rows = [
        wordings()["only_liked"].format(liked=item.text)
        if item.disliked is None
        else wordings()["item"].format(liked=item.text, disliked=item.disliked)
        for item in person.history
    ]
    return "\n\n".join([*rows, prompt])


def asked(
    reader: LanguageModel,
    people: Sequence[Person],
    told: Sequence[dict[str, str]],
    folder: Path,
    arguments: argparse.Namespace,
) -> dict[str, list[Float64]]:
    """Margins of each person's test pairs, by way."""
    header = {
        "reader": reader.fingerprint.to_dict(),
        "dtype": reader.precision,
        "told": content_key(list(told)),
        "test": content_key([[asdict(item) for item in person.test] for person in people]),
    }
    journal = Journal(folder / f"asked-{content_key(header)}.jsonl", header)
    rows = list(journal.rows)
    for number in tqdm(range(len(rows), len(people)), desc="asking", disable=None):
        person = people[number]
        prompts = [prompt_of(item) for item in person.test]
        chats: dict[str, list[str | Chat]] = {
            HISTORY: [with_history(person, prompt) for prompt in prompts],
            TURNS: [dialogue(person.history, prompt) for prompt in prompts],
        }
        for way in SUMMARIES:
            if way in told[number]:
                chats[way] = [said(told[number][way], prompt, "user") for prompt in prompts]
        values = told_margins(reader, list(chats.values()), person.test, judged=JUDGED)
        found = dict(zip(chats, values, strict=True))
        if person.hidden is not None:
            inferred = person.hidden.inferred(arguments.seed)
            found[WEIGHTS] = person.hidden.test_differences @ inferred
        rows.append({way: row.tolist() for way, row in found.items()})
        journal.append([rows[-1]])
    order = [way for way in (HISTORY, TURNS, *SUMMARIES, WEIGHTS) if way in rows[0]]
    return {way: [np.array(row[way]) for row in rows] for way in order}


def line(
    reader: LanguageModel,
    way: str,
    people: Sequence[Person],
    told: Sequence[dict[str, str]],
    rows: Sequence[Float64],
    seed: int,
) -> Line:
    """One way's accuracy and tokens."""
    right = np.array([float((row > 0).mean()) for row in rows])
    rng = np.random.default_rng(seed)
    drawn = right[rng.integers(len(right), size=(2000, len(right)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    if way in SUMMARIES:
        tokens = [len(response_tokens(reader, one[way])) for one in told]
    elif way == WEIGHTS:
        tokens = [0]
    else:
        tokens = [_extra(reader, way, person) for person in people]
    margin = float(np.mean([row.mean() for row in rows]))
    return Line(way, reader.name, float(right.mean()), low, high, margin, float(np.mean(tokens)))


def _extra(reader: LanguageModel, way: str, person: Person) -> int:
    prompt = prompt_of(person.test[0])
    chat = with_history(person, prompt) if way == HISTORY else dialogue(person.history, prompt)
    both = [prompt_tokens(reader, render(reader.tokenizer, one)) for one in (chat, prompt)]
    return len(both[0]) - len(both[1])


def write(
    lines: Sequence[Line],
    people: Sequence[Person],
    examples: Sequence[dict[str, str]],
    model: LanguageModel,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON, CSV and Markdown."""
    content = {
        **provenance("experiments/popi/inferring.py", model, arguments),
        "data set": arguments.data_set,
        "split": arguments.split,
        "people": len(people),
        "items": arguments.items,
        "questions": arguments.questions,
        "consistent": arguments.consistent,
        "lines": [asdict(one) for one in lines],
        "examples": list(examples),
    }
    name = arguments.data_set or "inferring"
    write_json(arguments.output / f"{name}.json", content)
    write_csv(arguments.output / f"{name}.csv", Line, lines)
    write_markdown(arguments.output / f"{name}.md", markdown(content, lines))


def markdown(content: dict[str, Any], lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    who = (
        f"simulated people with {content['items']} choices each on {content['split']} prompts, "
        f"consistent {content['consistent']:.0%} of the time on the median pair"
        if content["data set"] is None
        else f"people of {content['data set']} with {content['items']} items each"
    )
    rows = [
        f"{content['people']} {who}, and {content['questions']} further pairs. Summaries by "
        f"{content['model']}, {content['dtype']}, seed {content['seed']}. In brackets: 95%, "
        "bootstrap over people.",
        "",
        "| told | reader | reward accuracy | mean margin, nats | tokens |",
        "|---" * 5 + "|",
    ]
    rows += [
        f"| {one.way} | {'none' if one.way == WEIGHTS else one.reader} | {one.accuracy:.3f} "
        f"({one.low:.3f} to {one.high:.3f}) | "
        f"{'' if one.way == WEIGHTS else f'{one.margin:+.2f}'} | {one.tokens:.0f} |"
        for one in lines
    ]
    if len({one.reader for one in lines}) == 1:
        rows += ["", "Another model that reads the same summaries: not run (`--reader MODEL`)."]
    rows += ["", "Summaries of the first people:", ""]
    rows += [
        "- " + " ".join(f"{way}: *{text}*" for way, text in one.items())
        for one in content["examples"]
    ]
    rows += ["", last_line(content)]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
