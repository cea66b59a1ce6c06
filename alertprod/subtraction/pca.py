"""Principal components of the stars' own kernels: the few shapes by which a kernel really varies over an image."""

import numpy as np

from alertprod._typing import FloatArray
from alertprod.errors import BadSubtraction
from alertprod.subtraction.basis import KernelBasis

_NEGLIGIBLE = 1e-7
"""Singular values below this share of the kernels' size are rounding, not a component."""


def find_principal_kernels(
    basis: KernelBasis,
    coefficients: FloatArray,
    *,
    weights: FloatArray,
    n_components: int,
    subtract_mean: bool,
) -> FloatArray:
    """Find the combinations of a basis that describe kernels best.

    Parameters
    ----------
    basis
        Whose first kernel alone has a sum.
    coefficients
        The stars' own kernels, ``(n, n_basis)``, of positive sum; they are compared at unit sum.
    weights
        Shape ``(n,)``: how much each counts.
    n_components
        How many beside the leading one; fewer where the kernels have fewer.
    subtract_mean
        Lead with the mean kernel and find the components about it; otherwise the first component leads.

    Returns
    -------
    FloatArray
        Shape ``(k, n_basis)``, for `KernelBasis.recombined`: the first kernel of unit sum, the others of zero sum and
        unit norm, by falling share of the variation.

    Raises
    ------
    BadSubtraction
        Raised if the leading kernel has no sum.

    Notes
    -----
    Alard (2000) renormalised as the basis itself is, so that the first kernel can keep one coefficient for the
    whole image and the flux ratio does not vary.
    """
    shapes = coefficients / coefficients[:, :1]
    images = basis.images.reshape(len(basis), -1)
    weights = weights / weights.sum()
    mean = weights @ shapes
    about = shapes - mean if subtract_mean else shapes
    rooted = np.sqrt(weights)[:, None] * about
    left, singular, _ = np.linalg.svd(rooted @ images, full_matrices=False)
    size = float(np.linalg.norm(mean @ images))
    significant = singular > _NEGLIGIBLE * size
    components = (left[:, significant].T @ rooted) / singular[significant, None]
    if subtract_mean:
        lead, rest = mean, components[:n_components]
    else:
        lead, rest = components[0] if len(components) else mean, components[1 : n_components + 1]
    if not abs(lead[0]) > _NEGLIGIBLE * float(np.linalg.norm(lead @ images)):
        raise BadSubtraction("sum of the leading principal kernel", float(lead[0]), 0.0)
    lead = lead / lead[0]
    # The first coefficient is a kernel's sum: taken off with the leading kernel.
    rest = rest - rest[:, :1] * lead
    norms = np.linalg.norm(rest @ images, axis=1)
    kept = norms > _NEGLIGIBLE
    return np.concatenate([lead[None], rest[kept] / norms[kept, None]])
