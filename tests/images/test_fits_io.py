import gzip
import io
import time
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits

from alertprod.errors import CorruptImage, ImageNotYetAvailable
from alertprod.images import fits_io
from alertprod.images._fits_file import MAX_PIXELS, compute_datasum
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure, read_facts, save_exposure
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.images.profile import InstrumentProfile, load_profile
from alertprod.psf.fits_cards import compute_polynomial_psf


def make_profile(**settings):
    return InstrumentProfile.model_validate({"instrument": "cam", **settings})


def saved(exposure: Exposure, tmp_path, **options) -> bytes:
    path = tmp_path / "exposure.fits"
    save_exposure(exposure, path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("compress", [False, True])
def test_an_exposure_comes_back_as_it_was_saved(exposure, tmp_path, compress):
    loaded = load_exposure(saved(exposure, tmp_path, compress=compress))
    np.testing.assert_array_equal(loaded.image, exposure.image)
    np.testing.assert_array_equal(loaded.mask, exposure.mask)
    np.testing.assert_array_equal(loaded.variance, exposure.variance)
    assert (loaded.image.dtype, loaded.mask.dtype, loaded.variance.dtype) == (np.float32, np.int32, np.float32)
    assert loaded.image.dtype.isnative
    assert loaded.image.flags.writeable
    for field in ("instrument", "visit", "detector", "band", "physical_filter", "shutter_open_mjd_tai"):
        assert getattr(loaded.info, field) == getattr(exposure.info, field)
    for field in ("shutter_close_mjd_tai", "exposure_time_s", "ra_deg", "dec_deg", "rotation_deg", "gain"):
        assert getattr(loaded.info, field) == getattr(exposure.info, field)
    for field in ("read_noise", "saturation", "observation_reason", "target_name"):
        assert getattr(loaded.info, field) == getattr(exposure.info, field)
    assert loaded.photo_calib == exposure.photo_calib
    x, y = np.array([0.0, 63.0, 20.0]), np.array([0.0, 0.0, 40.0])
    back = loaded.wcs.sky_to_pixel(**dict(zip(("ra_deg", "dec_deg"), exposure.wcs.pixel_to_sky(x=x, y=y), strict=True)))
    # Cards keep twelve digits: 360 deg to 4e-10 deg, which is 5e-6 of these pixels.
    np.testing.assert_allclose(back, (x, y), atol=2e-5)
    np.testing.assert_allclose(
        loaded.psf.compute_kernel_image(x=5, y=6), exposure.psf.compute_kernel_image(x=5, y=6), atol=1e-9
    )


def test_a_tabulated_psf_comes_back(exposure, tmp_path):
    exposure.psf = compute_polynomial_psf(exposure.psf)
    loaded = load_exposure(saved(exposure, tmp_path))
    expected = exposure.psf.compute_kernel_image(x=5, y=6)
    # float32 in the table
    np.testing.assert_allclose(loaded.psf.compute_kernel_image(x=5, y=6), expected, atol=1e-6 * expected.max())


def test_header_facts_are_those_of_the_whole_exposure(exposure, tmp_path):
    content = saved(exposure, tmp_path)
    header, loaded = read_facts(content), load_exposure(content)
    assert header.shape == loaded.shape
    assert header.info.visit == loaded.info.visit
    assert header.photo_calib == loaded.photo_calib
    assert header.psf.compute_fwhm() == pytest.approx(loaded.psf.compute_fwhm())


def test_provenance_survives_saving(exposure, tmp_path):
    exposure.info.provenance = {"variance": "somebody's gain"}
    assert load_exposure(saved(exposure, tmp_path)).info.provenance["variance"] == "somebodys gain"


def test_text_that_no_card_can_hold_is_replaced(exposure, tmp_path):
    exposure.info.target_name = "Ω Cen\n"
    assert load_exposure(saved(exposure, tmp_path)).info.target_name == "? Cen"


def test_saving_replaces_and_leaves_nothing_else(exposure, tmp_path):
    saved(exposure, tmp_path)
    exposure.image[0, 0] = 77.0
    assert load_exposure(saved(exposure, tmp_path)).image[0, 0] == 77.0
    assert [path.name for path in tmp_path.iterdir()] == ["exposure.fits"]


def test_paths_streams_and_gzip_are_the_same(exposure, tmp_path):
    content = saved(exposure, tmp_path)
    path = tmp_path / "exposure.fits.gz"
    path.write_bytes(gzip.compress(content))
    for source in (tmp_path / "exposure.fits", str(path), io.BytesIO(content), gzip.compress(content)):
        np.testing.assert_array_equal(load_exposure(source).image, exposure.image)


@pytest.mark.parametrize(
    ("dtype", "compressed"),
    [(dtype, False) for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64)]
    + [(dtype, True) for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64)],
)
def test_every_pixel_type_is_read(write_fits, dtype, compressed):
    values = np.arange(30 * 40).reshape(30, 40) % 200
    pixels = values.astype(dtype)
    options = {"quantize_level": 0.0, "compression_type": "GZIP_2"} if compressed and pixels.dtype.kind == "f" else {}
    hdu = fits.CompImageHDU(pixels, name="IMAGE", **options) if compressed else fits.ImageHDU(pixels, name="IMAGE")
    loaded = load_exposure(write_fits(fits.PrimaryHDU(), hdu), make_profile(noise={"gain": 2.0}))
    np.testing.assert_array_equal(loaded.image, values)
    assert loaded.image.dtype == np.float32


