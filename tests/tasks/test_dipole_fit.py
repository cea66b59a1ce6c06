"""`DipoleFitTask`: the shell about `alertprod.measurement.measure`."""

import itertools

import numpy as np
import pytest
from made_skies import TRANSIENTS

from alertprod.images.mask import plane_bits
from alertprod.tasks.dipole_fit import DipoleFitConfig, DipoleFitTask
from alertprod.tasks.source_detection import SourceDetectionTask


def detect(difference):
    return SourceDetectionTask().run(difference).sources


def test_ids_are_asked_for_in_the_footprints_order(pair, result):
    difference = result.subtractedExposure.copy()
    asked = itertools.count(100)
    task = DipoleFitTask()
    catalog = task.run(
        detect(difference), difference, pair.science, result.matchedExposure, idFactory=lambda: next(asked)
    )
    np.testing.assert_array_equal(catalog["dia_source_id"], [100, 101, 102])
    assert next(asked) == 103
    assert np.abs(catalog["snr"][0]) > np.abs(catalog["snr"][1])
    assert np.isfinite(catalog["science_flux"]).all()


def test_switches_are_arguments(pair, result):
    difference = result.subtractedExposure.copy()
    catalog = DipoleFitTask().run(
        detect(difference),
        difference,
        pair.science,
        result.matchedExposure,
        idFactory=itertools.count(1).__next__,
        doForcedMeasurement=False,
    )
    assert np.isnan(catalog["science_flux"]).all()


def test_removed_sources_are_counted_and_keep_their_ids(pair, result):
    difference = result.subtractedExposure.copy()
    footprints = detect(difference)
    x, y, _ = TRANSIENTS[0]
    difference.mask[round(y), round(x)] |= plane_bits("BAD")
    task = DipoleFitTask()
    catalog = task.run(
        footprints, difference, pair.science, result.matchedExposure, idFactory=itertools.count(1).__next__
    )
    assert catalog.n_rows == len(TRANSIENTS) - 1
    assert task.metadata["nRejectedBadMaskPlanes"] + task.metadata["nRemovedBadFlaggedSources"] == 1
    # Ids do not depend on what is removed: those that are left have the ids they would have had.
    assert set(catalog["dia_source_id"]) < {1, 2, 3}

    config = DipoleFitConfig()
    config.update(rejectedPeakPlanes=[], badFlags=[])
    everything = DipoleFitTask(config).run(
        footprints, difference, pair.science, result.matchedExposure, idFactory=itertools.count(1).__next__
    )
    assert everything.n_rows == len(TRANSIENTS)
    np.testing.assert_array_equal(everything["dia_source_id"], [1, 2, 3])


def test_fits_are_configured_under_the_references_names(pair, result):
    difference = result.subtractedExposure.copy()
    footprints = detect(difference)
    config = DipoleFitConfig()
    config.dipole.fitAllDiaSources = True
    config.dipole.fitSeparateNegParams = True
    config.dipole.maxFootprintArea = 10
    config.trail.minElongation = 0.5
    catalog = DipoleFitTask(config).run(
        footprints, difference, pair.science, result.matchedExposure, idFactory=itertools.count(1).__next__
    )
    assert catalog["dipole_fit_flag"].all(), "every footprint is larger than that"
    assert not catalog["dipole_fit_attempted"].any()


def test_a_flag_that_does_not_exist_is_refused_at_construction():
    config = DipoleFitConfig()
    config.badFlags = ["nonsenseCenter"]
    with pytest.raises(ValueError, match="nonsenseCenter"):
        DipoleFitTask(config)


def test_dipoles_and_trails_are_counted(pair, result):
    difference = result.subtractedExposure.copy()
    task = DipoleFitTask()
    task.run(
        detect(difference), difference, pair.science, result.matchedExposure, idFactory=itertools.count(1).__next__
    )
    assert (task.metadata["nDipoles"], task.metadata["nTrails"]) == (0, 0)
