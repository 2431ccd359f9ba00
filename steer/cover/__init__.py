"""Covers of the preference simplex: finitely many weights that stand for all of them.

A weight w covers a preference v when |w_i - v_i| <= eps' v_i + delta' for every trait i. An
optimal policy for w is then nearly optimal for v (PALM, arXiv 2604.04144, Lemma 3.2). The lemma
asks nothing of the sum of w, so the weights here are *raw*: they need not sum to one, and must not
be normalised, since a reward J_w = sum_i w_i r_i - f weighs f against that sum.
"""

from steer.cover.check import TOLERANCE, CoverCheck, is_cover
from steer.cover.grids import (
    KINDS,
    Closeness,
    Kind,
    grid,
    levels,
    random_weights,
    size_formula,
    uniform_weights,
)
from steer.cover.guarantee import Scale, closeness_for, cover_of_size
from steer.cover.minimal import Cover, Method, minimal_cover
from steer.cover.set_cover import greedy_cover, set_cover

__all__ = [
    "KINDS",
    "TOLERANCE",
    "Closeness",
    "Cover",
    "CoverCheck",
    "Kind",
    "Method",
    "Scale",
    "closeness_for",
    "cover_of_size",
    "greedy_cover",
    "grid",
    "is_cover",
    "levels",
    "minimal_cover",
    "random_weights",
    "set_cover",
    "size_formula",
    "uniform_weights",
]
