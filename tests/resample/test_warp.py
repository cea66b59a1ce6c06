import numpy as np
import pytest

from alertprod._bands import row_bands
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib
from alertprod.psf._lanczos import KERNEL_RADII, kernel_weights
from alertprod.psf.analytic import GaussianPsf, MoffatPsf
from alertprod.resample import _loops
from alertprod.resample.mapping import PixelMapping
from alertprod.resample.warp import warp_exposure, warp_masked_image, warp_tile

NO_DATA = plane_bits("NO_DATA")
EDGE = plane_bits("EDGE")
IDENTITY = np.eye(2)


@pytest.fixture
def rng():
    return np.random.default_rng(20261107)


def make_image(image, *, variance=None, mask=None):
    image = np.asarray(image, dtype=np.float32)
    return MaskedImage(
        image,
        np.zeros(image.shape, dtype=np.int32) if mask is None else mask,
        np.ones(image.shape, dtype=np.float32) if variance is None else variance.astype(np.float32),
    )


def draw_star(shape, *, x, y, sigma=2.0):
    """Return a Gaussian star of flux 1."""
    v, u = np.mgrid[: shape[0], : shape[1]].astype(float)
    return np.exp(-0.5 * ((u - x) ** 2 + (v - y) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


def warp_twin(source, mapping, kernel):
    """Return image, mask and variance pixel by pixel, with exact weights, as the docstring of the warp says."""
    radius = KERNEL_RADII[kernel]
    ny, nx = source.shape
    usable = source.usable(NO_DATA)
    result = MaskedImage.empty(mapping.shape)
    for y in range(mapping.shape[0]):
        for x in range(mapping.shape[1]):
            xs, ys = mapping.evaluate(x=x, y=y)
            if not (-0.5 <= xs <= nx - 0.5 and -0.5 <= ys <= ny - 0.5):
                continue
            area = float(mapping.compute_area_ratio(x=x, y=y))
            column, row = int(np.floor(xs)), int(np.floor(ys))
            wx, wy = (kernel_weights(np.array([p - q]), kernel)[0] for p, q in ((xs, column), (ys, row)))
            weights, reach = np.outer(wy, wx), np.arange(1 - radius, radius + 1)
            columns, rows = column + reach, row + reach
            inside = ((rows >= 0) & (rows < ny))[:, None] & ((columns >= 0) & (columns < nx))[None, :]
            grid = np.ix_(np.clip(rows, 0, ny - 1), np.clip(columns, 0, nx - 1))
            good = inside & usable[grid]
            kept = np.where(good, weights, 0.0)
            bits = int(np.bitwise_or.reduce(source.mask[grid][inside & (np.abs(weights) >= 0.01)], initial=0))
            lost = np.abs(weights)[~good].sum()
            if not good.flat[weights.argmax()] or lost > 0.1 * np.abs(weights).sum():
                result.mask[y, x] = bits | NO_DATA
                continue
            values, noise = source.image[grid], source.variance[grid]
            result.image[y, x] = area * (kept[good] * values[good]).sum() / kept.sum()
            result.variance[y, x] = area**2 * (kept[good] ** 2 * noise[good]).sum() / kept.sum() ** 2
            result.mask[y, x] = (bits & ~NO_DATA) | (EDGE if lost >= 0.01 else 0)
    return result


def rotation(degrees, scale=1.0):
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_the_compiled_loop_does_what_its_twin_does(kernel, rng):
    shape = (37, 45)
    source = make_image(rng.normal(100.0, 5.0, shape), variance=rng.uniform(0.5, 2.0, shape))
    source.mask[rng.random(shape) < 0.03] |= plane_bits("CR")
    source.mask[rng.random(shape) < 0.03] |= plane_bits("SAT", "DETECTED")
    source.image[rng.random(shape) < 0.02] = np.nan
    source.mask[rng.random(shape) < 0.02] |= NO_DATA
    source.variance[rng.random(shape) < 0.02] = np.inf
    mapping = PixelMapping.from_affine(rotation(7.0, 0.9), x=-3.3, y=2.7, shape=(50, 52))
    warped, twin = warp_masked_image(source, mapping, kernel=kernel), warp_twin(source, mapping, kernel)
    # Kernel positions are rounded to 1/4096 pixel, so weights at a threshold may fall on the other side.
    assert (warped.mask != twin.mask).mean() < 0.005
    both = np.isfinite(twin.image) & np.isfinite(warped.image)
    assert (np.isfinite(twin.image) != np.isfinite(warped.image)).mean() < 0.005
    assert both.mean() > 0.3
    # 1.2e-4 pixels times slopes of 5 counts a pixel, and up to a dozen such terms.
    np.testing.assert_allclose(warped.image[both], twin.image[both], atol=1e-2)
    np.testing.assert_allclose(warped.variance[both], twin.variance[both], rtol=5e-3)


def test_preparing_the_source_marks_what_has_no_value(rng):
    shape = (9, 11)
    image, variance = rng.normal(size=shape).astype("f4"), rng.uniform(1, 2, shape).astype("f4")
    mask = np.zeros(shape, dtype=np.int32)
    image[0, 0], image[1, 1], variance[2, 2], variance[3, 3], variance[4, 4] = np.nan, np.inf, 0, -1, np.nan
    mask[5, 5], mask[6, 6] = NO_DATA, plane_bits("BAD")
    clean, noise, flags = np.empty_like(image), np.empty_like(image), np.empty_like(mask)
    seen = _loops.prepare_source(image, mask, variance, NO_DATA, clean, noise, flags)
    bad = ~make_image(image, variance=variance, mask=mask).usable(NO_DATA)
    assert bad.sum() == 6
    np.testing.assert_array_equal((flags & _loops.INVALID) != 0, bad)
    np.testing.assert_array_equal(flags & ~_loops.INVALID, mask)
    np.testing.assert_array_equal(clean, np.where(bad, 0, image))
    np.testing.assert_array_equal(noise, np.where(bad, 0, variance))
    assert seen == _loops.INVALID | NO_DATA | plane_bits("BAD")


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_the_near_map_reaches_as_far_as_the_kernel(radius, rng):
    shape = (23, 31)
    flags = np.zeros(shape, dtype=np.int32)
    flags[rng.random(shape) < 0.01] = 4
    flags[rng.random(shape) < 0.005] = _loops.INVALID
    near = np.zeros(shape, dtype=np.uint8)
    for rows in row_bands(shape[0], height=7):
        _loops.map_near(flags, radius, near, rows.start, rows.stop)
    kinds = (flags != 0) * _loops.FLAGGED | ((flags & _loops.INVALID) != 0) * _loops.UNUSABLE
    expected = np.zeros(shape, dtype=int)
    for y in range(shape[0]):
        for x in range(shape[1]):
            window = kinds[max(0, y - radius + 1) : y + radius + 1, max(0, x - radius + 1) : x + radius + 1]
            expected[y, x] = np.bitwise_or.reduce(window, axis=None)
    np.testing.assert_array_equal(near, expected)


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_the_identity_changes_nothing(kernel, rng):
    source = make_image(rng.normal(size=(40, 50)), variance=rng.uniform(1, 2, (40, 50)))
    source.mask[5, 6], source.mask[20, 20] = plane_bits("CR"), NO_DATA
    source.image[20, 20], source.variance[20, 20] = np.nan, np.inf
    warped = warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=0, y=0, shape=(40, 50)), kernel=kernel)
    np.testing.assert_array_equal(warped.image, source.image)
    np.testing.assert_array_equal(warped.mask, source.mask)
    np.testing.assert_array_equal(warped.variance, source.variance)


