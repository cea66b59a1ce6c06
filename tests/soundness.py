"""What a run may end in: a catalogue that can be trusted, or an error with a name that says what is wrong."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from alertprod.errors import AlertprodError
from alertprod.images.exposure import Exposure
from alertprod.measurement.catalog import Catalog

_MEASURED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("psf_flux_flag", ("psf_flux", "psf_ln_l", "psf_chi2", "psf_flux_area"), ("psf_flux_err",)),
    ("ap_flux_flag", ("ap_flux",), ("ap_flux_err",)),
    ("gaussian_flux_flag", ("gaussian_flux",), ("gaussian_flux_err",)),
    ("peak_likelihood_flux_flag", ("peak_likelihood_flux",), ("peak_likelihood_flux_err",)),
)
"""Flag, values and errors: what is not flagged is finite, and its errors are positive."""

_FORCED: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("forced_psf_flux_flag", ("science_flux", "forced_psf_flux_area"), ("science_flux_err",)),
    ("forced_template_psf_flux_flag", ("template_flux", "forced_template_psf_flux_area"), ("template_flux_err",)),
)

_DIPOLE = (
    ("dipole_mean_flux", "dipole_flux_diff", "dipole_chi2", "dipole_separation", "dipole_snr"),
    ("dipole_mean_flux_err", "dipole_flux_diff_err"),
)
_TRAIL = (
    ("trail_flux", "trail_x0", "trail_y0", "trail_x1", "trail_y1", "trail_chi2"),
    ("trail_flux_err",),
)
_NUMBERS_NOT_NEEDED = re.compile(r"\bno psf\b|band: |has no|needs? |without|nominal|does not overlap|NO_DATA")
"""Messages that name a thing that is not there, or two bands, have no number to tell."""


def list_defects(sources: Catalog, *, has_sky: bool, forced: bool = True) -> Iterator[str]:
    """Yield what is wrong with a catalogue of DiaSources, nothing where all is well.

    Parameters
    ----------
    has_sky
        The difference has world coordinates.
    forced
        Forced fluxes were measured.
    """
    for name in sources:
        if sources[name].dtype.kind == "f" and np.isinf(sources[name]).any():
            yield f"{name} is infinite"
    yield from _check(sources, np.full(sources.n_rows, True), ("x", "y"), ())
    yield from _check(sources, np.full(sources.n_rows, True), (), ("bbox_size", "local_photo_calib"))
    if has_sky:
        yield from _check(sources, ~sources["shape_flag"], ("ixx", "iyy", "ixy"), ())
        yield from _check(sources, np.full(sources.n_rows, True), ("ra_deg", "dec_deg", "local_wcs_cd_1_1"), ())
        if not (((sources["ra_deg"] >= 0) & (sources["ra_deg"] < 360)).all() and (abs(sources["dec_deg"]) <= 90).all()):
            yield "positions off the sky"
    fitted = ~(sources["centroid_flag"] | sources["sky_source"])
    yield from _check(sources, fitted, ("snr", "x_y_cov"), ("x_err", "y_err"))
    if has_sky:
        yield from _check(sources, fitted, ("ra_dec_cov_deg2",), ("ra_err_deg", "dec_err_deg"))
    for flag, values, errors in (*_MEASURED, *(_FORCED if forced else ())):
        yield from _check(sources, ~sources[flag], values, errors)
    yield from _check(sources, sources["is_dipole"], *_DIPOLE)
    yield from _check(sources, np.isfinite(sources["trail_flux"]) & ~sources["trail_flag"], *_TRAIL)
    if not (np.diff(sources["dia_source_id"]) > 0).all():
        yield "ids do not ascend"
    probabilities = sources["extendedness"][np.isfinite(sources["extendedness"])]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        yield "extendedness is not within 0 and 1"


def _check(sources: Catalog, rows: Any, values: tuple[str, ...], errors: tuple[str, ...]) -> Iterator[str]:
    for name in (*values, *errors):
        n_bad = int(np.count_nonzero(~np.isfinite(sources[name][rows])))
        if n_bad:
            yield f"{name} is not finite in {n_bad} unflagged rows"
    for name in errors:
        n_bad = int(np.count_nonzero(sources[name][rows] <= 0))
        if n_bad:
            yield f"{name} is not positive in {n_bad} unflagged rows"


def run_soundly(
    run: Callable[[], Catalog | None], inputs: Sequence[Exposure | Catalog | None], **told: bool
) -> Catalog | AlertprodError | None:
    """Run, and assert that what it ends in is sound and that nobody has changed the inputs.

    Parameters
    ----------
    run
        Returns the DiaSources, None where it was not to measure any.
    told
        As for `list_defects`.
    """
    before = snapshot(*inputs)
    end: Catalog | AlertprodError | None
    try:
        end = run()
    except AlertprodError as error:
        end = error
    assert snapshot(*inputs) == before
    if isinstance(end, AlertprodError):
        assert says_what_is_wrong(end), f"{type(end).__name__}: {end}"
    elif end is not None:
        assert not list(list_defects(end, **told))
    return end


def says_what_is_wrong(error: AlertprodError) -> bool:
    """Say whether an error's message carries its numbers, or names what is missing."""
    return bool(re.search(r"\d", str(error)) or _NUMBERS_NOT_NEEDED.search(str(error)))


def snapshot(*inputs: Exposure | Catalog | None) -> list[bytes]:
    """Return the bytes of every array of the inputs: equal ones mean that nobody has changed them."""
    found: list[bytes] = []
    for one in inputs:
        if isinstance(one, Exposure):
            found += [one.image.tobytes(), one.mask.tobytes(), one.variance.tobytes(), repr(one.info).encode()]
        elif one is not None:
            found += [
                one[name].tobytes() if one[name].dtype.kind != "O" else repr(one[name].tolist()).encode()
                for name in one
            ]
    return found
