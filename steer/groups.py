"""Groups of people who share a profile: who belongs together, and where somebody new belongs.

CHAMELEON (arXiv 2503.01048) makes one pair of directions for a group, and so reaches people of whom
it has no history yet. Here people are told apart by what they write about: a person stands at the
mean embedding of their texts, a group at the mean of its people, and somebody new belongs to the
group that is nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from steer.errors import InputError
from steer.history import History, HistoryItem, read_history
from steer.personalizer import Personalizer
from steer.profile import Profile
from steer.sentence_encoder import embed


def cluster(histories: Sequence[History], number: int, *, seed: int = 0) -> list[str]:
    """Group people by k-means.

    Args:
        histories: Of each person.
        number: Of groups.
        seed: Of k-means.

    Returns:
        The name of each person's group, "group-1" and so on.

    Raises:
        InputError: If there are fewer people than groups, or a history is not usable.
    """
    if not 1 <= number <= len(histories):
        raise InputError(f"number: expected 1 to {len(histories)}, the people, got {number}")
    points = np.stack([standing(history) for history in histories])
    labels = KMeans(number, n_init=10, random_state=seed).fit_predict(points)
    return [f"group-{label + 1}" for label in labels.tolist()]


def group_profiles(
    personalizer: Personalizer, histories: Sequence[History], groups: Sequence[str]
) -> dict[str, Profile]:
    """One profile for each group.

    Args:
        personalizer: Makes them; its settings say how many items of a whole group are used.
        histories: Of each person.
        groups: The name of each person's group, from `cluster` or given.

    Raises:
        InputError: If numbers differ, or a history is not usable.
        DataError: If a group's histories give no usable pairs.
        CalibrationError: If a group's edit cannot be dosed.
    """
    if not histories or len(groups) != len(histories):
        raise InputError(f"got {len(groups)} names of groups for {len(histories)} histories")
    result = {}
    for name in sorted(set(groups)):
        members = [one for one, group in zip(histories, groups, strict=True) if group == name]
        profile = personalizer.profile(_together(members))
        centre = np.stack([standing(history) for history in members]).mean(0)
        statistics = {**profile.statistics, "people": len(members)}
        result[name] = replace(
            profile, centre=np.asarray(centre, np.float32), statistics=statistics
        )
    return result


def _together(histories: Sequence[History]) -> list[HistoryItem]:
    """One history of several people's, in which the last items are the last of each."""
    from_last = zip_longest(*(reversed(read_history(history)) for history in histories))
    items = [item for level in from_last for item in level[::-1] if item is not None]
    return items[::-1]


def assign(history: History, profiles: Mapping[str, Profile]) -> str:
    """The name of the group that a person is nearest to.

    Args:
        history: Of the person; a few items will do.
        profiles: By name; those that are of no group are left out.

    Raises:
        InputError: If none is of a group, or the history is not usable.
    """
    centres = {name: one.centre for name, one in profiles.items() if one.centre is not None}
    if not centres:
        raise InputError("none of the profiles is of a group; make some with group_profiles")
    point = standing(history)
    return min(centres, key=lambda name: float(np.linalg.norm(centres[name] - point)))


def standing(history: History) -> NDArray[np.float32]:
    """Where a person stands: the mean embedding (384,) of their texts."""
    return np.asarray(embed([item.text for item in read_history(history)]).mean(0), np.float32)