def test_equal_world_coordinates_change_nothing(rng):
    wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=-89.9, x=100, y=90, scale_arcsec=0.2, rotation_deg=33)
    source = Exposure(masked_image=make_image(rng.normal(size=(180, 200))), wcs=wcs)
    warped = warp_exposure(source, wcs, (180, 200))
    # The area ratio comes from differences of positions, good to some 1e-8.
    np.testing.assert_allclose(warped.image, source.image, rtol=1e-6)
    assert not warped.mask.any()


@pytest.mark.parametrize(("dx", "dy"), [(0.5, 0.5), (0.25, 0.0), (3.1, -2.7)])
def test_a_shifted_star_agrees_with_the_analytic_one(dx, dy):
    shape = (61, 61)
    warped = warp_masked_image(
        make_image(draw_star(shape, x=30.2, y=30.7)), PixelMapping.from_affine(IDENTITY, x=dx, y=dy, shape=shape)
    )
    expected = draw_star(shape, x=30.2 - dx, y=30.7 - dy)
    inner = np.s_[5:-5, 5:-5]
    # Normalised Lanczos-3 is not exact for a parabola: half its second moment times the curvature, 0.4 % of the
    # peak at sigma 2 and half a pixel.
    np.testing.assert_allclose(warped.image[inner], expected[inner], atol=5e-3 * expected.max())


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("angle", [0.0, 31.0])
def test_flux_is_conserved_when_the_scale_changes(scale, angle):
    shape, target = (81, 81), (121, 121)
    matrix = rotation(angle, scale)
    x, y = np.array([40.3, 40.6]) - matrix @ [60.0, 60.0]
    source = make_image(draw_star(shape, x=40.3, y=40.6, sigma=2.2))
    warped = warp_masked_image(source, PixelMapping.from_affine(matrix, x=x, y=y, shape=target))
    assert np.nansum(warped.image) == pytest.approx(source.image.sum(), rel=2e-3)


