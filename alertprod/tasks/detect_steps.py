"""The detecting half of `ImageDifferenceTask.run`: from a difference to a table of what changed.

Functions of the parent task: its configuration says what is done, its subtasks do it, its metadata keep the numbers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alertprod._bands import map_threads
from alertprod.detection.background import estimate_background
from alertprod.detection.footprints import FootprintSet
from alertprod.detection.matched_filter import make_filter_kernel
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.flux import measure_psf_flux
from alertprod.measurement.fractional_error import estimate_fractional_error
from alertprod.tasks.difference_metrics import (
    check_footprint_ratio,
    compute_footprint_ratios,
    compute_limiting_magnitude,
    compute_limiting_magnitudes,
    compute_psf_sizes,
    count_pixels,
)
from alertprod.tasks.kernel_candidate_qa import KernelCandidateQa
from alertprod.tasks.match_sources import match_dia_sources
from alertprod.tasks.scale_variance import compute_pull_width
from alertprod.tasks.subtract_steps import Subtraction

if TYPE_CHECKING:
    from alertprod.tasks.image_difference import ImageDifferenceTask

_BIN_FWHM = 6.0
"""Bins of the difference's background are at least this many FWHM wide: the light of a star that was not detected must
not pass for background."""

_UNUSABLE_PLANES = ("BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE")
"""Pixels of these planes are not sky whatever is detected."""

NOT_SKY_PLANES = (*_UNUSABLE_PLANES, "DETECTED", "DETECTED_NEGATIVE")
"""Pixels of these planes do not count for the noise of the difference."""

_BAD_PLANES = ("BAD", "SAT", "NO_DATA", "EDGE", "SAT_TEMPLATE")
"""A pixel of one of these is not good."""

_REPORTED_PLANES = ("NO_DATA", "EDGE", "SAT", "CR", "STREAK", "HIGH_VARIANCE", "DETECTED", "DETECTED_NEGATIVE")
"""Planes whose share of the image is told."""

_SCORE_PLANES = plane_bits("DETECTED", "DETECTED_NEGATIVE", "EDGE")
"""What a score image says of the difference's pixels."""


def detect(task: "ImageDifferenceTask", made: Subtraction, *, seed: int) -> FootprintSet:
    """Detect on the difference, or on the score image where there is one.

    Parameters
    ----------
    made
        Planes of its difference and score are set, their background and variance changed where so configured.
    seed
        For the places of sky sources, the exposure's.
    """
    config, difference, score = task.config, made.difference, made.score
    if config.doFindCosmicRays:
        task.findCosmicRays.run(difference)
    image = difference
    if config.doSubtractDiffimBackground:
        _subtract_background(task, difference)
    if config.doScaleDiffimVariance:
        factor = task.scaleVariance.run(difference.masked_image, difference.psf)
        task.metadata["scaleDiffimVarianceFactor"] = factor
        if difference.noise is not None:
            difference.noise = difference.noise.scaled(factor)
    if score is not None:
        image = score
        score.mask[...] |= difference.mask & np.int32(plane_bits("CR"))
        if config.doSubtractDiffimBackground:
            _subtract_background(task, score, doSmooth=False)
        if config.doScaleDiffimVariance:
            # The same noise; its scale is known far better where pixels are independent.
            score.masked_image.variance *= np.float32(task.metadata["scaleDiffimVarianceFactor"])
    if config.doEstimateFractionalError and difference.noise is not None:
        _estimate_fractional_error(task, made)
        if score is None:
            image = _with_fractional_error(difference)
    found = task.detection.run(
        image,
        doSmooth=score is None,
        doMerge=config.doMerge,
        growFootprint=config.growFootprint if config.doMerge else 0,
    )
    task.metadata.update(nUnmergedDiaSources=found.numPos + found.numNeg, nMergedDiaSources=len(found.sources))
    if score is not None:
        difference.mask[...] = (difference.mask & ~np.int32(_SCORE_PLANES)) | (score.mask & np.int32(_SCORE_PLANES))
    if config.doMaskStreaks:
        task.maskStreaks.run(difference)
    footprints: FootprintSet = found.sources
    if config.doSkySources:
        sky = task.skySources.run(difference.mask, seed)
        footprints = FootprintSet.concatenate([footprints, sky])
    return footprints


