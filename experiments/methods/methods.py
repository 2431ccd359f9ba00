"""What does each way to personalise gain, and what does it cost? One table.

    python experiments/methods/methods.py --data FOLDER            # some hours of a core; goes on
    python experiments/methods/methods.py --data FOLDER --quick    # only shows that it runs

FOLDER holds the data sets that measures are fitted to (arena/reads.py) and the questions of
capability_tasks.py. Users are weights drawn uniformly over the portfolio's traits. Each method has
a few settings (contestants.py); all answer develop prompts to develop users, and the one with the
largest gain among those whose answers are as whole as the unsteered model's (arena/judging.py) is
the one that answers report prompts to report users, read by measures that took no part before.

    gain          weighted share of the headroom that is closed, mean over users
    forgetting    points of accuracy on questions with choices, asked in a chat
    cost          costs.py: prompt tokens, passes and seconds a token, keys and values
    judge         who reads the user's summary (judges.py): the model itself, which the table says,
                  or with --judge-url and --judge-model any OpenAI-compatible one

Written are methods.md, .csv, .json and sweeps.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contestants import (
    COMPOSED,
    PLAIN,
    ROUTED,
    UNSTEERED,
    Setting,
    Told,
    User,
    answer_all,
    bundle_key,
    key,
    settings,
    user_key,
    users,
)
from costs import Cost, costs
from earning import LEAST_ROOM, Gain, each_gain, earned, gains, room, wholeness
from forgetting import DEFINED, accuracy
from judges import agreement, local_opinion, remote_preference, summary
from tqdm import tqdm

# What experiments share is one folder up; measures, judging and questions are the arena's.
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "arena"))
from capability_tasks import TASKS  # noqa: E402
from judging import BANDS, Coherence, interval  # noqa: E402
from palm.figures import panels, save  # noqa: E402
from precision import loaded  # noqa: E402
from reads import READS, People, Reads  # noqa: E402
from runs import add_bundle, common_parser, last_line, parse, provenance, set_apart  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402

from steer.bundle import Bundle  # noqa: E402
from steer.generation import Decoding  # noqa: E402
from steer.journal import Journal  # noqa: E402
from steer.prompts import load_prompts  # noqa: E402
from steer.remote import RemoteModel  # noqa: E402
from steer.resources import content_key  # noqa: E402
from steer.steerer import Steerer  # noqa: E402
from steer.versions import versions  # noqa: E402

BAND = max(BANDS)
QUESTIONS = ("ARC-Easy", "openbookqa")


@dataclass(frozen=True)
class Line:
    """One method of the table.

    Attributes:
        method: Which.
        setting: Chosen on develop prompts.
        admissible: Whether its answers there were as whole as the unsteered model's. If no
            setting's were, the one with the largest gain stands in the table, and is marked.
        gain: Weighted share of the headroom that is closed.
        low: Lower end of its interval.
        high: Upper end.
        incoherent: Share of answers that loop or are broken.
        relevant: Share about their prompt.
        log_likelihood: Nats per token under the unedited model.
        extra_prompt: Prompt tokens beyond the plain prompt's.
        passes: Rows of the model a written token.
        latency: Seconds a token over the unsteered model's.
        latency_low: Lower end of its interval.
        latency_high: Upper end.
        cache: Keys and values held at the end of an answer, kB.
        accuracy: Points of accuracy gained; None where no likelihood is defined.
        accuracy_low: Lower end of its interval.
        accuracy_high: Upper end.
        preferred: Share of answers that the judge prefers to the unsteered model's.
    """

    method: str
    setting: str
    admissible: bool
    gain: float
    low: float
    high: float
    incoherent: float
    relevant: float
    log_likelihood: float
    extra_prompt: float
    passes: float
    latency: float
    latency_low: float
    latency_high: float
    cache: float
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    preferred: float


@dataclass(frozen=True)
class Tried:
    """One setting on develop prompts.

    Attributes:
        method: Which.
        setting: Its name.
        knob: The number that is swept.
        gain: By the search measures.
        whole: Whether answers are as whole as the unsteered model's.
        incoherent: Share of answers that loop or are broken.
        relevant: Share about their prompt.
        log_likelihood: Nats per token under the unedited model.
    """

    method: str
    setting: str
    knob: float | None
    gain: float
    whole: bool
    incoherent: float
    relevant: float
    log_likelihood: float


def main() -> None:
    """Search, report, count, ask, judge and write."""
    arguments = read_arguments()
    model = loaded(arguments)
    steerer = Steerer(model, Bundle.load(arguments.bundle))
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    labelled = People(arguments.data, arguments.seed, arguments.work_dir, arguments.pairs)
    reads = {trait: READS[trait](model, labelled) for trait in portfolio.traits}
    decoding = Decoding(max_new_tokens=arguments.tokens)
    tried, chosen = search(steerer, reads, decoding, arguments)
    sound = {key(PLAIN)} | {f"{one.method}: {one.setting}" for one in tried if one.whole}

    people = users(portfolio.traits, arguments.users, arguments.seed)
    prompts = [prompt.text for prompt in load_prompts("report")[: arguments.prompts]]
    path = arguments.work_dir / "report.jsonl"
    arms = [PLAIN, *chosen]
    told = answer_all(steerer, arms, people, prompts, decoding, path, arguments.seed)
    by_arm = {arm.method: [told[key(arm), user_key(arm, user)] for user in people] for arm in arms}
    measures = {trait: one.report for trait, one in reads.items()}
    read = {name: earned(measures, prompts, rows) for name, rows in by_arm.items()}
    gained = {
        name: gains(one, read[UNSTEERED], people, arguments.seed) for name, one in read.items()
    }
    whole = {name: wholeness(prompts, rows) for name, rows in by_arm.items()}
    judged = judge(steerer, by_arm, read, people, prompts, arguments)
    kept = knowledge(steerer, chosen, people, arguments)
    spent = costs(steerer, chosen, people, prompts, decoding, arguments.seed)
    lines = [
        line(
            arm,
            key(arm) in sound,
            gained[arm.method],
            whole[arm.method],
            spent[arm.method],
            kept,
            judged,
        )
        for arm in arms
    ]
    left = dict(zip(reads, room(read[UNSTEERED]).tolist(), strict=True))
    write(lines, tried, people, prompts, left, judged, steerer, arguments)


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = common_parser(__doc__, "methods")
    add_bundle(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    every = list(dict.fromkeys(one.method for one in settings(quick=False)))
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--users", type=int, default=4, help="report users")
    parser.add_argument("--develop-users", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12, help="report prompts")
    parser.add_argument("--develop-prompts", type=int, default=8)
    parser.add_argument("--questions", type=int, default=30, help="of each task")
    parser.add_argument("--pairs", type=int, default=1000, help="that measures are fitted to")
    parser.add_argument("--tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--judge-url", default=None, help="of an OpenAI-compatible API")
    parser.add_argument("--judge-model", default=None, help="its name there")
    arguments = parse(parser)
    if (arguments.judge_url is None) != (arguments.judge_model is None):
        parser.error("--judge-url and --judge-model go together")
    set_apart(arguments)
    if arguments.quick:
        arguments.users, arguments.develop_users = 2, 1
        arguments.prompts, arguments.develop_prompts = 3, 2
        arguments.questions, arguments.pairs, arguments.tokens = 4, 100, 24
    return arguments


def search(
    steerer: Steerer, reads: Mapping[str, Reads], decoding: Decoding, arguments: argparse.Namespace
) -> tuple[list[Tried], list[Setting]]:
    """Every setting on develop prompts, and of each method the best that is whole."""
    portfolio = steerer.bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    shown = {one.prompt for one in portfolio.answered}
    # Few-shot shows kept answers to develop prompts; the last ones took no part in anything.
    left = [prompt.text for prompt in load_prompts("develop") if prompt.text not in shown]
    prompts = left[-arguments.develop_prompts :]
    people = users(tuple(reads), arguments.develop_users, arguments.seed + 1)
    path = arguments.work_dir / "develop.jsonl"
    tried_by = arguments.methods
    wanted = [PLAIN, *(one for one in settings(arguments.quick) if one.method in tried_by)]
    told = answer_all(steerer, wanted, people, prompts, decoding, path, arguments.seed)
    measures = {trait: one.search for trait, one in reads.items()}

    def rows(setting: Setting) -> list[Told]:
        return [told[key(setting), user_key(setting, user)] for user in people]

    before, base = earned(measures, prompts, rows(PLAIN)), wholeness(prompts, rows(PLAIN))
    tried, best = [], {}
    for setting in tqdm(wanted[1:], desc="reading", disable=None):
        found = float(each_gain(earned(measures, prompts, rows(setting)), before, people).mean())
        state = wholeness(prompts, rows(setting))
        sound = state.holds_against(base, BAND)
        tried.append(
            Tried(
                setting.method,
                setting.name,
                setting.knob,
                found,
                sound,
                state.incoherent,
                state.relevant,
                state.log_likelihood,
            )
        )
        known = best.get(setting.method)
        if known is None or (sound, found) > known[0]:
            best[setting.method] = ((sound, found), setting)
    return tried, [setting for _, setting in best.values()]


@dataclass(frozen=True)
class Judged:
    """What a judge says.

    Attributes:
        by: Who judged.
        preferred: By method, share of answers that are preferred to the unsteered model's.
        agreement: Share of pairs of answers that the judge and the rewards order alike.
        pairs: How many.
    """

    by: str
    preferred: dict[str, float]
    agreement: float
    pairs: int


def judge(
    steerer: Steerer,
    by_arm: Mapping[str, Sequence[Told]],
    read: Mapping[str, np.ndarray],
    people: Sequence[User],
    prompts: Sequence[str],
    arguments: argparse.Namespace,
) -> Judged:
    """Judge every answer by its user's summary."""
    poles = {name: steerer.bundle.traits[name].positive for name in people[0].weights}
    texts = [summary(user, poles) for user in people]
    weights = np.array([list(user.weights.values()) for user in people])  # (U, d)
    worth = {name: (one * weights[:, None]).sum(-1).ravel() for name, one in read.items()}
    if arguments.judge_url is not None:
        return _remote(by_arm, worth, texts, prompts, arguments)
    model = steerer.language_model
    opinions = {
        name: np.concatenate(
            [
                local_opinion(model, text, prompts, one)
                for text, one in zip(texts, told, strict=True)
            ]
        )
        for name, told in tqdm(by_arm.items(), desc="judging", disable=None)
    }
    preferred = {name: float(np.mean(one > opinions[UNSTEERED])) for name, one in opinions.items()}
    share, pairs = agreement(list(opinions.values()), [worth[name] for name in opinions])
    return Judged(f"{model.name}, the model under test itself", preferred, share, pairs)