def test_flux_scales_with_the_image_and_its_variance_with_the_square(rng):
    source = make_image(rng.normal(50, 3, (50, 50)), variance=rng.uniform(1, 2, (50, 50)))
    mapping = PixelMapping.from_affine(rotation(12.0), x=5.0, y=-2.0, shape=(50, 50))
    once = warp_masked_image(source, mapping)
    thrice = warp_masked_image(make_image(3 * source.image, variance=9 * source.variance), mapping)
    np.testing.assert_allclose(thrice.image, 3 * once.image, rtol=1e-5)
    np.testing.assert_allclose(thrice.variance, 9 * once.variance, rtol=1e-5)


def test_transposing_source_and_mapping_transposes_the_result(rng):
    source = make_image(rng.normal(size=(40, 60)), variance=rng.uniform(1, 2, (40, 60)))
    source.mask[10, 20:24] = plane_bits("SAT")
    matrix = np.array([[0.97, 0.1], [-0.05, 1.04]])
    warped = warp_masked_image(source, PixelMapping.from_affine(matrix, x=3.3, y=4.4, shape=(30, 45)))
    flipped = MaskedImage(*(np.ascontiguousarray(p.T) for p in (source.image, source.mask, source.variance)))
    swapped = PixelMapping.from_affine(matrix[::-1, ::-1], x=4.4, y=3.3, shape=(45, 30))
    other = warp_masked_image(flipped, swapped)
    np.testing.assert_allclose(other.image.T, warped.image, atol=2e-5)
    np.testing.assert_allclose(other.variance.T, warped.variance, rtol=1e-4)
    np.testing.assert_array_equal(other.mask.T, warped.mask)


def test_a_whole_pixel_shift_moves_the_pixels(rng):
    source = make_image(rng.normal(size=(30, 30)))
    warped = warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=4, y=-3, shape=(30, 30)))
    np.testing.assert_array_equal(warped.image[3:, :26], source.image[:27, 4:])
    assert (warped.mask[:3] == NO_DATA).all()
    assert (warped.mask[:, 26:] == NO_DATA).all()
    assert np.isnan(warped.image[:3]).all()
    assert np.isinf(warped.variance[:3]).all()


@pytest.mark.parametrize("kernel", KERNEL_RADII)
def test_the_variance_plane_of_warped_noise_is_its_pixel_variance(kernel, rng):
    shape = (300, 300)
    source = make_image(rng.normal(0, 2.0, shape), variance=np.full(shape, 4.0))
    mapping = PixelMapping.from_affine(rotation(3.0, 0.8), x=20, y=10, shape=shape)
    warped = warp_masked_image(source, mapping, kernel=kernel)
    pulls = (warped.image / np.sqrt(warped.variance))[warped.mask == 0]
    # About 0.64 source pixels stand behind each pulled one; var of the variance is 2/n for independent ones.
    n_independent = 0.64 * pulls.size
    assert pulls.var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / n_independent))
    assert pulls.mean() == pytest.approx(0.0, abs=5 / np.sqrt(n_independent))


def test_the_stated_covariance_of_neighbours_is_what_white_noise_shows(rng):
    shape, fx = (500, 500), 0.4
    source = make_image(rng.normal(0, 1.0, shape))
    warped = warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=fx, y=0, shape=shape)).image[5:-5, 5:-5]
    weights = kernel_weights(np.array([fx]), "lanczos3")[0]
    for lag in (1, 2):
        measured = (warped[:, lag:] * warped[:, :-lag]).mean()
        assert measured == pytest.approx((weights[lag:] * weights[:-lag]).sum(), abs=5 / np.sqrt(warped.size))


