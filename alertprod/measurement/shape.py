"""Shapes: adaptive second moments of sources and of their PSF, and how extended a source is."""

from dataclasses import dataclass

import numpy as np

from alertprod._bands import map_threads
from alertprod._typing import BoolArray, FloatArray
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _shape_loops
from alertprod.measurement.flux import BAD_PLANES
from alertprod.measurement.stamps import chunks, cut_stamps, draw_psfs
from alertprod.psf.model import PointSpreadFunction

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Second moments in pixels squared along the pixel axes, each of shape ``(n,)``; NaN where not measured.

    `x`, `y` are the centres of the fitted Gaussians, `flux` and `flux_err` the (signed) fluxes of Gaussians of these
    moments there; `flag` tells of a source whose moments did not converge, `flag_no_pixels` of one without a usable
    pixel (`flag` is set too).
    """

    ixx: FloatArray
    iyy: FloatArray
    ixy: FloatArray
    psf_ixx: FloatArray
    psf_iyy: FloatArray
    psf_ixy: FloatArray
    x: FloatArray
    y: FloatArray
    flux: FloatArray
    flux_err: FloatArray
    flag: BoolArray
    flag_no_pixels: BoolArray

    def compute_errors(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return standard errors of (`ixx`, `iyy`, `ixy`), pixels squared.

        Notes
        -----
        Of a Gaussian fitted to white noise: with nu the signal-to-noise of its flux, the Fisher matrix gives
        ``cov(I_ij, I_kl) = 4 (I_ik I_jl + I_il I_jk) / nu^2``.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = 2.0 * self.flux_err / np.abs(self.flux)
            cross = np.sqrt(self.ixx * self.iyy + self.ixy**2)
            return scale * np.sqrt(2.0) * self.ixx, scale * np.sqrt(2.0) * self.iyy, scale * cross

    def compute_extendedness(self) -> FloatArray:
        """Return ``1 - sqrt(det(psf) / det(source))`` cut to [0, 1]: 0 for a point, towards 1 for large sources."""
        source = self.ixx * self.iyy - self.ixy**2
        psf = self.psf_ixx * self.psf_iyy - self.psf_ixy**2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(1.0 - np.sqrt(psf / source), 0.0, 1.0)


def measure_shapes(
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    *,
    x: FloatArray,
    y: FloatArray,
    is_negative: BoolArray,
    bad_planes: int = BAD_PLANES,
    psf_images: FloatArray | None = None,
) -> Shapes:
    """Measure adaptive moments at the centroids.

    Parameters
    ----------
    masked_image
        Background-free image.
    psf
        Point spread function of the same image; its stamp is the region measured.
    x, y
        Centroids, pixels.
    is_negative
        Sources of negative flux are measured on the negated image.
    bad_planes
        Mask bits of unusable pixels, which count as the fitted Gaussian fills them.
    psf_images
        `draw_psfs` at these positions where somebody has them already.

    Notes
    -----
    Bernstein & Jarvis (2002), section 3.1; Hirata & Seljak (2003): the moments are those of the elliptical
    Gaussian that, as weight, reproduces itself. The same loop measures the PSF, so that a point source's
    moments are its PSF's up to noise.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    n = len(x)
    moments, psf_moments, center = np.full((n, 3), np.nan), np.full((n, 3), np.nan), np.full((n, 2), np.nan)
    flux, flux_err = np.full(n, np.nan), np.full(n, np.nan)
    ok, no_pixels = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)

    def measure(part: slice) -> None:
        stamps = cut_stamps(masked_image, x=x[part], y=y[part], size=psf.size, bad_planes=bad_planes)
        images = draw_psfs(psf, x=x[part], y=y[part]) if psf_images is None else psf_images[part]
        dx, dy = x[part] - stamps.column, y[part] - stamps.row
        everywhere = np.ones(images.shape, dtype=np.bool_)
        start = np.full(len(dx), max(1.0, (psf.size / 8.0) ** 2))
        part_moments, part_center = np.empty((len(dx), 3)), np.empty((len(dx), 2))
        part_ok = np.empty(len(dx), dtype=np.bool_)
        _shape_loops.adaptive_moments(
            images, everywhere, dx, dy, start, _MAX_ITERATIONS, _TOLERANCE, part_moments, part_center, part_ok
        )
        part_moments[~part_ok] = np.nan
        psf_moments[part] = part_moments
        start = np.where(part_ok, 0.5 * (part_moments[:, 0] + part_moments[:, 1]), start)
        values = np.where(np.asarray(is_negative)[part, None, None], -stamps.values, stamps.values)
        _shape_loops.adaptive_moments(
            values, stamps.usable, dx, dy, start, _MAX_ITERATIONS, _TOLERANCE, part_moments, part_center, part_ok
        )
        part_moments[~part_ok] = np.nan
        moments[part] = part_moments
        _shape_loops.fit_gaussian_fluxes(
            stamps.values,
            stamps.variances,
            stamps.usable,
            part_center,
            part_moments,
            flux[part],
            flux_err[part],
        )
        center[part] = np.where(
            part_ok[:, None],
            part_center + np.stack([stamps.column, stamps.row], axis=1),
            np.stack([x, y], axis=1)[part],
        )
        ok[part] = part_ok
        no_pixels[part] = ~stamps.usable.any(axis=(1, 2))

    map_threads(measure, chunks(n))
    return Shapes(
        ixx=moments[:, 0],
        iyy=moments[:, 1],
        ixy=moments[:, 2],
        psf_ixx=psf_moments[:, 0],
        psf_iyy=psf_moments[:, 1],
        psf_ixy=psf_moments[:, 2],
        x=center[:, 0],
        y=center[:, 1],
        flux=flux,
        flux_err=flux_err,
        flag=~ok,
        flag_no_pixels=no_pixels,
    )
