"""The loop that finds the stars a kernel can be fitted on: own kernels, kernel sums, spatial fit, each rejecting some.

Rejected stars let others of their cell move up. Where the basis is reduced (degrees chosen, principal components) the
stamps' equations are kept in the whole basis too, so that a new star changes the reduction.
"""

import numpy as np
from scipy.optimize import brentq

from alertprod._bands import map_threads
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import BadSubtraction, InsufficientKernelSources
from alertprod.geometry.box import Box
from alertprod.subtraction.basis import KernelBasis
from alertprod.subtraction.basis_choice import choose_degrees
from alertprod.subtraction.candidates import CandidateList
from alertprod.subtraction.config import AlardLuptonConfig, MatchConfig
from alertprod.subtraction.kernel_solution import SpatialSolution, local_background_terms, solve_spatial
from alertprod.subtraction.pca import find_principal_kernels
from alertprod.subtraction.spatial import count_terms, spatial_terms
from alertprod.subtraction.stamp_equations import StampEquations, build_equations

_PLAUSIBLE_SUM = 2.0
"""A star's own kernel takes part in the components where its sum is within this factor of the median star's: what is
divided by a sum near zero is not a shape."""

_STARS_PER_TERM = 2
"""Stars for each spatial term at the least."""

_STARS_PER_CHOICE = 4
"""The same where the order is chosen: fewer stars tell nothing about it."""

_ODD_RMS = 3.0
"""Stars whose residuals are beyond this many times the median star's do not decide the order."""

_LEAST_SCATTER = 0.005
"""Of the kernel sums of constant stars, each asked for with the one leading shape: the PSF that it is wrong for varies."""

_MEDIAN = 0.67449
"""Of the absolute value of a normal deviate."""


