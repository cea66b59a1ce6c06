"""The kernel basis of Alard & Lupton: Gaussians times polynomials, all flux in the first.

The raw functions are products of one function of x and one of y, which makes convolving stamps cheap; the
renormalised basis is a linear combination of them, kept beside the images.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.psf.model import FWHM_PER_SIGMA, PointSpreadFunction
from alertprod.subtraction.config import AlardLuptonConfig

_SUM_EPSILON = float(np.finfo(np.float32).eps)
"""Sums below it are taken as zero: odd functions, which rounding leaves a little off."""


@dataclass(frozen=True, slots=True)
class KernelBasis:
    """Kernels B_i: the first has unit sum; the others have zero sum and unit norm.

    Parameters
    ----------
    images
        float64, shape ``(n, size, size)``.
    profiles
        float64, shape ``(n_profiles, size)``: the one-dimensional functions.
    x_profile, y_profile
        Shape ``(n,)``: which profiles multiply to the raw function i.
    transform
        float64, ``(n, n)``: ``images = transform @ raw``.
    sigmas
        Of the Gaussians, pixels.
    mode
        "convolution" or "deconvolution" when the PSFs set the widths, else "config".
    """

    images: FloatArray
    profiles: FloatArray
    x_profile: IntArray
    y_profile: IntArray
    transform: FloatArray
    sigmas: tuple[float, ...]
    mode: str

    @property
    def size(self) -> int:
        """Side of the kernels in pixels, odd."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return self.images.shape[0]


def compute_trace_fwhm(psf: PointSpreadFunction) -> float:
    """Return the FWHM of a Gaussian of the PSF's trace radius, ``sqrt((Ixx + Iyy)/2)``; NaN where it has no moments."""
    x, y = psf.average_position
    try:
        ixx, iyy, _ = psf.compute_moments(x=x, y=y)
    except ValueError:
        return float("nan")
    return FWHM_PER_SIGMA * float(np.sqrt((ixx + iyy) / 2.0))


def choose_widths(
    config: AlardLuptonConfig, *, convolved_fwhm: float, reference_fwhm: float
) -> tuple[tuple[float, ...], int, str]:
    """Choose the Gaussians' sigmas and the kernel's side for a pair of PSFs.

    Parameters
    ----------
    convolved_fwhm, reference_fwhm
        FWHM in pixels of the image to convolve and of the one it shall look like; NaN where unknown.

    Returns
    -------
    sigmas, size, mode
        `mode` is "config", "convolution" or "deconvolution".

    Notes
    -----
    The width that a Gaussian PSF would need is the difference in quadrature; the first Gaussian is `alard_gauss_beta`
    times narrower, the others each that much wider than the one before.
    """
    if not (config.scale_by_fwhm and np.isfinite(convolved_fwhm) and np.isfinite(reference_fwhm)):
        return config.alard_sig_gauss, config.kernel_size, "config"
    if np.isclose(convolved_fwhm, reference_fwhm, rtol=1e-6):
        sigmas, mode = config.alard_sig_gauss, "config"
    else:
        mode = "convolution" if convolved_fwhm < reference_fwhm else "deconvolution"
        minimum = config.alard_min_sig if mode == "convolution" else config.alard_min_sig_deconv
        kernel_sigma = max(minimum, float(np.sqrt(abs(reference_fwhm**2 - convolved_fwhm**2))) / FWHM_PER_SIGMA)
        ratio = config.alard_gauss_beta if config.alard_n_gauss > 1 else 1.0
        first = max(minimum, kernel_sigma / ratio)
        sigmas = tuple(first * config.alard_gauss_beta**i for i in range(config.alard_n_gauss))
    size = int(config.kernel_size_fwhm_scaling * max(sigmas))
    size += 1 - size % 2
    return sigmas, int(np.clip(size, config.kernel_size_min, config.kernel_size_max)), mode


def make_alard_lupton_basis(
    sigmas: tuple[float, ...], degrees: tuple[int, ...], size: int, *, mode: str = "config"
) -> KernelBasis:
    """Build the renormalised basis.

    Parameters
    ----------
    sigmas, degrees
        Of each Gaussian: its sigma in pixels, and the highest total degree of its polynomials.
    size
        Side of the kernels in pixels, odd.

    Notes
    -----
    Alard & Lupton (1998), equation 2, with the polynomials on [-1, 1] from edge to edge of the kernel. As in Alard
    (2000), each function but the first is divided by its sum, where it has one, less the first, so that the first
    alone carries flux; then brought to unit norm.
    """
    if size % 2 == 0 or len(sigmas) != len(degrees):
        msg = f"kernel side {size} must be odd; {len(sigmas)} sigmas, {len(degrees)} degrees"
        raise ValueError(msg)
    half = size // 2
    pixels = np.arange(-half, half + 1, dtype=float)
    coordinate = pixels / half
    profiles: list[FloatArray] = []
    x_profile: list[int] = []
    y_profile: list[int] = []
    for sigma, degree in zip(sigmas, degrees, strict=True):
        gaussian = np.exp(-0.5 * (pixels / sigma) ** 2)
        gaussian /= gaussian.sum()
        start = len(profiles)
        profiles += [gaussian * coordinate**power for power in range(degree + 1)]
        for i in range(degree + 1):
            for j in range(degree + 1 - i):
                x_profile.append(start + i)
                y_profile.append(start + j)
    table = np.array(profiles)
    raw = np.einsum("ny,nx->nyx", table[y_profile], table[x_profile])
    transform = np.eye(len(raw))
    images = raw.copy()
    transform[0] /= raw[0].sum()
    images[0] /= raw[0].sum()
    for i in range(1, len(raw)):
        total = raw[i].sum()
        if abs(total) > _SUM_EPSILON:
            images[i] = raw[i] / total - images[0]
            transform[i] /= total
            transform[i, 0] -= transform[0, 0]
        norm = np.sqrt((images[i] ** 2).sum())
        images[i] /= norm
        transform[i] /= norm
    return KernelBasis(images, table, np.array(x_profile), np.array(y_profile), transform, tuple(sigmas), mode)
