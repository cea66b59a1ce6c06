import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.analytic import MoffatPsf

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real images, {SHARED_DATA}, is not there")
    return SHARED_DATA


@pytest.fixture
def exposure() -> Exposure:
    """64 x 48 pixels with every kind of fact, a NaN, and three mask planes."""
    rng = np.random.default_rng(20260301)
    shape = (48, 64)
    image = rng.normal(10.0, 2.0, size=shape).astype(np.float32)
    mask = np.zeros(shape, dtype=np.int32)
    mask[3, 4] = plane_bits("SAT", "DETECTED")
    mask[10:12, 20] = plane_bits("STREAK")
    mask[40, 60] = plane_bits("NO_DATA")
    image[40, 60] = np.nan
    variance = rng.uniform(3.0, 5.0, size=shape).astype(np.float32)
    return Exposure(
        masked_image=MaskedImage(image, mask, variance),
        wcs=SkyWcs.from_tangent(ra_deg=359.999, dec_deg=-30.0, x=31.5, y=23.5, scale_arcsec=0.3, rotation_deg=20.0),
        psf=MoffatPsf(fwhm=4.2, beta=3.2, ellipticity=0.1, position_angle_deg=30.0, size=25),
        photo_calib=PhotoCalib(3.25, is_nominal=True),
        info=ExposureInfo(
            instrument="TestCam",
            visit=2026030100123,
            detector=7,
            band="r",
            physical_filter="r_57",
            shutter_open_mjd_tai=61100.123456789,
            shutter_close_mjd_tai=61100.123804011,
            exposure_time_s=30.0,
            ra_deg=359.9,
            dec_deg=-30.05,
            rotation_deg=12.5,
            gain=1.7,
            read_noise=8.5,
            saturation=60000.0,
            observation_reason="science",
            target_name="COSMOS",
        ),
    )


@pytest.fixture
def write_fits() -> Callable[..., bytes]:
    """Return a function that makes a file's bytes from HDUs."""

    def write(*hdus: object) -> bytes:
        stream = io.BytesIO()
        fits.HDUList(list(hdus)).writeto(stream)
        return stream.getvalue()

    return write
