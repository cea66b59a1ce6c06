"""Registration on drawn stars: what the warp makes of a template whose world coordinates are wrong."""

from dataclasses import replace

import numpy as np
import pytest

from alertprod.errors import TaskError
from alertprod.geometry.box import Box
from alertprod.geometry.sphere import separation_arcsec
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.centroid import fit_centroids
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.characterize import CharacterizeTask
from alertprod.tasks.register import RegisterTask
from alertprod.tasks.sources import add_sky_positions, make_source_catalog

SHAPE = (400, 420)
BOX = Box.from_shape(SHAPE)
SCALE = 0.3
WCS = SkyWcs.from_tangent(ra_deg=359.999, dec_deg=-30.0, x=209.5, y=199.5, scale_arcsec=SCALE, rotation_deg=20.0)
PSF = GaussianPsf(fwhm=3.6)

MOVES = {
    "shift": lambda u, v: (u + 0.6, v - 0.8),
    "rotation": lambda u, v: (u - 0.004 * v, v + 0.004 * u),
    "scale": lambda u, v: (1.004 * u, 1.004 * v),
    "quadratic": lambda u, v: (u + 2e-5 * u * u, v - 2e-5 * u * v + 1e-5 * v * v),
}
"""Where a star of the science image at (u, v) from the middle is on the template; up to a pixel."""


def make_stars(n=170, *, seed=5):
    """Apart from one another, S/N 50 to 1000 in a template of noise 1."""
    rng = np.random.default_rng(seed)
    steps = np.meshgrid(np.arange(22.0, SHAPE[1] - 20, 29), np.arange(22.0, SHAPE[0] - 20, 29))
    x, y = (axis.ravel() + rng.uniform(-6, 6, steps[0].size) for axis in steps)
    return x[:n], y[:n], 10 ** rng.uniform(2.7, 4.0, len(x[:n]))


def move(kind, x, y):
    u, v = MOVES[kind](x - 209.5, y - 199.5)
    return u + 209.5, v + 199.5


def draw(x, y, flux, *, seed, noise=1.0):
    rng = np.random.default_rng(seed)
    image = np.zeros(SHAPE)
    for one_x, one_y, one_flux in zip(x, y, flux, strict=True):
        stamp, box = PSF.compute_stellar_image(x=one_x, y=one_y)
        inside = box.intersection(BOX)
        rows = slice(inside.y_min - box.y_min, inside.y_max - box.y_min)
        image[inside.slices] += one_flux * stamp[rows, inside.x_min - box.x_min : inside.x_max - box.x_min]
    variance = noise**2 + image / 50.0
    image += rng.normal(size=SHAPE) * np.sqrt(variance)
    planes = MaskedImage(image.astype(np.float32), np.zeros(SHAPE, np.int32), variance.astype(np.float32))
    return Exposure(masked_image=planes, wcs=WCS, psf=PSF)


def find(exposure):
    sources = CharacterizeTask().selectKernelSources(exposure)
    return add_sky_positions(sources, exposure.wcs)


def make_table(x, y, **columns):
    return add_sky_positions(make_source_catalog(x=x, y=y, **columns), WCS)


@pytest.mark.parametrize("kind", MOVES)
def test_a_misregistered_template_is_brought_home(kind):
    x, y, flux = make_stars()
    science = draw(x, y, flux, seed=1)
    template = draw(*move(kind, x, y), flux, seed=2)
    task = RegisterTask()
    found = task.run(find(template), template.wcs, BOX, find(science))
    warped = task.warpExposure(template, found.wcs, science.wcs, BOX)
    bright = (flux > 4000) & (x > 30) & (x < SHAPE[1] - 30) & (y > 30) & (y < SHAPE[0] - 30)
    negative = np.zeros(bright.sum(), dtype=bool)
    centroids = fit_centroids(
        warped.masked_image, PSF, x=x[bright], y=y[bright], is_negative=negative, sigma=PSF.compute_sigma()
    )
    off_x, off_y = centroids.x - x[bright], centroids.y - y[bright]
    before = np.hypot(*(np.array(move(kind, x, y)) - np.array([x, y])))
    assert before.max() > 0.3
    # The field's own alignment: single stars carry their own noise, 0.01 pixels at S/N 200.
    for off in (off_x, off_y):
        assert abs(off.mean()) < 0.01
        assert off.std() < 0.02
    assert task.metadata["nMatchesUsed"] > 100
    assert warped.shape == SHAPE
    assert template.wcs is WCS  # the input is as it was


@pytest.mark.parametrize("kind", MOVES)
def test_the_fit_is_right_everywhere_on_the_image(kind):
    x, y, _ = make_stars()
    rng = np.random.default_rng(7)
    there_x, there_y = move(kind, x, y)
    noise = 0.005  # of a centroid at S/N 300; the corner of a quadratic through 170 stars has half of it
    inputs = make_table(there_x + rng.normal(0, noise, len(x)), there_y + rng.normal(0, noise, len(x)))
    found = RegisterTask().run(inputs, WCS, BOX, make_table(x, y))
    grid_x, grid_y = (axis.ravel() for axis in np.meshgrid(np.linspace(10, 409, 9), np.linspace(10, 389, 9)))
    off = separation_arcsec(
        *found.wcs.pixel_to_sky(**dict(zip("xy", move(kind, grid_x, grid_y), strict=True))),
        *WCS.pixel_to_sky(x=grid_x, y=grid_y),
    )
    assert off.max() / SCALE < 0.02
    assert found.scatter_pixels == pytest.approx(noise, rel=5 / np.sqrt(4 * len(x)) + 0.01)
    assert found.scatter_arcsec == pytest.approx(found.scatter_pixels * SCALE)
    np.testing.assert_allclose(found.matches.first["x"], x[found.matches.first_rows])
    np.testing.assert_array_equal(found.matches.first_rows, found.matches.second_rows)
    assert found.matches.separation_arcsec.max() < 6 * noise * SCALE


