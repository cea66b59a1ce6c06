"""Real images, where the folder with them is there: a sky on which nothing changed, and a crowded one."""

from dataclasses import replace

import numpy as np
import pytest

from alertprod.detection.matched_filter import compute_significance, make_filter_kernel
from alertprod.factory import create_task
from alertprod.images.fits_io import load_exposure
from alertprod.images.mask import plane_bits
from alertprod.images.profile import load_profile
from alertprod.resample.merge import merge_tiles
from alertprod.resample.warp import warp_exposure
from alertprod.service.differencing import difference_exposures

MOST_UNFLAGGED = 20
"""Of the null pair, in each direction; fewer than 10 is what is wanted in the end."""

SKY = ("DETECTED", "DETECTED_NEGATIVE", "BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE")


def subtract(science, template):
    task = create_task({"subtract.al.mode": "auto"}, source="test")
    info = replace(science.info, visit=science.info.visit or 0, detector=science.info.detector or 0)
    return difference_exposures(task, replace(science, info=info), template, id_factory=task.makeIdFactory(0, 44))


def count_unflagged(sources):
    flags = [name for name in sources if name.startswith("pixel_flags")]
    return int((~np.any([sources[name] for name in flags], axis=0)).sum())


@pytest.mark.parametrize(("first", "second"), [("004", "005"), ("005", "004")])
def test_a_sky_on_which_nothing_changed_gives_few_sources(shared_data, first, second):
    profile = load_profile("eso085")
    science, template = (
        load_exposure(shared_data / f"eso085_null/aligned_eso085-030-{number}.fit.gz", profile)
        for number in (first, second)
    )
    differenced = subtract(science, template)
    n_unflagged = count_unflagged(differenced.sources)
    # For pytest -rP.
    print(f"eso085 {first} - {second}: {differenced.sources.n_rows} DiaSources, {n_unflagged} unflagged")  # noqa: T201
    assert n_unflagged < MOST_UNFLAGGED
    assert differenced.figures["pull_width"] == pytest.approx(1.0, abs=0.02)
    # One night, one exposure time, 74 s apart.
    assert differenced.figures["kernel_sum_nominal"] == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("epoch", ["0001", "0103"])
def test_the_noise_of_a_crowded_field_is_as_claimed(shared_data, epoch):
    profile = load_profile("saao")
    science = load_exposure(shared_data / f"saao_kb13475/AKB13475I{epoch}.fits.fz", profile)
    tile = load_exposure(shared_data / "saao_kb13475/template.fits", profile)
    template = merge_tiles([warp_exposure(tile, science.wcs, science.shape)])
    differenced = subtract(science, template)
    figures, difference = differenced.figures, differenced.difference
    print(  # noqa: T201
        f"saao {epoch}: pull width {figures['pull_width']:.3f}, noise of point sources over that of independent pixels"
        f" {figures['noise_correlation']:.3f}, {differenced.sources.n_rows} DiaSources"
    )
    # Pixels were resampled when the template was made: where their noise is correlated, the variance is raised to what
    # a point source sees, and single pixels scatter less by as much.
    raised = figures["noise_correlation"] if figures["noise_correlation"] > 1.1 else 1.0
    assert 0.95 < figures["pull_width"] * raised < 1.05
    bits = plane_bits(*SKY)
    significance = compute_significance(difference.masked_image, make_filter_kernel(difference.psf), bad_bits=bits)
    low, high = np.percentile(significance[difference.masked_image.usable(bits)], [25.0, 75.0])
    assert 0.95 < 0.7413 * (high - low) < 1.05
    # A few per cent of the stars of a crowded field vary, at most.
    assert differenced.sources.n_rows < 100
