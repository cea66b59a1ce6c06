"""Fluxes at fixed positions: point sources and apertures.

The point-source fit is unweighted, ``sum(P d) / sum(P^2)``, so that a variance plane that was made from the
data, and a bright source's own photons, cannot bias it; only the error uses the variance.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._bands import map_threads
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.images.correlated_noise import CorrelatedNoise
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _loops
from alertprod.measurement.stamps import chunks, cut_stamps, draw_psfs, nearest_pixels
from alertprod.psf.model import PointSpreadFunction

BAD_PLANES = plane_bits("NO_DATA", "BAD", "SAT", "CR", "EDGE")
"""Pixels of these planes say nothing of a flux; a fit goes without them."""

APERTURE_RADIUS = 12.0
"""Pixels; the radius of ``apFlux`` in the alert schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PsfFluxes:
    """Point-source fluxes, each of shape ``(n,)``, in the image's units.

    `flux`, `flux_err`, `chi2` and `area` (of the usable part of the PSF, ``sum(P)^2 / sum(P^2)`` in pixels) are NaN
    where no pixel is usable. `flag` is set with either of the others.
    """

    flux: FloatArray
    flux_err: FloatArray
    chi2: FloatArray
    area: FloatArray
    n_data: IntArray
    flag: BoolArray
    flag_edge: BoolArray
    flag_no_good_pixels: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakLikelihoodFluxes:
    """Values of the point-source likelihood image, each of shape ``(n,)``; NaN with `flag` where there is none."""

    flux: FloatArray
    flux_err: FloatArray
    flag: BoolArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ApertureFluxes:
    """Aperture fluxes, each of shape ``(n,)``, in the image's units; NaN where no pixel is usable."""

    flux: FloatArray
    flux_err: FloatArray
    flag: BoolArray
    flag_truncated: BoolArray


def measure_psf_flux(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    x: FloatArray,
    y: FloatArray,
    bad_planes: int = BAD_PLANES,
    psf_images: FloatArray | None = None,
    noise: CorrelatedNoise | None = None,
) -> PsfFluxes:
    """Measure point-source fluxes at fixed positions.

    Parameters
    ----------
    masked_image
        Background-free image and its variance. Masked and non-finite pixels are left out of the fit.
    psf
        Point spread function of the same image.
    x, y
        Positions, shape ``(n,)``, pixels; the first pixel's centre is (0, 0). Off the image or NaN is allowed.
    bad_planes
        Mask bits of pixels to leave out.
    psf_images
        `draw_psfs` at these positions where somebody has them already.
    noise
        What the image's noise was made of, for the errors; without it they are those of independent pixels.

    Returns
    -------
    PsfFluxes
        ``flag_edge`` is set (and the flux still given) where the PSF's image reaches off the image.

    Notes
    -----
    Without `noise` that of a decorrelated difference is right on the sky. On a source it is not white, since one kernel
    serves for all: the errors of bright sources, of as much noise in the template as in the science image, are 5 % too
    large where the source is in the one and 5 % too small where it is in the other.
    """
    x, y = np.atleast_1d(np.asarray(x, dtype=float)), np.atleast_1d(np.asarray(y, dtype=float))
    n = len(x)
    flux, flux_err, chi2, area = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    n_data = np.empty(n, dtype=np.int64)

    def measure(part: slice) -> None:
        stamps = cut_stamps(masked_image, x=x[part], y=y[part], size=psf.size, bad_planes=bad_planes)
        if psf_images is None:
            on_image = stamps.usable.any(axis=(1, 2))
            images = draw_psfs(psf, x=np.where(on_image, x[part], np.nan), y=y[part])
        else:
            images = psf_images[part]
        _loops.fit_psf_fluxes(
            stamps.values,
            stamps.variances,
            stamps.usable,
            images,
            flux[part],
            flux_err[part],
            chi2[part],
            area[part],
            n_data[part],
        )
        if noise is not None:
            weights = np.where(stamps.usable, images, 0.0)
            variance = noise.compute_variances(weights, column=stamps.column, row=stamps.row)
            power = (weights**2).sum(axis=(1, 2))
            known = np.isfinite(variance) & (power > 0)
            flux_err[part][known] = np.sqrt(variance[known]) / power[known]

    map_threads(measure, chunks(n))
    column, row = nearest_pixels(x, y)
    half, (ny, nx) = psf.size // 2, masked_image.shape
    flag_edge = (column < half) | (row < half) | (column + half >= nx) | (row + half >= ny)
    flag_no_good_pixels = ~np.isfinite(flux)
    return PsfFluxes(
        flux=flux,
        flux_err=flux_err,
        chi2=chi2,
        area=area,
        n_data=n_data,
        flag=flag_edge | flag_no_good_pixels,
        flag_edge=flag_edge,
        flag_no_good_pixels=flag_no_good_pixels,
    )


