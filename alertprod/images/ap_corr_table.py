"""Aperture corrections in a FITS file: the binary table APCORR, a row for each field.

Columns: ``name`` of the flux, ``quantity`` (factor or error), ``x_min y_min x_max y_max`` of the half-open box, ``n_x n_y``
and ``coefficients``, the Chebyshev coefficients row by row, as `ChebyshevField` has them.
"""

import numpy as np
from astropy.io import fits

from alertprod.geometry.box import Box
from alertprod.images.ap_corr import ApCorrMap, ApertureCorrection, ChebyshevField

EXTENSION = "APCORR"

_VERSION_CARD, _VERSION = "APCVERS", 1
"""What tells a table of ours from another's of that name, and by which rules it is written."""

_NUMBERS = ("x_min", "y_min", "x_max", "y_max", "n_x", "n_y")
_FACTOR, _ERROR = "factor", "error"


def ap_corr_to_hdu(ap_corr_map: ApCorrMap) -> fits.BinTableHDU:
    """Return the table of aperture corrections; without rows where there are none."""
    rows = [
        (name, quantity, field)
        for name, correction in ap_corr_map.items()
        for quantity, field in ((_FACTOR, correction.factor), (_ERROR, correction.error))
        if field is not None
    ]
    boxes = [field.box for _, _, field in rows]
    numbers = {
        **{number: [getattr(box, number) for box in boxes] for number in _NUMBERS[:4]},
        "n_x": [field.coefficients.shape[1] for _, _, field in rows],
        "n_y": [field.coefficients.shape[0] for _, _, field in rows],
    }
    coefficients = np.empty(len(rows), dtype=object)
    for i, (_, _, field) in enumerate(rows):
        coefficients[i] = np.asarray(field.coefficients, dtype=np.float64).ravel()
    width = max((len(name) for name, _, _ in rows), default=1)
    columns = [
        fits.Column("name", f"{width}A", array=[name for name, _, _ in rows]),
        fits.Column("quantity", "8A", array=[quantity for _, quantity, _ in rows]),
        *(fits.Column(name, "J", array=np.array(values, dtype=np.int32)) for name, values in numbers.items()),
        fits.Column("coefficients", "PD()", array=coefficients),
    ]
    hdu = fits.BinTableHDU.from_columns(columns, name=EXTENSION)
    hdu.header[_VERSION_CARD] = (_VERSION, "aperture corrections of alertprod")
    return hdu


def ap_corr_from_hdus(hdul: fits.HDUList | list[fits.ImageHDU | fits.BinTableHDU]) -> ApCorrMap | None:
    """Read the aperture corrections among a file's HDUs; None where there is no table of them.

    Raises
    ------
    ValueError
        Raised if the table is of another version, or says what no field can be.
    """
    for hdu in hdul:
        if hdu.name == EXTENSION and _VERSION_CARD in hdu.header:
            return _read(hdu)
    return None


def _read(hdu: fits.BinTableHDU) -> ApCorrMap:
    if hdu.header[_VERSION_CARD] != _VERSION:
        msg = f"{_VERSION_CARD} is {hdu.header[_VERSION_CARD]}; {_VERSION} is known"
        raise ValueError(msg)
    fields: dict[str, dict[str, ChebyshevField]] = {}
    for row in hdu.data:
        x_min, y_min, x_max, y_max, n_x, n_y = (int(row[number]) for number in _NUMBERS)
        name, quantity = str(row["name"]).strip(), str(row["quantity"]).strip()
        values = np.array(row["coefficients"], dtype=np.float64)
        if values.size != n_x * n_y or quantity not in (_FACTOR, _ERROR):
            msg = f"{name}: {values.size} coefficients for {n_y} x {n_x} as {quantity!r}"
            raise ValueError(msg)
        box = Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)
        fields.setdefault(name, {})[quantity] = ChebyshevField(box, values.reshape(n_y, n_x))
    without = [name for name, found in fields.items() if _FACTOR not in found]
    if without:
        msg = f"{', '.join(without)}: an error without a factor"
        raise ValueError(msg)
    return {name: ApertureCorrection(found[_FACTOR], found.get(_ERROR)) for name, found in fields.items()}
