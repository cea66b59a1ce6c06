"""Satellite trails: straight lines across a difference, down to far below the noise of a pixel.

Sums along all lines find them, a comparison with both sides along the whole line confirms them, a profile fitted across
says how wide they are. One bright thing on a line, or a short row of them, is no trail.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from alertprod._bands import map_bands
from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray
from alertprod.detection import _streak_loops as _loops
from alertprod.detection.background import estimate_background
from alertprod.detection.line_sums import Line, LineCandidates, compute_distances, find_lines, line_through
from alertprod.detection.streak_profile import N_SEGMENTS, Profile, Pulls, find_run, fit_profile
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import FWHM_PER_SIGMA

_PIXEL_CLIP = 5.0
"""Pulls of pixels are cut at this: a trail is made of many pixels, a star or a hot pixel of few."""

_BIN_CLIP = 3.0
"""The same of binned pulls: a source then counts on a line as three bins of noise do."""

_LINE_WIDTHS = (2, 4, 10)
"""Widths of the lines that are summed, bins: trails of 4 to 60 pixels keep 80 % of their significance."""

_BACKGROUND_BINS = 64
"""Side of the cells whose level is taken off before lines are summed, bins: wider than any trail."""

_ROWS_OF_BINS = 64
"""Rows of bins that a thread fills at once."""

_MIN_SIDE = 16
"""Bins that the image's shorter side has at least; on less there is no telling a trail from a source."""

_CONFIRM_SHARE = 0.6
"""Of the threshold, what a line must have against its sides in bins, where it is not placed exactly yet: comparing with
two sides costs a fifth of the significance, a bin's offset another."""

_FINAL_SHARES = (0.8, 1.3)
"""The same once it is fitted: of a trail all the way across the image, and of one that ends on it. There are many more
parts of lines than lines."""

_BEST_HALF_WIDTH = 1.4
"""Of a strip about a Gaussian ridge for the highest signal-to-noise, in sigmas."""

_MAX_TRIALS = 60
"""Lines that are looked at, strongest first."""

_GHOST_SHARE = 0.8
"""Of the threshold, what a line must keep once a trail that crosses it is gone."""

