"""Stars that moved and trails: what the score makes of planted catalogues whose numbers are known."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.quality.methods import Outcome
from benchmarks.quality.pool import Measure, pool
from benchmarks.quality.render import make_field
from benchmarks.quality.scene import SceneParameters, make_scene
from benchmarks.quality.score import score
from benchmarks.quality.targets import judge
from benchmarks.quality.truth import compute_truth

from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog

FEW = SceneParameters(
    n_stars=0, n_galaxies=0, n_saturated=0, n_variables=0, n_transients=6, least_transients=6, n_proper_motion=6,
    n_trails=12, n_cosmic_rays=0, n_bad_columns=0,
)  # fmt: skip
LENGTH_ERROR, ANGLE_ERROR = 0.05, 2.0
"""Arcseconds, degrees."""


@pytest.fixture(scope="module")
def made():
    return make_field(make_scene(3, 400, FEW))


@pytest.fixture(scope="module")
def truth(made):
    return compute_truth(made)


def plant(made, *, length_pull=0.0, angle_pull=0.0, flux_pull=0.0, flip=False):
    """Return an outcome that found everything and measured trails off by so many of their errors."""
    changes, parameters = made.scene.changes, made.scene.parameters
    sources = Catalog(DIA_SOURCE_COLUMNS, len(changes))
    sources["x"], sources["y"] = changes.x, changes.y
    sources["is_dipole"] = changes.kind == "proper_motion"
    arcsec = made.science.wcs.compute_pixel_scale_arcsec(x=made.size / 2, y=made.size / 2)
    jacobian = made.science.wcs.compute_jacobian(x=changes.x, y=changes.y)
    east, north = (jacobian @ np.stack([changes.trail_x, changes.trail_y], axis=-1)[:, :, None])[:, :, 0].T
    is_trail = changes.kind == "trail"
    length = np.hypot(changes.trail_x, changes.trail_y) * arcsec
    sources["trail_length_arcsec"] = np.where(is_trail, length + length_pull * LENGTH_ERROR, np.nan)
    sources["trail_length_err_arcsec"] = LENGTH_ERROR
    # A trail has no direction: half a turn more is the same.
    angle = np.degrees(np.arctan2(east, north)) + angle_pull * ANGLE_ERROR + (180.0 if flip else 0.0)
    sources["trail_angle_deg"], sources["trail_angle_err_deg"] = angle, ANGLE_ERROR
    flux = changes.flux_science * parameters.njy_per_count * made.enclosed
    sources["trail_flux"], sources["trail_flux_err"] = flux * (1.0 + 0.01 * flux_pull), 0.01 * flux
    sources["trail_ndata"] = is_trail.astype(int)
    difference = replace(made.science, masked_image=made.science.masked_image.copy())
    return Outcome(difference=difference, template=made.science, sources=sources, seconds=0.0, figures={})


def numbers(tally):
    return {m.name: m for m in pool([tally])}


def test_a_perfect_catalogue_tells_all_kinds(made, truth):
    got = numbers(score(made, truth, plant(made)))
    assert got["dipoles told"].value == 1.0
    assert got["transients called dipoles"].value == 0.0
    assert got["trails detected"].value == got["trails measured"].value == 1.0
    assert got["trail length / true"].value == pytest.approx(1.0, abs=1e-4)
    assert got["trail angle error, deg"].value == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_pulls_of_trails_are_errors_in_units_of_themselves(made, truth, flip):
    got = numbers(score(made, truth, plant(made, length_pull=1.5, angle_pull=-0.5, flux_pull=2.0, flip=flip)))
    assert got["trail length pull width"].value == pytest.approx(1.5, abs=0.01)
    assert got["trail angle pull width"].value == pytest.approx(0.5, abs=0.01)
    assert got["trail flux pull width"].value == pytest.approx(2.0, abs=0.01)


def test_pulls_are_of_trails_longer_than_the_seeing(made, truth):
    changes, parameters = made.scene.changes, made.scene.parameters
    counted = (changes.kind == "trail") & truth.measurable & (truth.snr >= 15.0)
    length = np.hypot(changes.trail_x, changes.trail_y)[counted]
    blurred = replace(parameters, science=replace(parameters.science, fwhm=float(np.median(length))))
    tally = score(replace(made, scene=replace(made.scene, parameters=blurred)), truth, plant(made))
    assert len(tally.trail_length) == len(length)
    assert len(tally.trail_pulls) == len(length) // 2


def test_what_is_worse_than_the_oracle_is_not_met():
    def measure(name, value):
        return Measure(name=name, value=value, error=0.01, n=100)

    for name in ("dipoles told", "trails detected", "trails measured"):
        best = [measure(name, 0.95)]
        assert judge([measure(name, 0.95)], best)[name].met
        assert not judge([measure(name, 0.7)], best)[name].met
    assert judge([measure("transients called dipoles", 0.02)], None)["transients called dipoles"].met
    assert not judge([measure("transients called dipoles", 0.05)], None)["transients called dipoles"].met
    assert judge([measure("trail length pull width", 1.1)], None)["trail length pull width"].met
    assert not judge([measure("trail length pull width", 1.2)], None)["trail length pull width"].met
