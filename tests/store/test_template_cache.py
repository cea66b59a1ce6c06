import errno
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from alertprod.errors import ConfigError, CorruptImage, ImageNotYetAvailable
from alertprod.images.exposure import ExposureInfo
from alertprod.images.fits_io import save_exposure
from alertprod.images.photo_calib import PhotoCalib
from alertprod.images.profile import load_profile
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.psf.psfex import PsfexPsf
from alertprod.store.images import ImageStore
from alertprod.store.template_cache import CacheCounts, TemplateCache
from alertprod.store.tile_facts import decode_facts, encode_facts

PLENTY = 1 << 30


@pytest.fixture
def tiles(tmp_path, exposure, wcs):
    (tmp_path / "tiles").mkdir()
    paths = [str(tmp_path / "tiles" / f"{i}.fits") for i in range(4)]
    for i, path in enumerate(paths):
        save_exposure(exposure(wcs=wcs(), level=float(i)), path)
    return paths


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def tile_bytes(tiles, tmp_path):
    cache = TemplateCache(tmp_path / "measure", max_bytes=PLENTY)
    cache.load(tiles[0])
    return cache.compute_size_bytes()


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_tile_is_the_same_decoded_and_cached(tiles, folder):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    original = ImageStore().load(tiles[1])
    for found in (cache.load(tiles[1]), cache.load(tiles[1])):
        np.testing.assert_array_equal(found.image, original.image)
        np.testing.assert_array_equal(found.mask, original.mask)
        np.testing.assert_array_equal(found.variance, original.variance)
        assert [plane.dtype for plane in (found.image, found.mask, found.variance)] == ["f4", "i4", "f4"]
        assert found.photo_calib == original.photo_calib
        assert found.info == original.info
        np.testing.assert_array_equal(found.wcs.pixel_to_sky(x=3.0, y=4.0), original.wcs.pixel_to_sky(x=3.0, y=4.0))
        np.testing.assert_array_equal(
            found.psf.compute_kernel_image(x=1, y=2), original.psf.compute_kernel_image(x=1, y=2)
        )
    assert cache.take_counts() == CacheCounts(hits=1, misses=1)
    assert cache.take_counts() == CacheCounts()


def test_cached_planes_cannot_be_written_to(tiles, folder):
    found = TemplateCache(folder, max_bytes=PLENTY).load(tiles[0])
    for plane in (found.image, found.mask, found.variance):
        with pytest.raises(ValueError, match="read-only"):
            plane[0, 0] = 1
    found.copy().image[0, 0] = 1


def test_what_one_process_decoded_the_next_one_finds(tiles, folder):
    assert TemplateCache(folder, max_bytes=PLENTY).prefetch(tiles[0])
    again = TemplateCache(folder, max_bytes=PLENTY)
    assert not again.prefetch(tiles[0])
    assert again.take_counts() == CacheCounts(hits=1)


def test_a_changed_file_is_another_tile(tiles, folder, exposure, wcs):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    cache.load(tiles[0])
    save_exposure(exposure(wcs=wcs(), level=500.0), tiles[0])
    assert cache.load(tiles[0]).image.mean() == pytest.approx(500.0, abs=1.0)
    assert cache.take_counts() == CacheCounts(misses=2)


def test_another_profile_is_another_tile(tiles, folder):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    cache.load(tiles[0])
    cache.load(tiles[0], load_profile("alertprod", {"description": "read otherwise"}))
    assert cache.take_counts() == CacheCounts(misses=2)


def test_the_least_recently_used_goes_first(tiles, folder, tile_bytes):
    cache = TemplateCache(folder, max_bytes=2 * tile_bytes)
    cache.load(tiles[0])
    cache.load(tiles[1])
    cache.load(tiles[0])
    cache.load(tiles[2])
    assert cache.take_counts() == CacheCounts(hits=1, misses=3, evictions=1)
    assert cache.compute_size_bytes() == 2 * tile_bytes
    assert not cache.prefetch(tiles[0])
    assert cache.prefetch(tiles[1])


