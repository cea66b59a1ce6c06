"""A night: everything from the seed, events that are events, tiles under every detector, truth that is in the files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from made_skies import NIGHT

from alertprod.ids import RubinPacker
from alertprod.images.exposure import ExposureInfo
from alertprod.images.facts import check_facts
from alertprod.images.fits_io import load_exposure
from alertprod.images.mask import plane_bits
from alertprod.images.profile import load_profile
from alertprod.sim.night import SECONDS_PER_DAY, Night, make_night
from alertprod.sim.render import Seeing, render_exposure
from alertprod.store.sky import compute_footprint
from alertprod.store.template_index import TemplateIndex, index_templates
from alertprod.stream.messages import VisitReady, decode_visit_ready, encode_visit_ready

SMALL = replace(NIGHT, n_detectors=2, size=128, gap_pixels=10, template_size=160, template_overlap=30)


def facts(header):
    return {name: value for name, value in header.items() if name not in ("DATE", "CHECKSUM", "COMMENT", "HISTORY")}


def assert_same_file(first, second):
    with fits.open(first) as a, fits.open(second) as b:
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert facts(one.header) == facts(other.header)
            assert (one.data is None) == (other.data is None)
            if one.data is not None:
                np.testing.assert_array_equal(one.data, other.data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small night made by two processes, and what was said meanwhile."""
    said = []
    tiles_first = []
    directory = tmp_path_factory.mktemp("made")
    night = make_night(
        directory,
        SMALL,
        processes=2,
        progress=lambda *said_now: said.append(said_now),
        on_templates=lambda: tiles_first.append(len(list(directory.glob("templates/*.fits")))),
    )
    return night, said, tiles_first


def test_the_seed_alone_decides_whatever_the_processes(made, tmp_path):
    night, _, _ = made
    alone = Night(tmp_path, SMALL)
    # Here in one process, last things first.
    for visit in reversed(range(SMALL.n_visits)):
        for detector in reversed(range(SMALL.n_detectors)):
            path, truth = alone.render_visit(visit, detector)
            assert_same_file(path, night.exposure_path(visit, detector))
            whole = Table.read(night.directory / "truth.ecsv")
            mine = whole[(whole["visit"] == night.visit_id(visit)) & (whole["detector"] == detector)]
            assert len(mine) == len(truth)
            for name in truth.colnames:
                np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(truth[name]), err_msg=name)
    for name, wcs in reversed(list(alone.tiles())):
        path = alone.render_tile(name, wcs)
        assert_same_file(path, night.templates_directory / path.name)


def test_another_seed_is_another_night(made, tmp_path):
    night, _, _ = made
    other = Night(tmp_path, replace(SMALL, seed=SMALL.seed + 1))
    path, _ = other.render_visit(0, 0)
    first, second = (load_exposure(p) for p in (path, night.exposure_path(0, 0)))
    assert (first.image == second.image).mean() < 0.01


def test_everything_is_written_and_told(made):
    night, said, tiles_first = made
    n_tiles = len(list(night.tiles()))
    total = n_tiles + SMALL.n_visits * SMALL.n_detectors
    assert [done for done, _, _ in said] == list(range(1, total + 1))
    assert {t for _, t, _ in said} == {total}
    assert sum(what == "template tile" for _, _, what in said) == n_tiles
    assert tiles_first == [n_tiles]
    events = [json.loads(line) for line in (night.directory / "events.jsonl").read_text().splitlines()]
    assert len(events) == SMALL.n_visits * SMALL.n_detectors
    assert json.loads((night.directory / "night.json").read_text())["seed"] == SMALL.seed
    packer = load_profile(str(night.directory / "profile.toml")).create_packer()
    assert isinstance(packer, RubinPacker)
    for event in events:
        packer.pack(visit=event["visit"], detector=event["detector"])


def test_events_are_valid_and_agree_with_their_files(made):
    night, _, _ = made
    profile = load_profile(str(night.directory / "profile.toml"))
    for line in (night.directory / "events.jsonl").read_text().splitlines():
        event = decode_visit_ready(line.encode())
        assert event == VisitReady(**json.loads(line))
        assert decode_visit_ready(encode_visit_ready(event)) == event
        info = load_exposure(event.calexp_uri, profile).info
        check_facts(
            info,
            visit=event.visit,
            detector=event.detector,
            band=event.band,
            ra_deg=event.ra_deg,
            dec_deg=event.dec_deg,
            max_offset_arcsec=1.0,
            uri=event.calexp_uri,
            profile=profile,
        )
        assert info.shutter_open_mjd_tai == pytest.approx(event.shutter_open_mjd_tai, abs=1e-9)
        assert event.shutter_close_mjd_tai - event.shutter_open_mjd_tai == pytest.approx(
            event.exposure_time_s / SECONDS_PER_DAY, abs=1e-9
        )


def test_tiles_cover_every_detector_of_every_visit(made):
    night, _, _ = made
    tiles = [wcs for _, wcs in night.tiles()]
    grid = np.linspace(-0.5, SMALL.size - 0.5, 17)
    gx, gy = (axis.ravel() for axis in np.meshgrid(grid, grid))
    for visit in range(SMALL.n_visits):
        for detector in range(SMALL.n_detectors):
            exposure = load_exposure(night.exposure_path(visit, detector))
            ra, dec = exposure.wcs.pixel_to_sky(x=gx, y=gy)
            covered = np.zeros(gx.size, dtype=bool)
            for wcs in tiles:
                x, y = wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec)
                # Lanczos-3 needs three pixels on either side.
                covered |= (np.minimum(x, y) > 3) & (np.maximum(x, y) < SMALL.template_size - 4)
            assert covered.all()


