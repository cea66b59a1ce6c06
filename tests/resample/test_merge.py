from dataclasses import replace

import numpy as np
import pytest

from alertprod.geometry.box import Box
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf.analytic import GaussianPsf
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import warp_exposure, warp_tile

NO_DATA = plane_bits("NO_DATA")
SHAPE = (70, 90)


@pytest.fixture
def rng():
    return np.random.default_rng(20261108)


def make_tile(rng, *, columns, variance=1.0, njy_per_count=1.0, band="r", psf=None):
    planes = MaskedImage.empty(SHAPE)
    planes.image[:, columns] = rng.normal(100.0, 1.0, SHAPE)[:, columns]
    planes.variance[:, columns] = rng.uniform(0.8, 1.2, SHAPE)[:, columns] * variance
    planes.mask[:, columns] = 0
    return Exposure(masked_image=planes, psf=psf, photo_calib=PhotoCalib(njy_per_count), info=ExposureInfo(band=band))


def merge_twin(tiles):
    image = np.stack([tile.image.astype(float) for tile in tiles])
    variance = np.stack([tile.variance.astype(float) for tile in tiles])
    good = np.stack([tile.masked_image.usable(NO_DATA) for tile in tiles])
    scales = np.array([t.photo_calib.njy_per_count for t in tiles])[:, None, None] / tiles[0].photo_calib.njy_per_count
    image, variance = image * scales, variance * scales**2
    weight = np.where(good, np.where(good, variance, 1.0) ** -0.5, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        merged = np.where(good, weight * image, 0).sum(0) / weight.sum(0)
        noise = np.where(good, weight * variance, 0).sum(0) / weight.sum(0)
    masks = np.stack([np.where(g, tile.mask, 0) for g, tile in zip(good, tiles, strict=True)])
    mask = np.bitwise_or.reduce(masks, axis=0) | np.where(good.any(0), 0, NO_DATA)
    return merged, mask, np.where(good.any(0), noise, np.inf)


def test_the_merge_does_what_its_twin_does(rng):
    tiles = [
        make_tile(rng, columns=np.s_[:50], variance=1.0),
        make_tile(rng, columns=np.s_[30:80], variance=4.0, njy_per_count=2.0),
        make_tile(rng, columns=np.s_[40:70], variance=0.5, njy_per_count=0.5),
    ]
    tiles[0].mask[10, 10:40] |= plane_bits("SAT")
    tiles[1].image[20, 35], tiles[2].variance[21, 45], tiles[0].mask[22, 45] = np.nan, -1.0, NO_DATA
    merged = merge_tiles(iter(tiles))
    image, mask, variance = merge_twin(tiles)
    np.testing.assert_allclose(merged.image, image, rtol=1e-5)
    np.testing.assert_allclose(merged.variance, variance, rtol=1e-5)
    np.testing.assert_array_equal(merged.mask, mask)
    assert np.isnan(merged.image[:, 80:]).all()
    assert (merged.mask[:, 80:] == NO_DATA).all()


def test_one_tile_stays_as_it_is(rng):
    tile = make_tile(rng, columns=np.s_[10:])
    merged = merge_tiles([tile])
    np.testing.assert_allclose(merged.image, tile.image, rtol=1e-6)
    np.testing.assert_allclose(merged.variance, tile.variance, rtol=1e-6)
    np.testing.assert_array_equal(merged.mask, tile.mask)
    merged.image[:] = 0
    assert not (tile.image[:, 10:] == 0).any()


def test_the_order_of_tiles_does_not_matter(rng):
    tiles = [make_tile(rng, columns=np.s_[:60]), make_tile(rng, columns=np.s_[20:], variance=3.0)]
    forward, backward = merge_tiles(tiles), merge_tiles(tiles[::-1])
    np.testing.assert_allclose(forward.image, backward.image, rtol=1e-6)
    np.testing.assert_array_equal(forward.mask, backward.mask)


def test_the_psf_is_that_of_the_tiles_at_the_point(rng):
    narrow, wide = GaussianPsf(fwhm=3.0, size=25), GaussianPsf(fwhm=5.0, size=31)
    tiles = [make_tile(rng, columns=np.s_[:60], psf=narrow), make_tile(rng, columns=np.s_[32:], psf=wide)]
    psf = merge_tiles(tiles).psf
    assert psf is not None
    assert psf.compute_fwhm(x=10.0, y=30.0) == pytest.approx(3.0, rel=1e-3)
    assert psf.compute_fwhm(x=80.0, y=30.0) == pytest.approx(5.0, rel=1e-3)
    assert 3.0 < psf.compute_fwhm(x=45.0, y=30.0) < 5.0


def test_a_tile_without_psf_leaves_the_template_without(rng):
    tiles = [make_tile(rng, columns=np.s_[:60], psf=GaussianPsf(fwhm=3.0)), make_tile(rng, columns=np.s_[32:])]
    assert merge_tiles(tiles).psf is None


def test_a_tile_that_adds_nothing_does_not_count_for_the_psf(rng):
    empty = Exposure(masked_image=MaskedImage.empty(SHAPE), info=ExposureInfo(band="r"))
    psf = merge_tiles([empty, make_tile(rng, columns=np.s_[:60], psf=GaussianPsf(fwhm=3.0))]).psf
    assert psf is not None
    assert psf.compute_fwhm() == pytest.approx(3.0, rel=1e-3)


def test_a_nominal_zero_point_makes_the_template_nominal(rng):
    tiles = [make_tile(rng, columns=np.s_[:60]), make_tile(rng, columns=np.s_[32:])]
    tiles[1].photo_calib = PhotoCalib(1.0, is_nominal=True)
    assert merge_tiles(tiles).photo_calib.is_nominal


def test_tiles_that_do_not_fit_are_refused(rng):
    tile = make_tile(rng, columns=np.s_[:])
    with pytest.raises(ValueError, match="no tiles"):
        merge_tiles([])
    with pytest.raises(ValueError, match="band"):
        merge_tiles([tile, make_tile(rng, columns=np.s_[:], band="g")])
    cut = tile.masked_image.cutout(Box(x_min=0, y_min=0, x_max=50, y_max=50))
    with pytest.raises(ValueError, match="shape"):
        merge_tiles([tile, replace(tile, masked_image=cut)])


def test_overlapping_tiles_on_other_grids_merge_into_stars_like_the_psf():
    psfs = [GaussianPsf(fwhm=3.2, ellipticity=0.1, size=33), GaussianPsf(fwhm=3.9, ellipticity=0.2, size=39)]
    target_wcs = SkyWcs.from_tangent(ra_deg=359.9999, dec_deg=-45, x=99.5, y=99.5, scale_arcsec=0.2, rotation_deg=8)
    x_star, y_star, flux = 100.3, 99.1, 5e3
    ra, dec = target_wcs.pixel_to_sky(x=x_star, y=y_star)
    warped = []
    for psf, shift in zip(psfs, (-20.0, 25.0), strict=True):
        wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=-45, x=100 + shift, y=100, scale_arcsec=0.23)
        image = np.zeros((200, 210), dtype=np.float32)
        x, y = (float(p) for p in wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec))
        star, box = psf.compute_stellar_image(x=x, y=y)
        image[box.slices] += flux * star
        planes = MaskedImage(image, np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32))
        warped.append(warp_exposure(Exposure(masked_image=planes, wcs=wcs, psf=psf), target_wcs, (200, 200)))
    merged = merge_tiles(warped)
    assert merged.psf is not None
    model, box = merged.psf.compute_stellar_image(x=x_star, y=y_star)
    stamp = merged.image[box.slices]
    # Weights of single pixels differ from their mean over a block by the kernel's sum of squares, 0.4 to 1, and
    # with them the mixture of two profiles whose peaks differ by a third.
    assert np.abs(stamp - flux * model).max() < 0.03 * stamp.max()


