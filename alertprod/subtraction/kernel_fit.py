"""From two images and star positions to the matching kernel: choose a basis and stars, solve."""

from dataclasses import dataclass, replace

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.images.masked_image import MaskedImage
from alertprod.psf.model import PointSpreadFunction
from alertprod.subtraction.basis import (
    KernelBasis,
    choose_widths,
    compute_trace_fwhm,
    lead_with_psfs,
    make_alard_lupton_basis,
)
from alertprod.subtraction.candidates import CandidateList, StampGeometry
from alertprod.subtraction.cell_set import KernelCellSet, collect_stars
from alertprod.subtraction.clipping import KernelClipping
from alertprod.subtraction.config import AlardLuptonConfig, DeltaFunctionConfig, MatchConfig
from alertprod.subtraction.delta_basis import make_delta_basis
from alertprod.subtraction.regularization import compute_risks, eliminate_background, make_roughness, scan_strengths
from alertprod.subtraction.spatial import SpatialBackground, SpatialKernel
from alertprod.subtraction.stamp_equations import build_equations, estimate_flux_ratio

_RISK_STARS = 6
"""Stars, the first that the cells offer, on which the strength of the regularisation is chosen: a strength that is
right to some ten per cent is as good as the best."""


@dataclass(frozen=True, slots=True)
class KernelFit:
    """The matching kernel and how it was found.

    Attributes
    ----------
    kernel
        Turns the convolved image into the other one.
    background
        What is left in the other one, in its units.
    used, rejected
        Indices of the star positions: in the last fit, and thrown out of it. The others were never tried.
    residual_rms
        Of each used star, in units of its noise.
    condition_number
        Of the spatial fit.
    mode
        How the widths of the basis were chosen: "config", "convolution" or "deconvolution".
    cell_set
        Every star, with what became of it.
    sigmas, degrees
        Of the Gaussians in the basis; none for delta functions. Degrees are those in use, of each Gaussian.
    n_basis, n_parameters
        Kernels that the spatial fit combined, and its unknowns, background included.
    background_coefficients
        As fitted: in the terms of `MatchConfig.spatial_model_type`.
    regularization_strength
        Median over the used stars; 0 where nothing is regularised.
    """

    kernel: SpatialKernel
    background: SpatialBackground
    used: IntArray
    rejected: IntArray
    residual_rms: FloatArray
    condition_number: float
    mode: str
    cell_set: KernelCellSet
    sigmas: tuple[float, ...]
    degrees: tuple[int, ...]
    n_basis: int
    n_parameters: int
    background_coefficients: FloatArray
    regularization_strength: float


def fit_kernel(
    convolved: MaskedImage,
    reference: MaskedImage,
    *,
    convolved_psf: PointSpreadFunction,
    reference_psf: PointSpreadFunction,
    star_x: FloatArray,
    star_y: FloatArray,
    star_flux: FloatArray | None,
    config: MatchConfig,
) -> KernelFit:
    """Solve for the kernel that makes `convolved` look like `reference`, throwing out stars that do not fit.

    Notes
    -----
    Kernel and background orders are lowered where the stars are fewer than twice the terms.
    """
    fwhms = tuple(
        compute_trace_fwhm(psf, box=image.box, n_side=config.fwhm_exposure_grid, margin=config.fwhm_exposure_buffer)
        for psf, image in ((convolved_psf, convolved), (reference_psf, reference))
    )
    basis = make_basis(
        config,
        convolved_psf=convolved_psf,
        reference_psf=reference_psf,
        convolved_fwhm=fwhms[0],
        reference_fwhm=fwhms[1],
    )
    x, y = np.asarray(star_x, dtype=float), np.asarray(star_y, dtype=float)
    candidates = CandidateList(
        convolved, reference, x=x, y=y, flux=star_flux, geometry=StampGeometry.for_kernel(basis.size), config=config
    )
    first = candidates.take(np.zeros(0, dtype=np.int64))
    flux_ratio = estimate_flux_ratio(candidates, first) if len(first) else 1.0
    if isinstance(config, DeltaFunctionConfig) and config.use_regularization:
        basis = _regularize(basis, candidates, first, flux_ratio, config)
    clipping = KernelClipping(candidates, basis, first=first, flux_ratio=flux_ratio, box=convolved.box, config=config)
    solution, orders = clipping.run()
    equations = clipping.equations
    model = config.spatial_model_type
    kernel = solution.make_kernel(clipping.basis, order=orders[0], box=convolved.box, model=model)
    background = solution.make_background(order=orders[1], box=convolved.box, model=model)
    cell_set = KernelCellSet(
        x=x,
        y=y,
        cell=candidates.cell,
        basis=basis,
        flux_ratio=flux_ratio,
        kernel=kernel,
        background=background,
        **collect_stars(
            len(x), basis, clipping.own_results(), reasons=candidates.refused | clipping.rejected, used=equations.index
        ),
    )
    n_basis, n_terms = solution.kernel.shape
    degrees = config.alard_deg_gauss if isinstance(config, AlardLuptonConfig) else ()
    return KernelFit(
        kernel=kernel,
        background=background,
        used=equations.index,
        rejected=np.array(sorted(clipping.rejected), dtype=np.int64),
        residual_rms=clipping.measure(solution, orders)[1],
        condition_number=solution.condition_number,
        mode=basis.mode,
        cell_set=cell_set,
        sigmas=basis.sigmas,
        degrees=clipping.degrees or degrees,
        n_basis=n_basis,
        n_parameters=(n_basis - 1) * n_terms + 1 + len(solution.background),
        background_coefficients=solution.background,
        regularization_strength=float(np.median(equations.penalty)),
    )


