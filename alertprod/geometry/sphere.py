"""Points and polygons on the sphere; no singularity at the poles or at RA 0, because all is unit vectors."""

import numpy as np

from alertprod._typing import FloatArray

ARCSEC_PER_DEG = 3600.0


def unit_vectors(ra_deg: FloatArray | float, dec_deg: FloatArray | float) -> FloatArray:
    """Return unit vectors, shape ``(..., 3)``, of ICRS positions in degrees."""
    ra, dec = np.radians(np.asarray(ra_deg, dtype=float)), np.radians(np.asarray(dec_deg, dtype=float))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def sky_positions(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ICRS (ra, dec) in degrees, RA in [0, 360), of vectors of any positive length, shape ``(..., 3)``."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def separation_arcsec(
    ra1_deg: FloatArray | float, dec1_deg: FloatArray | float, ra2_deg: FloatArray | float, dec2_deg: FloatArray | float
) -> FloatArray:
    """Return angular separations in arcsec; accurate from zero to 180 degrees (chord and its complement)."""
    a, b = unit_vectors(ra1_deg, dec1_deg), unit_vectors(ra2_deg, dec2_deg)
    chord = np.linalg.norm(a - b, axis=-1)
    complement = np.linalg.norm(a + b, axis=-1)
    return np.degrees(2.0 * np.arctan2(chord, complement)) * ARCSEC_PER_DEG
