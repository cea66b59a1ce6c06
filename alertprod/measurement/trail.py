"""Trails: a moving source is its PSF drawn out along a line, from where the shutter opened to where it closed.

Only sources that are elongated against their PSF are tried, and what a point describes as well is no trail.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from alertprod._bands import map_threads
from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.detection.footprints import FootprintSet
from alertprod.geometry.box import Box
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement import _trail_loops
from alertprod.measurement.flux import BAD_PLANES
from alertprod.measurement.shape import Shapes
from alertprod.psf.model import PointSpreadFunction

_EDGE_PLANES = plane_bits("EDGE", "NO_DATA")
"""A trail over such a pixel may go on where nobody has looked."""

_SUSPECT_SIGMA = 3.0
"""A trail longer than this many PSF sigmas is a long one, in the reference's words."""

_FOOTPRINT_ELONGATION = 0.5
"""Elongation from which a footprint alone, of a source whose moments failed, is tried: noise in it reaches 0.4."""

_MAX_REFITS = 3
"""A trail that outgrows the nodes it was drawn with is drawn with more."""

_FAILURES = ("flag_no_converge", "flag_no_flux", "flag_no_sigma", "flag_nan", "flag_point_like")
"""Flags of a fit that gave no trail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailConfig:
    """Which sources are fitted as trails, and which fits count."""

    min_elongation: float = 0.2
    """Least ``(a^2 - b^2) / (a^2 + b^2)`` of the moments, in units of the PSF's: a trail of 2.4 PSF sigmas."""

    min_significance: float = 3.0
    """Least elongation in its standard errors: of a hundred point sources one is tried in vain."""

    min_delta_chi2: float = 25.0
    """By how much chi squared must be below that of a point source; five sigma."""

    max_side: int = 300
    """Pixels; a longer footprint is a satellite's, and for the streak mask."""

    border: int = 4
    """Pixels around the footprint's box that are fitted too: they say where the trail ends."""

    max_iterations: int = 40
    """Steps of the fit; most trails take about eight."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            min_elongation=(1e-9, 0.999),
            min_significance=(0.0, 1e30),
            min_delta_chi2=(0.0, 1e30),
            max_side=(1, 100_000),
            border=(0, 100),
            max_iterations=(1, 10_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trails:
    """Trail fits, each of shape ``(n,)``, one per footprint; NaN where none was made, or none that counts.

    Positions in pixels, fluxes in the image's units, negative for a trail of the template. (`x`, `y`) is the middle,
    (`vector_x`, `vector_y`) leads from it to the end with the larger x; covariances are ``(n, 3)``: xx, yy, xy. `chi2`
    is of the pixels counted in `n_data`, 0 where no fit was tried. `flag` is set where a fit was tried and gave no
    trail, with one of `flag_no_converge`, `flag_no_flux`, `flag_no_sigma`, `flag_nan` and `flag_point_like`, or alone
    with `flag_suspect_long_trail` where the footprint is too long to be tried. `flag_shape` tells of a source without
    moments, started from its footprint; `flag_edge` of a trail over the border or missing pixels, `flag_off_image` of
    an end off the image, `flag_suspect_long_trail` of one longer than three PSF sigmas.
    """

    x: FloatArray
    y: FloatArray
    vector_x: FloatArray
    vector_y: FloatArray
    position_covariance: FloatArray
    vector_covariance: FloatArray
    flux: FloatArray
    flux_err: FloatArray
    chi2: FloatArray
    n_data: IntArray
    flag: BoolArray
    flag_shape: BoolArray
    flag_no_converge: BoolArray
    flag_no_flux: BoolArray
    flag_no_sigma: BoolArray
    flag_nan: BoolArray
    flag_point_like: BoolArray
    flag_edge: BoolArray
    flag_off_image: BoolArray
    flag_suspect_long_trail: BoolArray

    @property
    def length(self) -> FloatArray:
        """Length in pixels."""
        return 2.0 * np.hypot(self.vector_x, self.vector_y)


def find_elongated(shapes: Shapes, config: TrailConfig) -> BoolArray:
    """Say which sources are drawn out against their PSF, shape ``(n,)``; False where moments failed.

    Notes
    -----
    The eigenvalues of the source's moments in units of the PSF's; the elongation of a Gaussian in white noise has the
    standard error 2 over its signal-to-noise.
    """
    determinant = shapes.psf_ixx * shapes.psf_iyy - shapes.psf_ixy**2
    with np.errstate(invalid="ignore", divide="ignore"):
        trace = shapes.ixx * shapes.psf_iyy + shapes.iyy * shapes.psf_ixx - 2.0 * shapes.ixy * shapes.psf_ixy
        trace = trace / determinant
        product = (shapes.ixx * shapes.iyy - shapes.ixy**2) / determinant
        elongation = np.sqrt(np.maximum(trace**2 - 4.0 * product, 0.0)) / trace
        error = 2.0 * shapes.flux_err / np.abs(shapes.flux)
        elongated: BoolArray = elongation > np.maximum(config.min_elongation, config.min_significance * error)
    return elongated


def fit_trails(
    footprints: FootprintSet,
    masked_image: MaskedImage,
    psf: PointSpreadFunction,
    shapes: Shapes,
    *,
    is_negative: BoolArray,
    skipped: BoolArray | None = None,
    config: TrailConfig | None = None,
    bad_planes: int = BAD_PLANES,
) -> Trails:
    """Fit a trail to each elongated source.

    Parameters
    ----------
    footprints
        n sources; a fit has the pixels of its footprint's box and a border, less those of other footprints.
    masked_image
        Background-free image and its variance.
    psf
        Point spread function of the same image.
    shapes
        Moments of the sources, in the same order.
    is_negative
        Sources whose flux is negative, shape ``(n,)``.
    skipped
        Sources that are not tried whatever their shape: dipoles.
    config
        `TrailConfig`.
    bad_planes
        Mask bits of pixels to leave out.

    Notes
    -----
    The model of Veres et al. (2012), a line of constant brightness under the PSF, with the PSF as it is in place of a
    Gaussian. Least squares in flux, middle and the vector to an end: the maximum of the likelihood where the noise is
    that of the sky. Weights from a variance plane that was made of the data would shorten a faint trail by a tenth; so,
    as for point-source fluxes, only the errors use the variance.
    """
    config = config or TrailConfig()
    n = len(footprints)
    floats = {name: np.full(n, np.nan) for name in ("x", "y", "vector_x", "vector_y", "flux", "flux_err", "chi2")}
    covariances = {name: np.full((n, 3), np.nan) for name in ("position_covariance", "vector_covariance")}
    flags: dict[str, Any] = {
        field.name: np.zeros(n, dtype=np.bool_) for field in fields(Trails) if field.name.startswith("flag")
    }
    n_data = np.zeros(n, dtype=np.int64)
    sides = np.maximum(footprints.x_max - footprints.x_min, footprints.y_max - footprints.y_min)
    candidates = ~footprints.is_sky if skipped is None else ~(footprints.is_sky | skipped)
    by_shape = candidates & find_elongated(shapes, config)
    by_footprint = candidates & ~by_shape & (shapes.flag | (sides > psf.size))

    def fit(i: int) -> None:
        box = footprints.box(i).grown(config.border).intersection(masked_image.box)
        cutout = masked_image.cutout(box)
        usable = cutout.usable(bad_planes) & ~_other_footprints(footprints, i, box)
        values = np.where(usable, cutout.image, 0.0).astype(float)
        sign = -1.0 if is_negative[i] else 1.0
        start = _start_from_shape(shapes, i) if by_shape[i] else _start_from_footprint(values, usable, sign, box)
        if start is None:
            return
        if sides[i] > config.max_side:
            flags["flag"][i] = flags["flag_suspect_long_trail"][i] = True
            return
        flags["flag_shape"][i] = shapes.flag[i]
        n_data[i] = int(usable.sum())
        converged, p, covariance, chi2, point_chi2 = _fit(
            values,
            np.where(usable, cutout.variance, 1.0).astype(float),
            usable,
            psf.compute_kernel_image(x=start[0], y=start[1]),
            start - [box.x_min, box.y_min, 0.0, 0.0],
            footprints.sigma,
            config.max_iterations,
        )
        p[1:3] += [box.x_min, box.y_min]
        flags["flag_no_converge"][i] = not converged
        flags["flag_no_flux"][i] = not p[0] * sign > 0.0
        flags["flag_no_sigma"][i] = not (np.isfinite(covariance).all() and (np.diag(covariance) > 0.0).all())
        flags["flag_nan"][i] = not np.isfinite(p).all()
        flags["flag_point_like"][i] = point_chi2 - chi2 < config.min_delta_chi2
        flags["flag"][i] = any(flags[name][i] for name in _FAILURES)
        if flags["flag"][i]:
            return
        turn = 1.0 if p[3] >= 0.0 else -1.0
        floats["x"][i], floats["y"][i] = p[1], p[2]
        floats["vector_x"][i], floats["vector_y"][i] = turn * p[3], turn * p[4]
        floats["flux"][i], floats["flux_err"][i] = p[0], np.sqrt(covariance[0, 0])
        floats["chi2"][i] = chi2
        covariances["position_covariance"][i] = covariance[1, 1], covariance[2, 2], covariance[1, 2]
        covariances["vector_covariance"][i] = covariance[3, 3], covariance[4, 4], covariance[3, 4]
        flags["flag_off_image"][i] = not all(
            masked_image.box.contains(x=p[1] + end * p[3], y=p[2] + end * p[4]) for end in (-1.0, 1.0)
        )
        flags["flag_edge"][i] = flags["flag_off_image"][i] or _touches_edge(masked_image.mask, p)
        flags["flag_suspect_long_trail"][i] = 2.0 * np.hypot(p[3], p[4]) > _SUSPECT_SIGMA * footprints.sigma

    map_threads(fit, np.flatnonzero(by_shape | by_footprint).tolist())
    return Trails(**floats, **covariances, **flags, n_data=n_data)


def _fit(
    values: FloatArray,
    variances: FloatArray,
    usable: BoolArray,
    kernel: FloatArray,
    start: FloatArray,
    sigma: float,
    max_iterations: int,
) -> tuple[bool, FloatArray, FloatArray, float, float]:
    """Fit one box, with as many nodes as the trail's length needs."""
    for _ in range(_MAX_REFITS):
        # Half as long again as the start; and closer than a sigma, where a row of Gaussians is a line to 1e-4.
        longest = 3.0 * np.hypot(start[2], start[3]) + sigma
        nodes, weights = np.polynomial.legendre.leggauss(int(np.ceil(1.2 * longest / sigma)) + 4)
        fit = _trail_loops.fit_trail(values, variances, usable, kernel, nodes, 0.5 * weights, start, max_iterations)
        start = fit[1][1:].copy()
        if not 2.0 * np.hypot(start[2], start[3]) > longest:
            break
    return fit


