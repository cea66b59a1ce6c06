"""Fit of a TAN-SIP world coordinate system to points whose sky positions are known.

The order of the distortion is what the points bear, at most what is asked for: a polynomial that the points do not
hold runs wild in the corners.
"""

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS, Sip

from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray
from alertprod.geometry.box import Box
from alertprod.geometry.sphere import ARCSEC_PER_DEG, east_and_north, sky_positions, unit_vectors
from alertprod.geometry.wcs import SkyWcs


@dataclass(frozen=True, slots=True, kw_only=True)
class WcsFitConfig:
    """How a world coordinate system is fitted."""

    sip_order: int = 4
    """Largest total degree of the distortion polynomials; 1 for none. Optics of wide fields need up to 4 on one
    detector; where fewer matches or lower distortions are there, the order is lower by itself."""

    sip_iter: int = 3
    """Rounds of rejection; a round that rejects nothing new is the last one."""

    sip_rej: float = 3.0
    """Points further off than this many robust standard deviations are rejected."""

    min_matches: int = 4
    """Points that a fit needs at least: three give six numbers for the six of a linear fit, and nothing to judge it."""

    matches_per_term: float = 2.0
    """Points that each polynomial term needs: with fewer the scatter that is left says nothing."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            sip_order=(1, _MAX_ORDER),
            sip_iter=(1, 1000),
            sip_rej=(0.1, 1e30),
            min_matches=(3, 2**31),
            matches_per_term=(1.0, 1e30),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WcsFit:
    """A fitted world coordinate system and how well it fits.

    Parameters
    ----------
    wcs
        The fit; TAN where `order` is 1, else TAN-SIP.
    order
        Degree of its distortion.
    used
        Which points it was fitted to, shape ``(n,)``.
    east_arcsec, north_arcsec
        Fitted minus given position of every point, rejected ones too, shape ``(n,)``; NaN where a point is not finite.
    scatter_arcsec
        Standard deviation of the used points about the fit along one axis, the fit's parameters accounted for.
    """

    wcs: SkyWcs
    order: int
    used: BoolArray
    east_arcsec: FloatArray
    north_arcsec: FloatArray
    scatter_arcsec: float


def fit_wcs(
    *,
    x: FloatArray,
    y: FloatArray,
    ra_deg: FloatArray,
    dec_deg: FloatArray,
    box: Box,
    config: WcsFitConfig | None = None,
) -> WcsFit:
    """Fit world coordinates to pairs of pixel and sky positions.

    Parameters
    ----------
    x, y
        Pixel positions, shape ``(n,)``; rows that are not finite are left out.
    ra_deg, dec_deg
        Where these are on the sky, ICRS degrees.
    box
        Pixels the result is for: the reference pixel is its middle.

    Raises
    ------
    ValueError
        Raised if too few points are there, or they lie on one line.

    Notes
    -----
    In the plane that touches the sky at the reference pixel's position, which a first linear fit gives, the
    model is linear in all its numbers: ``(xi, eta) = CD (u + f(u, v), v + g(u, v))`` (Shupe et al. 2005). Among the orders
    that have points enough the one is taken that predicts a new point in the box best: the scatter about the fit and
    the fit's own variance there, in squares. This counts what a term costs where there are no points.
    """
    config = config or WcsFitConfig()
    x, y, ra_deg, dec_deg = (np.asarray(values, dtype=float) for values in (x, y, ra_deg, dec_deg))
    known = np.isfinite(np.stack([x, y, ra_deg, dec_deg])).all(axis=0)
    x, y, ra_deg, dec_deg = (np.where(known, values, np.nan) for values in (x, y, ra_deg, dec_deg))
    if known.sum() < config.min_matches:
        msg = f"{int(known.sum())} points for a fit of world coordinates, {config.min_matches} are needed"
        raise ValueError(msg)
    frame = _Frame(box)
    u, v = frame.scale(x, y)
    tangent = _find_tangent_point(u[known], v[known], ra_deg[known], dec_deg[known])
    plane = _project(tangent, ra_deg, dec_deg)
    used = known.copy()
    for _ in range(config.sip_iter):
        order = _choose_order(frame, u[used], v[used], plane[used], config)
        coefficients = _solve(_design(u[used], v[used], order), plane[used])
        misfit = _design(u, v, order) @ coefficients - plane
        kept = known & _within(misfit, used, config.sip_rej)
        if kept.sum() < config.min_matches or np.array_equal(kept, used):
            break
        used = kept
    order = _choose_order(frame, u[used], v[used], plane[used], config)
    for _ in range(_TANGENT_ROUNDS):
        coefficients = _solve(_design(u[used], v[used], order), plane[used])
        tangent = _move(tangent, coefficients[0])
        plane = _project(tangent, ra_deg, dec_deg)
    coefficients = _solve(_design(u[used], v[used], order), plane[used])
    misfit = (_design(u, v, order) @ coefficients - plane) * ARCSEC_PER_DEG
    freedom = max(1, int(used.sum()) - len(coefficients))
    return WcsFit(
        wcs=_make_wcs(frame, tangent, coefficients, order),
        order=order,
        used=used,
        east_arcsec=misfit[:, 0],
        north_arcsec=misfit[:, 1],
        scatter_arcsec=float(np.sqrt((misfit[used] ** 2).sum() / (2 * freedom))),
    )


_MAX_ORDER = 9
"""What the SIP convention's cards hold."""

