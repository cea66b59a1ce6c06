"""World coordinates of one pixel grid: TAN, TAN-SIP, TPV and whatever else astropy reads.

Pixel positions here are 0-based, the first pixel's centre at (0, 0); FITS cards are 1-based.
"""

import warnings

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning

from alertprod._typing import FloatArray
from alertprod.geometry.sphere import ARCSEC_PER_DEG, east_and_north, unit_vectors

_INVERSION_TOLERANCE_PIXELS = 1e-4
"""Far below any centroid error, far above the rounding of a SIP polynomial at 10^4 pixels."""


_MATRIX_ELEMENTS = ("1_1", "1_2", "2_1", "2_2")
_NOT_COORDINATES = (
    "DATE",
    "MJD",
    "TIME",
    "TREF",
    "OBSGEO",
    "JEPOCH",
    "BEPOCH",
    "XPOSURE",
    "TELAPSE",
    "TSTART",
    "TSTOP",
)
"""Beginnings of cards that astropy writes with a WCS, and that are facts of the exposure, not of its coordinates."""

_J2000_TOLERANCE_YEARS = 0.1


class SkyWcs:
    """A mapping between pixels and ICRS positions; immutable and picklable.

    Parameters
    ----------
    wcs
        A two-dimensional celestial astropy WCS.

    Raises
    ------
    ValueError
        Raised if `wcs` has no pair of celestial axes, or if these are not right ascension and declination of
        ICRS or FK5 J2000 (which agree to 0.03 arcsec and are not told apart).
    """

    def __init__(self, wcs: WCS) -> None:
        if not wcs.has_celestial:
            msg = f"no celestial axes: CTYPE is {list(wcs.wcs.ctype)}"
            raise ValueError(msg)
        self._wcs = wcs.celestial
        _require_equatorial(self._wcs)
        # Some write declination first.
        self._ra_axis = int(self._wcs.wcs.lng)
        self._has_distortion = self._wcs.sip is not None or self._wcs.has_distortion

    @classmethod
    def from_header(cls, header: fits.Header) -> "SkyWcs":
        """Build from FITS cards; `ValueError` where they describe no celestial plane.

        Notes
        -----
        FITS forbids CD and PC together. Where both are there the CD matrix counts: programs that know nothing of
        PC resample an image, mend CD, and leave PC as it was.
        """
        if all(f"CD{element}" in header and f"PC{element}" in header for element in _MATRIX_ELEMENTS):
            header = header.copy()
            for element in _MATRIX_ELEMENTS:
                del header[f"PC{element}"]
        with warnings.catch_warnings():
            # astropy mends dates and units it does not like and warns; none of that concerns us.
            warnings.simplefilter("ignore", FITSFixedWarning)
            return cls(WCS(header, fix=True))

    @classmethod
    def from_tangent(
        cls,
        *,
        ra_deg: float,
        dec_deg: float,
        x: float,
        y: float,
        scale_arcsec: float,
        rotation_deg: float = 0.0,
        east_left: bool = True,
    ) -> "SkyWcs":
        """Build a gnomonic plane that has (ra, dec) at pixel (x, y).

        Parameters
        ----------
        rotation_deg
            Position angle of +y, east of north.
        east_left
            The sky as seen: RA grows towards -x where `rotation_deg` is 0.
        """
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [ra_deg, dec_deg]
        wcs.wcs.crpix = [x + 1.0, y + 1.0]
        scale = scale_arcsec / ARCSEC_PER_DEG
        angle = np.radians(rotation_deg)
        parity = -1.0 if east_left else 1.0
        # Columns: the (east, north) step of +x and of +y; +y points to position angle `rotation_deg`.
        wcs.wcs.cd = scale * np.array(
            [[parity * np.cos(angle), np.sin(angle)], [-parity * np.sin(angle), np.cos(angle)]]
        )
        wcs.wcs.radesys = "ICRS"
        wcs.wcs.set()
        return cls(wcs)

    def pixel_to_sky(self, *, x: FloatArray | float, y: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Return ICRS (ra, dec) in degrees, shape as `x` and `y` broadcast."""
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        sky = self._wcs.all_pix2world(x.ravel(), y.ravel(), 0)
        ra, dec = sky[self._ra_axis], sky[1 - self._ra_axis]
        return ra.reshape(x.shape), dec.reshape(x.shape)

    def sky_to_pixel(self, *, ra_deg: FloatArray | float, dec_deg: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """Return (x, y) in pixels; NaN for points that the projection does not reach.

        Notes
        -----
        A distortion is inverted by iteration, which means nothing far outside the image: where the result does
        not lead back to the point it is NaN.
        """
        ra, dec = np.broadcast_arrays(np.asarray(ra_deg, dtype=float), np.asarray(dec_deg, dtype=float))
        sky = np.stack((ra.ravel(), dec.ravel()) if self._ra_axis == 0 else (dec.ravel(), ra.ravel()), axis=1)
        pixels = self._wcs.wcs_world2pix(sky, 0)
        if self._has_distortion:
            undistorted = pixels
            pixels = np.full_like(undistorted, np.nan)
            reached = np.isfinite(undistorted).all(axis=1)
            if reached.any():
                with np.errstate(all="ignore"):  # a diverging iteration overflows
                    found = self._wcs.all_world2pix(
                        sky[reached], 0, tolerance=_INVERSION_TOLERANCE_PIXELS, maxiter=50, quiet=True
                    )
                    back = self._wcs.wcs_world2pix(self._wcs.all_pix2world(found, 0), 0)
                    missed = np.abs(back - undistorted[reached]).max(axis=1)
                found[~(missed < 100 * _INVERSION_TOLERANCE_PIXELS)] = np.nan
                pixels[reached] = found
        return pixels[:, 0].reshape(ra.shape), pixels[:, 1].reshape(ra.shape)

    def compute_jacobian(self, *, x: FloatArray | float, y: FloatArray | float) -> FloatArray:
        """Return d(east, north)/d(x, y) in degrees per pixel, shape ``(..., 2, 2)``.

        East and north are the axes of the gnomonic plane that touches the sky at (x, y).
        """
        x, y = np.broadcast_arrays(np.asarray(x, dtype=float), np.asarray(y, dtype=float))
        east, north = east_and_north(*self.pixel_to_sky(x=x, y=y))
        columns = []
        for dx, dy in ((0.5, 0.0), (0.0, 0.5)):
            step = unit_vectors(*self.pixel_to_sky(x=x + dx, y=y + dy)) - unit_vectors(
                *self.pixel_to_sky(x=x - dx, y=y - dy)
            )
            columns.append(np.stack([(step * east).sum(-1), (step * north).sum(-1)], axis=-1))
        return np.degrees(np.stack(columns, axis=-1))

    def compute_pixel_area_arcsec2(self, *, x: FloatArray | float, y: FloatArray | float) -> FloatArray:
        """Return the solid angle of a pixel at (x, y)."""
        return np.abs(np.linalg.det(self.compute_jacobian(x=x, y=y))) * ARCSEC_PER_DEG**2

    def compute_pixel_scale_arcsec(self, *, x: float, y: float) -> float:
        """Return the square root of the pixel's solid angle at (x, y)."""
        return float(np.sqrt(self.compute_pixel_area_arcsec2(x=x, y=y)))

    def compute_corners(self, shape: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
        """Return (ra, dec) of the four outer pixel corners of an image of `shape`, counter-clockwise in pixels."""
        ny, nx = shape
        return self.pixel_to_sky(
            x=np.array([-0.5, nx - 0.5, nx - 0.5, -0.5]), y=np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
        )

    def compute_center(self, shape: tuple[int, int]) -> tuple[float, float]:
        """Return (ra, dec) of the middle of an image of `shape`."""
        ra, dec = self.pixel_to_sky(x=(shape[1] - 1) / 2, y=(shape[0] - 1) / 2)
        return float(ra) % 360.0, float(dec)

    def compute_radius_arcsec(self, shape: tuple[int, int]) -> float:
        """Return the radius of the cap about `compute_center` that holds all four corners."""
        center = unit_vectors(*self.compute_center(shape))
        corners = unit_vectors(*self.compute_corners(shape))
        chord = np.linalg.norm(corners - center, axis=-1).max()
        return float(np.degrees(2.0 * np.arcsin(chord / 2.0)) * ARCSEC_PER_DEG)

    def shifted(self, *, dx: float, dy: float) -> "SkyWcs":
        """Return the WCS of the same sky on a grid whose pixel (0, 0) is this grid's (-dx, -dy)."""
        wcs = self._wcs.deepcopy()
        wcs.wcs.crpix = wcs.wcs.crpix + np.array([dx, dy])
        if wcs.sip is not None:
            # SIP polynomials are centred on their own reference pixel, which moves along.
            sip = wcs.sip
            wcs.sip = type(sip)(sip.a, sip.b, sip.ap, sip.bp, np.asarray(sip.crpix) + np.array([dx, dy]))
        wcs.wcs.set()
        return SkyWcs(wcs)

    def to_header(self) -> fits.Header:
        """Return the FITS cards, distortion included; no times, which astropy would add."""
        header = self._wcs.to_header(relax=True)
        for card in [card for card in header if card.startswith(_NOT_COORDINATES)]:
            del header[card]
        return header


def _require_equatorial(wcs: WCS) -> None:
    types = {kind[:4].rstrip("-") for kind in wcs.wcs.ctype}
    if types != {"RA", "DEC"}:
        msg = f"CTYPE is {list(wcs.wcs.ctype)}; right ascension and declination are needed"
        raise ValueError(msg)
    frame, equinox = wcs.wcs.radesys.strip().upper(), float(wcs.wcs.equinox)
    is_j2000 = not np.isfinite(equinox) or abs(equinox - 2000.0) < _J2000_TOLERANCE_YEARS
    if frame not in ("", "ICRS", "FK5") or (frame != "ICRS" and not is_j2000):
        msg = f"coordinates are {frame or 'equatorial'}, equinox {equinox:g}; ICRS or FK5 J2000 is needed"
        raise ValueError(msg)
