"""Templates of tiles, of other exposures, of the parts of a band."""

from dataclasses import replace

import numpy as np
import pytest
from made_skies import make_pair
from small_repository import SHAPE, WCS, make_exposure, make_repository

from alertprod.errors import NoTemplateCoverage, TaskError, TemplateUnreadable, UnusableExposure
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import PhotoCalib
from alertprod.store.repository import FolderRepository
from alertprod.tasks.get_template import GetCoaddAsTemplateConfig, GetCoaddAsTemplateTask
from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask

GRID = {"wcs": WCS, "shape": SHAPE, "band": "r"}
NO_DATA = plane_bits("NO_DATA")


class Tile:
    """A tile in memory."""

    def __init__(self, exposure, **data_id):
        self.exposure = exposure
        self.dataId = {"tile": "t", **data_id}
        self.reads = 0

    def get(self):
        self.reads += 1
        return self.exposure


def make_task(**fields):
    config = GetCoaddAsTemplateConfig()
    config.nThreads = 1
    for name, value in fields.items():
        setattr(config, name, value)
    return GetCoaddAsTemplateTask(config)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return FolderRepository(make_repository(tmp_path_factory.mktemp("tiny")))


def test_a_tile_of_the_same_grid_is_the_template():
    tile = make_pair().template
    tile = replace(tile, info=replace(tile.info, band="r"))
    before = tile.image.copy()
    result = make_task().run([Tile(tile)], wcs=tile.wcs, shape=tile.shape, band="r")
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(result.exposure.image[inner], tile.image[inner], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(tile.image, before)
    assert result.sources is None
    assert result.area == np.count_nonzero((result.exposure.mask & NO_DATA) == 0)


def test_tiles_of_a_repository_are_found_warped_and_merged(repository):
    (ref,) = repository.subset("calexp", [{"visit": 5}])
    exposure = ref.get("calexp")
    task = make_task()
    result = task.runDataRef(exposure, ref)
    template = result.exposure
    assert template.shape == SHAPE
    assert template.wcs == exposure.wcs
    assert template.info.band == "r"
    np.testing.assert_allclose(template.image, 10.0, rtol=1e-4)
    assert result.area == template.image.size
    assert task.metadata["nTiles"] == 2
    assert template.psf.compute_fwhm() == pytest.approx(3.0, rel=0.02)


def test_other_exposures_serve_as_a_template(repository):
    (ref,) = repository.subset("calexp", [{"visit": 5}])
    exposure = ref.get("calexp")
    one = make_task().runDataRef(exposure, ref, [{"visit": 8}])
    np.testing.assert_allclose(one.exposure.image, 8.0, rtol=1e-5)
    both = make_task().runDataRef(exposure, ref, [{"visit": 3}, {"visit": 8}])
    np.testing.assert_allclose(both.exposure.image, 5.5, rtol=1e-5)
    itself_too = make_task().runDataRef(exposure, ref, [{}])
    np.testing.assert_allclose(itself_too.exposure.image, 5.5, rtol=1e-5)


@pytest.mark.parametrize("template_id", [{"visit": 5}, {"visit": 4}, {"visit": 8, "detector": 2}])
def test_an_exposure_is_not_its_own_template(repository, template_id):
    (ref,) = repository.subset("calexp", [{"visit": 5}])
    with pytest.raises(TaskError, match=f"no other exposure of the template ids visit={template_id['visit']}"):
        make_task().runDataRef(ref.get("calexp"), ref, [template_id])


def test_a_quantum_hands_over_its_tiles():
    class Context:
        def get(self, refs):
            return [Tile(make_exposure(level=ref)) for ref in refs]

    result = make_task().runQuantum(make_exposure(), Context(), "skyMap", [2.0, 4.0])
    np.testing.assert_allclose(result.exposure.image, 3.0, rtol=1e-5)


def test_tiles_are_averaged_with_the_inverse_of_their_noise():
    noisy = make_exposure(level=4.0)
    noisy.masked_image.variance[...] = 36.0
    result = make_task(doMaskHighVariance=False).run([Tile(make_exposure(level=1.0)), Tile(noisy)], **GRID)
    # Weights 1/2 and 1/6.
    np.testing.assert_allclose(result.exposure.image, (1.0 / 2 + 4.0 / 6) / (1 / 2 + 1 / 6), rtol=1e-5)
    np.testing.assert_allclose(result.exposure.variance, (4.0 / 2 + 36.0 / 6) / (1 / 2 + 1 / 6), rtol=1e-5)


def test_tiles_of_other_zero_points_come_to_the_scale_of_the_first():
    scaled = replace(make_exposure(level=20.0), photo_calib=PhotoCalib(0.1))
    result = make_task().run([Tile(make_exposure(level=2.0)), Tile(scaled)], **GRID)
    np.testing.assert_allclose(result.exposure.image, 2.0, rtol=1e-5)


def test_pixels_without_a_tile_have_no_data_and_do_not_count():
    half = make_exposure(shape=(24, 16))
    result = make_task().run([Tile(half)], **GRID)
    covered = (result.exposure.mask & NO_DATA) == 0
    assert result.area == covered.sum()
    assert covered[:, :15].all()
    assert not covered[:, 17:].any()
    assert np.isnan(result.exposure.image[~covered]).all()


def test_a_border_is_more_of_the_same_sky():
    big = make_exposure(shape=(64, 72), wcs=WCS.shifted(dx=20.0, dy=20.0))
    big.masked_image.image += np.arange(72, dtype=np.float32)
    plain = make_task().run([Tile(big)], **GRID).exposure
    bordered = make_task(templateBorderSize=5).run([Tile(big)], **GRID).exposure
    assert bordered.shape == (34, 42)
    np.testing.assert_allclose(bordered.image[5:-5, 5:-5], plain.image, rtol=1e-4)
    x, y = bordered.wcs.sky_to_pixel(**dict(zip(("ra_deg", "dec_deg"), WCS.pixel_to_sky(x=3.0, y=2.0), strict=True)))
    assert (x, y) == (pytest.approx(8.0, abs=1e-6), pytest.approx(7.0, abs=1e-6))


def test_where_a_template_is_much_noisier_is_marked():
    tile = make_exposure(shape=(200, 200))
    tile.masked_image.variance[:, 120:] = 100.0
    grid = {"wcs": WCS, "shape": (200, 200), "band": "r"}
    task = make_task()
    marked = (task.run([Tile(tile)], **grid).exposure.mask & plane_bits("HIGH_VARIANCE")) != 0
    assert marked[:, 160:].all()
    assert not marked[:, :80].any()
    assert task.metadata["highVarianceFraction"] == pytest.approx(marked.mean())
    unmarked = make_task(doMaskHighVariance=False).run([Tile(tile)], **grid).exposure
    assert not (unmarked.mask & plane_bits("HIGH_VARIANCE")).any()


@pytest.mark.parametrize("tiles", [[], [make_exposure(wcs=WCS.shifted(dx=500.0, dy=0.0))]])
def test_no_overlap_is_no_coverage(tiles):
    with pytest.raises(NoTemplateCoverage) as caught:
        make_task().run([Tile(tile) for tile in tiles], **GRID, requiredTemplateFraction=0.25)
    assert (caught.value.fraction, caught.value.required) == (0.0, 0.25)


def test_tiles_without_a_good_pixel_are_no_coverage():
    blank = make_exposure()
    blank.masked_image.mask[...] = NO_DATA
    with pytest.raises(NoTemplateCoverage):
        make_task().run([Tile(blank)], **GRID)


@pytest.mark.parametrize("position", [0, 1])
def test_a_tile_that_cannot_be_used_is_named_wherever_it_stands(position):
    for bad, problem in (
        (replace(make_exposure(), wcs=None), "no world coordinates"),
        (make_exposure(band="g"), "its band is g, the exposure's is r"),
    ):
        tiles = [Tile(make_exposure(), tile="good")]
        tiles.insert(position, Tile(bad, tile="bad"))
        with pytest.raises(TemplateUnreadable, match=problem) as caught:
            make_task().run(tiles, **GRID)
        assert caught.value.uri == "tile=bad"


def test_a_tile_that_does_not_know_its_band_is_taken_at_its_word():
    assert make_task().run([Tile(make_exposure(band=None))], **GRID).exposure.info.band == "r"


def test_an_exposure_that_nobody_can_find_a_template_for_is_named(repository):
    (ref,) = repository.subset("calexp", [{"visit": 5}])
    for exposure, part in ((replace(make_exposure(), wcs=None), "wcs"), (make_exposure(band=None), "band")):
        with pytest.raises(UnusableExposure) as caught:
            make_task().runDataRef(exposure, ref)
        assert (caught.value.which, caught.value.part) == ("science", part)


def test_subfilters_are_averaged_with_equal_weights():
    parts = []
    for subfilter, (level, variance) in enumerate([(1.0, 1.0), (4.0, 100.0), (10.0, 4.0)]):
        exposure = make_exposure(level=level)
        exposure.masked_image.variance[...] = variance
        parts.append(Tile(exposure, subfilter=subfilter))
    parts[1].exposure.masked_image.image[10, 10] = np.nan
    result = make_task(coaddName="dcr", doMaskHighVariance=False).run(parts, **GRID)
    good = (result.exposure.mask & NO_DATA) == 0
    assert good.sum() == result.area == good.size - 1
    np.testing.assert_allclose(result.exposure.image[good], 5.0, rtol=1e-5)
    np.testing.assert_allclose(result.exposure.variance[good], 105.0 / 9.0, rtol=1e-5)


def test_the_kind_of_coadd_is_the_parents_unless_it_is_said():
    config = ImageDifferenceConfig()
    config.coaddName = "goodSeeing"
    assert ImageDifferenceTask(config).getTemplate.coaddName == "goodSeeing"
    config.getTemplate.coaddName = "dcr"
    assert ImageDifferenceTask(config).getTemplate.coaddName == "dcr"
    assert make_task().coaddName == "deep"


def test_every_subfilter_must_be_there():
    tiles = [Tile(make_exposure(), subfilter=subfilter) for subfilter in (0, 1)]
    with pytest.raises(TaskError, match=r"subfilters are missing: tiles by subfilter are \{0: 1, 1: 1, 2: 0\}"):
        make_task(coaddName="dcr").run(tiles, **GRID)
    with pytest.raises(TaskError, match="is of subfilter 5; dcrNumSubfilters is 3"):
        make_task(coaddName="dcr").run([*tiles, Tile(make_exposure(), subfilter=5)], **GRID)
    with pytest.raises(TaskError, match="is of subfilter None"):
        make_task(coaddName="dcr").run([Tile(make_exposure())], **GRID)
    with pytest.raises(NoTemplateCoverage):
        make_task(coaddName="dcr").run([], **GRID)
    assert make_task(coaddName="dcr", dcrNumSubfilters=2).run(tiles, **GRID).area == 24 * 32