def test_a_constant_image_stays_constant_up_to_the_area():
    source = make_image(np.full((60, 60), 7.0))
    warped = warp_masked_image(source, PixelMapping.from_affine(rotation(20.0, 0.7), x=20, y=5, shape=(50, 50)))
    inside = np.isfinite(warped.image)
    assert inside.any()
    np.testing.assert_allclose(warped.image[inside], 7.0 * 0.49, rtol=1e-5)


def test_a_missing_pixel_leaves_no_hole_where_its_weight_is_small():
    image = np.full((41, 41), 10.0)
    image[20, 20] = np.nan
    warped = warp_masked_image(make_image(image), PixelMapping.from_affine(IDENTITY, x=0.3, y=0.3, shape=(41, 41)))
    inner = warped.image[5:-5, 5:-5]
    holes = np.isnan(inner)
    assert 1 <= holes.sum() <= 4
    assert np.isnan(warped.image[20, 20])
    np.testing.assert_allclose(inner[~holes], 10.0, rtol=1e-5)
    # What was patched says so, and so does its surrounding only.
    patched = (warped.mask[5:-5, 5:-5] & EDGE != 0) & ~holes
    assert 1 <= patched.sum() <= 35
    assert warped.mask[20, 20] & NO_DATA
    assert (warped.mask[5:-5, 5:-5][~holes] & NO_DATA == 0).all()


def test_planes_reach_as_far_as_their_weight(rng):
    source = make_image(rng.normal(size=(30, 30)))
    source.mask[15, 15] = plane_bits("SAT")
    warped = warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=0.5, y=0.5, shape=(30, 30)))
    weights = np.abs(np.outer(*[kernel_weights(np.array([0.5]), "lanczos3")[0]] * 2))
    assert (warped.mask == plane_bits("SAT")).sum() == (weights >= 0.01).sum()
    assert warped.mask[15, 15] == plane_bits("SAT")
    assert warped.mask[15, 19] == 0


def test_the_rim_of_the_source_is_flagged_or_without_data(rng):
    source = make_image(rng.normal(size=(30, 30)))
    warped = warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=0.5, y=0.0, shape=(30, 30)))
    assert (warped.mask[:, 2:27] == 0).all()
    assert (warped.mask[:, 28:] & (NO_DATA | EDGE)).all()
    assert (warped.mask[:, 29] & NO_DATA).all()
    assert ((warped.mask & NO_DATA != 0) == np.isnan(warped.image)).all()


def test_a_source_far_away_gives_no_data():
    source = make_image(np.ones((20, 20)))
    warped = warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=500, y=0, shape=(20, 20)))
    assert np.isnan(warped.image).all()
    assert (warped.mask == NO_DATA).all()


def test_threads_and_byte_order_do_not_matter(rng):
    source = make_image(rng.normal(size=(64, 64)))
    mapping = PixelMapping.from_affine(rotation(5.0), x=1, y=1, shape=(64, 64))
    once = warp_masked_image(source, mapping)
    swapped = MaskedImage(source.image.astype(">f4"), source.mask.astype(">i4"), source.variance.astype(">f4"))
    for other in (warp_masked_image(source, mapping, n_threads=3), warp_masked_image(swapped, mapping)):
        np.testing.assert_array_equal(other.image, once.image)
        np.testing.assert_array_equal(other.mask, once.mask)


def test_an_unknown_kernel_is_refused():
    source = make_image(np.ones((8, 8)))
    with pytest.raises(ValueError, match="lanczos3"):
        warp_masked_image(source, PixelMapping.from_affine(IDENTITY, x=0, y=0, shape=(8, 8)), kernel="cubic")


def test_an_exposure_without_world_coordinates_is_refused():
    wcs = SkyWcs.from_tangent(ra_deg=0, dec_deg=0, x=4, y=4, scale_arcsec=1)
    with pytest.raises(ValueError, match="no world coordinates"):
        warp_exposure(Exposure(masked_image=make_image(np.ones((8, 8)))), wcs, (8, 8))


STAR_PSFS = {
    "Moffat": MoffatPsf(fwhm=3.4, beta=3.0, ellipticity=0.15, position_angle_deg=25.0, size=41),
    "sharp Gaussian": GaussianPsf(fwhm=2.4, ellipticity=0.1, position_angle_deg=70.0, size=31),
}


