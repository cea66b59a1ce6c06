"""How well kernels subtract their stars: statistics of each stamp's residuals in units of the noise.

Twice for each star: with the kernel that it asks for by itself, and with the match's kernel at its place. The first tells
whether the basis can describe the star, the second whether the variation over the image can.
"""

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import kolmogorov, log_ndtr

from alertprod._typing import FloatArray
from alertprod.images.masked_image import MaskedImage
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.cell_set import KernelCellSet
from alertprod.subtraction.config import MatchConfig
from alertprod.subtraction.kernel_solution import local_background_terms
from alertprod.subtraction.stamp_equations import local_background

_BATCH = 32
"""Stars whose stamps are held at once."""


@dataclass(frozen=True, slots=True)
class ResidualStatistics:
    """Residuals of one kernel on its stamp, and the kernel's own figures; each of shape ``(n,)``, NaN where unknown.

    Attributes
    ----------
    mean, median, iqr, stdev
        Of residual over noise: 0, 0, 1.349, 1 for noise alone; `iqr` is the range between the quartiles.
    chi2
        Mean of its square.
    ks_distance, ks_probability
        Kolmogorov and Smirnov's greatest distance from N(0, 1), and how often noise alone is as far off.
    ad_statistic, ad_probability
        Anderson and Darling's A² against N(0, 1), and likewise.
    kernel_sum, kernel_x, kernel_y, kernel_sigma
        Sum of the kernel; its centroid against its middle pixel, and its rms width, pixels. NaN for a kernel whose
        negative lobes leave no width.
    background
        At the star.
    """

    mean: FloatArray
    median: FloatArray
    iqr: FloatArray
    stdev: FloatArray
    chi2: FloatArray
    ks_distance: FloatArray
    ks_probability: FloatArray
    ad_statistic: FloatArray
    ad_probability: FloatArray
    kernel_sum: FloatArray
    kernel_x: FloatArray
    kernel_y: FloatArray
    kernel_sigma: FloatArray
    background: FloatArray

    @classmethod
    def blank(cls, n: int) -> "ResidualStatistics":
        """Return statistics of which nothing is known."""
        return cls(*(np.full(n, np.nan) for _ in fields(cls)))


@dataclass(frozen=True, slots=True)
class CandidateQuality:
    """Residual statistics with stars' own kernels (`local`) and with the match's kernel (`spatial`).

    `n_pixels`, shape ``(n,)``, is how many pixels they are from; 0 for a star without a clean stamp.
    """

    local: ResidualStatistics
    spatial: ResidualStatistics
    n_pixels: FloatArray


