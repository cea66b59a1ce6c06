"""The ways to subtract that are compared: ours in any configuration, what is best possible, and peers.

Each turns a field into a difference; detection and measurement are the product's own for all of them, with one and the
same configuration, so what differs is the subtraction.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from benchmarks.quality.render import Field
from scipy.signal import fftconvolve

from alertprod.factory import create_task
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.psf.model import FWHM_PER_SIGMA
from alertprod.service.differencing import difference_exposures
from alertprod.subtraction.alard_lupton import convolve_masked_image
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.decorrelate import decorrelate
from alertprod.subtraction.spatial import SpatialKernel


class NotApplicable(Exception):
    """This method cannot do this field; the message says why."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a method made of a field.

    `difference` and `sources` are as the product left them; `template` is the matched template; `figures` are numbers
    that the method says of itself; `seconds` is the wall time of the subtraction alone for peers, of everything for ours.
    """

    difference: Exposure
    template: Exposure
    sources: Catalog
    seconds: float
    figures: dict[str, float]


Method = Callable[[Field], Outcome]


def make_method(name: str, overrides: Mapping[str, Any] | None = None) -> Method:
    """Return a method by name; `overrides` make a variant of ours.

    Raises
    ------
    ValueError
        Raised if nobody knows the name.
    """
    if overrides is not None:
        return lambda field: run_ours(field, overrides)
    try:
        return METHODS[name]
    except KeyError:
        msg = f"there is no method {name}; known are {', '.join(METHODS)}"
        raise ValueError(msg) from None


def run_ours(field: Field, overrides: Mapping[str, Any]) -> Outcome:
    """Do what the daemon does with an exposure and its warped, merged template."""
    task = create_task(overrides, source="benchmark")
    started = time.perf_counter()
    done = difference_exposures(
        task, field.science, field.template, id_factory=task.makeIdFactory(field.scene.seed, 44)
    )
    seconds = time.perf_counter() - started
    return Outcome(
        difference=done.difference, template=done.template, sources=done.sources, seconds=seconds, figures=done.figures
    )


def run_oracle(field: Field) -> Outcome:
    """Subtract the noise-free truth: no method can do better, and none that has a template's noise can do as well."""
    science, template = _characterize(field)
    mask = science.mask | _prepare_mask(template)
    difference = MaskedImage(field.science.image - field.model, mask, science.variance.copy())
    matched = replace(science, masked_image=MaskedImage(field.model, mask, 0.01 * science.variance))
    return _finish(field, difference, science.psf, science, matched, seconds=0.0)


def run_perfect(field: Field) -> Outcome:
    """Subtract the truth and the template's noise seen through the true kernel of the field's middle, and decorrelate.

    The bound of all that convolve the template with a kernel, with the noise it really has.
    """
    science, template = _characterize(field)
    kernel = compute_true_kernel(field)
    x, y = science.psf.average_position
    spatial = SpatialKernel.fit(kernel[None], x=np.array([x]), y=np.array([y]), order=0, box=science.box)
    noise = replace_mask(field.template_noise, _prepare_mask(template))
    matched = convolve_masked_image(noise, spatial, config=AlardLuptonConfig())
    difference = MaskedImage(
        field.science.image - field.model - matched.image,
        science.mask | matched.mask,
        science.variance + matched.variance,
    )
    difference.mask[~np.isfinite(difference.image)] |= plane_bits("NO_DATA")
    white = decorrelate(
        difference,
        kernel=spatial,
        science_variance=science.variance,
        template_variance=noise.variance,
        convolved="template",
        psf=science.psf,
    )
    template_image = MaskedImage(field.model + matched.image, matched.mask, matched.variance)
    return _finish(
        field, white.difference, white.psf, science, replace(science, masked_image=template_image), seconds=0.0
    )


