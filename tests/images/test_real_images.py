"""Real images of five cameras, where the folder with them is there: they open, and their noise is that of the variance."""

import numpy as np
import pytest
from scipy import ndimage

from alertprod.errors import CorruptImage
from alertprod.images.fits_io import load_exposure, read_facts
from alertprod.images.mask import plane_bits
from alertprod.images.noise import measure_sky
from alertprod.images.profile import load_profile

FILES = [
    ("saao", "saao_kb13475/AKB13475I0001.fits.fz"),
    ("goto", "goto_virgo/epoch1.fits.gz"),
    ("goto", "goto_virgo/epoch2.fits.gz"),
    ("toritos", "toritos_pgc128075/coadd.fits.gz"),
    ("ukstu", "toritos_pgc128075/reference.fits.gz"),
    ("eso085", "eso085_null/aligned_eso085-030-004.fit.gz"),
    ("decam-stamps", "decam_decorrelation/DEC-OBS04a.mini.fits.gz"),
    ("decam-stamps", "decam_decorrelation/Stack-DEC-OBS18.fits.gz"),
]


def robust_width(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def usable_pixels(exposure):
    return exposure.masked_image.usable(plane_bits("SAT", "BAD", "NO_DATA"))


@pytest.mark.parametrize(("profile", "path"), [pair for pair in FILES if pair[0] != "saao"])
def test_the_sky_scatters_as_the_variance_says(shared_data, profile, path):
    exposure = load_exposure(shared_data / path, load_profile(profile))
    usable = usable_pixels(exposure)
    level = measure_sky(exposure.image, ~usable, cell_size=64).compute_level_image()
    pulls = ((exposure.image - level) / np.sqrt(exposure.variance))[usable]
    # Sources widen the whole by a few per cent; the fainter half is sky alone.
    assert robust_width(pulls) == pytest.approx(1.05, abs=0.06)
    assert 1.4826 * np.median(-pulls[pulls < 0]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("number", ["0001", "0103"])
def test_gain_and_read_noise_explain_a_crowded_field(shared_data, number):
    exposure = load_exposure(shared_data / f"saao_kb13475/AKB13475I{number}.fits.fz", load_profile("saao"))
    # Stars are everywhere here: only differences of neighbours, in which they cancel, show the noise.
    taps = np.array([1.0, -6.0, 15.0, -20.0, 15.0, -6.0, 1.0])
    taps /= np.sqrt((taps**2).sum())

    def along_both(image, weights):
        return ndimage.correlate1d(ndimage.correlate1d(image.astype(float), weights, axis=0), weights, axis=1)

    pulls = along_both(exposure.image, taps) / np.sqrt(along_both(exposure.variance, taps**2))
    dark = exposure.image < np.percentile(exposure.image, 70)
    assert robust_width(pulls[dark]) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("profile", "path"), FILES)
def test_full_pixels_are_masked(shared_data, profile, path):
    exposure = load_exposure(shared_data / path, load_profile(profile))
    full = exposure.mask & plane_bits("SAT") != 0
    assert not (exposure.image[~full] >= exposure.info.saturation).any()
    assert full.mean() < 0.01
    if profile == "decam-stamps":
        assert not full.any()
    else:
        assert full.any()


def test_saao_facts(shared_data):
    exposure = load_exposure(shared_data / "saao_kb13475/AKB13475I0103.fits.fz", load_profile("saao"))
    info = exposure.info
    assert (info.instrument, info.visit, info.detector, info.band) == ("SAAO-STE3", 103, 0, "I")
    assert info.ra_deg == pytest.approx(273.87083, abs=1e-5)
    assert info.dec_deg == pytest.approx(-25.285, abs=1e-5)
    # In 2013 TAI was 35 s ahead of UTC; MJD-OBS has five digits.
    assert info.shutter_open_mjd_tai == pytest.approx(56507.81424 + 35 / 86400, abs=1e-9)
    assert exposure.wcs.compute_pixel_scale_arcsec(x=256, y=256) == pytest.approx(0.31, abs=1e-6)
    assert exposure.photo_calib.is_nominal


def test_saao_epochs_have_visits_in_time_order(shared_data):
    profile = load_profile("saao")
    headers = [read_facts(path, profile).info for path in sorted((shared_data / "saao_kb13475").glob("*.fz"))]
    assert len(headers) == 43
    assert [info.visit for info in headers] == sorted({info.visit for info in headers})
    times = [info.midpoint_mjd_tai for info in headers]
    assert times == sorted(times)


@pytest.mark.parametrize("profile", ["saao", "alertprod"])
def test_the_saao_template_opens_with_its_planes(shared_data, profile):
    exposure = load_exposure(shared_data / "saao_kb13475/template.fits", load_profile(profile))
    assert (exposure.mask & plane_bits("NO_DATA") != 0).sum() == 180
    assert np.isnan(exposure.image).sum() == 180
    assert exposure.info.band == "I"
    assert exposure.info.visit is None
    assert exposure.info.provenance["variance"] == "variance plane VARIANCE"


def test_goto_has_distorted_coordinates_and_noise_from_pixels(shared_data):
    exposure = load_exposure(shared_data / "goto_virgo/epoch1.fits.gz", load_profile("goto"))
    assert exposure.info.detector == 2
    assert exposure.info.gain is None
    assert "slope" in exposure.info.provenance["variance"]
    assert exposure.wcs.compute_pixel_scale_arcsec(x=900, y=900) == pytest.approx(1.235, abs=0.02)


def test_toritos_has_no_data_at_its_border(shared_data):
    exposure = load_exposure(shared_data / "toritos_pgc128075/coadd.fits.gz", load_profile("toritos"))
    assert (exposure.mask & plane_bits("NO_DATA") != 0).mean() == pytest.approx(0.1086, abs=1e-3)


def test_stamps_are_told_apart_by_their_names(shared_data):
    profile = load_profile("decam-stamps")
    paths = sorted((shared_data / "decam_decorrelation").glob("*.mini.fits.gz"))
    visits = {read_facts(path, profile).info.visit for path in paths}
    assert len(visits) == len(paths) == 10


def test_a_wrong_profile_is_refused(shared_data):
    with pytest.raises(CorruptImage):
        load_exposure(shared_data / "goto_virgo/epoch1.fits.gz", load_profile("rubin"))
