"""What pushing one trait does to the others, and doses that counteract it.

An edit moves more than its trait: brief answers are colder, simple ones less formal. Where edits
are added, one trait's gain can be lost to another's side effect. Nor is half a dose half of its
effect: that of brevity does two thirds of what the whole does. A quadratic model says by how much
doses c close the headroom of trait j (`steer.interference_fit` measures it),

    gain_j(c) = sum_i c_i linear[i, j] + sum_ik c_i c_k quadratic[i, k, j],
    gain = (reward - unsteered) / (1 - unsteered).

Doses of a mixture have length one, as those of any composition (`steer.weights.doses`), and are
those at which the trait that gains least, in proportion to what is asked of it, gains most (or, of
traits that undo each other, loses least; `steer.fair_doses` finds them):

    max min_j gain_j(c) / asked_j   over   |c| = 1,   1/2 <= c_j / alone_j <= 5/2

where alone_j is its dose by weights alone. The lower bound leaves no trait that is asked for to the
side effects of others, which are less sure than its own edit's; the upper one makes none a means to
what others want. Traits without weight get no dose: nothing comes that was not asked for.

What is hardly wanted may be lost. A side effect is no smaller where little is asked, so that in
proportion it is without limit, and fairness alone would give all doses up for it. So what other
traits do to trait j counts in full from 2/5 of the largest weight on, less below, and not at all
from 1/10 down: as a weight goes to zero the doses become those without the trait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steer.arrays import Rebuilt, read_only
from steer.errors import InputError
from steer.fair_doses import FairDoses
from steer.fields import (
    check_list,
    check_number,
    check_object,
    check_text,
    exact_keys,
    required,
)
from steer.weights import doses

Float64 = NDArray[np.float64]

# A trait is asked for no more than its own edit can do: a weak one would take the whole dose.
_ASKED = 0.25
# Of what a trait's dose would be by the weights alone.
_LEAST, _MOST = 0.5, 2.5
# Of the largest weight: up to where side effects on a trait do not count, and from where they do.
_IGNORED, _COUNTED = 0.1, 0.4


@dataclass(frozen=True, eq=False)
class Interference(Rebuilt):
    """How the edits of traits move each other's rewards.

    Attributes:
        traits: d of them.
        linear: (d, d): what a dose of trait i does to the gain of trait j, at [i, j].
        quadratic: (d, d, d): what doses of i and k do together, at [i, k, j]; symmetric in i and k.
            Of a trait of which nothing is known, since its own edit does not surely move its
            reward, the last axis is zero in both.
    """

    traits: tuple[str, ...]
    linear: Float64 = field(repr=False)
    quadratic: Float64 = field(repr=False)

    def __post_init__(self) -> None:
        linear, quadratic = np.asarray(self.linear, float), np.asarray(self.quadratic, float)
        d = len(self.traits)
        shapes = (linear.shape, quadratic.shape)
        if d < 2 or len(set(self.traits)) != d or shapes != ((d, d), (d, d, d)):
            raise InputError(
                f"interference: expected two or more different traits with (d, d) linear and "
                f"(d, d, d) quadratic terms, got {self.traits} and shapes {shapes}"
            )
        for name, array in (("linear", linear), ("quadratic", quadratic)):
            object.__setattr__(self, name, read_only(array))
        finite = np.isfinite(linear).all() and np.isfinite(quadratic).all()
        if not finite or not np.array_equal(quadratic, quadratic.swapaxes(0, 1)):
            raise InputError(
                "interference: expected finite terms, the quadratic ones symmetric in two traits"
            )
        if (self.gains.diagonal()[self.known] <= 0).any():
            raise InputError(
                "interference: expected a trait's own gain above 0 unless nothing is known of it"
            )

    @property
    def known(self) -> NDArray[np.bool_]:
        """(d,) whether anything is known of what is done to a trait."""
        return np.asarray(self.linear.any(axis=0) | self.quadratic.any(axis=(0, 1)))

    @property
    def gains(self) -> Float64:
        """(d, d) the share of trait j's headroom that the default dose of trait i closes."""
        return np.asarray(self.linear + np.einsum("iij->ij", self.quadratic))

    def doses(self, shares: Mapping[str, float]) -> dict[str, float]:
        """By how much of its dose each trait's edit enters a composition, together of length one.

        Of a weighted trait alone_j min(gains[j, j], 1/4) is asked, which is in proportion to the
        weights but for traits whose own edit does less than that.

        Args:
            shares: Numbers >= 0 by trait, not all of them zero; a trait of which nothing is known
                is taken not to interfere.
        """
        alone = doses(shares)
        names = [name for name, share in shares.items() if share > 0]
        if len(names) < 2:
            return alone
        c = self._fair(names, np.array([alone[name] for name in names])).best()
        found = dict(zip(names, c.tolist(), strict=True))
        return {name: found.get(name, 0.0) for name in shares}

    def _fair(self, names: list[str], alone: Float64) -> FairDoses:
        """What doses of some traits gain, as far as it counts."""
        linear, quadratic = self._among(names)
        own = linear.diagonal() + np.einsum("iii->i", quadratic)
        # Of what others do to each trait, and all that it does itself.
        counted = np.clip((alone / alone.max() - _IGNORED) / (_COUNTED - _IGNORED), 0, 1)
        each = np.arange(len(names))
        itself = linear[each, each], quadratic[each, each, each]
        linear, quadratic = counted * linear, counted * quadratic
        linear[each, each], quadratic[each, each, each] = itself
        return FairDoses(
            linear,
            quadratic,
            asked=alone * np.minimum(own, _ASKED),
            alone=alone,
            least=_LEAST * alone,
            most=np.minimum(_MOST * alone, 1),
        )

    def _among(self, names: list[str]) -> tuple[Float64, Float64]:
        """The terms (k, k) and (k, k, k) of some traits; of those not known, as if alone."""
        k = len(names)
        linear, quadratic, known = np.zeros((k, k)), np.zeros((k, k, k)), np.zeros(k, bool)
        here = [i for i, name in enumerate(names) if name in self.traits]
        at = [self.traits.index(names[i]) for i in here]
        linear[np.ix_(here, here)] = self.linear[np.ix_(at, at)]
        quadratic[np.ix_(here, here, here)] = self.quadratic[np.ix_(at, at, at)]
        known[here] = self.known[at]
        linear[~known, ~known] = _ASKED
        return linear, quadratic


