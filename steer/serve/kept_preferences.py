"""The preferences that were read or written last: to read one anew replays all its choices."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict

from steer.preference import Preference

Whose = tuple[str, str]
"""A tenant, and the name of one of its people."""

_MOST = 128


class KeptPreferences:
    """One for each person, with the text that is stored of it; safe to use from several threads.

    Where another process has written since, the text is another, and what is kept is not used.
    """

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Whose, tuple[str, Preference]] = OrderedDict()

    def read(self, whose: Whose, text: str) -> Preference:
        """The preference of a text.

        Raises:
            ValueError: If it is none.
        """
        with self._lock:
            known, preference = self._kept.get(whose, (None, None))
        if preference is None or known != text:
            preference = Preference.from_json(json.loads(text))
        self.keep(whose, text, preference)
        return preference

    def keep(self, whose: Whose, text: str, preference: Preference) -> None:
        """Have it ready.

        Args:
            whose: It is.
            text: That is stored of it.
            preference: The preference.
        """
        with self._lock:
            self._kept[whose] = (text, preference)
            self._kept.move_to_end(whose)
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)

    def forget(self, whose: Whose) -> None:
        """Have nothing of somebody."""
        with self._lock:
            self._kept.pop(whose, None)
