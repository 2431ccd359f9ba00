"""A portfolio drawn: which entry serves which mixture.

For three traits the simplex is a triangle and every mixture a point of it; for others a bar an
entry shows its share of all mixtures.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from steer.picture import image_kind
from steer.portfolio import Portfolio
from steer.portfolio_summary import served
from steer.resources import atomic_path
from steer.route import route

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Corners of the triangle: left, right, top.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
_UNSTEERED = "#c9ccd1"


def draw_portfolio(portfolio: Portfolio, path: str | Path) -> None:
    """Write the picture as an image.

    Args:
        portfolio: What to show.
        path: Where to, ending in .png, .svg or .pdf; an existing file is replaced.

    Raises:
        InputError: If the path has another ending.
    """
    path = Path(path)
    kind = image_kind(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if len(portfolio.traits) == 3:
        _triangle(axes, portfolio)
    else:
        _bars(axes, portfolio)
    axes.set_title(f"Who serves which mixture of {', '.join(portfolio.traits)}", fontsize=11)
    figure.supxlabel(fill(f"{portfolio.certificate}.", 110), fontsize=7.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=kind)


def entry_colours(number: int) -> list[Any]:
    """Colours of the unsteered model and of so many entries."""
    from matplotlib import colormaps

    palette = colormaps["viridis"](np.linspace(0.15, 0.95, max(number, 1)))
    return [_UNSTEERED, *palette[:number].tolist()]


def _triangle(axes: Axes, portfolio: Portfolio) -> None:
    steps = 200
    grid = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)])
    weights = grid / steps
    served = route(portfolio.measured, portfolio.kept, weights)
    order = np.array((0, *portfolio.kept))
    number = np.argmax(served[:, None] == order, axis=1)  # 0 for the unsteered model
    colours = entry_colours(len(portfolio.kept))
    points = weights @ _CORNERS
    for entry in np.unique(number).tolist():
        mine = points[number == entry]
        axes.scatter(mine[:, 0], mine[:, 1], s=7, marker="h", color=[colours[entry]], linewidths=0)
        # The mean of a region may lie outside it; the nearest point of it does not.
        centre = mine[np.linalg.norm(mine - mine.mean(0), axis=1).argmin()]
        label = "unsteered" if entry == 0 else f"entry {entry}"
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
        axes.text(centre[0], centre[1], label, ha="center", va="center", fontsize=9, bbox=box)
    axes.plot(*_CORNERS[[0, 1, 2, 0]].T, color="#202124", linewidth=1)
    places: tuple[dict[str, Any], ...] = (
        {"ha": "right", "va": "top"},
        {"ha": "left", "va": "top"},
        {"ha": "center", "va": "bottom"},
    )
    for name, corner, place in zip(portfolio.traits, _CORNERS, places, strict=True):
        axes.annotate(f"only {name}", corner, fontsize=10, **place)
    worst = portfolio.certificate.delta.weights @ _CORNERS
    axes.plot(*worst, marker="x", color="#c5221f", markersize=8, markeredgewidth=2)
    axes.annotate(
        "worst mixture", worst, xytext=(8, 8), textcoords="offset points", color="#c5221f"
    )
    axes.set_aspect("equal")
    axes.margins(0.16)
    axes.set_axis_off()


def _bars(axes: Axes, portfolio: Portfolio) -> None:
    share = 100 * served(portfolio)[0]
    names = ["unsteered", *(f"entry {i}" for i in range(1, len(share)))]
    bars = axes.barh(names, share, color=entry_colours(len(share) - 1))
    axes.bar_label(bars, [f"{value:.1f}%" for value in share], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("share of all mixtures, %")
    axes.spines[["top", "right"]].set_visible(False)
