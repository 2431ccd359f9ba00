"""What a portfolio tells of itself, against a plain loop over mixtures."""

import json

import numpy as np
import pytest

from steer.certificate import certify
from steer.cover import uniform_weights
from steer.edits import additive
from steer.objective import Objective
from steer.portfolio import Candidate, Portfolio, Trial
from steer.portfolio_summary import served, summary

TRAITS = ("brevity", "warmth", "humor")


def portfolio(seed: int) -> Portfolio:
    rng = np.random.default_rng(seed)
    rewards, kl = rng.random((12, 3)), np.append(0, rng.random(11))
    kept, objective = (3, 1, 7, 8), Objective()
    return Portfolio(
        traits=TRAITS,
        rewards=("a", "b", "c"),
        objective=objective,
        candidates=tuple(Candidate("own", (float(i), 0.0, 0.0)) for i in range(12)),
        mean_rewards=rewards,
        kl=kl,
        kept=kept,
        edits=tuple(additive({0: np.ones(4, np.float32)}) for _ in kept),
        certificate=certify(objective.measured(rewards, kl), kept),
        searched=(Trial(Candidate("own", (0.0, 0.5, 0.0)), (0.1, 0.2, 0.3), 0.4),),
    )


@pytest.mark.parametrize("seed", range(5))
def test_an_entry_serves_where_no_other_is_better(seed: int) -> None:
    ours = portfolio(seed)
    shares, centres = served(ours)
    counts = np.zeros(5)
    lattice = uniform_weights(3, 1000)
    for w in lattice:
        best = [ours.measured.value(w)[index] for index in (0, *ours.kept)]
        counts[int(np.argmax(best))] += 1
    np.testing.assert_allclose(shares, counts / len(lattice), atol=0.03)
    assert shares.sum() == pytest.approx(1)
    for number, (share, centre) in enumerate(zip(shares, centres, strict=True)):
        if share == 0:
            assert np.isnan(centre).all()
        else:
            assert ours.entry(dict(zip(TRAITS, centre, strict=True))).number == number


@pytest.mark.parametrize("seed", range(5))
def test_the_summary_bears_out_its_certificate(seed: int) -> None:
    told = json.loads(json.dumps(summary(portfolio(seed)), allow_nan=False))

    def value(row: dict, w: dict[str, float]) -> float:
        return sum(w[name] * row["utilities"][name] for name in TRAITS) - row["f"]

    (trial,) = told["searched"]
    assert trial["rewards"] == dict(zip(TRAITS, (0.1, 0.2, 0.3), strict=True))
    assert (trial["coefficients"]["warmth"], trial["kl"]) == (0.5, 0.4)
    certificate = told["certificate"]
    worst = {"delta": 0.0, "epsilon": 0.0}
    mixtures = [dict(zip(TRAITS, w, strict=True)) for w in uniform_weights(3, 1000).tolist()]
    for w in [*mixtures, *certificate["worst_w"].values()]:
        best = max(value(row, w) for row in told["candidates"])
        lost = best - max(value(row, w) for row in told["entries"])
        worst["delta"] = max(worst["delta"], lost)
        worst["epsilon"] = max(worst["epsilon"], lost / best)
    for name, loss in worst.items():
        assert certificate[name] == pytest.approx(loss, abs=1e-6)
        better = told["candidates"][certificate["better_there"][name]]
        at = certificate["worst_w"][name]
        assert value(better, at) == pytest.approx(
            max(value(row, at) for row in told["candidates"]), abs=1e-6
        )