def test_boxes_merge_as_whole_images_do(rng):
    target = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=20.0, x=80, y=70, scale_arcsec=0.2, rotation_deg=5.0)
    tiles = []
    for shift in (-35, 40):
        image = rng.normal(100, 1, (120, 90)).astype(np.float32)
        planes = MaskedImage(image, np.zeros(image.shape, np.int32), np.ones(image.shape, np.float32))
        wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=20.0, x=45 + shift, y=60, scale_arcsec=0.21)
        tiles.append(Exposure(masked_image=planes, wcs=wcs, psf=GaussianPsf(fwhm=3.0 + 0.01 * shift)))
    whole = merge_tiles(warp_exposure(tile, target, (140, 160)) for tile in tiles)
    boxes = merge_tiles(warp_tile(tile, target, (140, 160)) for tile in tiles)
    np.testing.assert_array_equal(boxes.image, whole.image)
    np.testing.assert_array_equal(boxes.mask, whole.mask)
    np.testing.assert_array_equal(boxes.variance, whole.variance)
    for x in (20.0, 80.0, 140.0):
        np.testing.assert_array_equal(
            boxes.psf.compute_kernel_image(x=x, y=70.0), whole.psf.compute_kernel_image(x=x, y=70.0)
        )


def test_the_merge_does_not_depend_on_the_number_of_threads(rng):
    target = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=0.0, x=110.0, y=90.0, scale_arcsec=0.2)
    # Bands of 64 rows begin elsewhere in the second: within one of the first's blocks.
    tiles = [
        replace(make_tile(rng, columns=np.s_[:], psf=GaussianPsf(fwhm=3.0)), wcs=target.shifted(dx=-dx, dy=-dy))
        for dx, dy in ((3.3, 20.0), (50.6, 47.5), (20.0, 110.1))
    ]

    def merge(n_threads):
        return merge_tiles(
            (warp_tile(tile, target, (200, 150), n_threads=n_threads) for tile in tiles), n_threads=n_threads
        )

    one, two = merge(1), merge(2)
    for plane, other in ((one.image, two.image), (one.mask, two.mask), (one.variance, two.variance)):
        np.testing.assert_array_equal(plane, other)
    at = {"x": 75.0, "y": 80.0}
    np.testing.assert_array_equal(one.psf.compute_kernel_image(**at), two.psf.compute_kernel_image(**at))
