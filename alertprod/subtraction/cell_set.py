"""The kernel stars of a match, cell by cell: which were used, which were not and why, and what each asks for by itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.subtraction.basis import KernelBasis
from alertprod.subtraction.spatial import SpatialBackground, SpatialKernel
from alertprod.subtraction.stamp_equations import OWN_RESULTS


class CandidateStatus(IntEnum):
    """What became of a kernel star."""

    UNKNOWN = 0
    """Its turn never came: its cell had enough."""

    GOOD = 1
    """In the last fit."""

    BAD = 2
    """Unusable, or thrown out."""


@dataclass(frozen=True, slots=True)
class KernelCellSet:
    """Every star that was offered for the kernel; n stars in the order in which they were given.

    Attributes
    ----------
    x, y
        Positions, pixels.
    cell
        Shape ``(n, 2)``: row and column of the cell.
    status
        `CandidateStatus`, shape ``(n,)``.
    reason
        Why a star is BAD: "edge", "masked", "crowded", "condition number", "own residuals", "kernel sum" or
        "spatial residuals"; else "".
    own_sum, own_sum_error, own_mean, own_rms
        As in `alertprod.subtraction.stamp_equations.StampEquations`; NaN for a star that was never solved for.
    own_coefficients, own_covariance
        Each star's own kernel in `basis`, shape ``(n, n_basis)``, and ``(n, n_basis, n_basis)`` where the configuration
        asks for it, else ``(n, 0, 0)``; NaN likewise.
    own_background
        Shape ``(n, 3)``, or ``(n, 0)`` where no background is fitted: constant and slopes across the stamp.
    basis
        What the stamps were convolved with.
    flux_ratio
        Of the image not convolved to the convolved one, about, as the weights had it.
    kernel, background
        The match's, as functions of position.
    """

    x: FloatArray
    y: FloatArray
    cell: IntArray
    status: IntArray
    reason: tuple[str, ...]
    own_sum: FloatArray
    own_sum_error: FloatArray
    own_mean: FloatArray
    own_rms: FloatArray
    own_coefficients: FloatArray
    own_covariance: FloatArray
    own_background: FloatArray
    basis: KernelBasis
    flux_ratio: float
    kernel: SpatialKernel
    background: SpatialBackground

    def __len__(self) -> int:
        return len(self.x)

    @property
    def is_good(self) -> BoolArray:
        """Which stars were in the last fit."""
        good: BoolArray = self.status == CandidateStatus.GOOD
        return good

    @property
    def is_solved(self) -> BoolArray:
        """Which stars have a kernel of their own."""
        return np.asarray(np.isfinite(self.own_coefficients).all(axis=1))

    def compute_own_kernel(self, i: int) -> FloatArray:
        """Return the kernel that star `i` asks for by itself: ``(size, size)``; NaN where it has none."""
        return np.asarray(np.tensordot(self.own_coefficients[i], self.basis.images, axes=1))

    def compute_own_kernel_error(self, i: int) -> FloatArray | None:
        """Return the standard error of each pixel of that kernel; None where nobody asked for it.

        What held the kernel, prior or regularisation, counts as information.
        """
        if self.own_covariance.shape[1] == 0:
            return None
        flat = self.basis.images.reshape(len(self.basis), -1)
        variance = np.einsum("ip,ij,jp->p", flat, self.own_covariance[i], flat, optimize=True)
        return np.sqrt(np.maximum(variance, 0.0)).reshape(self.basis.size, self.basis.size)

    def compute_spatial_kernel(self, i: int) -> FloatArray:
        """Return the match's kernel at star `i`: ``(size, size)``."""
        return self.kernel.compute_image(x=float(self.x[i]), y=float(self.y[i]))


def collect_stars(
    n: int,
    basis: KernelBasis,
    solved: Iterable[tuple[IntArray, Mapping[str, FloatArray]]],
    *,
    reasons: Mapping[int, str],
    used: IntArray | None = None,
) -> dict[str, Any]:
    """Spread what is known of some stars over all of them: the fields of `KernelCellSet` that tell of single stars.

    Parameters
    ----------
    n
        Number of all stars.
    solved
        Indices of stars, with their `OWN_RESULTS` in the basis.
    reasons
        Why stars are BAD, by index.
    used
        Indices of the GOOD ones.
    """
    status = np.full(n, CandidateStatus.UNKNOWN, dtype=np.int64)
    status[list(reasons)] = CandidateStatus.BAD
    if used is not None:
        status[used] = CandidateStatus.GOOD
    own: dict[str, FloatArray] = {}
    for indices, values in solved:
        for name, some in values.items():
            own.setdefault(name, np.full((n, *some.shape[1:]), np.nan))[indices] = some
    if not own:
        own = {name: np.full(n, np.nan) for name in OWN_RESULTS}
        own["own_coefficients"], own["own_covariance"] = np.full((n, len(basis)), np.nan), np.zeros((n, 0, 0))
    coefficients = own.pop("own_coefficients")
    return {
        "status": status,
        "reason": tuple(reasons.get(i, "") for i in range(n)),
        "own_coefficients": coefficients[:, : len(basis)],
        "own_background": coefficients[:, len(basis) :],
        **own,
    }
