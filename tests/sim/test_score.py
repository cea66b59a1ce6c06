"""The score: found, missed and false, each exposure by itself."""

import numpy as np
from astropy.table import Table

from alertprod.sim.score import SNR_EDGES, Detections, score_detections

ARCSEC = 1 / 3600.0


def make_truth(*rows):
    """Rows of (visit, detector, ra, dec, snr, is_measurable)."""
    names = ("visit", "detector", "ra_deg", "dec_deg", "snr", "is_measurable")
    return Table(rows=[dict(zip(names, row, strict=True)) for row in rows])


def make_detections(*rows):
    columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.zeros(0)] * 4
    return Detections(*columns)


def score(detections, truth, radius_arcsec=1.0):
    return score_detections(detections, truth, radius_arcsec=radius_arcsec)


def test_found_missed_and_false_are_told_apart():
    truth = make_truth((1, 0, 10.0, 0.0, 8.0, True), (1, 0, 10.1, 0.0, 8.0, True), (1, 0, 10.2, 0.0, 30.0, True))
    made = score(make_detections((1, 0, 10.0, 0.5 * ARCSEC), (1, 0, 10.2, 0.0), (1, 0, 11.0, 0.0)), truth)
    assert (5.0, 7.0, 10.0, 20.0, np.inf) == SNR_EDGES
    np.testing.assert_array_equal(made.n_injected, [0, 2, 0, 1])
    np.testing.assert_array_equal(made.n_found, [0, 1, 0, 1])
    np.testing.assert_array_equal(made.is_false, [False, False, True])
    np.testing.assert_array_equal(made.truth_row, [0, 2, -1])
    assert made.n_false == 1


def test_the_radius_is_a_distance_on_the_sky():
    # At declination 80 a second of arc is 5.8 seconds of right ascension.
    truth = make_truth((1, 0, 100.0, 80.0, 9.0, True))
    inside = make_detections((1, 0, 100.0 + 0.9 * ARCSEC / np.cos(np.radians(80)), 80.0))
    outside = make_detections((1, 0, 100.0 + 1.1 * ARCSEC / np.cos(np.radians(80)), 80.0))
    assert score(inside, truth).n_false == 0
    assert score(outside, truth).n_false == 1


def test_right_ascension_zero_is_no_border():
    truth = make_truth((1, 0, 0.1 * ARCSEC, 0.0, 9.0, True))
    assert score(make_detections((1, 0, 360.0 - 0.3 * ARCSEC, 0.0)), truth).n_false == 0


def test_the_nearest_change_is_the_one_that_was_found():
    truth = make_truth((1, 0, 10.0, 0.0, 8.0, True), (1, 0, 10.0 + 0.8 * ARCSEC, 0.0, 30.0, True))
    np.testing.assert_array_equal(score(make_detections((1, 0, 10.0 + 0.3 * ARCSEC, 0.0)), truth).truth_row, [0])


def test_exposures_are_kept_apart():
    truth = make_truth((1, 0, 10.0, 0.0, 9.0, True), (2, 0, 20.0, 0.0, 9.0, True))
    made = score(make_detections((2, 0, 10.0, 0.0), (1, 1, 10.0, 0.0), (2, 0, 20.0, 0.0)), truth)
    np.testing.assert_array_equal(made.is_false, [True, True, False])
    np.testing.assert_array_equal(made.n_found, [0, 1, 0, 0])


def test_a_change_far_below_the_noise_excuses_no_detection():
    truth = make_truth((1, 0, 10.0, 0.0, 1.9, True), (1, 0, 20.0, 0.0, 2.1, True))
    np.testing.assert_array_equal(
        score(make_detections((1, 0, 10.0, 0.0), (1, 0, 20.0, 0.0)), truth).is_false, [True, False]
    )


def test_what_cannot_be_measured_counts_neither_as_found_nor_as_missed_nor_as_false():
    truth = make_truth((1, 0, 10.0, 0.0, 50.0, False))
    made = score(make_detections((1, 0, 10.0, 0.0)), truth)
    assert made.n_injected.sum() == made.n_found.sum() == made.n_false == 0


def test_a_change_found_twice_counts_once():
    truth = make_truth((1, 0, 10.0, 0.0, 50.0, True))
    made = score(make_detections((1, 0, 10.0, 0.0), (1, 0, 10.0, 0.3 * ARCSEC)), truth)
    np.testing.assert_array_equal(made.n_found, [0, 0, 0, 1])
    assert made.n_false == 0


def test_nothing_injected_and_nothing_detected():
    everything_false = score(make_detections((1, 0, 10.0, 0.0)), Table())
    assert everything_false.n_false == 1
    assert everything_false.n_injected.sum() == 0
    nothing = score(make_detections(), make_truth((1, 0, 10.0, 0.0, 50.0, True)))
    np.testing.assert_array_equal(nothing.n_injected, [0, 0, 0, 1])
    assert nothing.n_found.sum() == 0
    assert nothing.n_false == 0
