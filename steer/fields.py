"""Fields of a bundle, from arguments and from files alike: one check for both.

Each check takes a value and where it stands, for the error, and gives back the value.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import fields
from typing import Any, TypeVar, cast

from steer.errors import InputError

_T = TypeVar("_T")
_V = TypeVar("_V")

# Far more than settings need, and less than any walk through them bears.
_DEEPEST = 64


class ReadOnly(Mapping[_T, _V]):
    """A mapping that nobody writes to; unlike `MappingProxyType` it can be copied and pickled."""

    def __init__(self, values: Mapping[_T, _V]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: _T) -> _V:
        """The value of a key."""
        return self._values[key]

    def __iter__(self) -> Iterator[_T]:
        """The keys."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._values)

    def keys(self) -> KeysView[_T]:
        """The keys, as of a `dict`: quicker than `Mapping`'s own, and reversible."""
        return self._values.keys()

    def values(self) -> ValuesView[_V]:
        """The values, alike."""
        return self._values.values()

    def items(self) -> ItemsView[_T, _V]:
        """Both, alike."""
        return self._values.items()

    def __repr__(self) -> str:
        """As that of a `dict`."""
        return repr(self._values)


def check_object(value: object, where: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {value!r:.80}")
    return value


def check_fields(value: object, kind: type, where: str) -> dict[str, Any]:
    """A JSON object with the fields of a dataclass, no more and no fewer."""
    found = check_object(value, where)
    exact_keys(found, {field.name for field in fields(kind)}, where)
    return found


def required(value: Mapping[str, Any], key: str, where: str) -> Any:
    """A field that must be there."""
    if key not in value:
        raise InputError(f"{where}: field {key!r} is missing")
    return value[key]


def check_text(value: object, where: str) -> str:
    """Text of valid Unicode."""
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, got {value!r:.80}")
    # JSON would join two lone surrogates into one character.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where}: expected valid Unicode, got {value!r:.80}")
    return value


def check_number(value: object, where: str) -> float:
    """A finite number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InputError(f"{where}: expected a number, got {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:
        raise InputError(f"{where}: expected a finite number, got one of over 300 digits") from None
    if not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, got {value!r:.80}")
    return number


def check_whole(value: object, where: str) -> int:
    """A count: 0 or more, of a size that every reader of JSON can hold."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = int(cast("int", value)) if integral else -1
    if not 0 <= number < 1 << 53:
        raise InputError(f"{where}: expected a whole number >= 0, got {value!r:.80}")
    return number


def check_bool(value: object, where: str) -> bool:
    """A truth value."""
    if not isinstance(value, bool):
        raise InputError(f"{where}: expected true or false, got {value!r:.80}")
    return value


def check_seed(value: object) -> int:
    """What every generator of random numbers can begin with."""
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = int(cast("int", value)) if integral else -1
    if not 0 <= number < 1 << 63:
        raise InputError(f"seed: expected a whole number >= 0 and below 2**63, got {value!r:.80}")
    return number


def check_list(value: object, where: str) -> list[Any]:
    """A JSON list."""
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list, got {value!r:.80}")
    return value


def check_numbers(value: object, where: str) -> list[float]:
    """A JSON list of finite numbers."""
    return [check_number(item, where) for item in check_list(value, where)]


def check_layer(value: object, where: str) -> int:
    """A layer index."""
    return check_whole(value, f"{where}, layer")


def check_scalar(value: object, where: str) -> float | int | str:
    """Text, a truth value or a finite number."""
    if isinstance(value, str):
        return check_text(value, where)
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        if abs(int(value)) >= 1 << 64:
            raise InputError(f"{where}: expected an integer of at most 64 bits")
        return int(value)
    return check_number(value, where)


def check_json(value: object, where: str, depth: int = 0) -> Any:
    """A deep copy in plain JSON types; `depth` is how many values it lies in."""
    if depth > _DEEPEST:
        raise InputError(f"{where:.80}: expected values within values at most {_DEEPEST} deep")
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {
            check_text(key, where): check_json(item, f"{where}[{key!r}]", depth + 1)
            for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
        }
    if isinstance(value, list | tuple):
        return [check_json(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    return check_scalar(value, where)


def check_mapping(
    value: object,
    convert_key: Callable[[object, str], _T],
    convert: Callable[[object, str], _V],
    where: str,
) -> Mapping[_T, _V]:
    """A read-only copy with validated keys and values, in the order of the keys."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a mapping, got {value!r:.80}")
    pairs = {
        convert_key(key, where): convert(item, f"{where}[{key!r}]") for key, item in value.items()
    }
    return ReadOnly({key: pairs[key] for key in sorted(cast("Any", pairs))})


def by_layer(value: object, convert: Callable[[object, str], _V], where: str) -> dict[int, _V]:
    """A JSON object with layer indices for keys."""
    result = {}
    for key, item in check_object(value, where).items():
        # One spelling only: "08" beside "8" would be the same layer twice.
        if not (key.isascii() and key.isdigit()) or len(key) > 9 or str(int(key)) != key:
            raise InputError(f"{where}: expected a layer index, got {key!r}")
        result[int(key)] = convert(item, f"{where}[{key}]")
    return result


def exact_keys(value: Mapping[str, Any], expected: set[str], where: str) -> None:
    """Refuse keys that are missing or unknown."""
    if missing := expected - value.keys():
        raise InputError(f"{where}: {min(missing)!r} is missing")
    if unknown := value.keys() - expected:
        raise InputError(f"{where}: {min(unknown)!r} is unknown")
