"""Settings of the match: the reference task's fields in snake_case, with its defaults unless said.

What both kinds of kernel share is in `MatchConfig`; each kind has a class of its own.
"""

from dataclasses import dataclass
from typing import Literal

from alertprod._ranges import require_ranges
from alertprod.errors import ConfigError
from alertprod.images.mask import MASK_PLANES

MAX_KERNEL_SIZE = 201
"""Pixels: a kernel beyond is no matter of seeing, and its equations outgrow any memory."""

MAX_ORDER = 12
"""Of polynomials: 91 terms, more than any image has kernel stars for, and the most that a basis can bear."""

SpatialModel = Literal["chebyshev1", "polynomial"]
"""What the variation over the image is written in: Chebyshev polynomials of the first kind, or plain powers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchConfig:
    """How the matching kernel is fitted and applied, whatever it is made of; lengths in pixels."""

    kernel_size: int = 21
    """Side of the kernel, odd, where the PSF widths do not set it (`scale_by_fwhm` off)."""

    scale_by_fwhm: bool = True
    """Set basis widths and kernel size from the two PSFs."""

    kernel_size_fwhm_scaling: float = 6.0
    """Side of the kernel in units of the widest basis Gaussian's sigma: three sigmas each way."""

    kernel_size_min: int = 21
    """Kernels narrower than this cut the wings of Moffat stars."""

    kernel_size_max: int = 35
    """The cost of the fit grows with the fourth power of the side."""

    fwhm_exposure_grid: int = 10
    """Where a PSF has no width at its average position, the mean width at this many places per axis is taken: a mosaic's
    PSF may be undefined where the mosaic has a hole."""

    fwhm_exposure_buffer: float = 0.05
    """Share of the image left out at each border of that grid: a PSF is least known there."""

    spatial_model_type: SpatialModel = "chebyshev1"
    """Polynomials in which kernel and background are solved for and their coefficients reported. Both span the same
    functions; plain powers are conditioned worse."""

    spatial_kernel_order: int = 1
    """Order of the kernel's variation over the image; the kernel sum does not vary (the task's default, not the
    bare match's 2)."""

    max_spatial_kernel_order: int = 3
    """The order is the one, from 0 to the larger of this and `spatial_kernel_order`, that would leave least of the stars in
    another exposure: a PSF that varies much is followed where the stars show it, and the noise of a few is not. 0 takes
    `spatial_kernel_order` as it is. Not in the reference."""

    spatial_bg_order: int = 2
    """Order of the differential background (the task's default, not the bare match's 1)."""

    fit_for_background: bool = True
    """Fit the differential background; off, the images must share their background."""

    size_cell_x: int = 128
    """Width of the cells that spread the kernel stars over the image."""

    size_cell_y: int = 128
    """Height of the cells."""

    n_star_per_cell: int = 5
    """Kernel stars in use per cell; -1 takes all."""

    max_kernel_sources: int = 1000
    """Kernel stars at most: beyond it time grows and the kernel does not improve."""

    min_kernel_sources: int = 3
    """Fewer raise `InsufficientKernelSources`."""

    max_spatial_iterations: int = 3
    """Rounds of spatial fit and clipping."""

    use_pca_for_spatial_kernel: bool = False
    """Let only the principal components of the stars' own kernels vary over the image: few unknowns instead of the
    whole basis."""

    subtract_mean_for_pca: bool = True
    """Take the components about the mean kernel, which then leads and alone carries flux; off, the first component is
    about that mean itself."""

    num_principal_components: int = 5
    """Components beside the mean: more than a PSF's few modes (focus, two of astigmatism, shift) is noise."""

    single_kernel_clipping: bool = True
    """Reject stars whose own kernel leaves residuals beyond the two limits below."""

    kernel_sum_clipping: bool = True
    """Reject stars whose own kernel sum is off: variables and blends with movers."""

    spatial_kernel_clipping: bool = True
    """Reject stars on which the spatial kernel leaves residuals beyond the limits."""

    check_condition_number: bool = False
    """Reject stars whose own equations are worse conditioned than `max_condition_number`."""

    max_condition_number: float = 5.0e7
    """Of a star's normal equations, scaled to unit diagonal so that image units do not matter."""

    condition_number_type: Literal["EIGENVALUE", "SVD"] = "EIGENVALUE"
    """Ratio of extreme eigenvalues (infinite where rounding has made one negative) or of extreme singular values."""

    max_spatial_condition_number: float = 1.0e10
    """A spatial fit that is conditioned worse is warned about, and used."""

    candidate_residual_mean_max: float = 0.25
    """Limit of the mean residual of a stamp, in units of the noise: about the fitted background, and about the sky of its rim."""

    candidate_residual_std_max: float = 1.50
    """Limit of the rms residual of a stamp, in units of the noise, or of the stars' median rms where that is above
    one: a variance plane that is too small must not reject every star."""

    use_core_stats: bool = False
    """Judge a stamp by its pixels within `candidate_core_radius` alone: neighbours in the wings do not cost a star."""

    max_ksum_sigma: float = 3.0
    """Limit of a kernel sum's deviation from the others', in robust standard deviations."""

    constant_variance_weighting: bool = True
    """One weight per stamp: weights that follow each pixel's own noise bias fluxes."""

    iterate_single_kernel: bool = False
    """Solve each star a second time, with the noise that its own first kernel makes of the convolved image's."""

    calculate_kernel_uncertainty: bool = False
    """Keep the covariance of each star's own solution: standard errors of its kernel's pixels. Costs memory."""

    use_bic_for_kernel_basis: bool = False
    """Choose the polynomials' degrees, up to the configured ones, by the Bayesian information criterion over all
    stars. For Gaussians only: delta functions have no degrees."""

    error_floor: float = 0.0
    """Fraction of a star's signal added in quadrature to its noise in weights and clipping: keeps stars brighter than
    the kernel model is accurate from ruling the fit, or from being thrown out. Not in the reference."""

    correct_noise_bias: bool = True
    """Remove the noise of the convolved image from the normal equations, where it makes the kernel sum too small by
    its share of the stars' power. Not in the reference."""

    use_prior: bool = True
    """Hold what the stars do not tell near the kernel that the two PSFs ask for. Not in the reference; off, and with
    `correct_noise_bias` off, the solution is plain weighted least squares."""

    max_bad_fraction: float = 0.1
    """Share of a stamp's fitted pixels that may be bad in the image that is not convolved (they get no weight); any
    bad pixel within `candidate_core_radius` of the star, or in the convolved image, drops the star. The reference
    is stricter: 0."""

    candidate_core_radius: int = 3
    """Half side of the square around a star that must be clean."""

    bad_mask_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "EDGE", "CR", "HIGH_VARIANCE", "INJECTED")
    """A pixel with one of these is not used to fit."""

    fill_mask_planes: tuple[str, ...] = ("NO_DATA", "BAD", "CR")
    """Pixels with one of these, or not finite, are replaced from their neighbours before a convolution. Saturated
    cores stay: too low, but nearer the truth than a hole."""

    kernel_extent_fraction: float = 1e-3
    """A mask, and the rim of the image, spreads as far as the kernel is above this fraction of its peak."""

    n_threads: int = 2
    """Threads of the convolutions."""

    def __post_init__(self) -> None:
        """Check what can be checked without images.

        Raises
        ------
        ConfigError
            Raised if a size is even, a number is out of its range, or a plane does not exist.
        """
        for name in ("kernel_size", "kernel_size_min", "kernel_size_max"):
            size = getattr(self, name)
            if size < 3 or size % 2 == 0:
                self._reject(name, f"{size} is not an odd number of at least 3")
        if self.kernel_size_min > self.kernel_size_max:
            self._reject("kernel_size_min", f"{self.kernel_size_min} is above kernel_size_max {self.kernel_size_max}")
        require_ranges(
            self,
            kernel_size=(3, MAX_KERNEL_SIZE),
            kernel_size_max=(3, MAX_KERNEL_SIZE),
            kernel_size_fwhm_scaling=(0.1, 1000.0),
            fwhm_exposure_grid=(1, 100),
            fwhm_exposure_buffer=(0.0, 0.499),
            spatial_kernel_order=(0, MAX_ORDER),
            max_spatial_kernel_order=(0, MAX_ORDER),
            spatial_bg_order=(0, MAX_ORDER),
            size_cell_x=(32, 2**31),
            size_cell_y=(32, 2**31),
            n_star_per_cell=(-1, 2**31),
            max_kernel_sources=(1, 2**31),
            min_kernel_sources=(1, 2**31),
            max_spatial_iterations=(1, 5),
            num_principal_components=(3, 2**31),
            max_condition_number=(1.0, 1e300),
            max_spatial_condition_number=(1.0, 1e300),
            candidate_residual_mean_max=(0.0, 1e30),
            candidate_residual_std_max=(0.0, 1e30),
            max_ksum_sigma=(0.0, 1e30),
            error_floor=(0.0, 1e6),
            max_bad_fraction=(0.0, 1.0),
            candidate_core_radius=(0, MAX_KERNEL_SIZE),
            kernel_extent_fraction=(1e-12, 1.0),
            n_threads=(1, 1024),
        )
        for name in ("bad_mask_planes", "fill_mask_planes"):
            unknown = sorted(set(getattr(self, name)) - set(MASK_PLANES))
            if unknown:
                self._reject(name, f"there is no {', '.join(unknown)}")

    def _reject(self, field: str, problem: str) -> None:
        raise ConfigError(type(self).__name__, field, problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlardLuptonConfig(MatchConfig):
    """A kernel of Gaussians times polynomials, and how it is fitted and applied; lengths in pixels."""

    kernel_basis_set: Literal["alard-lupton"] = "alard-lupton"
    """What the kernel is made of; the configuration's choice of AL or DF says the same."""

    alard_n_gauss: int = 3
    """Number of Gaussians of the basis: core, body and wings."""

    alard_deg_gauss: tuple[int, ...] = (4, 2, 2)
    """Highest total degree of the polynomial that multiplies each Gaussian: 15 + 6 + 6 = 27 kernels."""

    alard_sig_gauss: tuple[float, ...] = (0.7, 1.5, 3.0)
    """Sigmas of the Gaussians where the PSF widths do not set them, or are equal."""

    alard_gauss_beta: float = 2.0
    """Ratio of one Gaussian's sigma to the one before."""

    alard_min_sig: float = 0.7
    """Narrowest Gaussian when the sharper image is convolved: anything narrower is undersampled."""

    alard_min_sig_deconv: float = 0.4
    """Narrowest Gaussian when the broader image is convolved: sharpening needs nearly a delta function."""

    def __post_init__(self) -> None:
        """Check that each list has a value per Gaussian, beside what `MatchConfig` checks."""
        MatchConfig.__post_init__(self)
        require_ranges(
            self,
            alard_n_gauss=(1, 10),
            alard_deg_gauss=(0, MAX_ORDER),
            alard_sig_gauss=(0.05, 1000.0),
            alard_gauss_beta=(1.0, 100.0),
            alard_min_sig=(0.05, 1000.0),
            alard_min_sig_deconv=(0.05, 1000.0),
        )
        for name in ("alard_deg_gauss", "alard_sig_gauss"):
            if len(getattr(self, name)) != self.alard_n_gauss:
                self._reject(name, f"{len(getattr(self, name))} values for alard_n_gauss {self.alard_n_gauss}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaFunctionConfig(MatchConfig):
    """A kernel whose every pixel is free, and how it is fitted and applied; lengths in pixels.

    Notes
    -----
    Becker et al. (2012): without regularisation such a kernel fits the noise; with it, it follows shapes that no sum of
    Gaussians has. Sums over pixels are matrices of the fourth power of the kernel's side, per star: it is slower, and
    uses fewer stars.
    """

    kernel_basis_set: Literal["delta-function"] = "delta-function"
    """What the kernel is made of; the configuration's choice of AL or DF says the same."""

    kernel_size_max: int = 21
    """441 unknowns; time grows with the sixth power of the side. With `kernel_size_min` the same, as by default, the
    side is fixed, as the reference's is."""

    max_kernel_sources: int = 100
    """3 MB and some ten milliseconds each; the few principal components need no more."""

    max_spatial_kernel_order: int = 1
    """Never raised: hundreds of unknowns a term."""

    use_pca_for_spatial_kernel: bool = True
    """The reference's default for delta functions: hundreds of unknowns cannot all vary over the image."""

    constant_variance_weighting: bool = False
    """Each pixel counts by its own noise: free pixels would otherwise follow the photon noise of a star's core, and let
    wings and sky make up for it. The reference weighs a whole stamp alike."""

    max_condition_number: float = 5.0e6
    """As for Gaussians; also where the eigenvalues are cut off for the biased risk."""

    use_regularization: bool = True
    """Hold the kernel smooth; off, the noise of the convolved image and the prior alone hold it."""

    regularization_type: Literal["centralDifference", "forwardDifference"] = "centralDifference"
    """What is called rough: the Laplacian, or forward differences of some orders along x and y."""

    central_regularization_stencil: int = 9
    """Points of the Laplacian, 5 or 9: the latter has no preferred direction."""

    forward_regularization_orders: tuple[int, ...] = (1, 2)
    """Orders of the forward differences, 1 to 3: slope and curvature."""

    regularization_border_penalty: float = 3.0
    """Weight of the kernel's border pixels themselves, where there is no Laplacian: a kernel ends at zero."""

    lambda_type: Literal["absolute", "relative", "minimizeBiasedRisk", "minimizeUnbiasedRisk"] = "relative"
    """How the strength of the regularisation is set: as given, relative to the data's information (star by star), or
    by the least expected error of the kernel over a scan of values, estimated on the brightest stars. The reference's
    default, "absolute", suits one signal-to-noise ratio: on stars of some thousand it leaves kernels twenty times as
    noisy as these."""

    lambda_value: float = 0.2
    """The strength, for "absolute", for kernels of unit sum."""

    lambda_scaling: float = 1.0e-4
    """Strength relative to the ratio of the two matrices' traces, for "relative"."""

    lambda_step_type: Literal["log", "linear"] = "log"
    """Whether the scan's limits are powers of ten or the values themselves."""

    lambda_min: float = -1.0
    """Start of the scan: 0.1 as a power of ten."""

    lambda_max: float = 2.0
    """End of the scan: 100 as a power of ten."""

    lambda_step: float = 0.1
    """Step of the scan."""

    def __post_init__(self) -> None:
        """Check the regularisation, beside what `MatchConfig` checks."""
        MatchConfig.__post_init__(self)
        if self.use_bic_for_kernel_basis:
            self._reject("use_bic_for_kernel_basis", "delta functions have no degrees to choose")
        if self.central_regularization_stencil not in (5, 9):
            self._reject("central_regularization_stencil", f"{self.central_regularization_stencil} is neither 5 nor 9")
        orders = self.forward_regularization_orders
        if not orders or not set(orders) <= {1, 2, 3}:
            self._reject("forward_regularization_orders", f"{orders} is not a choice of 1, 2, 3")
        require_ranges(
            self,
            regularization_border_penalty=(0.0, 1e30),
            lambda_value=(0.0, 1e30),
            lambda_scaling=(0.0, 1e30),
            lambda_min=(-300.0, 1e30),
            lambda_max=(-300.0, 1e30),
        )
        if not (self.lambda_step > 0 and self.lambda_max >= self.lambda_min):
            self._reject("lambda_step", f"{self.lambda_min} to {self.lambda_max} by {self.lambda_step} is no scan")
        if self.lambda_step_type == "linear" and self.lambda_min < 0:
            self._reject("lambda_min", f"{self.lambda_min} is negative; a linear scan holds the values themselves")
