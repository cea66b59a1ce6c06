"""Real or bogus: scorers that others plug in by name, and what is asked of them.

A scorer is announced as an entry point of the group `alertprod.reliability_scorers`: a callable that is given the
configured options and returns a `ReliabilityScorer`. It is made once in each worker, and asked once for each exposure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.errors import ConfigError
from alertprod.geometry.box import Box
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.plugins import load_plugin

SCORERS = "alertprod.reliability_scorers"
"""The group of entry points."""

MAX_VERSION_LENGTH = 128
"""A version is in every packet."""


@dataclass(frozen=True, slots=True)
class Stamps:
    """Small pictures of all sources on one image, shape ``(n, side, side)`` each, axes (source, y, x).

    Parameters
    ----------
    image
        nJy; NaN beyond the image's edge.
    variance
        nJy²; NaN beyond the edge.
    mask
        The image's plane bits (`alertprod.images.mask`); NO_DATA beyond the edge.
    """

    image: FloatArray
    variance: FloatArray
    mask: "np.ndarray[tuple[int, int, int], np.dtype[np.int32]]"


@dataclass(frozen=True, slots=True)
class SourceStamps:
    """What a scorer sees of the sources: one grid, the source in the middle pixel (of an even side: right of it)."""

    difference: Stamps
    science: Stamps
    template: Stamps


@dataclass(frozen=True, slots=True)
class Reliability:
    """A scorer's answer.

    Parameters
    ----------
    scores
        0 bogus to 1 real, shape ``(n,)``, in the order of the sources; NaN for a source it cannot judge.
    version
        What gave them: name and version of the model.
    """

    scores: FloatArray
    version: str


class ReliabilityScorer(Protocol):
    """Judges all sources of an exposure at once."""

    stamp_size: int
    """Side of the stamps it wants, pixels."""

    def score(self, sources: Catalog, stamps: SourceStamps) -> Reliability:
        """Return a score for each row of `sources`, which are its own copy, `DIA_SOURCE_COLUMNS`."""
        ...


class ScorerFailed(Exception):
    """A scorer raised, or answered with what is no score; the text says which. Its sources are not scored."""


def load_scorer(name: str, options: Mapping[str, Any]) -> ReliabilityScorer:
    """Make a scorer.

    Raises
    ------
    ConfigError
        Raised if no package announces it, or it cannot be made with these options.
    """
    factory = load_plugin(SCORERS, name)
    try:
        scorer: ReliabilityScorer = factory(**options)
        size = int(scorer.stamp_size)
    except Exception as error:  # it is somebody else's code: whatever it raises, it cannot be used
        raise ConfigError(f"entry points {SCORERS}", name, f"{type(error).__name__}: {error}") from error
    if size < 1:
        raise ConfigError(f"entry points {SCORERS}", name, f"its stamp_size is {size}")
    return scorer


def score_sources(
    scorer: ReliabilityScorer, sources: Catalog, *, difference: Exposure, science: Exposure, template: Exposure
) -> Reliability:
    """Have all sources of an exposure scored.

    Parameters
    ----------
    sources
        `DIA_SOURCE_COLUMNS`; left as they are.
    difference, science, template
        On one pixel grid.

    Raises
    ------
    ScorerFailed
        Raised if the scorer raises, or if its answer is not one score from 0 to 1, or NaN, for each source, and a
        version.
    """
    side = int(scorer.stamp_size)
    x, y = sources["x"].astype(float), sources["y"].astype(float)
    stamps = SourceStamps(*(cut_stamps(image, x=x, y=y, side=side) for image in (difference, science, template)))
    try:
        answer = scorer.score(sources.select(np.arange(sources.n_rows)), stamps)
        scores = np.asarray(answer.scores, dtype=float)
        version = answer.version
    except Exception as error:  # somebody else's code
        raise ScorerFailed(f"{type(error).__name__}: {error}") from error
    if scores.shape != (sources.n_rows,):
        raise ScorerFailed(f"scores of shape {scores.shape} for {sources.n_rows} sources")
    if not isinstance(version, str) or not 0 < len(version) <= MAX_VERSION_LENGTH:
        raise ScorerFailed(f"its version is {version!r:.100}: 1 to {MAX_VERSION_LENGTH} characters are needed")
    wrong = ~(np.isnan(scores) | ((scores >= 0.0) & (scores <= 1.0)))
    if wrong.any():
        raise ScorerFailed(f"{int(wrong.sum())} scores are not from 0 to 1, for one {scores[wrong][0]}")
    return Reliability(scores, version)


def cut_stamps(exposure: Exposure, *, x: FloatArray, y: FloatArray, side: int) -> Stamps:
    """Cut squares about positions, shape ``(n,)``; a position that is not finite has a stamp of nothing."""
    shape = (len(x), side, side)
    image, variance = np.full(shape, np.nan, dtype=np.float32), np.full(shape, np.nan, dtype=np.float32)
    mask = np.full(shape, plane_bits("NO_DATA"), dtype=np.int32)
    scale = np.float32(exposure.photo_calib.njy_per_count)
    placed: BoolArray = np.isfinite(x) & np.isfinite(y)
    for row in np.flatnonzero(placed).tolist():
        box = Box.centered(x=float(x[row]), y=float(y[row]), size=side)
        inside = box.intersection(exposure.box)
        if not inside.area:
            continue
        here = (
            row,
            slice(inside.y_min - box.y_min, inside.y_max - box.y_min),
            slice(inside.x_min - box.x_min, inside.x_max - box.x_min),
        )
        pixels = exposure.masked_image.cutout(inside)
        image[here], variance[here], mask[here] = pixels.image * scale, pixels.variance * scale**2, pixels.mask
    return Stamps(image, variance, mask)
