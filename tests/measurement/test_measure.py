import numpy as np
import pytest

from alertprod.detection.detect import detect
from alertprod.detection.footprints import FootprintSet, build_footprints
from alertprod.errors import ConfigError
from alertprod.geometry.wcs import SkyWcs
from alertprod.ids import IdFactory
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS
from alertprod.measurement.dipole import DipoleConfig
from alertprod.measurement.measure import MeasurementConfig, measure_dia_sources
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import FWHM_PER_SIGMA

SCALE = 0.4
WCS = SkyWcs.from_tangent(ra_deg=150.0, dec_deg=-60.0, x=100.0, y=100.0, scale_arcsec=SCALE, rotation_deg=25.0)
INFO = ExposureInfo(
    visit=42, detector=3, band="r", shutter_open_mjd_tai=60000.0, shutter_close_mjd_tai=60000.001, exposure_time_s=86.0
)
SOURCES = [(40.2, 50.4, 300.0), (120.7, 60.1, -250.0), (60.5, 150.3, 1500.0), (160.1, 140.2, 150.0)]


def expose(image, psf, *, njy=1.0, wcs=WCS):
    return Exposure(masked_image=image, psf=psf, wcs=wcs, photo_calib=PhotoCalib(njy), info=INFO)


@pytest.fixture
def make_exposures(make_image, psf):
    """Return a function that makes (difference, science, template) of transients and a host under the first."""

    def make(sources=SOURCES, *, njy=1.0, shape=(200, 200), psf=psf):
        host = (*sources[0][:2], 400.0)
        science = make_image(shape, psf, [s for s in sources if s[2] > 0] + [host], seed=1)
        template = make_image(shape, psf, [(x, y, -f) for x, y, f in sources if f < 0] + [host], noise=0.3, seed=2)
        difference = MaskedImage(
            science.image - template.image, science.mask.copy(), science.variance + template.variance
        )
        return tuple(expose(image, psf, njy=njy) for image in (difference, science, template))

    return make


def measure(exposures, **kwargs):
    difference, science, template = exposures
    footprints = detect(difference.masked_image, difference.psf)
    kwargs.setdefault("id_factory", IdFactory(7, 44))
    return measure_dia_sources(footprints, difference, science, template, **kwargs)


def by_source(catalog, sources=SOURCES):
    """Return the row of each true source."""
    distance = np.hypot(
        catalog["x"][:, None] - [s[0] for s in sources], catalog["y"][:, None] - [s[1] for s in sources]
    )
    assert distance.min(axis=0).max() < 1.0
    return distance.argmin(axis=0)


def test_sources_are_recovered_with_all_their_numbers(make_exposures):
    result = measure(make_exposures())
    catalog = result.catalog
    assert catalog.n_rows == len(SOURCES)
    assert tuple(catalog) == tuple(column.name for column in DIA_SOURCE_COLUMNS)
    rows = by_source(catalog)
    flux = np.array([s[2] for s in SOURCES])
    assert np.abs((catalog["psf_flux"][rows] - flux) / catalog["psf_flux_err"][rows]).max() < 4.5
    assert np.abs((catalog["ap_flux"][rows] - flux) / catalog["ap_flux_err"][rows]).max() < 4.5
    np.testing.assert_array_equal(catalog["is_negative"][rows], flux < 0)
    expected_science = np.maximum(flux, 0.0) + np.array([400.0, 0.0, 0.0, 0.0])
    assert np.abs((catalog["science_flux"][rows] - expected_science) / catalog["science_flux_err"][rows]).max() < 4.5
    expected_template = np.maximum(-flux, 0.0) + np.array([400.0, 0.0, 0.0, 0.0])
    assert np.abs((catalog["template_flux"][rows] - expected_template) / catalog["template_flux_err"][rows]).max() < 4.5
    # Significance is that of the pixel under the peak: up to half a pixel off along each axis costs 4 %.
    np.testing.assert_allclose(catalog["snr"][rows], np.abs(flux) / catalog["psf_flux_err"][rows], rtol=0.04, atol=3.0)
    assert not any(catalog[name].any() for name in catalog if name.endswith("flag") or "pixel_flags" in name)
    assert not catalog["is_dipole"].any()
    assert (np.diff(catalog["snr"]) <= 0).all()
    # Degrees of freedom: the PSF's stamp less one.
    np.testing.assert_allclose(catalog["psf_chi2"], 31**2 - 1, rtol=5.0 * np.sqrt(2.0 / 31**2))
    np.testing.assert_allclose(catalog["psf_ln_l"], -0.5 * catalog["psf_chi2"])


