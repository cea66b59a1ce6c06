import numpy as np
import pytest

from alertprod.association.columns import DIA_OBJECT_COLUMNS
from alertprod.association.forced import (
    ForcedConfig,
    ForcedFluxes,
    PsfPhotometer,
    is_followed,
    is_good,
    measure_forced_sources,
)
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf


@pytest.fixture
def objects():
    objects = Catalog(DIA_OBJECT_COLUMNS, 3)
    objects["dia_object_id"] = [30, 10, 20]
    objects["ra_deg"], objects["dec_deg"] = np.array([10.0, 20.0, 1000.0]) / 3600, np.array([5.0, -5.0, 0.0]) / 3600
    return objects


def test_rows_are_ordered_by_object_and_lie_on_the_image(objects, facts):
    def measure(*, x, y):
        return ForcedFluxes(x, np.ones(len(x)), y, np.ones(len(x)))

    forced = measure_forced_sources(objects, facts, measure, iter((7, 8, 9)).__next__)
    assert forced["dia_object_id"].tolist() == [10, 30]
    assert forced["dia_forced_source_id"].tolist() == [7, 8]
    # East is left: 20 arcsec are 40 pixels to the left of the middle.
    assert forced["psf_flux"].tolist() == pytest.approx([160.0, 180.0], abs=1e-3)
    assert forced["science_flux"].tolist() == pytest.approx([190.0, 210.0], abs=1e-3)
    assert set(forced["visit"]) == {7}
    assert forced["midpoint_mjd_tai"][0] == facts.midpoint_mjd_tai


def test_object_without_a_usable_pixel_has_no_row(objects, facts):
    def measure(*, x, y):
        nothing = np.full(len(x), np.nan)
        return ForcedFluxes(nothing, nothing, np.where(x > 170, 1.0, np.nan), nothing)

    forced = measure_forced_sources(objects, facts, measure, iter((7, 8)).__next__)
    assert forced["dia_object_id"].tolist() == [30]
    assert np.isnan(forced["psf_flux"][0])


@pytest.mark.parametrize(
    ("column", "value", "counts"),
    [
        ("reliability", 0.4, False),
        ("reliability", 0.6, True),
        ("reliability", np.nan, True),
        ("trail_length_arcsec", 2.0, False),
        ("trail_length_arcsec", 1.0, True),
        ("glint_trail", True, False),
        ("is_dipole", True, False),
    ],
)
def test_artefacts_and_movers_are_no_good_sources(make_sources, column, value, counts):
    sources = make_sources([0, 0], [0, 0])
    assert is_good(sources, ForcedConfig()).tolist() == [True, True]
    sources[column][0] = value
    assert is_good(sources, ForcedConfig()).tolist() == [counts, True]


def test_objects_are_followed_as_long_as_two_good_sources_are_within_the_history(objects):
    objects["repeated_mjd_tai"] = [61000.0, np.nan, 60900.0]
    assert is_followed(objects, since_mjd_tai=60950.0).tolist() == [True, False, False]
    assert is_followed(objects, since_mjd_tai=60900.0).tolist() == [True, False, True]


def test_photometer_measures_both_images_in_njy():
    psf = GaussianPsf(fwhm=3.0, size=21)
    stamp, box = psf.compute_stellar_image(x=30.25, y=25.5)

    def make(flux, njy_per_count):
        image = np.zeros((60, 60), dtype=np.float32)
        image[box.slices] = flux * stamp
        planes = MaskedImage(image, np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32))
        return Exposure(masked_image=planes, psf=psf, photo_calib=PhotoCalib(njy_per_count))

    measure = PsfPhotometer(difference=make(-50.0, 2.0), science=make(400.0, 3.0))
    fluxes = measure(x=np.array([30.25]), y=np.array([25.5]))
    assert fluxes.psf_flux[0] == pytest.approx(-100.0, rel=1e-5)
    assert fluxes.science_flux[0] == pytest.approx(1200.0, rel=1e-5)
    # Unweighted fit, unit variance: 1 / sqrt(sum of the squared PSF).
    expected = 1 / np.sqrt((stamp**2).sum())
    assert fluxes.psf_flux_err[0] == pytest.approx(2 * expected, rel=1e-5)
    assert fluxes.science_flux_err[0] == pytest.approx(3 * expected, rel=1e-5)
