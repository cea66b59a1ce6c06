"""Photometric calibration: from image units to nanojansky."""

from dataclasses import dataclass

import numpy as np

AB_ZERO_POINT_NJY = 31.4
"""AB magnitude of 1 nJy, to the 3 mmag of 8.90 + 2.5 log10(1e9): the field's convention."""


@dataclass(frozen=True, slots=True)
class PhotoCalib:
    """A constant scale from image units to nJy.

    Parameters
    ----------
    njy_per_count
        nJy of one image unit (count, electron, nJy itself: 1.0). Positive and finite.
    is_nominal
        Nobody measured it: the zero point is a stand-in, and headers, summaries and alerts say so.
    njy_per_count_err
        Standard error of the scale; None where nobody says.
    """

    njy_per_count: float = 1.0
    is_nominal: bool = False
    njy_per_count_err: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.njy_per_count) and self.njy_per_count > 0):
            msg = f"njy_per_count is {self.njy_per_count}; a positive finite number is needed"
            raise ValueError(msg)

    @classmethod
    def from_zero_point(cls, zero_point_mag: float, *, is_nominal: bool = False) -> "PhotoCalib":
        """Build from the AB magnitude of one count (per exposure, not per second)."""
        return cls(10.0 ** (0.4 * (AB_ZERO_POINT_NJY - zero_point_mag)), is_nominal=is_nominal)

    @property
    def zero_point_mag(self) -> float:
        """AB magnitude of one count."""
        return float(AB_ZERO_POINT_NJY - 2.5 * np.log10(self.njy_per_count))