def test_scale_zero_and_blank_are_honoured(write_fits):
    raw = np.arange(400, dtype=np.int16).reshape(20, 20)
    hdu = fits.ImageHDU(raw, name="IMAGE")
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = 0.5, 100.0, 7
    content = write_fits(fits.PrimaryHDU(), hdu)
    # astropy drops the cards on writing; they are put back where it left room.
    header = b"".join(
        f"{k:8}= {v:>20}".ljust(80).encode() for k, v in (("BSCALE", 0.5), ("BZERO", 100.0), ("BLANK", 7))
    )
    end = content.index(b"END" + b" " * 77, 2880)
    content = content[:end] + header + b"END".ljust(80) + content[end + len(header) + 80 :]
    loaded = load_exposure(content, make_profile(noise={"gain": 2.0}))
    expected = 0.5 * raw + 100.0
    expected[raw == 7] = np.nan
    np.testing.assert_array_equal(loaded.image, expected.astype(np.float32))
    assert (loaded.mask[raw == 7] & plane_bits("NO_DATA")).all()


def test_pixels_that_are_not_finite_have_no_data(exposure, tmp_path):
    exposure.image[5, 6], exposure.image[7, 8] = np.inf, np.nan
    loaded = load_exposure(saved(exposure, tmp_path))
    assert np.isnan(loaded.image[[5, 7], [6, 8]]).all()
    assert (loaded.mask[[5, 7], [6, 8]] == plane_bits("NO_DATA")).all()


def test_pixels_masked_as_no_data_are_nan(exposure, tmp_path):
    exposure.mask[2, 2] |= plane_bits("NO_DATA")
    assert np.isnan(load_exposure(saved(exposure, tmp_path)).image[2, 2])


def image_hdus(shape=(32, 32), **planes):
    rng = np.random.default_rng(5)
    image = rng.normal(100.0, 5.0, size=shape).astype(np.float32)
    return [
        fits.PrimaryHDU(),
        fits.ImageHDU(image, name="IMAGE"),
        *(fits.ImageHDU(pixels, name=name) for name, pixels in planes.items()),
    ]


