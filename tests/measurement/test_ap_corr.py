import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.images.ap_corr import ApertureCorrection, ChebyshevField
from alertprod.measurement.ap_corr import apply_ap_corr
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog

BOX = Box(x_min=0, y_min=0, x_max=100, y_max=100)
TILTED = ApertureCorrection(ChebyshevField(BOX, np.array([[1.1, 0.05]])), ChebyshevField(BOX, np.array([[0.01]])))


@pytest.fixture
def catalog():
    """Three sources: two on the box, one off it."""
    catalog = Catalog(DIA_SOURCE_COLUMNS, 3)
    catalog["x"], catalog["y"] = [0.0, 99.0, 150.0], 50.0
    catalog["psf_flux"], catalog["psf_flux_err"] = [100.0, -200.0, 300.0], 10.0
    catalog["gaussian_flux"], catalog["gaussian_flux_err"] = 50.0, 5.0
    catalog["science_flux"], catalog["science_flux_err"] = 70.0, 7.0
    return catalog


def test_flux_and_error_take_the_factor_of_their_place(catalog):
    apply_ap_corr(catalog, {"psf_flux": TILTED})
    factor = 1.1 + 0.05 * np.array([-0.99, 0.99])
    np.testing.assert_allclose(catalog["psf_flux"][:2], [100.0, -200.0] * factor, rtol=1e-6)
    np.testing.assert_allclose(catalog["psf_flux_err"][:2], 10.0 * factor, rtol=1e-6)
    np.testing.assert_allclose(catalog["psf_flux_ap_corr"][:2], factor, rtol=1e-6)
    np.testing.assert_allclose(catalog["psf_flux_ap_corr_err"][:2], 0.01, rtol=1e-6)
    assert catalog["gaussian_flux"].tolist() == [50.0] * 3, "not in the map"
    assert np.isnan(catalog["gaussian_flux_ap_corr"]).all()


def test_failed_correction_leaves_the_flux_and_says_so(catalog):
    assert apply_ap_corr(catalog, {"psf_flux": TILTED}) == {"psf_flux": 1}
    assert catalog["psf_flux"][2] == 300.0
    assert np.isnan(catalog["psf_flux_ap_corr"][2])
    assert catalog["psf_flux_flag_ap_corr"].tolist() == [False, False, True]
    assert catalog["psf_flux_flag"].tolist() == [False, False, True]


def test_factor_that_is_not_positive_fails(catalog):
    negative = ApertureCorrection(ChebyshevField(BOX, np.array([[0.0, 1.0]])))
    assert apply_ap_corr(catalog, {"psf_flux": negative}, flag_failures=False) == {"psf_flux": 2}
    assert catalog["psf_flux"].tolist() == pytest.approx([100.0, -198.0, 300.0])
    assert not catalog["psf_flux_flag"].any()
    assert np.isnan(catalog["psf_flux_ap_corr_err"]).all(), "nobody measured it"


def test_fluxes_without_columns_of_their_own_for_the_factor_are_corrected_all_the_same(catalog):
    apply_ap_corr(catalog, {"science_flux": TILTED, "nonsense": TILTED})
    assert catalog["science_flux"][1] == pytest.approx(70.0 * 1.1495)


def test_ignored_fluxes_stay_and_proxies_lend_their_factor(catalog):
    done = apply_ap_corr(
        catalog, {"psf_flux": TILTED}, ignored=["psf_flux"], proxies={"gaussian_flux": "psf_flux", "ap_flux": "none"}
    )
    assert set(done) == {"gaussian_flux"}
    assert catalog["psf_flux"].tolist() == [100.0, -200.0, 300.0]
    assert catalog["gaussian_flux"][1] == pytest.approx(50.0 * 1.1495)