def run_photutils(field: Field) -> Outcome:
    """Match with photutils' constant kernel: the ratio of the two PSFs' transforms, tapered."""
    try:
        from photutils.psf_matching import SplitCosineBellWindow, make_kernel
    except ImportError as error:
        msg = f"photutils is not there: {error}; it comes with the extra alertprod[bench]"
        raise NotApplicable(msg) from error

    science, template = _characterize(field)
    started = time.perf_counter()
    x, y = science.psf.average_position
    size = min(science.psf.size, template.psf.size)
    target, source = (_crop(e.psf.compute_kernel_image(x=x, y=y), size) for e in (science, template))
    # The taper that photutils recommends for space telescopes starts where ground-based seeing has no power left.
    kernel = make_kernel(source, target, window=SplitCosineBellWindow(alpha=0.35, beta=0.3))
    bad = ~template.masked_image.usable(plane_bits("NO_DATA"))
    image, variance = (np.where(bad, 0.0, plane) for plane in (template.image, template.variance))
    convolved = fftconvolve(image, kernel, mode="same")
    noise = fftconvolve(variance, kernel**2, mode="same")
    mask = _grow(_prepare_mask(template), size // 4)
    seconds = time.perf_counter() - started
    planes = MaskedImage(convolved.astype(np.float32), mask, np.maximum(noise, 0.0).astype(np.float32))
    return _finish_peer(field, science, planes, seconds)


def run_hotpants(field: Field) -> Outcome:
    """Match with HOTPANTS, where it is on the PATH, as its authors advise: Gaussians from the two widths."""
    program = shutil.which("hotpants")
    if program is None:
        msg = "hotpants is not on the PATH"
        raise NotApplicable(msg)
    science, template = _characterize(field)
    with tempfile.TemporaryDirectory(prefix="hotpants-") as folder:
        started = time.perf_counter()
        arguments = write_hotpants_input(Path(folder), science, template, field)
        subprocess.run([program, *arguments], check=True, capture_output=True, timeout=1800)
        image = fits.getdata(Path(folder) / "difference.fits").astype(np.float32)
        noise = fits.getdata(Path(folder) / "noise.fits").astype(np.float32)
        matched = fits.getdata(Path(folder) / "matched.fits").astype(np.float32)
        seconds = time.perf_counter() - started
    mask = science.mask | _grow(_prepare_mask(template), 10)
    unknown = ~(np.isfinite(noise) & (noise > 0) & np.isfinite(image))
    mask[unknown] |= plane_bits("NO_DATA")
    difference = MaskedImage(
        np.where(unknown, np.nan, image), mask, np.where(unknown, np.inf, noise**2).astype(np.float32)
    )
    matched_template = replace(science, masked_image=MaskedImage(matched, mask, template.variance))
    return _finish(field, difference, science.psf, science, matched_template, seconds=seconds)


def write_hotpants_input(folder: Path, science: Exposure, template: Exposure, field: Field) -> list[str]:
    """Write the images that HOTPANTS reads and return its arguments."""
    bad = plane_bits("BAD", "SAT", "CR", "NO_DATA")
    for name, exposure in (("science", science), ("template", template)):
        usable = exposure.masked_image.usable(bad)
        fits.writeto(folder / f"{name}.fits", np.where(np.isfinite(exposure.image), exposure.image, 0.0))
        noise = np.sqrt(np.where(np.isfinite(exposure.variance), exposure.variance, 1e12))
        fits.writeto(folder / f"{name}_noise.fits", noise.astype(np.float32))
        fits.writeto(folder / f"{name}_mask.fits", (~usable).astype(np.int16))
    sigma = [e.psf.compute_fwhm() / FWHM_PER_SIGMA for e in (science, template)]
    convolve_template = sigma[0] >= sigma[1]
    match = max(np.sqrt(abs(sigma[0] ** 2 - sigma[1] ** 2)), 0.7)
    upper = str(field.scene.parameters.saturation)
    lower = str(-10.0 * float(np.sqrt(np.nanmedian(template.variance) + np.nanmedian(science.variance))))
    stamps = str(max(4, round(field.size / 200)))
    return [
        "-inim", str(folder / "science.fits"), "-tmplim", str(folder / "template.fits"),
        "-outim", str(folder / "difference.fits"), "-oni", str(folder / "noise.fits"),
        "-oci", str(folder / "matched.fits"),
        "-ini", str(folder / "science_noise.fits"), "-tni", str(folder / "template_noise.fits"),
        "-imi", str(folder / "science_mask.fits"), "-tmi", str(folder / "template_mask.fits"),
        "-iu", upper, "-tu", upper, "-il", lower, "-tl", lower, "-c", "t" if convolve_template else "i", "-n", "i",
        "-r", "10", "-rss", "16", "-nsx", stamps, "-nsy", stamps, "-ko", "2", "-bgo", "2", "-v", "0",
        "-ng", "3", "6", f"{0.5 * match:.3f}", "4", f"{match:.3f}", "2", f"{2.0 * match:.3f}",
    ]  # fmt: skip


_NO_KERNEL = {"doDecorrelation": False, "doSelectSources": False}
"""Proper subtraction is white already and needs no stars."""

METHODS: dict[str, Method] = {
    "ours": lambda field: run_ours(field, {}),
    "zogy": lambda field: run_ours(field, {"subtract": "zogy", **_NO_KERNEL}),
    "zogy_score": lambda field: run_ours(
        field, {"subtract": "zogy", "useScoreImageDetection": True, "doWriteScoreExp": True, **_NO_KERNEL}
    ),
    "score": lambda field: run_ours(
        field, {"useScoreImageDetection": True, "doWriteScoreExp": True, "doWriteSubtractedExp": False}
    ),
    "oracle": run_oracle,
    "perfect": run_perfect,
    "photutils": run_photutils,
    "hotpants": run_hotpants,
}
"""Every method by name."""


def compute_true_kernel(field: Field, half: int = 20):
    """Return the kernel that takes the template's PSF to the science image's in the middle of the field.

    Raises
    ------
    NotApplicable
        Raised where the science image is so sharp that there is none.
    """
    parameters = field.scene.parameters
    n = 128
    f = np.arange(-n // 2, n // 2) / n
    fx, fy = np.meshgrid(f, f)
    turned = np.linalg.solve(field.to_template.jacobian.T, np.stack([fx.ravel(), fy.ravel()]))
    source = parameters.template.compute_transfer(turned[0], turned[1], u=0.0, v=0.0).reshape(n, n)
    target = parameters.science.compute_transfer(fx, fy, u=0.0, v=0.0)
    known = np.abs(source) > 1e-3
    ratio = np.where(known, target / np.where(known, source, 1.0), 0.0)
    if np.abs(ratio).max() > 1.3:
        msg = "the science image is sharper than the template: no kernel takes the one to the other"
        raise NotApplicable(msg)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(ratio)).real)
    inner = slice(n // 2 - half, n // 2 + half + 1)
    kernel = image[inner, inner]
    return kernel / kernel.sum()


def replace_mask(planes: MaskedImage, mask) -> MaskedImage:
    """Return fresh planes with another mask."""
    return MaskedImage(planes.image.copy(), mask.copy(), planes.variance.copy())


def _characterize(field: Field) -> tuple[Exposure, Exposure]:
    """Return science and template as the product has them when it subtracts."""
    task = create_task({}, source="benchmark")
    ready = task.characterizeInputs(field.science, field.template)
    return ready.exposure, ready.templateExposure


def _prepare_mask(template: Exposure):
    """Return the template's mask with its saturation under its own name, as the product does it."""
    mask = template.mask & plane_bits("NO_DATA", "BAD", "HIGH_VARIANCE")
    mask[(template.mask & plane_bits("SAT")) != 0] |= plane_bits("SAT_TEMPLATE")
    return mask.astype(np.int32)


def _grow(mask, radius: int):
    from alertprod.subtraction.convolve import grow_mask

    return grow_mask(mask, float(radius))


def _crop(image, size: int):
    rim = (image.shape[0] - size) // 2
    return image[rim : image.shape[0] - rim, rim : image.shape[1] - rim]


def _finish_peer(field: Field, science: Exposure, matched: MaskedImage, seconds: float) -> Outcome:
    difference = MaskedImage(
        science.image - matched.image, science.mask | matched.mask, science.variance + matched.variance
    )
    return _finish(field, difference, science.psf, science, replace(science, masked_image=matched), seconds=seconds)


def _finish(field: Field, difference: MaskedImage, psf, science: Exposure, matched: Exposure, *, seconds) -> Outcome:
    """Detect and measure with the product."""
    difference.mask &= ~np.int32(plane_bits("DETECTED", "DETECTED_NEGATIVE"))
    task = create_task({"doSubtract": False}, source="benchmark")
    exposure = replace(science, masked_image=difference, psf=psf)
    result = task.run(
        exposure=science,
        templateExposure=matched,
        subtractedExposure=exposure,
        idFactory=task.makeIdFactory(field.scene.seed, 44),
    )
    figures = {"pull_width": float(task.metadata.get("pullWidth", np.nan))}
    if "scaleDiffimVarianceFactor" in task.metadata:
        figures["variance_scale"] = float(task.metadata["scaleDiffimVarianceFactor"])
    return Outcome(
        difference=result.subtractedExposure,
        template=matched,
        sources=result.diaSources,
        seconds=seconds,
        figures=figures,
    )
