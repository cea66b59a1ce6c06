"""One-to-one matching of sources with objects on the sky: the global optimum, not the nearest first."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.sphere import ARCSEC_PER_DEG, unit_vectors

UNMATCHED = -1
"""Index in the answer of a source that found no object."""

_COST_OF_NO_MATCH = 1.01
"""In units of the radius squared: a lone pair at the very edge of the radius is still a match."""


def match_one_to_one(
    *,
    source_ra_deg: FloatArray,
    source_dec_deg: FloatArray,
    object_ra_deg: FloatArray,
    object_dec_deg: FloatArray,
    radius_arcsec: float = 1.0,
) -> IntArray:
    """Match each source with at most one object, and each object with at most one source.

    Parameters
    ----------
    source_ra_deg, source_dec_deg
        ICRS positions, shape ``(n,)``; rows that are not finite stay unmatched.
    object_ra_deg, object_dec_deg
        ICRS positions, shape ``(m,)``; rows that are not finite are matched by nothing.
    radius_arcsec
        Largest separation of a pair.

    Returns
    -------
    IntArray
        Shape ``(n,)``: row of the object, or `UNMATCHED`.

    Notes
    -----
    Minimises the sum of squared separations, where a source without a partner costs a little more than
    the radius squared: the most likely assignment for equal, round position errors. A source stays
    alone only if no object is near or its object is worth more to another source. The positions'
    own errors are left out on purpose: a cost that depended on them would have no fixed scale for
    "no partner". Only the order of exact ties depends on the order of rows: give rows in a fixed order.
    """
    answer = np.full(len(source_ra_deg), UNMATCHED, dtype=np.int64)
    source_rows = np.flatnonzero(np.isfinite(source_ra_deg) & np.isfinite(source_dec_deg))
    object_rows = np.flatnonzero(np.isfinite(object_ra_deg) & np.isfinite(object_dec_deg))
    if not (len(source_rows) and len(object_rows)):
        return answer
    sources = unit_vectors(source_ra_deg[source_rows], source_dec_deg[source_rows])
    objects = unit_vectors(object_ra_deg[object_rows], object_dec_deg[object_rows])
    radius = 2.0 * np.sin(np.radians(radius_arcsec / ARCSEC_PER_DEG) / 2.0)
    neighbours = cKDTree(objects).query_ball_point(sources, radius, return_sorted=True)
    i = np.repeat(np.arange(len(sources)), [len(found) for found in neighbours])
    if not len(i):
        return answer
    j = np.concatenate([np.asarray(found, dtype=np.int64) for found in neighbours])
    squared = ((sources[i] - objects[j]) ** 2).sum(axis=-1) / radius**2
    near, i = np.unique(i, return_inverse=True)
    taken, j = np.unique(j, return_inverse=True)
    matched = _solve_assignment(i, j, squared, shape=(len(near), len(taken)))
    has_partner = matched >= 0
    answer[source_rows[near[has_partner]]] = object_rows[taken[matched[has_partner]]]
    return answer


def _solve_assignment(i: IntArray, j: IntArray, cost: FloatArray, *, shape: tuple[int, int]) -> IntArray:
    """Return the column of each row in the cheapest assignment of the sparse pairs, -1 for none.

    Each row gets a column of its own that stands for "no partner", so that a full matching exists.
    One is added to every cost, because the sparse solver takes an entry of zero for no entry.
    """
    n, m = shape
    rows = np.concatenate([i, np.arange(n)])
    columns = np.concatenate([j, m + np.arange(n)])
    costs = 1.0 + np.concatenate([cost, np.full(n, _COST_OF_NO_MATCH)])
    _, chosen = min_weight_full_bipartite_matching(coo_array((costs, (rows, columns)), shape=(n, n + m)).tocsr())
    return np.where(chosen < m, chosen, UNMATCHED)
