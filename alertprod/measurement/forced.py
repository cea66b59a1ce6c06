"""Forced photometry of DiaSources: point-source fluxes on science and template image at the centroids."""

from dataclasses import dataclass

from alertprod._typing import FloatArray
from alertprod.images.exposure import Exposure
from alertprod.images.mask import plane_bits
from alertprod.measurement.catalog import Catalog
from alertprod.measurement.flux import measure_psf_flux
from alertprod.psf.model import PointSpreadFunction


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedMeasurementConfig:
    """How fluxes are measured at given places."""

    excluded_planes: tuple[str, ...] = ("NO_DATA", "BAD", "SAT", "CR", "EDGE")
    """Pixels of these planes have no weight in a fit."""

    def __post_init__(self) -> None:
        plane_bits(*self.excluded_planes)


def choose_template_psf(
    science: Exposure | None, template: Exposure | None, template_psf: PointSpreadFunction | None
) -> PointSpreadFunction | None:
    """Return the PSF of the template: its own, failing that the one given, failing that the science image's.

    The last is right for a template that was convolved to match.
    """
    if template is not None and template.psf is not None:
        return template.psf
    if template_psf is not None:
        return template_psf
    return science.psf if science is not None else None


def fill_forced_fluxes(
    catalog: Catalog,
    science: Exposure | None,
    template: Exposure | None,
    template_psf: PointSpreadFunction | None,
    *,
    x: FloatArray,
    y: FloatArray,
    bad_planes: int,
) -> None:
    """Measure fluxes at given positions and fill the forced columns, nJy.

    Parameters
    ----------
    catalog
        Its columns ``science_flux``, ``template_flux`` and what belongs to them are filled, in place.
    science, template
        On the grid of the positions; without one (or without its PSF) its fluxes stay NaN and are flagged.
    template_psf
        The PSF that `template` is measured with, see `choose_template_psf`.
    x, y
        Positions, shape ``(n,)``, pixels.
    bad_planes
        Mask bits of pixels to leave out.
    """
    for exposure, psf, flux, other in (
        (science, science.psf if science is not None else None, "science_flux", "forced_psf_flux"),
        (template, template_psf, "template_flux", "forced_template_psf_flux"),
    ):
        if exposure is None or psf is None:
            catalog[f"{other}_flag"] = True
            continue
        njy = exposure.photo_calib.njy_per_count
        forced = measure_psf_flux(
            exposure.masked_image, psf, x=x, y=y, bad_planes=bad_planes, noise=exposure.correlated_noise
        )
        catalog[flux], catalog[f"{flux}_err"] = forced.flux * njy, forced.flux_err * njy
        catalog[f"{other}_area"] = forced.area
        catalog[f"{other}_flag"], catalog[f"{other}_flag_edge"] = forced.flag, forced.flag_edge
        catalog[f"{other}_flag_no_good_pixels"] = forced.flag_no_good_pixels
