"""`ImageDifferenceTask.run` on exposures that are broken, empty or absurd: a named error or a sound catalog, never NaN."""

from dataclasses import replace

import numpy as np
import pytest
from lsst.pex.config import FieldValidationError
from made_skies import make_pair

from alertprod.errors import (
    AlertprodError,
    BadInputError,
    ExposureMismatch,
    InsufficientKernelSources,
    NoTemplateCoverage,
    UnusableExposure,
)
from alertprod.images.exposure import Exposure, ExposureInfo
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.tasks.image_difference import ImageDifferenceConfig, ImageDifferenceTask
from alertprod.tasks.sources import make_source_catalog

WHICH = ("science", "template")


class NanPsf(PointSpreadFunction):
    """A fit that went wrong."""

    size = 25
    average_position = (111.5, 111.5)

    def compute_offset_image(self, *, x, y, dx, dy):  # noqa: ARG002  nowhere better than elsewhere
        return np.full((25, 25), np.nan)


@pytest.fixture(scope="module")
def pair():
    return make_pair()


@pytest.fixture(scope="module")
def stars(pair) -> Catalog:
    return make_source_catalog(x=pair.star_x, y=pair.star_y, flux=pair.star_flux)


def run(science: Exposure, template: Exposure, stars: Catalog | None, config: ImageDifferenceConfig | None = None):
    task = ImageDifferenceTask(config or ImageDifferenceConfig())
    return task.run(exposure=science, templateExposure=template, selectSources=stars)


def break_one(pair, which, change) -> dict[str, Exposure]:
    """Return both exposures, one of them changed by a function of a copy that may return another."""
    exposures = {"science": pair.science, "template": pair.template}
    copied = exposures[which].copy()
    exposures[which] = change(copied) or copied
    return exposures


def fill(plane, value):
    def change(exposure):
        getattr(exposure, plane)[...] = value

    return change


def with_psf(psf):
    return lambda exposure: replace(exposure, psf=psf)


def assert_sound(sources: Catalog | None) -> None:
    """What is not flagged is finite, and errors are positive."""
    assert sources is not None
    for names, flag in (
        (("x", "y", "ra_deg", "dec_deg"), "centroid_flag"),
        (("psf_flux", "psf_flux_err"), "psf_flux_flag"),
        (("ap_flux", "ap_flux_err"), "ap_flux_flag"),
        (("science_flux", "science_flux_err"), "forced_psf_flux_flag"),
    ):
        good = ~sources[flag]
        for name in names:
            assert np.isfinite(sources[name][good]).all(), name
            if name.endswith("_err"):
                assert (sources[name][good] > 0).all(), name


# -- inputs that are refused --

