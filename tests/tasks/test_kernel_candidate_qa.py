"""`KernelCandidateQa`: rows per star, figures in summary."""

import numpy as np
import pytest

from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.subtraction.cell_set import CandidateStatus
from alertprod.tasks.image_psf_match import ImagePsfMatchTask
from alertprod.tasks.kernel_candidate_qa import CANDIDATE_COLUMNS, KernelCandidateQa


@pytest.fixture(scope="module")
def judged(pair, stars):
    task = ImagePsfMatchTask()
    made = task.subtractExposures(pair.template, pair.science, stars)
    qa = KernelCandidateQa(task.makeSettings())
    return qa, qa.apply(made.kernelCellSet, pair.science, made), made


def test_there_is_a_row_for_every_star(judged, stars):
    _, candidates, made = judged
    assert candidates.n_rows == stars.n_rows
    assert tuple(candidates.columns) == CANDIDATE_COLUMNS
    np.testing.assert_array_equal(candidates["x"], stars["x"])
    np.testing.assert_array_equal(
        np.flatnonzero(candidates["status"] == CandidateStatus.GOOD), np.sort(made.kernelSources)
    )
    np.testing.assert_array_equal(candidates["cell_column"], np.floor(stars["x"] + 0.5) // 128)
    used = candidates.select(made.kernelSources)
    assert all(not reason for reason in used["reason"])
    assert np.isfinite(used["mean_local"]).all()
    assert np.isfinite(used["mean_spatial"]).all()


def test_kernels_of_the_rows_are_those_of_the_match(judged):
    _, candidates, made = judged
    measured = candidates.select(candidates["n_pixels"] > 0)
    np.testing.assert_allclose(measured["kernel_sum_spatial"], made.match.kernel_sum, rtol=1e-9)
    assert np.nanmedian(measured["kernel_sum_local"]) == pytest.approx(1.0, abs=0.02)
    # The kernel of 4.4 against 3.6 pixels FWHM.
    assert np.nanmedian(measured["kernel_sigma_spatial"]) == pytest.approx(np.sqrt(4.4**2 - 3.6**2) / 2.355, rel=0.15)


def test_summaries_are_of_the_stars_that_count(judged):
    qa, candidates, _ = judged
    metadata = {}
    qa.aggregate(candidates, metadata)
    counted = candidates.select(candidates["status"] != CandidateStatus.BAD)
    assert metadata["KCDiffimStDev_SPATIAL_MEDIAN"] == pytest.approx(np.nanmedian(counted["stdev_spatial"]))
    assert metadata["KCDiffimMean_LOCAL_STDEV"] == pytest.approx(np.nanstd(counted["mean_local"]))
    assert metadata["KCDiffimKSProb_LOCAL_MEAN"] == pytest.approx(np.nanmean(counted["ks_probability_local"]))
    assert {key.rsplit("_", 1)[1] for key in metadata} == {"MEAN", "MEDIAN", "STDEV"}
    assert len(metadata) == 14 * 2 * 3
    assert "NFalsePositivesTotal" not in metadata


def test_a_control_sample_has_names_of_its_own(judged):
    qa, candidates, _ = judged
    metadata = {}
    qa.aggregate(candidates, metadata, prefix="Control")
    assert "ControlKCDiffimMean_LOCAL_MEAN" in metadata
    assert not any(key.startswith("KC") for key in metadata)


def test_without_any_star_the_summaries_are_nan(judged):
    qa, candidates, _ = judged
    metadata = {}
    qa.aggregate(candidates.select(np.zeros(candidates.n_rows, dtype=bool)), metadata)
    assert all(np.isnan(value) for value in metadata.values())


def test_detections_are_counted_by_what_is_known_at_their_place(judged):
    qa, candidates, _ = judged
    sources = Catalog(DIA_SOURCE_COLUMNS, 6)
    sources["ref_match_id"] = [11, 12, 0, 0, 0, 0]
    sources["src_match_id"] = [21, 0, 22, 0, 0, 0]
    sources["sky_source"] = [False] * 5 + [True]
    metadata = {}
    qa.aggregate(candidates, metadata, sources)
    assert {key: value for key, value in metadata.items() if key.startswith("N")} == {
        "NFalsePositivesTotal": 5,
        "NFalsePositivesRefAssociated": 2,
        "NFalsePositivesSrcAssociated": 2,
        "NFalsePositivesUnassociated": 2,
    }
