"""The point spread functions of the benchmark: seeing, optics and pixels in Fourier space.

Nothing here is shared with `alertprod.psf` or the basis of a matching kernel: a star is the product of analytic transfer
functions (two Moffats, the spot of an aberrated telescope by ray tracing, a drift, the square pixel), sampled without
error at any position between pixels: frequencies beyond Nyquist are folded back, as a detector does.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alertprod.psf.model import PointSpreadFunction

MARGIN = 4
"""Stamps are at least this many times the FWHM wide on each side; fainter light than that wraps round their edge."""

_RINGS, _SPOKES = 4, 12
"""Rays over the pupil: enough for spots that are far smaller than the seeing disc."""

_OBSCURATION = 0.35
"""Inner radius of the pupil over its outer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optics:
    """Seeing and aberrations of one image; lengths in pixels of that image."""

    fwhm: float = 4.2
    """Of the seeing, before aberrations and pixels, in the middle of the field."""
    wing_fraction: float = 0.08
    """Share of the light in the wider of the two Moffats, of beta 2.5; the other has beta 3.5."""
    e1: float = 0.02
    e2: float = -0.015
    """Ellipticity of the seeing: axis ratio 1 - 2 |e|, as of wind and guiding."""
    variation: float = 0.08
    """Relative range of the FWHM over the field, partly linear, partly curved."""
    defocus: float = 0.4
    astigmatism: float = 0.25
    coma: float = 0.4
    trefoil: float = 0.2
    """Ray displacements at the rim of the pupil; coma and astigmatism are those at an edge's middle."""
    drift_x: float = 0.0
    drift_y: float = 0.0
    """How far stars moved during the exposure: a tracking error."""

    def compute_fwhm(self, u, v):
        """Return the FWHM at field positions from -1 to 1 in both axes."""
        return self.fwhm * (1.0 + self.variation / 1.13 * (0.3 * u + 0.2 * v + 0.25 * (u * u + v * v) - 0.15))

    def compute_transfer(self, fx, fy, *, u: float, v: float):
        """Return the transfer function at frequencies in cycles per pixel, shape as ``fx`` (row) and ``fy`` (column).

        Parameters
        ----------
        fx, fy
            Frequencies, broadcast against one another.
        u, v
            Place in the field, -1 to 1 from edge to edge.
        """
        fx, fy = np.broadcast_arrays(fx, fy)
        seeing = self._compute_seeing(fx, fy, u, v)
        x, y = self._trace_rays(u, v)
        spot = np.zeros(fx.shape, dtype=complex)
        for dx, dy in zip(x, y, strict=True):
            spot += np.exp(-2j * np.pi * (fx * dx + fy * dy))
        pixel = np.sinc(fx) * np.sinc(fy)
        return seeing * (spot / len(x)) * pixel * np.sinc(fx * self.drift_x + fy * self.drift_y)

    def compute_separable_transfer(self, fx, fy, *, u: float, v: float):
        """Return `compute_transfer` on a grid of frequencies of x (columns) and y (rows), faster."""
        seeing = self._compute_seeing(fx[None, :], fy[:, None], u, v)
        x, y = self._trace_rays(u, v)
        spot = np.exp(-2j * np.pi * np.outer(fy, y)) @ np.exp(-2j * np.pi * np.outer(x, fx))
        seeing *= np.sinc(fx)[None, :]
        seeing *= np.sinc(fy)[:, None]
        if self.drift_x or self.drift_y:
            seeing *= np.sinc(fx[None, :] * self.drift_x + fy[:, None] * self.drift_y)
        return spot * (seeing / len(x))

    def _compute_seeing(self, fx, fy, u, v):
        # An elliptical profile is a round one in sheared coordinates of unit area.
        e = np.hypot(self.e1, self.e2)
        stretch = np.eye(2) + np.array([[self.e1, self.e2], [self.e2, -self.e1]])
        stretch /= np.sqrt(1.0 - e * e)
        gx = stretch[0, 0] * fx + stretch[1, 0] * fy
        gy = stretch[0, 1] * fx + stretch[1, 1] * fy
        radius = np.sqrt(gx * gx + gy * gy)
        fwhm = float(self.compute_fwhm(u, v))
        # The Bessel functions of a Moffat's transform are elementary for these two exponents.
        z = 2.0 * np.pi * radius * (fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / 3.5) - 1.0)))
        core = np.exp(-z) * (1.0 + z + z * z / 3.0)
        z = 2.0 * np.pi * radius * (fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / 2.5) - 1.0)))
        return (1.0 - self.wing_fraction) * core + self.wing_fraction * np.exp(-z) * (1.0 + z)

    def _trace_rays(self, u, v):
        rho, theta = _pupil()
        c1, s1, c2, s2 = np.cos(theta), np.sin(theta), np.cos(2 * theta), np.sin(2 * theta)
        x = self.defocus * rho * c1
        y = self.defocus * rho * s1
        field = np.hypot(u, v)
        phi = np.arctan2(v, u)
        # Astigmatism grows with the square of the distance from the axis, coma with the distance itself.
        x = x + self.astigmatism * field**2 * rho * np.cos(theta - 2 * phi)
        y = y - self.astigmatism * field**2 * rho * np.sin(theta - 2 * phi)
        # A constant coma is that of a tilted mirror.
        for amount, angle in ((0.5 * self.coma, 0.6), (self.coma * field, phi)):
            along, across = amount * rho**2 * (2 + c2) / 3, amount * rho**2 * s2 / 3
            x = x + along * np.cos(angle) - across * np.sin(angle)
            y = y + along * np.sin(angle) + across * np.cos(angle)
        x = x + self.trefoil * rho**2 * c2
        y = y - self.trefoil * rho**2 * s2
        return x - x.mean(), y - y.mean()


