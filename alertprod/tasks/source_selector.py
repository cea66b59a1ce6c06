"""Choose stars among sources: by signal-to-noise, by the size that point sources have here, by colour and by flags."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from lsst.pex.config import Field, FieldValidationError

from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray
from alertprod.errors import ConfigError
from alertprod.measurement.catalog import Catalog
from alertprod.tasks.config_fields import make_config_class
from alertprod.tasks.match_sources import SourceMatches
from alertprod.tasks.task import Struct, Task, timeMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class StarSelection:
    """What counts as a star that a matching kernel can be fitted on."""

    signal_to_noise_min: float = 10.0
    """Fainter ones add noise, and their size is not known."""

    signal_to_noise_max: float = 0.0
    """Brighter ones are left out: their cores bloom and their wings are the camera's; 0 for no limit, where
    saturation is flagged."""

    width_min: float = 0.0
    """FWHM in pixels; sharper ones are cosmic rays whatever the locus says."""

    width_max: float = 25.0
    """FWHM in pixels; wider ones are no stars whatever the locus says."""

    width_std_allowed: float = 0.15
    """Relative scatter of stars' widths that is believed at most: beyond, the bright sources are no one locus."""

    width_std_min: float = 0.01
    """Relative scatter that is allowed at least: PSFs vary a little over the image."""

    n_sigma_clip: float = 3.0
    """Half width of the locus, in its own scatter and the width's error together."""

    max_contamination: float = 0.1
    """Flux of near neighbours relative to the star's, where it is known."""

    min_for_locus: int = 5
    """With fewer sources no locus is looked for: all widths count."""

    def __post_init__(self) -> None:
        if 0 < self.signal_to_noise_max <= self.signal_to_noise_min:
            raise ConfigError("StarSelection", "signal_to_noise_max", "must be above signal_to_noise_min, or 0")
        if not 0 <= self.width_min < self.width_max:
            raise ConfigError("StarSelection", "width_max", "must be above width_min, which is not negative")
        if not 0 < self.width_std_min <= self.width_std_allowed:
            raise ConfigError("StarSelection", "width_std_min", "must be positive and at most width_std_allowed")
        require_ranges(
            self,
            signal_to_noise_min=(0.0, 1e30),
            signal_to_noise_max=(0.0, 1e30),
            n_sigma_clip=(0.1, 1e6),
            max_contamination=(0.0, 1e30),
            min_for_locus=(1, 2**31),
        )


def find_stellar_locus(
    *, fwhm: FloatArray, snr: FloatArray, selection: StarSelection | None = None
) -> tuple[float, float]:
    """Return the FWHM that point sources have, pixels, and its relative scatter.

    Parameters
    ----------
    fwhm, snr
        Of candidates, shape ``(n,)``, finite and positive. At least one.

    Notes
    -----
    The densest width of the brighter half, each source smeared by what its width scatters from photons, about
    1 / snr; then median and scatter of what lies about it. Stars are the densest group even among more galaxies:
    these are wider, and each in its own way.
    """
    selection = selection or StarSelection()
    bright = snr >= np.median(snr)
    log_width, error = np.log(fwhm), 1.0 / snr
    center = _find_densest(log_width[bright], np.hypot(error[bright], _GRID_STEP))
    scatter = _START_SCATTER
    for _ in range(_LOCUS_ROUNDS):
        near = bright & (np.abs(log_width - center) < selection.n_sigma_clip * np.hypot(scatter, error))
        if not near.any():
            break
        center = float(np.median(log_width[near]))
        spread = 1.4826 * float(np.median(np.abs(log_width[near] - center)))
        own = np.sqrt(max(0.0, spread**2 - float(np.median(error[near])) ** 2))
        scatter = float(np.clip(own, selection.width_std_min, selection.width_std_allowed))
    return float(np.exp(center)), scatter


def _find_densest(values: FloatArray, widths: FloatArray) -> float:
    """Return where Gaussians of unit area and the given widths about the values add up to most."""
    grid = np.arange(values.min(), values.max() + _GRID_STEP, _GRID_STEP)
    density = np.zeros(len(grid))
    for start in range(0, len(values), _BLOCK):
        part = slice(start, start + _BLOCK)
        pulls = (grid[:, None] - values[part]) / widths[part]
        density += (np.exp(-0.5 * pulls**2) / widths[part]).sum(axis=1)
    return float(grid[np.argmax(density)])


