"""HIGH_VARIANCE: where a template is much noisier than elsewhere, since fewer exposures made it."""

from dataclasses import dataclass

import numpy as np

from alertprod._ranges import require_ranges
from alertprod.detection.background import estimate_background
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage


@dataclass(frozen=True, slots=True, kw_only=True)
class HighVarianceConfig:
    """What is much noisier."""

    threshold: float = 4.0
    """Local variance over the image's median from which pixels are marked, the reference's: twice the noise."""

    bin_size: int = 32
    """Side of the bins whose median variance is compared, pixels: stars are smaller, gaps between detectors larger."""

    min_fraction: float = 0.1
    """With less of the image usable than this its median says nothing, and nothing is marked."""

    def __post_init__(self) -> None:
        require_ranges(self, threshold=(1e-3, 1e6), bin_size=(1, 2**31), min_fraction=(0.0, 1.0))


def mark_high_variance(template: MaskedImage, *, config: HighVarianceConfig | None = None) -> float | None:
    """Set the HIGH_VARIANCE plane of a template, in place; bits that were there are cleared first.

    Parameters
    ----------
    template
        A merged template. Its variance plane decides; NO_DATA pixels and those without a variance do not count.

    Returns
    -------
    float or None
        Share of the image that is marked; None where too little of it is usable to say.

    Notes
    -----
    Compared is the smooth background of the variance plane: stars raise the variance of their own pixels, and are
    not meant.
    """
    config = config or HighVarianceConfig()
    bit = plane_bits("HIGH_VARIANCE")
    template.mask &= ~np.array(bit, dtype=template.mask.dtype)
    usable = template.usable(plane_bits("NO_DATA"))
    if np.count_nonzero(usable) < config.min_fraction * usable.size:
        return None
    variance = np.where(usable, template.variance, np.float32(0.0))
    local = estimate_background(variance, usable, bin_size=config.bin_size).compute_image(linear=True)
    high = local > config.threshold * np.median(variance[usable])
    template.mask[high] |= np.array(bit, dtype=template.mask.dtype)
    return float(np.count_nonzero(high) / high.size)
