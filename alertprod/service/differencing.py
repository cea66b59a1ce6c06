"""From two exposures to measured sources: what the daemon and the offline command do alike, no database, no Kafka."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from alertprod.association.forced import PsfPhotometer
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog
from alertprod.subtraction.alard_lupton import MatchResult
from alertprod.tasks.image_difference import ImageDifferenceTask

_STAGE_OF_TIMER: Mapping[str, str] = {
    "characterizeScience": "psf",
    "characterizeTemplate": "psf",
    "decorrelate:run": "decorrelate",
    "detect": "detect",
    "measure": "measure",
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
    owns_inputs: bool = False,
) -> Differenced:
    """Characterise, subtract, detect and measure one exposure against a template on its grid.

    Parameters
    ----------
    background
        What was taken off the exposure, to be added back where the task's configuration says so.
    owns_inputs
        Nobody else has a use for the two exposures: their planes may be changed, in place of copies of them.

    Raises
    ------
    ProcessingError, NoTemplateCoverage
        Raised as by `ImageDifferenceTask.run`.
    """
    task.checkTemplateIsSufficient(template)
    ready = task.characterizeInputs(science, template, ownsInputs=owns_inputs)
    result = task.run(
        exposure=ready.exposure,
        selectSources=ready.selectSources,
        templateExposure=ready.templateExposure,
        idFactory=id_factory,
        calexpBackgroundExposure=background,
        ownsInputs=owns_inputs,
    )
    stages: dict[str, float] = {}
    for timer, seconds in task.durations().items():
        stage = _STAGE_OF_TIMER.get(timer.removeprefix(f"{task.getName()}:"))
        if stage is not None:
            stages[stage] = stages.get(stage, 0.0) + seconds
    match: MatchResult | None = getattr(result.subtractRes, "match", None)
    if match is None:
        stages["subtract"] = task.durations()[f"{task.getName()}:subtract:run"]
    else:
        stages["match"] = match.seconds["fit"]
        stages["subtract"] = match.seconds["convolve"] + match.seconds["subtract"]
    difference = result.subtractedExposure
    info = replace(
        difference.info,
        provenance={
            **difference.info.provenance,
            **({"template_zero_point": "nominal"} if template.photo_calib.is_nominal else {}),
            "convolved": "both" if match is None else match.convolved,
        },
    )
    return Differenced(
        science=result.scienceExposure,
        template=result.templateExposure,
        difference=replace(difference, info=info),
        sources=result.diaSources,
        figures=_compute_figures(task, ready.exposure, ready.templateExposure, match, result.diaSources),
        stage_seconds=stages,
    )


def _compute_figures(
    task: ImageDifferenceTask, science: Exposure, template: Exposure, match: MatchResult | None, sources: Catalog
) -> dict[str, float]:
    """Return the exposure's figures; what cannot be computed is left out."""
    metadata = task.metadata
    figures = {
        "pull_width": metadata["pullWidth"],
        "n_sources": float(sources.n_rows),
        "limiting_magnitude": metadata["differenceLimitingMagnitude"],
        "template_coverage": metadata["templateCoverage"],
        "science_fwhm_pixels": _fwhm(science),
        "template_fwhm_pixels": _fwhm(template),
    }
    if match is not None:
        # The ratio of the photometric scales as calibrated: 1 where both zero points are right. Where one is nominal it is
        # no figure of merit, and has another name: nobody is to be called for it.
        scale = science.photo_calib.njy_per_count / template.photo_calib.njy_per_count
        is_nominal = science.photo_calib.is_nominal or template.photo_calib.is_nominal
        ratio = match.kernel_sum * scale if match.convolved == "template" else scale / match.kernel_sum
        figures |= {
            "kernel_sum_nominal" if is_nominal else "kernel_sum": ratio,
            "residual_ratio": task.subtract.metadata["kernelResidualRms"],
            "n_kernel_sources": float(len(match.used)),
            "n_kernel_sources_rejected": float(len(match.rejected)),
            "kernel_condition_number": float(match.condition_number),
        }
    if "scaleDiffimVarianceFactor" in metadata:
        figures["variance_scale"] = metadata["scaleDiffimVarianceFactor"]
        figures["noise_correlation"] = task.scaleVariance.metadata.get("noiseCorrelation", float("nan"))
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def _fwhm(exposure: Exposure) -> float:
    return exposure.psf.compute_fwhm() if exposure.psf is not None else float("nan")
