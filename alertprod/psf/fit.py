"""A point spread function from an image's stars: an elliptical Moffat, and what it misses as images times polynomials.

The stars are found elsewhere. Their positions may be off by a pixel, some may be galaxies, some have
neighbours: positions and fluxes are fitted along, and what does not look like the rest is left out.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import BoolArray, FloatArray
from alertprod.psf._grid import GridModel
from alertprod.psf._profile import MoffatProfile, fit_profile
from alertprod.psf._stamps import Stamps
from alertprod.psf.psfex import PsfexPsf, polynomial_terms

MIN_STARS = 3
"""Fewer do not tell an odd one out."""

_STARS_PER_TERM = 8
"""Stars for each term of the polynomial before its degree is raised: noise in them shows everywhere in the image."""

_HALF_SIDE_FWHM = 3.5
"""Half side of the stamps over the FWHM: what lies beyond holds about 1 % of a Moffat's flux."""

_MAX_PIXELS = 400_000
"""Of all stamps together: beyond that fewer stars are taken, which bounds the time; wide PSFs have many pixels each."""

_ENOUGH_STARS = 60
"""But as many as this are taken however large the stamps."""

_ROUNDS = 3
"""Rounds of stars and model; positions move by less than 0.01 pixels in the last."""

_CLIP_SIGMA = 4.0
"""Stars whose chi or width lies further from the others' are left out."""