def _remote(
    by_arm: Mapping[str, Sequence[Told]],
    worth: Mapping[str, np.ndarray],
    texts: Sequence[str],
    prompts: Sequence[str],
    arguments: argparse.Namespace,
) -> Judged:
    """Each method's answers against the unsteered model's, kept as they come."""
    remote = RemoteModel(arguments.judge_url, arguments.judge_model)
    header = {"judge": [remote.base_url, remote.model]}
    path = arguments.work_dir / f"judge-{content_key(header)}.jsonl"
    journal = Journal(path, header)
    known = {row["key"]: row["vote"] for row in journal.rows}
    preferred, same, number = {UNSTEERED: 0.5}, 0, 0
    for name, told in tqdm(by_arm.items(), desc="judging", disable=None):
        if name == UNSTEERED:
            continue
        votes = []
        for u, one in enumerate(told):
            for p, prompt in enumerate(prompts):
                pair = one.texts[p], by_arm[UNSTEERED][u].texts[p]
                one_key = content_key([texts[u], prompt, *pair])
                if one_key not in known:
                    known[one_key] = remote_preference(remote, texts[u], prompt, *pair)
                    journal.append([{"key": one_key, "vote": known[one_key]}])
                vote = known[one_key]
                votes += [] if vote is None else [vote]
                at = u * len(prompts) + p
                better = worth[name][at] - worth[UNSTEERED][at]
                if vote in (0.0, 1.0) and better:
                    same += int((vote == 1.0) == (better > 0))
                    number += 1
        preferred[name] = float(np.mean(votes)) if votes else 0.5
    return Judged(remote.model, preferred, same / max(number, 1), number)


