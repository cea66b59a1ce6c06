"""The subtracting half of `ImageDifferenceTask.run`: from two exposures to a difference and, where asked for, a score.

Functions of the parent task: its configuration says what is done, its subtasks do it, its metadata keep the numbers.
"""

import functools
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from alertprod._bands import map_threads, row_bands
from alertprod.detection.cosmic_rays import repair_cosmic_rays
from alertprod.errors import ExposureMismatch, TaskError
from alertprod.geometry.wcs import SkyWcs
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import PhotoCalib
from alertprod.measurement.catalog import Catalog
from alertprod.subtraction.preconvolve import preconvolve_difference
from alertprod.tasks.control_sample import split_control_sample
from alertprod.tasks.image_psf_match import put_on_grid
from alertprod.tasks.match_sources import SourceMatches, match_sources
from alertprod.tasks.sources import add_sky_positions
from alertprod.tasks.task import Struct

if TYPE_CHECKING:
    from alertprod.tasks.image_difference import ImageDifferenceTask

_KEPT_TEMPLATE_PLANES = ("NO_DATA", "BAD", "HIGH_VARIANCE")
"""What of a template's mask concerns the difference; SAT and INJECTED go on under names of their own, and a tile's
EDGE means nothing where its neighbour goes on. A cosmic ray of a template is repaired, so that it is no hole in every
difference from then on, and leaves INTRP: what is found on its place is measured, and flagged."""

_TEMPLATE_MATCH_ARCSEC = 1.0
"""Stars of the science image and of the template within it are the same."""


@dataclass(slots=True, kw_only=True)
class Subtraction:
    """A difference and what it was made of, all on one photometric scale.

    Parameters
    ----------
    science, template
        On the difference's pixels; the template as it was subtracted, None where a difference was given without it.
    difference
        Science minus template.
    score
        What to detect on instead, where that was asked for; image / sqrt(variance) is the significance.
    warped
        The template as it was given, registered where that was asked for.
    result
        What the subtask returned; None where a difference was given.
    select_sources, kernel_sources, control_sources
        Stars: all, those the kernel was offered, those kept to judge it by.
    """

    science: Exposure
    template: Exposure | None
    difference: Exposure
    score: Exposure | None = None
    warped: Exposure | None = None
    result: Struct | None = None
    select_sources: Catalog | None = None
    kernel_sources: Catalog | None = None
    control_sources: Catalog | None = None

    @property
    def matched(self) -> Exposure | None:
        """What was convolved to have the difference's PSF before whitening, on the difference's scale."""
        if self.result is None:
            return None
        matched: Exposure = self.result.matchedExposure
        return replace(matched, photo_calib=self.difference.photo_calib)

    @property
    def unconvolved_template(self) -> Exposure | None:
        """The template with its own PSF, its own, uncorrelated noise and its own scale, calibrated: to measure fluxes on."""
        match = getattr(self.result, "match", None)
        if match is None or match.convolved != "template" or self.warped is None:
            return self.template
        calib = self.difference.photo_calib
        return replace(
            self.warped, photo_calib=PhotoCalib(calib.njy_per_count * match.kernel_sum, is_nominal=calib.is_nominal)
        )


def prepare_template(template: Exposure, *, in_place: bool = False) -> Exposure:
    """Return a template without cosmic rays, whose mask says only what concerns a difference, under a template's planes.

    Parameters
    ----------
    in_place
        Change the planes that are given, in place of copies of them.
    """
    prepared = template if in_place else template.copy()
    mask = prepared.mask
    bands = row_bands(len(mask))
    present = map_threads(lambda rows: int(np.bitwise_or.reduce(mask[rows], axis=None)), bands)
    seen = functools.reduce(operator.or_, present, 0)
    if seen & plane_bits("CR"):
        repair_cosmic_rays(prepared.masked_image)
    names = {"SAT": "SAT_TEMPLATE", "INJECTED": "INJECTED_TEMPLATE", "CR": "INTRP"}
    moved = [(plane_bits(name), np.int32(plane_bits(new))) for name, new in names.items() if seen & plane_bits(name)]
    kept = np.int32(plane_bits(*_KEPT_TEMPLATE_PLANES))

    def translate(rows: slice) -> None:
        part = mask[rows]
        are_set = [(part & bits) != 0 for bits, _ in moved]
        part &= kept
        for is_set, (_, new) in zip(are_set, moved, strict=True):
            np.bitwise_or(part, new, out=part, where=is_set)

    map_threads(translate, bands)
    return prepared


