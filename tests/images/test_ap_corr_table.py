"""Aperture corrections in FITS files come back as they were, and what is no such table is left alone or named."""

import numpy as np
import pytest
from astropy.io import fits

from alertprod.errors import CorruptImage
from alertprod.geometry.box import Box
from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.images.ap_corr_table import ap_corr_from_hdus, ap_corr_to_hdu
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure, read_facts, save_exposure
from alertprod.images.masked_image import MaskedImage

BOX = Box(x_min=-3, y_min=2, x_max=97, y_max=52)
CORRECTIONS = {
    "psf_flux": ApertureCorrection(
        ChebyshevField(BOX, np.array([[1.05, 0.01, -0.002], [0.003, 0.1 / 3.0, 0.0]])),
        ChebyshevField(Box.from_shape((10, 20)), np.array([[1e-3]])),
    ),
    "gaussian_flux": ApertureCorrection(ChebyshevField(BOX, np.array([[0.98], [0.01]]))),
}


def assert_equal(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        for one, other in ((found[name].factor, wanted[name].factor), (found[name].error, wanted[name].error)):
            assert (one is None) == (other is None)
            if other is not None:
                assert one.box == other.box
                np.testing.assert_array_equal(one.coefficients, other.coefficients)


def make_exposure(ap_corr_map):
    planes = MaskedImage(np.ones((6, 8), np.float32), np.zeros((6, 8), np.int32), np.ones((6, 8), np.float32))
    return Exposure(masked_image=planes, ap_corr_map=ap_corr_map)


@pytest.mark.parametrize("ap_corr_map", [CORRECTIONS, {}, None])
@pytest.mark.parametrize("compress", [False, True])
def test_an_exposures_corrections_come_back_to_the_last_bit(tmp_path, ap_corr_map, compress):
    save_exposure(make_exposure(ap_corr_map), tmp_path / "a.fits", compress=compress)
    for found in (load_exposure(tmp_path / "a.fits"), read_facts((tmp_path / "a.fits").read_bytes())):
        if ap_corr_map is None:
            assert found.ap_corr_map is None
        else:
            assert_equal(found.ap_corr_map, ap_corr_map)


def test_another_programs_table_of_that_name_is_not_read():
    table = fits.BinTableHDU.from_columns([fits.Column("RADIUS", "D", array=[1.0])], name="APCORR")
    assert ap_corr_from_hdus([table]) is None


def break_table(how):
    hdu = ap_corr_to_hdu(CORRECTIONS)
    if how == "version":
        hdu.header["APCVERS"] = 99
    elif how == "quantity":
        hdu.data["quantity"][0] = "shape"
    elif how == "number":
        hdu.data["n_x"][0] = 5
    elif how == "nan":
        hdu.data["coefficients"][0][:] = np.nan
    elif how == "box":
        hdu.data["x_max"][0] = -90
    elif how == "orphan":
        hdu.data["name"][0] = "ap_flux"
    return hdu


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("version", "APCVERS is 99; 1 is known"),
        ("quantity", "6 coefficients for 2 x 3 as 'shape'"),
        ("number", "6 coefficients for 2 x 5 as 'factor'"),
        ("nan", "a table of finite numbers is needed"),
        ("box", "needs a box with pixels"),
        ("orphan", "psf_flux: an error without a factor"),
    ],
)
def test_a_table_that_cannot_be_right_is_a_corrupt_image(tmp_path, how, words):
    save_exposure(make_exposure(None), tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits") as hdul:
        hdul.append(break_table(how))
        hdul[0].header["NEXTEND"] = len(hdul) - 1
        hdul.writeto(tmp_path / "b.fits")
    with pytest.raises(CorruptImage, match=words):
        load_exposure(tmp_path / "b.fits")