def _start_from_shape(shapes: Shapes, i: int) -> FloatArray:
    """Return middle and vector of the line that, under the PSF, has the moments of source `i`."""
    excess = (
        shapes.ixx[i] - shapes.psf_ixx[i],
        shapes.iyy[i] - shapes.psf_iyy[i],
        shapes.ixy[i] - shapes.psf_ixy[i],
    )
    least = 0.25 * float(np.sqrt(shapes.psf_ixx[i] * shapes.psf_iyy[i]))
    return np.array([shapes.x[i], shapes.y[i], *_line_of_moments(*excess, least=least)])


def _start_from_footprint(values: FloatArray, usable: BoolArray, sign: float, box: Box) -> FloatArray | None:
    """Return the same from the light in a footprint; None where that is not elongated."""
    _, x, y, xx, yy, xy = _trail_loops.footprint_moments(values, usable, sign)
    if not np.hypot(xx - yy, 2.0 * xy) > _FOOTPRINT_ELONGATION * (xx + yy):
        return None
    return np.array([box.x_min + x, box.y_min + y, *_line_of_moments(xx, yy, xy, least=0.25)])


def _line_of_moments(xx: float, yy: float, xy: float, *, least: float) -> tuple[float, float]:
    """Return the vector to the end of the line whose second moment is the larger eigenvalue: ``length^2 / 12``."""
    angle = 0.5 * np.arctan2(2.0 * xy, xx - yy)
    largest = 0.5 * (xx + yy + np.hypot(xx - yy, 2.0 * xy))
    half = np.sqrt(3.0 * max(largest, least))
    return float(half * np.cos(angle)), float(half * np.sin(angle))


