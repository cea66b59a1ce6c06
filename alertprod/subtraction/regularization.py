"""How rough a kernel is, and how strongly its roughness is held down: Becker et al. (2012).

Roughness is quadratic, ``k^T H k`` over the kernel's pixels k. A kernel's border pixels are part of it: beyond them the
kernel is zero, so a value there is a step.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate

from alertprod._typing import FloatArray
from alertprod.errors import ConfigError
from alertprod.subtraction.config import DeltaFunctionConfig

_LAPLACIANS = {
    5: np.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]),
    9: np.array([[1.0, 4.0, 1.0], [4.0, -20.0, 4.0], [1.0, 4.0, 1.0]]) / 6.0,
}
"""Number of points to stencil."""

_FORWARD_DIFFERENCES = {
    0: np.array([1.0]),
    1: np.array([-1.0, 1.0]),
    2: np.array([1.0, -2.0, 1.0]),
    3: np.array([-1.0, 3.0, -3.0, 1.0]),
}
"""Order to coefficients, from the pixel forward."""

_RIDGE = 1e-12
"""Relative to the mean diagonal: lets a matrix of noise-free stars be inverted."""


@dataclass(frozen=True, slots=True)
class Regularization:
    """A penalty on rough kernels, in the coefficients of a basis.

    Parameters
    ----------
    matrix
        float64, ``(n_basis, n_basis)``, positive semidefinite.
    strength
        What it is multiplied by before it is added to a star's normal equations; None where each star's
        information sets it.
    scaling
        Then the strength is this times the ratio of the traces of the star's matrix and of `matrix`.
    """

    matrix: FloatArray
    strength: float | None
    scaling: float = 0.0

    def compute_strengths(self, matrices: FloatArray) -> FloatArray:
        """Return the strength for each star, shape ``(n,)``, given normal equations ``(n, n_basis, n_basis)``."""
        if self.strength is not None:
            return np.full(len(matrices), self.strength)
        return self.scaling * np.einsum("nii->n", matrices) / np.trace(self.matrix)


def make_roughness(config: DeltaFunctionConfig, size: int) -> FloatArray:
    """Return H of the configured kind for a kernel of a side: float64, ``(size**2, size**2)``, pixels row by row."""
    if config.regularization_type == "forwardDifference":
        return make_forward_roughness(size, config.forward_regularization_orders)
    return make_central_roughness(size, config.central_regularization_stencil, config.regularization_border_penalty)


def make_central_roughness(size: int, stencil: int, border_penalty: float) -> FloatArray:
    """Return the squared Laplacian of inner pixels, and the squares of border pixels times `border_penalty` squared.

    Raises
    ------
    ConfigError
        Raised if the stencil is neither 5 nor 9, or the penalty is negative.
    """
    if stencil not in _LAPLACIANS:
        raise ConfigError("regularization", "stencil", f"{stencil} is neither 5 nor 9")
    if not border_penalty >= 0:
        raise ConfigError("regularization", "border_penalty", f"{border_penalty} is negative")
    deltas = np.eye(size * size).reshape(-1, size, size)
    border = np.ones((size, size), dtype=bool)
    border[1:-1, 1:-1] = False
    # Row p of B is what pixel p's difference takes from every pixel: the stencil is symmetric, so a column is a row.
    differences = np.array([correlate(delta, _LAPLACIANS[stencil], mode="constant") for delta in deltas])
    rows = differences.reshape(size * size, size * size).T
    rows[border.ravel()] = border_penalty * np.eye(size * size)[border.ravel()]
    return rows.T @ rows


def make_forward_roughness(size: int, orders: tuple[int, ...]) -> FloatArray:
    """Return the squares of forward differences along x and y, summed over the orders.

    Near the far edge a difference is of the highest order that still fits; of the last pixel that is its value.

    Raises
    ------
    ConfigError
        Raised if an order is not 1, 2 or 3.
    """
    if not orders or not set(orders) <= {1, 2, 3}:
        raise ConfigError("regularization", "orders", f"{orders} is not a choice of 1, 2, 3")
    roughness = np.zeros((size * size, size * size))
    for order in orders:
        rows = np.zeros((size, size))
        for pixel in range(size):
            coefficients = _FORWARD_DIFFERENCES[min(order, size - 1 - pixel)]
            rows[pixel, pixel : pixel + len(coefficients)] = coefficients
        squared = rows.T @ rows
        roughness += np.kron(np.eye(size), squared) + np.kron(squared, np.eye(size))
    return roughness


def scan_strengths(config: DeltaFunctionConfig) -> FloatArray:
    """Return the strengths to try, rising."""
    n_steps = int(np.floor((config.lambda_max - config.lambda_min) / config.lambda_step + 1e-9))
    values = config.lambda_min + config.lambda_step * np.arange(n_steps + 1)
    return 10.0**values if config.lambda_step_type == "log" else values


def eliminate_background(matrix: FloatArray, vector: FloatArray, n_basis: int) -> tuple[FloatArray, FloatArray]:
    """Return the normal equations of the first `n_basis` unknowns alone, the others at their best for each of them."""
    coupling = matrix[n_basis:, :n_basis]
    if not len(coupling):
        return matrix, vector
    response = np.linalg.solve(matrix[n_basis:, n_basis:], np.column_stack([coupling, vector[n_basis:]]))
    return matrix[:n_basis, :n_basis] - coupling.T @ response[:, :-1], vector[:n_basis] - coupling.T @ response[:, -1]


def compute_risks(
    matrix: FloatArray,
    vector: FloatArray,
    *,
    roughness: FloatArray,
    gram: FloatArray,
    strengths: FloatArray,
    max_condition_number: float,
) -> FloatArray:
    """Return the expected squared error of a star's kernel for each strength, up to a constant.

    Parameters
    ----------
    matrix, vector
        Normal equations of the kernel's coefficients, ``(n, n)`` and ``(n,)``, background eliminated, weighted with
        the inverse variance of the data.
    roughness, gram
        Penalty and inner products of the basis, ``(n, n)``.
    max_condition_number
        Eigenvalues smaller than the largest over this count as no information; infinite for the unbiased risk.

    Notes
    -----
    Stein's estimate: with ``a = (M + lambda H)^-1 b`` and the unregularised ``c = M^-1 b``, whose covariances are
    ``Cov(a, c) = (M + lambda H)^-1``, the error ``|a - truth|^2`` is expected to be ``|a|^2 - 2 a.c + 2 trace Cov(a, c)``
    and a constant. Cutting eigenvalues off confines c, and the trace, to the others: less noise, some bias.
    """
    eigenvalues, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    ridge = _RIDGE * float(eigenvalues.mean())
    kept = eigenvalues > max(ridge, eigenvalues[-1] / max_condition_number)
    vectors = vectors[:, kept]
    free = gram @ vectors @ ((vectors.T @ vector) / eigenvalues[kept])
    projection = gram @ vectors @ vectors.T
    diagonal = ridge * np.eye(len(matrix))
    risks = np.empty(len(strengths))
    for i, strength in enumerate(strengths):
        inverse = np.linalg.inv(matrix + strength * roughness + diagonal)
        held = inverse @ vector
        risks[i] = held @ gram @ held - 2.0 * held @ free + 2.0 * (inverse * projection.T).sum()
    return risks
