"""How fair an objective should be: what mixtures get where one trait's gain can pay for another's.

    python experiments/fairness.py        # a minute: the model is not run

For each fairness (`steer.objective`) a portfolio of as many edits as the bundle's is chosen anew
among the edits that the bundle's was confirmed with, with and without the compositions that stand
beside what the search found. Every mixture of two and three traits (arena/mixtures.py) is routed,
and read is what it gets of each weighted trait, by the rewards that the portfolio was made by, on
the develop prompts that confirmed it. Traits that undo each other (arena/mixtures.py) are left
out. Written are fairness.md, .csv and .json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from runs import add_bundle, last_line
from tables import write_csv, write_json, write_markdown
from timing import command

from steer.bundle import Bundle
from steer.certificate import with_unsteered, worst_delta
from steer.objective import Objective
from steer.portfolio import Portfolio
from steer.portfolio_build import equal_compositions
from steer.prune import prune_to_size
from steer.route import route
from steer.versions import versions

sys.path.append(str(Path(__file__).parent / "arena"))
from mixtures import all_mixtures  # noqa: E402

FAIRNESS = (0.0, 0.25, 0.5, 0.75, 0.9)
UNDO = {"simplicity", "formality"}
SURE = 0.1  # of the headroom: about what 40 prompts can tell from nothing


@dataclass(frozen=True)
class Row:
    """What one portfolio gives mixtures of one size.

    Attributes:
        fairness: Of the objective.
        compositions: Whether compositions stand beside what the search found.
        candidates: Edits that are chosen from.
        delta: Largest loss of J, relative to them.
        traits: Weighted traits.
        mixtures: So many.
        all_gain: Mixtures of which every weighted trait closes a tenth of its headroom.
        least: Headroom that the weighted trait with the least closes, mean over mixtures.
        weighted: Headroom that is closed, weighted as was asked, mean over mixtures.
        kl: Nats per token, mean over mixtures.
    """

    fairness: float
    compositions: bool
    candidates: int
    delta: float
    traits: int
    mixtures: int
    all_gain: int
    least: float
    weighted: float
    kl: float


def main() -> None:
    """Choose, route, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bundle(parser)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "fairness"
    )
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle)
    portfolio = bundle.portfolio
    if portfolio is None:
        parser.error("the bundle holds no portfolio")
    composed = set(equal_compositions(portfolio.traits, bundle.interference))
    every = list(range(len(portfolio.candidates)))
    searched = [i for i in every if portfolio.candidates[i] not in composed]
    rows = [
        row
        for compositions, some in ((False, searched), (True, every))
        for fairness in FAIRNESS
        for row in rows_of(portfolio, some, fairness, compositions)
    ]
    content = {
        "command": command("experiments/fairness.py"),
        "model": bundle.model,
        "edits": {name: bundle.traits[name].edit.digest for name in portfolio.traits},
        "size": len(portfolio.kept),
        "rows": [asdict(row) for row in rows],
        "versions": versions(),
    }
    write_json(arguments.output / "fairness.json", content)
    write_csv(arguments.output / "fairness.csv", Row, rows)
    text = markdown(rows, len(portfolio.kept)) + "\n" + last_line(content) + "\n"
    write_markdown(arguments.output / "fairness.md", text)


def rows_of(
    portfolio: Portfolio, some: list[int], fairness: float, compositions: bool
) -> Iterator[Row]:
    """What a portfolio of some of the candidates gives mixtures of two, and of three traits."""
    objective = Objective(fairness=fairness)
    rewards, kl = portfolio.mean_rewards[some], portfolio.kl[some]
    data = objective.measured(rewards, kl)
    kept = prune_to_size(data, len(portfolio.kept))
    delta = worst_delta(data, with_unsteered(data, kept), 0.0).loss
    closed = (rewards - rewards[0]) / (1 - rewards[0])
    mixtures = [one for one in all_mixtures(portfolio.traits) if not one.keys() >= UNDO]
    for number in (2, 3):
        asked = np.array(
            [
                [one.get(trait, 0.0) / sum(one.values()) for trait in portfolio.traits]
                for one in mixtures
                if len(one) == number
            ]
        )
        served = route(data, kept, asked)
        least = np.where(asked > 0, closed[served], np.inf).min(1)
        yield Row(
            fairness,
            compositions,
            len(some),
            delta,
            number,
            len(asked),
            int((least > SURE).sum()),
            float(least.mean()),
            float((asked * closed[served]).sum(1).mean()),
            float(kl[served].mean()),
        )


def markdown(rows: list[Row], size: int) -> str:
    """The table."""
    lines = [
        f"Portfolios of {size} edits, by the fairness of the objective that chooses, with and "
        "without compositions beside what the search found. Of each mixture what it is routed to: "
        f"in how many every weighted trait closes {SURE:.0%} of its headroom, what the one with "
        "the least closes, and the weighted mean. By the portfolio's rewards, on the develop "
        "prompts that it was chosen on.",
        "",
        "| compositions | edits | fairness | worst δ | traits | every trait gains | least "
        "| weighted | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {'yes' if row.compositions else 'no'} | {row.candidates} | {row.fairness:g} "
        f"| {row.delta:.4f} | {row.traits} | {row.all_gain} of {row.mixtures} "
        f"| {row.least:.2f} | {row.weighted:.2f} | {row.kl:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