@pytest.mark.parametrize("name", STAR_PSFS)
@pytest.mark.parametrize(("scale", "angle"), [(0.2, 17.0), (0.28, -40.0), (0.17, 90.0)])
def test_warped_stars_look_like_the_warped_psf(name, scale, angle):
    psf = STAR_PSFS[name]
    shape = (140, 150)
    tile_wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=60.0, x=75, y=70, scale_arcsec=0.2)
    target_wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=60.0, x=90, y=90, scale_arcsec=scale, rotation_deg=angle)
    flux = 1e4
    image = np.zeros(shape)
    stars = [(40.0, 40.5), (100.3, 38.8), (75.5, 95.25)]
    for x, y in stars:
        star, box = psf.compute_stellar_image(x=x, y=y)
        image[box.slices] += flux * star
    tile = Exposure(
        masked_image=make_image(image),
        wcs=tile_wcs,
        psf=psf,
        photo_calib=PhotoCalib(2.0),
        info=ExposureInfo(band="r"),
    )
    warped = warp_exposure(tile, target_wcs, (181, 181))
    assert warped.psf is not None
    assert warped.photo_calib == PhotoCalib(2.0)
    assert warped.info.band == "r"
    for x, y in stars:
        ra, dec = tile_wcs.pixel_to_sky(x=x, y=y)
        x_target, y_target = (float(p) for p in target_wcs.sky_to_pixel(ra_deg=ra, dec_deg=dec))
        model, box = warped.psf.compute_stellar_image(x=x_target, y=y_target)
        stamp = np.nan_to_num(warped.image[box.slices])
        residual = np.abs(stamp - flux * model).max() / stamp.max()
        # Positions are good to 1e-3 pixels, and the model sums to 1 while the interpolation of a star of
        # FWHM 2.4 conserves its flux to 0.4 %.
        assert residual < 5e-3


@pytest.mark.parametrize(("x", "y"), [(60, 60), (-20, 45), (20, 20), (110, -30)])
def test_a_tile_is_warped_in_its_box_as_in_the_whole_image(x, y, rng):
    shape = (120, 135)
    target = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=-70.0, x=67, y=60, scale_arcsec=0.2, rotation_deg=11.0)
    tile_wcs = SkyWcs.from_tangent(ra_deg=0.0, dec_deg=-70.0, x=x, y=y, scale_arcsec=0.25)
    tile = Exposure(masked_image=make_image(rng.normal(size=(70, 60))), wcs=tile_wcs, psf=GaussianPsf(fwhm=3.0))
    tile.mask[rng.random(tile.shape) < 0.01] = plane_bits("CR")
    whole = warp_exposure(tile, target, shape)
    part = warp_tile(tile, target, shape)
    assert part is not None
    assert part.shape == shape
    rows, columns = part.box.slices
    outside = np.ones(shape, dtype=bool)
    outside[rows, columns] = False
    assert (whole.mask[outside] == NO_DATA).all()
    for name in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(part.exposure, name), getattr(whole, name)[rows, columns])
    np.testing.assert_array_equal(
        part.exposure.psf.compute_kernel_image(x=60, y=60), whole.psf.compute_kernel_image(x=60, y=60)
    )
    np.testing.assert_allclose(part.exposure.psf.average_position, whole.psf.average_position, atol=16)


def test_a_tile_that_covers_nothing_is_none():
    far = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=0.0, x=30, y=30, scale_arcsec=0.2)
    here = SkyWcs.from_tangent(ra_deg=10.1, dec_deg=0.0, x=30, y=30, scale_arcsec=0.2)
    assert warp_tile(Exposure(masked_image=make_image(np.ones((60, 60))), wcs=far), here, (60, 60)) is None


def test_columns_that_no_kernel_reaches_make_no_difference(rng, monkeypatch):
    source = make_image(rng.normal(size=(90, 120)), mask=rng.integers(0, 2, (90, 120)).astype(np.int32))
    source_wcs = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=5.0, x=60.0, y=45.0, scale_arcsec=0.3)
    target_wcs = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=5.0, x=-20.0, y=12.0, scale_arcsec=0.27, rotation_deg=12.0)
    mapping = PixelMapping.between(target_wcs, source_wcs, (40, 50))
    warped = []
    for share in (1.1, 0.0):
        monkeypatch.setattr("alertprod.resample.warp._MOST_COLUMNS", share)
        warped.append(warp_masked_image(source, mapping))
    assert np.isfinite(warped[0].image).any()
    for plane in ("image", "mask", "variance"):
        np.testing.assert_array_equal(*(getattr(result, plane) for result in warped))
