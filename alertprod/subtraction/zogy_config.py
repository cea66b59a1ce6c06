"""Settings of the proper subtraction: the reference task's fields in snake_case, with its defaults unless said."""

from dataclasses import dataclass

from alertprod._ranges import require_ranges
from alertprod.errors import ConfigError
from alertprod.images.mask import MASK_PLANES
from alertprod.subtraction.decorrelate import NOISE_MASK_PLANES


@dataclass(frozen=True, slots=True, kw_only=True)
class ZogyConfig:
    """How the images are prepared, and what the score takes for noise; lengths in pixels."""

    correct_background: bool = False
    """Take the clipped mean off each image first; off, since exposures come without sky."""

    ignore_mask_planes: tuple[str, ...] = NOISE_MASK_PLANES
    """Pixels with one of these do not count for the mean variances: sky is wanted."""

    max_psf_centroid_dist: float = 0.2
    """Greatest distance of the two PSFs' centroids: beyond it every star becomes a dipole."""

    do_spatial_grid: bool = False
    """Compute the kernels at the corners of cells, with the PSFs and the noise there, and interpolate; off, those of the
    middle serve everywhere."""

    grid_inner_size: float = 8.0
    """Side of the cells in units of the border, which is the larger of ten PSF sigmas and the PSF images' sides."""

    registration_sigma_x: float = 0.0
    """Scatter of the two images' relative positions along x. Where stars are bright it is the greatest noise of the
    score; 0 leaves it out, as the reference does."""

    registration_sigma_y: float = 0.0
    """The same along y."""

    fill_mask_planes: tuple[str, ...] = ("NO_DATA", "BAD", "CR")
    """Pixels with one of these, or not finite, are replaced from their neighbours before a convolution. Saturated cores
    stay: too low, but nearer the truth than a hole."""

    score_mask_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "SAT_TEMPLATE", "CR", "EDGE")
    """Pixels of the difference with one of these have no weight in the score: what is left of a star that was saturated
    in either image is no point source."""

    min_score_coverage: float = 0.5
    """Share of the filter's power that must lie on pixels with weight for a score; 0.5 is a source on the edge."""

    kernel_extent_fraction: float = 3e-3
    """A mask, and the rim of the image, spreads as far as a kernel is above this fraction of its peak. Kernels made of
    PSF images that end before the wings do ring faintly for as far as these images reach; that lies below it."""

    n_threads: int = 2
    """Threads of the convolutions."""

    def __post_init__(self) -> None:
        """Check what can be checked without images.

        Raises
        ------
        ConfigError
            Raised if a number is out of its range or a plane does not exist.
        """
        for name in ("ignore_mask_planes", "fill_mask_planes", "score_mask_planes"):
            unknown = sorted(set(getattr(self, name)) - set(MASK_PLANES))
            if unknown:
                self._reject(name, f"there is no {', '.join(unknown)}")
        require_ranges(
            self,
            max_psf_centroid_dist=(1e-6, 1e6),
            grid_inner_size=(0.1, 1e6),
            registration_sigma_x=(0.0, 1e3),
            registration_sigma_y=(0.0, 1e3),
            min_score_coverage=(1e-6, 1.0),
            kernel_extent_fraction=(1e-12, 1.0),
            n_threads=(1, 1024),
        )

    @staticmethod
    def _reject(field: str, problem: str) -> None:
        raise ConfigError("ZogyConfig", field, problem)
