"""Kernel bases, and that of Alard & Lupton: Gaussians times polynomials, all flux in the first.

The raw functions are products of one function of x and one of y, which makes convolving stamps cheap; the
renormalised basis is a linear combination of them, kept beside the images.
"""

from dataclasses import dataclass, replace

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.geometry.box import Box
from alertprod.psf.model import FWHM_PER_SIGMA, PointSpreadFunction
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.regularization import Regularization

_SUM_EPSILON = float(np.finfo(np.float32).eps)
"""Sums below it are taken as zero: odd functions, which rounding leaves a little off."""

_PRIOR_DEPARTURE = 0.3
"""Norm of a departure from the leading kernel that costs as much as one standard deviation, in units of its norm:
larger than any real one, far smaller than what a fit without information comes up with."""

_LEADING_NOISE = 1e-4
"""Noise power against which the leading kernel is fitted, relative to the PSF's own: keeps sharpening kernels tame."""


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
        Shape ``(n_raw,)``: which profiles multiply to the raw function i.
    transform
        float64, ``(n, n_raw)``: ``images = transform @ raw``.
    sigmas
        Of the Gaussians, pixels; none where it has none.
    mode
        "convolution" or "deconvolution" when the PSFs set the widths, else "config".
    regularization
        What holds the kernels smooth; None where nothing does.
    """

    images: FloatArray
    profiles: FloatArray
    x_profile: IntArray
    y_profile: IntArray
    transform: FloatArray
    sigmas: tuple[float, ...]
    mode: str
    regularization: Regularization | None = None

    @property
    def gram(self) -> FloatArray:
        """Inner products of the kernels, ``(n, n)``: what they make of white noise."""
        flat = self.images.reshape(len(self), -1)
        return flat @ flat.T

    @property
    def first_power(self) -> float:
        """Sum of the squares of the first kernel."""
        return float((self.images[0] ** 2).sum())

    def led_by(self, coefficients: FloatArray) -> "KernelBasis":
        """Replace the first kernel by a combination of all, of unit sum: the shape from which the others are departures.

        Raises
        ------
        ValueError
            Raised if the combination has no sum that could be brought to one.
        """
        total = coefficients[0]
        if not (np.all(np.isfinite(coefficients)) and total > 0):
            msg = f"the sum of the leading kernel is {total}"
            raise ValueError(msg)
        combinations = np.eye(len(self))
        combinations[0] = coefficients / total
        return self.recombined(combinations)

    def recombined(self, combinations: FloatArray) -> "KernelBasis":
        """Return the basis of combinations of these kernels, ``(k, n)``: the first of unit sum, the others of zero sum.

        Nothing holds the new kernels smooth: they are as smooth as what they are combined of.
        """
        return replace(
            self,
            images=np.tensordot(combinations, self.images, axes=1),
            transform=combinations @ self.transform,
            regularization=None,
        )

    def regularized(self, roughness: FloatArray, *, strength: float | None, scaling: float = 0.0) -> "KernelBasis":
        """Return the basis held smooth by a penalty on its pixels, ``(size**2, size**2)``; see `Regularization`."""
        flat = self.images.reshape(len(self), -1)
        return replace(self, regularization=Regularization(flat @ roughness @ flat.T, strength, scaling))

    def compute_prior_strength(self, flux_ratio: float) -> float:
        """Return the weight, relative to `gram`, that keeps departures about as large as the first kernel at most."""
        return 1.0 / (_PRIOR_DEPARTURE**2 * flux_ratio**2 * self.first_power)

    def compute_prior(self, flux_ratio: float) -> FloatArray:
        """Return what that weight adds to normal equations, ``(n, n)``; nothing for the first kernel."""
        prior = self.compute_prior_strength(flux_ratio) * self.gram
        prior[0] = prior[:, 0] = 0.0
        return prior

    @property
    def size(self) -> int:
        """Side of the kernels in pixels, odd."""
        return self.images.shape[1]

    def __len__(self) -> int:
        return self.images.shape[0]


def compute_trace_fwhm(
    psf: PointSpreadFunction, *, box: Box | None = None, n_side: int = 10, margin: float = 0.05
) -> float:
    """Return the FWHM of a Gaussian of the PSF's trace radius, ``sqrt((Ixx + Iyy)/2)``.

    Parameters
    ----------
    box, n_side, margin
        Where the PSF has no moments at its average position, the mean over `n_side` x `n_side` places in the box is
        returned, a share `margin` of it left out at each border.

    Returns
    -------
    float
        NaN where it has moments nowhere.
    """
    fwhm = _trace_fwhm_at(psf, *psf.average_position)
    if np.isfinite(fwhm) or box is None:
        return fwhm
    ny, nx = box.shape
    places = np.linspace(margin, 1.0 - margin, n_side) if n_side > 1 else np.array([0.5])
    widths = [_trace_fwhm_at(psf, box.x_min + u * (nx - 1), box.y_min + v * (ny - 1)) for v in places for u in places]
    found = [width for width in widths if np.isfinite(width)]
    return float(np.mean(found)) if found else float("nan")


def _trace_fwhm_at(psf: PointSpreadFunction, x: float, y: float) -> float:
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


def pick_degrees(degrees: tuple[int, ...], chosen: tuple[int, ...]) -> BoolArray:
    """Say which functions of the basis of `degrees` the basis of the lower `chosen` degrees keeps, in their order."""
    return np.array(
        [
            i + j <= lower
            for degree, lower in zip(degrees, chosen, strict=True)
            for i in range(degree + 1)
            for j in range(degree + 1 - i)
        ]
    )


def lead_with_psfs(
    basis: KernelBasis, *, convolved_psf: PointSpreadFunction, reference_psf: PointSpreadFunction
) -> KernelBasis:
    """Let the basis begin with the kernel that the two PSF models ask for, so that few or faint stars do no harm.

    What the stars tell beyond it comes from the other kernels. Where the PSFs ask for nothing sensible the basis stays.
    """
    outer, inner = 2 * basis.size + 1, 2 * (basis.size - basis.size // 2) + 1
    x, y = reference_psf.average_position
    try:
        source = _fit_into(convolved_psf.compute_kernel_image(x=x, y=y), outer)
        target = _fit_into(reference_psf.compute_kernel_image(x=x, y=y), inner).ravel()
        design = convolve_stamps(source[None], basis, inner).reshape(len(basis), -1)
        noise = _LEADING_NOISE * float((source**2).sum()) * basis.gram
        return basis.led_by(np.linalg.solve(design @ design.T + noise, design @ target))
    except (ValueError, np.linalg.LinAlgError):
        return basis


def _fit_into(image: FloatArray, side: int) -> FloatArray:
    rim = (image.shape[0] - side) // 2
    return image[rim:-rim, rim:-rim] if rim > 0 else np.pad(image, -rim)


def convolve_stamps(stamps: FloatArray, basis: KernelBasis, side: int) -> FloatArray:
    """Convolve stamps ``(n, s, s)`` with every basis kernel: ``(n, n_basis, side, side)``, the middle of each."""
    n, outer, _ = stamps.shape
    half, kernel_half = side // 2, basis.size // 2
    # band[p, i, o] = profile_p(o - i): one banded matrix for all profiles.
    shift = (np.arange(side)[None, :] + outer // 2 - half) - np.arange(outer)[:, None]
    inside = np.abs(shift) <= kernel_half
    band = np.where(inside, basis.profiles[:, np.clip(shift + kernel_half, 0, basis.size - 1)], 0.0)
    n_profiles = len(basis.profiles)
    along_x = (stamps.reshape(n * outer, outer) @ band.transpose(1, 0, 2).reshape(outer, -1)).reshape(
        n, outer, n_profiles, side
    )
    by_row = np.ascontiguousarray(along_x.transpose(1, 2, 0, 3))
    raw = np.empty((len(basis.y_profile), side, n, side))
    for py in np.unique(basis.y_profile):
        # One large product for all raw functions that share a profile in y.
        members = np.flatnonzero(basis.y_profile == py)
        first = by_row[:, basis.x_profile[members]]
        along_y = (band[py].T @ first.reshape(outer, -1)).reshape(side, len(members), n, side)
        raw[members] = along_y.transpose(1, 0, 2, 3)
    combined = (basis.transform @ raw.reshape(len(raw), -1)).reshape(len(basis), side, n, side)
    return np.ascontiguousarray(combined.transpose(2, 0, 1, 3))