def measure(
    task: "ImageDifferenceTask", made: Subtraction, footprints: FootprintSet, idFactory: Callable[[], int]
) -> Catalog:
    """Measure what was detected, always on the difference."""
    config = task.config
    sources: Catalog = task.measurement.run(
        footprints,
        made.difference,
        made.science,
        made.template,
        idFactory=idFactory,
        doDipoleFitting=config.doDipoleFitting,
        doForcedMeasurement=False,
    )
    if config.doApCorr and made.difference.ap_corr_map is not None:
        task.applyApCorr.run(sources, made.difference.ap_corr_map)
    if config.doForcedMeasurement:
        task.forcedMeasurement.run(sources, made.science, made.unconvolved_template)
    if config.doFindGlintTrails:
        _flag_glints(task, sources)
    if config.doMatchSources:
        _match(task, made, sources)
    return sources


def _subtract_background(task: "ImageDifferenceTask", exposure: Exposure, *, doSmooth: bool = True) -> None:
    """Take the smooth background off a difference, in place; what is detected on it does not count.

    Notes
    -----
    Twice: a background may be so high that it would be taken for sources, so they are detected on what is left of a
    first one, which had to take them for sky.
    """
    if exposure.psf is None:
        return
    bin_size = max(task.config.diffimBackgroundBinSize, round(_BIN_FWHM * exposure.psf.compute_fwhm()))
    rms = 0.0
    for planes in (_UNUSABLE_PLANES, NOT_SKY_PLANES):
        if planes is NOT_SKY_PLANES:
            task.detection.mark(exposure, doSmooth=doSmooth)
        sky = exposure.masked_image.usable(plane_bits(*planes))
        if not sky.any():
            return
        background = estimate_background(exposure.image, sky, bin_size=bin_size)
        background.subtract_from(exposure.masked_image.image)
        rms = float(np.hypot(rms, background.level.std()))
    if doSmooth:
        task.metadata["diffimBackgroundRms"] = rms


def _estimate_fractional_error(task: "ImageDifferenceTask", made: Subtraction) -> None:
    """Find out from constant stars how well the subtracted light is known; the difference's noise learns of it."""
    difference, matched, stars = made.difference, made.matched, made.select_sources
    if matched is None or stars is None or difference.psf is None or difference.noise is None:
        return
    planes, psf, bad_planes = difference.masked_image, difference.psf, plane_bits(*_UNUSABLE_PLANES)
    subtracted = MaskedImage(matched.image, planes.mask, planes.variance)
    x, y = stars["x"].astype(float), stars["y"].astype(float)
    left = measure_psf_flux(planes, psf, x=x, y=y, bad_planes=bad_planes, noise=difference.noise)
    whole = measure_psf_flux(subtracted, psf, x=x, y=y, bad_planes=bad_planes)
    good = ~(left.flag | whole.flag)
    fraction = estimate_fractional_error(left.flux[good], left.flux_err[good], whole.flux[good])
    task.metadata["fractionalError"] = fraction
    if fraction > 0:
        difference.noise = difference.noise.with_fractional_error(fraction, np.nan_to_num(matched.image))


def _with_fractional_error(difference: Exposure) -> Exposure:
    """Return the difference, its mask shared, with the variance that detection needs where much was subtracted.

    Notes
    -----
    Of the light L a fraction f is wrong for all pixels of a star alike, where the filter K takes the pixels' errors as
    independent: with ``f^2 L^2 (sum K^2)^2 / sum K^4`` a pixel its output has the right error at a point source,
    ``f sum K L``, and about it where the PSF is a Gaussian.
    """
    noise, psf = difference.noise, difference.psf
    if noise is None or noise.subtracted is None or psf is None:
        return difference
    kernel = make_filter_kernel(psf)
    factor = noise.fractional_error**2 * (kernel**2).sum() ** 2 / (kernel**4).sum()
    planes = difference.masked_image
    variance = planes.variance + np.float32(factor) * noise.subtracted**2
    return replace(difference, masked_image=MaskedImage(planes.image, planes.mask, variance))


