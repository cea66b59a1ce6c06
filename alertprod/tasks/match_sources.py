"""Which sources of two tables are the same, and which star or reference object a DiaSource lies on."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from alertprod._typing import FloatArray, IntArray
from alertprod.geometry.match import UNMATCHED, match_nearest, match_sky_positions
from alertprod.geometry.sphere import ARCSEC_PER_DEG, separation_arcsec
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMatches:
    """Pairs of rows of two tables, in the order of the second.

    Parameters
    ----------
    first, second
        The rows that are matched, of equal number: pair k is row k of each. The first is the one that is trusted
        (reference objects; the sources whose world coordinates hold), the second the one to learn about.
    first_rows, second_rows
        Their rows in the tables that were matched.
    separation_arcsec
        Distance of each pair.
    """

    first: Catalog
    second: Catalog
    first_rows: IntArray
    second_rows: IntArray
    separation_arcsec: FloatArray

    def __len__(self) -> int:
        return len(self.first_rows)

    def compute_offsets_arcsec(self) -> tuple[FloatArray, FloatArray]:
        """Return second minus first, east (times cos(dec)) and north, of each pair."""
        east = (self.second["ra_deg"] - self.first["ra_deg"] + 180.0) % 360.0 - 180.0
        east *= np.cos(np.radians(self.first["dec_deg"]))
        north = self.second["dec_deg"] - self.first["dec_deg"]
        return east * ARCSEC_PER_DEG, north * ARCSEC_PER_DEG

    def select(self, pairs: Any) -> "SourceMatches":
        """Return the pairs that a mask or indices pick."""
        return SourceMatches(
            first=self.first.select(pairs),
            second=self.second.select(pairs),
            first_rows=self.first_rows[pairs],
            second_rows=self.second_rows[pairs],
            separation_arcsec=self.separation_arcsec[pairs],
        )


def match_sources(first: Catalog, second: Catalog, *, radius_arcsec: float) -> SourceMatches:
    """Match two tables on the sky by `ra_deg` and `dec_deg`: pairs that are nearest to each other.

    Rows without a position match nothing.
    """
    partner = match_sky_positions(
        ra_deg=second["ra_deg"],
        dec_deg=second["dec_deg"],
        other_ra_deg=first["ra_deg"],
        other_dec_deg=first["dec_deg"],
        radius_arcsec=radius_arcsec,
    )
    second_rows = np.flatnonzero(partner != UNMATCHED)
    first_rows = partner[second_rows]
    here, there = first.select(first_rows), second.select(second_rows)
    return SourceMatches(
        first=here,
        second=there,
        first_rows=first_rows,
        second_rows=second_rows,
        separation_arcsec=separation_arcsec(here["ra_deg"], here["dec_deg"], there["ra_deg"], there["dec_deg"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiaSourceMatches:
    """What each DiaSource lies on, shape ``(n,)``; 0 for nothing.

    Parameters
    ----------
    src_match_id
        `source_id` of the nearest source of the science image.
    ref_match_id
        `reference_id` of the nearest reference object.
    """

    src_match_id: IntArray
    ref_match_id: IntArray

    @property
    def n_src_matches(self) -> int:
        """DiaSources that lie on a source of the science image."""
        return int(np.count_nonzero(self.src_match_id))

    @property
    def n_ref_matches(self) -> int:
        """DiaSources that lie on a reference object."""
        return int(np.count_nonzero(self.ref_match_id))


def match_dia_sources(
    diaSources: Catalog,
    *,
    select_sources: Catalog | None,
    reference: Catalog | None,
    wcs: SkyWcs | None,
    shape: tuple[int, int],
    radius_arcsec: float,
) -> DiaSourceMatches:
    """Match DiaSources with sources of the science image in pixels, and with reference objects on the sky.

    Parameters
    ----------
    diaSources
        `DIA_SOURCE_COLUMNS`; not changed. Both lobes of a dipole may lie on one star: several may have one id.
    select_sources
        `SOURCE_COLUMNS`, of the same pixels; None matches nothing.
    reference
        `REFERENCE_COLUMNS`; None matches nothing.
    wcs, shape
        Of the difference: the radius in pixels is that in its middle. Without world coordinates nothing matches.
    radius_arcsec
        Largest distance.
    """
    src_match_id = np.zeros(diaSources.n_rows, dtype=np.int64)
    ref_match_id = np.zeros(diaSources.n_rows, dtype=np.int64)
    if wcs is None:
        return DiaSourceMatches(src_match_id=src_match_id, ref_match_id=ref_match_id)
    if select_sources is not None:
        scale = wcs.compute_pixel_scale_arcsec(x=(shape[1] - 1) / 2, y=(shape[0] - 1) / 2)
        rows = match_nearest(_pixels(diaSources), _pixels(select_sources), radius=radius_arcsec / scale, mutual=False)
        found = rows != UNMATCHED
        src_match_id[found] = select_sources["source_id"][rows[found]]
    if reference is not None:
        rows = match_sky_positions(
            ra_deg=diaSources["ra_deg"],
            dec_deg=diaSources["dec_deg"],
            other_ra_deg=reference["ra_deg"],
            other_dec_deg=reference["dec_deg"],
            radius_arcsec=radius_arcsec,
            mutual=False,
        )
        found = rows != UNMATCHED
        ref_match_id[found] = reference["reference_id"][rows[found]]
    return DiaSourceMatches(src_match_id=src_match_id, ref_match_id=ref_match_id)


def _pixels(sources: Catalog) -> FloatArray:
    return np.stack([sources["x"], sources["y"]], axis=1).astype(float)