def test_mask_cards_of_another_layout_are_followed(write_fits):
    bits = np.zeros((32, 32), dtype=np.int16)
    bits[1, 1], bits[2, 2], bits[3, 3] = 1 << 9, 1 << 0, 1 << 14
    hdus = image_hdus(MASK=bits)
    hdus[2].header["MP_SAT"], hdus[2].header["MP_BAD"], hdus[2].header["HIERARCH MP_VIGNETTED"] = 9, 0, 14
    loaded = load_exposure(write_fits(*hdus), make_profile(planes={"mask": "MASK"}))
    assert loaded.mask[1, 1] == plane_bits("SAT")
    assert loaded.mask[2, 2] == plane_bits("BAD")
    assert loaded.mask[3, 3] == 0
    assert "VIGNETTED" in loaded.info.provenance["mask"]


def test_a_profile_names_the_mask_bits(write_fits):
    bits = np.zeros((32, 32), dtype=np.uint8)
    bits[1, 1], bits[2, 2], bits[3, 3] = 1, 4, 8
    profile = make_profile(planes={"mask": "MASK", "mask_bits": {"BAD": [0, 3], "SAT": 2}})
    loaded = load_exposure(write_fits(*image_hdus(MASK=bits)), profile)
    assert loaded.mask[[1, 2, 3], [1, 2, 3]].tolist() == [plane_bits("BAD"), plane_bits("SAT"), plane_bits("BAD")]


def test_a_mask_without_a_key_is_bad_where_it_is_not_zero(write_fits):
    bits = np.zeros((32, 32), dtype=np.float32)
    bits[1, 1] = 33.0
    loaded = load_exposure(write_fits(*image_hdus(MASK=bits)), make_profile(planes={"mask": "MASK"}))
    assert loaded.mask[1, 1] == plane_bits("BAD")
    assert (loaded.mask != 0).sum() == 1


@pytest.mark.parametrize(("name", "value"), [("VARIANCE", 4.0), ("WEIGHT", 0.25), ("RMS", 2.0)])
def test_variance_comes_from_any_noise_plane(write_fits, name, value):
    plane = np.full((32, 32), value, dtype=np.float32)
    plane[4, 4] = 0.0
    loaded = load_exposure(write_fits(*image_hdus(**{name: plane})), make_profile(planes={name.lower(): name}))
    usable = loaded.masked_image.usable(plane_bits("BAD"))
    assert not usable[4, 4]
    np.testing.assert_allclose(loaded.variance[usable], 4.0)
    assert usable.sum() == 32 * 32 - 1


def test_saturated_pixels_are_masked_and_grown(write_fits):
    hdus = image_hdus()
    hdus[1].data[10, 10] = 60000.0
    hdus[1].data[0, 31] = 60000.0
    profile = make_profile(saturation={"level": 50000, "grow": 2}, noise={"gain": 2.0})
    mask = load_exposure(write_fits(*hdus), profile).mask & plane_bits("SAT")
    assert mask[10, 12]
    assert mask[12, 10]
    assert mask[11, 11]
    assert not mask[10, 13]
    assert not mask[12, 12]
    assert mask[0, 29]
    assert mask[2, 31]
    assert mask[10, 0] == 0


def test_a_mask_that_knows_saturation_is_not_grown_again(exposure, tmp_path):
    exposure.image[20, 20] = 1e6
    assert load_exposure(saved(exposure, tmp_path)).mask[20, 20] == 0


def test_empty_values_and_edges_are_masked(write_fits):
    hdus = image_hdus()
    hdus[1].data[:, 20] = 0.0
    profile = make_profile(pixels={"no_data_value": 0.0, "edge": 3}, noise={"gain": 2.0})
    loaded = load_exposure(write_fits(*hdus), profile)
    assert np.isnan(loaded.image[:, 20]).all()
    edge = loaded.mask & plane_bits("EDGE") != 0
    assert edge[:3].all()
    assert edge[:, -3:].all()
    assert not edge[3:-3, 3:-3].any()


