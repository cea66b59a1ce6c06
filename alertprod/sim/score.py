"""Detections held against the truth: what was injected, found, and false."""

from dataclasses import dataclass

import numpy as np
from astropy.table import Table
from scipy.spatial import cKDTree

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.geometry.sphere import ARCSEC_PER_DEG, unit_vectors

SNR_EDGES = (5.0, 7.0, 10.0, 20.0, np.inf)
"""Bins of true signal to noise; below 5 nothing is promised."""

_FAINTEST_REAL_SNR = 2.0
"""A detection at the place of a change fainter than this is noise that happened to fall there."""


@dataclass(frozen=True, slots=True)
class Detections:
    """DiaSources to be judged, arrays of one length; positions ICRS degrees."""

    visit: IntArray
    detector: IntArray
    ra_deg: FloatArray
    dec_deg: FloatArray


@dataclass(frozen=True, slots=True)
class Score:
    """The outcome.

    `n_injected` and `n_found` count measurable changes by bin of true S/N (`SNR_EDGES`); `is_false`
    marks the detections that lie at no change, `truth_row` gives the matched row of the truth or -1.
    """

    n_injected: IntArray
    n_found: IntArray
    is_false: BoolArray
    truth_row: IntArray

    @property
    def n_false(self) -> int:
        """Number of detections at no change."""
        return int(self.is_false.sum())


def score_detections(detections: Detections, truth: Table, *, radius_arcsec: float) -> Score:
    """Match detections to the truth of their own exposure, nearest first, within `radius_arcsec`."""
    n = len(detections.visit)
    truth_row = np.full(n, -1)
    found = np.zeros(len(truth), dtype=bool)
    if len(truth):
        snr = np.asarray(truth["snr"], dtype=float)
        chord = 2.0 * np.sin(np.radians(radius_arcsec / ARCSEC_PER_DEG) / 2.0)
        exposures = set(zip(truth["visit"].tolist(), truth["detector"].tolist(), strict=True))
        for visit, detector in sorted(exposures):
            mine = np.flatnonzero((detections.visit == visit) & (detections.detector == detector))
            real = np.flatnonzero(
                (truth["visit"] == visit) & (truth["detector"] == detector) & (snr > _FAINTEST_REAL_SNR)
            )
            if not mine.size or not real.size:
                continue
            tree = cKDTree(unit_vectors(truth["ra_deg"][real], truth["dec_deg"][real]))
            vectors = unit_vectors(detections.ra_deg[mine], detections.dec_deg[mine])
            distance, nearest = tree.query(vectors, distance_upper_bound=chord)
            hit = np.isfinite(distance)
            truth_row[mine[hit]] = real[nearest[hit]]
            found[real[nearest[hit]]] = True
        counted = np.asarray(truth["is_measurable"], dtype=bool)
        edges = np.array(SNR_EDGES)
        injected_histogram, _ = np.histogram(snr[counted], bins=edges)
        found_histogram, _ = np.histogram(snr[counted & found], bins=edges)
    else:
        injected_histogram = found_histogram = np.zeros(len(SNR_EDGES) - 1, dtype=int)
    return Score(n_injected=injected_histogram, n_found=found_histogram, is_false=truth_row < 0, truth_row=truth_row)
