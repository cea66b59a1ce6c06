"""The kernels of a proper subtraction, from two PSFs and two variances, over the cells of an image."""

import itertools
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import scipy.fft

from alertprod._typing import FloatArray
from alertprod.errors import BadSubtraction, UnusableExposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction._filters import TRUNCATION, centred_image, convolve_each, crop_kernels, transform_side
from alertprod.subtraction._zogy_cells import CellKernel
from alertprod.subtraction.decorrelate import compute_mean_variance
from alertprod.subtraction.zogy_config import ZogyConfig

_KERNEL_TRUNCATION = 2e-4
"""Share of a kernel's absolute sum that may be cut off: less than elsewhere, since stars must cancel between two of
them and nothing is fitted that would make up for it."""

_FAINTEST = 5e-3
"""Modulus of both PSFs' transforms below which a frequency says nothing: PSF models are no better than this, and with
the ratio of two such numbers the kernels become as large as the image. A ten-thousandth of a star's light stays in single
pixels for it, far less than its own noise."""

_BORDER_SIGMAS = 10.0
"""The border, in sigmas of the wider PSF, that the reference gives its cells."""


@dataclass(frozen=True, slots=True)
class ZogyKernels:
    """Kernels at each corner of the cells, all of unit sum.

    Attributes
    ----------
    science, template
        What the two images are convolved with.
    psf
        P_D: of the difference that they make.
    score_science, score_template
        What takes the two images to the score: the kernels above, correlated with `psf`.
    science_variance, template_variance
        Mean variances, mean over the corners.
    """

    science: CellKernel
    template: CellKernel
    psf: CellKernel
    score_science: CellKernel
    score_template: CellKernel
    science_variance: float
    template_variance: float


def make_kernels(
    science: MaskedImage,
    template: MaskedImage,
    *,
    science_psf: PointSpreadFunction,
    template_psf: PointSpreadFunction,
    config: ZogyConfig,
) -> ZogyKernels:
    """Compute the kernels at every corner of the cells, without `do_spatial_grid` those of the middle.

    Raises
    ------
    UnusableExposure, BadSubtraction
        See `alertprod.subtraction.zogy.subtract_zogy`.
    """
    y, x = _place_nodes(science.shape, science_psf, template_psf, config)
    v_n = _mean_variances(science, y, x, "science", config)
    v_r = _mean_variances(template, y, x, "template", config)
    kernels_n, kernels_r, psfs_n = [], [], []
    for k, (y_k, x_k) in enumerate((y_k, x_k) for y_k in y for x_k in x):
        p_n, p_r = _draw(science_psf, "science", x=x_k, y=y_k), _draw(template_psf, "template", x=x_k, y=y_k)
        distance = float(np.hypot(*(_centroid(p_n) - _centroid(p_r))))
        if distance > config.max_psf_centroid_dist:
            raise BadSubtraction(
                "the distance of the PSFs' centroids, in pixels,", distance, config.max_psf_centroid_dist
            )
        c_n, c_r = compute_zogy_kernels(p_n, p_r, science_variance=v_n[k], template_variance=v_r[k])
        kernels_n.append(c_n)
        kernels_r.append(c_r)
        psfs_n.append(p_n)
    c_n, c_r = (_normalise(crop_kernels(np.array(images), _KERNEL_TRUNCATION)) for images in (kernels_n, kernels_r))
    psf = _normalise(crop_kernels(convolve_each(c_n, np.array(psfs_n)), TRUNCATION))
    turned = psf[:, ::-1, ::-1]

    def on_grid(images: FloatArray) -> CellKernel:
        return CellKernel(images.reshape(len(y), len(x), *images.shape[1:]), x, y)

    return ZogyKernels(
        science=on_grid(c_n),
        template=on_grid(c_r),
        psf=on_grid(psf),
        score_science=on_grid(convolve_each(c_n, turned)),
        score_template=on_grid(convolve_each(c_r, turned)),
        science_variance=float(v_n.mean()),
        template_variance=float(v_r.mean()),
    )


def compute_zogy_kernels(
    science_psf: FloatArray, template_psf: FloatArray, *, science_variance: float, template_variance: float
) -> tuple[FloatArray, FloatArray]:
    """Return the kernels of the science image and of the template.

    Parameters
    ----------
    science_psf, template_psf
        Images of the PSFs, each square, odd, centred on its middle pixel, of unit sum.
    science_variance, template_variance
        Of the sky's pixels, on one photometric scale.

    Returns
    -------
    tuple
        float64, square, odd, of one side and unit sum, not cropped: ``sqrt(v_n + v_r) P_r / w`` and
        ``sqrt(v_n + v_r) P_n / w`` with ``w^2 = v_n |P_r|^2 + v_r |P_n|^2``.

    Notes
    -----
    Where both transforms fade they are continued as the Gaussians of the PSFs' widths, relative to the sharper one: the
    ratio of the two stays smooth, so the kernels stay small, and the noise is as white there as elsewhere.
    """
    side = transform_side([science_psf, template_psf])
    p_n, p_r = _continue_faint(science_psf, template_psf, side)
    power = science_variance * np.abs(p_r) ** 2 + template_variance * np.abs(p_n) ** 2
    scale = np.sqrt((science_variance + template_variance) / power)
    return centred_image(p_r * scale, side), centred_image(p_n * scale, side)


