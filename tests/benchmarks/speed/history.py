"""How fast the history under an exposure is read from a store that is full, and how fast sources are associated with it.

The store is filled by the database itself, with rows of realistic width. Objects are strewn over the table without
regard to their places on the sky, which is the worst order for a read; so are the sources of an object. A store that
is there already is used as it is.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from postgres_server import PostgresServer

from alertprod.association.associate import associate, find_known
from alertprod.association.columns import DIA_OBJECT_COLUMNS
from alertprod.association.forced import ExposureFacts, ForcedFluxes
from alertprod.association.history import History
from alertprod.geometry.sphere import ARCSEC_PER_DEG
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, STORED_DIA_SOURCE_COLUMNS, Catalog
from alertprod.store.apdb import Apdb
from alertprod.store.database import Database
from alertprod.store.ledger import Ledger
from alertprod.store.sky import compute_cells, compute_footprint
from alertprod.store.tables import DIA_OBJECT, DIA_SOURCE

SHAPE = (4096, 4096)
SCALE_ARCSEC = 0.2
LAST_MJD = 61000.0
DEC_DEG = -30.0
PER_EXPOSURE = 2000
N_MATCHED = 300
N_EXPOSURES = 15


def measure_history(url: str, *, n_objects: int, sources_each: int) -> dict[str, float]:
    """Fill a store, read it, and return seconds by step and the numbers of rows; medians over exposures, and the worst."""
    database = Database(url)
    database.upgrade()
    apdb = Apdb(database, Ledger(database))
    if not apdb.count_rows()["dia_object"]:
        fill(database, url, n_objects, sources_each)
    n_objects = apdb.count_rows()["dia_object"]
    figures = measure(apdb, compute_side_deg(n_objects), on_cold=lambda: forget(url))
    database.close()
    return {"objects in the store": n_objects, **figures}


@contextmanager
def postgres() -> Iterator[str]:
    """Give the URL of an empty PostgreSQL of its own, which lives as long as the block."""
    server = PostgresServer()
    try:
        yield server.url
    finally:
        server.close()


def compute_side_deg(n_objects: int) -> float:
    """Return the side of the square field that holds `PER_EXPOSURE` objects under each exposure."""
    detector = SHAPE[0] * SCALE_ARCSEC / ARCSEC_PER_DEG
    return float(detector * np.sqrt(n_objects / PER_EXPOSURE))


def fill(database: Database, url: str, n_objects: int, sources_each: int) -> None:
    """Insert objects and their sources."""
    rng = np.random.default_rng(1)
    side = compute_side_deg(n_objects)
    dec = DEC_DEG + rng.uniform(0.0, side, n_objects)
    ra = 100.0 + rng.uniform(0.0, side, n_objects) / np.cos(np.radians(dec))
    cells = compute_cells(ra, dec)
    indexes = [index for table in (DIA_OBJECT, DIA_SOURCE) for index in table.indexes]
    with database.write() as connection:
        for index in indexes:
            index.drop(connection)
        connection.execute(
            sa.text("CREATE TEMPORARY TABLE seed (i BIGINT, ra DOUBLE PRECISION, dec DOUBLE PRECISION, cell BIGINT)")
        )
        for rows in np.array_split(np.arange(n_objects), max(1, n_objects // 50_000)):
            connection.execute(
                sa.text("INSERT INTO seed VALUES (:i, :ra, :dec, :cell)"),
                [
                    {"i": i, "ra": a, "dec": d, "cell": c}
                    for i, a, d, c in zip(
                        rows.tolist(), ra[rows].tolist(), dec[rows].tolist(), cells[rows].tolist(), strict=True
                    )
                ],
            )
        connection.execute(sa.text(insert_objects(sources_each)))
        for visit in range(sources_each):  # as they come: an exposure's sources together, an object's far apart
            connection.execute(sa.text(insert_sources(visit, n_objects, sources_each)))
        connection.execute(sa.text("DROP TABLE seed"))
    with database.write() as connection:
        for index in indexes:
            index.create(connection)
    if not database.is_sqlite:  # what a server does by itself, some time after so many rows
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))
        engine.dispose()


def insert_objects(sources_each: int) -> str:
    """Return the statement that makes an object of each seed."""
    known = {
        "dia_object_id": "i + 1",
        "ra_deg": "ra",
        "dec_deg": "dec",
        "ra_err_deg": "0.00003",
        "dec_err_deg": "0.00003",
        "repeated_mjd_tai": str(LAST_MJD - 30.0),
        "last_dia_source_mjd_tai": str(LAST_MJD),
        "n_dia_sources": str(sources_each),
    }
    names, values = make_values(DIA_OBJECT_COLUMNS, known)
    return f"INSERT INTO dia_object ({names}, cell) SELECT {values}, cell FROM seed"


def insert_sources(visit: int, n_objects: int, sources_each: int) -> str:
    """Return the statement that makes one more source of each object."""
    known = {
        "dia_source_id": f"i + 1 + {visit * n_objects}",
        "dia_object_id": "i + 1",
        "visit": str(visit),
        "midpoint_mjd_tai": str(LAST_MJD - 30.0 * (sources_each - 1 - visit)),
        "ra_deg": "ra",
        "dec_deg": "dec",
    }
    names, values = make_values(STORED_DIA_SOURCE_COLUMNS, known)
    return f"INSERT INTO dia_source ({names}) SELECT {values} FROM seed"


def make_values(columns: tuple, known: dict[str, str]) -> tuple[str, str]:
    """Return the columns' names and an expression for each: of the kind and width that real rows have."""
    by_kind = {"f": "(i % 1009) * 1.37", "i": "0", "b": "FALSE", "O": "'r'"}
    expressions = [known.get(column.name, by_kind[np.dtype(column.dtype).kind]) for column in columns]
    return ", ".join(column.name for column in columns), ", ".join(expressions)


