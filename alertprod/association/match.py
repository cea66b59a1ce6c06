"""One-to-one matching on the sky by the likelihood of positions: the best of all assignments, not the nearest first."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from alertprod._typing import FloatArray, IntArray
from alertprod.association.positions import Positions, turn_covariances
from alertprod.geometry.sphere import ARCSEC_PER_DEG, east_and_north, unit_vectors

UNMATCHED = -1
"""Index in the answer of a source that found no object."""

SYSTEMATIC_ERR_ARCSEC = 0.05
"""Of two positions from different exposures, per axis: astrometric solution, refraction by colour, proper motion."""

_OUTLIERS = 0.01
"""Share of true pairs whose separation is not what their errors say: a neighbour's light, a wrong error."""

_PRICE_ABOVE_WORST = 0.01
"""A lone pair at the very edge of the radius is still a match."""


def match_one_to_one(
    sources: Positions,
    objects: Positions,
    *,
    radius_arcsec: float = 1.0,
    systematic_err_arcsec: float = SYSTEMATIC_ERR_ARCSEC,
) -> IntArray:
    """Match each source with at most one object, and each object with at most one source.

    Parameters
    ----------
    sources, objects
        Rows without a finite position match nothing.
    radius_arcsec
        Largest separation of a pair.
    systematic_err_arcsec
        Added to the errors of each pair in quadrature, on both axes; above 0.

    Returns
    -------
    IntArray
        Shape ``(n_sources,)``: row of the object, or `UNMATCHED`.

    Notes
    -----
    Minimises the sum of -ln p over the sources. For a pair separated by d, with the sum of both covariances and the
    systematic error's in V,

        p = (1 - f) N(d; 0, V) + f N(d; 0, s²),   f = 1 %, s = radius / 2,

    so that chi squared decides between neighbours, and the bare separation does where no error explains either. A
    source without a partner costs as much as the worst pair there can be, a lone one on the edge of the radius, and a
    little more: it stays alone only if no object is near, or its object is worth more to another source. The price is
    a constant, so what is matched here does not depend on what is matched elsewhere.

    The answer is the same whatever the order of rows, also where assignments cost the same; only which of rows that are
    alike in everything is taken depends on their order.
    """
    answer = np.full(len(sources.ra_deg), UNMATCHED, dtype=np.int64)
    source_rows, object_rows = _canonical_order(sources), _canonical_order(objects)
    sources, objects = sources.select(source_rows), objects.select(object_rows)
    i, j = _find_pairs(sources, objects, radius_arcsec)
    if not len(i):
        return answer
    cost, price = _compute_costs(sources.select(i), objects.select(j), radius_arcsec, systematic_err_arcsec)
    near, i = np.unique(i, return_inverse=True)
    taken, j = np.unique(j, return_inverse=True)
    matched = _solve_assignment(i, j, cost, price, shape=(len(near), len(taken)))
    has_partner = matched != UNMATCHED
    answer[source_rows[near[has_partner]]] = object_rows[taken[matched[has_partner]]]
    return answer


def find_near(sources: Positions, objects: Positions, *, radius_arcsec: float) -> IntArray:
    """Return, sorted, the rows of the objects that have a source within a radius."""
    source_rows, object_rows = _canonical_order(sources), _canonical_order(objects)
    _, j = _find_pairs(sources.select(source_rows), objects.select(object_rows), radius_arcsec)
    return np.unique(object_rows[j])


def _canonical_order(positions: Positions) -> IntArray:
    """Return the rows that have a place, ordered by it and by its errors."""
    rows = np.flatnonzero(np.isfinite(positions.ra_deg) & np.isfinite(positions.dec_deg))
    covariance = positions.covariance_arcsec2[rows]
    keys = (
        covariance[:, 0, 1],
        covariance[:, 1, 1],
        covariance[:, 0, 0],
        positions.dec_deg[rows],
        positions.ra_deg[rows],
    )
    return np.asarray(rows[np.lexsort(keys)])


def _find_pairs(sources: Positions, objects: Positions, radius_arcsec: float) -> tuple[IntArray, IntArray]:
    """Return the rows (source, object) of all pairs within the radius, sorted."""
    nothing = np.zeros(0, dtype=np.int64)
    if not (len(sources.ra_deg) and len(objects.ra_deg)):
        return nothing, nothing
    tree = cKDTree(unit_vectors(objects.ra_deg, objects.dec_deg))
    chord = 2.0 * np.sin(np.radians(radius_arcsec / ARCSEC_PER_DEG) / 2.0)
    neighbours = tree.query_ball_point(unit_vectors(sources.ra_deg, sources.dec_deg), chord, return_sorted=True)
    i = np.repeat(np.arange(len(neighbours)), [len(found) for found in neighbours])
    j = np.concatenate([nothing, *(found for found in neighbours if found)]).astype(np.int64)
    return i, j


def _compute_costs(
    sources: Positions, objects: Positions, radius_arcsec: float, systematic_err_arcsec: float
) -> tuple[FloatArray, float]:
    """Return the cost of each pair of rows, and what a source without a partner costs; all are 1 or more."""
    apart = unit_vectors(objects.ra_deg, objects.dec_deg) - unit_vectors(sources.ra_deg, sources.dec_deg)
    axes = east_and_north(sources.ra_deg, sources.dec_deg)
    east, north = (np.degrees((apart * axis).sum(-1)) * ARCSEC_PER_DEG for axis in axes)
    covariance = sources.covariance_arcsec2 + turn_covariances(
        objects.covariance_arcsec2,
        ra_deg=objects.ra_deg,
        dec_deg=objects.dec_deg,
        to_ra_deg=sources.ra_deg,
        to_dec_deg=sources.dec_deg,
    )
    v_east, v_north = (covariance[:, k, k] + systematic_err_arcsec**2 for k in range(2))
    cross = covariance[:, 0, 1]
    determinant = v_east * v_north - cross**2
    chi2 = (v_north * east**2 - 2.0 * cross * east * north + v_east * north**2) / determinant
    wide = (radius_arcsec / 2.0) ** 2

    def outlier(separation2: FloatArray | float) -> FloatArray:
        return np.asarray(np.log(_OUTLIERS / (2.0 * np.pi * wide)) - 0.5 * separation2 / wide)

    expected = np.log1p(-_OUTLIERS) - 0.5 * (chi2 + np.log(determinant)) - np.log(2.0 * np.pi)
    cost = -np.logaddexp(expected, outlier(east**2 + north**2))
    price = float(-outlier(radius_arcsec**2)) + _PRICE_ABOVE_WORST
    # No density is higher than this: above it every cost is positive, which the sparse solver needs.
    least = np.log(2.0 * np.pi * min(systematic_err_arcsec**2, wide))
    return cost - least + 1.0, price - least + 1.0


def _solve_assignment(i: IntArray, j: IntArray, cost: FloatArray, price: float, *, shape: tuple[int, int]) -> IntArray:
    """Return the column of each row in the cheapest assignment of the sparse pairs, `UNMATCHED` for none.

    Each row gets a column of its own that stands for "no partner", so that a full matching exists.
    """
    n, m = shape
    rows = np.concatenate([i, np.arange(n)])
    columns = np.concatenate([j, m + np.arange(n)])
    costs = np.concatenate([cost, np.full(n, price)])
    _, chosen = min_weight_full_bipartite_matching(coo_array((costs, (rows, columns)), shape=(n, n + m)).tocsr())
    return np.where(chosen < m, chosen, UNMATCHED)
