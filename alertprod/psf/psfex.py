"""PSF models as images times polynomials of the position: the form of PSFEx's ``.psf`` tables.

The model is sampled in steps of `sampling` image pixels and drawn on pixels by Lanczos-4
interpolation. Positions are 0-based here; in the table they are FITS positions, one more.
"""

import numpy as np
from astropy.io import fits

from alertprod._typing import FloatArray
from alertprod.psf._lanczos import sampling_matrices
from alertprod.psf.model import PointSpreadFunction

_MAX_SAMPLES = 1024
"""Side of a model image; a table that declares more is broken, and its memory is not asked for."""

_MAX_TERMS = 136
"""Terms of a polynomial of degree 15 in two variables: far beyond what any PSF is fitted with."""


def polynomial_terms(degree: int | tuple[int, int]) -> list[tuple[int, int]]:
    """Return the exponents ``(of x, of y)`` of each term, in PSFEx's order: x runs fastest.

    Parameters
    ----------
    degree
        One number limits the total degree; a pair limits x and y separately.
    """
    if isinstance(degree, tuple):
        return [(i, j) for j in range(degree[1] + 1) for i in range(degree[0] + 1)]
    return [(i, j) for j in range(degree + 1) for i in range(degree + 1 - j)]


def evaluate_terms(degree: int | tuple[int, int], *, u: FloatArray | float, v: FloatArray | float) -> FloatArray:
    """Return the terms' values at scaled positions, shape ``(..., n_terms)``."""
    u, v = np.asarray(u, dtype=float), np.asarray(v, dtype=float)
    return np.stack([u**i * v**j for i, j in polynomial_terms(degree)], axis=-1)