def test_sky_positions_and_their_errors_follow_the_wcs(make_exposures):
    catalog = measure(make_exposures()).catalog
    ra, dec = WCS.pixel_to_sky(x=catalog["x"].astype(float), y=catalog["y"].astype(float))
    # x and y are single precision in the catalog, 1e-5 pixels here.
    np.testing.assert_allclose(catalog["ra_deg"], ra, atol=1e-8)
    np.testing.assert_allclose(catalog["dec_deg"], dec, atol=1e-8)
    # White noise and a round PSF: the same error along any direction, in true degrees.
    np.testing.assert_allclose(catalog["ra_err_deg"], catalog["x_err"] * SCALE / 3600.0, rtol=0.03)
    np.testing.assert_allclose(catalog["dec_err_deg"], catalog["x_err"] * SCALE / 3600.0, rtol=0.03)
    assert np.all(np.abs(catalog["ra_dec_cov_deg2"]) < 0.05 * catalog["ra_err_deg"] ** 2)


def test_moments_are_in_square_arcseconds(make_exposures):
    catalog = measure(make_exposures()).catalog
    np.testing.assert_allclose(catalog["ixx_psf"], (1.8 * SCALE) ** 2, rtol=2e-3)
    brightest = 0
    assert catalog["ixx"][brightest] == pytest.approx((1.8 * SCALE) ** 2, rel=0.1)
    assert catalog["extendedness"][brightest] < 0.1


def test_calibration_scales_every_flux(make_exposures):
    plain, scaled = measure(make_exposures()).catalog, measure(make_exposures(njy=25.0)).catalog
    for name in (
        "psf_flux",
        "ap_flux",
        "science_flux",
        "template_flux",
        "gaussian_flux",
        "peak_likelihood_flux",
        "naive_dipole_positive_flux",
        "naive_dipole_negative_flux",
    ):
        np.testing.assert_allclose(scaled[name], 25.0 * plain[name], rtol=1e-5)
        np.testing.assert_allclose(scaled[f"{name}_err"], 25.0 * plain[f"{name}_err"], rtol=1e-5)
    np.testing.assert_array_equal(scaled["psf_chi2"], plain["psf_chi2"])


def test_exposure_facts_are_in_every_row(make_exposures):
    catalog = measure(make_exposures()).catalog
    assert set(catalog["visit"]) == {42}
    assert set(catalog["detector"]) == {3}
    assert set(catalog["band"]) == {"r"}
    np.testing.assert_allclose(catalog["midpoint_mjd_tai"], 60000.0005)
    assert set(catalog["local_photo_calib"]) == {1.0}
    assert np.isnan(catalog["trail_flux"]).all()
    assert not catalog["trail_ndata"].any()


def test_other_fluxes_agree_with_the_point_source_flux(make_exposures):
    catalog = measure(make_exposures()).catalog
    flux, error = catalog["psf_flux"], catalog["psf_flux_err"]
    # The parabola loses up to half a per cent.
    assert np.abs(catalog["peak_likelihood_flux"] - flux).max() < 0.005 * np.abs(flux).max()
    # Free moments add noise of their own: sqrt(2) of the point source's error in all.
    assert np.abs((catalog["gaussian_flux"] - flux) / error).max() < 4.5
    np.testing.assert_allclose(catalog["psf_flux_area"], 4.0 * np.pi * 1.8**2, rtol=1e-3)
    np.testing.assert_allclose(catalog["forced_psf_flux_area"], catalog["psf_flux_area"], rtol=1e-6)
    # The Fisher matrix of a Gaussian: sqrt(8) I / snr.
    expected = np.sqrt(8.0) * catalog["ixx"] * catalog["gaussian_flux_err"] / np.abs(catalog["gaussian_flux"])
    np.testing.assert_allclose(catalog["ixx_err"], expected, rtol=1e-5)


