"""Fluxes of one field agree from exposure to exposure, whatever is known of the zero point."""

from dataclasses import replace

import numpy as np
import pytest

from alertprod.images.masked_image import MaskedImage
from alertprod.images.photo_calib import PhotoCalib


def dimmed(exposure, factor, **calib):
    """The same sky through a cloud or in a shorter exposure: fewer counts, the zero point unchanged."""
    planes = exposure.masked_image
    scaled = MaskedImage(planes.image * np.float32(factor), planes.mask, planes.variance * np.float32(factor**2))
    return replace(exposure, masked_image=scaled, photo_calib=PhotoCalib(**calib))


def run(task, pair, stars, science, **fields):
    return task(**fields).run(exposure=science, templateExposure=pair.template, selectSources=stars)


def test_a_nominal_zero_point_is_replaced_by_the_templates_scale(task, pair, stars):
    bright = run(task, pair, stars, dimmed(pair.science, 1.0, njy_per_count=3.0, is_nominal=True))
    faint = run(task, pair, stars, dimmed(pair.science, 0.4, njy_per_count=3.0, is_nominal=True))
    assert bright.diaSources.n_rows == faint.diaSources.n_rows > 0
    for name in ("psf_flux", "psf_flux_err", "science_flux", "template_flux"):
        # float32 pixels, and a kernel solved from them; a flux of next to nothing follows the centroid's last digits.
        least = 1e-3 * bright.diaSources["psf_flux_err"].min()
        np.testing.assert_allclose(faint.diaSources[name], bright.diaSources[name], rtol=2e-3, atol=least)
    scale = faint.scienceExposure.photo_calib.njy_per_count
    assert scale * 0.4 == pytest.approx(bright.scienceExposure.photo_calib.njy_per_count, rel=1e-3)
    template_scale = pair.template.photo_calib.njy_per_count
    assert scale == pytest.approx(template_scale / faint.subtractRes.match.kernel_sum, rel=1e-12)


def test_a_measured_zero_point_is_kept(task, pair, stars):
    science = dimmed(pair.science, 1.0, njy_per_count=3.0)
    result = run(task, pair, stars, science)
    assert result.subtractedExposure.photo_calib == science.photo_calib
    assert result.scienceExposure.photo_calib == science.photo_calib


def test_the_switch_goes_before_what_is_known(task, pair, stars):
    nominal = dimmed(pair.science, 1.0, njy_per_count=3.0, is_nominal=True)
    kept = run(task, pair, stars, nominal, doCalibrateToTemplate=False)
    assert kept.scienceExposure.photo_calib.njy_per_count == 3.0
    measured = dimmed(pair.science, 1.0, njy_per_count=3.0)
    changed = run(task, pair, stars, measured, doCalibrateToTemplate=True)
    assert changed.scienceExposure.photo_calib.njy_per_count != 3.0


def test_the_scale_is_right_where_the_science_image_is_convolved(task, pair, stars):
    sharper = dimmed(pair.template, 0.5, njy_per_count=3.0, is_nominal=True)
    automatic = task()
    automatic.subtract.config.mode = "auto"
    result = automatic.run(exposure=sharper, templateExposure=pair.science, selectSources=stars)
    assert result.subtractRes.match.convolved == "science"
    true_scale = pair.template.photo_calib.njy_per_count / 0.5
    # Kernel sums are good to a few tenths of a percent.
    assert result.scienceExposure.photo_calib.njy_per_count == pytest.approx(true_scale, rel=0.01)