def subtract_alard_lupton(
    task: "ImageDifferenceTask",
    science: Exposure,
    template: Exposure,
    select_sources: Catalog | None,
    template_sources: Catalog | None,
) -> Subtraction:
    """Match by Alard-Lupton and subtract; make a score image too where one is asked for."""
    config = task.config
    if select_sources is None:
        if config.doSelectSources:
            task.log.warning("doSelectSources without selectSources: they are looked for on the exposure")
        select_sources = task.characterize.selectKernelSources(science)
    kernel_sources, control_sources = select_sources, None
    if config.doSelectSources:
        kernel_sources, control_sources = _select(task, science, template, select_sources, template_sources)
    if config.doUseRegister:
        template = _register(task, science, template, select_sources, template_sources)
    made = task.subtract.subtractExposures(  # type: ignore[attr-defined]  # the registry's choice has it
        template,
        science,
        candidateList=kernel_sources,
        convolveTemplate=config.convolveTemplate,
        doWarping=not config.doUseRegister,
    )
    difference, score = made.subtractedExposure, None
    if config.useScoreImageDetection:
        score = _make_score(task, science, made)
    if config.doDecorrelation:
        difference = task.decorrelate.run(
            science,
            made.warpedExposure,
            difference,
            made.psfMatchingKernel,
            spatiallyVarying=config.doSpatiallyVarying,
            templateMatched=made.match.convolved == "template",
        ).correctedExposure
    photo_calib = _calibrate(task, science, made)
    return Subtraction(
        science=replace(science, photo_calib=photo_calib),
        template=replace(made.templateExposure, photo_calib=photo_calib),
        difference=replace(difference, photo_calib=photo_calib, ap_corr_map=science.ap_corr_map),
        score=score,
        warped=made.warpedExposure,
        result=made,
        select_sources=select_sources,
        kernel_sources=kernel_sources,
        control_sources=control_sources,
    )


def subtract_zogy(
    task: "ImageDifferenceTask", science: Exposure, template: Exposure, select_sources: Catalog | None
) -> Subtraction:
    """Subtract by ZOGY: its difference is white already, and it makes its score beside it."""
    made = task.subtract.run(science, template, doWarping=True)  # type: ignore[attr-defined]  # as above
    made.subtractedExposure = made.diffExp
    return Subtraction(
        science=science,
        template=made.templateExposure,
        difference=made.diffExp,
        score=made.scoreExp if task.config.useScoreImageDetection else None,
        warped=made.warpedExposure,
        result=made,
        select_sources=select_sources,
    )


def adopt_difference(
    task: "ImageDifferenceTask",
    science: Exposure,
    template: Exposure | None,
    difference: Exposure | None,
    select_sources: Catalog | None,
) -> Subtraction:
    """Take a difference that was made before, and what it was made of.

    Notes
    -----
    Its pixels have the scale of the science image's, whose calibration may be another: `_calibrate` takes the template's.
    """
    if difference is None:
        raise TaskError("without doSubtract run needs a subtractedExposure")
    if difference.psf is None:
        raise TaskError("the subtractedExposure has no psf")
    if difference.shape != science.shape:
        raise ExposureMismatch("shape of the subtractedExposure", science.shape, difference.shape)
    photo_calib = difference.photo_calib
    if template is not None:
        template = prepare_template(task.excludeImplausible("template", template))
        # One that was matched before and has lost its PSF has the science image's.
        template = replace(template, psf=template.psf or science.psf)
        template = put_on_grid(template, science, doWarping=True, nThreads=task.config.getTemplate.nThreads)
        scale = template.photo_calib.njy_per_count / photo_calib.njy_per_count
        template = replace(template, masked_image=template.masked_image.scaled(scale), photo_calib=photo_calib)
    return Subtraction(
        science=replace(science, photo_calib=photo_calib),
        template=template,
        difference=task.excludeImplausible("difference", difference).copy(),
        select_sources=select_sources,
    )