def test_exchanging_the_two_images_reverses_the_shift():
    x, y, _ = make_stars()
    here, there = make_table(x, y), make_table(x + 0.5, y - 0.3)
    forth, back = (RegisterTask().run(a, WCS, BOX, b).wcs for a, b in ((there, here), (here, there)))
    for wcs, sign in ((forth, 1.0), (back, -1.0)):
        moved_x, moved_y = wcs.sky_to_pixel(
            **dict(zip(("ra_deg", "dec_deg"), WCS.pixel_to_sky(x=200.0, y=150.0), strict=True))
        )
        assert (moved_x - 200.0, moved_y - 150.0) == pytest.approx((0.5 * sign, -0.3 * sign), abs=1e-4)


def test_wrong_neighbours_and_flagged_sources_do_not_matter():
    x, y, _ = make_stars()
    rng = np.random.default_rng(3)
    flagged = rng.uniform(size=len(x)) < 0.1
    there_x = x + 0.5 + np.where(flagged, 1.2, 0.0)
    extra_x, extra_y = rng.uniform(0, 400, 60), rng.uniform(0, 380, 60)  # seen on one image only
    inputs = make_table(np.append(there_x, extra_x), np.append(y, extra_y), flag=np.append(flagged, np.zeros(60, bool)))
    found = RegisterTask().run(inputs, WCS, BOX, make_table(x, y))
    ra, dec = found.wcs.pixel_to_sky(x=there_x[~flagged], y=y[~flagged])
    assert separation_arcsec(ra, dec, *WCS.pixel_to_sky(x=x[~flagged], y=y[~flagged])).max() < 0.002
    assert not set(found.matches.second_rows) & set(np.flatnonzero(flagged))


def test_few_matches_lower_the_order():
    x, y, _ = make_stars()
    rows = np.arange(0, len(x), 28)  # seven: less than a quadratic needs
    found = RegisterTask().run(make_table(x[rows] + 0.4, y[rows]), WCS, BOX, make_table(x[rows], y[rows]))
    assert found.sipOrder == 1


def test_too_few_matches_are_told_with_their_numbers():
    x, y, _ = make_stars(3)
    with pytest.raises(TaskError, match=r"3 matches within 1\.00 arcsec of 3 sources with 3: .* 4 are needed"):
        RegisterTask().run(make_table(x, y), WCS, BOX, make_table(x, y))
    with pytest.raises(TaskError, match="none of 3 template sources has a sky position"):
        RegisterTask().run(make_table(x, y), WCS, BOX, make_source_catalog(x=x, y=y))


def test_coarse_pixels_widen_the_radius():
    coarse = SkyWcs.from_tangent(ra_deg=10.0, dec_deg=5.0, x=209.5, y=199.5, scale_arcsec=2.5)
    x, y, _ = make_stars()
    inputs = make_source_catalog(x=x + 0.9, y=y)
    found = RegisterTask().run(inputs, coarse, BOX, add_sky_positions(make_source_catalog(x=x, y=y), coarse))
    assert len(found.matches) == len(x)


def test_warp_lands_on_the_pixels_of_the_box():
    x, y, flux = make_stars()
    template = draw(x, y, flux, seed=4)
    task = RegisterTask()
    whole = task.warpExposure(template, WCS, WCS, BOX)
    part = task.warpExposure(template, WCS, WCS, Box(x_min=50, y_min=30, x_max=250, y_max=330))
    assert part.shape == (300, 200)
    np.testing.assert_allclose(part.image[10:-10, 10:-10], whole.image[40:320, 60:240], atol=2e-3)


def test_offsets_by_colour_are_those_put_in():
    x, y, _ = make_stars()
    color = np.where(np.arange(len(x)) % 10 < 2, 1.6, np.where(np.arange(len(x)) % 10 < 3, -0.3, 0.6))
    color[9::10] = np.nan
    rng = np.random.default_rng(9)
    noise = 0.01
    first = make_table(x, y, g_minus_r=color)
    second = make_table(x, y)
    second["ra_deg"] += rng.normal(0, noise, len(x)) / 3600 / np.cos(np.radians(second["dec_deg"]))
    second["dec_deg"] += (np.where(color > 1.2, 0.08, 0.0) + rng.normal(0, noise, len(x))) / 3600
    task = RegisterTask()
    matches = task.run(second, WCS, BOX, first).matches
    offsets = task.measureColorOffsets(
        replace(matches, second=second.select(matches.second_rows)), grMin=0.0, grMax=1.2
    )
    n_red = int((color > 1.2).sum())
    assert offsets["RegisterRedLatOffsetMedian"] == pytest.approx(0.08, abs=5 * 1.25 * noise / np.sqrt(n_red))
    assert offsets["RegisterGreenLatOffsetMedian"] == pytest.approx(0.0, abs=5 * 1.25 * noise / np.sqrt(100))
    assert offsets["RegisterGreenLongOffsetStd"] == pytest.approx(noise, rel=5 * 1.17 / np.sqrt(100))
    assert set(task.metadata) >= set(offsets)
    assert len(offsets) == 12


def test_a_colour_that_no_star_has_is_not_a_number():
    x, y, _ = make_stars(20)
    task = RegisterTask()
    matches = task.run(make_table(x, y), WCS, BOX, make_table(x, y)).matches
    offsets = task.measureColorOffsets(matches, grMin=0.0, grMax=1.2)
    assert all(np.isnan(value) for value in offsets.values())