class PsfexPsf(PointSpreadFunction):
    """A PSF whose samples are polynomials of the position.

    Parameters
    ----------
    components
        Shape ``(n_terms, n, n)``: one image per polynomial term, in the order of `polynomial_terms`;
        centred on sample ``n // 2`` of each axis.
    degree
        Of the polynomial: one total degree, or a pair for x and y.
    zero, scale
        The polynomial's variables are ``(x - zero[0]) / scale[0]`` and likewise in y; pixels, 0-based.
    sampling
        Image pixels between neighbouring samples; below 1 the model is finer than the image.
    size
        Side of the drawn images, odd; by default as large as the model.

    Raises
    ------
    ValueError
        Raised if the shapes do not fit one another, a number is not finite, or the model has no flux.

    Notes
    -----
    Drawn images are normalised to sum 1 at each position, so components need no normalisation of
    their own. Bertin (2011), ASP Conf. 442, 435.
    """

    def __init__(
        self,
        components: FloatArray,
        *,
        degree: int | tuple[int, int] = 0,
        zero: tuple[float, float] = (0.0, 0.0),
        scale: tuple[float, float] = (1.0, 1.0),
        sampling: float = 1.0,
        size: int | None = None,
    ) -> None:
        components = np.array(components, dtype=np.float64)
        if components.ndim != 3 or components.shape[1] != components.shape[2] or components.shape[1] < 1:
            msg = f"PSF components have shape {components.shape}; (terms, n, n) is needed"
            raise ValueError(msg)
        n_terms = len(polynomial_terms(degree))
        if components.shape[0] != n_terms:
            msg = f"{components.shape[0]} PSF components, but a polynomial of degree {degree} has {n_terms} terms"
            raise ValueError(msg)
        if not np.isfinite(components).all():
            msg = "PSF components have values that are not finite"
            raise ValueError(msg)
        if not (np.isfinite(zero).all() and np.isfinite(scale).all() and all(scale)):
            msg = f"the polynomial's zero {zero} and scale {scale} must be finite, the scale not 0"
            raise ValueError(msg)
        if not (np.isfinite(sampling) and sampling > 0):
            msg = f"PSF sampling is {sampling}; a positive number of pixels is needed"
            raise ValueError(msg)
        if size is None:
            size = 2 * int((components.shape[1] - 1) // 2 * sampling + 1e-6) + 1
        if size < 1 or size % 2 == 0:
            msg = f"size is {size}; an odd number is needed"
            raise ValueError(msg)
        components.flags.writeable = False
        self._components = components
        self._degree = degree
        self._zero = (float(zero[0]), float(zero[1]))
        self._scale = (float(scale[0]), float(scale[1]))
        self._sampling = float(sampling)
        self._size = int(size)
        self.compute_kernel_image(x=self._zero[0], y=self._zero[1])

    @property
    def size(self) -> int:
        """Side of the images in pixels, odd."""
        return self._size

    @property
    def average_position(self) -> tuple[float, float]:
        """The polynomial's zero, which is the middle of the stars that made it."""
        return self._zero

    @property
    def components(self) -> FloatArray:
        """The images of the polynomial's terms, shape ``(n_terms, n, n)``, read-only."""
        return self._components

    @property
    def degree(self) -> int | tuple[int, int]:
        """Degree of the polynomial."""
        return self._degree

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels that one unit of the polynomial's variables stands for."""
        return self._scale

    @property
    def sampling(self) -> float:
        """Image pixels between neighbouring samples."""
        return self._sampling

    def compute_model(self, *, x: float, y: float) -> FloatArray:
        """Return the model's samples at (x, y), shape ``(n, n)``, not normalised."""
        terms = evaluate_terms(
            self._degree, u=(x - self._zero[0]) / self._scale[0], v=(y - self._zero[1]) / self._scale[1]
        )
        return np.tensordot(terms, self._components, axes=1)

    def compute_offset_image(self, *, x: float, y: float, dx: float, dy: float) -> FloatArray:
        """Return the PSF at (x, y) with its centre `dx`, `dy` pixels off the middle pixel: ``(size, size)``, sum 1.

        Raises
        ------
        ValueError
            Raised if the polynomial gives no flux at (x, y): far outside the stars that made it.
        """
        n = self._components.shape[1]
        columns, rows = sampling_matrices(n_samples=n, size=self._size, step=self._sampling, offsets=np.array([dx, dy]))
        image = rows @ self.compute_model(x=x, y=y) @ columns.T
        total = image.sum()
        if not total > 0:
            msg = f"the PSF model sums to {total:.3g} at x {x:.1f}, y {y:.1f}"
            raise ValueError(msg)
        return image / total

    def compute_offset_images(self, *, x: FloatArray, y: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        """Return many PSFs at once; see `PointSpreadFunction`."""
        images = np.full((len(x), self._size, self._size), np.nan)
        known = np.isfinite(x) & np.isfinite(y)
        terms = evaluate_terms(
            self._degree, u=(x[known] - self._zero[0]) / self._scale[0], v=(y[known] - self._zero[1]) / self._scale[1]
        )
        columns, rows = (
            sampling_matrices(
                n_samples=self._components.shape[1], size=self._size, step=self._sampling, offsets=offsets[known]
            )
            for offsets in (dx, dy)
        )
        drawn = rows @ np.tensordot(terms, self._components, axes=1) @ columns.transpose(0, 2, 1)
        totals = drawn.sum(axis=(1, 2), keepdims=True)
        images[known] = np.divide(drawn, totals, out=np.full_like(drawn, np.nan), where=totals > 0)
        return images

    @classmethod
    def from_hdu(cls, hdu: fits.BinTableHDU) -> "PsfexPsf":
        """Read PSFEx's binary table.

        Raises
        ------
        ValueError
            Raised if cards or samples are missing or make no sense, or if the PSF depends on
            something else than the position.
        """
        header = hdu.header
        degree, zero, scale = _read_polynomial(header)
        n_x, n_y = _read_number(header, "PSFAXIS1", 1), _read_number(header, "PSFAXIS2", 1)
        if n_x != n_y or not (1 <= n_x <= _MAX_SAMPLES) or n_x != int(n_x):
            msg = f"PSFAXIS1 is {n_x:g} and PSFAXIS2 {n_y:g}; a square of at most {_MAX_SAMPLES} samples is needed"
            raise ValueError(msg)
        n = int(n_x)
        if hdu.columns is None or "PSF_MASK" not in hdu.columns.names or header.get("NAXIS2") != 1:
            msg = "no single row with a column PSF_MASK"
            raise ValueError(msg)
        # The row's declared length is checked before the samples are asked for.
        n_terms = len(polynomial_terms(degree))
        if int(header.get("NAXIS1", 0)) > 16 * max(n_terms, 1) * n * n + 65536:
            msg = f"the row of PSF_DATA has {header['NAXIS1']} bytes, far more than {n_terms} images of {n}x{n} need"
            raise ValueError(msg)
        samples = np.asarray(hdu.data["PSF_MASK"][0], dtype=np.float64)
        if samples.size != n_terms * n * n:
            msg = f"PSF_MASK has {samples.size} samples, {n_terms} images of {n}x{n} are needed"
            raise ValueError(msg)
        return cls(
            samples.reshape(n_terms, n, n),
            degree=degree,
            zero=zero,
            scale=scale,
            sampling=_read_number(header, "PSF_SAMP", 1.0) or 1.0,
        )

    def to_hdu(self) -> fits.BinTableHDU:
        """Return the table ``PSF_DATA`` as PSFEx writes it; samples become float32."""
        n_terms, n = self._components.shape[:2]
        samples = self._components.astype(np.float32)[None]
        column = fits.Column(name="PSF_MASK", format=f"{n_terms * n * n}E", dim=f"({n},{n},{n_terms})", array=samples)
        hdu = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
        degrees = self._degree if isinstance(self._degree, tuple) else (self._degree,)
        header = hdu.header
        header["POLNAXIS"] = (2, "number of position variables")
        for axis, name in enumerate(("X_IMAGE", "Y_IMAGE")):
            header[f"POLGRP{axis + 1}"] = (min(axis, len(degrees) - 1) + 1, "group of this variable")
            header[f"POLNAME{axis + 1}"] = (name, "variable, FITS pixel position")
            header[f"POLZERO{axis + 1}"] = (self._zero[axis] + 1.0, "offset of this variable")
            header[f"POLSCAL{axis + 1}"] = (self._scale[axis], "scale of this variable")
        header["POLNGRP"] = (len(degrees), "number of groups")
        for group, group_degree in enumerate(degrees):
            header[f"POLDEG{group + 1}"] = (group_degree, "degree of this group")
        header["PSF_FWHM"] = (self.compute_fwhm(), "FWHM of the PSF in pixels")
        header["PSF_SAMP"] = (self._sampling, "pixels between samples")
        header["PSFNAXIS"] = (3, "dimensions of the PSF data")
        for axis, length in enumerate((n, n, n_terms)):
            header[f"PSFAXIS{axis + 1}"] = (length, "length of this dimension")
        return hdu


def _read_number(header: fits.Header, key: str, default: float | None = None) -> float:
    value = header.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        msg = f"card {key} is {value!r}; a number is needed"
        raise ValueError(msg)
    return value


def _read_polynomial(
    header: fits.Header,
) -> tuple[int | tuple[int, int], tuple[float, float], tuple[float, float]]:
    """Return degree, zero and scale (x, y; 0-based pixels) from the ``POL*`` cards."""
    n_axes = int(_read_number(header, "POLNAXIS", 0))
    if not 0 <= n_axes <= 2:
        msg = f"POLNAXIS is {n_axes}; PSFs of up to two variables, the position, are read"
        raise ValueError(msg)
    zero, scale, groups = [0.0, 0.0], [1.0, 1.0], [0, 0]
    for axis in range(1, n_axes + 1):
        name = str(header.get(f"POLNAME{axis}", "XY"[axis - 1])).upper()
        place = {"X": 0, "Y": 1}.get(name[:1])
        if place is None or groups[place] or (n_axes == 2 and place != axis - 1):
            msg = f"POLNAME{axis} is {name!r}; x and y positions, in this order, are read"
            raise ValueError(msg)
        groups[place] = int(_read_number(header, f"POLGRP{axis}", 1))
        zero[place] = _read_number(header, f"POLZERO{axis}") - 1.0
        scale[place] = _read_number(header, f"POLSCAL{axis}")
    degrees = [0 if group == 0 else int(_read_number(header, f"POLDEG{group}")) for group in groups]
    degree = degrees[0] if groups[0] == groups[1] != 0 else (degrees[0], degrees[1])
    if min(degrees) < 0 or max(degrees) >= _MAX_TERMS or len(polynomial_terms(degree)) > _MAX_TERMS:
        msg = f"the polynomial's degree is {degree}"
        raise ValueError(msg)
    return degree, (zero[0], zero[1]), (scale[0], scale[1])