def _select(
    task: "ImageDifferenceTask",
    science: Exposure,
    template: Exposure,
    select_sources: Catalog,
    template_sources: Catalog | None,
) -> tuple[Catalog, Catalog]:
    """Choose stars to fit the kernel on and others to judge it by."""
    config = task.config
    if config.kernelSourcesFromRef:
        matches = task.astrometer.loadAndMatch(science, select_sources).matches
    else:
        matches = _match_template(
            science, template, select_sources, _find_template_sources(task, template, template_sources)
        )
    chosen = task.sourceSelector.run(select_sources, matches=matches)
    selector = task.sourceSelector.config
    sample = split_control_sample(
        chosen.candidates,
        selected=chosen.selected,
        step_size=config.controlStepSize,
        seed=config.controlRandomSeed,
        usable=chosen.matched,
        color_range=(selector.grMin, selector.grMax) if config.doSelectDcrCatalog else None,
        variables=config.doSelectVariableCatalog,
    )
    task.metadata.update(
        nSelectSources=select_sources.n_rows,
        nKernelSourcesSelected=sample.kernel_sources.n_rows,
        nControlSources=sample.control_sources.n_rows,
        nControlDcr=sample.n_dcr,
        nControlVariable=sample.n_variable,
    )
    return sample.kernel_sources, sample.control_sources


def _find_template_sources(
    task: "ImageDifferenceTask", template: Exposure, template_sources: Catalog | None
) -> Catalog:
    if template_sources is not None:
        return template_sources
    return task.characterize.selectKernelSources(template)


def _match_template(
    science: Exposure, template: Exposure, select_sources: Catalog, template_sources: Catalog
) -> SourceMatches:
    placed = [
        add_sky_positions(sources, _require_wcs(exposure))
        for sources, exposure in ((template_sources, template), (select_sources, science))
    ]
    return match_sources(*placed, radius_arcsec=_TEMPLATE_MATCH_ARCSEC)


def _register(
    task: "ImageDifferenceTask",
    science: Exposure,
    template: Exposure,
    select_sources: Catalog,
    template_sources: Catalog | None,
) -> Exposure:
    """Fit the template's world coordinates to the science image's stars, and warp it by them."""
    found = task.fitAstrometry(
        templateSources=_find_template_sources(task, template, template_sources),
        templateExposure=template,
        selectSources=add_sky_positions(select_sources, _require_wcs(science)),
    )
    if task.config.doDebugRegister:
        selector = task.config.sourceSelector
        task.metadata.update(
            task.register.measureColorOffsets(found.matches, grMin=selector.grMin, grMax=selector.grMax)
        )
    return task.register.warpExposure(template, found.wcs, _require_wcs(science), science.box)


def _make_score(task: "ImageDifferenceTask", science: Exposure, made: Struct) -> Exposure:
    """Return the Alard-Lupton likelihood image: the difference filtered with the exposure's PSF."""
    assert science.psf is not None  # or the exposure was refused
    filtered = preconvolve_difference(
        made.subtractedExposure.masked_image,
        made.psfMatchingKernel,
        science.psf,
        gaussian=task.config.useGaussianForPreConvolution,
        config=task.subtract.makeSettings(),  # type: ignore[attr-defined]  # as above
    )
    score = replace(made.subtractedExposure, masked_image=filtered.masked_image)
    if not task.config.doDecorrelation:
        return score
    return task.decorrelate.run(
        science,
        made.warpedExposure,
        score,
        filtered.matching_kernel,
        spatiallyVarying=task.config.doSpatiallyVarying,
        preConvKernel=filtered.kernel,
        preConvMode=True,
    ).correctedExposure


def _calibrate(task: "ImageDifferenceTask", science: Exposure, made: Struct) -> PhotoCalib:
    """Return the difference's calibration: the science image's, or what the kernel's sum makes of the template's."""
    wanted = task.config.doCalibrateToTemplate
    if wanted is False or (wanted is None and not science.photo_calib.is_nominal):
        return science.photo_calib
    match, template = made.match, made.warpedExposure
    # The kernel takes one image's counts to the other's.
    ratio = match.kernel_sum if match.convolved == "template" else 1.0 / match.kernel_sum
    return PhotoCalib(template.photo_calib.njy_per_count / ratio, is_nominal=template.photo_calib.is_nominal)


def _require_wcs(exposure: Exposure) -> SkyWcs:
    if exposure.wcs is None:
        raise TaskError("sources of science image and template are matched on the sky: both need world coordinates")
    return exposure.wcs