def _flag_glints(task: "ImageDifferenceTask", sources: Catalog) -> None:
    rows = np.flatnonzero(~(sources["is_dipole"] | sources["sky_source"]))
    found = task.findGlintTrails.run(x=sources["x"][rows].astype(float), y=sources["y"][rows].astype(float))
    sources["glint_trail"][rows] = found.isGlint


def _match(task: "ImageDifferenceTask", made: Subtraction, sources: Catalog) -> None:
    """Say which DiaSources lie on a source of the science image, and which on a reference object."""
    if made.select_sources is None:
        task.log.warning("doMatchSources without selectSources: no DiaSource is matched with them")
    has_reference = task.astrometer.refObjLoader is not None and made.difference.wcs is not None
    if not has_reference:
        task.log.warning("doMatchSources without a reference catalogue or world coordinates: none is matched with it")
    matches = match_dia_sources(
        sources,
        select_sources=made.select_sources,
        reference=task.astrometer.loadReference(made.difference) if has_reference else None,
        wcs=made.difference.wcs,
        shape=made.difference.shape,
        radius_arcsec=task.config.diaSourceMatchRadius,
    )
    sources["src_match_id"], sources["ref_match_id"] = matches.src_match_id, matches.ref_match_id
    task.metadata.update(nSrcMatches=matches.n_src_matches, nRefMatches=matches.n_ref_matches)


def judge_kernel(task: "ImageDifferenceTask", made: Subtraction, sources: Catalog | None) -> Catalog | None:
    """Measure the residuals of every kernel candidate, and of the control sample; their statistics go to the metadata."""
    if made.result is None:
        return None
    subtract = task.subtract
    judge = KernelCandidateQa(subtract.makeSettings())  # type: ignore[attr-defined]  # doAddMetrics is for al alone
    candidates = judge.apply(made.result.kernelCellSet, made.science, made.result)
    judge.aggregate(candidates, task.metadata, diaSources=sources)
    if made.control_sources is not None and made.control_sources.n_rows:
        control = subtract.makeControlCandidates(  # type: ignore[attr-defined]  # as above
            made.control_sources, made.science, made.result
        )
        judge.aggregate(judge.apply(control, made.science, made.result), task.metadata, prefix="Control")
    return candidates


def record_metrics(task: "ImageDifferenceTask", made: Subtraction) -> None:
    """Write the figures of a difference to the metadata."""
    difference, science, warped, metadata = made.difference, made.science, made.warped, task.metadata
    figures: list[Callable[[], dict[str, float]]] = [
        lambda: {"pullWidth": compute_pull_width(difference, planes=NOT_SKY_PLANES)},
        lambda: {"differenceLimitingMagnitude": compute_limiting_magnitude(difference, sky_planes=NOT_SKY_PLANES)},
        lambda: count_pixels(difference.mask, bad_planes=_BAD_PLANES, planes=_REPORTED_PLANES),
    ]
    if made.result is not None and warped is not None:
        figures += [
            lambda: compute_psf_sizes(science, warped),
            lambda: compute_limiting_magnitudes(science, warped, sky_planes=NOT_SKY_PLANES),
        ]
    for found in map_threads(lambda compute: compute(), figures):
        metadata.update(found)
    if made.result is None or warped is None:
        return
    if made.kernel_sources is not None:
        ratios = compute_footprint_ratios(
            difference, science, made.kernel_sources, prefix="difference", sky_planes=NOT_SKY_PLANES
        )
        metadata.update(ratios)
        check_footprint_ratio(ratios, prefix="difference", max_median=task.config.badSubtractionRatioThreshold)
