"""Dipoles: a star misplaced between science and template leaves a positive and a negative lobe.

On the difference alone, lobes closer than the PSF determine only flux times separation; the science and template
images break that degeneracy, so all three are fitted together where they are there.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection.footprints import FootprintSet
from alertprod.errors import ConfigError
from alertprod.geometry.box import Box
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _dipole_loops
from alertprod.measurement.flux import BAD_PLANES
from alertprod.psf.model import PointSpreadFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class DipoleConfig:
    """The reference task's dipole fit; see `fit_dipoles` for what is fitted."""

    fit_all_dia_sources: bool = False
    """Fit sources of one sign too: for studies, a source of one sign is no dipole."""

    fit_separate_neg_params: bool = False
    """Give the negative lobe a flux of its own: for what varied and moved at once, at the price of larger errors."""

    fit_background: int = 2
    """Planes under the science and template image: 0 none, 1 taken from the pixels outside the footprint before the
    fit, 2 fitted with the lobes, which counts their uncertainty among the errors."""

    max_separation: float = 5.0
    """Each lobe stays within this many PSF sigmas of its peak, and the lobes of each other."""

    rel_weight: float = 0.5
    """Weight of a science or template pixel's residual beside one of the difference."""

    min_sn: float = 5.0 * float(np.sqrt(2.0))
    """Signal-to-noise of the dipole on the difference: two lobes at the detection threshold."""

    max_flux_ratio: float = 0.65
    """Largest share of one lobe in the sum of both lobes' absolute fluxes: a dipole is balanced."""

    max_footprint_area: int = 1200
    """Pixels; larger footprints are no star's."""

    border: int = 3
    """Pixels around the footprint's box that are fitted too: they hold the planes under the stars."""

    max_iterations: int = 60
    """Steps of the fit; good dipoles take about ten."""

    def __post_init__(self) -> None:
        if self.fit_background not in (0, 1, 2):
            raise ConfigError("dipole", "fit_background", f"is {self.fit_background}; 0, 1 or 2 is needed")
        require_ranges(
            self,
            max_separation=(0.1, 1000.0),
            rel_weight=(0.0, 1e6),
            min_sn=(0.0, 1e30),
            max_flux_ratio=(0.0, 1.0),
            max_footprint_area=(0, 1_000_000),
            border=(0, 100),
            max_iterations=(1, 10_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dipoles:
    """Dipole fits, each of shape ``(n,)``, one per footprint; NaN (counts: 0) where none was made.

    Positions in pixels, fluxes in the difference's units. `flux` is the mean of the lobes' absolute fluxes in the
    model, `flux_positive` and `flux_negative` (below zero) those of the lobes; `flux_difference` is the sum of the
    lobes' signed fluxes fitted apart on the difference. `separation` and the vector (`x_positive` - `x_negative`, ...)
    point from the negative to the positive lobe. `attempted` is set where a fit was made, `flag` where it failed or
    the footprint was too large for one, `flag_edge` where its pixels reach the image's border, `is_dipole` where it
    describes the source.
    """

    x: FloatArray
    y: FloatArray
    x_err: FloatArray
    y_err: FloatArray
    x_y_cov: FloatArray
    x_positive: FloatArray
    y_positive: FloatArray
    x_positive_err: FloatArray
    y_positive_err: FloatArray
    x_negative: FloatArray
    y_negative: FloatArray
    x_negative_err: FloatArray
    y_negative_err: FloatArray
    flux: FloatArray
    flux_err: FloatArray
    flux_positive: FloatArray
    flux_positive_err: FloatArray
    flux_negative: FloatArray
    flux_negative_err: FloatArray
    flux_difference: FloatArray
    flux_difference_err: FloatArray
    chi2_per_dof: FloatArray
    n_data: IntArray
    signal_to_noise: FloatArray
    attempted: BoolArray
    flag: BoolArray
    flag_edge: BoolArray
    is_dipole: BoolArray

    @property
    def separation(self) -> FloatArray:
        """Distance of the lobes in pixels."""
        return np.hypot(self.x_positive - self.x_negative, self.y_positive - self.y_negative)

    @property
    def orientation_deg(self) -> FloatArray:
        """Angle of the vector from the negative to the positive lobe, from +x towards +y, -180 to 180."""
        return np.degrees(np.arctan2(self.y_positive - self.y_negative, self.x_positive - self.x_negative))


@dataclass(frozen=True, slots=True, kw_only=True)
class NaiveDipoles:
    """Sums over footprints, shape ``(n, 2)``: of the pixels at or above zero, and of those below."""

    flux: FloatArray
    flux_err: FloatArray
    n_pixels: IntArray


def measure_naive_dipoles(
    footprints: FootprintSet, difference: MaskedImage, *, bad_planes: int = BAD_PLANES
) -> NaiveDipoles:
    """Sum the usable pixels of each footprint by their sign; errors are those of the sums, of uncorrelated noise."""
    shape = (len(footprints), 2)
    flux, noise, n_pixels = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    _dipole_loops.sum_signs(
        difference.image,
        difference.variance,
        difference.mask,
        bad_planes,
        footprints.pixel_offsets,
        footprints.pixels,
        flux,
        noise,
        n_pixels,
    )
    return NaiveDipoles(flux=flux, flux_err=np.sqrt(noise), n_pixels=n_pixels)


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
    One flux (or two), two positions: ``F P(positive) - F P(negative)`` on the difference, a star over a tilted plane
    on each of the other images. Pixels are weighted by inverse variance, those of science and template by
    `rel_weight` squared besides; errors account for the noise that the images share. Beyond the reference's
    rule, the flux ratio is taken from the lobes fitted apart, so that a bright source with a dark ring is
    no dipole.
    """
    config = config or DipoleConfig()
    n = len(footprints)
    out = {name: np.full(n, np.nan) for name in _FLOATS}
    n_data = np.zeros(n, dtype=np.int64)
    attempted, flag, flag_edge, is_dipole = (np.zeros(n, dtype=np.bool_) for _ in range(4))
    images, psfs = [difference], [psf]
    if science is not None and template is not None and science_psf is not None and template_psf is not None:
        images += [science, template]
        psfs += [science_psf, template_psf]
    weights = np.array([1.0] + [config.rel_weight**2] * (len(images) - 1))
    due = footprints.has_both_signs | config.fit_all_dia_sources
    due &= ~footprints.is_sky
    flag |= due & (footprints.area > config.max_footprint_area)
    starts = _find_lobes(footprints, due, difference, bad_planes)
    fitted = np.ones(_dipole_loops.N_ALL, dtype=np.bool_)
    fitted[_dipole_loops.N_STAR - 1] = config.fit_separate_neg_params
    fitted[_dipole_loops.N_STAR :] = config.fit_background == 2
    max_shift = config.max_separation * footprints.sigma
    for i in np.flatnonzero(due & ~flag).tolist():
        attempted[i] = True
        grown = footprints.box(i).grown(config.border)
        box = grown.intersection(difference.box)
        flag_edge[i] = box != grown
        cutouts = [image.cutout(box) for image in images]
        usable = np.stack([cutout.usable(bad_planes) for cutout in cutouts])
        values = np.where(usable, np.stack([c.image for c in cutouts]), 0.0).astype(float)
        if config.fit_background == 1:
            _subtract_planes(values[1:], usable[1:], footprints, i, box)
        start = starts[i] - [box.x_min, box.y_min, box.x_min, box.y_min]
        converged, p, covariance, chi2, pixels, signal_to_noise, lobes = _dipole_loops.fit_dipole(
            values,
            np.where(usable, np.stack([c.variance for c in cutouts]), 1.0).astype(float),
            usable,
            _draw_kernels(psfs, x=0.5 * (starts[i, 0] + starts[i, 2]), y=0.5 * (starts[i, 1] + starts[i, 3])),
            weights,
            start,
            max_shift,
            config.max_iterations,
            fitted,
        )
        p[1:5] += [box.x_min, box.y_min, box.x_min, box.y_min]
        on_image = all(difference.box.contains(x=p[m], y=p[m + 1]) for m in (1, 3))
        flag[i] = not (converged and on_image and np.isfinite(covariance).all())
        if flag[i]:
            continue
        for name, value in _describe(p, covariance).items():
            out[name][i] = value
        out["flux_difference"][i], out["flux_difference_err"][i] = lobes[0] + lobes[1], np.sqrt(lobes[2])
        out["chi2_per_dof"][i] = chi2 / max(1, pixels - 5 - config.fit_separate_neg_params)
        out["signal_to_noise"][i] = signal_to_noise
        n_data[i] = pixels
        total = abs(lobes[0]) + abs(lobes[1])
        balanced = lobes[0] > 0 > lobes[1] and max(abs(lobes[0]), abs(lobes[1])) < config.max_flux_ratio * total
        close = np.hypot(p[1] - p[3], p[2] - p[4]) <= max_shift
        is_dipole[i] = bool(signal_to_noise > config.min_sn and balanced and close)
    return Dipoles(**out, n_data=n_data, attempted=attempted, flag=flag, flag_edge=flag_edge, is_dipole=is_dipole)


_FLOATS = (
    "x", "y", "x_err", "y_err", "x_y_cov", "x_positive", "y_positive", "x_positive_err", "y_positive_err",
    "x_negative", "y_negative", "x_negative_err", "y_negative_err", "flux", "flux_err", "flux_positive",
    "flux_positive_err", "flux_negative", "flux_negative_err", "flux_difference", "flux_difference_err",
    "chi2_per_dof", "signal_to_noise",
)  # fmt: skip


def _describe(p: FloatArray, covariance: FloatArray) -> dict[str, float]:
    """Return what a fit's parameters and their covariance say of a dipole: floats of `Dipoles` by name."""
    excess = covariance[0, 5]
    variances = {
        "x": 0.25 * (covariance[1, 1] + covariance[3, 3] + 2.0 * covariance[1, 3]),
        "y": 0.25 * (covariance[2, 2] + covariance[4, 4] + 2.0 * covariance[2, 4]),
        "x_positive": covariance[1, 1],
        "y_positive": covariance[2, 2],
        "x_negative": covariance[3, 3],
        "y_negative": covariance[4, 4],
        "flux": covariance[0, 0] + excess + 0.25 * covariance[5, 5],
        "flux_positive": covariance[0, 0],
        "flux_negative": covariance[0, 0] + 2.0 * excess + covariance[5, 5],
    }
    return {
        "x": 0.5 * (p[1] + p[3]),
        "y": 0.5 * (p[2] + p[4]),
        "x_positive": p[1],
        "y_positive": p[2],
        "x_negative": p[3],
        "y_negative": p[4],
        "flux": p[0] + 0.5 * p[5],
        "flux_positive": p[0],
        "flux_negative": -(p[0] + p[5]),
        "x_y_cov": 0.25 * (covariance[1, 2] + covariance[1, 4] + covariance[3, 2] + covariance[3, 4]),
        **{f"{name}_err": float(np.sqrt(variance)) for name, variance in variances.items()},
    }


def _find_lobes(footprints: FootprintSet, wanted: BoolArray, difference: MaskedImage, bad_planes: int) -> FloatArray:
    """Return (x, y) of the strongest positive peak and of the strongest negative one: ``(n, 4)``.

    A `wanted` footprint without peaks of one sign has its lowest (highest) usable pixel instead.
    """
    lobes = np.stack(
        [*footprints.strongest_peak(positive=True), *footprints.strongest_peak(positive=False)], axis=1
    ).astype(float)
    for i in np.flatnonzero(wanted & ~footprints.has_both_signs).tolist():
        rows, columns = footprints.footprint_pixels(i)
        for sign, first in ((1.0, 0), (-1.0, 2)):
            if lobes[i, first] < 0:
                values = sign * difference.image[rows, columns]
                bad = (difference.mask[rows, columns] & bad_planes) != 0
                k = int(np.argmax(np.where(bad | ~np.isfinite(values), -np.inf, values)))
                lobes[i, first : first + 2] = columns[k], rows[k]
    return lobes


def _subtract_planes(values: FloatArray, usable: BoolArray, footprints: FootprintSet, i: int, box: Box) -> None:
    """Take off each image the plane of its usable pixels outside footprint `i`, in place."""
    rows, columns = footprints.footprint_pixels(i)
    outside = np.ones(box.shape, dtype=np.bool_)
    outside[rows - box.y_min, columns - box.x_min] = False
    v, u = np.mgrid[: box.shape[0], : box.shape[1]]
    design = np.stack([np.ones(box.shape), u, v], axis=-1)
    for k, good in enumerate(usable & outside):
        values[k] -= design @ np.linalg.lstsq(design[good], values[k][good], rcond=None)[0]


def _draw_kernels(psfs: list[PointSpreadFunction], *, x: float, y: float) -> FloatArray:
    """Return the PSFs' kernel images at one point, padded with zeros to the largest: ``(n, size, size)``."""
    size = max(psf.size for psf in psfs)
    kernels = np.zeros((len(psfs), size, size))
    for i, psf in enumerate(psfs):
        border = (size - psf.size) // 2
        kernels[i, border : border + psf.size, border : border + psf.size] = psf.compute_kernel_image(x=x, y=y)
    return kernels