def test_a_zero_point_per_second_is_scaled_to_the_exposure(write_fits):
    hdus = image_hdus()
    hdus[1].header["EXPTIME"], hdus[1].header["ZP"] = 100.0, 25.0
    profile = make_profile(
        photometry={"zero_point": {"card": "ZP"}, "per_second": True},
        time={"exposure_time": {"card": "EXPTIME"}},
        noise={"gain": 1.0},
    )
    calib = read_facts(write_fits(*hdus), profile).photo_calib
    assert calib.zero_point_mag == pytest.approx(30.0)
    assert not calib.is_nominal


def test_an_unknown_zero_point_is_called_nominal(write_fits):
    header = read_facts(write_fits(*image_hdus()), make_profile(photometry={"nominal_zero_point": 27.0}))
    assert header.photo_calib.is_nominal
    assert header.photo_calib.zero_point_mag == pytest.approx(27.0)
    assert header.info.provenance["photometry"] == "nominal zero point"


# Rubin's files


def make_calexp(*, archived_mean=None, flux_mag0=None, unit=None):
    rng = np.random.default_rng(8)
    shape = (40, 50)
    primary = fits.PrimaryHDU()
    primary.header["HIERARCH LSST BUTLER DATAID VISIT"] = 2026030100123
    primary.header["HIERARCH LSST BUTLER DATAID DETECTOR"] = 94
    primary.header["HIERARCH LSST BUTLER DATAID BAND"] = "i"
    primary.header["HIERARCH LSST BUTLER DATAID PHYSICAL_FILTER"] = "i_39"
    primary.header["HIERARCH LSST BUTLER DATAID INSTRUMENT"] = "LSSTCam"
    primary.header["DATE-AVG"], primary.header["TIMESYS"] = "2026-03-02T05:06:07.500", "TAI"
    primary.header["EXPTIME"], primary.header["BORE-RA"], primary.header["BORE-DEC"] = 30.0, 10.0, -20.0
    image = fits.CompImageHDU(rng.normal(size=shape).astype(np.float32), name="IMAGE", quantize_level=64.0)
    for card, value in (("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), ("CRVAL1", 10.1), ("CRVAL2", -20.1)):
        image.header[card] = value
    for card, value in (("CRPIX1", 20.0), ("CRPIX2", 20.0), ("CD1_1", -5.6e-5), ("CD2_2", 5.6e-5)):
        image.header[card] = value
    if unit:
        image.header["BUNIT"] = unit
    mask = fits.CompImageHDU((rng.integers(0, 2, size=shape) << 8).astype(np.int32), name="MASK")
    for number, plane in enumerate(("BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE")):
        mask.header[f"HIERARCH MP_{plane}"] = number
    mask.header["HIERARCH MP_SUSPECT"], mask.header["HIERARCH MP_NO_DATA"], mask.header["HIERARCH MP_STREAK"] = 7, 9, 8
    variance = fits.CompImageHDU(np.full(shape, 2.0, np.float32), name="VARIANCE", quantize_level=64.0)
    hdus = [primary, image, mask, variance]
    if flux_mag0:
        primary.header["FLUXMAG0"] = flux_mag0
    if archived_mean:
        primary.header["AR_HDU"], primary.header["HIERARCH PHOTOCALIB_ID"], primary.header["HIERARCH SKYWCS_ID"] = (
            5,
            2,
            1,
        )
        entries = fits.BinTableHDU.from_columns(
            [
                fits.Column("id", "J", array=[1, 2, 2]),
                fits.Column("cat.archive", "J", array=[1, 2, 1]),
                fits.Column("row0", "J", array=[0, 1, 0]),
                fits.Column("nrows", "J", array=[1, 1, 1]),
                fits.Column("name", "64A", array=["SkyWcs", "PhotoCalib", "Detector"]),
            ],
            name="ARCHIVE_INDEX",
        )
        other = fits.BinTableHDU.from_columns([fits.Column("wcs", "D", array=[0.0])], name="ARCHIVE_DATA")
        calib = fits.BinTableHDU.from_columns(
            [
                fits.Column("isConstant", "L", array=[True, True]),
                fits.Column("calibrationMean", "D", array=[9.0, archived_mean]),
                fits.Column("calibrationErr", "D", array=[9.0, 0.01 * archived_mean]),
            ],
            name="ARCHIVE_DATA",
        )
        hdus += [entries, other, calib]
    return hdus


@pytest.mark.parametrize(
    ("options", "njy_per_count"),
    [
        ({"archived_mean": 0.123}, 0.123),
        ({"flux_mag0": 10.0 ** (0.4 * 27.0)}, 10.0 ** (0.4 * 4.4)),
        ({"unit": "nJy"}, 1.0),
    ],
)
def test_rubin_calexps_open(write_fits, options, njy_per_count):
    loaded = load_exposure(write_fits(*make_calexp(**options)), load_profile("rubin"))
    assert loaded.photo_calib.njy_per_count == pytest.approx(njy_per_count)
    error = loaded.photo_calib.njy_per_count_err
    assert error == (pytest.approx(0.01 * njy_per_count) if "archived_mean" in options else None)
    assert not loaded.photo_calib.is_nominal
    info = loaded.info
    assert (info.instrument, info.visit, info.detector, info.band) == ("LSSTCam", 2026030100123, 94, "i")
    # 2026-03-02 is MJD 61101; the date is the middle's, in TAI already.
    middle = 61101.0 + (5 * 3600 + 6 * 60 + 7.5) / 86400
    assert info.midpoint_mjd_tai == pytest.approx(middle, abs=1e-9)
    assert info.shutter_open_mjd_tai == pytest.approx(middle - 15 / 86400, abs=1e-9)
    assert (info.ra_deg, info.dec_deg) == (10.0, -20.0)
    assert set(np.unique(loaded.mask)) == {0, plane_bits("STREAK")}
    assert loaded.wcs.pixel_to_sky(x=19.0, y=19.0) == (pytest.approx(10.1), pytest.approx(-20.1))
    np.testing.assert_allclose(loaded.variance, 2.0, rtol=0.01)
    assert loaded.psf is None


# Files from hell: each is a CorruptImage that names file and HDU, quickly


def assert_corrupt(source, *, hdu=None, match=None, profile=None, seconds=5.0):
    start = time.monotonic()
    with pytest.raises(CorruptImage, match=match) as caught:
        load_exposure(source, profile, name="night/bad.fits")
    assert time.monotonic() - start < seconds
    assert caught.value.uri == "night/bad.fits"
    assert hdu is None or caught.value.hdu == hdu


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"# RA DEC\n1.0 2.0\n" * 500, "not FITS"),
        (b"SIMPLE  = " + b"\xff" * 5000, None),
        (b"SIMPLE  =                    T".ljust(80) * 36, None),
        (b"\x1f\x8b" + b"garbage" * 100, "gzip"),
        (gzip.compress(b"", mtime=0), "empty"),
    ],
)
def test_what_is_not_fits_is_corrupt(content, match):
    assert_corrupt(content, match=match)