def test_calibration_at_the_centroid_is_that_of_the_exposure(make_exposures):
    exposures = make_exposures()
    exposures[0].photo_calib = PhotoCalib(25.0, njy_per_count_err=0.5)
    catalog = measure(exposures).catalog
    assert set(catalog["local_photo_calib"]) == {25.0}
    assert set(catalog["local_photo_calib_err"]) == {0.5}
    cd = np.array([[catalog[f"local_wcs_cd_{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
    step = np.array([3.0, -2.0])
    for row in range(catalog.n_rows):
        x, y = float(catalog["x"][row]), float(catalog["y"][row])
        ra, dec = WCS.pixel_to_sky(x=np.array([x, x + step[0]]), y=np.array([y, y + step[1]]))
        offset = np.array([(ra[1] - ra[0]) * np.cos(np.radians(dec[0])), dec[1] - dec[0]])
        np.testing.assert_allclose(cd[:, :, row] @ step, offset, rtol=1e-4, atol=1e-9)


def test_trails_fill_their_columns(make_image, psf):
    # Towards +y, which points to position angle 25 degrees: 20 pixels of 0.4 arcsec.
    stars = [(60.3, 58.2 + t, 6000.0 / 41) for t in np.linspace(-9.75, 9.75, 41)]
    science = make_image((120, 120), psf, stars, seed=3)
    template = make_image((120, 120), psf, noise=0.25, seed=4)
    difference = MaskedImage(science.image - template.image, science.mask, science.variance + template.variance)
    exposures = tuple(expose(image, psf, njy=2.0) for image in (difference, science, template))
    catalog = measure(exposures).catalog
    assert catalog.n_rows == 1
    for name, true in (("flux", 12000.0), ("length", 20.0 * SCALE), ("angle", 25.0)):
        unit = {"flux": "", "length": "_arcsec", "angle": "_deg"}[name]
        value, error = catalog[f"trail_{name}{unit}"][0], catalog[f"trail_{name}_err{unit}"][0]
        assert abs(value - true) < 4.5 * error, name
        assert 0.0 < error < 0.1 * true, name
    ra, dec = WCS.pixel_to_sky(x=60.3, y=58.2)
    for axis, true, cos in (("ra", ra, np.cos(np.radians(dec))), ("dec", dec, 1.0)):
        offset = (catalog[f"trail_{axis}_deg"][0] - true) * cos
        assert abs(offset) < 4.5 * catalog[f"trail_{axis}_err_deg"][0]
    assert catalog["trail_ndata"][0] > 300
    assert catalog["trail_chi2"][0] == pytest.approx(catalog["trail_ndata"][0], rel=0.2)
    ends = sorted([catalog["trail_y0"][0], catalog["trail_y1"][0]])
    assert ends == pytest.approx([48.2, 68.2], abs=0.5)
    assert not catalog["trail_flag"][0]
    assert catalog["trail_flag_suspect_long_trail"][0]
    off = measure(exposures, config=MeasurementConfig(fit_trails=False)).catalog
    assert off["trail_ndata"][0] == 0


def test_sky_sources_keep_their_place_and_measure_nothing(make_exposures):
    difference, science, template = make_exposures()
    footprints = detect(difference.masked_image, difference.psf)
    places = [(30, 100), (100, 30), (170, 60), (100, 170), (30, 180)]
    v, u = np.mgrid[-8:9, -8:9]
    disk = np.flatnonzero((u * u + v * v <= 64).ravel())
    sky = build_footprints(
        shape=difference.shape,
        sigma=footprints.sigma,
        pixels=np.concatenate([((y + v) * 200 + x + u).ravel()[disk] for x, y in places]),
        owner=np.repeat(np.arange(5), len(disk)),
        peak_pixels=np.array([y * 200 + x for x, y in places]),
        peak_owner=np.arange(5),
        peak_significance=np.zeros(5),
        is_sky=True,
    )
    config = MeasurementConfig(dipole=DipoleConfig(fit_all_dia_sources=True))
    catalog = measure_dia_sources(
        FootprintSet.concatenate([footprints, sky]),
        difference,
        science,
        template,
        id_factory=IdFactory(7, 44),
        config=config,
    ).catalog
    rows = np.flatnonzero(catalog["sky_source"])
    assert len(rows) == 5
    assert catalog.n_rows == len(SOURCES) + 5
    assert {(float(x), float(y)) for x, y in zip(catalog["x"][rows], catalog["y"][rows], strict=True)} == {
        (float(x), float(y)) for x, y in places
    }
    assert np.abs(catalog["psf_flux"][rows] / catalog["psf_flux_err"][rows]).max() < 4.0
    for flag in ("centroid_flag", "is_negative", "is_dipole", "dipole_fit_attempted"):
        assert not catalog[flag][rows].any(), flag
    assert not catalog["trail_ndata"][rows].any()
    assert np.isnan(catalog["x_err"][rows]).all()


def test_flags_of_the_template_and_of_all_nine_pixels_are_columns(make_exposures):
    exposures = make_exposures()
    x, y = 60, 150
    exposures[0].mask[y - 1 : y + 2, x - 1 : x + 2] |= plane_bits("HIGH_VARIANCE")
    exposures[0].mask[y + 3, x] |= plane_bits("SAT_TEMPLATE", "SPIKE")
    catalog = measure(exposures).catalog
    row = by_source(catalog)[2]
    for end in ("", "_center", "_center_all"):
        assert catalog[f"pixel_flags_high_variance{end}"][row]
    assert catalog["pixel_flags_sat_template"][row]
    assert catalog["pixel_flags_spike"][row]
    assert not catalog["pixel_flags_sat_template_center"][row]
    assert catalog["pixel_flags_high_variance"].sum() == 1


def test_boxes_hold_their_footprints(make_exposures):
    result = measure(make_exposures())
    for i in range(result.catalog.n_rows):
        half = result.catalog["bbox_size"][i] / 2.0
        box = result.footprints.box(i)
        x, y = result.catalog["x"][i], result.catalog["y"][i]
        assert x - half <= box.x_min - 0.5 + 1e-4
        assert y + half >= box.y_max - 0.5 - 1e-4
        assert 2 * half <= 2 * max(box.shape)


def test_dipoles_fill_their_columns(make_image):
    psf = GaussianPsf(fwhm=2.4 * FWHM_PER_SIGMA, size=41)
    science = make_image((120, 120), psf, [(60.3, 58.2, 1500.0)], seed=3)
    template = make_image((120, 120), psf, [(60.3, 59.2, 1500.0)], noise=0.25, seed=4)
    difference = MaskedImage(science.image - template.image, science.mask, science.variance + template.variance)
    catalog = measure(tuple(expose(image, psf) for image in (difference, science, template))).catalog
    assert catalog.n_rows == 1
    assert catalog["is_dipole"][0]
    assert catalog["dipole_fit_attempted"][0]
    assert catalog["dipole_length_arcsec"][0] == pytest.approx(SCALE, rel=0.1)
    # The positive lobe lies one pixel below the negative: -y, 180 degrees from +y, which points to 25 degrees.
    assert catalog["dipole_angle_deg"][0] == pytest.approx(205.0, abs=6.0)
    assert catalog["dipole_mean_flux"][0] == pytest.approx(1500.0, rel=0.02)
    assert abs(catalog["dipole_flux_diff"][0]) < 5.0 * catalog["dipole_flux_diff_err"][0]
    assert catalog["dipole_chi2"][0] == pytest.approx(1.0, abs=0.3)
    assert catalog["dipole_positive_flux"][0] == -catalog["dipole_negative_flux"][0] == catalog["dipole_mean_flux"][0]
    assert (catalog["dipole_positive_x"][0], catalog["dipole_positive_y"][0]) == pytest.approx((60.3, 58.2), abs=0.1)
    assert (catalog["dipole_negative_x"][0], catalog["dipole_negative_y"][0]) == pytest.approx((60.3, 59.2), abs=0.1)
    assert catalog["dipole_separation"][0] == pytest.approx(1.0, rel=0.1)
    assert catalog["dipole_orientation_deg"][0] == pytest.approx(-90.0, abs=6.0)
    assert catalog["dipole_snr"][0] > 7.07
    assert catalog["naive_dipole_positive_flux"][0] > 0 > catalog["naive_dipole_negative_flux"][0]
    assert not catalog["dipole_fit_flag"][0]
    assert catalog["trail_ndata"][0] == 0, "a dipole is no trail"
    assert (catalog["x"][0], catalog["y"][0]) == pytest.approx((60.3, 58.7), abs=0.05)
    assert catalog["ap_flux"][0] == pytest.approx(0.0, abs=0.05 * 1500.0)
    assert not catalog["is_negative"][0]


def test_ids_follow_the_order_and_do_not_depend_on_what_is_removed(make_exposures):
    exposures = make_exposures()
    everything = measure(exposures).catalog
    upper = 7 << 19
    assert everything["dia_source_id"].tolist() == [upper + 1, upper + 2, upper + 3, upper + 4]
    x, y = round(float(everything["x"][1])), round(float(everything["y"][1]))
    exposures[0].mask[y, x + 1] = plane_bits("SPIKE")
    fewer = measure(exposures)
    assert fewer.catalog["dia_source_id"].tolist() == [upper + 1, upper + 3, upper + 4]
    assert fewer.n_removed_by_flag["spikeCenter"] == fewer.n_removed_bad_flags == 1
    assert len(fewer.footprints) == 3


@pytest.mark.parametrize("plane", ["SAT", "BAD", "NO_DATA", "EDGE"])
def test_peaks_on_bad_pixels_are_rejected_before_measurement(make_exposures, plane):
    exposures = make_exposures()
    footprints = detect(exposures[0].masked_image, exposures[0].psf)
    exposures[0].mask[footprints.y[0], footprints.x[0]] |= plane_bits(plane)
    result = measure_dia_sources(footprints, *exposures, id_factory=IdFactory(7, 44))
    assert result.n_rejected_bad_peaks == 1
    assert result.catalog.n_rows == 3


def test_flags_to_remove_by_are_the_callers_choice(make_exposures):
    exposures = make_exposures()
    exposures[0].mask[50, 41] = plane_bits("SAT")
    kept = measure(exposures, config=MeasurementConfig(bad_flags=()))
    assert kept.catalog.n_rows == 4
    assert kept.catalog["pixel_flags_saturated_center"].sum() == 1
    assert measure(exposures).catalog.n_rows == 3


def test_unknown_flags_and_planes_are_refused_at_construction():
    with pytest.raises(ConfigError, match="falseCenter"):
        MeasurementConfig(bad_flags=("falseCenter",))
    with pytest.raises(KeyError, match="NONSENSE"):
        MeasurementConfig(excluded_planes=("NONSENSE",))


def test_sources_near_edges_are_finite(make_exposures):
    sources = [
        (100.0, 100.0, 500.0),
        (2.5, 50.0, 400.0),
        (197.0, 198.0, 400.0),
        (60.0, 3.0, -400.0),
        (150.0, 196.4, 400.0),
    ]
    catalog = measure(make_exposures(sources)).catalog
    assert catalog.n_rows == 5
    for name in ("ra_deg", "dec_deg", "psf_flux", "science_flux", "template_flux", "x_err"):
        assert np.isfinite(catalog[name]).all(), name
    assert catalog["psf_flux_flag_edge"].sum() == 4
    assert catalog["ap_flux_flag_aperture_truncated"].sum() == 4


def test_nan_pixels_under_a_source_leave_the_rest_of_it(make_exposures):
    exposures = make_exposures()
    for exposure in exposures:
        exposure.image[148:150, :] = np.nan
        exposure.mask[148:150, :] = plane_bits("NO_DATA")
    catalog = measure(exposures, config=MeasurementConfig(bad_flags=())).catalog
    row = by_source(catalog)[2]
    assert abs(catalog["psf_flux"][row] - 1500.0) < 4.5 * catalog["psf_flux_err"][row]
    assert catalog["pixel_flags_nodata"][row]


def test_without_science_and_template_their_columns_stay_blank(make_exposures):
    difference, _, _ = make_exposures()
    footprints = detect(difference.masked_image, difference.psf)
    catalog = measure_dia_sources(footprints, difference, id_factory=IdFactory(7, 44)).catalog
    assert catalog.n_rows == 4
    assert np.isnan(catalog["science_flux"]).all()
    assert catalog["forced_psf_flux_flag"].all()
    assert np.isnan(catalog["template_flux"]).all()
    assert catalog["forced_template_psf_flux_flag"].all()
    assert np.isfinite(catalog["psf_flux"]).all()


def test_without_a_wcs_positions_are_in_pixels_only(make_exposures):
    exposures = make_exposures()
    for exposure in exposures:
        exposure.wcs = None
    catalog = measure(exposures).catalog
    assert np.isnan(catalog["ra_deg"]).all()
    assert np.isnan(catalog["ixx"]).all()
    assert np.isfinite(catalog["x"]).all()
    assert np.isfinite(catalog["extendedness"]).all()


def test_image_without_sources_gives_an_empty_catalog(make_image, psf):
    exposure = expose(make_image((64, 64), psf, seed=5), psf)
    result = measure((exposure, exposure, exposure))
    assert result.catalog.n_rows == 0
    assert len(result.footprints) == 0


def test_difference_without_a_psf_is_refused(make_exposures):
    exposures = make_exposures()
    footprints = detect(exposures[0].masked_image, 1.8)
    exposures[0].psf = None
    with pytest.raises(ValueError, match="no PSF"):
        measure_dia_sources(footprints, *exposures, id_factory=IdFactory(7, 44))


def test_two_runs_agree_to_the_bit(make_exposures):
    a, b = measure(make_exposures()).catalog, measure(make_exposures()).catalog
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_ten_transients_of_both_signs_meet_the_references_tolerances(make_image):
    """PSF sigma 2.4, noise 1 and 0.25, flux 1000 to 2000: each within a pixel, flux to 2.5 %."""
    psf = GaussianPsf(fwhm=2.4 * FWHM_PER_SIGMA, size=41)
    rng = np.random.default_rng(6)
    grid = [(30.0 + 50 * i, 60.0 + 120 * j) for i in range(5) for j in range(2)]
    sources = [
        (x + rng.uniform(-10, 10), y + rng.uniform(-20, 20), (-1) ** i * rng.uniform(1000, 2000))
        for i, (x, y) in enumerate(grid)
    ]
    science = make_image((256, 256), psf, [s for s in sources if s[2] > 0], seed=7)
    template = make_image((256, 256), psf, [(x, y, -f) for x, y, f in sources if f < 0], noise=0.25, seed=8)
    difference = MaskedImage(science.image - template.image, science.mask, science.variance + template.variance)
    catalog = measure(tuple(expose(image, psf) for image in (difference, science, template))).catalog
    assert catalog.n_rows == 10
    rows = by_source(catalog, sources)
    assert sorted(rows.tolist()) == list(range(10))
    np.testing.assert_allclose(catalog["psf_flux"][rows], [s[2] for s in sources], rtol=0.025)
