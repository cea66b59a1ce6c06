"""Stamps of stars with what is known of each star so far, and the small linear fits all of them need."""

from dataclasses import dataclass, fields

import numpy as np

from alertprod._typing import BoolArray, FloatArray, IntArray
from alertprod.errors import InsufficientPsfStars

_MIN_GOOD_FRACTION = 0.6
"""Of a stamp's pixels; stars with fewer say too little of the wings."""

_CORE_RADIUS = 0.75
"""Over the FWHM: a bad pixel within this radius excludes the star."""

_MAX_MOVE = 0.5
"""Pixels a position may change in one linearised fit."""

_MODEL_ERROR = 0.01
"""Relative error granted to the model when pixels are weighted, so that the brightest stars do not decide alone."""

_CLIP = (5.0, 0.1, 2e-3)
"""A pixel is left out beyond so many sigma, where the model is granted errors relative to it and to its peak: it
belongs to a neighbour."""


@dataclass(slots=True, kw_only=True)
class Stamps:
    """Stars cut from an image; arrays have the star as first axis. Changed in place while the PSF is fitted.

    Parameters
    ----------
    index
        Which of the given stars each is.
    data, variance, good
        Pixels, shape ``(n, size, size)``; `data` is 0 and `variance` 1 where a pixel is not good.
    column, row
        Position of the middle pixel.
    x, y, flux, sky
        Present estimates.
    use
        False for stars that were rejected.
    chi
        Root of the reduced chi-squared within one FWHM, the model's own error granted.
    """

    index: IntArray
    data: FloatArray
    variance: FloatArray
    good: BoolArray
    usable: BoolArray
    column: IntArray
    row: IntArray
    x: FloatArray
    y: FloatArray
    flux: FloatArray
    sky: FloatArray
    use: BoolArray
    chi: FloatArray
    half: int

    @classmethod
    def cut(
        cls,
        image: FloatArray,
        variance: FloatArray,
        bad: BoolArray,
        *,
        x: FloatArray,
        y: FloatArray,
        half: int,
        core: float,
        ranks: IntArray,
        max_stars: int,
    ) -> "Stamps":
        """Cut the best usable stars; `core` is the FWHM, `ranks` the stars' indices, best first."""
        ny, nx = image.shape
        side = 2 * half + 1
        steps = np.arange(-half, half + 1)
        in_core = np.hypot(steps[:, None], steps[None, :]) <= max(1.0, _CORE_RADIUS * core)
        chosen: list[int] = []
        data, noise, good = [], [], []
        for star in ranks:
            if len(chosen) == max_stars:
                break
            if not (-0.5 <= x[star] < nx - 0.5 and -0.5 <= y[star] < ny - 0.5):
                continue
            row, column = int(np.floor(y[star] + 0.5)), int(np.floor(x[star] + 0.5))
            rows = slice(max(0, row - half), min(ny, row + half + 1))
            columns = slice(max(0, column - half), min(nx, column + half + 1))
            inner = (
                slice(rows.start - row + half, rows.stop - row + half),
                slice(columns.start - column + half, columns.stop - column + half),
            )
            pixels, sigma2 = np.zeros((side, side)), np.ones((side, side))
            fine = np.zeros((side, side), dtype=bool)
            here, there = image[rows, columns], variance[rows, columns]
            fine[inner] = ~bad[rows, columns] & np.isfinite(here) & np.isfinite(there) & (there > 0)
            pixels[inner] = np.where(fine[inner], here, 0.0)
            sigma2[inner] = np.where(fine[inner], there, 1.0)
            if fine[in_core].all() and fine.mean() >= _MIN_GOOD_FRACTION:
                chosen.append(int(star))
                data.append(pixels)
                noise.append(sigma2)
                good.append(fine)
        index = np.array(chosen, dtype=int)
        n = index.size
        usable = np.array(good, dtype=bool).reshape(n, side, side)
        x_start, y_start = x[index], y[index]
        return cls(
            index=index,
            data=np.array(data).reshape(n, side, side),
            variance=np.array(noise).reshape(n, side, side),
            good=usable.copy(),
            usable=usable,
            column=np.floor(x_start + 0.5).astype(int),
            row=np.floor(y_start + 0.5).astype(int),
            x=x_start.copy(),
            y=y_start.copy(),
            flux=np.zeros(n),
            sky=np.zeros(n),
            use=np.ones(n, dtype=bool),
            chi=np.ones(n),
            half=half,
        )

    @property
    def offsets(self) -> tuple[FloatArray, FloatArray]:
        """Positions relative to the middle pixels, (x, y)."""
        return self.x - self.column, self.y - self.row

    def require(self, min_stars: int) -> None:
        """Raise `InsufficientPsfStars` where fewer than `min_stars` are in use."""
        n = int(self.use.sum())
        if n < min_stars:
            raise InsufficientPsfStars(n, min_stars)

    def select(self, rows: IntArray) -> "Stamps":
        """Return copies of some of the stars."""
        arrays = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "half"}
        return Stamps(**arrays, half=self.half)

    def weights(self, drawn: FloatArray) -> FloatArray:
        """Return inverse variances, the model's own error added, 0 for pixels left out; `drawn` has unit flux."""
        noise2 = self.variance + (_MODEL_ERROR * self.flux[:, None, None] * drawn) ** 2
        return np.where(self.good, 1.0 / noise2, 0.0)

    def update(self, drawn: FloatArray, along_x: FloatArray, along_y: FloatArray, *, fwhm: float) -> FloatArray:
        """Fit flux, sky and position of each star in place.

        Parameters
        ----------
        drawn, along_x, along_y
            Model of unit flux at the present positions and its derivatives by the position, as the pixels.

        Returns
        -------
        FloatArray
            Reduced chi-squared within one FWHM, shape ``(n,)``.
        """
        ones = np.ones_like(drawn)
        solution, _ = solve_small(np.stack([drawn, along_x, along_y, ones], axis=1), self.data, self.weights(drawn))
        flux = solution[:, 0]
        safe = np.where(flux > 0, flux, np.inf)
        move_x = np.clip(solution[:, 1] / safe, -_MAX_MOVE, _MAX_MOVE)
        move_y = np.clip(solution[:, 2] / safe, -_MAX_MOVE, _MAX_MOVE)
        # A star that is not positive, or has walked off its stamp's middle, is none.
        away = np.hypot(self.x + move_x - self.column, self.y + move_y - self.row) > max(2.0, fwhm)
        self.use &= (flux > 0) & ~away
        self.x += np.where(self.use, move_x, 0.0)
        self.y += np.where(self.use, move_y, 0.0)
        self.flux, self.sky = np.where(flux > 0, flux, 0.0), solution[:, 3]
        scale = flux[:, None, None]
        model = scale * drawn + solution[:, 1, None, None] * along_x + solution[:, 2, None, None] * along_y
        residual = self.data - model - self.sky[:, None, None]
        steps = np.arange(-self.half, self.half + 1)
        core = (np.hypot(steps[:, None], steps[None, :]) <= max(1.5, fwhm))[None] & self.usable
        freedom = np.maximum(core.sum(axis=(1, 2)) - 4, 1)
        granted = self.variance + (_MODEL_ERROR * scale * drawn) ** 2
        self.chi = np.sqrt(np.where(core, residual**2 / granted, 0.0).sum(axis=(1, 2)) / freedom)
        limit, relative, of_peak = _CLIP
        peak = drawn.max(axis=(1, 2), keepdims=True)
        tolerance2 = self.variance + (scale * (relative * np.abs(drawn) + of_peak * peak)) ** 2
        self.good = self.usable & (core | (residual**2 < limit**2 * tolerance2))
        return np.where(core, residual**2 / self.variance, 0.0).sum(axis=(1, 2)) / freedom


def solve_small(columns: FloatArray, data: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Solve many small weighted least-squares problems.

    Parameters
    ----------
    columns
        Shape ``(n, k, size, size)``: the k model images of each problem.
    data, weights
        Shape ``(n, size, size)``.

    Returns
    -------
    solution, covariance
        Shapes ``(n, k)`` and ``(n, k, k)``.
    """
    n, k = columns.shape[:2]
    flat = columns.reshape(n, k, -1)
    weighted = flat * weights.reshape(n, 1, -1)
    normal = weighted @ flat.transpose(0, 2, 1)
    right = (weighted @ data.reshape(n, -1, 1))[..., 0]
    # Columns differ by orders of magnitude (a flux, a sky): scale to a unit diagonal before inverting.
    scale = np.sqrt(np.maximum(np.einsum("nii->ni", normal), np.finfo(float).tiny))
    scaled = normal / (scale[:, :, None] * scale[:, None, :]) + 1e-12 * np.eye(k)
    covariance = np.linalg.inv(scaled) / (scale[:, :, None] * scale[:, None, :])
    return (covariance @ right[..., None])[..., 0], covariance
