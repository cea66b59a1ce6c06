"""The ways to subtract that are compared: ours in any configuration, what is best possible, and peers.

Each turns a field into a difference; detection and measurement are the product's own for all of them, with one and the
same configuration, so what differs is the subtraction.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from benchmarks.peers import NotApplicable, match_hotpants, match_photutils
from benchmarks.quality.render import Field

from alertprod.factory import create_task
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import Catalog
from alertprod.service.differencing import difference_exposures
from alertprod.subtraction.alard_lupton import convolve_masked_image
from alertprod.subtraction.config import AlardLuptonConfig
from alertprod.subtraction.decorrelate import decorrelate
from alertprod.subtraction.spatial import SpatialKernel


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
    """Match with photutils' constant kernel."""
    science, template = _characterize(field)
    matched = match_photutils(science, template)
    mask = _grow(_prepare_mask(template), matched.reach)
    return _finish_peer(field, science, MaskedImage(matched.image, mask, matched.variance), matched.wall_s)


def run_hotpants(field: Field) -> Outcome:
    """Match with HOTPANTS, where it is on the PATH."""
    science, template = _characterize(field)
    matched = match_hotpants(science, template, saturation=field.scene.parameters.saturation)
    mask = science.mask | _grow(_prepare_mask(template), matched.reach)
    image, noise = matched.difference, matched.noise
    unknown = ~(np.isfinite(noise) & (noise > 0) & np.isfinite(image))
    mask[unknown] |= plane_bits("NO_DATA")
    difference = MaskedImage(
        np.where(unknown, np.nan, image), mask, np.where(unknown, np.inf, noise**2).astype(np.float32)
    )
    matched_template = replace(science, masked_image=MaskedImage(matched.image, mask, template.variance))
    return _finish(field, difference, science.psf, science, matched_template, seconds=matched.wall_s)


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
