"""Pictures without a display."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from steer.resources import atomic_path


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, NDArray[Any]]:
    """A figure of so many panels (rows, columns), each of that size in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a picture, of 256 colours: a third of the size, and no difference to see."""
    drawn = io.BytesIO()
    # Tight: the last label of an axis may reach beyond its panel.
    figure.savefig(drawn, dpi=130, format="png", bbox_inches="tight", pad_inches=0.1)
    reduced = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with atomic_path(path) as temporary:
        reduced.save(temporary, format="png", optimize=True)
