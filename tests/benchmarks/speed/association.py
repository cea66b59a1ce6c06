"""How fast an exposure's sources are associated with the objects of its region: nothing read, no pixels.

Four sources in five are known objects, with as many earlier sources each as is asked for; the others are new. Fields
of three sizes: a detector, one of a crowd, and one in which every source has many objects within its radius.
"""

import time

import numpy as np

from alertprod.association.associate import associate
from alertprod.association.columns import KNOWN_OBJECT_COLUMNS
from alertprod.association.forced import ExposureFacts, ForcedFluxes
from alertprod.association.history import History
from alertprod.association.match import match_one_to_one
from alertprod.association.positions import Positions
from alertprod.geometry.sphere import ARCSEC_PER_DEG
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, STORED_DIA_SOURCE_COLUMNS, Catalog

FIELDS = {"a detector": 0.23, "a crowd": 0.08, "a heap": 0.02}
"""Sides in degrees."""

ERR_ARCSEC = 0.1
MJD = 61000.0
REPEATS = 5


def measure_association(n_sources: int, n_objects: int, n_earlier: int) -> dict[str, float]:
    """Return seconds by field and step, the least of some runs."""
    figures = {}
    for name, side in FIELDS.items():
        sources, history, facts = make_field(side, n_sources, n_objects, n_earlier)
        figures[f"{name}, matching, s"] = min(seconds(lambda: match(sources, history)) for _ in range(REPEATS))  # noqa: B023 - called at once
        figures[f"{name}, all of it, s"] = min(seconds(lambda: run(sources, history, facts)) for _ in range(REPEATS))  # noqa: B023 - as above
    return figures


def make_field(side: float, n_sources: int, n_objects: int, n_earlier: int) -> tuple[Catalog, History, ExposureFacts]:
    """Return sources, history and exposure of a square field at dec 0."""
    rng = np.random.default_rng(3)
    ra, dec = 10.0 + rng.uniform(0, side, n_objects), rng.uniform(0, side, n_objects)
    objects = Catalog(KNOWN_OBJECT_COLUMNS, n_objects)
    objects["dia_object_id"], objects["ra_deg"], objects["dec_deg"] = np.arange(1, n_objects + 1), ra, dec
    objects["ra_err_deg"] = objects["dec_err_deg"] = ERR_ARCSEC / n_earlier**0.5 / ARCSEC_PER_DEG
    objects["repeated_mjd_tai"] = MJD - 5.0
    n_known = 4 * n_sources // 5
    scatter = rng.normal(0, ERR_ARCSEC / ARCSEC_PER_DEG, (2, n_known))
    sources = Catalog(DIA_SOURCE_COLUMNS, n_sources)
    fill_sources(sources, first_id=10**12)
    sources["ra_deg"] = np.concatenate([ra[:n_known] + scatter[0], 10.0 + rng.uniform(0, side, n_sources - n_known)])
    sources["dec_deg"] = np.concatenate([dec[:n_known] + scatter[1], rng.uniform(0, side, n_sources - n_known)])
    sources["midpoint_mjd_tai"] = MJD
    earlier = Catalog(STORED_DIA_SOURCE_COLUMNS, n_known * n_earlier)
    fill_sources(earlier, first_id=10**6)
    earlier["dia_object_id"] = np.repeat(objects["dia_object_id"][:n_known], n_earlier)
    earlier["ra_deg"], earlier["dec_deg"] = np.repeat(ra[:n_known], n_earlier), np.repeat(dec[:n_known], n_earlier)
    earlier["midpoint_mjd_tai"] = MJD - np.tile(np.arange(1, n_earlier + 1) * 5.0, n_known)
    wcs = SkyWcs.from_tangent(
        ra_deg=10.0 + side / 2, dec_deg=side / 2, x=2048.0, y=2048.0, scale_arcsec=side * ARCSEC_PER_DEG / 4096
    )
    facts = ExposureFacts(
        visit=1, detector=0, band="r", midpoint_mjd_tai=MJD, time_processed_mjd_tai=MJD, wcs=wcs, shape=(4096, 4096)
    )
    return sources, History(objects, earlier, History.empty().forced), facts


def fill_sources(sources: Catalog, *, first_id: int) -> None:
    """Fill in what association looks at beside places and times."""
    sources["dia_source_id"] = first_id + np.arange(sources.n_rows)
    sources["ra_err_deg"] = sources["dec_err_deg"] = ERR_ARCSEC / ARCSEC_PER_DEG
    sources["band"], sources["psf_flux"], sources["psf_flux_err"] = "r", 1000.0, 50.0


def match(sources: Catalog, history: History) -> np.ndarray:
    """Match alone."""
    return match_one_to_one(Positions.from_catalog(sources), Positions.from_catalog(history.objects))


def run(sources: Catalog, history: History, facts: ExposureFacts):
    """Associate; forced fluxes cost nothing here."""

    def measure(*, x: np.ndarray, y: np.ndarray) -> ForcedFluxes:
        nothing = np.zeros(len(x))
        return ForcedFluxes(nothing, nothing, nothing, nothing)

    return associate(sources, history, facts, measure_forced=measure, forced_id_factory=iter(range(1, 10**9)).__next__)


def seconds(call) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