def composed_doses(
    shares: Mapping[str, float], interference: Interference | None
) -> dict[str, float]:
    """By how much of its dose each trait's edit enters a composition.

    Args:
        shares: Numbers >= 0 by trait, not all of them zero.
        interference: What traits do to each other, which is counteracted; None if it is not known.
    """
    return doses(shares) if interference is None else interference.doses(shares)


def to_json(interference: Interference | None) -> dict[str, Any] | None:
    """As JSON values."""
    if interference is None:
        return None
    return {
        "traits": list(interference.traits),
        "linear": interference.linear.tolist(),
        "quadratic": interference.quadratic.tolist(),
    }


def from_json(value: object) -> Interference | None:
    """From JSON values.

    Raises:
        InputError: If a field is missing, unknown or not usable.
    """
    if value is None:
        return None
    where = "field 'interference'"
    fields = check_object(value, where)
    names = check_list(required(fields, "traits", where), f"{where}, 'traits'")
    traits = tuple(check_text(name, f"{where}, 'traits'") for name in names)
    d = len(traits)
    if "gains" in fields:  # before schema 6: what a dose does is linear in it
        exact_keys(fields, {"traits", "gains"}, where)
        return Interference(traits, _array(fields["gains"], (d, d), where), np.zeros((d, d, d)))
    exact_keys(fields, {"traits", "linear", "quadratic"}, where)
    return Interference(
        traits,
        _array(fields["linear"], (d, d), where),
        _array(fields["quadratic"], (d, d, d), where),
    )


def _array(value: object, shape: tuple[int, ...], where: str) -> Float64:
    """Nested lists of finite numbers as an array of a shape."""
    if not shape:
        return np.asarray(check_number(value, where))
    rows = check_list(value, where)
    if len(rows) != shape[0]:
        raise InputError(f"{where}: expected {shape[0]} of 'traits' along each axis")
    return np.stack([_array(row, shape[1:], where) for row in rows])