def knowledge(
    steerer: Steerer,
    chosen: Sequence[Setting],
    people: Sequence[User],
    arguments: argparse.Namespace,
) -> dict[str, tuple[float, float, float]]:
    """Points of accuracy that a method gains, with the interval, of the first two users."""
    tasks = [task for task in TASKS if task.name in QUESTIONS]
    documents = [
        one
        for task in tasks
        for one in task.documents(arguments.data, arguments.questions, arguments.seed)
    ]
    path = arguments.work_dir / "questions.jsonl"
    header = {
        "model": steerer.language_model.fingerprint.to_dict(),
        "dtype": steerer.language_model.precision,
        "bundle": bundle_key(steerer.bundle),
        "documents": content_key(documents),
        "versions": versions(),
    }
    journal = Journal(path, header)
    known = {row["key"]: np.array(row["right"]) for row in journal.rows}
    found = {}
    for setting in tqdm([PLAIN, *chosen], desc="questions", disable=None):
        if setting.weighted and setting.method not in DEFINED:
            continue
        right = []
        for user in people[:2] if setting.weighted else people[:1]:
            one_key = f"{key(setting)}, {user_key(setting, user)}"
            if one_key not in known:
                known[one_key] = accuracy(steerer, setting, user, documents)
                journal.append([{"key": one_key, "right": known[one_key].tolist()}])
            right.append(known[one_key].astype(float))
        found[setting.method] = np.mean(right, axis=0)  # (n,)
    rng = np.random.default_rng(arguments.seed)
    drawn = rng.integers(len(documents), size=(2000, len(documents)))
    result = {}
    for name, right in found.items():
        change = 100 * (right - found[UNSTEERED])
        result[name] = (float(change.mean()), *interval(change[drawn].mean(1)))
    return result


