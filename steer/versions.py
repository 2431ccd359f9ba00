"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch
import transformers

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of this package, Python and the numerical libraries."""
    return {
        "steer": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "scikit-learn": version("scikit-learn"),
        "numpy": version("numpy"),
    }