class KernelClipping:
    """Chooses stars and solves, round by round.

    Parameters
    ----------
    candidates
        The stars.
    basis
        What their stamps are convolved with.
    first
        The stars to begin with, as `CandidateList.take` gives them.
    flux_ratio
        See `build_equations`.

    Attributes
    ----------
    equations
        Of the stars now in use, in `basis`.
    basis
        The one given, or what it was reduced to.
    degrees
        Of the Gaussians, where they were chosen by `choose_degrees`.
    rejected
        Why stars were thrown out, by index.
    """

    equations: StampEquations
    basis: KernelBasis

    def __init__(
        self,
        candidates: CandidateList,
        basis: KernelBasis,
        *,
        first: IntArray,
        flux_ratio: float,
        box: Box,
        config: MatchConfig,
    ) -> None:
        self._candidates, self._whole_basis, self._box, self._config = candidates, basis, box, config
        self._flux_ratio = flux_ratio
        self.rejected: dict[int, str] = {}
        self.degrees: tuple[int, ...] | None = None
        self._kept: BoolArray | None = None
        self._forgotten: list[tuple[IntArray, dict[str, FloatArray]]] = []
        self._require(len(first))
        # Of the stars in use, in the whole basis.
        self._built = self._build(first)

    def run(self) -> tuple[SpatialSolution, tuple[int, int]]:
        """Return the solution, and the orders of kernel and background that the stars bear."""
        config = self._config
        self._clip_single(self._built)
        for _ in range(config.max_spatial_iterations):
            solution, orders = self._solve()
            if not config.spatial_kernel_clipping:
                return solution, orders
            if not self._reject(self._outside_spatial(solution, orders), "spatial residuals"):
                return solution, orders
            fresh = self._candidates.take(self._built.index)
            if len(fresh):
                self._clip_single(self._build(fresh), known=self._built)
            elif config.use_pca_for_spatial_kernel:
                self._reduce()
        return self._solve()

    def measure(self, solution: SpatialSolution, orders: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
        """Return mean and rms of the used stars' residuals, in units of the noise."""
        return self.equations.measure_residuals(self._evaluate(solution, orders))

    def own_results(self) -> list[tuple[IntArray, dict[str, FloatArray]]]:
        """Return the own results of every star that was solved for, with its index; kernels in the whole basis."""
        return [*self._forgotten, (self._built.index, self._built.own_results())]

    def _build(self, indices: IntArray) -> StampEquations:
        return build_equations(
            self._candidates, indices, self._whole_basis, flux_ratio=self._flux_ratio, config=self._config
        )

    def _clip_single(self, fresh: StampEquations, known: StampEquations | None = None) -> None:
        """Judge fresh stars by their own kernels, let others move up in their cells, then judge the kernel sums."""
        accepted = known
        while len(fresh):
            bad = self._judge(fresh)
            passed = fresh.select(~bad)
            accepted = passed if accepted is None else accepted.joined(passed)
            following = self._candidates.take(accepted.index) if bad.any() else fresh.index[:0]
            if not len(following):
                break
            fresh = self._build(following)
        self._built = self.equations = fresh if accepted is None else accepted
        self.basis = self._whole_basis
        self._require(len(self._built))
        self._clip_sums()
        self._reduce()

    def _judge(self, fresh: StampEquations) -> BoolArray:
        """Say which stars their own kernels tell against, and remember why."""
        config = self._config
        bad = ~np.isfinite(fresh.own_sum)
        if config.single_kernel_clipping:
            bad |= self._outside(fresh.own_mean, fresh.own_rms)
        reasons = np.where(bad, "own residuals", "")
        if config.check_condition_number:
            ill = ~(fresh.own_condition <= config.max_condition_number)
            reasons = np.where(ill, "condition number", reasons)
            bad |= ill
        for row in np.flatnonzero(bad):
            self._forget(fresh, int(row), str(reasons[row]))
        return bad

    def _clip_sums(self) -> None:
        if self._config.kernel_sum_clipping:
            while self._reject(self._odd_kernel_sums(), "kernel sum"):
                pass

    def _reduce(self) -> None:
        """Bring the equations to the basis that the stars bear, and reject those that it does not suit."""
        config = self._config
        if isinstance(config, AlardLuptonConfig) and config.use_bic_for_kernel_basis and self._kept is None:
            self.degrees, self._kept = choose_degrees(self._built, config.alard_deg_gauss)
        if self._kept is None and not config.use_pca_for_spatial_kernel:
            return
        while True:
            self.basis, self.equations = self._whole_basis, self._built
            if self._kept is not None:
                self._project(np.eye(len(self._whole_basis))[self._kept])
            if config.use_pca_for_spatial_kernel:
                self._project(self._find_principal())
            bad = np.zeros(len(self.equations), dtype=bool)
            if config.single_kernel_clipping:
                bad = self._outside(self.equations.own_mean, self.equations.own_rms)
            if not self._reject(bad, "own residuals"):
                return

    def _project(self, combinations: FloatArray) -> None:
        self.basis = self.basis.recombined(combinations)
        self.equations = self.equations.projected(
            combinations, self.basis, flux_ratio=self._flux_ratio, config=self._config
        )

    def _find_principal(self) -> FloatArray:
        sums, errors = self.equations.own_coefficients[:, 0], self.equations.own_sum_error
        typical = float(np.median(self.equations.own_sum))
        # Every star of the better half counts alike, so that a few bright ones do not make the components.
        weights = np.minimum(1.0, (np.median(errors) / errors) ** 2)
        plausible = (sums > typical / _PLAUSIBLE_SUM) & (sums < typical * _PLAUSIBLE_SUM)
        if not plausible.any():
            raise BadSubtraction("median kernel sum of the stars", float(np.median(sums)), 0.0)
        return find_principal_kernels(
            self.basis,
            self.equations.own_coefficients[plausible, : len(self.basis)],
            weights=weights[plausible],
            n_components=self._config.num_principal_components,
            subtract_mean=self._config.subtract_mean_for_pca,
        )

    def _odd_kernel_sums(self) -> BoolArray:
        """Say whose kernel sum is off, given its error and what scatter the errors leave unexplained.

        Notes
        -----
        About a median weighted by those errors, of every star: where stars are few, several of the brightest may vary,
        and the many faint ones tell that those are odd.
        """
        sums, errors = self.equations.own_sum, self.equations.own_sum_error
        centre = float(np.median(sums))
        weights = 1.0 / np.hypot(errors, _estimate_scatter(sums - centre, errors))
        order = np.argsort(sums)
        centre = float(sums[order][np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())])
        spread = np.hypot(errors, _estimate_scatter(sums - centre, errors))
        odd: BoolArray = np.abs(sums - centre) > self._config.max_ksum_sigma * spread
        return odd if len(sums) > 2 else np.zeros(len(sums), dtype=bool)

    def _outside_spatial(self, solution: SpatialSolution, orders: tuple[int, int]) -> BoolArray:
        """Say which stars the match does not fit, neither about its background nor about the sky that each has.

        A sky that no polynomial follows is no fault of the star.
        """
        coefficients = self._evaluate(solution, orders)
        outside = self._outside(*self.equations.measure_residuals(coefficients))
        if self._config.fit_for_background:
            own = self.equations.with_own_sky(coefficients)
            outside &= self._outside(*self.equations.measure_residuals(own))
        return outside

    def _evaluate(self, solution: SpatialSolution, orders: tuple[int, int]) -> FloatArray:
        """Return the solution's coefficients at the stars in use."""
        return solution.evaluate(*self._terms(self.equations, orders))

    def _outside(self, mean: FloatArray, rms: FloatArray) -> BoolArray:
        # Where the variance planes are too small for all stars alike, no star is to blame.
        finite = rms[np.isfinite(rms)]
        common = max(1.0, float(np.median(finite))) if finite.size else 1.0
        outside: BoolArray = np.abs(mean) > self._config.candidate_residual_mean_max * common
        outside |= ~(rms <= self._config.candidate_residual_std_max * common)
        return outside

    def _reject(self, bad: BoolArray, reason: str) -> bool:
        if not bad.any():
            return False
        for row in np.flatnonzero(bad):
            self._forget(self._built, int(row), reason)
        same = self.equations is self._built
        self._built = self._built.select(~bad)
        self.equations = self._built if same else self.equations.select(~bad)
        self._require(len(self.equations))
        return True

    def _forget(self, equations: StampEquations, row: int, reason: str) -> None:
        row_alone = slice(row, row + 1)
        self.rejected[int(equations.index[row])] = reason
        own = {name: values[row_alone].copy() for name, values in equations.own_results().items()}
        self._forgotten.append((equations.index[row_alone], own))

    def _require(self, n: int) -> None:
        if n < self._config.min_kernel_sources:
            raise InsufficientKernelSources(n, self._config.min_kernel_sources)

    def _bearable(self, order: int, stars_per_term: int) -> int:
        """Return the order, or the highest below it for whose terms there are that many stars each."""
        while order > 0 and stars_per_term * count_terms(order) > len(self.equations):
            order -= 1
        return order

    def _terms(self, equations: StampEquations, orders: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
        x, y = equations.x, equations.y
        model = self._config.spatial_model_type
        kernel_terms = spatial_terms(orders[0], self._box, x=x, y=y, model=model)
        if not self._config.fit_for_background:
            return kernel_terms, np.zeros((len(x), 0, 0))
        side = 2 * self._candidates.geometry.fitted + 1
        return kernel_terms, local_background_terms(orders[1], self._box, x=x, y=y, side=side, model=model)

    def _solve(self) -> tuple[SpatialSolution, tuple[int, int]]:
        """Solve at the orders that are asked for, or at the kernel's best; lowered where stars are few."""
        config = self._config
        background = self._bearable(config.spatial_bg_order, _STARS_PER_TERM)
        if config.max_spatial_kernel_order == 0:
            orders = self._bearable(config.spatial_kernel_order, _STARS_PER_TERM), background
            return self._solve_at(orders), orders
        highest = self._bearable(max(config.spatial_kernel_order, config.max_spatial_kernel_order), _STARS_PER_CHOICE)
        solutions = map_threads(
            lambda order: self._solve_at((order, background)), range(highest + 1), n_threads=config.n_threads
        )
        best = int(np.argmin([self._predict_error(s, (order, background)) for order, s in enumerate(solutions)]))
        return solutions[best], (best, background)

    def _predict_error(self, solution: SpatialSolution, orders: tuple[int, int]) -> float:
        """Return the mean squared residual, in units of the noise, that the stars would have in another exposure.

        Notes
        -----
        Akaike's final prediction error (1970), ``S (n + k) / (n - k)`` for a mean square S, n data and k unknowns, apart
        for the two things that the residuals are made of. Noise, as much as stars' own kernels leave, comes anew in every
        pixel. What is beyond it is each star's departure from a kernel that varies smoothly: as many data as stars, and
        a coefficient's spatial terms for unknowns; if pixels were counted here too, ever higher orders would follow
        single stars. Clipped at `_ODD_RMS` times the median star's, since a variable star tells nothing of the kernel,
        and about each star's own sky: the order is the kernel's alone.
        """
        equations = self.equations
        coefficients = solution.evaluate(*self._terms(equations, orders))
        if self._config.fit_for_background:
            coefficients = equations.with_own_sky(coefficients)
        squares = equations.measure_residuals(coefficients)[1] ** 2
        mean = float(np.minimum(squares, _ODD_RMS**2 * np.median(squares)).mean())
        n_own = equations.vector.shape[1]
        own = float(np.median(equations.own_rms**2 * equations.n_tested / np.maximum(equations.n_tested - n_own, 1.0)))
        noise = min(own, mean)
        n_terms = count_terms(orders[0])
        scatter = (mean - noise) * _inflation(len(equations), n_terms)
        return noise * _inflation(equations.n_tested.sum(), len(self.basis) * n_terms) + scatter

    def _solve_at(self, orders: tuple[int, int]) -> SpatialSolution:
        kernel_terms, background_terms = self._terms(self.equations, orders)
        return solve_spatial(
            self.equations,
            kernel_terms,
            background_terms,
            basis=self.basis,
            flux_ratio=self._flux_ratio,
            correct_noise_bias=self._config.correct_noise_bias,
            use_prior=self._config.use_prior,
        )


def _inflation(n_data: float, n_unknowns: int) -> float:
    """Return what the mean square of new data is about a fit, in units of that of the data fitted."""
    return (n_data + n_unknowns) / max(n_data - n_unknowns, 1.0)


def _estimate_scatter(deviation: FloatArray, error: FloatArray) -> float:
    """Return the scatter of kernel sums which, with their errors, explains the median deviation; `_LEAST_SCATTER` at least."""

    def excess(scatter: float) -> float:
        return float(np.median(np.abs(deviation) / np.hypot(error, scatter))) - _MEDIAN

    if excess(_LEAST_SCATTER) <= 0:
        return _LEAST_SCATTER
    # With the upper end for the only error, the median is what it should be; errors beside it make it less.
    return float(brentq(excess, _LEAST_SCATTER, np.median(np.abs(deviation)) / _MEDIAN))
