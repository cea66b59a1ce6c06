"""One kernel and background for the whole image, from the normal equations of its stars."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from alertprod._typing import FloatArray
from alertprod.geometry.box import Box
from alertprod.subtraction.basis import KernelBasis
from alertprod.subtraction.config import SpatialModel
from alertprod.subtraction.spatial import SpatialBackground, SpatialKernel, chebyshev_from, spatial_terms
from alertprod.subtraction.stamp_equations import StampEquations

_RIDGE = 1e-12
"""Relative to a matrix of unit diagonal: below any information, above rounding."""

_NOISE_FLOOR = 1e-10
"""Added to the noise matrix, relative to its mean diagonal, so that it has an inverse."""

_NOISE_SIGNIFICANCE = 5.0
"""Signal of a combination of coefficients, in sampling errors of the noise power, at which half of the noise is
taken away: below, what would be divided by may be zero."""


@dataclass(frozen=True, slots=True)
class SpatialSolution:
    """Coefficients of kernel and background over the image, in the terms of a model of the variation.

    Attributes
    ----------
    kernel
        Shape ``(n_basis, n_kernel_terms)``; the first row varies in no term but the constant one.
    background, background_covariance
        Shape ``(n_background_terms,)``, and square; empty where the background is not fitted.
    condition_number
        Of the matrix, scaled to unit diagonal, before anything is done about it.
    """

    kernel: FloatArray
    background: FloatArray
    background_covariance: FloatArray
    condition_number: float

    def make_kernel(self, basis: KernelBasis, *, order: int, box: Box, model: SpatialModel) -> SpatialKernel:
        """Return the kernel that the coefficients stand for."""
        terms = np.tensordot(chebyshev_from(model, order) @ self.kernel.T, basis.images, axes=1)
        return SpatialKernel(terms, order, box)

    def make_background(self, *, order: int, box: Box, model: SpatialModel) -> SpatialBackground:
        """Return the background that the coefficients stand for: zero where it was not fitted."""
        if not len(self.background):
            return SpatialBackground(np.zeros(1), np.zeros(1), 0, box)
        change = chebyshev_from(model, order)
        variances = np.diag(change @ self.background_covariance @ change.T)
        return SpatialBackground(change @ self.background, np.sqrt(np.maximum(variances, 0.0)), order, box)

    def evaluate(self, kernel_terms: FloatArray, background_terms: FloatArray) -> FloatArray:
        """Return the coefficients at points, shape ``(n, m)``, given the spatial terms there."""
        at_stars = kernel_terms @ self.kernel.T
        if not len(self.background):
            return at_stars
        return np.concatenate([at_stars, background_terms @ self.background], axis=1)


def local_background_terms(
    order: int, box: Box, *, x: FloatArray, y: FloatArray, side: int, model: SpatialModel = "chebyshev1"
) -> FloatArray:
    """Return what each background term looks like across stamps of a side: ``(n, 3, n_terms)``, constant and slopes."""
    half = side // 2

    def terms(dx: int, dy: int) -> FloatArray:
        return spatial_terms(order, box, x=x + dx, y=y + dy, model=model)

    slopes_x, slopes_y = terms(half, 0) - terms(-half, 0), terms(0, half) - terms(0, -half)
    return np.stack([terms(0, 0), slopes_x / 2.0, slopes_y / 2.0], axis=1)


def solve_spatial(
    equations: StampEquations,
    kernel_terms: FloatArray,
    background_terms: FloatArray,
    *,
    basis: KernelBasis,
    flux_ratio: float,
    correct_noise_bias: bool,
    use_prior: bool = True,
) -> SpatialSolution:
    """Solve for a kernel and a background that vary over the image.

    Parameters
    ----------
    kernel_terms, background_terms
        Spatial terms at the stars: ``(n, n_kernel_terms)``, and ``(n, 3, n_background_terms)`` from
        `local_background_terms`; no terms in the latter where the background is not fitted.
    flux_ratio
        As given to `build_equations`.
    correct_noise_bias
        Take the convolved image's noise out of the matrix.
    use_prior
        Hold departures from the first kernel to `KernelBasis.compute_prior_strength`, where no regularisation does.

    Notes
    -----
    Alard (2000), section 3, the kernel constant across a stamp. The noise of the convolved image adds its own power to
    the matrix and not to the right-hand side, which draws the kernel towards zero (regression dilution). Its
    expectation is subtracted: wholly from the equation of the kernel sum; for the rest in the eigenvectors of the matrix
    relative to the noise, where the signal stands out from the sampling error of the noise power,
    ``sqrt(2 / n_pixels)``. What does not stand out is drawn to zero: the kernel to the shape of its first function.
    A regularisation is that of the kernel at each star, with the star's own strength.
    """
    n_basis, n_kernel = len(basis), kernel_terms.shape[1]
    n_background = background_terms.shape[2]
    products = np.einsum("na,nb->nab", kernel_terms, kernel_terms)
    # Unknowns: kernel coefficients, basis-major, then the background.
    size = n_basis * n_kernel
    matrix = np.zeros((size + n_background, size + n_background))
    vector = np.zeros(size + n_background)
    blocks = np.einsum("nij,nab->iajb", equations.matrix[:, :n_basis, :n_basis], products, optimize=True)
    matrix[:size, :size] = blocks.reshape(size, size)
    vector[:size] = np.einsum("ni,na->ia", equations.vector[:, :n_basis], kernel_terms).ravel()
    if n_background:
        local = equations.matrix[:, :, n_basis:] @ background_terms
        matrix[:size, size:] = np.einsum("na,nib->iab", kernel_terms, local[:, :n_basis]).reshape(size, n_background)
        matrix[size:, :size] = matrix[:size, size:].T
        matrix[size:, size:] = np.einsum("nla,nlb->ab", background_terms, local[:, n_basis:])
        vector[size:] = np.einsum("nl,nlb->b", equations.vector[:, n_basis:], background_terms)
    noise = np.kron(basis.gram, np.einsum("n,nab->ab", equations.noise, products))

    # The first kernel has a single coefficient: the kernel sum does not vary.
    shape = np.arange(n_kernel, size)
    linear = np.r_[0, np.arange(size, size + n_background)]
    every = np.r_[linear, shape]
    scale = np.sqrt(np.maximum(np.diag(matrix), np.finfo(float).tiny))
    matrix = matrix / np.outer(scale, scale) + _RIDGE * np.eye(len(matrix))
    vector = vector / scale
    noise = noise / np.outer(scale[:size], scale[:size])
    penalty = None
    if basis.regularization is not None:
        penalty = np.kron(basis.regularization.matrix, np.einsum("n,nab->ab", equations.penalty, products))
        penalty /= np.outer(scale[:size], scale[:size])
    eigenvalues = np.linalg.eigvalsh(matrix[np.ix_(every, every)])
    condition = float(eigenvalues[-1] / max(eigenvalues[0], np.finfo(float).tiny))
    if correct_noise_bias:
        matrix[:size, :size] -= noise

    # Kernel sum and background are eliminated first: nothing draws them anywhere.
    upper = matrix[np.ix_(linear, linear)]
    coupling = matrix[np.ix_(linear, shape)]
    if penalty is not None:
        # Roughness is that of the whole kernel, its first function included.
        upper[0, 0] += penalty[0, 0]
        coupling[0] += penalty[0, shape]
    upper_inverse = np.linalg.pinv(upper, rcond=_RIDGE, hermitian=True)
    shape_inverse = _invert(
        matrix[np.ix_(shape, shape)] - coupling.T @ upper_inverse @ coupling,
        noise[np.ix_(shape, shape)],
        sampling_error=_sampling_error(equations) if correct_noise_bias else None,
        prior=basis.compute_prior_strength(flux_ratio) / equations.noise.sum() if use_prior else 0.0,
        penalty=None if penalty is None else penalty[np.ix_(shape, shape)],
    )
    shape_solution = shape_inverse @ (vector[shape] - coupling.T @ (upper_inverse @ vector[linear]))
    linear_solution = upper_inverse @ (vector[linear] - coupling @ shape_solution)
    kernel = np.zeros(size)
    kernel[shape] = shape_solution / scale[shape]
    kernel[0] = linear_solution[0] / scale[0]
    propagated = upper_inverse @ coupling
    covariance = upper_inverse + propagated @ shape_inverse @ propagated.T
    # Noise that is smooth over a stamp is larger than its pixels tell, where a convolution has correlated them.
    share = equations.noise.sum() / equations.n_pixels.sum()
    inflation = np.sqrt(1.0 + share * max(0.0, flux_ratio**2 * (1.0 - basis.first_power)))
    return SpatialSolution(
        kernel=kernel.reshape(n_basis, n_kernel),
        background=linear_solution[1:] / scale[size:],
        background_covariance=covariance[1:, 1:] / np.outer(scale[size:], scale[size:]) * inflation**2,
        condition_number=condition,
    )


def _sampling_error(equations: StampEquations) -> float:
    n_effective = equations.noise.sum() ** 2 / (equations.noise**2 / equations.n_pixels).sum()
    return float(np.sqrt(2.0 / n_effective))


def _invert(
    matrix: FloatArray, noise: FloatArray, *, sampling_error: float | None, prior: float, penalty: FloatArray | None
) -> FloatArray:
    """Invert in the eigenvectors relative to the noise; `matrix` is less its noise where `sampling_error` is given."""
    size = len(noise)
    if size == 0:
        return noise
    matrix = (matrix + matrix.T) / 2
    noise = (noise + noise.T) / 2
    if penalty is not None and sampling_error is None:
        return np.linalg.inv(matrix + penalty)
    noise = noise + _NOISE_FLOOR * float(np.trace(noise)) / size * np.eye(size)
    power, vectors = scipy.linalg.eigh(matrix, noise)
    if sampling_error is not None:
        signal = np.maximum(power, 0.0)
        trust = signal**2 / (signal**2 + (_NOISE_SIGNIFICANCE * sampling_error) ** 2)
        power = signal + 1.0 - trust
    if penalty is not None:
        information = noise @ vectors
        return np.linalg.inv((information * power) @ information.T + penalty)
    return (vectors / (np.maximum(power, 0.0) + prior)) @ vectors.T
