"""Footprints on empty sky: places to measure what nothing looks like, beside the detections."""

from dataclasses import dataclass

import numpy as np

from alertprod._ranges import require_ranges
from alertprod._typing import FloatArray, IntArray
from alertprod.detection.footprints import FootprintSet, build_footprints
from alertprod.images.mask import plane_bits

_BASES = (2, 3)
"""Of the Halton sequence in x and y: the two smallest coprime ones fill the plane most evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkyFootprintConfig:
    """How many footprints, how large, and what they stay clear of."""

    n_sources: int = 100
    """Footprints wanted: enough for the noise of a flux to 7 %, few beside the DiaSources of an exposure."""

    source_radius: float = 8.0
    """Radius of a footprint's disk in pixels: about a PSF with its wings."""

    trial_factor: int = 5
    """Places that are tried for each footprint wanted, before fewer are given."""

    avoided_planes: tuple[str, ...] = ("DETECTED", "DETECTED_NEGATIVE", "BAD", "NO_DATA", "EDGE")
    """No pixel of a footprint lies on one of these."""

    def __post_init__(self) -> None:
        require_ranges(self, n_sources=(0, 100_000), source_radius=(0.5, 1000.0), trial_factor=(1, 1000))
        plane_bits(*self.avoided_planes)


def place_sky_footprints(
    mask: IntArray, *, seed: int, sigma: float = float("nan"), config: SkyFootprintConfig | None = None
) -> FootprintSet:
    """Place disks on empty sky, spread evenly.

    Parameters
    ----------
    mask
        Mask plane, shape ``(ny, nx)``, with its DETECTED planes set.
    seed
        Of the exposure: the same seed and mask give the same footprints. Any whole number.
    sigma
        PSF sigma of the image, pixels; what the set is labelled with.
    config
        `SkyFootprintConfig`.

    Returns
    -------
    FootprintSet
        `n_sources` of them, or as many as the trials found room for, in raster order; `is_sky` is set, each has one peak, its middle pixel, of significance 0. Disks lie wholly on the image and do not overlap.

    Notes
    -----
    Places follow the Halton sequence in bases 2 and 3, shifted by a random vector of the seed (Cranley & Patterson
    1976): evenly spread whatever the number of footprints.
    """
    config = config or SkyFootprintConfig()
    ny, nx = mask.shape
    half = int(np.floor(config.source_radius))
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    disk = u * u + v * v <= config.source_radius**2
    taken = (mask & plane_bits(*config.avoided_planes)) != 0
    pixels: list[IntArray] = []
    centers: list[int] = []
    if nx > 2 * half and ny > 2 * half:
        shift = np.random.default_rng(seed & (2**64 - 1)).random(2)
        n_trials = config.trial_factor * config.n_sources
        fractions = (_halton(n_trials) + shift) % 1.0
        columns = half + (fractions[:, 0] * (nx - 2 * half)).astype(np.int64)
        rows = half + (fractions[:, 1] * (ny - 2 * half)).astype(np.int64)
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            if len(centers) == config.n_sources:
                break
            patch = taken[y - half : y + half + 1, x - half : x + half + 1]
            if (patch & disk).any():
                continue
            patch |= disk
            centers.append(y * nx + x)
            pixels.append((v[disk] + y) * nx + u[disk] + x)
    n = len(centers)
    return build_footprints(
        shape=(ny, nx),
        sigma=sigma,
        pixels=np.concatenate(pixels) if pixels else np.zeros(0, dtype=np.int64),
        owner=np.repeat(np.arange(n), int(disk.sum())),
        peak_pixels=np.array(centers, dtype=np.int64),
        peak_owner=np.arange(n),
        peak_significance=np.zeros(n),
        is_sky=True,
    )


def _halton(n: int) -> FloatArray:
    """Return the first `n` points of the sequence, from index 1: shape ``(n, 2)``, in [0, 1)."""
    points = np.zeros((n, len(_BASES)))
    for axis, base in enumerate(_BASES):
        index, weight = np.arange(1, n + 1), 1.0
        while index.any():
            weight /= base
            points[:, axis] += weight * (index % base)
            index //= base
    return points
