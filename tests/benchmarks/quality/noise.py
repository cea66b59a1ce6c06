"""Statistics of pixels: pulls and the autocorrelation of the noise."""

from dataclasses import dataclass, field

import numpy as np

from alertprod.images.mask import plane_bits

NOT_SKY_PLANES = ("BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE", "HIGH_VARIANCE")
"""Pixels that are neither sky nor source; what is detected is not among them: detections follow the noise."""

MAX_LAG = 6
"""Of the noise's autocorrelation, pixels."""

IQR_TO_SIGMA = 0.741301109252801
"""Interquartile range of a normal distribution to its standard deviation."""


@dataclass(slots=True)
class Pulls:
    """Pixels over their standard error: moments, and quantiles instead of millions of values."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    quartiles: list[tuple[int, float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, values) -> "Pulls":
        values = np.asarray(values, dtype=float)
        if values.size < 4:
            return cls()
        low, high = np.percentile(values, [25.0, 75.0])
        # One pixel of a hundred thousand must not be the rms.
        kept = np.clip(values, -10.0, 10.0)
        return cls(values.size, float(kept.sum()), float((kept**2).sum()), [(values.size, low, high)])

    def add(self, other: "Pulls") -> None:
        self.n += other.n
        self.total += other.total
        self.squares += other.squares
        self.quartiles += other.quartiles


def compute_width(pulls: Pulls) -> tuple[float, float]:
    """Return the robust width and its standard error: that of quartiles, or of the fields' scatter where larger."""
    if not pulls.quartiles:
        return np.nan, np.nan
    n = np.array([q[0] for q in pulls.quartiles], dtype=float)
    widths = np.array([IQR_TO_SIGMA * (q[2] - q[1]) for q in pulls.quartiles])
    mean = float(np.average(widths, weights=n))
    error = 1.36 / np.sqrt(2.0 * n.sum()) * mean
    if len(n) > 2:
        error = max(error, float(widths.std(ddof=1) / np.sqrt(len(n))))
    return mean, error


def compute_pulls(difference):
    """Return image over standard error, NaN where the difference says nothing; float32."""
    usable = difference.masked_image.usable(plane_bits(*NOT_SKY_PLANES))
    pulls = np.full(difference.shape, np.nan, dtype=np.float32)
    pulls[usable] = difference.image[usable] / np.sqrt(difference.variance[usable])
    return pulls


def compute_correlation(pulls):
    """Return sums of products of pixels by lag and their numbers; the lags (dy >= 0, |dx| <= MAX_LAG)."""
    good = np.isfinite(pulls)
    centred = np.where(good, pulls - (np.mean(pulls[good]) if good.any() else 0.0), 0.0).astype(np.float32)
    # Bright residuals are for the pulls to tell; here noise is asked for.
    np.clip(centred, -5.0, 5.0, out=centred)
    shape = (MAX_LAG + 1, 2 * MAX_LAG + 1)
    sums, numbers = np.zeros(shape), np.zeros(shape)
    ny, nx = centred.shape
    for dy in range(MAX_LAG + 1):
        for dx in range(-MAX_LAG, MAX_LAG + 1):
            if dy == 0 and dx < 0:
                continue
            a = (slice(0, ny - dy), slice(max(0, -dx), nx - max(0, dx)))
            b = (slice(dy, ny), slice(max(0, dx), nx + min(0, dx)))
            sums[dy, dx + MAX_LAG] = np.einsum("ij,ij->", centred[a], centred[b], dtype=np.float64)
            numbers[dy, dx + MAX_LAG] = np.count_nonzero(good[a] & good[b])
    return sums, numbers


def compute_lags(products, numbers):
    """Return the correlation by lag; 1 at none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = products / numbers
    return mean / mean[0, MAX_LAG]
