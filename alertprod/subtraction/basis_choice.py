"""How many of a basis's functions the stars bear: degrees by the Bayesian information criterion."""

import itertools

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.subtraction.basis import pick_degrees
from alertprod.subtraction.stamp_equations import StampEquations

_RIDGE = 1e-12
"""Relative to a matrix of unit diagonal: below any information, above rounding."""


def choose_degrees(equations: StampEquations, degrees: tuple[int, ...]) -> tuple[tuple[int, ...], BoolArray]:
    """Choose the polynomials' degrees of a Gaussian basis.

    Parameters
    ----------
    equations
        Of the stars, in the basis of `degrees`.
    degrees
        The highest to choose from.

    Returns
    -------
    degrees, kept
        Of each Gaussian; and which functions of the given basis they keep.

    Notes
    -----
    Schwarz (1978): the least sum over the stars of ``chi^2 + k log n``, each star with a kernel of its own, k functions
    and background terms and n pixels. Of equals the smallest.
    """
    n_local = equations.vector.shape[1] - len(pick_degrees(degrees, degrees))
    penalty_per_term = float(np.log(equations.n_tested).sum())
    best: tuple[float, int, tuple[int, ...], BoolArray] | None = None
    for chosen in itertools.product(*(range(degree + 1) for degree in degrees)):
        kept = pick_degrees(degrees, chosen)
        columns = np.r_[np.flatnonzero(kept), np.arange(len(kept), len(kept) + n_local)]
        criterion = _least_chi2(equations, columns) + penalty_per_term * len(columns)
        if best is None or (criterion, len(columns)) < best[:2]:
            best = (criterion, len(columns), chosen, kept)
    assert best is not None, "a product of non-empty ranges is not empty"
    return best[2], best[3]


def _least_chi2(equations: StampEquations, columns: FloatArray) -> float:
    matrix = equations.test_matrix[:, columns[:, None], columns]
    vector = equations.test_vector[:, columns]
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", matrix), np.finfo(float).tiny))
    scaled = matrix / (scale[:, :, None] * scale[:, None, :]) + _RIDGE * np.eye(len(columns))
    solved = np.linalg.solve(scaled, (vector / scale)[:, :, None])[:, :, 0] / scale
    return float((equations.test_norm - (solved * vector).sum(axis=1)).sum())
