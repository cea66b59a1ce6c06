import pickle
from dataclasses import replace

import numpy as np
import pytest

from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.images.exposure import ExposureInfo


def test_the_middle_is_between_open_and_close():
    assert ExposureInfo(shutter_open_mjd_tai=10.0, shutter_close_mjd_tai=11.0).midpoint_mjd_tai == 10.5
    half = ExposureInfo(shutter_open_mjd_tai=10.0, exposure_time_s=86400.0)
    assert half.midpoint_mjd_tai == pytest.approx(10.5)
    assert ExposureInfo(shutter_open_mjd_tai=10.0).midpoint_mjd_tai is None
    assert ExposureInfo(exposure_time_s=30.0).midpoint_mjd_tai is None


def test_a_copy_has_planes_and_info_of_its_own(exposure):
    copy = exposure.copy()
    copy.image[0, 0], copy.info.band = -1.0, "y"
    assert exposure.image[0, 0] != -1.0
    assert exposure.info.band == "r"
    assert copy.wcs is exposure.wcs


def test_aperture_corrections_go_with_the_copy_and_between_processes(exposure):
    field = ChebyshevField(exposure.box, np.array([[1.02, 0.01]]))
    corrected = replace(exposure, ap_corr_map={"psf_flux": ApertureCorrection(field)})
    assert exposure.ap_corr_map is None
    for other in (corrected.copy(), pickle.loads(pickle.dumps(corrected))):
        assert other.ap_corr_map["psf_flux"].factor.evaluate(x=0.0, y=0.0) == field.evaluate(x=0.0, y=0.0)


def test_exposures_travel_between_processes(exposure):
    loaded = pickle.loads(pickle.dumps(exposure))
    assert loaded.info == exposure.info
    assert loaded.wcs.pixel_to_sky(x=3.0, y=4.0) == exposure.wcs.pixel_to_sky(x=3.0, y=4.0)
    assert loaded.box == exposure.box