def measure_candidates(
    convolved: MaskedImage,
    reference: MaskedImage,
    cell_set: KernelCellSet,
    *,
    config: MatchConfig,
    sign: int = 1,
) -> CandidateQuality:
    """Measure the residuals of kernel stars, or of others that were solved for like them.

    Parameters
    ----------
    convolved, reference
        The image that was convolved in the match, and the other.
    cell_set
        The stars.
    sign
        -1 where `convolved` is the science image: residuals have the difference's sign.

    Notes
    -----
    The noise is that of the two images' variance planes; bad pixels are left out. A background is in the units of
    `reference`, as it was fitted.
    """
    n = len(cell_set)
    quality = CandidateQuality(ResidualStatistics.blank(n), ResidualStatistics.blank(n), np.zeros(n))
    candidates = CandidateList(
        convolved,
        reference,
        x=cell_set.x,
        y=cell_set.y,
        flux=None,
        geometry=StampGeometry.for_kernel(cell_set.basis.size),
        config=config,
    )
    clean = candidates.find_clean()
    kernels = [cell_set.compute_spatial_kernel(int(i)) for i in clean]
    for start in range(0, len(clean), _BATCH):
        part = clean[start : start + _BATCH]
        source, source_variance, target, target_variance, good = candidates.extract(part)
        side = target.shape[1]
        local = np.array([cell_set.compute_own_kernel(int(i)) for i in part])
        spatial = np.array(kernels[start : start + _BATCH])
        shapes = local_background(side).reshape(-1, side, side)
        own_sky = cell_set.own_background[part] @ shapes[: cell_set.own_background.shape[1]].reshape(-1, side * side)
        terms = local_background_terms(
            cell_set.background.order, cell_set.background.box, x=cell_set.x[part], y=cell_set.y[part], side=side
        )
        spatial_sky = (terms @ cell_set.background.coefficients) @ shapes.reshape(-1, side * side)
        quality.n_pixels[part] = good.sum(axis=(1, 2))
        for images, sky, statistics in ((local, own_sky, quality.local), (spatial, spatial_sky, quality.spatial)):
            model = _convolve_each(source, images, side) + sky.reshape(-1, side, side)
            power = (images**2).sum(axis=(1, 2))[:, None, None]
            pulls = sign * (target - model) / np.sqrt(target_variance + power * source_variance)
            for row, i in enumerate(part):
                _fill(statistics, int(i), pulls[row][good[row]], images[row], float(sky[row][sky.shape[1] // 2]))
    return quality


def _convolve_each(stamps: FloatArray, kernels: FloatArray, side: int) -> FloatArray:
    """Convolve each stamp with its own kernel: ``(n, side, side)``, the middle of each."""
    half, size = kernels.shape[1] // 2, kernels.shape[1]
    rim = (stamps.shape[1] - side) // 2 - half
    result = np.zeros((len(stamps), side, side))
    for j in range(size):
        for i in range(size):
            rows, columns = slice(rim + j, rim + j + side), slice(rim + i, rim + i + side)
            result += kernels[:, size - 1 - j, size - 1 - i, None, None] * stamps[:, rows, columns]
    return result


def _fill(statistics: ResidualStatistics, i: int, pulls: FloatArray, kernel: FloatArray, background: float) -> None:
    if not (len(pulls) and np.isfinite(pulls).all()):
        return
    quartiles = np.percentile(pulls, [25.0, 50.0, 75.0])
    statistics.mean[i], statistics.stdev[i] = pulls.mean(), pulls.std()
    statistics.median[i], statistics.iqr[i] = quartiles[1], quartiles[2] - quartiles[0]
    statistics.chi2[i] = (pulls**2).mean()
    statistics.ks_distance[i], statistics.ks_probability[i] = compare_by_distance(pulls)
    statistics.ad_statistic[i], statistics.ad_probability[i] = compare_by_tails(pulls)
    statistics.kernel_sum[i] = kernel.sum()
    statistics.kernel_x[i], statistics.kernel_y[i], statistics.kernel_sigma[i] = measure_kernel(kernel)
    statistics.background[i] = background


def compare_by_distance(pulls: FloatArray) -> tuple[float, float]:
    """Return the greatest distance of a sample's distribution from N(0, 1), and its probability.

    Notes
    -----
    Kolmogorov and Smirnov, with Stephens's (1970) correction of the limiting distribution for finite samples.
    """
    n = len(pulls)
    expected = np.exp(log_ndtr(np.sort(pulls)))
    above, below = np.arange(1, n + 1) / n - expected, expected - np.arange(n) / n
    distance = float(max(above.max(), below.max()))
    root = np.sqrt(n)
    return distance, float(kolmogorov((root + 0.12 + 0.11 / root) * distance))


def compare_by_tails(pulls: FloatArray) -> tuple[float, float]:
    """Return Anderson and Darling's A² of a sample against N(0, 1), and its probability.

    Notes
    -----
    Mean and width are given, not fitted (their case 0). The probability is the limiting distribution's, as Marsaglia &
    Marsaglia (2004) approximate it.
    """
    n = len(pulls)
    ordered = np.sort(pulls)
    weights = 2.0 * np.arange(1, n + 1) - 1.0
    statistic = float(-n - (weights * (log_ndtr(ordered) + log_ndtr(-ordered[::-1]))).sum() / n)
    if statistic < 2.0:
        series = (0.00168691, -0.0116720, 0.0347962, -0.0649821, 0.247105, 2.00012)
        below = np.exp(-1.2337141 / statistic) / np.sqrt(statistic) * np.polyval(series, statistic)
    else:
        series = (-0.0003146, 0.008056, -0.082433, 0.43424, -2.30695, 1.0776)
        below = np.exp(-np.exp(np.polyval(series, statistic)))
    return statistic, float(np.clip(1.0 - below, 0.0, 1.0))


def measure_kernel(kernel: FloatArray) -> tuple[float, float, float]:
    """Return a kernel's centroid (x, y) against its middle pixel, and its rms width per axis; NaN where it has none."""
    half = kernel.shape[0] // 2
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    total = kernel.sum()
    if not total > 0:
        return float("nan"), float("nan"), float("nan")
    x, y = float((kernel * u).sum() / total), float((kernel * v).sum() / total)
    square = float((kernel * ((u - x) ** 2 + (v - y) ** 2)).sum() / total / 2.0)
    return x, y, float(np.sqrt(square)) if square >= 0 else float("nan")
