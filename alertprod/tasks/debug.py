"""The pictures of `runDebug`: what was subtracted, detected and measured, drawn through a `Display`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.geometry.box import Box
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.protocols import Display, Marker, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class DebugOptions:
    """What `runDebug` draws."""

    display: bool = False
    """Draw anything at all."""

    showSubtracted: bool = True
    """The difference with its DiaSources: red where negative, else yellow; x where a pixel at the centre is
    interpolated, saturated or a cosmic ray, + where one elsewhere in the footprint is, else o."""

    showPixelResiduals: bool = True
    """Distributions of the difference's pulls at the stars of the kernel, at those it was not fitted on, at
    DiaSources and on the sky."""

    showDiaSources: bool = True
    """Science image, matched template and difference at each of the most significant DiaSources."""

    showDipoles: bool = True
    """The difference with a line from each dipole's negative to its positive lobe."""

    maskTransparency: float = 80.0
    """Percent; 100 hides the mask."""

    maxDiaSources: int = 48
    """DiaSources on the sheet of `showDiaSources`: what one screen holds."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.maskTransparency <= 100.0:
            msg = f"maskTransparency is {self.maskTransparency}; 0 to 100 percent is possible"
            raise ValueError(msg)


def run_debug(
    display: Display | None,
    options: DebugOptions,
    *,
    difference: Exposure | None,
    science: Exposure | None = None,
    template: Exposure | None = None,
    diaSources: Catalog | None = None,
    kernelSources: Catalog | None = None,
    controlSources: Catalog | None = None,
) -> None:
    """Draw what the options ask for and what there is.

    Parameters
    ----------
    display
        Where; None draws nothing, as does an option `display` that is off.
    difference, science, template
        On one grid; the template is the matched one. Nothing is drawn of an image that is None.
    diaSources
        `DIA_SOURCE_COLUMNS`.
    kernelSources, controlSources
        `SOURCE_COLUMNS`: stars that the kernel was fitted on, and others to judge it by.
    """
    if display is None or not options.display or difference is None:
        return
    of = _describe(difference)
    found = diaSources if diaSources is not None and diaSources.n_rows else None
    if options.showSubtracted:
        markers = mark_dia_sources(found) if found is not None else []
        display.show(f"{of}difference", difference, markers=markers, maskTransparency=options.maskTransparency)
    if options.showPixelResiduals:
        places = {"kernel stars": kernelSources, "control stars": controlSources, "DiaSources": found}
        display.histogram(f"{of}residuals", collect_residuals(difference, places))
    if found is None:
        return
    if options.showDiaSources:
        given = {"science": science, "template": template, "difference": difference}
        images = {name: image for name, image in given.items() if image is not None}
        display.stamps(f"{of}DiaSources", images, label_dia_sources(found, most=options.maxDiaSources))
    if options.showDipoles and found["is_dipole"].any():
        markers, segments = mark_dipoles(found)
        display.show(
            f"{of}dipoles",
            difference,
            markers=markers,
            segments=segments,
            maskTransparency=options.maskTransparency,
        )


def mark_dia_sources(sources: Catalog) -> list[Marker]:
    """Return a mark for each DiaSource that has a position: colour by sign, symbol by pixel flags."""
    at_center, anywhere = (
        _any_flag(sources, [f"pixel_flags_{flag}{part}" for flag in _MARKED_FLAGS]) for part in ("_center", "")
    )
    markers = []
    for i in np.flatnonzero(np.isfinite(sources["x"]) & np.isfinite(sources["y"])):
        symbol = "x" if at_center[i] else "+" if anywhere[i] else "o"
        colour = "red" if sources["is_negative"][i] else "yellow"
        markers.append(Marker(float(sources["x"][i]), float(sources["y"][i]), symbol, colour))
    return markers


def mark_dipoles(sources: Catalog) -> tuple[list[Marker], list[Segment]]:
    """Return marks on both lobes of each dipole, and the lines between them; dipoles without fitted lobes have none."""
    markers, segments = [], []
    for i in np.flatnonzero(sources["is_dipole"]):
        ends = [float(sources[f"dipole_{lobe}_{axis}"][i]) for lobe in ("negative", "positive") for axis in "xy"]
        if not np.isfinite(ends).all():
            continue
        segments.append(Segment(ends[0], ends[1], ends[2], ends[3], "cyan"))
        markers.append(Marker(ends[0], ends[1], "+", "red"))
        markers.append(Marker(ends[2], ends[3], "+", "yellow"))
    return markers, segments


def collect_residuals(difference: Exposure, places: dict[str, Catalog | None]) -> dict[str, FloatArray]:
    """Return the difference's pulls near sources, by kind, and on the sky: far from detections and all bad pixels.

    Near is within one FWHM of the PSF, three pixels where there is none.
    """
    usable = difference.masked_image.usable(plane_bits(*_BAD_PLANES))
    pulls = _compute_pulls(difference)
    radius = difference.psf.compute_fwhm() if difference.psf is not None else 3.0
    samples = {}
    for name, sources in places.items():
        if sources is not None and sources.n_rows:
            near = _near(difference.shape, x=sources["x"], y=sources["y"], radius=radius)
            samples[name] = pulls[near & usable]
    sky = usable & ((difference.mask & plane_bits("DETECTED", "DETECTED_NEGATIVE")) == 0)
    samples["sky"] = pulls[sky]
    return samples


def label_dia_sources(sources: Catalog, *, most: int) -> list[Marker]:
    """Return marks with labels, significance and kind, of the `most` most significant DiaSources, these first."""
    placed = np.flatnonzero(np.isfinite(sources["x"]) & np.isfinite(sources["y"]))
    order = placed[np.argsort(-np.nan_to_num(sources["snr"][placed], nan=-np.inf), kind="stable")][:most]
    markers = []
    for i in order:
        kind = " dipole" if sources["is_dipole"][i] else ""
        colour = "red" if sources["is_negative"][i] else "yellow"
        x, y = float(sources["x"][i]), float(sources["y"][i])
        markers.append(Marker(x, y, "", colour, f"{sources['snr'][i]:.1f}{kind}"))
    return markers


_MARKED_FLAGS = ("interpolated", "saturated", "cr")

_BAD_PLANES = ("BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE")


def _describe(exposure: Exposure) -> str:
    """Return "visit 12 detector 3 " as far as it is known, so that pictures of many exposures have names of their own."""
    facts = (("visit", exposure.info.visit), ("detector", exposure.info.detector))
    return "".join(f"{name} {value} " for name, value in facts if value is not None)


def _any_flag(sources: Catalog, names: Sequence[str]) -> BoolArray:
    return np.any([sources[name] for name in names], axis=0)


def _compute_pulls(exposure: Exposure) -> FloatArray:
    """Return pixels over their standard errors; NaN where a pixel has none."""
    usable = exposure.masked_image.usable(0)
    pulls = np.full(exposure.shape, np.nan, dtype=np.float32)
    pulls[usable] = exposure.image[usable] / np.sqrt(exposure.variance[usable])
    return pulls


def _near(shape: tuple[int, int], *, x: FloatArray, y: FloatArray, radius: float) -> BoolArray:
    """Return which pixels are within `radius` of a point."""
    near = np.zeros(shape, dtype=np.bool_)
    whole = Box.from_shape(shape)
    for one_x, one_y in zip(x, y, strict=True):
        if not (np.isfinite(one_x) and np.isfinite(one_y)):
            continue
        box = Box.centered(x=float(one_x), y=float(one_y), size=2 * int(radius) + 3).intersection(whole)
        if box.area:
            v, u = np.mgrid[box.y_min : box.y_max, box.x_min : box.x_max]
            near[box.slices] |= np.hypot(u - one_x, v - one_y) <= radius
    return near