BROKEN = {
    "a PSF of NaN": (with_psf(NanPsf()), UnusableExposure, "psf: 625 of 625 pixels are not finite"),
    "no finite pixel": (fill("image", np.nan), UnusableExposure, "image: none of the 50176 pixels"),
    "no variance": (fill("variance", 0.0), UnusableExposure, "variance: .*50176 zero"),
    "negative variances": (fill("variance", -4.0), UnusableExposure, "variance: .*50176 negative"),
    "variances of NaN": (fill("variance", np.nan), UnusableExposure, "variance: .*50176 not finite"),
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_exposure_is_refused_by_name_before_anything_is_computed(pair, stars, which, case):
    change, error, words = BROKEN[case]
    with pytest.raises(error, match=words) as caught:
        run(**break_one(pair, which, change), stars=stars)
    assert isinstance(caught.value, BadInputError)
    assert caught.value.which == which


def test_a_science_image_without_data_is_unusable_and_a_template_without_data_no_coverage(pair, stars):
    empty = MaskedImage.empty(pair.science.shape)
    with pytest.raises(UnusableExposure, match="all 50176 pixels are NO_DATA"):
        run(replace(pair.science, masked_image=empty), pair.template, stars)
    with pytest.raises(NoTemplateCoverage):
        run(pair.science, replace(pair.template, masked_image=empty), stars)


def test_a_template_without_data_that_shall_be_tried_has_no_stars(pair, stars):
    config = ImageDifferenceConfig()
    config.requiredTemplateFraction = 0.0
    empty = replace(pair.template, masked_image=MaskedImage.empty(pair.template.shape))
    with pytest.raises(InsufficientKernelSources, match="0 usable"):
        run(pair.science, empty, stars, config)


def test_another_band_is_refused(pair, stars):
    with pytest.raises(ExposureMismatch, match="band: the science exposure has 'r', the template 'g'"):
        run(pair.science, replace(pair.template, info=ExposureInfo(band="g")), stars)


def test_another_shape_without_world_coordinates_to_warp_by_is_refused(pair, stars):
    planes = pair.template.masked_image
    smaller = MaskedImage(planes.image[:-7], planes.mask[:-7], planes.variance[:-7])
    with pytest.raises(ExposureMismatch, match=r"shape: .*\(224, 224\).*\(217, 224\)"):
        run(pair.science, replace(pair.template, masked_image=smaller, wcs=None), stars)


# -- too little to work with --


@pytest.mark.parametrize("n_stars", [0, 1, 2])
def test_too_few_stars_are_counted(pair, stars, n_stars):
    with pytest.raises(InsufficientKernelSources) as caught:
        run(pair.science, pair.template, stars.select(np.arange(n_stars)))
    assert caught.value.n_sources <= n_stars
    assert caught.value.n_required == 3


def test_stars_that_are_not_there_are_too_few(pair):
    nowhere = make_source_catalog(x=np.full(40, np.nan), y=np.linspace(-900, -800, 40), flux=np.ones(40))
    with pytest.raises(InsufficientKernelSources, match="0 usable"):
        run(pair.science, pair.template, nowhere)


@pytest.mark.parametrize(("rows", "fraction"), [(20, 20 / 224), (0, 0.0)])
def test_coverage_below_the_limit_is_no_work(pair, stars, rows, fraction):
    template = pair.template.copy()
    template.mask[rows:] |= plane_bits("NO_DATA")
    with pytest.raises(NoTemplateCoverage) as caught:
        run(pair.science, template, stars)
    assert caught.value.fraction == fraction
    assert caught.value.required == 0.1


# -- absurd, and yet something has to come out --

ABSURD = {
    "an image of zeros": fill("image", 0.0),
    "an image of one value": fill("image", 7.0),
    "an image beyond any scale": fill("image", 1e30),
    "variances far too large": fill("variance", 1e25),
    "variances far too small": fill("variance", 1e-25),
    "everything saturated": fill("mask", plane_bits("SAT")),
    "everything detected": fill("mask", plane_bits("DETECTED")),
    "a PSF narrower than a pixel": with_psf(GaussianPsf(fwhm=0.1)),
    "a PSF a quarter of the image wide": with_psf(GaussianPsf(fwhm=60.0)),
    "a needle for a PSF": with_psf(GaussianPsf(fwhm=4.0, ellipticity=0.98)),
}


def shift_by_half(exposure):
    exposure.image[...] = np.roll(exposure.image, 112, axis=1)


def negate(exposure):
    exposure.image[...] *= -1.0


def heat(exposure):
    exposure.image[100, 100] = 1e20


def strike(exposure):
    exposure.image[::2] = np.nan
    exposure.variance[:, ::2] = 0.0


ABSURD |= {
    "another field": shift_by_half,
    "a negative of it": negate,
    "a pixel beyond any scale": heat,
    "three quarters of the pixels unusable": strike,
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("case", ABSURD)
def test_an_absurd_exposure_gives_a_named_error_or_a_sound_catalog(pair, which, case):
    # Without given stars: the task looks for its own, on what it is given.
    try:
        ran = run(**break_one(pair, which, ABSURD[case]), stars=None)
    except AlertprodError:
        return
    assert_sound(ran.diaSources)


SETTINGS = {
    "subtract.al.kernel.AL.kernelSize": 4,
    "subtract.al.kernel.AL.kernelSizeMin": 99,
    "subtract.al.kernel.AL.sizeCellX": 1,
    "subtract.al.kernel.AL.alardNGauss": 0,
    "subtract.al.kernel.AL.spatialKernelOrder": 40,
    "subtract.al.kernel.AL.spatialBgOrder": -1,
    "subtract.al.kernel.AL.maxSpatialIterations": 0,
    "subtract.al.kernel.AL.minKernelSources": 10**6,
    "subtract.al.kernel.AL.candidateResidualStdMax": 0.0,
    "subtract.al.kernel.AL.maxKsumSigma": -1.0,
    "detection.thresholdValue": -1.0,
    "detection.nSigmaToGrow": 1e4,
    "detection.minPixels": 10**9,
    "diffimBackgroundBinSize": 10**6,
    "scaleVariance.limit": 0.0,
    "measurement.dipole.maxSeparation": -1.0,
    "measurement.dipole.maxFootprintArea": 0,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_absurd_setting_is_refused_or_gives_a_named_error_or_a_sound_catalog(pair, stars, name):
    config = ImageDifferenceConfig()
    try:
        set_field(config, name, SETTINGS[name])
        task = ImageDifferenceTask(config)
    except FieldValidationError:
        return
    try:
        ran = task.run(exposure=pair.science, templateExposure=pair.template, selectSources=stars)
    except AlertprodError:
        return
    assert_sound(ran.diaSources)


def set_field(config, name: str, value) -> None:
    *path, last = name.split(".")
    node = config
    for part in path:
        # Registries and choices are looked up by item.
        node = getattr(node, part) if hasattr(node, part) else node[part]
    setattr(node, last, value)