def line(
    arm: Setting,
    admissible: bool,
    gained: Gain,
    whole: Coherence,
    cost: Cost,
    kept: Mapping[str, tuple[float, float, float]],
    judged: Judged,
) -> Line:
    """One method of the table."""
    points = kept.get(arm.method, (None, None, None))
    return Line(
        arm.method,
        arm.name,
        admissible,
        gained.value,
        *gained.interval,
        whole.incoherent,
        whole.relevant,
        whole.log_likelihood,
        cost.extra_prompt,
        cost.passes,
        cost.latency,
        cost.latency_low,
        cost.latency_high,
        cost.cache,
        *points,
        judged.preferred[arm.method],
    )


def write(
    lines: Sequence[Line],
    tried: Sequence[Tried],
    people: Sequence[User],
    prompts: Sequence[str],
    left: Mapping[str, float],
    judged: Judged,
    steerer: Steerer,
    arguments: argparse.Namespace,
) -> None:
    """Write JSON, CSV, Markdown and the sweeps."""
    content = {
        **provenance("experiments/methods/methods.py", steerer.language_model, arguments),
        "users": [asdict(user) for user in people],
        "prompts": len(prompts),
        "tokens": arguments.tokens,
        "headroom": dict(left),
        "judge": asdict(judged),
        "tried": [asdict(one) for one in tried],
        "lines": [asdict(one) for one in lines],
    }
    write_json(arguments.output / "methods.json", content)
    write_csv(arguments.output / "methods.csv", Line, lines)
    write_markdown(arguments.output / "methods.md", markdown(content, lines, tried))
    draw(tried, arguments.output / "sweeps.png")