def test_the_bound_holds_at_every_moment(tiles, folder, tile_bytes):
    cache = TemplateCache(folder, max_bytes=int(2.5 * tile_bytes))
    for i in (0, 1, 2, 3, 2, 1, 0, 3):
        cache.load(tiles[i])
        assert cache.compute_size_bytes() <= 2.5 * tile_bytes


def test_an_eviction_does_not_disturb_a_reader(tiles, folder, tile_bytes):
    cache = TemplateCache(folder, max_bytes=tile_bytes)
    held = cache.load(tiles[0])
    expected = ImageStore().load(tiles[0])
    cache.load(tiles[1])
    assert cache.compute_size_bytes() == tile_bytes
    np.testing.assert_array_equal(held.image, expected.image)
    np.testing.assert_array_equal(held.variance, expected.variance)


def test_a_tile_larger_than_the_cache_is_served_and_not_kept(tiles, folder, tile_bytes):
    cache = TemplateCache(folder, max_bytes=tile_bytes - 1)
    assert cache.load(tiles[3]).image.mean() == pytest.approx(3.0, abs=1.0)
    assert not cache.load(tiles[3]).image.flags.writeable
    assert cache.compute_size_bytes() == 0
    assert cache.take_counts() == CacheCounts(misses=2)


def test_a_full_disk_costs_speed_and_not_the_exposure(tiles, folder, monkeypatch):
    cache = TemplateCache(folder, max_bytes=PLENTY)

    def refuse(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    assert cache.load(tiles[2]).image.mean() == pytest.approx(2.0, abs=1.0)
    assert files(folder) == []


@pytest.mark.parametrize("damage", [b"", b"short", b"alertprod tile 1" + bytes(24), b"alertprod tile 2" + bytes(24)])
def test_a_damaged_file_is_made_anew(tiles, folder, damage):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    cache.load(tiles[1])
    (name,) = files(folder)
    (folder / name).write_bytes(damage)
    assert cache.load(tiles[1]).image.mean() == pytest.approx(1.0, abs=1.0)
    assert cache.take_counts() == CacheCounts(misses=2)
    cache.load(tiles[1])
    assert cache.take_counts() == CacheCounts(hits=1)


def test_what_a_killed_process_left_is_swept_up(tiles, folder):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    (folder / "abc.123.part").write_bytes(bytes(1000))
    cache.load(tiles[0])
    (name,) = files(folder)
    assert name.endswith(".tile")
    assert cache.take_counts() == CacheCounts(misses=1)


def test_errors_of_the_image_pass_through_and_leave_nothing(tmp_path, folder):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    (tmp_path / "bad.fits").write_bytes(b"bad")
    with pytest.raises(CorruptImage):
        cache.load(str(tmp_path / "bad.fits"))
    with pytest.raises(ImageNotYetAvailable):
        cache.load(str(tmp_path / "none.fits"))
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        TemplateCache(tmp_path / "file" / "cache", max_bytes=PLENTY)


def test_threads_that_want_one_tile_decode_it_once(tiles, folder):
    caches = [TemplateCache(folder, max_bytes=PLENTY) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda cache: cache.load(tiles[1]).image.mean(), caches))
    assert len(set(found)) == 1
    counts = [cache.take_counts() for cache in caches]
    assert sum(count.misses for count in counts) == 1
    assert sum(count.hits for count in counts) == 3


def read_many(folder, max_bytes, tiles, seed, results):
    cache = TemplateCache(folder, max_bytes=max_bytes)
    wrong = 0
    for i in np.random.default_rng(seed).integers(0, len(tiles), 100):
        wrong += abs(float(cache.load(tiles[i]).image.mean()) - i) > 0.5
    results.put((wrong, cache.take_counts()))


def test_processes_that_read_and_evict_at_once_see_whole_tiles(tiles, folder, tile_bytes):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=read_many, args=(folder, 2 * tile_bytes, tiles, seed, results)) for seed in range(2)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert [wrong for wrong, _ in outcomes] == [0, 0]
    assert sum(counts.evictions for _, counts in outcomes) > 0
    assert all(counts.hits + counts.misses == 100 for _, counts in outcomes)
    assert TemplateCache(folder, max_bytes=PLENTY).compute_size_bytes() <= 2 * tile_bytes


