"""What `doAddMetrics` adds: how well the kernel subtracts its stars, star by star and in summary.

Each figure is there twice, LOCAL with the kernel that a star asks for by itself and SPATIAL with the match's kernel.
"""

from collections.abc import MutableMapping
from typing import Any

import numpy as np

from alertprod._typing import BoolArray
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog, Column
from alertprod.subtraction.candidate_quality import measure_candidates
from alertprod.subtraction.cell_set import CandidateStatus, KernelCellSet
from alertprod.subtraction.config import MatchConfig
from alertprod.tasks.task import Struct

_FIGURES = {
    "mean": ("KCDiffimMean", "", "mean residual over noise"),
    "median": ("KCDiffimMedian", "", "median residual over noise"),
    "iqr": ("KCDiffimIQR", "", "range between the quartiles of residual over noise"),
    "stdev": ("KCDiffimStDev", "", "standard deviation of residual over noise"),
    "chi2": ("KCDiffimChiSq", "", "mean square of residual over noise"),
    "ks_distance": ("KCDiffimKSD", "", "Kolmogorov-Smirnov distance of residual over noise from N(0, 1)"),
    "ks_probability": ("KCDiffimKSProb", "", "how often noise alone is as far off"),
    "ad_statistic": ("KCDiffimADA2", "", "Anderson-Darling A squared of residual over noise against N(0, 1)"),
    "ad_probability": ("KCDiffimADProb", "", "how often noise alone has as much"),
    "kernel_sum": ("KCKernelSum", "", "sum of the kernel"),
    "kernel_x": ("KCKernelCentX", "pixel", "column of the kernel's centroid against its middle pixel"),
    "kernel_y": ("KCKernelCentY", "pixel", "row of the kernel's centroid against its middle pixel"),
    "kernel_sigma": ("KCKernelStd", "pixel", "rms width of the kernel per axis"),
    "background": ("KCBackground", "", "differential background at the star, units of the image not convolved"),
}
"""Field of `ResidualStatistics` to its name in metadata, unit and meaning."""

_KINDS = {"local": "with the star's own kernel", "spatial": "with the match's kernel"}

CANDIDATE_COLUMNS: tuple[Column, ...] = (
    Column("candidate_id", "i8", "", "row of the list of stars that the kernel was fitted on, from 0"),
    Column("x", "f8", "pixel", "column of the star"),
    Column("y", "f8", "pixel", "row of the star"),
    Column("cell_row", "i4", "", "row of its cell"),
    Column("cell_column", "i4", "", "column of its cell"),
    Column("status", "i4", "", "CandidateStatus: 0 not tried, 1 used, 2 refused or thrown out"),
    Column("reason", "O", "", "why it is 2"),
    Column("own_sum", "f8", "", "flux ratio that the star asks for"),
    Column("own_sum_err", "f8", "", "its standard error"),
    Column("n_pixels", "i4", "", "pixels that the figures are from; 0 for none"),
    *(
        Column(f"{figure}_{kind}", "f8", unit, f"{meaning}, {whose}")
        for kind, whose in _KINDS.items()
        for figure, (_, unit, meaning) in _FIGURES.items()
    ),
)
"""A row per kernel star; figures of a star without a clean stamp are NaN."""


class KernelCandidateQa:
    """Judges the stars of a match.

    Parameters
    ----------
    settings
        With which the kernel was fitted: `ImagePsfMatchTask.makeSettings`.
    """

    def __init__(self, settings: MatchConfig) -> None:
        self._settings = settings

    def apply(self, kernelCellSet: KernelCellSet, scienceExposure: Exposure, subtractRes: Struct) -> Catalog:
        """Measure the residuals of kernel stars, or of a control sample.

        Parameters
        ----------
        kernelCellSet
            ``subtractRes.kernelCellSet``, or what `ImagePsfMatchTask.makeControlCandidates` made.
        scienceExposure
            As it was matched.
        subtractRes
            What `ImagePsfMatchTask` returned.

        Returns
        -------
        Catalog
            Columns `CANDIDATE_COLUMNS`, rows as the stars were given.
        """
        science, template = scienceExposure.masked_image, subtractRes.warpedExposure.masked_image
        template_convolved = subtractRes.match.convolved == "template"
        quality = measure_candidates(
            template if template_convolved else science,
            science if template_convolved else template,
            kernelCellSet,
            config=self._settings,
            sign=1 if template_convolved else -1,
        )
        candidates = Catalog(CANDIDATE_COLUMNS, len(kernelCellSet))
        candidates["candidate_id"] = np.arange(len(kernelCellSet))
        candidates["x"], candidates["y"] = kernelCellSet.x, kernelCellSet.y
        candidates["cell_row"], candidates["cell_column"] = kernelCellSet.cell.T
        candidates["status"], candidates["reason"] = kernelCellSet.status, np.array(kernelCellSet.reason, dtype=object)
        candidates["own_sum"], candidates["own_sum_err"] = kernelCellSet.own_sum, kernelCellSet.own_sum_error
        candidates["n_pixels"] = quality.n_pixels
        for kind in _KINDS:
            statistics = getattr(quality, kind)
            for figure in _FIGURES:
                candidates[f"{figure}_{kind}"] = getattr(statistics, figure)
        return candidates

    def aggregate(
        self,
        candidates: Catalog,
        metadata: MutableMapping[str, Any],
        diaSources: Catalog | None = None,
        prefix: str = "",
    ) -> None:
        """Sum figures up in metadata.

        Parameters
        ----------
        candidates
            From `apply`; those that were refused or thrown out do not count.
        metadata
            Gets ``KCDiffimMean_LOCAL_MEAN``, ``…_MEDIAN`` and ``…_STDEV``, likewise SPATIAL, and so for every figure;
            NaN where no star has it.
        diaSources
            What was detected: adds NFalsePositivesTotal, and of these NFalsePositivesRefAssociated (at a place of the
            reference catalogue), …SrcAssociated (of a source of the science image) and …Unassociated (of neither).
            Sky sources do not count.
        prefix
            Before each star's figure's name: "Control" for a control sample.
        """
        counted = candidates.select(candidates["status"] != CandidateStatus.BAD)
        for kind in _KINDS:
            for figure, (name, _, _) in _FIGURES.items():
                values = counted[f"{figure}_{kind}"]
                known = values[np.isfinite(values)]
                for label, summary in (("MEAN", np.mean), ("MEDIAN", np.median), ("STDEV", np.std)):
                    value = float(summary(known)) if known.size else float("nan")
                    metadata[f"{prefix}{name}_{kind.upper()}_{label}"] = value
        if diaSources is None:
            return
        detected = diaSources.select(~diaSources["sky_source"])
        at_reference: BoolArray = detected["ref_match_id"] != 0
        at_source: BoolArray = detected["src_match_id"] != 0
        metadata["NFalsePositivesTotal"] = detected.n_rows
        metadata["NFalsePositivesRefAssociated"] = int(at_reference.sum())
        metadata["NFalsePositivesSrcAssociated"] = int(at_source.sum())
        metadata["NFalsePositivesUnassociated"] = int((~at_reference & ~at_source).sum())
