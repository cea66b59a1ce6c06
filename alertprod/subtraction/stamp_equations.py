"""Normal equations of kernel stars: small matrices that stand for the pixels.

A solution's residuals on a star follow from a second such matrix, so that clipping and refitting never touch pixels
again.
"""

from dataclasses import dataclass, replace

import numpy as np

from alertprod._bands import map_threads
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.subtraction.basis import KernelBasis, convolve_stamps
from alertprod.subtraction.candidates import CandidateList
from alertprod.subtraction.config import MatchConfig

_BATCH = 32
"""Stars whose design matrices are held at once: some tens of MB."""

_BATCH_KERNELS = 1024
"""The same for large bases, as stars times kernels."""

_RATIO_STARS = 200
"""Stars whose median flux ratio is taken: the error of a median of 200 is a tenth of one star's."""

_RIDGE = 1e-12
"""Relative to a matrix of unit diagonal: below any information, above rounding."""

_RIM_WIDTH = 2
"""Pixels: of the smallest kernel's stamp, 23 pixels wide, 168 of them, which tell the sky to 0.08 of the noise."""

OWN_RESULTS = ("own_sum", "own_sum_error", "own_mean", "own_rms", "own_coefficients", "own_covariance")
"""The columns of `StampEquations` that tell of a star by itself."""

N_LOCAL_BACKGROUND = 3
"""Columns of the background across a stamp: a constant and two slopes, or a sloping sky would pass for a shift."""


def local_background(side: int) -> FloatArray:
    """Return the constant and the slopes in x and y, from -1 to 1 across a stamp: shape ``(3, side * side)``."""
    ramp = np.linspace(-1.0, 1.0, side)
    v, u = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack([np.ones(side * side), u.ravel(), v.ravel()])


@dataclass(slots=True)
class StampEquations:
    """Sums over the pixels of stars; m columns: the basis kernels and, where it is fitted, a sloping background.

    Attributes
    ----------
    index
        Shape ``(n,)``: which stars.
    x, y
        Their positions, pixels.
    matrix, vector
        ``(n, m, m)`` and ``(n, m)``: normal equations with the weights of the fit.
    noise
        ``(n,)``: the noise of the convolved image adds ``noise * basis.gram`` to `matrix`.
    penalty
        ``(n,)``: what a star adds of the basis's regularisation; 0 where there is none.
    test_matrix, test_vector, test_norm
        The same sums with each pixel's own variance, for the residuals in units of the noise.
    mean_row, mean_target
        Sums of the design and of the data over the noise.
    rim_row, rim_target
        Means of the design and of the data over the stamp's rim: what is left of them there is sky.
    n_pixels, n_tested
        Number of pixels in the fit, and of those that the residuals are judged by.
    own_sum, own_sum_error
        The flux ratio that each star asks for by itself, and its error; NaN where it has no light to ask with.
    own_mean, own_rms
        Of the residuals that a kernel of its own leaves, in units of the noise.
    own_coefficients
        ``(n, m)``: that kernel, and the background with it.
    own_covariance
        ``(n, n_basis, n_basis)``: of its coefficients, what holds them counted as information; ``(n, 0, 0)`` where
        `MatchConfig.calculate_kernel_uncertainty` does not ask for it.
    own_condition
        Condition number of `matrix`, scaled to unit diagonal; NaN where nobody asks for it.
    """

    index: IntArray
    x: FloatArray
    y: FloatArray
    matrix: FloatArray
    vector: FloatArray
    noise: FloatArray
    penalty: FloatArray
    test_matrix: FloatArray
    test_vector: FloatArray
    test_norm: FloatArray
    mean_row: FloatArray
    mean_target: FloatArray
    rim_row: FloatArray
    rim_target: FloatArray
    n_pixels: FloatArray
    n_tested: FloatArray
    own_sum: FloatArray
    own_sum_error: FloatArray
    own_mean: FloatArray
    own_rms: FloatArray
    own_coefficients: FloatArray
    own_covariance: FloatArray
    own_condition: FloatArray

    def __len__(self) -> int:
        return len(self.index)

    def own_results(self) -> dict[str, FloatArray]:
        """Return what each star asks for by itself, by column name."""
        return {name: getattr(self, name) for name in OWN_RESULTS}

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
        mean = (self.mean_target - np.einsum("ni,ni->n", coefficients, self.mean_row)) / self.n_tested
        return mean, np.sqrt(np.maximum(chi2, 0.0) / self.n_tested)

    def with_own_sky(self, coefficients: FloatArray) -> FloatArray:
        """Return coefficients ``(n, m)``, background among them, whose constant is what each star's rim asks for.

        Notes
        -----
        The rim alone: a constant from the whole stamp would take up the light of a star that changed.
        """
        own = coefficients.copy()
        own[:, -N_LOCAL_BACKGROUND] += self.rim_target - np.einsum("ni,ni->n", coefficients, self.rim_row)
        return own

    def projected(
        self, combinations: FloatArray, basis: KernelBasis, *, flux_ratio: float, config: MatchConfig
    ) -> "StampEquations":
        """Return the equations in another basis, `combinations` of this one's kernels, solved there; no pixel is needed.

        Parameters
        ----------
        combinations
            Shape ``(k, n_basis)``.
        basis
            The new basis, `KernelBasis.recombined` of the old one.
        """
        k, n_basis = combinations.shape
        n_local = self.vector.shape[1] - n_basis
        whole = np.zeros((k + n_local, n_basis + n_local))
        whole[:k, :n_basis] = combinations
        whole[k:, n_basis:] = np.eye(n_local)
        equations = replace(
            self,
            matrix=whole @ self.matrix @ whole.T,
            vector=self.vector @ whole.T,
            test_matrix=whole @ self.test_matrix @ whole.T,
            test_vector=self.test_vector @ whole.T,
            mean_row=self.mean_row @ whole.T,
            rim_row=self.rim_row @ whole.T,
        )
        _solve_own(equations, basis, flux_ratio, config)
        return equations


