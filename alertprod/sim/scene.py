"""A seeded sky: stars, galaxies, variables, transients and a mover, in nJy at ICRS positions.

Time is counted in visits: light curves and motions scale with the cadence of the night, so that a
night in fast motion shows what a real one would.
"""

from dataclasses import dataclass

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.wcs import SkyWcs

KNOTS_PER_GALAXY = 30
"""Enough for a smooth exponential profile: neighbours are closer than a seeing disc."""

TEMPLATE_EPOCH = -1000.0
"""The templates' time in visits: long before the night, when no transient shone."""


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """What the sky holds; counts are per square arcminute unless they say otherwise."""

    seed: int = 1
    stars_per_arcmin2: float = 34.0
    galaxies_per_arcmin2: float = 12.0
    star_flux_njy: tuple[float, float] = (2e3, 6e7)
    """Faintest and brightest; numbers follow flux^-0.6, as star counts away from the plane do."""
    galaxy_flux_njy: tuple[float, float] = (3e3, 6e4)
    transients_per_arcmin2: float = 3.0
    transient_flux_njy: tuple[float, float] = (1.2e3, 4e4)
    """Peak flux, log-uniform: from below the detection limit to far above it."""
    variables_per_arcmin2: float = 0.8
    n_movers: int = 1
    mover_flux_njy: float = 1.5e4
    mover_arcsec_per_visit: float = 9.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Point sources of one moment.

    `kind` is ``star``, ``galaxy`` (a knot of one), ``variable``, ``transient`` or ``mover``; `number`
    counts within a kind. `flux_njy` is the flux now, `template_flux_njy` the flux in the templates.
    """

    ra_deg: FloatArray
    dec_deg: FloatArray
    flux_njy: FloatArray
    template_flux_njy: FloatArray
    kind: FloatArray
    number: IntArray


class Scene:
    """A sky about one point.

    Parameters
    ----------
    config
        What it holds.
    ra_deg, dec_deg
        The middle of the field.
    width_arcsec
        Side of the square that is populated.
    """

    def __init__(self, config: SceneConfig, *, ra_deg: float, dec_deg: float, width_arcsec: float) -> None:
        self.config = config
        rng = np.random.default_rng([config.seed, 1])
        # A tangent plane in arcsec: one "pixel" is one arcsec, north up.
        self._plane = SkyWcs.from_tangent(ra_deg=ra_deg, dec_deg=dec_deg, x=0.0, y=0.0, scale_arcsec=1.0)
        half = width_arcsec / 2
        area = (width_arcsec / 60.0) ** 2

        def scatter(n: int) -> FloatArray:
            return rng.uniform(-half, half, size=(n, 2))

        n_stars = rng.poisson(config.stars_per_arcmin2 * area)
        self._stars = scatter(n_stars)
        self._star_flux = _power_law(rng, n_stars, config.star_flux_njy, slope=-1.6)

        n_galaxies = rng.poisson(config.galaxies_per_arcmin2 * area)
        self._galaxies = scatter(n_galaxies)
        self._galaxy_flux = _power_law(rng, n_galaxies, config.galaxy_flux_njy, slope=-1.8)
        self._knots, self._knot_flux, self._knot_galaxy = _galaxy_knots(rng, self._galaxies, self._galaxy_flux)

        # Variables are stars of their own, bright enough to be seen to vary.
        n_variables = rng.poisson(config.variables_per_arcmin2 * area)
        self._variables = scatter(n_variables)
        self._variable_flux = 10 ** rng.uniform(4.2, 5.3, n_variables)
        self._variable_amplitude = rng.uniform(0.15, 0.6, n_variables)
        self._variable_period = rng.uniform(4.0, 15.0, n_variables)
        self._variable_phase = rng.uniform(0.0, 1.0, n_variables)

        # Every other transient sits in a galaxy, off its centre by about an arcsecond.
        n_transients = rng.poisson(config.transients_per_arcmin2 * area)
        self._transients = scatter(n_transients)
        if n_galaxies:
            hosts = rng.integers(0, n_galaxies, size=n_transients // 2)
            self._transients[: hosts.size] = self._galaxies[hosts] + rng.normal(0.0, 0.8, size=(hosts.size, 2))
        low, high = np.log10(config.transient_flux_njy)
        self._transient_flux = 10 ** rng.uniform(low, high, n_transients)
        self._transient_peak = rng.uniform(-2.0, 8.0, n_transients)
        self._transient_rise = rng.uniform(1.0, 4.0, n_transients)
        self._transient_fall = rng.uniform(4.0, 15.0, n_transients)

        self._movers = scatter(config.n_movers) * 0.3
        angle = rng.uniform(0.0, 2.0 * np.pi, config.n_movers)
        self._mover_step = config.mover_arcsec_per_visit * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def at(self, epoch: float) -> Sources:
        """Return every point source at `epoch`, in visits since the night began."""
        config = self.config
        cycle = 2.0 * np.pi * (epoch / self._variable_period + self._variable_phase)
        variable_now = self._variable_flux * (1.0 + self._variable_amplitude * np.sin(cycle))
        since = epoch - self._transient_peak
        shape = np.where(
            since < 0,
            np.exp(-0.5 * (since / self._transient_rise) ** 2),
            np.exp(-np.maximum(since, 0.0) / self._transient_fall),
        )
        has_movers = epoch != TEMPLATE_EPOCH
        parts = [
            ("star", self._stars, self._star_flux, self._star_flux),
            ("galaxy", self._knots, self._knot_flux, self._knot_flux),
            ("variable", self._variables, variable_now, self._variable_flux),
            ("transient", self._transients, self._transient_flux * shape, np.zeros_like(shape)),
            (
                "mover",
                self._movers + epoch * self._mover_step,
                np.full(config.n_movers, config.mover_flux_njy if has_movers else 0.0),
                np.zeros(config.n_movers),
            ),
        ]
        position = np.concatenate([part[1] for part in parts])
        ra, dec = self._plane.pixel_to_sky(x=position[:, 0], y=position[:, 1])
        numbers = [self._knot_galaxy if kind == "galaxy" else np.arange(len(p)) for kind, p, _, _ in parts]
        return Sources(
            ra_deg=ra,
            dec_deg=dec,
            flux_njy=np.concatenate([part[2] for part in parts]),
            template_flux_njy=np.concatenate([part[3] for part in parts]),
            kind=np.concatenate([np.full(len(part[1]), part[0], dtype=object) for part in parts]),
            number=np.concatenate(numbers).astype(int),
        )

    def template(self) -> Sources:
        """Return the sources as the templates saw them: variables at their mean, no transients or movers."""
        now = self.at(TEMPLATE_EPOCH)
        shines = now.template_flux_njy > 0
        return Sources(
            ra_deg=now.ra_deg[shines],
            dec_deg=now.dec_deg[shines],
            flux_njy=now.template_flux_njy[shines],
            template_flux_njy=now.template_flux_njy[shines],
            kind=now.kind[shines],
            number=now.number[shines],
        )


def _power_law(rng: np.random.Generator, n: int, limits: tuple[float, float], *, slope: float) -> FloatArray:
    """Draw from dN/dF ~ F^slope between `limits`."""
    power = slope + 1.0
    low, high = limits[0] ** power, limits[1] ** power
    return (low + (high - low) * rng.uniform(size=n)) ** (1.0 / power)


def _galaxy_knots(
    rng: np.random.Generator, centers: FloatArray, flux: FloatArray
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Split exponential discs into points of equal flux on a sunflower spiral; arcsec."""
    n = len(centers)
    scale = rng.uniform(0.25, 0.6, n)
    ratio = rng.uniform(0.3, 1.0, n)
    angle = rng.uniform(0.0, np.pi, n)
    # Radial quantiles of an exponential disc, 1 - (1 + r) exp(-r), by inverting a fine table.
    r = np.linspace(0.0, 8.0, 2000)
    radius = np.interp((np.arange(KNOTS_PER_GALAXY) + 0.5) / KNOTS_PER_GALAXY, 1.0 - (1.0 + r) * np.exp(-r), r)
    spiral = np.arange(KNOTS_PER_GALAXY) * np.pi * (3.0 - np.sqrt(5.0))
    u = scale[:, None] * radius * np.cos(spiral)
    v = scale[:, None] * ratio[:, None] * radius * np.sin(spiral)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x = centers[:, :1] + cos * u - sin * v
    y = centers[:, 1:] + sin * u + cos * v
    return (
        np.stack([x.ravel(), y.ravel()], axis=-1),
        np.repeat(flux / KNOTS_PER_GALAXY, KNOTS_PER_GALAXY),
        np.repeat(np.arange(n), KNOTS_PER_GALAXY),
    )
