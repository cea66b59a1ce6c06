"""Whether a line is a trail, and the trail's profile: what lies on it against what lies on its sides, part by part."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d, uniform_filter1d
from scipy.optimize import least_squares

from alertprod._typing import FloatArray, IntArray
from alertprod.detection import _streak_loops as _loops
from alertprod.detection.line_sums import Line
from alertprod.psf.model import FWHM_PER_SIGMA

N_SEGMENTS = 64
"""Parts of a line that are looked at one by one."""

_SEGMENT_CAP = 3.0
"""Standard deviations that one part may contribute: a star's spike or a galaxy fills a few parts, a trail all."""

_RUN_COST = 0.35
"""Standard deviations that a part must have, on average, to belong to the trail."""

_MIN_SIGN_TEST = 3.0
"""Standard deviations by which the parts that are brighter than the sides outnumber the others: some stars in a row make
a few parts bright, a trail makes all of them a little."""

_MAX_FADING = 2.0
"""Upper quartile over median of the brightness of the parts, from which something that ends on the image is a spike of a
star, brightest in its middle; a trail is as bright all along."""

_WHOLE = 0.9
"""Share of its way across the image over which a trail is seen that does not end on it."""

_SIDE_SHARE = 0.5
"""Of the significance against both sides, what either side alone must give: an amplifier's edge stands out against one
side only."""

_TRACE_LEVEL = 0.1
"""Surface brightness, in units of a pixel's noise, to which a bright trail's wings are masked: over a PSF's fifty pixels
that is 0.7 standard deviations of a flux."""

_MIN_SIGMA = 0.7
"""Pixels; the fit's own bins are a pixel wide, so that a line narrower than this has less than 1.5 pixels FWHM: a defect
of the detector's rows or columns, also once it was warped. No light from outside is so sharp."""

_MAX_EVALUATIONS = 30
"""Of the fit; a trail's takes about ten."""

_CLIP = 5.0
"""Pulls of pixels beyond this are cut while it is not known how bright the trail is."""

_BRIGHT = 2.0
"""Trails of this surface brightness would feel that cut."""

_BRIGHT_CLIP = 50.0
"""Theirs is this many times their brightness, as far as the fit before knew it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulls:
    """An image to look at lines on.

    Parameters
    ----------
    image, variance, mask
        Shape ``(ny, nx)``; pixels with one of `bad_bits`, a value that is not finite or no variance do not count.
    noise
        What pulls summed along a line scatter by more than independent ones.
    """

    image: FloatArray
    variance: FloatArray
    mask: IntArray
    bad_bits: int
    noise: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.image.shape[0], self.image.shape[1]

    def sum_profile(
        self, line: Line, *, half_width: float, clip: float, step: float = 1.0
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return sums and numbers of pixels, ``(N_SEGMENTS, n)``, along and across a line, and the n offsets."""
        sums, numbers = _loops.sum_profile(
            self.image, self.variance, self.mask, self.bad_bits, line.x0, line.y0, line.direction_x, line.direction_y,
            line.length, N_SEGMENTS, half_width, step, clip,
        )  # fmt: skip
        return sums, numbers, (np.arange(sums.shape[1]) + 0.5) * step - half_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Parts ``[first, last)`` of a line on which something stands out, and by how much."""

    first: int
    last: int
    significance: float

    @property
    def is_whole(self) -> bool:
        """Whether it goes all the way across the image."""
        return self.last - self.first >= _WHOLE * N_SEGMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A trail: the line in its middle, the part of it that is seen, and its shape across; see `Streak`.

    `traced` is how far from the line its light is seen, 0 for faint ones.
    """

    line: Line
    run: Run
    sigma: float
    amplitude: float
    traced: float
    half_width: float

    @property
    def is_defect(self) -> bool:
        """Whether it is sharper than light from outside can be."""
        return self.sigma < _MIN_SIGMA