_FLOOR_DEG = 1e-10
"""Of the scatter in rejections, 0.4 microarcsec: points that fit to rounding reject nothing."""

_TANGENT_ROUNDS = 3
"""Each leaves of the distance between the plane's point of contact and the reference pixel about its square, in radians."""


class _Frame:
    """Pixels scaled to [-1, 1] over the box's longer side, so that powers stay of one size."""

    def __init__(self, box: Box) -> None:
        self.x = 0.5 * (box.x_min + box.x_max - 1)
        self.y = 0.5 * (box.y_min + box.y_max - 1)
        self.half = 0.5 * max(box.shape)
        self.height, self.width = (0.5 * length / self.half for length in box.shape)

    def grid(self, n: int, *, reach: float = 1.0) -> tuple[FloatArray, FloatArray]:
        """Return scaled points over the box, its rim among them; `reach` times as far out."""
        axis = reach * np.linspace(-1.0, 1.0, n)
        u, v = np.meshgrid(self.width * axis, self.height * axis)
        return u.ravel(), v.ravel()

    def scale(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        return (x - self.x) / self.half, (y - self.y) / self.half


def _powers(order: int) -> list[tuple[int, int]]:
    """Return exponents of u and v, by total degree: 1; u, v; u^2, u v, v^2; ..."""
    return [(degree - j, j) for degree in range(order + 1) for j in range(degree + 1)]


def _design(u: FloatArray, v: FloatArray, order: int) -> FloatArray:
    return np.stack([u**i * v**j for i, j in _powers(order)], axis=1)


def _solve(design: FloatArray, values: FloatArray) -> FloatArray:
    coefficients, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    if rank < design.shape[1]:
        msg = f"{len(design)} points on a line hold no world coordinates"
        raise ValueError(msg)
    return coefficients


def _within(misfit: FloatArray, used: BoolArray, n_sigma: float) -> BoolArray:
    """Say which points are within the limit of both axes."""
    sigma = 1.4826 * np.median(np.abs(misfit[used] - np.median(misfit[used], axis=0)), axis=0)
    return np.asarray((np.abs(misfit) <= n_sigma * np.maximum(sigma, _FLOOR_DEG)).all(axis=1))


def _choose_order(frame: _Frame, u: FloatArray, v: FloatArray, plane: FloatArray, config: WcsFitConfig) -> int:
    """Return the degree from which a new point, anywhere in the box, is expected to be off least."""
    n = len(u)
    orders = [o for o in range(2, config.sip_order + 1) if n >= config.matches_per_term * len(_powers(o))]
    # Powers stand by degree: the leading columns of one decomposition are that of each lower order.
    q, r = np.linalg.qr(_design(u, v, orders[-1] if orders else 1))
    over_box = _design(*frame.grid(9), orders[-1] if orders else 1)
    best, best_terms, least, residual, done = 1, 0, np.inf, plane, 0
    for order in [1, *orders]:
        n_terms = len(_powers(order))
        if np.linalg.cond(r[:n_terms, :n_terms]) > _MAX_CONDITION:
            break
        residual = residual - q[:, done:n_terms] @ (q[:, done:n_terms].T @ residual)
        done = n_terms
        # Variance of the fit over the box, in that of one point.
        spread = np.linalg.solve(r[:n_terms, :n_terms].T, over_box[:, :n_terms].T)
        fit_variance = float((spread**2).sum(axis=0).mean())
        error = float((residual**2).sum()) / max(1, n - n_terms) * (1.0 + fit_variance)
        # Without any truth in them, new terms change the scatter's square by sqrt(their number) / n, one sigma.
        if error < least * (1.0 - _GAIN_SIGMAS * np.sqrt(n_terms - best_terms) / n):
            best, best_terms, least = order, n_terms, error
    return best


_MAX_CONDITION = 1e8
"""Of the scaled powers: beyond, the points are on a curve of this degree."""

_GAIN_SIGMAS = 3.0
"""A higher order must bring more than chance does."""


def _find_tangent_point(u: FloatArray, v: FloatArray, ra_deg: FloatArray, dec_deg: FloatArray) -> FloatArray:
    """Return the unit vector of the sky position of the frame's origin."""
    middle = unit_vectors(ra_deg, dec_deg).mean(axis=0)
    tangent: FloatArray = middle / np.linalg.norm(middle)
    for _ in range(_TANGENT_ROUNDS):
        tangent = _move(tangent, _solve(_design(u, v, 1), _project(tangent, ra_deg, dec_deg))[0])
    return tangent


def _move(tangent: FloatArray, offset_deg: FloatArray) -> FloatArray:
    """Return the unit vector of a point (xi, eta) of the plane that touches the sky at `tangent`."""
    east, north = east_and_north(*sky_positions(tangent))
    moved: FloatArray = tangent + np.radians(offset_deg[0]) * east + np.radians(offset_deg[1]) * north
    return moved / np.linalg.norm(moved)


def _project(tangent: FloatArray, ra_deg: FloatArray, dec_deg: FloatArray) -> FloatArray:
    """Return gnomonic (xi, eta) in degrees, shape ``(n, 2)``; NaN on the other half of the sky."""
    points = unit_vectors(ra_deg, dec_deg)
    depth = points @ tangent
    depth = np.where(depth > 0, depth, np.nan)
    return np.degrees(np.stack([(points @ axis) / depth for axis in east_and_north(*sky_positions(tangent))], axis=1))


def _make_wcs(frame: _Frame, tangent: FloatArray, coefficients: FloatArray, order: int) -> SkyWcs:
    """Return the TAN-SIP form of a polynomial from scaled pixels to the plane that touches the sky at their origin."""
    matrix = coefficients[1:3].T / frame.half
    suffix = "-SIP" if order > 1 else ""
    reference = np.array([frame.x + 1.0, frame.y + 1.0])
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---TAN{suffix}", f"DEC--TAN{suffix}"]
    wcs.wcs.crval = [float(angle) for angle in sky_positions(tangent)]
    wcs.wcs.crpix = reference
    wcs.wcs.cd = matrix
    wcs.wcs.radesys = "ICRS"
    if order > 1:
        # Scaled pixels of displacement for each power, then the displacement in pixels of powers of pixels.
        distortion = np.linalg.solve(matrix * frame.half, coefficients.T).T
        forward = np.zeros((2, order + 1, order + 1))
        for (i, j), term in zip(_powers(order)[3:], distortion[3:], strict=True):
            forward[:, i, j] = term * frame.half ** (1 - i - j)
        wcs.sip = Sip(*forward, *_invert(frame, distortion, order), reference)
    wcs.wcs.set()
    return SkyWcs(wcs)


def _invert(frame: _Frame, distortion: FloatArray, order: int) -> FloatArray:
    """Return the polynomials that take a distortion back, for programs that do not iterate; shape ``(2, n, n)``."""
    u, v = frame.grid(4 * (order + 2), reach=1.1)
    step = _design(u, v, order)[:, 3:] @ distortion[3:]
    order = min(order + 1, _MAX_ORDER)
    back = _solve(_design(u + step[:, 0], v + step[:, 1], order), -step)
    inverse = np.zeros((2, order + 1, order + 1))
    for (i, j), term in zip(_powers(order), back, strict=True):
        inverse[:, i, j] = term * frame.half ** (1 - i - j)
    return inverse