@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_file_is_corrupt(exposure, tmp_path, compress):
    content = saved(exposure, tmp_path, compress=compress)
    for size in range(0, len(content) - 2880, 1440):  # what is cut after that may be padding
        assert_corrupt(content[:size])
    assert_corrupt(gzip.compress(content)[:-200], hdu="file", match="gzip")


def test_a_flipped_bit_in_the_pixels_is_noticed(exposure, tmp_path):
    for compress in (False, True):
        content = bytearray(saved(exposure, tmp_path, compress=compress))
        with fits.open(io.BytesIO(bytes(content)), disable_image_compression=True) as hdus:
            start = hdus["VARIANCE"].fileinfo()["datLoc"]
        content[start + 11] ^= 0x10
        assert_corrupt(bytes(content), hdu="VARIANCE", match="DATASUM")


def test_random_damage_gives_an_exposure_or_a_corrupt_image(exposure, tmp_path):
    rng = np.random.default_rng(11)
    contents = [saved(exposure, tmp_path, compress=compress) for compress in (False, True)]
    outcomes = set()
    for trial in range(200):
        content = bytearray(contents[trial % 2])
        # Headers are where damage is interesting: the first blocks.
        for position in rng.integers(0, 5 * 2880, size=3):
            content[position] ^= 1 << rng.integers(8)
        try:
            load_exposure(bytes(content))
            outcomes.add("loaded")
        except CorruptImage:
            outcomes.add("corrupt")
    assert outcomes == {"loaded", "corrupt"}