def find_run(pulls: Pulls, line: Line, *, on: float, sign: float, clip: float, min_length: float) -> Run | None:
    """Return the parts of a line that are brighter than both of its sides; None where they are no trail.

    Parameters
    ----------
    pulls
        The image.
    line
        Where to look.
    on
        Half-width of what lies on the line, pixels; the sides are from 1.5 to 4 times that.
    sign
        1 for brighter, -1 for fainter.
    clip
        Pulls beyond this are cut.
    min_length
        Length that the parts must have, as a share of the line.
    """
    sums, numbers, offset = pulls.sum_profile(line, half_width=4.0 * on + 2.0, clip=clip, step=0.5)
    distance = np.abs(offset)
    beside = distance > 1.5 * on + 0.5
    groups = [distance <= on, beside & (offset < 0), beside & (offset > 0)]
    total = np.array([sums[:, group].sum(axis=1) for group in groups])
    number = np.array([numbers[:, group].sum(axis=1) for group in groups])
    known = (number > 0.3 * number.max(axis=1, keepdims=True)).all(axis=0) & (number > 0).all(axis=0)
    if known.sum() < N_SEGMENTS // 4:
        return None
    safe = np.maximum(number, 1.0)

    def pull(side: FloatArray, side_number: FloatArray) -> FloatArray:
        values = (total[0] / safe[0] - side / side_number) / np.sqrt(1.0 / safe[0] + 1.0 / side_number)
        return np.where(known, np.clip(sign * values / pulls.noise, -_SEGMENT_CAP, _SEGMENT_CAP), 0.0)

    both = pull(total[1] + total[2], safe[1] + safe[2])
    first, last = _best_run(np.where(known, both - _RUN_COST, 0.0))
    # Between nothing and a trail of this strength the border is half-way.
    cost = max(_RUN_COST, 0.5 * float(both[first:last].mean()))
    first, last = _best_run(np.where(known, both - cost, 0.0))
    inside = slice(first, last)
    n = int(known[inside].sum())
    if n == 0 or (last - first) / N_SEGMENTS < min_length or n < 0.5 * (last - first):
        return None
    significance = float(both[inside].sum() / np.sqrt(n))
    sides = [float(pull(total[k], safe[k])[inside].sum() / np.sqrt(n)) for k in (1, 2)]
    outnumber = (2 * int((both[inside] > 0).sum()) - n) / np.sqrt(n)
    if min(sides) < _SIDE_SHARE * significance or outnumber < _MIN_SIGN_TEST:
        return None
    run = Run(first=first, last=last, significance=significance)
    if not run.is_whole:
        brightness = sign * (total[0] / safe[0] - (total[1] + total[2]) / (safe[1] + safe[2]))[inside][known[inside]]
        middle, upper = np.percentile(brightness, [50.0, 75.0])
        if upper > _MAX_FADING * middle:
            return None
    return run


def _best_run(values: FloatArray) -> tuple[int, int]:
    """Return the half-open range of entries with the largest sum."""
    edges = np.concatenate([[0.0], np.cumsum(values)])
    gain = edges[None, :] - edges[:, None]
    gain[np.tril_indices(len(edges))] = -np.inf
    first, last = np.unravel_index(int(np.argmax(gain)), gain.shape)
    return int(first), int(last)


def fit_profile(
    pulls: Pulls,
    line: Line,
    run: Run,
    *,
    sigma: float,
    reach: float,
    sign: float,
    n_sigma_mask: float,
    max_width: float,
) -> Profile | None:
    """Fit a straight trail of Gaussian profile near a line; None where there is none, or it is too wide for a trail.

    Parameters
    ----------
    pulls
        The image.
    line, run
        Where the trail is, roughly, and which parts of it are seen.
    sigma
        Its width, roughly, pixels.
    reach
        How far off the line may be at either end, pixels.
    sign
        1 for a bright trail, -1 for a dark one.
    n_sigma_mask, max_width
        Half-width of the mask in sigmas of the profile, and the widest trail and mask, pixels.
    """
    clip = _CLIP
    amplitude = 0.0
    # Again with the line where it is, and with the cut where the trail does not feel it.
    for _ in range(3):
        half = reach + 4.0 * sigma + 4.0
        sums, numbers, offset = pulls.sum_profile(line, half_width=half, clip=clip)
        inside = slice(run.first, run.last)
        start = _start(sums[inside], numbers[inside], offset, run, sigma, reach, sign)
        if start is None:
            return None
        at_begin, at_end, sigma, amplitude = _fit_gaussian(sums[inside], numbers[inside], offset, run, start, half)
        if not (sigma < max_width / FWHM_PER_SIGMA and sign * amplitude > 0):
            return None
        moved = line.shift(at_begin, at_end, pulls.shape)
        if moved is None:
            return None
        line, reach = moved, min(reach, 2.0 + sigma)
        clip = _CLIP if abs(amplitude) < _BRIGHT else _BRIGHT_CLIP * abs(amplitude)
    traced = _trace(pulls, line, run, sign, max_width)
    half_width = max(n_sigma_mask * sigma, traced, 1.0)
    return Profile(
        line=line, run=run, sigma=sigma, amplitude=amplitude, traced=traced, half_width=min(half_width, 0.5 * max_width)
    )


def _middles(run: Run) -> FloatArray:
    """Return the middles of a run's parts, shares of the line."""
    return (np.arange(run.first, run.last) + 0.5) / N_SEGMENTS