_LEAST_WIDTH_SCATTER = 0.015
"""Relative scatter of widths that is forgiven: stars of high signal-to-noise differ by colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPsf:
    """A fitted PSF and how well it fits.

    Parameters
    ----------
    psf
        The model; its polynomial's zero is the middle of the image.
    used
        Which of the given stars it rests on, shape ``(n,)``.
    x, y, flux
        Fitted positions (pixels) and fluxes (image units), shape ``(n,)``; NaN for stars that were not used.
    order
        Degree of the polynomial in the position.
    fwhm
        In the middle of the image, pixels.
    chi2
        Median over the stars used of their reduced chi-squared within one FWHM; about 1 where the model is right.
    """

    psf: PsfexPsf
    used: BoolArray
    x: FloatArray
    y: FloatArray
    flux: FloatArray
    order: int
    fwhm: float
    chi2: float

    @property
    def n_used(self) -> int:
        """Number of stars the model rests on."""
        return int(self.used.sum())


def fit_psf(
    image: FloatArray,
    variance: FloatArray,
    bad: BoolArray,
    *,
    x: FloatArray,
    y: FloatArray,
    fwhm_guess: float,
    snr: FloatArray | None = None,
    order: int | None = None,
    size: int | None = None,
    max_stars: int = 250,
    min_stars: int = MIN_STARS,
) -> FittedPsf:
    """Fit a spatially varying PSF.

    Parameters
    ----------
    image
        Shape ``(ny, nx)``; a constant sky under each star is fitted, a gradient should be gone.
    variance
        Of the pixels, same shape; values that are not positive and finite mean "no weight".
    bad
        True for pixels not to use, same shape; pixels that are not finite are not used either.
    x, y
        Positions of stars, shape ``(n,)``, good to a pixel.
    fwhm_guess
        FWHM of the stars in pixels, good to a factor of 1.5.
    snr
        Signal-to-noise ratios, shape ``(n,)``: the best stars are taken where there are more than `max_stars`. Without
        them, the first are.
    order
        Degree of the polynomial in x and y; by default, and at most, what the number of stars allows.
    size
        Side of the model's images in pixels, odd; by default 3.5 FWHM to each side.
    min_stars
        Usable stars needed.

    Returns
    -------
    FittedPsf
        The model and its diagnostics.

    Raises
    ------
    InsufficientPsfStars
        Raised if fewer than `min_stars` are usable, at the start or after rejection.
    ValueError
        Raised if shapes do not fit, or the width is not a positive number.

    Notes
    -----
    With stars i at positions p_i, the data are ``d_i = f_i S_i (B + sum_t phi_t(p_i) c_t) + b_i + noise``: S_i draws
    the model's samples on pixels (Lanczos-4, as PSFEx does), B is the elliptical Moffat that fits best, phi_t the
    polynomial's terms. The c_t minimise chi-squared plus ``sum (c_t / s)^2`` with the expected deviation s (so do
    few stars, and the space between samples that no star covers, leave B as it is), by
    conjugate gradients. Then each star's f_i, b_i and position follow by a linearised fit, and again.

    The model's centre is where its Gaussian-weighted first moment vanishes, at all positions.
    """
    if not (image.shape == variance.shape == bad.shape) or image.ndim != 2:
        msg = f"planes of shapes {image.shape}, {variance.shape}, {bad.shape}; one two-dimensional shape is needed"
        raise ValueError(msg)
    if not (np.isfinite(fwhm_guess) and fwhm_guess > 0):
        msg = f"FWHM is {fwhm_guess}; a positive number of pixels is needed"
        raise ValueError(msg)
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    ranks = np.arange(x.size) if snr is None else np.argsort(-np.asarray(snr), kind="stable")
    for attempt in range(3):
        half = size // 2 if size is not None else int(np.ceil(_HALF_SIDE_FWHM * fwhm_guess))
        wanted = min(max_stars, max(_ENOUGH_STARS, _MAX_PIXELS // (2 * half + 1) ** 2))
        stamps = Stamps.cut(image, variance, bad, x=x, y=y, half=half, core=fwhm_guess, ranks=ranks, max_stars=wanted)
        stamps.require(min_stars)
        profile = fit_profile(stamps, fwhm=fwhm_guess, min_stars=min_stars)
        if attempt == 2 or abs(np.log(profile.fwhm / fwhm_guess)) < 0.2:
            break
        fwhm_guess = profile.fwhm
    allowed = _allowed_order(int(stamps.use.sum()))
    order = allowed if order is None else min(order, allowed)
    model = GridModel.from_profile(profile, half=half, shape=image.shape, order=order)
    _judge_widths(stamps, profile, model, min_stars)
    for _ in range(_ROUNDS):
        model = model.improved(stamps)
        model.place(stamps)
        _judge_fits(stamps, min_stars)
    model = model.improved(stamps)
    chi2 = model.place(stamps)
    return _report(stamps, model, chi2, n_given=x.size)


def _allowed_order(n_stars: int) -> int:
    """Return the highest degree up to 2 that the number of stars supports."""
    return max(
        degree for degree in (0, 1, 2) if degree == 0 or n_stars >= _STARS_PER_TERM * len(polynomial_terms(degree))
    )


def _report(stamps: Stamps, model: "GridModel", chi2: FloatArray, *, n_given: int) -> FittedPsf:
    psf = PsfexPsf(
        model.components,
        degree=model.order,
        zero=model.zero,
        scale=model.scale,
        sampling=model.sampling,
        size=2 * stamps.half + 1,
    )
    used = np.zeros(n_given, dtype=bool)
    used[stamps.index[stamps.use]] = True
    values = {name: np.full(n_given, np.nan) for name in ("x", "y", "flux")}
    for name, array in values.items():
        array[stamps.index[stamps.use]] = getattr(stamps, name)[stamps.use]
    return FittedPsf(
        psf=psf,
        used=used,
        order=model.order,
        fwhm=psf.compute_fwhm(),
        chi2=float(np.median(chi2[stamps.use])),
        **values,
    )


def _judge_widths(stamps: Stamps, profile: MoffatProfile, model: GridModel, min_stars: int) -> None:
    """Reject stars in place whose width is not that of their surroundings: galaxies, blends, cosmic rays."""
    widths, errors = profile.measure_widths(stamps)
    terms = model.terms(stamps)
    keep = stamps.use & np.isfinite(widths) & np.isfinite(errors)
    for _ in range(10):
        stamps.use = keep
        stamps.require(min_stars)
        # The median first: a straight line through outliers would keep them.
        n_terms = terms.shape[1] if keep.sum() >= _STARS_PER_TERM * terms.shape[1] else 1
        center = _fit_robustly(terms[:, :n_terms], widths, keep)
        deviation = np.abs(widths - center)
        scatter = max(1.4826 * float(np.median(deviation[keep])), _LEAST_WIDTH_SCATTER)
        new = keep & (deviation < _CLIP_SIGMA * np.hypot(scatter, errors))
        if (new == keep).all():
            break
        keep = new


def _fit_robustly(terms: FloatArray, values: FloatArray, keep: BoolArray) -> FloatArray:
    """Return a polynomial through the kept values at all places, by absolute deviations (reweighted squares)."""
    weights = keep.astype(float)
    fitted = np.full(values.shape, float(np.median(values[keep])))
    for _ in range(10):
        root = np.sqrt(weights)[:, None]
        coefficients = np.linalg.lstsq(root * terms, root[:, 0] * np.where(keep, values, 0.0), rcond=None)[0]
        fitted = terms @ coefficients
        deviation = np.abs(values - fitted)
        floor = max(0.1 * float(np.median(deviation[keep])), 1e-6)
        weights = np.where(keep, 1.0 / np.maximum(deviation, floor), 0.0)
    return fitted


def _judge_fits(stamps: Stamps, min_stars: int) -> None:
    """Reject stars in place whose chi is far above the others'."""
    chi = stamps.chi[stamps.use]
    center = float(np.median(chi))
    scatter = max(1.4826 * float(np.median(np.abs(chi - center))), 0.1 * center)
    stamps.use = stamps.use & (stamps.chi < center + _CLIP_SIGMA * scatter)
    stamps.require(min_stars)
