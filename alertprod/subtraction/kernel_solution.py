"""Normal equations of kernel stars, their sum over the image, and the stars that do not fit.

Each star contributes a small matrix, kept; a solution's residuals on a star follow from a second such matrix, so that
clipping and refitting never touch pixels again.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.subtraction.basis import KernelBasis
from alertprod.subtraction.candidates import CandidateList
from alertprod.subtraction.config import AlardLuptonConfig

_BATCH = 32
"""Stars whose design matrices are held at once: some tens of MB."""

_RIDGE = 1e-11
"""Relative to a matrix of unit diagonal: below any information, above rounding."""


@dataclass(slots=True)
class StampEquations:
    """Sums over the pixels of stars; m basis kernels and a column of ones where the background is fitted.

    Attributes
    ----------
    index
        Shape ``(n,)``: which stars.
    x, y
        Their positions, pixels.
    matrix, vector
        ``(n, m, m)`` and ``(n, m)``: normal equations with the weights of the fit.
    noise
        ``(n,)``: the noise of the convolved image adds ``noise * gram(basis)`` to `matrix`.
    test_matrix, test_vector, test_norm
        The same sums with each pixel's own variance, for the residuals in units of the noise.
    mean_row, mean_target, n_pixels
        Sums of the design and of the data over the noise, and the number of pixels.
    own_sum, own_sum_error, own_mean, own_rms
        Of the kernel that each star asks for by itself: its sum and the error of that, mean and rms of its residuals in
        units of the noise. NaN where there is no such kernel.
    """

    index: IntArray
    x: FloatArray
    y: FloatArray
    matrix: FloatArray
    vector: FloatArray
    noise: FloatArray
    test_matrix: FloatArray
    test_vector: FloatArray
    test_norm: FloatArray
    mean_row: FloatArray
    mean_target: FloatArray
    n_pixels: FloatArray
    own_sum: FloatArray
    own_sum_error: FloatArray
    own_mean: FloatArray
    own_rms: FloatArray

    def __len__(self) -> int:
        return len(self.index)

    def select(self, keep: BoolArray) -> "StampEquations":
        """Return the equations of some stars."""
        return StampEquations(*(getattr(self, name)[keep] for name in self.__slots__))

    def joined(self, other: "StampEquations") -> "StampEquations":
        """Return the equations of these and other stars."""
        return StampEquations(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__slots__))

    def measure_residuals(self, coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and rms of each star's residuals in units of the noise, for coefficients ``(n, m)``."""
        quadratic = np.einsum("ni,nij,nj->n", coefficients, self.test_matrix, coefficients)
        chi2 = self.test_norm - 2.0 * np.einsum("ni,ni->n", coefficients, self.test_vector) + quadratic
        mean = (self.mean_target - np.einsum("ni,ni->n", coefficients, self.mean_row)) / self.n_pixels
        return mean, np.sqrt(np.maximum(chi2, 0.0) / self.n_pixels)


def build_equations(
    candidates: CandidateList,
    indices: IntArray,
    basis: KernelBasis,
    *,
    variance_factor: float,
    config: AlardLuptonConfig,
) -> StampEquations:
    """Convolve stars' stamps with the basis, once, and sum their normal equations.

    Parameters
    ----------
    variance_factor
        What the kernel makes of the convolved image's variance, about: the sum of its squares.
    """
    parts = [
        _build_batch(candidates, indices[start : start + _BATCH], basis, variance_factor, config)
        for start in range(0, len(indices), _BATCH)
    ]
    return StampEquations(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in StampEquations.__slots__)
    )


