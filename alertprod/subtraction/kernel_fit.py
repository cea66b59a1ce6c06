"""From two images and star positions to the matching kernel: choose stars, solve, throw out those that do not fit."""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import InsufficientKernelSources
from alertprod.geometry.box import Box
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.basis import (
    KernelBasis,
    choose_widths,
    compute_trace_fwhm,
    lead_with_psfs,
    make_alard_lupton_basis,
)
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.kernel_solution import SpatialSolution, local_background_terms, solve_spatial
from alertprod.subtraction.spatial import SpatialBackground, SpatialKernel, count_terms, spatial_terms
from alertprod.subtraction.stamp_equations import StampEquations, build_equations, estimate_flux_ratio


@dataclass(frozen=True, slots=True)
class KernelFit:
    """The matching kernel and how it was found.

    Attributes
    ----------
    kernel
        Turns the convolved image into the other one.
    background
        What is left in the other one, in its units.
    used, rejected
        Indices of the star positions: in the last fit, and thrown out of it. The others were never tried.
    residual_rms
        Of each used star, in units of its noise.
    condition_number
        Of the spatial fit.
    mode
        How the widths of the basis were chosen: "config", "convolution" or "deconvolution".
    """

    kernel: SpatialKernel
    background: SpatialBackground
    used: IntArray
    rejected: IntArray
    residual_rms: FloatArray
    condition_number: float
    mode: str


def fit_kernel(
    convolved: MaskedImage,
    reference: MaskedImage,
    *,
    convolved_psf: PointSpreadFunction,
    reference_psf: PointSpreadFunction,
    star_x: FloatArray,
    star_y: FloatArray,
    star_flux: FloatArray | None,
    config: AlardLuptonConfig,
) -> KernelFit:
    """Solve for the kernel that makes `convolved` look like `reference`, throwing out stars that do not fit.

    Notes
    -----
    Kernel and background orders are lowered where the stars are fewer than twice the terms.
    """
    convolved_fwhm, reference_fwhm = compute_trace_fwhm(convolved_psf), compute_trace_fwhm(reference_psf)
    sigmas, size, mode = choose_widths(config, convolved_fwhm=convolved_fwhm, reference_fwhm=reference_fwhm)
    basis = lead_with_psfs(
        make_alard_lupton_basis(sigmas, config.alard_deg_gauss, size, mode=mode),
        convolved_psf=convolved_psf,
        reference_psf=reference_psf,
    )
    candidates = CandidateList(
        convolved,
        reference,
        x=np.asarray(star_x, dtype=float),
        y=np.asarray(star_y, dtype=float),
        flux=star_flux,
        geometry=StampGeometry.for_kernel(size),
        config=config,
    )
    clipping = _Clipping(candidates, basis, convolved.box, config)
    solution, orders = clipping.run()
    equations = clipping.equations
    kernel_terms = np.tensordot(solution.kernel.T, basis.images, axes=1)
    rms = clipping.measure(solution, orders)[1]
    return KernelFit(
        kernel=SpatialKernel(kernel_terms, orders[0], convolved.box),
        background=SpatialBackground(
            solution.background if len(solution.background) else np.zeros(1),
            solution.background_errors if len(solution.background) else np.zeros(1),
            orders[1] if len(solution.background) else 0,
            convolved.box,
        ),
        used=equations.index,
        rejected=np.array(sorted(clipping.rejected), dtype=np.int64),
        residual_rms=rms,
        condition_number=solution.condition_number,
        mode=mode,
    )


