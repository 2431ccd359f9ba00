"""Heat maps of a bundle, trait by layer: how well CCS separates the poles, how long the directions.

`draw` writes them as an image; `heat_map` gives one as lines of text for a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from steer.errors import InputError
from steer.resources import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from steer.bundle import Bundle

FORMATS = ("png", "svg", "pdf")

# From viridis, dark to bright: perceptually uniform, and safe for colour-blind readers.
_SHADES = ("#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
_BARS = "▁▂▃▄▅▆▇█"
_WIDE_RANGE = 8.0  # largest over smallest value, beyond which colours are logarithmic


@dataclass(frozen=True, eq=False)
class Grid:
    """One number for every trait and layer.

    Attributes:
        title: What is shown, with its unit.
        traits: Names of the rows.
        layers: Indices of the columns.
        values: (traits, layers); NaN where a trait was not measured.
        edited: (traits, layers); whether the trait's edit acts there.
    """

    title: str
    traits: tuple[str, ...]
    layers: tuple[int, ...]
    values: NDArray[np.float64]
    edited: NDArray[np.bool_]

    @property
    def logarithmic(self) -> bool:
        """Whether the values span so much that only their logarithms can be told apart."""
        low, high = float(np.nanmin(self.values)), float(np.nanmax(self.values))
        return low > 0 and high / low > _WIDE_RANGE


def grids(bundle: Bundle) -> tuple[Grid, Grid]:
    """CCS loss and direction norm of a bundle.

    Raises:
        InputError: If the bundle holds no such numbers.
    """
    losses = {name: entry.ccs_loss for name, entry in bundle.traits.items()}
    norms = {name: entry.direction_norm for name, entry in bundle.traits.items()}
    return (
        _grid(bundle, "CCS loss on held-out pairs", losses),
        _grid(bundle, "Norm of the mean difference", norms),
    )


def _grid(bundle: Bundle, title: str, values: Mapping[str, Mapping[int, float]]) -> Grid:
    traits = tuple(values)
    measured = {layer for row in values.values() for layer in row}
    if not measured:
        raise InputError("nothing to draw: the bundle has no values by layer")
    layers = tuple(range(min(measured), max(measured) + 1))
    return Grid(
        title,
        traits,
        layers,
        np.array([[values[name].get(layer, np.nan) for layer in layers] for name in traits]),
        np.array(
            [[layer in bundle.traits[name].edit.layers for layer in layers] for name in traits]
        ),
    )


def image_kind(path: Path) -> str:
    """The kind of image that a file's name asks for.

    Raises:
        InputError: If it is none of `FORMATS`.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"picture {str(path)!r}: expected a name ending in .{', .'.join(FORMATS)}")
    return kind


def draw(bundle: Bundle, path: str | Path) -> None:
    """Write both heat maps side by side as an image.

    Args:
        bundle: What to show.
        path: Where to, ending in .png, .svg or .pdf; an existing file is replaced.

    Raises:
        InputError: If the path has another ending or the bundle holds no numbers by layer.
    """
    path = Path(path)
    kind = image_kind(path)
    both = grids(bundle)
    # Slow to import, and only needed here. Not pyplot: that would choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    rows, columns = both[0].values.shape
    figure = Figure(
        figsize=(max(9.0, 3.4 + 0.52 * columns), max(3.0, 1.9 + 0.34 * rows)),
        layout=ConstrainedLayoutEngine(w_pad=0.12),
    )
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    # Bright is good in both: a low loss, a long direction.
    _panel(left, both[0], "viridis_r", "loss; lower: the poles separate better")
    _panel(right, both[1], "viridis", "norm" + " (logarithmic)" * both[1].logarithmic)
    left.set_yticks(range(rows), both[0].traits)
    figure.suptitle(bundle.model, fontsize=12)
    if any(grid.edited.any() for grid in both):
        marker = Line2D([], [], **_MARKER)
        figure.legend([marker], ["edited layer"], loc="outside lower center", frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=kind)


_MARKER: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 5,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 0.9,
}


def _panel(axes: Axes, grid: Grid, colours: str, label: str) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter, LogLocator

    palette = colormaps[colours].with_extremes(bad="#d9d9d9")
    low, high = float(np.nanmin(grid.values)), float(np.nanmax(grid.values))
    norm = LogNorm(low, high) if grid.logarithmic else Normalize(low, high)
    image = axes.imshow(grid.values, cmap=palette, norm=norm, aspect="auto")
    ys, xs = np.nonzero(grid.edited)
    axes.plot(xs, ys, **_MARKER)
    step = -(-len(grid.layers) // 20)
    axes.set_xticks(range(0, len(grid.layers), step), [str(i) for i in grid.layers[::step]])
    axes.set_xlabel("layer")
    axes.set_title(grid.title, fontsize=11)
    axes.tick_params(length=0)
    # Thin white lines between the cells.
    axes.set_xticks(np.arange(0.5, len(grid.layers) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(grid.traits) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, label=label, pad=0.02)
    if grid.logarithmic:
        # 1, 2, 5, 10, ... rather than powers of ten, of which there may be only one in range.
        bar.set_ticks(LogLocator(subs=(1, 2, 5)), minor=False)
        bar.set_ticks([], minor=True)
        bar.formatter = FuncFormatter(lambda value, _: f"{value:g}")


def heat_map(grid: Grid, width: int) -> Text:
    """A grid as lines of text: higher bars for larger values, a dot beside edited layers.

    Args:
        grid: What to show.
        width: Columns of the terminal. Where two a layer do not fit, the dots are left out.
    """
    margin = max(len(name) for name in grid.traits) + 2
    cell = 2 if margin + 2 * len(grid.layers) <= width else 1
    low, high = float(np.nanmin(grid.values)), float(np.nanmax(grid.values))
    text = Text(no_wrap=True, overflow="crop")
    text.append(grid.title, style="bold")
    note = ", dot: edited" if cell == 2 else ""
    text.append(f"  {_BARS[0]} {low:.3g} to {_BARS[-1]} {high:.3g}{note}\n", style="dim")
    text.append(" " * margin + _ruler(grid.layers, cell) + "\n", style="dim")
    scale = np.log if grid.logarithmic else np.asarray
    levels = (scale(grid.values) - scale(low)) / max(float(scale(high) - scale(low)), 1e-12)
    for name, row, edited in zip(grid.traits, levels, grid.edited, strict=True):
        text.append(f"{name:<{margin}}")
        for level, mark in zip(row, edited, strict=True):
            if np.isnan(level):
                text.append("·", style="dim")
            else:
                bar = _BARS[round(float(level) * (len(_BARS) - 1))]
                text.append(bar, style=_SHADES[round(float(level) * (len(_SHADES) - 1))])
            if cell == 2:
                text.append("•" if mark else " ")
        text.append("\n")
    text.rstrip()
    return text


def _ruler(layers: tuple[int, ...], cell: int) -> str:
    """Layer indices above their columns, as many as have room."""
    line = ""
    for column, layer in enumerate(layers):
        if layer % 4 == layers[0] % 4 and len(line) <= cell * column:
            line = line.ljust(cell * column) + f"{layer} "
    return line.rstrip()