def _build_batch(
    candidates: CandidateList,
    indices: IntArray,
    basis: KernelBasis,
    variance_factor: float,
    config: AlardLuptonConfig,
) -> StampEquations:
    source, source_variance, target, target_variance, good = candidates.extract(indices)
    n, side = len(indices), target.shape[1]
    n_pixels = good.sum(axis=(1, 2)).astype(float)
    design = convolve_stamps(source, basis, side).reshape(n, len(basis), -1)
    if config.fit_for_background:
        design = np.concatenate([design, np.ones((n, 1, side * side))], axis=1)

    variance = target_variance + variance_factor * source_variance
    if config.error_floor > 0:
        sky = np.median(np.where(good, target, np.nan)[:, :: side - 1, :], axis=(1, 2), keepdims=True)
        variance = variance + (config.error_floor * (target - np.nan_to_num(sky))) ** 2
    inverse = np.where(good, 1.0 / variance, 0.0).reshape(n, -1)
    if config.constant_variance_weighting:
        median = np.array([np.median(v[g]) for v, g in zip(variance, good, strict=True)])
        weight = good.reshape(n, -1) / median[:, None]
    else:
        weight = inverse
    data = target.reshape(n, -1)
    weighted = design * weight[:, None, :]
    tested = design * inverse[:, None, :]
    sigma_inverse = np.sqrt(inverse)
    transposed = design.transpose(0, 2, 1)
    nothing = np.full(n, np.nan)
    equations = StampEquations(
        index=indices,
        x=candidates.column[indices].astype(float),
        y=candidates.row[indices].astype(float),
        matrix=weighted @ transposed,
        vector=(weighted @ data[:, :, None])[:, :, 0],
        noise=(weight * source_variance.reshape(n, -1)).sum(axis=1),
        test_matrix=tested @ transposed,
        test_vector=(tested @ data[:, :, None])[:, :, 0],
        test_norm=(inverse * data * data).sum(axis=1),
        mean_row=(design @ sigma_inverse[:, :, None])[:, :, 0],
        mean_target=(sigma_inverse * data).sum(axis=1),
        n_pixels=n_pixels,
        own_sum=nothing,
        own_sum_error=nothing,
        own_mean=nothing,
        own_rms=nothing,
    )
    _solve_own(equations)
    return equations