def _other_footprints(footprints: FootprintSet, i: int, box: Box) -> BoolArray:
    """Return the pixels of a box that belong to other footprints than `i` only."""
    others = np.zeros(box.shape, dtype=np.bool_)
    near = (footprints.x_min < box.x_max) & (footprints.x_max > box.x_min)
    near &= (footprints.y_min < box.y_max) & (footprints.y_max > box.y_min)
    near[i] = False
    for k in np.flatnonzero(near).tolist():
        rows, columns = footprints.footprint_pixels(k)
        inside = (columns >= box.x_min) & (columns < box.x_max) & (rows >= box.y_min) & (rows < box.y_max)
        others[rows[inside] - box.y_min, columns[inside] - box.x_min] = True
    rows, columns = footprints.footprint_pixels(i)
    others[rows - box.y_min, columns - box.x_min] = False
    return others


def _touches_edge(mask: IntArray, p: FloatArray) -> bool:
    """Say whether the line from end to end, all of it on the image, runs over the border or missing pixels."""
    steps = np.linspace(-1.0, 1.0, 2 + int(np.ceil(2.0 * np.hypot(p[3], p[4]))))
    columns, rows = np.floor(p[1] + steps * p[3] + 0.5).astype(int), np.floor(p[2] + steps * p[4] + 0.5).astype(int)
    ny, nx = mask.shape
    on_border = (columns == 0) | (rows == 0) | (columns == nx - 1) | (rows == ny - 1)
    return bool((on_border | ((mask[rows, columns] & _EDGE_PLANES) != 0)).any())
