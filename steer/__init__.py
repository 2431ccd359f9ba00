"""Personalise a frozen language model at inference, by weights on traits.

>>> import steer
>>> steer.generate("How do I sleep better?", {"brevity": 1.0})  # doctest: +SKIP

Names are imported when they are first used, so that a part of the package needs only its own
dependencies: `steer.hooks`, say, needs torch and transformers and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steer.bundle import Bundle, forget
    from steer.dose import calibrate
    from steer.edits import Edit
    from steer.errors import SteerError
    from steer.generation import Decoding
    from steer.history import HistoryItem
    from steer.hub import pull, push
    from steer.models import LanguageModel, load_model
    from steer.personalizer import Personalization
    from steer.pipeline import build
    from steer.preference import Preference
    from steer.profile import Profile
    from steer.quick import generate, personalize
    from steer.recipe import Recipe
    from steer.remote import RemoteModel
    from steer.steerer import Steerer, load
    from steer.summaries import summarise
    from steer.traits import Trait, load_traits, read_trait
    from steer.versions import __version__
    from steer.wishes import weights_from_words
else:
    _MODULES = {
        "Bundle": "bundle",
        "Decoding": "generation",
        "Edit": "edits",
        "HistoryItem": "history",
        "LanguageModel": "models",
        "Personalization": "personalizer",
        "Preference": "preference",
        "Profile": "profile",
        "Recipe": "recipe",
        "RemoteModel": "remote",
        "SteerError": "errors",
        "Steerer": "steerer",
        "Trait": "traits",
        "__version__": "versions",
        "build": "pipeline",
        "calibrate": "dose",
        "forget": "bundle",
        "generate": "quick",
        "load": "steerer",
        "load_model": "models",
        "load_traits": "traits",
        "personalize": "quick",
        "pull": "hub",
        "push": "hub",
        "read_trait": "traits",
        "summarise": "summaries",
        "weights_from_words": "wishes",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module 'steer' has no attribute {name!r}")
        value = getattr(import_module(f"steer.{_MODULES[name]}"), name)
        globals()[name] = value  # the next look-up finds it directly
        return value

    def __dir__():
        return sorted({*globals(), *_MODULES})


__all__ = [
    "Bundle",
    "Decoding",
    "Edit",
    "HistoryItem",
    "LanguageModel",
    "Personalization",
    "Preference",
    "Profile",
    "Recipe",
    "RemoteModel",
    "SteerError",
    "Steerer",
    "Trait",
    "__version__",
    "build",
    "calibrate",
    "forget",
    "generate",
    "load",
    "load_model",
    "load_traits",
    "personalize",
    "pull",
    "push",
    "read_trait",
    "summarise",
    "weights_from_words",
]