def _continue_faint(first: FloatArray, second: FloatArray, side: int) -> tuple[FloatArray, FloatArray]:
    """Return both PSFs' half spectra with Gaussians in place of what is fainter than `_FAINTEST` in both."""
    spectra = [_spectrum(image, side) for image in (first, second)]
    weight = np.exp(-0.5 * (np.abs(spectra[0]) ** 2 + np.abs(spectra[1]) ** 2) / _FAINTEST**2)
    frequency2 = scipy.fft.fftfreq(side)[:, None] ** 2 + scipy.fft.rfftfreq(side)[None, :] ** 2
    sigma2 = [_mean_square_radius(image) for image in (first, second)]
    return tuple(
        spectrum + _FAINTEST * weight * np.exp(-2.0 * np.pi**2 * frequency2 * (own - min(sigma2)))
        for spectrum, own in zip(spectra, sigma2, strict=True)
    )


def _spectrum(image: FloatArray, side: int) -> FloatArray:
    """Return the half spectrum of an image whose origin is its middle pixel."""
    half = image.shape[0] // 2
    padded = np.zeros((side, side))
    padded[: image.shape[0], : image.shape[1]] = image
    return scipy.fft.rfft2(np.roll(padded, (-half, -half), axis=(0, 1)))


def _place_nodes(
    shape: tuple[int, int], science_psf: PointSpreadFunction, template_psf: PointSpreadFunction, config: ZogyConfig
) -> tuple[FloatArray, FloatArray]:
    """Return y and x of the cells' corners, or of the image's middle."""
    if not config.do_spatial_grid:
        return np.array([(shape[0] - 1) / 2]), np.array([(shape[1] - 1) / 2])
    psfs = (science_psf, template_psf)
    border: float = max(psf.size for psf in psfs)
    for psf in psfs:
        # One without a width, a needle, asks for no border of its own.
        with suppress(ValueError):
            border = max(border, _BORDER_SIGMAS * psf.compute_sigma())
    n_cells = [max(1, round(length / (config.grid_inner_size * border))) for length in shape]
    y, x = (np.linspace(0.0, length - 1.0, n + 1) for length, n in zip(shape, n_cells, strict=True))
    return y, x


def _mean_variances(image: MaskedImage, y: FloatArray, x: FloatArray, which: str, config: ZogyConfig) -> FloatArray:
    """Return the clipped mean variance nearest to each node, row by row; where nothing counts that of the others."""
    ignored = (image.mask & plane_bits(*config.ignore_mask_planes)) != 0
    ny, nx = image.shape
    means = np.array(
        [
            compute_mean_variance(image.variance[rows, columns], ignored[rows, columns])
            for rows in _nearest(y, ny)
            for columns in _nearest(x, nx)
        ]
    )
    if np.isnan(means).all():
        raise UnusableExposure(which, "variance", "its plane has no usable pixel")
    return np.where(np.isnan(means), np.nanmean(means), means)


def _nearest(nodes: FloatArray, length: int) -> list[slice]:
    """Return the pixels of an axis that are nearest to each node."""
    edges = [0, *np.ceil((nodes[1:] + nodes[:-1]) / 2).astype(int), length]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _draw(psf: PointSpreadFunction, which: str, *, x: float, y: float) -> FloatArray:
    image = psf.compute_kernel_image(x=x, y=y)
    if not (np.isfinite(image).all() and image.sum() > 0):
        raise UnusableExposure(which, "psf", f"its image at x {x:.1f}, y {y:.1f} has the sum {image.sum():.3g}")
    return image / image.sum()


def _centroid(image: FloatArray) -> FloatArray:
    """Return x and y relative to the middle pixel, weighted with the square: noise in the wings does not count."""
    power, offset = image**2, np.arange(image.shape[0]) - image.shape[0] // 2
    return np.array([power.sum(axis=0) @ offset, power.sum(axis=1) @ offset]) / power.sum()


def _mean_square_radius(image: FloatArray) -> float:
    """Return sigma^2 of a Gaussian, from its square: noise in the wings does not count."""
    power, offset = image**2, np.arange(image.shape[0]) - image.shape[0] // 2
    return float((power * (offset[:, None] ** 2 + offset[None, :] ** 2)).sum() / power.sum())


def _normalise(images: FloatArray) -> FloatArray:
    return images / images.sum(axis=(1, 2), keepdims=True)