def test_tiles_are_another_grid_that_the_index_finds(made):
    night, _, _ = made
    index_templates(str(night.templates_directory))
    index = TemplateIndex.load(str(night.templates_directory / "templates.json"))
    exposure = load_exposure(night.exposure_path(0, 0))
    assert index.query(compute_footprint(exposure.wcs, exposure.shape), SMALL.band)
    assert not index.query(compute_footprint(exposure.wcs, exposure.shape), "z")
    tile = load_exposure(next(night.templates_directory.glob("*.fits")))
    scales = [e.wcs.compute_pixel_scale_arcsec(x=50, y=50) for e in (tile, exposure)]
    assert scales == pytest.approx([SMALL.template_scale_arcsec, SMALL.scale_arcsec], rel=1e-4)
    # A tenth of the exposure's noise variance per area.
    per_area = [
        np.median(e.variance) * e.photo_calib.njy_per_count**2 / s**2
        for e, s in zip((tile, exposure), scales, strict=True)
    ]
    assert per_area[0] / per_area[1] == pytest.approx(1 / SMALL.template_depth, rel=0.1)


def test_truth_is_in_the_files(night):
    """What an exposure has above the noise-free sky of the templates is what the truth lists, within its noise."""
    truth = Table.read(night.directory / "truth.ecsv")
    pulls = []
    for visit in range(NIGHT.n_visits):
        exposure = load_exposure(night.exposure_path(visit, 0))
        expected = render_exposure(
            night.scene.template(),
            wcs=exposure.wcs,
            shape=exposure.shape,
            seeing=Seeing(fwhm=night._fwhm[visit], e1=night._ellipticity[visit, 0], e2=night._ellipticity[visit, 1]),
            detector=NIGHT.detector,
            info=ExposureInfo(),
            rng=np.random.default_rng(0),
        ).true_image
        for row in truth[(truth["visit"] == night.visit_id(visit)) & truth["is_measurable"] & (truth["snr"] > 3)]:
            x, y = exposure.wcs.sky_to_pixel(ra_deg=row["ra_deg"], dec_deg=row["dec_deg"])
            assert (x, y) == pytest.approx((row["x"], row["y"]), abs=0.01)
            stamp, box = exposure.psf.compute_stellar_image(x=float(x), y=float(y))
            inside = box.intersection(exposure.box)
            rows, columns = inside.slices
            stamp = stamp[
                inside.y_min - box.y_min : inside.y_max - box.y_min, inside.x_min - box.x_min : inside.x_max - box.x_min
            ]
            good = exposure.mask[rows, columns] == 0
            power = (stamp[good] ** 2).sum()
            change = ((exposure.image - expected)[rows, columns] * stamp)[good].sum() / power
            sigma = np.sqrt((exposure.variance[rows, columns] * stamp**2)[good].sum()) / power
            pulls.append((change * exposure.photo_calib.njy_per_count - row["flux_njy"]) / sigma / 5.0)
            # The truth's S/N counts the template's tenth of the noise, and the noise where the source is.
            assert row["snr"] == pytest.approx(abs(row["flux_njy"]) / (sigma * 5.0) / np.sqrt(1.1), rel=0.15)
    assert len(pulls) > 8
    assert np.abs(pulls).max() < 4.0
    assert np.mean(pulls) == pytest.approx(0.0, abs=5 / np.sqrt(len(pulls)))


def test_unmeasurable_are_those_on_defects_and_at_the_edge(night):
    truth = Table.read(night.directory / "truth.ecsv")
    bad = plane_bits("SAT", "BAD", "CR", "NO_DATA")
    for row in truth:
        exposure = load_exposure(night.exposure_path(int(row["visit"] - night.visit_id(0)), 0))
        column, line = round(row["x"]), round(row["y"])
        around = exposure.mask[max(0, line - 1) : line + 2, max(0, column - 1) : column + 2]
        margin = min(row["x"], row["y"], NIGHT.size - 1 - row["x"], NIGHT.size - 1 - row["y"])
        assert row["is_measurable"] == (margin > 30 and not (around & bad).any())


def test_a_visit_can_be_taken_at_another_time(tmp_path):
    night = Night(tmp_path, SMALL)
    for detector in range(SMALL.n_detectors):
        night.render_visit(1, detector)
    before = load_exposure(night.exposure_path(1, 0))
    events = night.restamp(1, shutter_open_mjd_tai=62000.125)
    assert [event["detector"] for event in events] == [0, 1]
    after = load_exposure(night.exposure_path(1, 0))
    np.testing.assert_array_equal(after.image, before.image)
    assert after.info.visit == before.info.visit
    for event in events:
        info = load_exposure(event["calexp_uri"]).info
        assert event["shutter_open_mjd_tai"] == info.shutter_open_mjd_tai == 62000.125
        assert event["shutter_close_mjd_tai"] == info.shutter_close_mjd_tai
        assert event["sent_at_mjd_tai"] == event["shutter_close_mjd_tai"]
        VisitReady(**event)


def test_visits_have_thirteen_digits_of_their_date():
    night = Night("unused", SMALL)  # nothing is written before something is rendered
    assert night.visit_id(0) == 2025112100001
    assert night.visit_id(6) - night.visit_id(0) == 6


def test_a_night_crosses_right_ascension_zero(night):
    truth = Table.read(night.directory / "truth.ecsv")
    assert ((truth["ra_deg"] > 300) | (truth["ra_deg"] < 60)).all()
    assert ((truth["ra_deg"] >= 0) & (truth["ra_deg"] < 360)).all()