def build_equations(
    candidates: CandidateList,
    indices: IntArray,
    basis: KernelBasis,
    *,
    flux_ratio: float,
    config: MatchConfig,
) -> StampEquations:
    """Convolve stars' stamps with the basis, once, and sum their normal equations.

    Parameters
    ----------
    flux_ratio
        Of the reference to the convolved image, about; see `estimate_flux_ratio`.
    """
    batch = max(1, min(_BATCH, _BATCH_KERNELS // len(basis)))

    def build(stars: IntArray) -> StampEquations:
        power = np.full(len(stars), basis.first_power * flux_ratio**2)
        part = _build_batch(candidates, stars, basis, flux_ratio, power, config)
        if not config.iterate_single_kernel:
            return part
        own = part.own_coefficients[:, : len(basis)]
        own_power = np.einsum("ni,ij,nj->n", own, basis.gram, own)
        power = np.where(np.isfinite(own_power), own_power, power)
        return _build_batch(candidates, stars, basis, flux_ratio, power, config)

    batches = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    parts = map_threads(build, batches, n_threads=config.n_threads)
    return StampEquations(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in StampEquations.__slots__)
    )


def _build_batch(
    candidates: CandidateList,
    indices: IntArray,
    basis: KernelBasis,
    flux_ratio: float,
    power: FloatArray,
    config: MatchConfig,
) -> StampEquations:
    """Sum one batch's equations; `power`, ``(n,)``, is the sum of squares of the kernel that spreads the noise."""
    source, source_variance, target, target_variance, good = candidates.extract(indices)
    n, side = len(indices), target.shape[1]
    n_pixels = good.sum(axis=(1, 2)).astype(float)
    design = convolve_stamps(source, basis, side).reshape(n, len(basis), -1)
    if config.fit_for_background:
        local = np.broadcast_to(local_background(side), (n, N_LOCAL_BACKGROUND, side * side))
        design = np.concatenate([design, local], axis=1)

    variance = target_variance + power[:, None, None] * source_variance
    if config.error_floor > 0:
        sky = np.median(np.where(good, target, np.nan)[:, :: side - 1, :], axis=(1, 2), keepdims=True)
        variance = variance + (config.error_floor * (target - np.nan_to_num(sky))) ** 2
    inverse = np.where(good, 1.0 / variance, 0.0).reshape(n, -1)
    data = target.reshape(n, -1)
    transposed = design.transpose(0, 2, 1)
    followed = inverse
    if config.use_core_stats:
        inverse = inverse * _core(side, config.candidate_core_radius)
    sigma_inverse = np.sqrt(inverse)
    tested = design * inverse[:, None, :]
    if config.constant_variance_weighting:
        median = np.array([np.median(v[g]) for v, g in zip(variance, good, strict=True)])
        weight = good.reshape(n, -1) / median[:, None]
        weighted = design * weight[:, None, :]
    else:
        weight = followed
        weighted = design * weight[:, None, :] if config.use_core_stats else tested
    rim = (good & _rim(side)).reshape(n, -1)
    rim = rim / np.maximum(rim.sum(axis=1, keepdims=True), 1)
    nothing = np.full(n, np.nan)
    equations = StampEquations(
        index=indices,
        x=candidates.column[indices].astype(float),
        y=candidates.row[indices].astype(float),
        matrix=weighted @ transposed,
        vector=(weighted @ data[:, :, None])[:, :, 0],
        noise=(weight * source_variance.reshape(n, -1)).sum(axis=1),
        penalty=np.zeros(n),
        test_matrix=tested @ transposed,
        test_vector=(tested @ data[:, :, None])[:, :, 0],
        test_norm=(inverse * data * data).sum(axis=1),
        mean_row=(design @ sigma_inverse[:, :, None])[:, :, 0],
        mean_target=(sigma_inverse * data).sum(axis=1),
        rim_row=(design @ rim[:, :, None])[:, :, 0],
        rim_target=(rim * data).sum(axis=1),
        n_pixels=n_pixels,
        n_tested=np.count_nonzero(inverse, axis=1).astype(float),
        own_sum=nothing,
        own_sum_error=nothing,
        own_mean=nothing,
        own_rms=nothing,
        own_coefficients=np.full((n, design.shape[1]), np.nan),
        own_covariance=np.zeros((n, 0, 0)),
        own_condition=nothing,
    )
    _solve_own(equations, basis, flux_ratio, config)
    return equations


def _core(side: int, radius: int) -> BoolArray:
    """Return which pixels of a flattened stamp are its core, a square of half side `radius`."""
    core = np.zeros((side, side), dtype=bool)
    middle = side // 2
    core[middle - radius : middle + radius + 1, middle - radius : middle + radius + 1] = True
    return core.ravel()


def _rim(side: int) -> BoolArray:
    """Return which pixels of a stamp are its rim."""
    rim = np.ones((side, side), dtype=bool)
    rim[_RIM_WIDTH:-_RIM_WIDTH, _RIM_WIDTH:-_RIM_WIDTH] = False
    return rim


def _solve_own(equations: StampEquations, basis: KernelBasis, flux_ratio: float, config: MatchConfig) -> None:
    """Solve each star by itself; fill in the ``own_`` columns and the penalties.

    Notes
    -----
    Residuals are those of a kernel of its own shape, which the noise of the convolved image, left in the matrix, keeps
    near the leading shape, or that the basis's regularisation holds smooth. The kernel sum is asked for with the
    leading shape alone: a free shape leaves the wings to the noise, and the sum with them.
    """
    n_basis = len(basis)
    matrix, vector = equations.matrix.copy(), equations.vector
    if config.check_condition_number:
        equations.own_condition = _compute_conditions(matrix, config.condition_number_type)
    if config.correct_noise_bias:
        matrix[:, 0, 0] -= equations.noise * basis.first_power
    with_sky = np.r_[0, np.arange(n_basis, matrix.shape[1])]
    sums, errors = _solve_first(matrix[:, with_sky[:, None], with_sky], vector[:, with_sky])
    if config.correct_noise_bias:
        matrix[:, 0, 1:n_basis] -= equations.noise[:, None] * (
            basis.images[1:].reshape(n_basis - 1, basis.size**2) @ basis.images[0].ravel()
        )
        matrix[:, 1:n_basis, 0] = matrix[:, 0, 1:n_basis]
    if basis.regularization is not None:
        equations.penalty = basis.regularization.compute_strengths(equations.matrix[:, :n_basis, :n_basis])
        matrix[:, :n_basis, :n_basis] += equations.penalty[:, None, None] * basis.regularization.matrix
    elif config.use_prior:
        matrix[:, :n_basis, :n_basis] += basis.compute_prior(flux_ratio)
    usable = np.isfinite(sums)
    coefficients = np.full(vector.shape, np.nan)
    if config.calculate_kernel_uncertainty:
        equations.own_covariance = np.full((len(vector), n_basis, n_basis), np.nan)
    if usable.any():
        scale = np.sqrt(np.maximum(np.einsum("nii->ni", matrix[usable]), np.finfo(float).tiny))
        scaled = matrix[usable] / (scale[:, :, None] * scale[:, None, :]) + _RIDGE * np.eye(matrix.shape[1])
        coefficients[usable] = np.linalg.solve(scaled, (vector[usable] / scale)[:, :, None])[:, :, 0] / scale
        if config.calculate_kernel_uncertainty:
            inverse = np.linalg.inv(scaled) / (scale[:, :, None] * scale[:, None, :])
            equations.own_covariance[usable] = inverse[:, :n_basis, :n_basis]
    equations.own_sum, equations.own_sum_error = sums, errors
    equations.own_coefficients = coefficients
    equations.own_mean, equations.own_rms = equations.measure_residuals(coefficients)


def _compute_conditions(matrix: FloatArray, kind: str) -> FloatArray:
    """Return the condition number of each matrix, scaled to unit diagonal; infinite where it has none."""
    diagonal = np.einsum("nii->ni", matrix)
    usable = np.all((diagonal > 0) & np.isfinite(diagonal), axis=1)
    scale = np.sqrt(diagonal[usable])
    scaled = matrix[usable] / (scale[:, :, None] * scale[:, None, :])
    values = np.linalg.eigvalsh(scaled)
    if kind == "SVD":
        values = np.sort(np.abs(values), axis=1)
    conditions = np.full(len(matrix), np.inf)
    smallest = np.maximum(values[:, 0], 0.0)
    conditions[usable] = np.divide(values[:, -1], smallest, out=np.full(len(smallest), np.inf), where=smallest > 0)
    return conditions


def _solve_first(matrix: FloatArray, vector: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the first unknown of each small system and its error; NaN where the system has no good solution."""
    diagonal = np.einsum("nii->ni", matrix)
    usable = np.all((diagonal > 0) & np.isfinite(diagonal), axis=1) & np.all(np.isfinite(vector), axis=1)
    scale = np.sqrt(np.where(usable[:, None], diagonal, 1.0))
    scaled = matrix / (scale[:, :, None] * scale[:, None, :])
    scaled[~usable] = np.eye(matrix.shape[1])
    inverse = np.linalg.inv(scaled + _RIDGE * np.eye(matrix.shape[1]))[:, 0]
    usable &= inverse[:, 0] > 0
    first = (inverse * np.where(usable[:, None], vector, 0.0) / scale).sum(axis=1) / scale[:, 0]
    error = np.sqrt(np.maximum(inverse[:, 0], 0.0)) / scale[:, 0]
    return np.where(usable, first, np.nan), np.where(usable, error, np.nan)


def estimate_flux_ratio(candidates: CandidateList, indices: IntArray) -> float:
    """Return the median over stars of the reference's flux over the convolved image's, in apertures with local sky.

    Good to some per cent: enough to weigh the two images' noise. 1 where there is no light.
    """
    source, _, target, _, good = candidates.extract(indices[:_RATIO_STARS])
    rim = (source.shape[1] - target.shape[1]) // 2
    source = source[:, rim:-rim, rim:-rim]
    border = np.ones(target.shape[1:], dtype=bool)
    border[2:-2, 2:-2] = False
    fluxes = []
    for stamps in (target, source):
        sky = np.array(
            [np.median(s[g & border]) if (g & border).any() else 0.0 for s, g in zip(stamps, good, strict=True)]
        )
        fluxes.append(np.where(good, stamps - sky[:, None, None], 0.0).sum(axis=(1, 2)))
    bright = (fluxes[0] > 0) & (fluxes[1] > 0)
    return float(np.median(fluxes[0][bright] / fluxes[1][bright])) if bright.any() else 1.0