_COVERED = 0.6
"""Share of its way across the image over which a trail may be of any length above a quarter of `min_length`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreakConfig:
    """What is a trail, and how much of it is masked."""

    bin_size: int = 4
    """Pixels are binned by this before lines are summed, the reference's: about the width of a trail."""

    threshold: float = 6.0
    """Significance of the faintest line: among the 10 million lines across 4096 x 4096 pixels noise alone reaches 5.5."""

    polarity: Literal["both", "positive", "negative"] = "both"
    """Sign of the trails: positive ones are in the science image, negative ones in the template."""

    min_length: float = 0.4
    """Shortest trail, as a share of the image's shorter side; one that is seen over 60 % of its way across the image may
    be shorter, down to a quarter of this. Spikes and bleeding columns of stars are shorter."""

    n_sigma_mask: float = 2.0
    """Half-width that is masked in sigmas of the fitted profile, the reference's; bright trails are masked further."""

    max_streak_width: float = 100.0
    """Widest trail and widest mask in pixels, the reference's: anything wider is no trail."""

    max_streaks: int = 10
    """Most trails that are looked for; with more the image is spoiled anyway."""

    excluded_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "CR", "EDGE", "SPIKE", "SAT_TEMPLATE")
    """Pixels of these planes have no weight."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            bin_size=(1, 1024),
            threshold=(1.0, 1e6),
            min_length=(0.01, 1.0),
            n_sigma_mask=(0.1, 100.0),
            max_streak_width=(1.0, 1e6),
            max_streaks=(1, 1000),
        )
        plane_bits(*self.excluded_planes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streak:
    """One trail.

    Parameters
    ----------
    x0, y0, x1, y1
        Where its middle line enters and leaves the image, pixels.
    begin, end
        Share of the way from (x0, y0) to (x1, y1) where the trail is first and last seen.
    sigma
        Of the Gaussian fitted across it, pixels.
    amplitude
        Surface brightness on the middle line in units of a pixel's noise, signed.
    half_width
        Half-width of what is masked, pixels.
    significance
        Of the trail against both its sides, from parts of at most three standard deviations each.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    begin: float
    end: float
    sigma: float
    amplitude: float
    half_width: float
    significance: float

    @property
    def angle_deg(self) -> float:
        """Direction from x towards y, degrees in (-90, 90]."""
        angle = float(np.degrees(np.arctan2(self.y1 - self.y0, self.x1 - self.x0)))
        return angle - 180.0 if angle > 90.0 else angle + 180.0 if angle <= -90.0 else angle

    @property
    def length(self) -> float:
        """Pixels from where it is first seen to where it is last seen."""
        return float((self.end - self.begin) * np.hypot(self.x1 - self.x0, self.y1 - self.y0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaks:
    """What was found: `mask`, True on the trails over their whole way across the image, and the trails."""

    mask: BoolArray
    lines: tuple[Streak, ...]


def find_streaks(masked_image: MaskedImage, *, config: StreakConfig | None = None, set_planes: bool = False) -> Streaks:
    """Find trails.

    Parameters
    ----------
    masked_image
        A difference, or any image with its sources subtracted, and its variance.
    config
        `StreakConfig`.
    set_planes
        Set STREAK on the pixels of the trails, in place; bits that are there stay.

    Returns
    -------
    Streaks
        Strongest first.

    Notes
    -----
    Sums along all lines are those of the fast Radon transform (Brady 1998; for trails Nir, Zackay & Ofek 2018), of
    pulls that are cut twice, in strips of the image's whole and half height. Of a trail with surface brightness b, in
    units of a pixel's noise, width w (FWHM) and length L, the significance is about ``0.8 b sqrt(w L)``. Half of those
    of 8 are found and nine in ten of 10.5: with w = 4.5 pixels and L = 4400 that is b = 0.07 and 0.09. The noise is
    taken to be what the sums show, where that is more than the variance plane says. A line counts when it stands out
    against the strips on both of its sides, over all of its length or a part that is long enough. What was found loses
    its weight before the next line is judged.
    """
    config = config or StreakConfig()
    bad_bits = plane_bits(*config.excluded_planes)
    painted = np.zeros(masked_image.shape, dtype=np.bool_)
    profiles: list[Profile] = []
    if min(masked_image.shape) >= _MIN_SIDE * config.bin_size:
        sums, numbers = _bin_pulls(masked_image, bad_bits, config.bin_size)
        _flatten(sums, numbers)
        profiles = _search(masked_image, bad_bits, sums, numbers, config)
    profiles.sort(key=lambda profile: -profile.run.significance)
    for profile in profiles:
        _paint(painted, profile.line, profile.half_width)
    if set_planes:
        masked_image.mask[painted] |= plane_bits("STREAK")
    return Streaks(mask=painted, lines=tuple(_describe(profile) for profile in profiles))


def _describe(profile: Profile) -> Streak:
    x0, y0, x1, y1 = profile.line.ends
    return Streak(
        x0=x0,
        y0=y0,
        x1=x1,
        y1=y1,
        begin=profile.run.first / N_SEGMENTS,
        end=profile.run.last / N_SEGMENTS,
        sigma=profile.sigma,
        amplitude=profile.amplitude,
        half_width=profile.half_width,
        significance=profile.run.significance,
    )


def _paint(painted: BoolArray, line: Line, half_width: float) -> None:
    _loops.paint_line(line.x0, line.y0, line.direction_x, line.direction_y, half_width, painted)


def _bin_pulls(masked_image: MaskedImage, bad_bits: int, bin_size: int) -> tuple[FloatArray, FloatArray]:
    """Return sums of the pulls that are cut, and numbers of pixels, in bins."""

    def add(first: int, last: int) -> tuple[FloatArray, FloatArray]:
        image, variance, mask = (
            plane[first:last] for plane in (masked_image.image, masked_image.variance, masked_image.mask)
        )
        return _loops.bin_pulls(image, variance, mask, bad_bits, bin_size, _PIXEL_CLIP)

    sums, numbers = zip(*map_bands(add, masked_image.shape[0], height=bin_size * _ROWS_OF_BINS), strict=True)
    return np.concatenate(sums), np.concatenate(numbers)


def _flatten(sums: FloatArray, numbers: FloatArray) -> None:
    """Take the background off binned pulls and cut them, in place."""
    known = numbers > 0
    if not known.any():
        return
    means = np.zeros_like(sums)
    np.divide(sums, numbers, out=means, where=known)
    estimate_background(means, known, bin_size=_BACKGROUND_BINS).subtract_from(means)
    limit = _BIN_CLIP / np.sqrt(np.maximum(numbers, 1.0))
    sums[...] = numbers * np.clip(means, -limit, limit)


def _search(
    masked_image: MaskedImage, bad_bits: int, sums: FloatArray, numbers: FloatArray, config: StreakConfig
) -> list[Profile]:
    """Return the trails among the strongest lines; their bins lose their weight in `sums` and `numbers`."""
    min_bins = 0.25 * config.min_length * min(sums.shape)
    candidates = find_lines(sums, numbers, widths=_LINE_WIDTHS, threshold=config.threshold, min_length=min_bins)
    if config.polarity != "both":
        candidates = candidates.select((candidates.significance > 0) == (config.polarity == "positive"))
    profiles: list[Profile] = []
    for _ in range(_MAX_TRIALS):
        if not len(candidates) or len(profiles) == config.max_streaks:
            break
        best = int(np.argmax(np.abs(candidates.significance) / candidates.noise))
        profile = _confirm(masked_image, bad_bits, sums, numbers, candidates.select(np.array([best])), config)
        reach = 2.0 * candidates.widths[best] + 4.0
        kept = compute_distances(candidates.ends[best], candidates.ends) > reach
        # A saturated trail has no core: narrow lines see one wing each, a wide one sees both.
        kept |= candidates.widths > candidates.widths[best]
        if profile is not None:
            gone = np.zeros(sums.shape, dtype=np.bool_)
            in_bins = line_through([(end + 0.5) / config.bin_size - 0.5 for end in profile.line.ends], sums.shape)
            if in_bins is not None:
                _paint(gone, in_bins, 1.5 * profile.half_width / config.bin_size + 2.0)
            sums[gone] = numbers[gone] = 0.0
            significance = _loops.compute_line_significance(sums, numbers, candidates.ends, candidates.widths)
            kept &= np.abs(significance) > _GHOST_SHARE * config.threshold * candidates.noise
            candidates = replace(candidates, significance=significance)
            if not profile.is_defect:
                profiles.append(profile)
        candidates = candidates.select(kept)
    return profiles


def _confirm(
    masked_image: MaskedImage,
    bad_bits: int,
    sums: FloatArray,
    numbers: FloatArray,
    candidate: LineCandidates,
    config: StreakConfig,
) -> Profile | None:
    """Return the trail, or the defect, on a line of bins; None where there is none."""
    line = line_through(candidate.ends[0].tolist(), (sums.shape[0], sums.shape[1]))
    if line is None:
        return None
    sign, noise, width = float(np.sign(candidate.significance[0])), float(candidate.noise[0]), int(candidate.widths[0])
    binned = Pulls(
        image=sums / np.sqrt(np.maximum(numbers, 1.0)),
        variance=np.ones_like(sums),
        mask=(numbers < 0.5 * config.bin_size**2).astype(np.int32),
        bad_bits=1,
        noise=noise,
    )
    run = find_run(
        binned,
        line,
        on=0.5 * width + 0.5,
        sign=sign,
        clip=_BIN_CLIP,
        min_length=_shortest(line, sums.shape, config),
    )
    if run is None or run.significance < _CONFIRM_SHARE * config.threshold:
        return None
    pulls = Pulls(
        image=masked_image.image,
        variance=masked_image.variance,
        mask=masked_image.mask,
        bad_bits=bad_bits,
        noise=noise,
    )
    fine = line_through([config.bin_size * (value + 0.5) - 0.5 for value in line.ends], masked_image.shape)
    if fine is None:
        return None
    profile = fit_profile(
        pulls,
        fine,
        run,
        sigma=width * config.bin_size / FWHM_PER_SIGMA,
        reach=(0.5 * width + 2.0) * config.bin_size,
        sign=sign,
        n_sigma_mask=config.n_sigma_mask,
        max_width=config.max_streak_width,
    )
    if profile is None:
        return None
    clip = max(_PIXEL_CLIP, 3.0 * abs(profile.amplitude))
    run = find_run(
        pulls,
        profile.line,
        on=max(_BEST_HALF_WIDTH * profile.sigma, profile.traced),
        sign=sign,
        clip=clip,
        min_length=_shortest(profile.line, masked_image.shape, config),
    )
    if run is None or run.significance < _FINAL_SHARES[not run.is_whole] * config.threshold:
        return None
    return replace(profile, run=run)


def _shortest(line: Line, shape: tuple[int, ...], config: StreakConfig) -> float:
    """Return the share of a line that a trail on it must fill."""
    shortest = config.min_length * min(shape)
    return max(0.25 * shortest, min(shortest, _COVERED * line.length)) / line.length
