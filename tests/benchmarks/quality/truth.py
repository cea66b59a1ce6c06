"""What a perfect method would see of each change: significance, the bound of its position, whether it can be seen at all.

Notes
-----
Of two images with PSFs P and Q and white noises of variance V and W, the best combination measures a change of flux F
with the significance ``F^2 int |P|^2 |Q|^2 / (V |Q|^2 + W |P|^2)`` (squared), whatever is convolved with what; and its
position with the information ``F^2 int (2 pi f)^2 ...`` of the same integrand (Zackay, Ofek & Gal-Yam 2016; the
Cramér-Rao bound). Light of a host and of the change itself count: the information of the science image alone is summed over
its pixels, ``sum(P^2 / V)`` and ``sum((dP/dx)^2 / V)``, and the integrals say what share of it the template's noise leaves.
"""

from dataclasses import dataclass

import numpy as np
from benchmarks.quality.optics import draw_stamp, to_field
from benchmarks.quality.render import Field

from alertprod.images.mask import plane_bits

_SIDE = 64
"""Of the grid of frequencies, and of the stamps."""

_UNSEEN = ("SAT", "BAD", "CR", "NO_DATA", "EDGE")
"""A change with such a pixel within its central 3 x 3 is not counted, found or not."""


@dataclass(slots=True, kw_only=True)
class Truth:
    """One entry for each change of the scene; `noise` is the standard error of its flux (counts), `bound_x` and
    `bound_y` are the Cramér-Rao bounds of its position (pixels)."""

    snr: np.ndarray
    noise: np.ndarray
    bound_x: np.ndarray
    bound_y: np.ndarray
    measurable: np.ndarray


def compute_truth(field: Field) -> Truth:
    """Compute the truth of all changes of a field."""
    changes, parameters = field.scene.changes, field.scene.parameters
    n = len(changes)
    truth = Truth(
        snr=np.full(n, np.nan),
        noise=np.full(n, np.nan),
        bound_x=np.full(n, np.nan),
        bound_y=np.full(n, np.nan),
        measurable=np.zeros(n, dtype=bool),
    )
    bits = plane_bits(*_UNSEEN)
    shape = field.science.shape
    x_template, y_template = field.to_template.transform(changes.x, changes.y)
    for i in range(n):
        column, row = round(changes.x[i]), round(changes.y[i])
        core = (slice(row - 1, row + 2), slice(column - 1, column + 2))
        # Half a kernel further there must be a template, or what is there has no matched template.
        around = (slice(row - 12, row + 13), slice(column - 12, column + 13))
        truth.measurable[i] = (
            not ((field.science.mask[core] | field.template.mask[core]) & bits).any()
            and not (field.template.mask[around] & plane_bits("NO_DATA")).any()
        )
        u, v = to_field(changes.x[i], changes.y[i], shape)
        ut, vt = to_field(x_template[i], y_template[i], field.template_variance.shape)
        alone, science_noise = _sum_over_pixels(field, changes.x[i], changes.y[i], u=u, v=v)
        template_noise = _weigh(field.template_variance, parameters.template, x_template[i], y_template[i], ut, vt)
        places = {"u": u, "v": v, "ut": ut, "vt": vt, "science_noise": science_noise}
        with_template = compute_information(field, **places, template_noise=template_noise)
        without = compute_information(field, **places, template_noise=0.0)
        one, fx, fy = alone * with_template / without
        flux = abs(changes.flux[i]) or changes.flux_science[i]
        truth.noise[i] = 1.0 / np.sqrt(one)
        truth.snr[i] = flux * np.sqrt(one)
        truth.bound_x[i], truth.bound_y[i] = 1.0 / (flux * np.sqrt(fx)), 1.0 / (flux * np.sqrt(fy))
    return truth


def compute_information(field: Field, *, u, v, ut, vt, science_noise: float, template_noise: float):
    """Return the Fisher information of flux and position of a source of unit flux: flux, x, y."""
    parameters = field.scene.parameters
    f = np.arange(-_SIDE // 2, _SIDE // 2) / _SIDE
    fx, fy = np.meshgrid(f, f)
    p2 = np.abs(parameters.science.compute_separable_transfer(f, f, u=u, v=v)) ** 2
    # A plane wave exp(2 pi i f x) has the frequency J^-T f on the template's pixels.
    turned = np.linalg.solve(field.to_template.jacobian.T, np.stack([fx.ravel(), fy.ravel()]))
    q2 = np.abs(parameters.template.compute_transfer(turned[0], turned[1], u=ut, v=vt)) ** 2
    q2 = q2.reshape(fx.shape)
    integrand = p2 * q2 / np.maximum(science_noise * q2 + template_noise * p2, 1e-300)
    return np.array([(integrand * weight).mean() for weight in (1.0, (2 * np.pi * fx) ** 2, (2 * np.pi * fy) ** 2)])


def _sum_over_pixels(field: Field, x: float, y: float, *, u: float, v: float):
    """Return the science image's information on flux, x and y of a source of unit flux, and its mean noise variance."""
    half, step = 20, 0.05
    column, row = round(float(x)), round(float(y))
    rows, columns = (
        slice(max(at - half, 0), min(at + half + 1, length))
        for at, length in zip((row, column), field.science_variance.shape, strict=True)
    )
    left, bottom = column - _SIDE // 2, row - _SIDE // 2
    inside = (slice(rows.start - bottom, rows.stop - bottom), slice(columns.start - left, columns.stop - left))

    def draw(dx: float, dy: float):
        stamp = draw_stamp(field.scene.parameters.science, u=u, v=v, dx=x - column + dx, dy=y - row + dy, n=_SIDE)
        return stamp[inside]

    variance = field.science_variance[rows, columns].astype(float)
    star = draw(0.0, 0.0)
    along_x = (draw(step, 0.0) - draw(-step, 0.0)) / (2 * step)
    along_y = (draw(0.0, step) - draw(0.0, -step)) / (2 * step)
    information = np.array([(image**2 / variance).sum() for image in (star, along_x, along_y)])
    return information, float((star**2 * variance).sum() / (star**2).sum())


def _weigh(variance, optics, x, y, u, v) -> float:
    """Return the mean of a variance plane about a place, weighted with the squared PSF."""
    half = 12
    column, row = round(float(x)), round(float(y))
    stamp = draw_stamp(optics, u=u, v=v, dx=x - column, dy=y - row, n=_SIDE)
    inner = slice(_SIDE // 2 - half, _SIDE // 2 + half + 1)
    weight = stamp[inner, inner] ** 2
    pixels = variance[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1]
    return float(
        (weight[: pixels.shape[0], : pixels.shape[1]] * pixels).sum()
        / weight[: pixels.shape[0], : pixels.shape[1]].sum()
    )
