import dataclasses
import io
import itertools
import time

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.nddata import VarianceUncertainty

from alertprod.alerts import cutouts as cutouts_module
from alertprod.alerts.avro import encode_alert
from alertprod.alerts.cutouts import CutoutConfig, load_cutout, make_cutouts
from alertprod.alerts.packet import PacketInfo, make_packets
from alertprod.geometry.sphere import separation_arcsec
from alertprod.images.mask import MASK_PLANES, plane_bits
from alertprod.psf.model import PointSpreadFunction

X, Y = 50.3, 60.8


def cut(exposure, sources, **config):
    return make_cutouts(
        sources, difference=exposure, science=exposure, template=exposure, config=CutoutConfig(**config)
    )


@pytest.fixture
def exposure(make_exposure):
    return make_exposure()


@pytest.fixture
def sources(make_sources):
    return make_sources([X], [Y])


def test_bytes_are_sound_fits(exposure, sources):
    (triplet,) = cut(exposure, sources, with_mask_bits=True).triplets
    assert len(triplet.difference) % 2880 == 0
    assert load_cutout(triplet.difference).mask.shape == (30, 30)
    with fits.open(io.BytesIO(triplet.difference)) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus] == ["PRIMARY", "UNCERT", "MASK", "PSFIMAGE", "MASKBITS"]
        assert [hdu.data.dtype.str for hdu in hdus] == [">f4", ">f4", "|u1", ">f4", ">i4"]
        assert {card: hdus["MASKBITS"].header[f"MP_{card}"] for card in MASK_PLANES} == dict(MASK_PLANES)
        for hdu in hdus:
            for card in hdu.header.cards:
                card.verify("exception")


def test_ccddata_reads_image_variance_mask_and_psf_in_njy(exposure, sources):
    exposure.mask[60, 50] = plane_bits("SAT")
    exposure.mask[60, 51] = plane_bits("DETECTED", "DETECTED_NEGATIVE")
    exposure.image[62, 50] = np.nan
    (triplet,) = cut(exposure, sources).triplets
    cutout = load_cutout(triplet.science)
    x0, y0 = 36, 46  # round(50.3 - 15 + 0.5), round(60.8 - 15 + 0.5)
    here = np.s_[y0 : y0 + 30, x0 : x0 + 30]
    assert cutout.unit == units.nJy
    assert isinstance(cutout.uncertainty, VarianceUncertainty)
    np.testing.assert_array_equal(cutout.data, exposure.image[here] * np.float32(2.0))
    np.testing.assert_array_equal(cutout.uncertainty.array, exposure.variance[here] * np.float32(4.0))
    assert cutout.mask.sum() == 2
    assert cutout.mask[60 - y0, 50 - x0]
    assert cutout.mask[62 - y0, 50 - x0]
    np.testing.assert_array_equal(cutout.psf, exposure.psf.compute_kernel_image(x=X, y=Y).astype(np.float32))


def test_world_coordinates_read_back_with_the_source_in_the_middle(exposure, sources):
    (triplet,) = cut(exposure, sources).triplets
    cutout = load_cutout(triplet.difference)
    x, y = cutout.wcs.world_to_pixel_values(sources["ra_deg"][0], sources["dec_deg"][0])
    # The source lies in the middle within the half pixel that whole pixels allow.
    assert abs(x - 14.5) <= 0.5
    assert abs(y - 14.5) <= 0.5
    x_min, y_min = cutout.header["CUTMINX"] + 1, cutout.header["CUTMINY"] + 1
    assert (x + x_min, y + y_min) == pytest.approx((X, Y), abs=1e-5)  # float32 of the catalogue
    assert cutout.header["ROTPA"] == 35.0


def test_world_coordinates_agree_with_the_exposures_over_the_whole_cutout(exposure, sources):
    (triplet,) = cut(exposure, sources).triplets
    cutout = load_cutout(triplet.difference)
    x, y = np.meshgrid([0.0, 29.0], [0.0, 29.0])
    theirs = cutout.wcs.pixel_to_world_values(x, y)
    ours = exposure.wcs.pixel_to_sky(x=x + cutout.header["CUTMINX"] + 1, y=y + cutout.header["CUTMINY"] + 1)
    assert separation_arcsec(*theirs, *ours).max() < 1e-4  # a tangent plane moved by 15 pixels


