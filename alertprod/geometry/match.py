"""Pairs of points that are nearest to each other, on a plane or on the sky.

A pair counts only where each of the two is the nearest of the other: a point between two others is left alone rather
than given to the wrong one.
"""

import numpy as np
from scipy.spatial import cKDTree

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.sphere import ARCSEC_PER_DEG, unit_vectors

UNMATCHED = -1
"""Index in the answer of a point that found no partner."""


def match_nearest(points: FloatArray, others: FloatArray, *, radius: float, mutual: bool = True) -> IntArray:
    """Match each point with the nearest of the others.

    Parameters
    ----------
    points, others
        Shapes ``(n, d)`` and ``(m, d)``; rows that are not finite match nothing.
    radius
        Largest distance of a pair, in the unit of the coordinates.
    mutual
        A pair counts only where the point is also the nearest to its partner, so that no partner has two; otherwise
        several points may have one partner.

    Returns
    -------
    IntArray
        Shape ``(n,)``: row of the partner, or `UNMATCHED`.
    """
    answer = np.full(len(points), UNMATCHED, dtype=np.int64)
    rows = np.flatnonzero(np.isfinite(points).all(axis=1))
    other_rows = np.flatnonzero(np.isfinite(others).all(axis=1))
    if not (len(rows) and len(other_rows)):
        return answer
    here, there = points[rows], others[other_rows]
    distance, nearest = cKDTree(there).query(here)
    near = distance <= radius
    if mutual:
        _, back = cKDTree(here).query(there)
        near &= back[nearest] == np.arange(len(here))
    answer[rows[near]] = other_rows[nearest[near]]
    return answer


def match_sky_positions(
    *,
    ra_deg: FloatArray,
    dec_deg: FloatArray,
    other_ra_deg: FloatArray,
    other_dec_deg: FloatArray,
    radius_arcsec: float,
    mutual: bool = True,
) -> IntArray:
    """Match positions on the sky, ICRS degrees, as `match_nearest` does points."""
    chord = 2.0 * np.sin(np.radians(radius_arcsec / ARCSEC_PER_DEG) / 2.0)
    return match_nearest(
        unit_vectors(ra_deg, dec_deg), unit_vectors(other_ra_deg, other_dec_deg), radius=chord, mutual=mutual
    )
