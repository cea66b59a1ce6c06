"""The kernel basis whose every pixel is free: delta functions, with a penalty on roughness.

Written like the Gaussian basis, so that all that is done with one can be done with the other: the first kernel has
unit sum and alone carries flux, each other one is a pixel less the middle one, of zero sum and unit norm.
"""

import numpy as np

from alertprod._typing import FloatArray
from alertprod.subtraction.basis import KernelBasis


def make_delta_basis(size: int, *, lead: FloatArray | None = None, mode: str = "config") -> KernelBasis:
    """Build a basis that spans every kernel of a side.

    Parameters
    ----------
    size
        Side of the kernels in pixels, odd.
    lead
        The first kernel, ``(size, size)``, of unit sum: the shape that a star's flux ratio is asked for with. By default
        the middle pixel alone.
    mode
        Kept as it is; see `KernelBasis`.

    Returns
    -------
    KernelBasis
        ``size**2`` kernels: the first, then the pixels row by row without the middle one.
    """
    if size < 3 or size % 2 == 0:
        msg = f"kernel side {size} must be odd and at least 3"
        raise ValueError(msg)
    n, middle = size * size, (size * size) // 2
    others = np.delete(np.arange(n), middle)
    transform = np.zeros((n, n))
    transform[np.arange(1, n), others] = np.sqrt(0.5)
    transform[1:, middle] = -np.sqrt(0.5)
    if lead is None:
        transform[0, middle] = 1.0
    else:
        transform[0] = np.asarray(lead, dtype=float).ravel() / np.sum(lead)
    row, column = np.divmod(np.arange(n), size)
    return KernelBasis(
        images=transform.reshape(n, size, size).copy(),
        profiles=np.eye(size),
        x_profile=column,
        y_profile=row,
        transform=transform,
        sigmas=(),
        mode=mode,
    )
