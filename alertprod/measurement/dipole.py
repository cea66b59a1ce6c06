"""Dipoles: a star misplaced between science and template leaves a positive and a negative lobe.

On the difference alone, lobes closer than the PSF determine only flux times separation; the science and template
images break that degeneracy, so all three are fitted together where they are there.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection.footprints import FootprintSet
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _dipole_loops
from alertprod.measurement.flux import BAD_PLANES
from alertprod.psf.model import PointSpreadFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class DipoleConfig:
    """The reference task's dipole fit; see `fit_dipoles` for what is fitted."""

    max_separation_sigma: float = 5.0
    """Each lobe stays within this many PSF sigmas of its peak, and the lobes of each other."""

    relative_weight: float = 0.5
    """Weight of a science or template pixel's residual beside one of the difference."""

    min_sn: float = 5.0 * float(np.sqrt(2.0))
    """Signal-to-noise of the dipole on the difference: two lobes at the detection threshold."""

    max_flux_ratio: float = 0.65
    """Largest share of one lobe in the sum of both lobes' absolute fluxes: a dipole is balanced."""

    max_area: int = 1200
    """Pixels; larger footprints are no star's."""

    border: int = 3
    """Pixels around the footprint's box that are fitted too: they hold the planes under the stars."""

    max_iterations: int = 60
    """Steps of the fit; good dipoles take about ten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dipoles:
    """Dipole fits, each of shape ``(n,)``, one per footprint; NaN (counts: 0) where none was made.

    Positions in pixels, fluxes in the difference's units. `flux` is common to both lobes of the model;
    `flux_difference` is the sum of the lobes' signed fluxes fitted apart on the difference. `separation` and the
    vector (`x_positive` - `x_negative`, ...) point from the negative to the positive lobe. `attempted` is set where
    a fit was made, `flag` where it was made and failed, `is_dipole` where it describes the source.
    """

    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    x_y_cov: FloatArray
    x_positive: FloatArray
    y_positive: FloatArray
    x_negative: FloatArray
    y_negative: FloatArray
    flux: FloatArray
    flux_err: FloatArray
    flux_difference: FloatArray
    flux_difference_err: FloatArray
    chi2_per_dof: FloatArray
    n_data: IntArray
    signal_to_noise: FloatArray
    attempted: BoolArray
    flag: BoolArray
    is_dipole: BoolArray

    @property
    def separation(self) -> FloatArray:
        """Distance of the lobes in pixels."""
        return np.hypot(self.x_positive - self.x_negative, self.y_positive - self.y_negative)


def fit_dipoles(
    footprints: FootprintSet,
    difference: MaskedImage,
    psf: PointSpreadFunction,
    *,
    science: MaskedImage | None = None,
    science_psf: PointSpreadFunction | None = None,
    template: MaskedImage | None = None,
    template_psf: PointSpreadFunction | None = None,
    config: DipoleConfig | None = None,
    bad_planes: int = BAD_PLANES,
) -> Dipoles:
    """Fit a dipole to each footprint that has peaks of both signs.

    Parameters
    ----------
    footprints
        Sources detected on the difference.
    difference, psf
        Background-free difference and its PSF.
    science, science_psf, template, template_psf
        The images it is the difference of (the template matched), with their PSFs. All four or none; with none
        the difference is fitted alone and lobes closer than about a PSF width are degenerate with their flux.
    config
        `DipoleConfig`.
    bad_planes
        Mask bits of pixels to leave out.

    Notes
    -----
    One flux, two positions: ``F P(positive) - F P(negative)`` on the difference, a star over a tilted plane on
    each of the other images. Pixels are weighted by inverse variance, those of science and template by
    `relative_weight` squared besides; errors account for the noise that the images share. Beyond the reference's
    rule, the flux ratio is taken from the lobes fitted apart, so that a bright source with a dark ring is
    no dipole.
    """
    config = config or DipoleConfig()
    n = len(footprints)
    out = {name: np.full(n, np.nan) for name in _FLOATS}
    n_data = np.zeros(n, dtype=np.int64)
    attempted, flag, is_dipole = (np.zeros(n, dtype=np.bool_) for _ in range(3))
    images, psfs = [difference], [psf]
    if science is not None and template is not None and science_psf is not None and template_psf is not None:
        images += [science, template]
        psfs += [science_psf, template_psf]
    weights = np.array([1.0] + [config.relative_weight**2] * (len(images) - 1))
    x_positive, y_positive = footprints.strongest_peak(positive=True)
    x_negative, y_negative = footprints.strongest_peak(positive=False)
    max_shift = config.max_separation_sigma * footprints.sigma
    for i in np.flatnonzero(footprints.has_both_signs).tolist():
        attempted[i] = True
        if footprints.area[i] > config.max_area:
            flag[i] = True
            continue
        box = footprints.box(i).grown(config.border).intersection(difference.box)
        cutouts = [image.cutout(box) for image in images]
        middle_x, middle_y = 0.5 * (x_positive[i] + x_negative[i]), 0.5 * (y_positive[i] + y_negative[i])
        start = np.array([x_positive[i], y_positive[i], x_negative[i], y_negative[i]], dtype=float)
        start -= [box.x_min, box.y_min, box.x_min, box.y_min]
        usable = np.stack([cutout.usable(bad_planes) for cutout in cutouts])
        converged, p, covariance, chi2, pixels, signal_to_noise, lobes = _dipole_loops.fit_dipole(
            np.where(usable, np.stack([c.image for c in cutouts]), 0.0).astype(float),
            np.where(usable, np.stack([c.variance for c in cutouts]), 1.0).astype(float),
            usable,
            _draw_kernels(psfs, x=middle_x, y=middle_y),
            weights,
            start,
            max_shift,
            config.max_iterations,
        )
        flag[i] = not (converged and np.isfinite(covariance).all())
        if flag[i]:
            continue
        px, py, nx, ny = p[1:5]
        out["x_positive"][i], out["y_positive"][i] = box.x_min + px, box.y_min + py
        out["x_negative"][i], out["y_negative"][i] = box.x_min + nx, box.y_min + ny
        out["x"][i], out["y"][i] = box.x_min + 0.5 * (px + nx), box.y_min + 0.5 * (py + ny)
        x_variance = 0.25 * (covariance[1, 1] + covariance[3, 3] + 2.0 * covariance[1, 3])
        y_variance = 0.25 * (covariance[2, 2] + covariance[4, 4] + 2.0 * covariance[2, 4])
        out["x_err"][i], out["y_err"][i] = np.sqrt(x_variance), np.sqrt(y_variance)
        out["x_y_cov"][i] = 0.25 * (covariance[1, 2] + covariance[1, 4] + covariance[3, 2] + covariance[3, 4])
        out["flux"][i], out["flux_err"][i] = p[0], np.sqrt(covariance[0, 0])
        out["flux_difference"][i], out["flux_difference_err"][i] = lobes[0] + lobes[1], np.sqrt(lobes[2])
        out["chi2_per_dof"][i] = chi2 / max(1, pixels - _dipole_loops.N_STAR)
        out["signal_to_noise"][i] = signal_to_noise
        n_data[i] = pixels
        total = abs(lobes[0]) + abs(lobes[1])
        balanced = lobes[0] > 0 > lobes[1] and max(abs(lobes[0]), abs(lobes[1])) < config.max_flux_ratio * total
        close = np.hypot(px - nx, py - ny) <= max_shift
        is_dipole[i] = bool(signal_to_noise > config.min_sn and balanced and close)
    return Dipoles(**out, n_data=n_data, attempted=attempted, flag=flag, is_dipole=is_dipole)


_FLOATS = (
    "x", "y", "x_err", "y_err", "x_y_cov", "x_positive", "y_positive", "x_negative", "y_negative", "flux", "flux_err",
    "flux_difference", "flux_difference_err", "chi2_per_dof", "signal_to_noise",
)  # fmt: skip


def _draw_kernels(psfs: list[PointSpreadFunction], *, x: float, y: float) -> FloatArray:
    """Return the PSFs' kernel images at one point, padded with zeros to the largest: ``(n, size, size)``."""
    size = max(psf.size for psf in psfs)
    kernels = np.zeros((len(psfs), size, size))
    for i, psf in enumerate(psfs):
        border = (size - psf.size) // 2
        kernels[i, border : border + psf.size, border : border + psf.size] = psf.compute_kernel_image(x=x, y=y)
    return kernels
