"""How sources become objects: what is left out, what is the same, what is new."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alertprod.association.forced import ForcedConfig
from alertprod.association.match import SYSTEMATIC_ERR_ARCSEC
from alertprod.errors import ConfigError
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS

_FLAGS = frozenset(column.name for column in DIA_SOURCE_COLUMNS if np.dtype(column.dtype).kind == "b")


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationConfig:
    """What is taken for the same object, and what is not taken at all.

    Raises
    ------
    ConfigError
        Raised if a flag is none of a DiaSource's.
    """

    radius_arcsec: float = 1.0
    """Several times the position error of a faint source, far less than the distance of two objects."""

    systematic_err_arcsec: float = SYSTEMATIC_ERR_ARCSEC
    """Between two exposures, per axis, beside what either measured; no pair is trusted better than this."""

    history_days: float = 360.0
    """Twelve months of thirty days, the reference's; as far back as statistics and packets reach."""

    excluded_flags: tuple[str, ...] = (
        "centroid_flag",
        "pixel_flags_cr_center",
        "pixel_flags_high_variance_center_all",
        "sky_source",
    )
    """A source with one of these is no detection: neither stored nor sent."""

    new_object_flags: tuple[str, ...] = (
        "centroid_flag",
        "pixel_flags_cr_center",
        "pixel_flags_nodata_center",
        "pixel_flags_interpolated_center",
        "pixel_flags_saturated_center",
        "pixel_flags_suspect_center",
        "pixel_flags_streak_center",
        "glint_trail",
    )
    """A source with one of these may belong to a known object, but is no evidence of a new one."""

    min_science_snr: float = -2.0
    """A forced flux on the science image that is more negative than noise allows marks an artefact."""

    max_trail_rate_arcsec_per_s: float = 10.0 * 3600.0 / 86400.0
    """10 degrees a day: faster is a satellite. Times the exposure time it is the longest trail kept."""

    min_reliability: float | None = None
    """Sources scored below make no alert; None: all do. Sources nobody scored always do."""

    min_new_object_reliability: float = 0.1
    """Sources scored below make no new object; sources nobody scored do."""

    forced: ForcedConfig = field(default_factory=ForcedConfig)

    def __post_init__(self) -> None:
        _require_flags("excluded_flags", self.excluded_flags)
        _require_flags("new_object_flags", self.new_object_flags)


def _require_flags(setting: str, names: Sequence[str]) -> None:
    unknown = sorted(set(names) - _FLAGS)
    if unknown:
        raise ConfigError("[association]", setting, f"a DiaSource has no flag {', '.join(unknown)}")