def measure(apdb: Apdb, side: float, *, on_cold: Callable[[], None]) -> dict[str, float]:
    """Read and associate exposures anywhere in the field."""
    rng = np.random.default_rng(2)
    times = {"region": [], "light curves": [], "associate": [], "region, cold": []}
    counts = []
    for k in range(N_EXPOSURES + 1):
        dec = DEC_DEG + rng.uniform(0.2, max(0.21, side - 0.2))
        ra = 100.0 + rng.uniform(0.2, max(0.21, side - 0.2)) / np.cos(np.radians(dec))
        wcs = SkyWcs.from_tangent(ra_deg=ra, dec_deg=dec, x=2048.0, y=2048.0, scale_arcsec=SCALE_ARCSEC)
        footprint = compute_footprint(wcs, SHAPE)
        on_cold()
        started = time.perf_counter()
        apdb.read_objects(footprint)
        cold = time.perf_counter() - started
        started = time.perf_counter()
        objects, _ = apdb.read_objects(footprint)
        region = time.perf_counter() - started
        sources = make_sources(objects, wcs, rng)
        ids = find_known(sources, objects, radius_arcsec=1.0)
        started = time.perf_counter()
        light_curves, forced = apdb.read_light_curves(ids, since_mjd_tai=LAST_MJD - 360.0)
        curves = time.perf_counter() - started
        facts = ExposureFacts(
            visit=99, detector=0, band="r", midpoint_mjd_tai=LAST_MJD + 1, time_processed_mjd_tai=LAST_MJD, wcs=wcs,
            shape=SHAPE,
        )  # fmt: skip
        started = time.perf_counter()
        associate(
            sources, History(objects, light_curves, forced), facts,
            measure_forced=no_fluxes, forced_id_factory=iter(range(10**9)).__next__,
        )  # fmt: skip
        taken = time.perf_counter() - started
        if k:  # the first one compiles statements and connects
            for name, seconds in zip(times, (region, curves, taken, cold), strict=True):
                times[name].append(seconds)
            counts.append((objects.n_rows, len(ids), light_curves.n_rows))
    figures = dict(
        zip(
            ("objects under an exposure", "of them near a source", "sources of those"),
            np.median(counts, axis=0).tolist(),
            strict=True,
        )
    )
    for name, seconds in times.items():
        figures |= {f"{name}, s": float(np.median(seconds)), f"{name}, worst, s": max(seconds)}
    return figures


def make_sources(objects: Catalog, wcs: SkyWcs, rng: np.random.Generator) -> Catalog:
    """Return what an exposure sees: some of the objects, and as many new ones."""
    x, y = wcs.sky_to_pixel(ra_deg=objects["ra_deg"], dec_deg=objects["dec_deg"])
    inside = np.flatnonzero((x > 0) & (x < SHAPE[1]) & (y > 0) & (y < SHAPE[0]))
    seen = rng.choice(inside, min(N_MATCHED, len(inside)), replace=False)
    x = np.concatenate([x[seen], rng.uniform(0, SHAPE[1], len(seen))])
    y = np.concatenate([y[seen], rng.uniform(0, SHAPE[0], len(seen))])
    sources = Catalog(DIA_SOURCE_COLUMNS, len(x))
    sources["dia_source_id"] = 10**12 + np.arange(len(x))
    sources["ra_deg"], sources["dec_deg"] = wcs.pixel_to_sky(x=x, y=y)
    sources["ra_err_deg"] = sources["dec_err_deg"] = 0.05 / ARCSEC_PER_DEG
    sources["midpoint_mjd_tai"], sources["band"] = LAST_MJD + 1, "r"
    return sources


def no_fluxes(*, x: np.ndarray, y: np.ndarray) -> ForcedFluxes:
    """Measure nothing: pixels are another benchmark's."""
    nothing = np.zeros(len(x))
    return ForcedFluxes(nothing, nothing, nothing, nothing)


def forget(url: str) -> None:
    """Have the system forget what it cached of a SQLite file; a server's cache stays as it is."""
    path = url.removeprefix("sqlite:///")
    if path == url:
        return
    with Path(path).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