def replace_card(content: bytes, old: str, new: str, *, after: int = 0) -> bytes:
    position = content.index(old.encode(), after)
    return content[:position] + new.ljust(80)[:80].encode() + content[position + 80 :]


@pytest.mark.parametrize("size", ["2000000000", "99999999999999", "-5", "0", "'wide'"])
def test_a_huge_or_senseless_size_is_refused_before_memory_is_spent(exposure, tmp_path, size):
    content = saved(exposure, tmp_path)
    bad = replace_card(content, "NAXIS1  =                   64", f"NAXIS1  = {size:>20}")
    tracemalloc.start()
    assert_corrupt(bad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_huge_compressed_size_is_refused_before_memory_is_spent(exposure, tmp_path):
    content = saved(exposure, tmp_path, compress=True)
    bad = replace_card(content, "ZNAXIS1 =                   64", f"ZNAXIS1 = {MAX_PIXELS:>20}")
    tracemalloc.start()
    assert_corrupt(bad, hdu="IMAGE", match="pixels declared")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("card", [b"", b"GAIN    =                  2.0"])
def test_a_header_without_end_is_refused_in_time(card):
    head = b"SIMPLE  =                    T".ljust(80)
    assert_corrupt(head + card.ljust(80) * 1_000_000, hdu="PRIMARY", match="a header of more than")
    assert_corrupt(head + card.ljust(80) * 100, hdu="PRIMARY", match="ends within")


def test_zeros_after_gzip_are_padding_and_members_follow_one_another(exposure, tmp_path):
    content = saved(exposure, tmp_path)
    two = gzip.compress(content[:5000]) + gzip.compress(content[5000:])
    for packed in (gzip.compress(content) + b"\0" * 512, two, two + b"\0"):
        np.testing.assert_array_equal(load_exposure(packed).image, exposure.image)


def test_a_gzip_bomb_is_refused(monkeypatch):
    monkeypatch.setattr("alertprod.images._fits_file.MAX_BYTES", 1 << 20)
    assert_corrupt(gzip.compress(b"\0" * (1 << 22)), hdu="file", match="decompressed")
    assert_corrupt(io.BytesIO(b"\0" * (1 << 21)), hdu="file", match="more than")


def test_an_image_without_a_finite_pixel_is_corrupt(exposure, tmp_path):
    exposure.image[:] = np.nan
    assert_corrupt(saved(exposure, tmp_path), hdu="IMAGE", match="no pixel has data")


def test_a_variance_that_is_nowhere_positive_is_corrupt(exposure, tmp_path):
    exposure.variance[:] = 0.0
    assert_corrupt(saved(exposure, tmp_path), hdu="VARIANCE", match="positive")


def test_a_missing_hdu_is_named_with_those_there_are(write_fits):
    content = write_fits(fits.PrimaryHDU(), fits.ImageHDU(np.ones((8, 8), np.float32), name="SCI"))
    assert_corrupt(content, hdu="IMAGE", match="no such HDU; there are PRIMARY, SCI")


def test_planes_of_different_shapes_are_corrupt(write_fits):
    hdus = image_hdus(MASK=np.zeros((32, 31), dtype=np.int32))
    assert_corrupt(write_fits(*hdus), hdu="MASK", match="31 x 32 pixels; the image has 32 x 32")


@pytest.mark.parametrize("shape", [(7,), (2, 8, 8), (3, 2, 8, 8)])
def test_an_image_that_is_no_plane_is_corrupt(write_fits, shape):
    content = write_fits(fits.PrimaryHDU(), fits.ImageHDU(np.ones(shape, np.float32), name="IMAGE"))
    assert_corrupt(content, hdu="IMAGE", match="axes")


def test_a_cube_of_one_plane_is_an_image(write_fits):
    content = write_fits(fits.PrimaryHDU(), fits.ImageHDU(np.ones((1, 8, 8), np.float32), name="IMAGE"))
    assert load_exposure(content, make_profile(noise={"gain": 1.0, "cell_size": 16})).shape == (8, 8)


def test_a_table_or_nothing_in_the_images_place_is_corrupt(write_fits):
    table = fits.BinTableHDU.from_columns([fits.Column("x", "D", array=[1.0])], name="IMAGE")
    assert_corrupt(write_fits(fits.PrimaryHDU(), table), hdu="IMAGE", match="a table")
    assert_corrupt(write_fits(fits.PrimaryHDU(), fits.ImageHDU(name="IMAGE")), hdu="IMAGE", match="no pixels")


def test_a_wcs_that_cannot_be_is_corrupt(exposure, tmp_path):
    content = saved(exposure, tmp_path)
    # A header with both of the matrix' rows zero has no inverse.
    bad = replace_card(content, "CDELT1  =", "CDELT1  =                  0.0", after=2880)
    assert_corrupt(bad, hdu="IMAGE", match="WCS")


def test_a_mask_plane_outside_the_word_is_corrupt(write_fits):
    hdus = image_hdus(MASK=np.ones((32, 32), dtype=np.int16))
    hdus[2].header["MP_SAT"] = 40
    assert_corrupt(write_fits(*hdus), hdu="MASK", match="SAT 40")


def test_missing_paths_may_come_and_folders_may_not(tmp_path):
    with pytest.raises(ImageNotYetAvailable):
        load_exposure(tmp_path / "later.fits")
    with pytest.raises(CorruptImage, match="a folder"):
        load_exposure(tmp_path)


def test_unusable_calibrations_are_corrupt(write_fits):
    calexp = make_calexp(archived_mean=1.0)
    calexp[0].header["AR_HDU"] = 40
    with pytest.raises(CorruptImage, match="AR_HDU"):
        load_exposure(write_fits(*calexp), load_profile("rubin"))
    with pytest.raises(CorruptImage, match="njy_per_count"):
        load_exposure(write_fits(*make_calexp(flux_mag0=-3.0)), load_profile("rubin"))


def test_the_data_sum_is_astropys(write_fits):
    rng = np.random.default_rng(3)
    for size in (64, 63):
        pixels = rng.normal(size=(size, size)).astype(np.float32)
        hdu = fits.ImageHDU(pixels)
        hdu.add_datasum()
        assert hdu.header["DATASUM"] == str(compute_datasum(pixels.astype(">f4").tobytes()))


def test_every_mask_plane_is_declared_in_the_file(exposure, tmp_path):
    with fits.open(io.BytesIO(saved(exposure, tmp_path))) as hdus:
        header = hdus["MASK"].header
        assert {plane: header[f"MP_{plane}"] for plane in MASK_PLANES} == dict(MASK_PLANES)


def test_a_full_disk_is_said_and_leaves_no_file(exposure, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fits_io.fits.HDUList, "writeto", fail)
    with pytest.raises(fits_io.DiskFull, match="No space"):
        save_exposure(exposure, tmp_path / "full.fits")
    assert not list(tmp_path.iterdir())


@pytest.mark.bench
def test_reading_4096_squared(tmp_path):
    from alertprod.images.masked_image import MaskedImage

    shape = (4096, 4096)
    planes = MaskedImage(np.ones(shape, np.float32), np.zeros(shape, np.int32), np.ones(shape, np.float32))
    save_exposure(Exposure(masked_image=planes), tmp_path / "big.fits")
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load_exposure(tmp_path / "big.fits")
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # 0.15 s on two cores at 2.8 GHz that nobody else uses