def markdown(content: dict[str, Any], lines: Sequence[Line], tried: Sequence[Tried]) -> str:
    """The tables as Markdown."""
    who = content["judge"]
    rooms = ", ".join(f"{trait} {one:.2f}" for trait, one in content["headroom"].items())
    rows = [
        f"{len(content['users'])} users with weights over {len(content['users'][0]['weights'])} "
        f"traits, {content['prompts']} report prompts, answers of at most {content['tokens']} "
        f"tokens. {content['model']}, {content['dtype']}, seed {content['seed']}. In brackets: "
        "95%, bootstrap over users and prompts, over questions, over rounds.",
        "",
        "| method | setting | gain | loops or is broken | about its prompt | nats per token | "
        "accuracy, points | judge prefers it | extra prompt tokens | passes a token | latency | "
        "gain a latency | keys and values, kB |",
        "|---" * 13 + "|",
    ]
    for one in lines:
        points = (
            "not defined"
            if one.accuracy is None
            else f"{one.accuracy:+.1f} ({one.accuracy_low:+.1f} to {one.accuracy_high:+.1f})"
        )
        rows.append(
            f"| {one.method} | {one.setting}{'' if one.admissible else ' (not whole)'} | "
            f"{one.gain:.2f} ({one.low:.2f} to {one.high:.2f}) | "
            f"{one.incoherent:.1%} | {one.relevant:.0%} | {one.log_likelihood:.2f} | {points} | "
            f"{one.preferred:.0%} | {one.extra_prompt:.0f} | {one.passes:.2f} | "
            f"{one.latency:.2f} ({one.latency_low:.2f} to {one.latency_high:.2f}) | "
            f"{one.gain / one.latency:.2f} | {one.cache:.0f} |"
        )
    rows += [
        "",
        "Gain: weighted share of the headroom closed, by measures that took no part in search; "
        f"traits with less than {LEAST_ROOM:g} are left out. Headroom: {rooms}. "
        "Not whole: on develop prompts none of the method's settings left answers as whole as the "
        "unsteered model's. "
        "Accuracy: of the first two users, on questions with choices in a chat. Latency: seconds "
        "a written token over the unsteered model's, one answer at a time. Of a user every method "
        "stores the weights alone; keys and values are held while an answer is written.",
        "",
        f"Judge: {who['by']}, which reads the user's summary. It orders two answers as the "
        f"weighted report measures do in {who['agreement']:.0%} of {who['pairs']} pairs.",
        "",
        "Develop prompts, by the search measures:",
        "",
        "| method | setting | gain | as whole as the unsteered model's | loops or is broken | "
        "about its prompt | nats per token |",
        "|---" * 7 + "|",
    ]
    rows += [
        f"| {one.method} | {one.setting} | {one.gain:.2f} | {'yes' if one.whole else 'no'} | "
        f"{one.incoherent:.1%} | {one.relevant:.0%} | {one.log_likelihood:.2f} |"
        for one in tried
    ]
    rows += ["", last_line(content)]
    return "\n".join(rows) + "\n"


def draw(tried: Sequence[Tried], path: Path) -> None:
    """What each method gains for how unlikely its answers become, along its knob."""
    figure, axes = panels(1, 1, 6.4, 4.2)
    axis = axes[0][0]
    methods = list(dict.fromkeys(one.method for one in tried))
    for number, method in enumerate(methods):
        mine = [one for one in tried if one.method == method]
        swept = sorted((one for one in mine if one.knob is not None), key=lambda one: one.knob or 0)
        ours = method in (ROUTED, COMPOSED)
        colour = f"C{number}"
        if swept:
            axis.plot(
                [one.log_likelihood for one in swept],
                [one.gain for one in swept],
                "-",
                color=colour,
                lw=2.2 if ours else 1.2,
            )
        for sound, marker in ((True, "o"), (False, "x")):
            some = [one for one in mine if one.whole == sound]
            axis.plot(
                [one.log_likelihood for one in some],
                [one.gain for one in some],
                marker,
                color=colour,
                label=method if sound or not any(one.whole for one in mine) else None,
            )
    axis.axhline(0, color="#9aa0a6", ls="--")
    axis.set_xlabel("log-likelihood under the unedited model, nats per token")
    axis.set_ylabel("gain (develop prompts; x: not whole)")
    axis.legend(fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