def select_stars(sources: Catalog, *, selection: StarSelection | None = None) -> BoolArray:
    """Say which sources are stars to fit on, shape ``(n,)``; see `StarSelection`.

    Notes
    -----
    A source whose width nobody measured cannot be judged by it and counts as a star; without a signal-to-noise ratio
    it does not. The locus widens by 1 / snr towards faint stars, as their measured widths scatter.
    """
    selection = selection or StarSelection()
    snr, fwhm = sources["snr"], sources["fwhm"]
    good: BoolArray = ~sources["flag"] & np.isfinite(sources["x"]) & np.isfinite(sources["y"])
    good &= np.nan_to_num(snr, nan=-1.0) >= max(selection.signal_to_noise_min, _LEAST_SNR)
    if selection.signal_to_noise_max > 0:
        good &= snr <= selection.signal_to_noise_max
    good &= ~(sources["contamination"] > selection.max_contamination)
    measured = np.isfinite(fwhm) & (fwhm > 0)
    good &= ~measured | ((fwhm >= selection.width_min) & (fwhm <= selection.width_max))
    known = good & measured
    if known.sum() < selection.min_for_locus:
        return good
    width, scatter = find_stellar_locus(fwhm=fwhm[known], snr=snr[known], selection=selection)
    off = np.abs(np.log(fwhm[known] / width)) > selection.n_sigma_clip * np.hypot(scatter, 1.0 / snr[known])
    good[np.flatnonzero(known)[off]] = False
    return good


_LOCUS_ROUNDS = 5
"""Enough for centre and scatter to settle to a percent."""

_GRID_STEP = 0.02
"""Of logarithmic width: stars of one image are about as alike."""

_START_SCATTER = 0.05
"""Relative scatter of widths that a real PSF has over an image, generously."""

_BLOCK = 1000
"""Sources at a time, so that the table of distances stays small."""

_LEAST_SNR = 1e-3
"""A ratio of zero has no error of the width."""

_Fields: Any = make_config_class("StarSelectionConfig", StarSelection)


class ObjectSizeStarSelectorConfig(_Fields):
    """What counts as a star."""

    grMin = Field(
        dtype=float,
        default=0.0,
        doc="g-r of the bluest star that is selected, where its colour is known: bluer are white dwarfs and quasars",
    )
    grMax = Field(
        dtype=float,
        default=1.6,
        doc="g-r of the reddest: beyond the ridge of the M dwarfs at 1.4 are carbon stars and the coolest dwarfs",
    )
    includeVariable = Field(
        dtype=bool, default=False, doc="Select stars that are known to vary: they leave flux in the difference"
    )

    def validate(self) -> None:
        """Refuse a range of colours that is empty."""
        super().validate()
        if not self.grMin < self.grMax:
            raise FieldValidationError(type(self).grMax, self, "must be above grMin")


class ObjectSizeStarSelectorTask(Task):
    """Select stars by their size, signal-to-noise ratio, colour and flags."""

    ConfigClass = ObjectSizeStarSelectorConfig
    _DefaultName: ClassVar[str] = "objectSizeStarSelector"

    @timeMethod
    def run(self, sourceCat: Catalog, matches: SourceMatches | None = None) -> Struct:
        """Select stars.

        Parameters
        ----------
        sourceCat
            `SOURCE_COLUMNS`; not changed.
        matches
            Where given, only its second sources, which must be rows of `sourceCat`, can be selected, and what its
            first ones know of colour and variability counts.

        Returns
        -------
        Struct
            sourceCat: the selected sources; selected: which rows of the given table they are, shape ``(n,)``;
            candidates: the given table with the colours and variability of the matches, of which DCR and variable
            samples are chosen; matched: which rows could be selected at all.
        """
        candidates = sourceCat if matches is None else adopt_colors(sourceCat, matches)
        matched = np.ones(sourceCat.n_rows, dtype=np.bool_)
        if matches is not None:
            matched[:] = False
            matched[matches.second_rows] = True
        suitable = select_stars(candidates, selection=self.config.makeSettings())
        color = candidates["g_minus_r"]
        usual = ~((color < self.config.grMin) | (color > self.config.grMax))
        selected = suitable & matched & usual
        if not self.config.includeVariable:
            selected &= ~candidates["is_variable"]
        self.metadata.update(nCandidates=sourceCat.n_rows, nMatched=int(matched.sum()), nSelected=int(selected.sum()))
        self.log.info("selected %d of %d sources", int(selected.sum()), sourceCat.n_rows)
        return Struct(
            sourceCat=candidates.select(selected), selected=selected, candidates=candidates, matched=matched & suitable
        )


def adopt_colors(sources: Catalog, matches: SourceMatches) -> Catalog:
    """Return a copy of sources with colour and variability of what they were matched with, where that knows them."""
    known = sources.select(np.arange(sources.n_rows))
    rows, color = matches.second_rows, matches.first["g_minus_r"]
    known["g_minus_r"][rows] = np.where(np.isfinite(color), color, known["g_minus_r"][rows])
    known["is_variable"][rows] |= matches.first["is_variable"]
    return known
