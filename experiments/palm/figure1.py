"""Figure 1: which preferences over three traits a set of weights stands for, and which it misses.

Four panels at (eps', delta'): the combined grid of PALM (arXiv 2604.04144), as many uniform and
random weights, and the smaller scale-free cover. Every verdict is exact, over the continuous
simplex; the picture samples it only to be drawn.

    python experiments/palm/figure1.py            # figure1.png, figure1.csv, a few seconds
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from figures import panels, save
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

# What experiments share is one folder up.
sys.path.append(str(Path(__file__).parents[1]))
from runs import add_output, parse  # noqa: E402

from steer.cover import (  # noqa: E402
    Closeness,
    CoverCheck,
    grid,
    is_cover,
    minimal_cover,
    random_weights,
    uniform_weights,
)
from steer.resources import atomic_path  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results" / "palm"
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def main() -> None:
    """Make the sets, check them, draw them, and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eps-prime", type=float, default=0.4)
    parser.add_argument("--delta-prime", type=float, default=0.0125)
    parser.add_argument("--seed", type=int, default=0)
    add_output(parser, RESULTS)
    arguments = parse(parser)
    closeness = Closeness(arguments.eps_prime, arguments.delta_prime)
    combined = grid(3, closeness)
    uniform = uniform_weights(3, len(combined))
    optimised = minimal_cover(3, closeness, seed=arguments.seed)
    sets = {
        "combined grid": combined,
        "uniform": uniform,
        "random": random_weights(3, len(combined), arguments.seed),
        "scale-free cover": optimised.weights,
    }
    figure, places = panels(1, 4, 3.75, 4.1)
    rows = []
    for axes, (name, weights) in zip(places[0], sets.items(), strict=True):
        check = is_cover(weights, closeness, time_limit=60)
        panel(axes, weights, closeness, check, steps=60 if arguments.quick else 240)
        missed = f"{misses(weights, closeness):.1%} of all preferences missed"
        verdict = "covers every preference" if check.verdict == "yes" else missed
        axes.set_title(f"{name}, {len(weights)} weights\n{verdict}", fontsize=11)
        rows += [(name, check.verdict, *map(float, weight)) for weight in weights]
        print(f"{name:18} {len(weights):3} weights: {check.verdict}")
    figure.suptitle(
        f"Preferences that weights stand for at ε′ = {closeness.eps_prime:g}, "
        f"δ′ = {closeness.delta_prime:g}; brighter: by more of them, red: by none"
    )
    save(figure, arguments.output / "figure1.png")
    with (
        atomic_path(arguments.output / "figure1.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["set", "covers", "w1", "w2", "w3"])
        writer.writerows(rows)


def covering(
    points: NDArray[np.float64], weights: NDArray[np.float64], closeness: Closeness
) -> NDArray[np.bool_]:
    """Which weights stand for each preference: |w_i - v_i| <= eps' v_i + delta'."""
    far = np.abs(weights[None] - points[:, None])  # (points, weights, 3)
    near = far <= closeness.eps_prime * points[:, None] + closeness.delta_prime + 1e-12
    return np.asarray(near.all(2))


def misses(weights: NDArray[np.float64], closeness: Closeness) -> float:
    """Share of all preferences that no weight stands for, sampled."""
    return float((~covering(random_weights(3, 20_000, 1), weights, closeness).any(1)).mean())


def panel(
    axes: Axes,
    weights: NDArray[np.float64],
    closeness: Closeness,
    check: CoverCheck,
    *,
    steps: int,
) -> None:
    """One triangle: coverage, the weights on their rays, and a counterexample if there is one."""
    lattice = [(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]
    points = np.array(lattice) / steps
    inside = covering(points, weights, closeness)
    count = inside.sum(1)
    colours = colormaps["viridis"](0.25 + 0.75 * np.minimum(count, 8) / 8)
    colours[count == 0] = (0.85, 0.19, 0.15, 1.0)
    # The edge of a cell is where the next point of the lattice is in other cells.
    place_of = {place: n for n, place in enumerate(lattice)}
    for n, (i, j, k) in enumerate(lattice):
        for beside in ((i + 1, j, k - 1), (i, j + 1, k - 1)):
            if beside in place_of and (inside[n] != inside[place_of[beside]]).any():
                colours[n] = 0.55 * colours[n] + 0.45
    places = points @ CORNERS
    size = (260 / steps) ** 2
    axes.scatter(places[:, 0], places[:, 1], s=size, c=colours, marker="h", linewidths=0)
    # Raw weights need not sum to one; they are drawn where their ray meets the triangle.
    rays = (weights / weights.sum(1, keepdims=True)) @ CORNERS
    axes.scatter(rays[:, 0], rays[:, 1], s=9, c="black", linewidths=0)
    if check.counterexample is not None:
        x, y = np.array([float(v) for v in check.counterexample]) @ CORNERS
        axes.plot(x, y, marker="x", color="white", markersize=9, markeredgewidth=2.5)
        axes.plot(x, y, marker="x", color="black", markersize=8, markeredgewidth=1.2)
    axes.set_aspect("equal")
    axes.set_axis_off()


if __name__ == "__main__":
    main()
