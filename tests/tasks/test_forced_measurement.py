import numpy as np
import pytest
from made_skies import TRANSIENTS

from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.tasks.forced_measurement import ForcedMeasurementConfig, ForcedMeasurementTask


@pytest.fixture
def catalog():
    """Rows at the places of the pair's transients, and one off the image."""
    catalog = Catalog(DIA_SOURCE_COLUMNS, len(TRANSIENTS) + 1)
    catalog["x"] = [x for x, _, _ in TRANSIENTS] + [-300.0]
    catalog["y"] = [y for _, y, _ in TRANSIENTS] + [10.0]
    return catalog


def test_fluxes_are_those_of_the_images(pair, catalog):
    ForcedMeasurementTask().run(catalog, pair.science, pair.template)
    change = np.array([flux for _, _, flux in TRANSIENTS])
    for name, expected in (("science_flux", np.maximum(change, 0.0)), ("template_flux", np.maximum(-change, 0.0))):
        pulls = (catalog[name][:3] - expected) / catalog[f"{name}_err"][:3]
        assert np.abs(pulls).max() < 4.5
    # A Gaussian's effective area: 4 pi sigma^2.
    for name, fwhm in (("forced_psf_flux_area", 4.4), ("forced_template_psf_flux_area", 3.6)):
        np.testing.assert_allclose(catalog[name][:3], 4.0 * np.pi * (fwhm / 2.3548) ** 2, rtol=1e-3)


def test_what_cannot_be_measured_is_flagged(pair, catalog):
    ForcedMeasurementTask().run(catalog, pair.science, None)
    assert catalog["forced_template_psf_flux_flag"].all()
    assert np.isnan(catalog["template_flux"]).all()
    assert catalog["forced_psf_flux_flag"].tolist() == [False, False, False, True]
    assert catalog["forced_psf_flux_flag_no_good_pixels"].tolist() == [False, False, False, True]


def test_excluded_planes_are_the_configurations(pair, catalog):
    science = pair.science.copy()
    x, y, _ = TRANSIENTS[0]
    science.mask[round(y) - 20 : round(y) + 21, round(x) - 20 : round(x) + 21] = plane_bits("SUSPECT")
    config = ForcedMeasurementConfig()
    config.excludedPlanes = ["SUSPECT"]
    ForcedMeasurementTask(config).run(catalog, science, pair.template)
    assert catalog["forced_psf_flux_flag_no_good_pixels"].tolist() == [True, False, False, True]
