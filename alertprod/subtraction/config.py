"""Settings of the Alard-Lupton match: the reference task's fields in snake_case, with its defaults unless said."""

from dataclasses import dataclass

from alertprod.errors import ConfigError
from alertprod.images.mask import MASK_PLANES


@dataclass(frozen=True, slots=True, kw_only=True)
class AlardLuptonConfig:
    """How the matching kernel is modelled, fitted and applied; lengths in pixels."""

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

    spatial_kernel_order: int = 1
    """Order of the kernel's variation over the image; the kernel sum does not vary (the task's default, not the
    bare match's 2)."""

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

    single_kernel_clipping: bool = True
    """Reject stars whose own kernel leaves residuals beyond the two limits below."""

    kernel_sum_clipping: bool = True
    """Reject stars whose own kernel sum is off: variables and blends with movers."""

    spatial_kernel_clipping: bool = True
    """Reject stars on which the spatial kernel leaves residuals beyond the limits."""

    candidate_residual_mean_max: float = 0.25
    """Limit of the mean residual of a stamp, in units of the noise."""

    candidate_residual_std_max: float = 1.50
    """Limit of the rms residual of a stamp, in units of the noise, or of the stars' median rms where that is above
    one: a variance plane that is too small must not reject every star."""

    max_ksum_sigma: float = 3.0
    """Limit of a kernel sum's deviation from the others', in robust standard deviations."""

    constant_variance_weighting: bool = True
    """One weight per stamp: weights that follow each pixel's own noise bias fluxes."""

    error_floor: float = 0.0
    """Fraction of a star's signal added in quadrature to its noise in weights and clipping: keeps stars brighter than
    the kernel model is accurate from ruling the fit, or from being thrown out. Not in the reference."""

    correct_noise_bias: bool = True
    """Remove the noise of the convolved image from the normal equations, where it makes the kernel sum too small by
    its share of the stars' power. Not in the reference."""

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
            Raised if a size is even, a list's length is not `alard_n_gauss`, a number is out of its range, or a plane
            does not exist.
        """
        for name in ("kernel_size", "kernel_size_min", "kernel_size_max"):
            size = getattr(self, name)
            if size < 3 or size % 2 == 0:
                self._reject(name, f"{size} is not an odd number of at least 3")
        if self.kernel_size_min > self.kernel_size_max:
            self._reject("kernel_size_min", f"{self.kernel_size_min} is above kernel_size_max {self.kernel_size_max}")
        for name in ("alard_deg_gauss", "alard_sig_gauss"):
            if len(getattr(self, name)) != self.alard_n_gauss:
                self._reject(name, f"{len(getattr(self, name))} values for alard_n_gauss {self.alard_n_gauss}")
        for name in ("size_cell_x", "size_cell_y"):
            if getattr(self, name) < 32:
                self._reject(name, f"{getattr(self, name)} is below 32")
        if not 1 <= self.max_spatial_iterations <= 5:
            self._reject("max_spatial_iterations", f"{self.max_spatial_iterations} is not within 1 to 5")
        if min(self.spatial_kernel_order, self.spatial_bg_order) < 0:
            self._reject("spatial_kernel_order", "orders are not negative")
        for name in ("bad_mask_planes", "fill_mask_planes"):
            unknown = sorted(set(getattr(self, name)) - set(MASK_PLANES))
            if unknown:
                self._reject(name, f"there is no {', '.join(unknown)}")
        if self.n_threads < 1:
            self._reject("n_threads", f"{self.n_threads} is below 1")
        if self.min_kernel_sources < 1:
            self._reject("min_kernel_sources", f"{self.min_kernel_sources} is below 1")

    @staticmethod
    def _reject(field: str, problem: str) -> None:
        raise ConfigError("AlardLuptonConfig", field, problem)
