"""From two exposures to measured sources: what the daemon and the offline command do alike, no database, no Kafka."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from alertprod.association.forced import PsfPhotometer
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.photo_calib import AB_ZERO_POINT_NJY
from alertprod.measurement.catalog import Catalog
from alertprod.subtraction.alard_lupton import MatchResult
from alertprod.tasks.image_difference import NOT_SKY_PLANES, ImageDifferenceTask

_STAGE_OF_TIMER: Mapping[str, str] = {
    "characterize:run": "psf",
    "characterize:selectKernelSources": "select",
    "_decorrelate": "decorrelate",
    "detection:run": "detect",
    "measurement:run": "measure",
}
"""Metric stages by the task timers they are taken from, without the top-level task's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Differenced:
    """The pixels' part of an exposure, done.

    Parameters
    ----------
    science, template, difference
        On one grid; the template as it was subtracted.
    sources
        DiaSources, not associated yet.
    figures
        Kernel and noise figures of the exposure.
    stage_seconds
        Wall time by stage.
    """

    science: Exposure
    template: Exposure
    difference: Exposure
    sources: Catalog
    figures: dict[str, float]
    stage_seconds: dict[str, float]

    @property
    def photometer(self) -> PsfPhotometer:
        """Measures forced point-source fluxes on difference and science image, nJy."""
        return PsfPhotometer(self.difference, self.science)


def difference_exposures(
    task: ImageDifferenceTask,
    science: Exposure,
    template: Exposure,
    *,
    id_factory: Callable[[], int],
    background: Exposure | None = None,
) -> Differenced:
    """Characterise, subtract, detect and measure one exposure against a template on its grid.

    Parameters
    ----------
    background
        What was taken off the exposure, to be added back where the task's configuration says so.

    Raises
    ------
    ProcessingError, NoTemplateCoverage
        Raised as by `ImageDifferenceTask.run`.
    """
    task.checkTemplateIsSufficient(template)
    characterized = task.characterize.run(science)
    seconds = dict(task.durations())
    science = characterized.exposure
    template = task.characterize.subtractSky(template)
    if template.psf is None:
        template = task.characterize.run(template).exposure
        seconds["template"] = task.durations()[f"{task.getName()}:characterize:run"]
    result = task.run(
        exposure=science,
        selectSources=characterized.selectSources,
        templateExposure=template,
        idFactory=id_factory,
        calexpBackgroundExposure=background,
    )
    seconds.update(task.durations())
    stages = {
        stage: seconds[f"{task.getName()}:{timer}"]
        for timer, stage in _STAGE_OF_TIMER.items()
        if f"{task.getName()}:{timer}" in seconds
    }
    stages["psf"] = stages.get("psf", 0.0) + seconds.get("template", 0.0)
    match: MatchResult = result.subtractRes.match
    stages["match"] = match.seconds["fit"]
    stages["subtract"] = match.seconds["convolve"] + match.seconds["subtract"]
    difference = result.subtractedExposure
    info = replace(
        difference.info,
        provenance={
            **difference.info.provenance,
            **({"template_zero_point": "nominal"} if template.photo_calib.is_nominal else {}),
            "convolved": match.convolved,
        },
    )
    return Differenced(
        science=result.scienceExposure,
        template=result.templateExposure,
        difference=replace(difference, info=info),
        sources=result.diaSources,
        figures=_compute_figures(task, science, template, difference, match, result.diaSources),
        stage_seconds=stages,
    )


def _compute_figures(
    task: ImageDifferenceTask,
    science: Exposure,
    template: Exposure,
    difference: Exposure,
    match: MatchResult,
    sources: Catalog,
) -> dict[str, float]:
    """Return the exposure's figures; what cannot be computed is left out."""
    # The ratio of the photometric scales as calibrated: 1 where both zero points are right.
    scale = science.photo_calib.njy_per_count / template.photo_calib.njy_per_count
    kernel_sum = match.kernel_sum * scale if match.convolved == "template" else scale / match.kernel_sum
    figures = {
        "kernel_sum": kernel_sum,
        "residual_ratio": float(np.median(match.residual_rms)) if len(match.residual_rms) else float("nan"),
        "pull_width": task.metadata["pullWidth"],
        "n_sources": float(sources.n_rows),
        "limiting_magnitude": _compute_limiting_magnitude(difference),
        "n_kernel_sources": float(len(match.used)),
        "n_kernel_sources_rejected": float(len(match.rejected)),
        "kernel_condition_number": float(match.condition_number),
        "template_coverage": task.metadata["templateCoverage"],
        "science_fwhm_pixels": _fwhm(science),
        "template_fwhm_pixels": _fwhm(template),
    }
    if "scaleDiffimVarianceFactor" in task.metadata:
        figures["variance_scale"] = task.metadata["scaleDiffimVarianceFactor"]
    if "noiseCorrelation" in task.scaleVariance.metadata:
        figures["noise_correlation"] = task.scaleVariance.metadata["noiseCorrelation"]
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def _fwhm(exposure: Exposure) -> float:
    return exposure.psf.compute_fwhm() if exposure.psf is not None else float("nan")


def _compute_limiting_magnitude(difference: Exposure) -> float:
    """Return the AB magnitude of a point source of 5 sigma on the sky of the difference."""
    masked_image = difference.masked_image
    good = masked_image.usable(plane_bits(*NOT_SKY_PLANES))
    if not good.any() or difference.psf is None:
        return float("nan")
    x, y = difference.psf.average_position
    power = float((difference.psf.compute_kernel_image(x=x, y=y) ** 2).sum())
    sigma = np.sqrt(float(np.median(masked_image.variance[good])) / power) * difference.photo_calib.njy_per_count
    return float(AB_ZERO_POINT_NJY - 2.5 * np.log10(5.0 * sigma))
