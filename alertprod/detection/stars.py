"""Find the stars of an image whose PSF nobody knows yet: for PSF fitting and for matching kernels.

What is wanted is not every star but clean ones: unsaturated, of the width that stars have here, and apart from
their neighbours as far as the field allows.
"""

from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial import cKDTree

from alertprod._bands import map_bands, map_threads, row_bands
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection import _star_loops
from alertprod.detection.background import estimate_background
from alertprod.detection.matched_filter import compute_significance
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import FWHM_PER_SIGMA

_START_SIGMAS = (1.5, 3.0)
"""PSF sigmas to look with when none is given: 3.5 pixels FWHM suits most cameras, 7 those that oversample."""

_MIN_SIGMA = 0.65
"""Pixels; what is sharper than 1.5 pixels FWHM is a cosmic ray or a hot pixel."""

_N_FOR_WIDTH = 400
"""Brightest candidates that decide the width of stars."""

_LOCUS_WIDTH = 0.05
"""Relative scatter of width that a real PSF has about a smooth model at high signal-to-noise, generously."""

_MAX_MEASURED = 5000
"""Candidates measured in full; far more than any PSF or kernel needs."""

_STARS_AT_ONCE = 128
"""Candidates that one thread measures before it asks for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StarConfig:
    """What counts as a usable star."""

    threshold: float = 8.0
    """Significance of a peak, in units of the scatter that the filtered image really has."""

    neighbour_threshold: float = 4.0
    """Significance, in the same units, of peaks that count as neighbours; lower ones are noise."""

    min_snr: float = 20.0
    """Signal-to-noise of the star's flux: its width is then known to about 5 %."""

    background_bin: int = 64
    """Side of the background's bins in pixels."""

    excluded_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "CR", "EDGE")
    """A star with such a pixel within one FWHM of its centre is not used."""

    saturation: float = np.inf
    """Image level from which a pixel counts as saturated, beside the SAT plane."""

    isolation_fwhm: float = 2.5
    """Radius in FWHM within which neighbours are added up."""

    max_contamination: float = 0.1
    """Flux of neighbours within that radius, relative to the star's."""

    min_stars: int = 30
    """In crowded fields the least contaminated are taken until there are as many as this."""

    max_relaxed_contamination: float = 0.5
    """But none beyond this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StarList:
    """Clean stars, brightest first; each array of shape ``(n,)``.

    Parameters
    ----------
    x, y
        Centroids in pixels.
    flux, snr
        Flux of the best circular Gaussian in image units, and its signal-to-noise ratio.
    fwhm
        FWHM of that Gaussian, pixels.
    contamination
        Flux of all neighbours within the isolation radius, relative to the star's own.
    """

    x: FloatArray
    y: FloatArray
    flux: FloatArray
    snr: FloatArray
    fwhm: FloatArray
    contamination: FloatArray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def median_fwhm(self) -> float:
        """Median FWHM of the stars in pixels; NaN without any."""
        return float(np.median(self.fwhm)) if len(self) else float("nan")

    def select(self, rows: BoolArray | IntArray) -> "StarList":
        """Return the stars that a mask or indices pick."""
        return StarList(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def find_stars(masked_image: MaskedImage, *, sigma: float | None = None, config: StarConfig | None = None) -> StarList:
    """Find clean stars.

    Parameters
    ----------
    masked_image
        Image with its sky (a smooth background is removed here) and variance.
    sigma
        PSF sigma in pixels where it is known; it saves the search for it.
    config
        `StarConfig`.

    Returns
    -------
    StarList
        Empty where the image has none.

    Notes
    -----
    Peaks of the filtered image are fitted with circular Gaussians. Stars are the densest group of widths among
    the bright ones (half-sample mode), then what stays within the scatter of a smooth surface through it: the PSF
    may vary over the field. Galaxies are wider, cosmic rays sharper, blends wide or elongated.
    """
    config = config or StarConfig()
    bad_bits = plane_bits(*config.excluded_planes)
    good, bad = masked_image.usable(bad_bits), np.empty(masked_image.shape, dtype=np.bool_)
    flat = MaskedImage(np.empty_like(masked_image.image), masked_image.mask, masked_image.variance)

    def prepare(first: int, last: int) -> bool:
        rows = slice(first, last)
        good[rows] &= masked_image.image[rows] < config.saturation
        np.logical_not(good[rows], out=bad[rows])
        flat.image[rows] = masked_image.image[rows]
        np.copyto(flat.image[rows], np.float32(np.nan), where=bad[rows])
        return bool(good[rows].any())

    if not any(map_bands(prepare, len(good))):
        return _empty()
    estimate_background(masked_image.image, good, bin_size=config.background_bin).subtract_from(flat.image)
    found = _find_width(flat, bad, bad_bits, config) if sigma is None else sigma
    if found is None:
        return _empty()
    peak_x, peak_y, strength = _find_peaks(flat, found, bad_bits, config.neighbour_threshold)
    if len(peak_x) == 0:
        return _empty()
    neighbour_flux = _measure(flat, bad, peak_x, peak_y, found, max_iterations=0).flux
    clean = (strength >= config.threshold) & ~_touches(bad, peak_x, peak_y, radius=FWHM_PER_SIGMA * found)
    order = np.flatnonzero(clean)[np.argsort(-neighbour_flux[clean], kind="stable")][:_MAX_MEASURED]
    if len(order) == 0:
        return _empty()
    stars = _measure(flat, bad, peak_x[order], peak_y[order], found, max_iterations=50)
    contamination = _contamination(
        peak_x, peak_y, neighbour_flux, order, radius=config.isolation_fwhm * FWHM_PER_SIGMA * found
    )
    good = stars.converged & (stars.snr >= config.min_snr) & (stars.sigma > _MIN_SIGMA)
    good &= _on_locus(stars, good, found)
    good &= _isolated(contamination, good, config)
    chosen = np.flatnonzero(good)
    chosen = chosen[np.lexsort((stars.x[chosen], stars.y[chosen], -stars.flux[chosen]))]
    return StarList(
        x=stars.x[chosen],
        y=stars.y[chosen],
        flux=stars.flux[chosen],
        snr=stars.snr[chosen],
        fwhm=FWHM_PER_SIGMA * stars.sigma[chosen],
        contamination=contamination[chosen],
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """Circular Gaussians fitted to candidates."""

    x: FloatArray
    y: FloatArray
    sigma: FloatArray
    flux: FloatArray
    snr: FloatArray
    e1: FloatArray
    e2: FloatArray
    converged: BoolArray


def _empty() -> StarList:
    return StarList(**{f.name: np.zeros(0) for f in fields(StarList)})


def _find_peaks(
    flat: MaskedImage, sigma: float, bad_bits: int, threshold: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return whole-pixel peaks of the image filtered with a Gaussian, and their significance above its median."""
    half = max(1, int(np.ceil(3.0 * sigma)))
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    significance = compute_significance(flat, np.outer(profile, profile), bad_bits=bad_bits)
    # The variance plane may be nominal, and in a crowded field faint stars are the noise.
    sample = significance[:: max(1, significance.shape[0] // 512), :: max(1, significance.shape[1] // 512)]
    sample = sample[sample != 0.0]
    if len(sample) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    middle = float(np.median(sample))
    below = sample[sample <= middle]
    # Stars push the upper side only: the scatter is taken from the lower.
    scatter = 1.4826 * float(np.median(middle - below))
    scatter = max(scatter, float(np.finfo(np.float32).tiny))
    level, radius = middle + threshold * scatter, max(1, round(sigma))
    found = map_bands(
        lambda first, last: _star_loops.find_maxima(significance, level, radius, first, last), len(significance)
    )
    x, y = (np.concatenate(axis) for axis in zip(*found, strict=True))
    return x, y, (significance[y, x] - middle) / scatter


def _measure(
    flat: MaskedImage, bad: BoolArray, x: IntArray, y: IntArray, sigma: float, *, max_iterations: int
) -> _Measured:
    star_x, star_y = np.array(x, dtype=float), np.array(y, dtype=float)
    widths, out = np.full(len(x), float(sigma)), np.zeros((len(x), 5))

    def measure(some: slice) -> None:
        _star_loops.measure_stars(
            flat.image, flat.variance, bad, star_x[some], star_y[some], widths[some], max_iterations, out[some]
        )

    map_threads(measure, row_bands(len(x), height=_STARS_AT_ONCE))
    area = 2.0 * np.pi * widths**2
    with np.errstate(invalid="ignore", divide="ignore"):
        snr = np.where(out[:, 1] > 0, out[:, 0] / np.sqrt(out[:, 1]), 0.0)
    return _Measured(star_x, star_y, widths, out[:, 0] * area, snr, out[:, 2], out[:, 3], out[:, 4] > 0)


def _find_width(flat: MaskedImage, bad: BoolArray, bad_bits: int, config: StarConfig) -> float | None:
    """Return the sigma that most bright objects share; None where there are none."""
    found = None
    for start in _START_SIGMAS:
        x, y, _ = _find_peaks(flat, start, bad_bits, config.threshold)
        clean = ~_touches(bad, x, y, radius=FWHM_PER_SIGMA * start)
        x, y = x[clean], y[clean]
        first = _measure(flat, bad, x, y, start, max_iterations=0)
        brightest = np.argsort(-first.snr, kind="stable")[:_N_FOR_WIDTH]
        stars = _measure(flat, bad, x[brightest], y[brightest], start, max_iterations=50)
        good = stars.converged & (stars.snr >= config.min_snr) & (stars.sigma > _MIN_SIGMA)
        if not good.any():
            continue
        found = float(np.exp(_half_sample_mode(np.log(stars.sigma[good]))))
        if found < 1.6 * start:
            break
    return found


def _half_sample_mode(values: FloatArray) -> float:
    """Return the mode: halve the sorted sample, keeping the half that spans least, until few are left.

    Bickel & Frühwirth (2006).
    """
    values = np.sort(values)
    while len(values) > 3:
        half = (len(values) + 1) // 2
        spans = values[half - 1 :] - values[: len(values) - half + 1]
        first = int(np.argmin(spans))
        values = values[first : first + half]
    return float(np.median(values))


def _touches(bad: BoolArray, x: IntArray, y: IntArray, *, radius: float) -> BoolArray:
    """Say which points have a bad pixel, or the border, within `radius`."""
    ny, nx = bad.shape
    reach = int(np.ceil(radius))
    v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = u * u + v * v <= radius * radius
    touching = np.zeros(len(x), dtype=np.bool_)
    for dx, dy in zip(u[disk], v[disk], strict=True):
        column, row = x + dx, y + dy
        inside = (column >= 0) & (row >= 0) & (column < nx) & (row < ny)
        touching |= ~inside
        touching |= bad[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)]
    return touching


def _contamination(x: IntArray, y: IntArray, flux: FloatArray, chosen: IntArray, *, radius: float) -> FloatArray:
    """Return the flux of other peaks within `radius` of each chosen one, relative to its own."""
    points = np.stack([x, y], axis=1).astype(float)
    tree = cKDTree(points)
    ratio = np.empty(len(chosen))
    for i, neighbours in enumerate(tree.query_ball_point(points[chosen], radius)):
        own = flux[chosen[i]]
        others = np.maximum(flux[neighbours], 0.0).sum() - max(own, 0.0)
        ratio[i] = others / own if own > 0 else np.inf
    return ratio


def _on_locus(stars: _Measured, good: BoolArray, sigma: float) -> BoolArray:
    """Say which candidates have the width and ellipticity that stars have where they are."""
    log_width = np.log(np.maximum(stars.sigma, 1e-3) / sigma)
    # A width from photons is known to about 1 / snr.
    tolerance = np.hypot(3.0 * _LOCUS_WIDTH, 3.0 / np.maximum(stars.snr, 1.0))
    members = good & (np.abs(log_width) < tolerance)
    x, y = stars.x / max(1.0, float(np.ptp(stars.x))), stars.y / max(1.0, float(np.ptp(stars.y)))
    columns = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    for _ in range(3):
        n = int(members.sum())
        if n < 3:
            return members
        n_terms = 6 if n >= 40 else 3 if n >= 15 else 1
        residuals = []
        for quantity in (log_width, stars.e1, stars.e2):
            terms = columns[:, :n_terms]
            coefficients = np.linalg.lstsq(terms[members], quantity[members], rcond=None)[0]
            residuals.append(quantity - terms @ coefficients)
        width_residual, ellipticity_residual = residuals[0], np.hypot(residuals[1], residuals[2])
        spread = 1.4826 * float(np.median(np.abs(width_residual[members])))
        width_limit = np.hypot(max(min(3.0 * spread, 0.15), 0.03), 3.0 / np.maximum(stars.snr, 1.0))
        spread = 1.4826 * float(np.median(ellipticity_residual[members]))
        ellipticity_limit = np.hypot(max(min(3.0 * spread, 0.15), 0.03), 3.0 / np.maximum(stars.snr, 1.0))
        members = good & (np.abs(width_residual) < width_limit) & (ellipticity_residual < ellipticity_limit)
    return members


def _isolated(contamination: FloatArray, good: BoolArray, config: StarConfig) -> BoolArray:
    """Say which good stars are isolated; the least contaminated make up the number in crowded fields."""
    isolated = good & (contamination <= config.max_contamination)
    missing = config.min_stars - int(isolated.sum())
    if missing > 0:
        others = np.flatnonzero(good & ~isolated & (contamination <= config.max_relaxed_contamination))
        isolated[others[np.argsort(contamination[others], kind="stable")[:missing]]] = True
    return isolated