def measure_aperture_flux(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    x: FloatArray,
    y: FloatArray,
    psf_flux: FloatArray,
    radius: float = APERTURE_RADIUS,
    bad_planes: int = BAD_PLANES,
    psf_images: FloatArray | None = None,
) -> ApertureFluxes:
    """Measure fluxes within disks, each pixel weighted by its exact overlap.

    Parameters
    ----------
    masked_image
        Background-free image and its variance.
    psf
        Point spread function of the same image.
    x, y
        Centres, shape ``(n,)``, pixels.
    psf_flux
        Point-source fluxes at the same positions: an unusable pixel counts as that star would fill it, so that a
        bad column does not take its share of the flux away. NaN fills nothing.
    radius
        Pixels.
    bad_planes
        Mask bits of unusable pixels.
    psf_images
        `draw_psfs` at these positions where somebody has them already.

    Returns
    -------
    ApertureFluxes
        Not corrected to infinity. ``flag_truncated`` where the disk reaches off the image.
    """
    x, y = np.atleast_1d(np.asarray(x, dtype=float)), np.atleast_1d(np.asarray(y, dtype=float))
    n = len(x)
    flux, flux_err = np.empty(n), np.empty(n)
    truncated, n_used = np.empty(n, dtype=np.bool_), np.empty(n, dtype=np.int64)
    column, row = nearest_pixels(x, y)

    def measure(part: slice) -> None:
        _loops.sum_apertures(
            masked_image.image,
            masked_image.variance,
            masked_image.mask,
            bad_planes,
            x[part],
            y[part],
            radius,
            draw_psfs(psf, x=x[part], y=y[part]) if psf_images is None else psf_images[part],
            column[part],
            row[part],
            np.asarray(psf_flux, dtype=float)[part],
            flux[part],
            flux_err[part],
            truncated[part],
            n_used[part],
        )

    map_threads(measure, chunks(n))
    return ApertureFluxes(flux=flux, flux_err=flux_err, flag=truncated | (n_used == 0), flag_truncated=truncated)


def measure_peak_likelihood(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    x: FloatArray,
    y: FloatArray,
    bad_planes: int = BAD_PLANES,
) -> PeakLikelihoodFluxes:
    """Measure fluxes as the image of point-source likelihood shows them: by its pixels about each position.

    Parameters
    ----------
    masked_image
        Background-free image and its variance.
    psf
        Point spread function of the same image.
    x, y
        Positions, shape ``(n,)``, pixels.
    bad_planes
        Mask bits of unusable pixels.

    Notes
    -----
    The likelihood's maximum over the flux, ``sum(P d) / sum(P^2)``, at the 3 x 3 whole pixels about the position,
    interpolated to it by a parabola along each axis: equal to the point-source flux to 0.2 % of it at 4 pixels FWHM.
    """
    x, y = np.atleast_1d(np.asarray(x, dtype=float)), np.atleast_1d(np.asarray(y, dtype=float))
    flux, flux_err = np.empty(len(x)), np.empty(len(x))

    def measure(part: slice) -> None:
        stamps = cut_stamps(masked_image, x=x[part], y=y[part], size=psf.size, bad_planes=bad_planes)
        finite = np.isfinite(x[part]) & np.isfinite(y[part])
        _loops.fit_peak_likelihoods(
            stamps.values,
            stamps.variances,
            stamps.usable,
            draw_psfs(psf, x=np.where(finite, stamps.column, np.nan), y=stamps.row.astype(float)),
            np.where(finite, x[part] - stamps.column, 0.0),
            np.where(finite, y[part] - stamps.row, 0.0),
            flux[part],
            flux_err[part],
        )

    map_threads(measure, chunks(len(x)))
    return PeakLikelihoodFluxes(flux=flux, flux_err=flux_err, flag=~np.isfinite(flux))
