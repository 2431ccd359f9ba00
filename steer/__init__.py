"""Personalise a frozen language model at inference, by weights on traits.

>>> import steer
>>> steer.generate("How do I sleep better?", {"brevity": 1.0})  # doctest: +SKIP
"""

from steer.bundle import Bundle
from steer.dose import calibrate
from steer.edits import Edit
from steer.errors import SteerError
from steer.models import LanguageModel, load_model
from steer.pipeline import Recipe, build
from steer.quick import generate
from steer.steerer import Steerer, load
from steer.traits import Trait, load_traits, read_trait
from steer.versions import __version__

__all__ = [
    "Bundle",
    "Edit",
    "LanguageModel",
    "Recipe",
    "SteerError",
    "Steerer",
    "Trait",
    "__version__",
    "build",
    "calibrate",
    "generate",
    "load",
    "load_model",
    "load_traits",
    "read_trait",
]
