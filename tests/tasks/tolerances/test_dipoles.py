"""The reference's tolerances for dipoles: its test_dipoleFitter on its own simulation.

100 x 100 pixels, two dipoles of flux 2500 and 2345, each lobe 2 pixels off their middle in x and in y, PSF sigma 2,
noise 2, and a gradient under science and template that the difference does not see.
"""

from dataclasses import replace

import numpy as np
import pytest
from tolerance_skies import draw_sources, make_sky

from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.tasks.dipole_fit import DipoleFitConfig, DipoleFitTask
from alertprod.tasks.image_difference import ImageDifferenceTask
from alertprod.tasks.source_detection import SourceDetectionTask

SHAPE = (100, 100)
NOISE = 2.0
MIDDLES = np.array([[65.3, 38.6], [24.2, 78.5]])
FLUXES = np.array([2500.0, 2345.0])
OFFSET = np.array([-2.0, 2.0])
"""Of the positive lobes; the negative ones are on the other side."""

PSF = GaussianPsf.from_sigma(2.0)


def make_images(middles=MIDDLES, *, noise: float = NOISE, seed: int = 1) -> tuple[Exposure, Exposure, Exposure]:
    """Return difference, science and template."""
    rng = np.random.default_rng(seed)
    like = make_sky(psf_sigma=2.0, n_sources=0, shape=SHAPE).exposure
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    gradient = 10.0 + 3.0 * x + 5.0 * y
    images = []
    for sign in (1.0, -1.0):
        lobes = np.asarray(middles) + sign * OFFSET
        drawn = draw_sources(SHAPE, PSF, x=lobes[:, 0], y=lobes[:, 1], flux=FLUXES)
        images.append(drawn + gradient + rng.normal(0.0, noise, SHAPE))

    def make(image, n):
        planes = MaskedImage(
            image.astype(np.float32), np.zeros(SHAPE, np.int32), np.full(SHAPE, n * noise**2, np.float32)
        )
        return replace(like, masked_image=planes)

    return make(images[0] - images[1], 2), make(images[0], 1), make(images[1], 1)


def measure(images, *, with_images: bool = True, **fields) -> Catalog:
    difference, science, template = images
    config = DipoleFitConfig()
    for name, value in fields.items():
        setattr(config.dipole, name, value)
    sources = SourceDetectionTask().run(difference).sources
    return DipoleFitTask(config).run(
        sources,
        difference,
        science if with_images else None,
        template if with_images else None,
        idFactory=ImageDifferenceTask.makeIdFactory(1, 44),
    )


@pytest.mark.parametrize("with_images", [True, False])
def test_fluxes_and_places_of_both_lobes(with_images):
    found = measure(make_images(), with_images=with_images)
    assert found.n_rows == 2
    assert found["is_dipole"].all()
    order = np.array([np.hypot(*(MIDDLES - [x, y]).T).argmin() for x, y in zip(found["x"], found["y"], strict=True)])
    assert sorted(order) == [0, 1]
    np.testing.assert_allclose(found["dipole_mean_flux"], FLUXES[order], rtol=0.01)
    for sign, lobe in ((1.0, "positive"), (-1.0, "negative")):
        for axis, name in enumerate("xy"):
            true = MIDDLES[order, axis] + sign * OFFSET[axis]
            np.testing.assert_allclose(found[f"dipole_{lobe}_{name}"], true, rtol=0.01)
    off = np.hypot(found["x"] - MIDDLES[order, 0], found["y"] - MIDDLES[order, 1])
    assert off.max() < (0.06 if with_images else 0.5)


@pytest.mark.parametrize(("with_images", "tolerance"), [(True, 0.1), (False, 0.5)])
def test_position_errors_are_what_the_positions_scatter_by(with_images, tolerance):
    n = 60
    errors, deviations = [], []
    for seed in range(n):
        found = measure(make_images(seed=seed), with_images=with_images)
        for i in range(found.n_rows):
            true = MIDDLES[np.hypot(*(MIDDLES - [found["x"][i], found["y"][i]]).T).argmin()]
            for axis, name in enumerate("xy"):
                for sign, lobe in ((1.0, "positive"), (-1.0, "negative")):
                    column = f"dipole_{lobe}_{name}"
                    errors.append(found[f"{column}_err"][i])
                    deviations.append(found[column][i] - true[axis] - sign * OFFSET[axis])
    assert len(errors) == n * 2 * 4
    # Of 480 positions the scatter is known to 3 %.
    assert np.std(deviations) == pytest.approx(np.mean(errors), rel=tolerance)


def test_dipoles_on_the_edge_give_no_sources():
    # As a difference has it where the kernel reached off the image.
    images = make_images(middles=[[5.0, 50.0], [60.0, 96.0]])
    rim = np.ones(SHAPE, dtype=bool)
    rim[12:-12, 12:-12] = False
    for exposure in images:
        exposure.mask[rim] |= plane_bits("EDGE")
    assert measure(images).n_rows == 0


def test_a_footprint_above_the_largest_area_is_flagged_and_not_fitted():
    # The reference's 500 pixels: two lobes of sigma 2, 5.7 pixels apart and grown, have more.
    found = measure(make_images(), maxFootprintArea=500)
    area = SourceDetectionTask().run(make_images()[0]).sources.area
    assert (area > 500).any()
    np.testing.assert_array_equal(np.sort(found["dipole_fit_flag"]), np.sort(area > 500))
    assert not (found["dipole_fit_flag"] & found["is_dipole"]).any()