def _start(
    sums: FloatArray, numbers: FloatArray, offset: FloatArray, run: Run, sigma: float, reach: float, sign: float
) -> tuple[float, float, float, float] | None:
    """Return the best offsets at begin and end, width and amplitude on a grid; None without pixels.

    Rows are shifted by whole steps, added, and correlated with Gaussians.
    """
    share = _middles(run)
    step = offset[1] - offset[0]
    best: tuple[float, tuple[float, float, float, float]] | None = None
    index = np.arange(sums.shape[1])
    # No move may take more than the reach at either end, and the straight line is always among them.
    n_tilts = int(2.0 * reach / max(1.0, 0.7 * sigma))
    tilts = np.arange(-n_tilts, n_tilts + 1) * max(1.0, 0.7 * sigma)
    for tilt in tilts:
        moves = np.rint(tilt * (share - 0.5) / step).astype(int)
        columns = np.clip(index[None, :] + moves[:, None], 0, len(index) - 1)
        total = np.take_along_axis(sums, columns, axis=1).sum(axis=0)
        number = np.take_along_axis(numbers, columns, axis=1).sum(axis=0)
        if not number.any():
            continue
        total = total - number * np.median(total[number > 0] / number[number > 0])
        for width in np.maximum(_MIN_SIGMA, sigma * np.array([0.6, 1.0, 1.6])):
            u = np.arange(-int(np.ceil(3.0 * width)), int(np.ceil(3.0 * width)) + 1)
            kernel = np.exp(-0.5 * (u / width) ** 2)
            power = correlate1d(number, kernel**2, mode="constant")
            signal = sign * correlate1d(total, kernel, mode="constant")
            significance = np.where(power > 0, signal / np.sqrt(np.maximum(power, 1e-9)), 0.0)
            significance[np.abs(offset) + 0.5 * abs(tilt) > reach] = -np.inf
            k = int(np.argmax(significance))
            if best is None or significance[k] > best[0]:
                middle = float(offset[k])
                amplitude = float(sign * signal[k] / max(power[k], 1e-9))
                best = (float(significance[k]), (middle - 0.5 * tilt, middle + 0.5 * tilt, width, amplitude))
    return None if best is None else best[1]


def _fit_gaussian(
    sums: FloatArray,
    numbers: FloatArray,
    offset: FloatArray,
    run: Run,
    start: tuple[float, float, float, float],
    half: float,
) -> tuple[float, float, float, float]:
    """Return offsets at begin and end, sigma and amplitude of the Gaussian ridge that fits the means best."""
    share = _middles(run)[:, None]
    known = numbers > 0
    means = np.where(known, sums / np.maximum(numbers, 1.0), 0.0)
    weight = np.sqrt(numbers)

    def model(parameters: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        at_begin, at_end, log_sigma, _, _ = parameters
        across = (offset[None, :] - at_begin - (at_end - at_begin) * share) * np.exp(-log_sigma)
        return across, np.exp(-0.5 * across**2), np.exp(-log_sigma) * np.ones_like(across)

    def residuals(parameters: FloatArray) -> FloatArray:
        _, bell, _ = model(parameters)
        return ((means - parameters[4] - parameters[3] * bell) * weight)[known]

    def slopes(parameters: FloatArray) -> FloatArray:
        across, bell, inverse_sigma = model(parameters)
        moved = parameters[3] * bell * across * inverse_sigma
        columns = (moved * (1.0 - share), moved * share, parameters[3] * bell * across**2, bell, np.ones_like(bell))
        return np.stack([-(column * weight)[known] for column in columns], axis=1)

    at_begin, at_end, sigma, amplitude = start
    unit = max(abs(amplitude), 1e-3)
    fitted = least_squares(
        residuals,
        np.array([at_begin, at_end, np.log(sigma), amplitude, 0.0]),
        jac=slopes,
        bounds=(
            [-half, -half, np.log(0.3), -np.inf, -np.inf],
            [half, half, np.log(2.0 * half), np.inf, np.inf],
        ),
        # A star on the trail is far off any profile; a linear loss keeps it from pulling.
        loss="soft_l1",
        f_scale=3.0,
        x_scale=[1.0, 1.0, 0.2, unit, unit],
        ftol=1e-4,
        xtol=1e-4,
        max_nfev=_MAX_EVALUATIONS,
    ).x
    return float(fitted[0]), float(fitted[1]), float(np.exp(fitted[2])), float(fitted[3])


def _trace(pulls: Pulls, line: Line, run: Run, sign: float, max_width: float) -> float:
    """Return how far from the line the trail is brighter than `_TRACE_LEVEL`; medians along it see no stars."""
    half = 0.75 * max_width
    sums, numbers, offset = pulls.sum_profile(line, half_width=half, clip=np.inf)
    sums, numbers = sums[run.first : run.last], numbers[run.first : run.last]
    means = np.where(numbers > 0, sign * sums / np.maximum(numbers, 1.0), np.nan)
    seen = np.isfinite(means).any(axis=0)
    profile = np.zeros(len(offset))
    profile[seen] = np.nanmedian(means[:, seen], axis=0)
    outside = seen & (np.abs(offset) > 0.5 * max_width)
    if not outside.any():
        return 0.0
    # A saturated core is not seen, and bright.
    smooth = uniform_filter1d(profile - np.median(profile[outside]), 3, mode="nearest")
    scatter = 1.4826 * float(np.median(np.abs(smooth[outside])))
    above = (smooth > max(_TRACE_LEVEL, 4.0 * scatter)) | ~seen
    sides = (above[offset > 0], above[offset < 0][::-1])
    return float(max(len(side) if side.all() else int(np.argmin(side)) for side in sides))