def make_basis(
    config: MatchConfig,
    *,
    convolved_psf: PointSpreadFunction,
    reference_psf: PointSpreadFunction,
    convolved_fwhm: float,
    reference_fwhm: float,
) -> KernelBasis:
    """Return the configured basis, led by the kernel that the two PSFs ask for; without regularisation as yet."""
    is_gaussian = isinstance(config, AlardLuptonConfig)
    gaussians = config if isinstance(config, AlardLuptonConfig) else _gaussians_like(config)
    sigmas, size, mode = choose_widths(gaussians, convolved_fwhm=convolved_fwhm, reference_fwhm=reference_fwhm)
    led = lead_with_psfs(
        make_alard_lupton_basis(sigmas, gaussians.alard_deg_gauss, size, mode=mode),
        convolved_psf=convolved_psf,
        reference_psf=reference_psf,
    )
    return led if is_gaussian else make_delta_basis(size, lead=led.images[0], mode=mode)


def solve_stars(
    convolved: MaskedImage,
    reference: MaskedImage,
    *,
    x: FloatArray,
    y: FloatArray,
    like: KernelCellSet,
    config: MatchConfig,
) -> KernelCellSet:
    """Let stars that had no part in a match ask for kernels of their own, in its basis.

    Parameters
    ----------
    x, y
        Positions, shape ``(n,)``, pixels.
    like
        The stars of the match.

    Returns
    -------
    KernelCellSet
        Every clean star is solved for and UNKNOWN; those that have no clean stamp are BAD. Stars may share pixels.
    """
    candidates = CandidateList(
        convolved,
        reference,
        x=x,
        y=y,
        flux=None,
        geometry=StampGeometry.for_kernel(like.basis.size),
        config=config,
    )
    indices = candidates.find_clean()
    solved = []
    if len(indices):
        equations = build_equations(candidates, indices, like.basis, flux_ratio=like.flux_ratio, config=config)
        solved.append((indices, equations.own_results()))
    return replace(
        like, x=x, y=y, cell=candidates.cell, **collect_stars(len(x), like.basis, solved, reasons=candidates.refused)
    )


def _gaussians_like(config: MatchConfig) -> AlardLuptonConfig:
    """Return the default Gaussians under the sizes of another configuration: they choose its kernel's side and lead."""
    return AlardLuptonConfig(
        kernel_size=config.kernel_size,
        scale_by_fwhm=config.scale_by_fwhm,
        kernel_size_fwhm_scaling=config.kernel_size_fwhm_scaling,
        kernel_size_min=config.kernel_size_min,
        kernel_size_max=config.kernel_size_max,
    )


def _regularize(
    basis: KernelBasis, candidates: CandidateList, first: IntArray, flux_ratio: float, config: DeltaFunctionConfig
) -> KernelBasis:
    """Return the basis with its regularisation, its strength chosen on a few stars where it is to be of least risk.

    Strengths are for kernels of unit sum; a kernel that takes one image's units to the other's is larger.
    """
    roughness = make_roughness(config, basis.size)
    if config.lambda_type == "relative":
        return basis.regularized(roughness, strength=None, scaling=config.lambda_scaling)
    strength = config.lambda_value
    if config.lambda_type != "absolute" and len(first):
        strength = _choose_strength(basis, roughness, candidates, first[:_RISK_STARS], flux_ratio, config)
    return basis.regularized(roughness, strength=strength / flux_ratio**2)


def _choose_strength(
    basis: KernelBasis,
    roughness: FloatArray,
    candidates: CandidateList,
    stars: IntArray,
    flux_ratio: float,
    config: DeltaFunctionConfig,
) -> float:
    equations = build_equations(candidates, stars, basis, flux_ratio=flux_ratio, config=config)
    strengths = scan_strengths(config)
    n, flat = len(basis), basis.images.reshape(len(basis), -1)
    risks = np.zeros(len(strengths))
    for matrix, vector in zip(equations.matrix, equations.vector, strict=True):
        kernel_matrix, kernel_vector = eliminate_background(matrix, vector, n)
        risks += compute_risks(
            kernel_matrix,
            kernel_vector,
            roughness=flat @ roughness @ flat.T / flux_ratio**2,
            gram=basis.gram,
            strengths=strengths,
            max_condition_number=config.max_condition_number if config.lambda_type == "minimizeBiasedRisk" else np.inf,
        )
    return float(strengths[np.argmin(risks)])