@pytest.mark.parametrize(("bbox_size", "side"), [(5, 30), (41, 41), (1000, 102)])
def test_side_follows_the_footprint_between_limits(exposure, make_sources, bbox_size, side):
    (triplet,) = cut(exposure, make_sources([100.0], [100.0], bbox_size=bbox_size)).triplets
    assert load_cutout(triplet.science).data.shape == (side, side)


def test_pixels_beyond_the_edge_are_nan_and_masked(exposure, make_sources):
    (triplet,) = cut(exposure, make_sources([2.0], [199.2])).triplets
    cutout = load_cutout(triplet.template)
    assert cutout.data.shape == (30, 30)
    beyond = np.isnan(cutout.data)
    x0, y0 = cutout.header["CUTMINX"] + 1, cutout.header["CUTMINY"] + 1
    expected = np.ones((30, 30), dtype=bool)
    expected[: 200 - y0, -x0:] = False
    np.testing.assert_array_equal(beyond, expected)
    np.testing.assert_array_equal(cutout.mask, expected)
    assert np.isnan(cutout.uncertainty.array[beyond]).all()


def test_sources_off_the_image_or_nowhere_have_no_cutouts_and_are_counted(exposure, make_sources):
    sources = make_sources([-3.0, 100.0, 50.0], [50.0, 100.0, 50.0])
    sources["x"][1] = np.nan
    cutouts = cut(exposure, sources)
    assert cutouts.triplets[0] == cutouts.triplets[1] == (None, None, None)
    assert None not in cutouts.triplets[2]
    assert cutouts.n_missing == 6


def test_missing_template_is_null_and_counted(exposure, sources):
    cutouts = make_cutouts(sources, difference=exposure, science=exposure, template=None)
    assert cutouts.triplets[0].template is None
    assert cutouts.triplets[0].science is not None
    assert cutouts.n_missing == 1


class BrokenPsf(PointSpreadFunction):
    size = 41
    average_position = (0.0, 0.0)

    def compute_offset_image(self, *, x, y, dx, dy):  # noqa: ARG002 - the interface's
        raise ValueError("no tile here")


def test_psf_that_cannot_be_drawn_costs_only_its_hdu(make_exposure, sources):
    cutouts = cut(make_exposure(psf=BrokenPsf()), sources)
    cutout = load_cutout(cutouts.triplets[0].difference)
    assert cutout.psf is None
    assert np.isfinite(cutout.data).all()
    assert (cutouts.n_missing, cutouts.n_without_psf) == (0, 3)


class BuggyPsf(BrokenPsf):
    def compute_offset_image(self, *, x, y, dx, dy):  # noqa: ARG002 - the interface's
        raise IndexError("a bug")


def test_whatever_goes_wrong_with_a_psf_costs_cutouts_and_no_alert(exposure, make_exposure, sources):
    cutouts = make_cutouts(sources, difference=exposure, science=make_exposure(psf=BuggyPsf()), template=exposure)
    ((difference, science, template),) = cutouts.triplets
    assert science is None
    assert None not in (difference, template)
    assert (cutouts.n_missing, cutouts.n_without_psf) == (1, 0)


def test_nominal_zero_point_is_said_in_the_header(make_exposure, exposure, sources):
    (nominal,) = cut(make_exposure(is_nominal=True), sources).triplets
    (measured,) = cut(exposure, sources).triplets
    assert load_cutout(nominal.science).header["ZPNOMINL"] is True
    assert "ZPNOMINL" not in load_cutout(measured.science).header


def test_exposure_without_world_coordinates_still_has_cutouts(exposure, sources):
    exposure.wcs = None
    (triplet,) = cut(exposure, sources).triplets
    cutout = load_cutout(triplet.difference)
    assert cutout.wcs is None
    assert cutout.header["CUTMINX"] == 35


@pytest.mark.parametrize(("max_psf_size", "limit"), [(None, 105_000), (25, 88_000)])
def test_packet_of_the_smallest_cutouts_keeps_to_its_size(make_association, make_exposure, max_psf_size, limit):
    association = make_association(n_visits=0)
    cutouts = cut(make_exposure(), association.sources, max_psf_size=max_psf_size)
    for packet in make_packets(association, cutouts.triplets, PacketInfo()):
        assert len(encode_alert(packet)) <= limit