@lru_cache(maxsize=1)
def _pupil():
    edges = np.linspace(_OBSCURATION**2, 1.0, _RINGS + 1)
    rho = np.sqrt(0.5 * (edges[1:] + edges[:-1]))
    theta = (np.arange(_SPOKES) + 0.5) * 2 * np.pi / _SPOKES
    rho, theta = np.meshgrid(rho, theta)
    return rho.ravel(), theta.ravel()


def draw_stamp(optics: Optics, *, u: float, v: float, dx: float, dy: float, n: int, galaxy=None, trail=None):
    """Return the pixels of a source of unit flux, n x n, centred at pixel (n / 2 + dx, n / 2 + dy).

    Parameters
    ----------
    galaxy
        A 2 x 2 matrix that takes the exponential disc of unit scale length to the galaxy, pixels; None for a point.
    trail
        Vector (x, y) from the trail's start to its end, pixels; None for what does not move.
    """
    f = np.arange(-n, n) / n
    transfer = optics.compute_separable_transfer(f, f, u=u, v=v)
    if galaxy is not None:
        gx = galaxy[0, 0] * f[None, :] + galaxy[1, 0] * f[:, None]
        gy = galaxy[0, 1] * f[None, :] + galaxy[1, 1] * f[:, None]
        transfer *= (1.0 + 4.0 * np.pi**2 * (gx * gx + gy * gy)) ** -1.5
    if trail is not None:
        transfer *= np.sinc(trail[0] * f[None, :] + trail[1] * f[:, None])
    transfer *= np.exp(-2j * np.pi * f * (n // 2 + dx))[None, :]
    transfer *= np.exp(-2j * np.pi * f * (n // 2 + dy))[:, None]
    # Frequencies that the pixels cannot tell apart are one: k, k - n and k + n.
    folded = transfer.reshape(2, n, 2, n).sum(axis=(0, 2))
    return np.fft.ifft2(folded).real


class TruePsf(PointSpreadFunction):
    """The point spread function that the image was drawn with, as a calibrated exposure would carry it."""

    def __init__(self, optics: Optics, shape: tuple[int, int], size: int = 41) -> None:
        self.optics = optics
        self._shape = shape
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        return (self._shape[1] - 1) / 2, (self._shape[0] - 1) / 2

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float):
        image = self._draw(x, y, dx, dy)
        return image / image.sum()

    def compute_enclosed(self) -> float:
        """Return the share of a star's light within the PSF's image, in the middle of the field."""
        x, y = self.average_position
        return float(self._draw(x, y, 0.0, 0.0).sum())

    def _draw(self, x: float, y: float, dx: float, dy: float):
        u, v = to_field(x, y, self._shape)
        n = _stamp_side(1.5 * self._size)
        stamp = draw_stamp(self.optics, u=u, v=v, dx=dx, dy=dy, n=n)
        inner = slice(n // 2 - self._size // 2, n // 2 + self._size // 2 + 1)
        return stamp[inner, inner]


def to_field(x, y, shape: tuple[int, int]):
    """Return field positions, -1 to 1 between the image's edges, of pixel positions."""
    return 2.0 * (x + 0.5) / shape[1] - 1.0, 2.0 * (y + 0.5) / shape[0] - 1.0


def _stamp_side(least: float) -> int:
    side = 32
    while side < least:
        side *= 2
    return side


def choose_stamp_side(peak_fraction: float) -> int:
    """Return the side of the stamp beyond which the wings are below a share of the star's total light per pixel."""
    # The Moffat of beta 2.5 and a share of 8 %, far out, for a scale of 5 pixels: 0.08 * 1.5 / pi * alpha^3 / r^5.
    radius = (0.08 * 1.5 / np.pi * 5.0**3 / max(peak_fraction, 1e-14)) ** 0.2
    return min(_stamp_side(2.0 * max(radius, 16.0)), 1024)
