"""How a PSF is stored with an exposure: header cards where it is analytic, else the table PSF_DATA.

Cards: ``PSFTYPE`` (GAUSSIAN or MOFFAT), ``PSFFWHM`` (pixels), ``PSFBETA`` (Moffat), ``PSFELL``
(1 - b/a), ``PSFPA`` (degrees from +x towards +y), ``PSFSIZE`` (pixels, odd). A PSF of any other kind is
sampled over the detector and stored as a polynomial, which is an approximation.
"""

import struct

import numpy as np
from astropy.io import fits

from alertprod._typing import FloatArray
from alertprod.psf.analytic import EllipticalPsf, GaussianPsf, MoffatPsf
from alertprod.psf.model import PointSpreadFunction
from alertprod.psf.psfex import PsfexPsf, evaluate_terms

_GRID = 6
"""Positions along each axis at which a PSF of another kind is sampled; enough for the degree below, twice over."""

_DEGREE = 2
"""Of the polynomial fitted to these samples: tile borders of a mosaic are steps that no degree follows."""

_FINE_SAMPLING_FWHM = 3.5
"""Below this FWHM (pixels) the model is stored in half-pixel steps: Lanczos-4 needs two samples per sigma or so."""


def psf_to_hdus(psf: PointSpreadFunction) -> tuple[fits.Header, list[fits.BinTableHDU]]:
    """Describe a PSF for a FITS file.

    Returns
    -------
    header
        Cards for the image's header; empty where the PSF went to a table.
    hdus
        None or one table ``PSF_DATA``.

    Notes
    -----
    A PSF that is neither analytic nor a `PsfexPsf` is approximated by `compute_polynomial_psf`; between whole
    pixels Lanczos-4 then reproduces it to about 0.3 % of its peak.
    """
    header = fits.Header()
    if not isinstance(psf, GaussianPsf | MoffatPsf):
        table = psf if isinstance(psf, PsfexPsf) else compute_polynomial_psf(psf)
        return header, [table.to_hdu()]
    header["PSFTYPE"] = ("MOFFAT" if isinstance(psf, MoffatPsf) else "GAUSSIAN", "profile of the PSF")
    header["PSFFWHM"] = (psf.fwhm, "[pixel] FWHM, geometric mean of the axes")
    if isinstance(psf, MoffatPsf):
        header["PSFBETA"] = (psf.beta, "Moffat exponent")
    header["PSFELL"] = (psf.ellipticity, "1 - b/a")
    header["PSFPA"] = (psf.position_angle_deg, "[deg] major axis, from +x towards +y")
    header["PSFSIZE"] = (psf.size, "[pixel] side of PSF images")
    return header, []


def psf_from_hdus(hdul: fits.HDUList, header: fits.Header) -> PointSpreadFunction | None:
    """Read the PSF of an exposure.

    Parameters
    ----------
    hdul
        The file's HDUs; the first named PSF_DATA is taken.
    header
        Cards of the image, asked where there is no such table.

    Returns
    -------
    PointSpreadFunction or None
        None where the file says nothing of a PSF.

    Raises
    ------
    ValueError
        Raised if the file says something that cannot be used.
    """
    try:
        for hdu in hdul:
            if hdu.name == "PSF_DATA":
                if not isinstance(hdu, fits.BinTableHDU):
                    msg = "PSF_DATA is not a binary table"
                    raise ValueError(msg)
                return PsfexPsf.from_hdu(hdu)
    except (OSError, EOFError, LookupError, TypeError, AttributeError, struct.error, fits.VerifyError) as error:
        # What astropy raises where a table is truncated or its cards contradict one another.
        msg = f"PSF_DATA cannot be read: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    return _from_cards(header)


def _from_cards(header: fits.Header) -> EllipticalPsf | None:
    kind = header.get("PSFTYPE")
    if kind is None:
        return None
    numbers: dict[str, float] = {}
    for key, default in (
        ("PSFFWHM", None),
        ("PSFBETA", 3.0),
        ("PSFELL", 0.0),
        ("PSFPA", 0.0),
        ("PSFSIZE", 0),
        ("NAXIS1", 1),
        ("NAXIS2", 1),
    ):
        value = header.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"card {key} is {value!r}; a number is needed"
            raise ValueError(msg)  # noqa: TRY004  a card of the wrong type is a wrong value of the file
        numbers[key] = value
    if numbers["PSFSIZE"] != int(numbers["PSFSIZE"]):
        msg = f"card PSFSIZE is {numbers['PSFSIZE']}; a whole number is needed"
        raise ValueError(msg)
    size = int(numbers["PSFSIZE"]) or None
    middle = ((numbers["NAXIS1"] - 1) / 2, (numbers["NAXIS2"] - 1) / 2)
    match str(kind).strip().upper():
        case "GAUSSIAN":
            return GaussianPsf(
                fwhm=numbers["PSFFWHM"],
                ellipticity=numbers["PSFELL"],
                position_angle_deg=numbers["PSFPA"],
                size=size,
                average_position=middle,
            )
        case "MOFFAT":
            return MoffatPsf(
                fwhm=numbers["PSFFWHM"],
                beta=numbers["PSFBETA"],
                ellipticity=numbers["PSFELL"],
                position_angle_deg=numbers["PSFPA"],
                size=size,
                average_position=middle,
            )
        case _:
            msg = f"card PSFTYPE is {kind!r}; GAUSSIAN or MOFFAT is needed"
            raise ValueError(msg)


def compute_polynomial_psf(psf: PointSpreadFunction, *, degree: int = _DEGREE) -> PsfexPsf:
    """Approximate any PSF by images times polynomials over its detector.

    Parameters
    ----------
    psf
        Its `average_position` is taken for the middle of the detector.

    Notes
    -----
    Kernel images on a grid of positions, in half-pixel steps where the PSF is narrow, then least
    squares for each sample.
    """
    x_mid, y_mid = psf.average_position
    scale = (max(abs(x_mid), 1.0), max(abs(y_mid), 1.0))
    fine = 2 if psf.compute_fwhm() < _FINE_SAMPLING_FWHM else 1
    places = np.linspace(-1.0, 1.0, _GRID)
    v, u = (axis.ravel() for axis in np.meshgrid(places, places, indexing="ij"))
    models = [
        _sample(psf, x=x_mid + a * scale[0], y=y_mid + b * scale[1], fine=fine) for a, b in zip(u, v, strict=True)
    ]
    samples = np.stack(models)
    terms = evaluate_terms(degree, u=u, v=v)
    coefficients = np.linalg.lstsq(terms, samples.reshape(len(u), -1), rcond=None)[0]
    return PsfexPsf(
        coefficients.reshape(terms.shape[1], *samples.shape[1:]),
        degree=degree,
        zero=(x_mid, y_mid),
        scale=scale,
        sampling=1.0 / fine,
        size=psf.size,
    )


def _sample(psf: PointSpreadFunction, *, x: float, y: float, fine: int) -> FloatArray:
    """Return the PSF at (x, y) in steps of ``1 / fine`` pixels, an odd square centred on its middle sample."""
    if fine == 1:
        return psf.compute_kernel_image(x=x, y=y)
    size = 2 * psf.size - 1
    model = np.zeros((size, size))
    # Drawn half a pixel to the left, the PSF shows on whole pixels its samples half a pixel to the right.
    for row in (0, 1):
        for column in (0, 1):
            image = psf.compute_offset_image(x=x, y=y, dx=-0.5 * column, dy=-0.5 * row)
            model[row::2, column::2] = image[: psf.size - row, : psf.size - column]
    return model