@pytest.mark.parametrize(
    "psf",
    [
        None,
        GaussianPsf(fwhm=3.7, ellipticity=0.1, position_angle_deg=12.3, size=31, average_position=(4.0, 5.5)),
        MoffatPsf(fwhm=4.1, beta=2.9, ellipticity=0.05, position_angle_deg=-7.0),
        PsfexPsf(
            np.stack([GaussianPsf(fwhm=4 + n, size=31).compute_kernel_image(x=0, y=0) / (1 + 3 * n) for n in range(3)]),
            degree=1, zero=(100.1, 50.7), scale=(99.9, 51.3), sampling=0.7, size=21,
        ),
        PsfexPsf(np.ones((4, 9, 9)), degree=(1, 1), zero=(3.0, 3.0), scale=(10.0, 10.0)),
    ],
)  # fmt: skip
def test_what_describes_a_tile_comes_back_to_the_last_bit(exposure, wcs, psf):
    info = ExposureInfo(
        instrument="SimCam", visit=2**53 + 1, band="r", shutter_open_mjd_tai=60000.1 + 1e-11, gain=np.float32(1.7),
        provenance={"sky": "é\n"},
    )  # fmt: skip
    photo_calib = PhotoCalib(njy_per_count=0.1 + 0.2, is_nominal=True, njy_per_count_err=1e-3)
    tile = replace(exposure(wcs=wcs()), psf=psf, info=info, photo_calib=photo_calib)
    found = decode_facts(encode_facts(tile))
    assert (found.info, found.photo_calib) == (info, photo_calib)
    np.testing.assert_array_equal(found.wcs.pixel_to_sky(x=13.3, y=7.1), tile.wcs.pixel_to_sky(x=13.3, y=7.1))
    assert type(found.psf) is type(psf)
    if psf is not None:
        assert (found.psf.size, found.psf.average_position) == (psf.size, psf.average_position)
        for place in ({"x": 1.0, "y": 2.0}, {"x": 60.5, "y": 31.0}):
            np.testing.assert_array_equal(found.psf.compute_kernel_image(**place), psf.compute_kernel_image(**place))


def test_a_spoilt_description_is_made_anew(tiles, folder):
    cache = TemplateCache(folder, max_bytes=PLENTY)
    cache.load(tiles[0])
    (name,) = files(folder)
    whole = bytearray((folder / name).read_bytes())
    whole[whole.index(b"photo_calib")] ^= 1
    (folder / name).write_bytes(whole)
    assert cache.load(tiles[0]).image.mean() == pytest.approx(0.0, abs=1.0)
    assert cache.take_counts() == CacheCounts(misses=2)


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_nothing_in_a_description_is_executed(tmp_path, end):
    """Not even in one that was forged with care."""
    with pytest.raises((ValueError, TypeError, LookupError)):
        decode_facts(pickle.dumps(Bomb(tmp_path / "mark")) + end)
    for forged in (b"[]", b"{}", b"1", b'{"wcs": null, "psf": {"kind": "os.system"}, "photo_calib": {}, "info": {}}'):
        with pytest.raises((ValueError, TypeError, LookupError)):
            decode_facts(forged + end)
    assert not (tmp_path / "mark").exists()


def test_a_tile_without_room_is_described_as_one_that_is_kept(tiles, folder, tmp_path):
    kept = TemplateCache(folder, max_bytes=PLENTY).load(tiles[0])
    passed = TemplateCache(tmp_path / "small", max_bytes=10).load(tiles[0])
    assert passed.info == kept.info
    at = {"x": 30.3, "y": 20.2}
    np.testing.assert_array_equal(passed.wcs.pixel_to_sky(**at), kept.wcs.pixel_to_sky(**at))
    np.testing.assert_array_equal(passed.psf.compute_kernel_image(**at), kept.psf.compute_kernel_image(**at))
