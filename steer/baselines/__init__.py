"""Other ways to personalise a model at inference, beside edits, under the same interface.

    steerer.generate(prompt, weights, method="system-prompt")
    steerer.generate(prompt, weights, method=LogitRectification(alpha=2.0))

They serve the same requests through the same unsteered model, so that what each gains and costs can
be compared (experiments/methods).
"""

from __future__ import annotations

from collections.abc import Mapping

from steer.baselines.combined import LogitRectification, MultiObjective
from steer.baselines.method import Method, Request, Serving
from steer.baselines.prompting import FewShot, RetrievedHistory, SystemPrompt
from steer.baselines.rewarding import BestOfN, RewardGuided
from steer.errors import InputError

METHODS: Mapping[str, Method] = {
    "system-prompt": SystemPrompt(),
    "few-shot": FewShot(),
    "logit-rectification": LogitRectification(),
    "multi-objective": MultiObjective(),
    "best-of-n": BestOfN(),
    "reward-guided": RewardGuided(),
}
"""Those that need nothing but weights, with their defaults."""


def named(method: Method | str) -> Method:
    """A method, also by its name.

    Raises:
        InputError: If there is none of that name.
    """
    if not isinstance(method, str):
        return method
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return METHODS[method]


__all__ = [
    "METHODS",
    "BestOfN",
    "FewShot",
    "LogitRectification",
    "Method",
    "MultiObjective",
    "Request",
    "RetrievedHistory",
    "RewardGuided",
    "Serving",
    "SystemPrompt",
    "named",
]
