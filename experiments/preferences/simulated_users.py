"""How fast weights are found out by asking, for simulated people.

    python experiments/preferences/simulated_users.py            # a quarter of an hour of a core
    python experiments/preferences/simulated_users.py --quick    # only shows that it runs

A person's weights are drawn evenly from the simplex. Asked about two answers of the bundle's
portfolio they follow Bradley and Terry, with a slope at which the median person is consistent 65,
75 or 90% of the time on the median pair; the posterior does not know it. Routed regret is J of the
best measured edit minus J of the entry that the posterior's mean weights are routed to.

    active    `steer.asking.best_question` out of all questions that are left
    random    questions at random
    ideal     active, with answers that differ as no real ones do: by -1, 0 or 1 in every reward.
              What no better set of answers could surpass by much

Of four traits: the five faces of the bundle's five, each by itself, whose people are pooled. And
all five. Passive: fifty random pairs at once. Drift: sessions of four active questions, between
which weights move a fifth of the way to other ones. There the model can also be told in its prompt
what the posterior says, or the true weights; what that is worth is measured by prompted.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import binomtest

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from palm.figures import panels, save  # noqa: E402
from runs import add_bundle, add_output, last_line, parse  # noqa: E402
from tables import write_csv, write_json, write_markdown  # noqa: E402
from timing import command  # noqa: E402

from steer.asking import best_question  # noqa: E402
from steer.baselines.prompting import heavy  # noqa: E402
from steer.bundle import Bundle  # noqa: E402
from steer.certificate import Measured  # noqa: E402
from steer.cover import random_weights  # noqa: E402
from steer.posterior import Posterior  # noqa: E402
from steer.questions import questions_of  # noqa: E402
from steer.route import route  # noqa: E402
from steer.versions import versions  # noqa: E402

Float64 = NDArray[np.float64]

CONSISTENT = (0.65, 0.75, 0.9)
ARMS = ("active", "random", "ideal")
COLOURS = dict(zip(ARMS, ("#1f6fb2", "#e0872e", "#9aa0a6"), strict=True))
ASKED = (0, 1, 2, 4, 8, 12, 16)
ENOUGH = 0.02
PASSIVE = 50
SESSIONS, EACH, MOVED = 6, 4, 0.2
KEEP = {"static": None, "never forgets": 1.0, "forgets (keep .8)": 0.8, "forgets (keep .5)": 0.5}
RESULTS = Path(__file__).parents[1] / "results" / "preferences"


@dataclass(frozen=True, eq=False)
class Told:
    """What a prompt is worth.

    Attributes:
        utility: u (d,).
        regulariser: f.
    """

    utility: Float64
    regulariser: float


@dataclass(frozen=True, eq=False)
class Place:
    """Some traits of the portfolio, and what can be asked about them.

    Attributes:
        measured: Utilities of these traits.
        kept: Which are served.
        differences: Of every question (q, d).
        seed: Draws its people.
        told: By the traits whose instructions are told, what a prompt is worth; None: not known.
    """

    measured: Measured
    kept: tuple[int, ...]
    differences: Float64
    seed: int
    told: Mapping[frozenset[int], Told] | None = None

    @property
    def traits(self) -> int:
        """How many traits there are."""
        return self.differences.shape[1]

    def slope(self, people: Float64, consistent: float) -> float:
        """At which people are consistent so often, on the median of all pairs and people."""
        return float(logit(consistent) / np.median(np.abs(self.differences @ people.T)))

    def regret(self, posterior: Posterior, weights: Float64) -> float:
        """Of what the posterior is served, at the true weights."""
        values = self.measured.value(weights[None])[0]
        return float(
            values.max() - values[route(self.measured, self.kept, posterior.mean[None])[0]]
        )

    def told_regret(self, said: Float64, weights: Float64) -> float:
        """Of a prompt that asks for what weighs in `said`, at the true weights.

        Against the best measured edit; below 0 where the prompt is better.
        """
        assert self.told is not None, "only asked where it is known"
        shares = {str(i): share for i, share in enumerate(said.tolist())}
        told = self.told[frozenset(int(name) for name in heavy(shares))]
        best = self.measured.value(weights[None])[0].max()
        return float(best - (weights @ told.utility - told.regulariser))


@dataclass(frozen=True)
class Row:
    """What is known after some questions.

    Attributes:
        traits: How many.
        consistent: On the median pair.
        arm: How questions are chosen.
        questions: So far.
        people: How many.
        served: Share of people with a routed regret of .02 or less.
        low: Lower end of its 95% interval (Wilson).
        high: Upper end.
        regret: Mean.
        distance: Median of half the L1 distance between mean weights and true ones.
    """

    traits: int
    consistent: float
    arm: str
    questions: int
    people: int
    served: float
    low: float
    high: float
    regret: float
    distance: float


@dataclass(frozen=True)
class Passive:
    """What fifty random pairs tell: medians of half the L1 distance to the true weights."""

    traits: int
    consistent: float
    mean: float
    most_probable: float


@dataclass(frozen=True)
class Drift:
    """Regret summed over sessions, mean over people, with its 95% bootstrap interval."""

    way: str
    regret: float
    low: float
    high: float


def main() -> None:
    """Simulate and write."""
    arguments = read_arguments()
    bundle = Bundle.load(arguments.bundle)
    whole = _place(bundle, None, arguments.seed, told_in(arguments.told, bundle))
    faces = [_place(bundle, i, arguments.seed + 1 + i) for i in range(whole.traits)]
    rows, passive = [], []
    for places in (faces, [whole]):
        each = max(1, arguments.people // len(places))
        for consistent in CONSISTENT:
            for arm in ARMS:
                paths = np.concatenate([_paths(one, arm, consistent, each) for one in places])
                rows += table(places[0].traits, consistent, arm, paths)
            passive.append(_passive(places, consistent, each))
    drift = _drift(whole, max(2, arguments.people // 2))
    content = {
        "command": command("experiments/preferences/simulated_users.py"),
        "bundle": bundle.model,
        "fingerprint": bundle.fingerprint.to_dict(),
        "seed": arguments.seed,
        "versions": versions(),
        "questions": len(whole.differences),
        "rows": [asdict(row) for row in rows],
        "passive": [asdict(row) for row in passive],
        "drift": [asdict(row) for row in drift],
    }
    write_json(arguments.output / "asking.json", content)
    write_csv(arguments.output / "asking.csv", Row, rows)
    write_markdown(arguments.output / "asking.md", markdown(content, rows, passive, drift))
    draw(rows, arguments.output / "asking.png")


def read_arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bundle(parser)
    parser.add_argument("--people", type=int, default=200, help="of each number of traits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--told", type=Path, default=RESULTS / "prompted.json", help="what prompted.py wrote"
    )
    add_output(parser, RESULTS)
    arguments = parse(parser)
    if arguments.quick:
        arguments.people = 5
    return arguments


def told_in(path: Path, bundle: Bundle) -> dict[frozenset[int], Told] | None:
    """What prompts are worth; None if that has not been measured beside this very portfolio."""
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    portfolio = bundle.portfolio
    assert portfolio is not None, "the bundle holds one"
    if (
        tuple(content["traits"]) != portfolio.traits
        or content.get("measured edits") != portfolio.mean_rewards.tolist()
    ):
        # Another's rewards may be other ones of the same names.
        print(f"{path}: measured with another portfolio, so left out; run prompted.py again")
        return None
    rows = content["rows"]
    if rows[0]["traits"]:
        sys.exit(f"{path}: expected the plain prompt first")
    utilities = portfolio.objective.utility([row["rewards"] for row in rows])
    regulariser = portfolio.objective.regulariser([row["kl"] for row in rows])
    return {
        frozenset(portfolio.traits.index(name) for name in row["traits"]): Told(u, float(f))
        for row, u, f in zip(rows, utilities, regulariser, strict=True)
    }


def _place(
    bundle: Bundle,
    left_out: int | None,
    seed: int,
    told: Mapping[frozenset[int], Told] | None = None,
) -> Place:
    portfolio = bundle.portfolio
    if portfolio is None or not portfolio.answered:
        sys.exit("the bundle holds no answers to ask about")
    columns = [i for i in range(len(portfolio.traits)) if i != left_out]
    differences = np.array([one.difference[columns] for one in questions_of(portfolio.answered)])
    data = Measured(portfolio.measured.utilities[:, columns], portfolio.measured.regulariser)
    return Place(data, portfolio.kept, differences[differences.any(axis=1)], seed, told)


def _ideal(traits: int) -> Float64:
    signs = itertools.product((-1.0, 0.0, 1.0), repeat=traits)
    return np.array([row for row in signs if any(row)])


def _paths(place: Place, arm: str, consistent: float, people: int) -> Float64:
    """Of each person and number of questions, regret and distance (people, ASKED, 2)."""
    weights = random_weights(place.traits, people, place.seed)
    slope = place.slope(weights, consistent)
    found = []
    for number, mine in enumerate(weights):
        rng = np.random.default_rng((place.seed, number))
        posterior = Posterior.prior(np.ones(place.traits), seed=number)
        left = _ideal(place.traits) if arm == "ideal" else place.differences
        path = []
        for asked in range(max(ASKED) + 1):
            if asked in ASKED:
                path.append((place.regret(posterior, mine), _distance(posterior.mean, mine)))
            if arm == "random":
                chosen = int(rng.integers(len(left)))
            else:
                chosen = best_question(posterior, left, place.measured, place.kept)
            posterior = posterior.updated(_answer(left[chosen], mine, slope, rng))
            left = np.delete(left, chosen, axis=0)
        found.append(path)
    return np.array(found)


def _answer(
    difference: Float64, weights: Float64, slope: float, rng: np.random.Generator
) -> Float64:
    """Preferred minus other."""
    first = rng.random() < expit(slope * (difference @ weights))
    return difference if first else -difference


def _distance(found: Float64, true: Float64) -> float:
    return float(np.abs(found - true).sum() / 2)


def table(traits: int, consistent: float, arm: str, paths: Float64) -> list[Row]:
    """A row for each number of questions."""
    rows = []
    for k, questions in enumerate(ASKED):
        regret, distance = paths[:, k].T
        served = int((regret <= ENOUGH).sum())
        spread = binomtest(served, len(regret)).proportion_ci(method="wilson")
        rows.append(
            Row(
                traits,
                consistent,
                arm,
                questions,
                len(regret),
                served / len(regret),
                float(spread.low),
                float(spread.high),
                float(regret.mean()),
                float(np.median(distance)),
            )
        )
    return rows


def _passive(places: Sequence[Place], consistent: float, people: int) -> Passive:
    found = []
    for place in places:
        weights = random_weights(place.traits, people, place.seed)
        slope = place.slope(weights, consistent)
        for number, mine in enumerate(weights):
            rng = np.random.default_rng((place.seed, number))
            pairs = rng.choice(place.differences, PASSIVE, replace=False)
            said = [_answer(row, mine, slope, rng) for row in pairs]
            prior = Posterior.prior(np.ones(place.traits), seed=number)
            posterior = prior.after(said, np.ones(PASSIVE))
            ways = (posterior.mean, posterior.most_probable())
            found.append([_distance(way, mine) for way in ways])
    mean, most_probable = np.median(found, axis=0).tolist()
    return Passive(places[0].traits, consistent, mean, most_probable)


def _drift(place: Place, people: int) -> list[Drift]:
    totals = {way: np.array(list(_sessions(place, keep, people))) for way, keep in KEEP.items()}
    if place.told is not None:
        told = np.array(list(_sessions(place, 0.8, people, prompted=True)))
        totals["told what is known (keep .8)"] = told
        totals["told the true weights"] = np.array(
            [
                sum(place.told_regret(now, now) for now in wanted)
                for wanted in _wanted(place, people)
            ]
        )
    unasked = Posterior.prior(np.ones(place.traits), seed=place.seed)
    totals["never asked"] = np.array(
        [sum(place.regret(unasked, now) for now in wanted) for wanted in _wanted(place, people)]
    )
    rng = np.random.default_rng(place.seed)
    chosen = rng.integers(people, size=(2000, people))
    rows = []
    for way, values in totals.items():
        low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975]).tolist()
        rows.append(Drift(way, float(values.mean()), low, high))
    return rows


def _wanted(place: Place, people: int) -> Iterator[list[Float64]]:
    """Of each person, the weights of every session."""
    for number, first in enumerate(random_weights(place.traits, people, place.seed)):
        others = random_weights(place.traits, SESSIONS, place.seed + 1 + number)
        path = [first]
        for other in others[1:]:
            path.append((1 - MOVED) * path[-1] + MOVED * other)
        yield path


def _sessions(
    place: Place, keep: float | None, people: int, *, prompted: bool = False
) -> Iterator[float]:
    """Summed regret of each person, measured at the end of each session."""
    weights = random_weights(place.traits, people, place.seed)
    slope = place.slope(weights, 0.75)
    for number, wanted in enumerate(_wanted(place, people)):
        rng = np.random.default_rng((place.seed, number))
        posterior = Posterior.prior(np.ones(place.traits), seed=number)
        left, total = place.differences, 0.0
        for session, now in enumerate(wanted):
            if session and keep is not None:
                posterior = posterior.faded(keep)
            if not session or keep is not None:
                for _ in range(EACH):
                    chosen = best_question(posterior, left, place.measured, place.kept)
                    posterior = posterior.updated(_answer(left[chosen], now, slope, rng))
                    left = np.delete(left, chosen, axis=0)
            if prompted:
                total += place.told_regret(posterior.mean, now)
            else:
                total += place.regret(posterior, now)
        yield total


def markdown(
    content: dict[str, Any], rows: Sequence[Row], passive: Sequence[Passive], drift: Sequence[Drift]
) -> str:
    """The tables as Markdown."""
    lines = [
        f"Simulated people, {content['questions']} questions out of the bundle of "
        f"{content['bundle']}, seed {content['seed']}. Share of people with a routed regret of "
        f"{ENOUGH} or less, in brackets its 95% interval (Wilson); mean regret; median of half the "
        "L1 distance of the weights.",
        "",
        "| traits | consistent | chosen | asked | regret <= .02 | mean regret | distance |",
        "|---" * 7 + "|",
    ]
    lines += [
        f"| {one.traits} | {one.consistent:.0%} | {one.arm} | {one.questions} | {one.served:.0%} "
        f"({one.low:.0%} to {one.high:.0%}) | {one.regret:.4f} | {one.distance:.3f} |"
        for one in rows
    ]
    lines += [
        "",
        f"{PASSIVE} random pairs: median of half the L1 distance to the true weights.",
        "",
        "| traits | consistent | mean of the posterior | its maximum |",
        "|---" * 4 + "|",
    ]
    lines += [
        f"| {one.traits} | {one.consistent:.0%} | {one.mean:.3f} | {one.most_probable:.3f} |"
        for one in passive
    ]
    lines += [
        "",
        f"{SESSIONS} sessions of {EACH} questions, weights that drift, 75% consistent: regret "
        "summed over the sessions, with its 95% interval (bootstrap over people).",
        "",
        "| | summed regret |",
        "|---|---|",
    ]
    lines += [
        f"| {one.way} | {one.regret:.3f} ({one.low:.3f} to {one.high:.3f}) |" for one in drift
    ]
    if not any(one.way.startswith("told") for one in drift):
        lines.append("| told in the prompt | not run (`prompted.py`) |")
    return "\n".join([*lines, "", last_line(content)]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Shares of people who are served well, by questions: a panel a consistency."""
    numbers = sorted({row.traits for row in rows})
    figure, axes = panels(len(numbers), len(CONSISTENT), 3.6, 2.8)
    for line, traits in zip(axes, numbers, strict=True):
        for axis, consistent in zip(line, CONSISTENT, strict=True):
            for arm in ARMS:
                mine = [
                    row
                    for row in rows
                    if (row.traits, row.consistent, row.arm) == (traits, consistent, arm)
                ]
                x = [row.questions for row in mine]
                axis.fill_between(
                    x,
                    [100 * row.low for row in mine],
                    [100 * row.high for row in mine],
                    color=COLOURS[arm],
                    alpha=0.15,
                    lw=0,
                )
                axis.plot(
                    x, [100 * row.served for row in mine], "o-", ms=4, color=COLOURS[arm], label=arm
                )
            axis.axhline(90, color="#202124", ls=":", lw=1)
            axis.set_ylim(0, 100)
            axis.set_title(f"{traits} traits, {consistent:.0%} consistent", fontsize=10)
            axis.set_xlabel("questions")
            axis.set_ylabel("regret ≤ .02, % of people")
    axes[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