class _Clipping:
    """The loop of reference section 3d: own kernels, kernel sums, spatial fit, each rejecting stars, others moving up."""

    def __init__(
        self,
        candidates: CandidateList,
        basis: KernelBasis,
        box: Box,
        config: AlardLuptonConfig,
    ) -> None:
        self._candidates, self._basis, self._box, self._config = candidates, basis, box, config
        self.rejected: list[int] = []
        first = candidates.take(np.zeros(0, dtype=np.int64))
        self._require(len(first))
        self._flux_ratio = estimate_flux_ratio(candidates, first)
        self.equations = self._build(first)

    def run(self) -> tuple[SpatialSolution, tuple[int, int]]:
        config = self._config
        self._clip_single(self.equations)
        for _ in range(config.max_spatial_iterations):
            solution, orders = self._solve()
            if not config.spatial_kernel_clipping:
                return solution, orders
            mean, rms = self.measure(solution, orders)
            if not self._reject(self._outside(mean, rms)):
                return solution, orders
            fresh = self._candidates.take(self.equations.index)
            if len(fresh):
                self._clip_single(self._build(fresh), known=self.equations)
        return self._solve()

    def measure(self, solution: SpatialSolution, orders: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
        kernel_terms, background_terms = self._terms(orders)
        return self.equations.measure_residuals(solution.evaluate(kernel_terms, background_terms))

    def _build(self, indices: IntArray) -> StampEquations:
        return build_equations(self._candidates, indices, self._basis, flux_ratio=self._flux_ratio, config=self._config)

    def _clip_single(self, fresh: StampEquations, known: StampEquations | None = None) -> None:
        """Judge fresh stars by their own kernels, let others move up in their cells, then judge the kernel sums."""
        config = self._config
        accepted = known
        while len(fresh):
            bad = ~np.isfinite(fresh.own_sum)
            if config.single_kernel_clipping:
                bad |= self._outside(fresh.own_mean, fresh.own_rms)
            self.rejected += fresh.index[bad].tolist()
            passed = fresh.select(~bad)
            accepted = passed if accepted is None else accepted.joined(passed)
            following = self._candidates.take(accepted.index) if bad.any() else fresh.index[:0]
            if not len(following):
                break
            fresh = self._build(following)
        self.equations = fresh if accepted is None else accepted
        self._require(len(self.equations))
        if config.kernel_sum_clipping:
            while self._reject(self._odd_kernel_sums()):
                pass

    def _odd_kernel_sums(self) -> BoolArray:
        """Say whose kernel sum is off, given its error and the scatter of the half of the stars with small errors."""
        sums, errors = self.equations.own_sum, self.equations.own_sum_error
        good = errors <= np.median(errors)
        centre = np.median(sums[good])
        scatter = 1.4826 * np.median(np.abs(sums[good] - centre))
        odd: BoolArray = np.abs(sums - centre) > self._config.max_ksum_sigma * np.hypot(errors, scatter)
        return odd if len(sums) > 2 else np.zeros(len(sums), dtype=bool)

    def _outside(self, mean: FloatArray, rms: FloatArray) -> BoolArray:
        # Where the variance planes are too small for all stars alike, no star is to blame.
        finite = rms[np.isfinite(rms)]
        common = max(1.0, float(np.median(finite))) if finite.size else 1.0
        outside: BoolArray = np.abs(mean) > self._config.candidate_residual_mean_max * common
        outside |= ~(rms <= self._config.candidate_residual_std_max * common)
        return outside

    def _reject(self, bad: BoolArray) -> bool:
        if not bad.any():
            return False
        self.rejected += self.equations.index[bad].tolist()
        self.equations = self.equations.select(~bad)
        self._require(len(self.equations))
        return True

    def _require(self, n: int) -> None:
        if n < self._config.min_kernel_sources:
            raise InsufficientKernelSources(n, self._config.min_kernel_sources)

    def _orders(self) -> tuple[int, int]:
        """Lower the orders where stars are few: half as many terms as stars."""
        n = len(self.equations)
        kernel, background = self._config.spatial_kernel_order, self._config.spatial_bg_order
        while kernel > 0 and 2 * count_terms(kernel) > n:
            kernel -= 1
        while background > 0 and 2 * count_terms(background) > n:
            background -= 1
        return kernel, background

    def _terms(self, orders: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
        x, y = self.equations.x, self.equations.y
        kernel_terms = spatial_terms(orders[0], self._box, x=x, y=y)
        if not self._config.fit_for_background:
            return kernel_terms, np.zeros((len(x), 0, 0))
        side = 2 * self._candidates.geometry.fitted + 1
        return kernel_terms, local_background_terms(orders[1], self._box, x=x, y=y, side=side)

    def _solve(self) -> tuple[SpatialSolution, tuple[int, int]]:
        orders = self._orders()
        kernel_terms, background_terms = self._terms(orders)
        solution = solve_spatial(
            self.equations,
            kernel_terms,
            background_terms,
            basis=self._basis,
            flux_ratio=self._flux_ratio,
            correct_noise_bias=self._config.correct_noise_bias,
        )
        return solution, orders