def test_cropped_psf_keeps_its_values(exposure, sources):
    (triplet,) = cut(exposure, sources, max_psf_size=25).triplets
    whole = exposure.psf.compute_kernel_image(x=X, y=Y)
    np.testing.assert_array_equal(load_cutout(triplet.science).psf, whole[8:-8, 8:-8].astype(np.float32))


def test_a_cutout_that_cannot_be_made_costs_itself_alone(exposure, make_exposure, make_sources, monkeypatch):
    broken, calls, said = make_exposure(seed=2), itertools.count(), []
    monkeypatch.setattr(cutouts_module._log, "warning", lambda text, *values, **_: said.append(text % values))
    encode = cutouts_module._encode_cutout

    def encode_or_fail(of, place, psf_image, **options):
        if of is broken and next(calls) in (1, 3):
            raise RuntimeError("the tile is gone")
        return encode(of, place, psf_image, **options)

    monkeypatch.setattr(cutouts_module, "_encode_cutout", encode_or_fail)
    sources = make_sources([50.0, 100.0, 150.0, 170.0], [50.0, 60.0, 70.0, 80.0])
    cutouts = make_cutouts(sources, difference=exposure, science=broken, template=exposure)
    assert [triplet.science is None for triplet in cutouts.triplets] == [False, True, False, True]
    assert all(None not in (triplet.difference, triplet.template) for triplet in cutouts.triplets)
    assert cutouts.n_missing == 2
    assert said == ["a cutout at x 100.0, y 60.0 cannot be made"]


def test_places_without_world_coordinates_have_cutouts_without_and_are_counted(exposure, make_sources, monkeypatch):
    sources = make_sources([50.0, 100.0], [50.0, 60.0])
    compute = exposure.wcs.compute_jacobian

    def fail_at_one(*, x, y):
        jacobians = compute(x=x, y=y)
        jacobians[1] = np.nan
        return jacobians

    monkeypatch.setattr(type(exposure.wcs), "compute_jacobian", lambda _, x, y: fail_at_one(x=x, y=y))
    cutouts = cut(exposure, sources)
    assert (cutouts.n_missing, cutouts.n_without_wcs) == (0, 3)
    assert load_cutout(cutouts.triplets[0].science).wcs is not None
    assert load_cutout(cutouts.triplets[1].science).wcs is None


def test_a_rotation_that_is_not_known_is_left_out(exposure, sources):
    exposure.info = dataclasses.replace(exposure.info, rotation_deg=float("nan"))
    (triplet,) = cut(exposure, sources).triplets
    assert "ROTPA" not in load_cutout(triplet.science).header


def test_pixels_without_a_variance_must_not_be_used(exposure, sources):
    exposure.variance[60, 50] = np.nan
    (triplet,) = cut(exposure, sources).triplets
    cutout = load_cutout(triplet.science)
    assert np.isfinite(cutout.data).all()
    assert cutout.mask.sum() == 1


@pytest.mark.parametrize("side", [30, 31, 64, 101, 102])
@pytest.mark.parametrize(("x", "y"), [(50.0, 60.0), (50.49, 60.51), (50.5, 60.5), (49.999, 60.25)])
def test_source_is_within_half_a_pixel_of_the_middle(exposure, make_sources, side, x, y):
    (triplet,) = cut(exposure, make_sources([x], [y], bbox_size=side)).triplets
    cutout = load_cutout(triplet.difference)
    assert cutout.data.shape == (side, side)
    position = cutout.wcs.world_to_pixel_values(
        *exposure.wcs.pixel_to_sky(x=np.float64(np.float32(x)), y=np.float64(np.float32(y)))
    )
    assert np.abs(np.array(position) - (side - 1) / 2).max() <= 0.5 + 1e-5  # the tangent planes' agreement


@pytest.mark.bench
def test_three_hundred_triplets_a_second(make_exposure, make_sources):
    rng = np.random.default_rng(3)
    exposure = make_exposure()
    sources = make_sources(rng.uniform(20, 180, 500), rng.uniform(20, 180, 500))
    start = time.perf_counter()
    cut(exposure, sources)
    assert 500 / (time.perf_counter() - start) > 300
