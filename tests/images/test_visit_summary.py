"""A visit's calibrations come back detector by detector, from one file."""

import numpy as np
import pytest
from astropy.io import fits

from alertprod.errors import CorruptImage, ImageNotYetAvailable
from alertprod.geometry.box import Box
from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import save_exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.images.visit_summary import (
    DetectorCalibration,
    VisitSummary,
    is_visit_summary,
    load_visit_summary,
    save_visit_summary,
)
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.fits_cards import compute_polynomial_psf

FIELD = ChebyshevField(Box.from_shape((50, 60)), np.array([[1.04, 0.01]]))
SUMMARY = VisitSummary(
    {
        7: DetectorCalibration(
            psf=MoffatPsf(fwhm=4.2, beta=2.9, ellipticity=0.1, average_position=(29.5, 24.5)),
            ap_corr_map={"psf_flux": ApertureCorrection(FIELD)},
        ),
        2: DetectorCalibration(psf=compute_polynomial_psf(GaussianPsf(fwhm=3.0, average_position=(29.5, 24.5)))),
        0: DetectorCalibration(ap_corr_map={}),
        4: DetectorCalibration(),
    }
)


def test_calibrations_come_back_detector_by_detector(tmp_path):
    save_visit_summary(SUMMARY, tmp_path / "a.fits")
    assert is_visit_summary(tmp_path / "a.fits")
    found = load_visit_summary(tmp_path / "a.fits")
    assert list(found) == [0, 2, 4, 7]
    assert found[0].psf is found[4].psf is found[4].ap_corr_map is found[2].ap_corr_map is None
    assert found[0].ap_corr_map == {}
    np.testing.assert_array_equal(found[7].ap_corr_map["psf_flux"].factor.coefficients, FIELD.coefficients)
    for detector in (2, 7):
        psf, wanted = found[detector].psf, SUMMARY[detector].psf
        assert psf.average_position == pytest.approx(wanted.average_position)
        np.testing.assert_allclose(
            psf.compute_kernel_image(x=29.5, y=24.5), wanted.compute_kernel_image(x=29.5, y=24.5), atol=1e-6
        )


def test_a_visit_without_detectors_comes_back(tmp_path):
    save_visit_summary(VisitSummary({}), tmp_path / "a.fits")
    assert len(load_visit_summary((tmp_path / "a.fits").read_bytes())) == 0


def test_an_exposure_is_no_summary(tmp_path):
    planes = MaskedImage(np.ones((6, 8), np.float32), np.zeros((6, 8), np.int32), np.ones((6, 8), np.float32))
    save_exposure(Exposure(masked_image=planes), tmp_path / "a.fits")
    assert not is_visit_summary(tmp_path / "a.fits")
    with pytest.raises(CorruptImage, match="APKIND is not VISIT_SUMMARY"):
        load_visit_summary(tmp_path / "a.fits")


def test_what_is_wrong_is_named_with_its_detector(tmp_path):
    save_visit_summary(SUMMARY, tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits") as hdul:
        hdul["DETECTOR_7"].header["PSFFWHM"] = "wide"
        hdul.writeto(tmp_path / "b.fits")
    with pytest.raises(CorruptImage, match=r"b\.fits\[DETECTOR_7\]: card PSFFWHM is 'wide'"):
        load_visit_summary(tmp_path / "b.fits")
    (tmp_path / "c.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:-2880])
    with pytest.raises(CorruptImage):
        load_visit_summary(tmp_path / "c.fits")
    with fits.open(tmp_path / "a.fits") as hdul:
        del hdul[-1]
        hdul.writeto(tmp_path / "e.fits")
    with pytest.raises(CorruptImage, match="6 extensions; the header declares 7"):
        load_visit_summary(tmp_path / "e.fits")
    with pytest.raises(ImageNotYetAvailable):
        load_visit_summary(tmp_path / "d.fits")