def convolve_stamps(stamps: FloatArray, basis: KernelBasis, side: int) -> FloatArray:
    """Convolve stamps ``(n, s, s)`` with every basis kernel: ``(n, n_basis, side, side)``, the middle of each."""
    n, outer, _ = stamps.shape
    half, kernel_half = side // 2, basis.size // 2
    # band[p, i, o] = profile_p(o - i): one banded matrix for all profiles.
    shift = (np.arange(side)[None, :] + outer // 2 - half) - np.arange(outer)[:, None]
    inside = np.abs(shift) <= kernel_half
    band = np.where(inside, basis.profiles[:, np.clip(shift + kernel_half, 0, basis.size - 1)], 0.0)
    n_profiles = len(basis.profiles)
    along_x = (stamps.reshape(n * outer, outer) @ band.transpose(1, 0, 2).reshape(outer, -1)).reshape(
        n, outer, n_profiles, side
    )
    raw = np.empty((n, len(basis), side, side))
    for i, (px, py) in enumerate(zip(basis.x_profile, basis.y_profile, strict=True)):
        raw[:, i] = band[py].T @ along_x[:, :, px, :]
    return (basis.transform @ raw.reshape(n, len(basis), -1)).reshape(n, len(basis), side, side)


def _solve_own(equations: StampEquations) -> None:
    """Solve each star for its own kernel and fill in the ``own_`` columns."""
    scale = np.sqrt(np.einsum("nii->ni", equations.matrix))
    usable = np.all((scale > 0) & np.isfinite(scale), axis=1) & np.all(np.isfinite(equations.vector), axis=1)
    scale = np.where(usable[:, None], scale, 1.0)
    matrix = equations.matrix / (scale[:, :, None] * scale[:, None, :])
    matrix[~usable] = np.eye(matrix.shape[1])
    matrix += 1e2 * _RIDGE * np.eye(matrix.shape[1])
    right = np.zeros((*equations.vector.shape, 2))
    right[:, :, 0] = np.where(usable[:, None], equations.vector, 0.0) / scale
    # The second column gives the first element of the inverse: all flux is in the first basis kernel.
    right[:, 0, 1] = 1.0
    solved = np.linalg.solve(matrix, right)
    coefficients = np.where(usable[:, None], solved[:, :, 0] / scale, np.nan)
    equations.own_sum = coefficients[:, 0]
    equations.own_sum_error = np.where(usable, np.sqrt(np.maximum(solved[:, 0, 1], 0.0)) / scale[:, 0], np.nan)
    equations.own_mean, equations.own_rms = equations.measure_residuals(coefficients)


@dataclass(frozen=True, slots=True)
class SpatialSolution:
    """Coefficients of kernel and background over the image.

    Attributes
    ----------
    kernel
        Shape ``(n_basis, n_kernel_terms)``; the first row varies in no term but the constant one.
    background, background_errors
        Shape ``(n_background_terms,)``.
    condition_number
        Of the solved matrix, scaled to unit diagonal.
    """

    kernel: FloatArray
    background: FloatArray
    background_errors: FloatArray
    condition_number: float

    def evaluate(self, kernel_terms: FloatArray, background_terms: FloatArray) -> FloatArray:
        """Return the coefficients at points, shape ``(n, m)``, given the spatial terms there."""
        at_stars = kernel_terms @ self.kernel.T
        if not len(self.background):
            return at_stars
        return np.concatenate([at_stars, (background_terms @ self.background)[:, None]], axis=1)


def solve_spatial(
    equations: StampEquations,
    kernel_terms: FloatArray,
    background_terms: FloatArray,
    *,
    gram: FloatArray,
    correct_noise_bias: bool,
) -> SpatialSolution:
    """Solve for a kernel and a background that vary over the image.

    Parameters
    ----------
    kernel_terms, background_terms
        Spatial terms at the stars, ``(n, n_kernel_terms)`` and ``(n, n_background_terms)``; the latter has no columns
        where the background is not fitted.
    gram
        Inner products of the basis kernels, ``(n_basis, n_basis)``.
    correct_noise_bias
        Take the convolved image's noise out of the matrix.

    Notes
    -----
    Alard (2000), section 3, the kernel constant across a stamp. The noise of the convolved image adds its own power to
    the matrix and not to the right-hand side, which draws the kernel towards zero (regression dilution). Its
    expectation is subtracted; in the eigenvectors of signal relative to noise, with eigenvalues l in units of the
    noise power, 1 is taken from those with l >> 1 and nothing from those without signal, which stay shrunk.
    """
    n_basis, n_kernel = len(gram), kernel_terms.shape[1]
    n_background = background_terms.shape[1]
    products = np.einsum("na,nb->nab", kernel_terms, kernel_terms)
    # Order of the unknowns: basis-major, then the background.
    matrix_kk = np.einsum("nij,nab->iajb", equations.matrix[:, :n_basis, :n_basis], products, optimize=True)
    noise_kk = np.einsum("ij,ab->iajb", gram, np.einsum("n,nab->ab", equations.noise, products))
    vector_k = np.einsum("ni,na->ia", equations.vector[:, :n_basis], kernel_terms)
    size = n_basis * n_kernel
    # The first kernel has a single coefficient: the kernel sum does not vary.
    keep = np.r_[0, np.arange(n_kernel, size)]
    signal = matrix_kk.reshape(size, size)[np.ix_(keep, keep)]
    noise = noise_kk.reshape(size, size)[np.ix_(keep, keep)]
    vector = vector_k.ravel()[keep]

    if n_background:
        cross = np.einsum("ni,na,nb->iab", equations.matrix[:, :n_basis, n_basis], kernel_terms, background_terms)
        cross = cross.reshape(size, n_background)[keep]
        matrix_bb = np.einsum("n,na,nb->ab", equations.matrix[:, n_basis, n_basis], background_terms, background_terms)
        vector_b = equations.vector[:, n_basis] @ background_terms
        inverse_bb = np.linalg.pinv(matrix_bb, rcond=_RIDGE, hermitian=True)
        # The background is eliminated first: what is left is the kernel's own information.
        signal = signal - cross @ inverse_bb @ cross.T
        vector = vector - cross @ (inverse_bb @ vector_b)

    scale = np.sqrt(np.maximum(np.diag(signal), np.finfo(float).tiny))
    scaled = signal / np.outer(scale, scale)
    scaled += _RIDGE * np.eye(len(scaled))
    scaled = (scaled + scaled.T) / 2
    scaled_noise = noise / np.outer(scale, scale)
    inverse = _invert(scaled, scaled_noise if correct_noise_bias else None)
    solution = inverse @ (vector / scale) / scale
    eigenvalues = np.linalg.eigvalsh(scaled)
    kernel = np.zeros(size)
    kernel[keep] = solution
    if n_background:
        background = inverse_bb @ (vector_b - cross.T @ solution)
        propagated = (cross / scale[:, None]) @ inverse_bb
        covariance = inverse_bb + propagated.T @ inverse @ propagated
        errors = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    else:
        background = errors = np.zeros(0)
    condition = float(eigenvalues[-1] / max(eigenvalues[0], np.finfo(float).tiny))
    return SpatialSolution(kernel.reshape(n_basis, n_kernel), background, errors, condition)


def _invert(matrix: FloatArray, noise: FloatArray | None) -> FloatArray:
    """Invert a positive-definite matrix of unit diagonal, less its noise where that is given."""
    size = len(matrix)
    if noise is None:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), np.eye(size))
    floor = 1e-9 * float(np.trace(noise)) / size
    if floor <= 0:
        return _invert(matrix, None)
    noise = (noise + noise.T) / 2 + floor * np.eye(size)
    power, vectors = scipy.linalg.eigh(matrix, noise)
    power = np.maximum(power, np.finfo(float).eps * power[-1])
    corrected = power - power**2 / (1.0 + power**2)
    return (vectors / corrected) @ vectors.T
