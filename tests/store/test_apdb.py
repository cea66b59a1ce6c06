import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import sqlalchemy as sa

from alertprod.association.columns import DIA_FORCED_SOURCE_COLUMNS, DIA_OBJECT_COLUMNS, KNOWN_OBJECT_COLUMNS
from alertprod.association.history import History
from alertprod.geometry.sphere import separation_arcsec
from alertprod.geometry.wcs import SkyWcs
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, STORED_DIA_SOURCE_COLUMNS, Catalog
from alertprod.store.apdb import Apdb, CellsMoved
from alertprod.store.database import Database
from alertprod.store.ledger import ClaimLost, ExposureKey, Ledger, LedgerState
from alertprod.store.outbox import OutboxFile
from alertprod.store.sky import compute_footprint
from alertprod.store.tables import DIA_OBJECT

OUTBOX = OutboxFile(uri="/outbox/x", sha256="ab", n_messages=3, n_bytes=10)
MJD = 61000.0
SHAPE = (400, 400)
EDGES = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -1e30, 1 / 3])


def region(ra_deg=150.0, dec_deg=2.0, scale_arcsec=0.5):
    wcs = SkyWcs.from_tangent(ra_deg=ra_deg, dec_deg=dec_deg, x=199.5, y=199.5, scale_arcsec=scale_arcsec)
    return compute_footprint(wcs, SHAPE)


def fill(columns, n, seed=0):
    """Random values of every column, the awkward floats among them."""
    rng = np.random.default_rng(seed)
    catalog = Catalog(columns, n)
    for column in columns:
        kind = np.dtype(column.dtype).kind
        if kind == "f":
            catalog[column.name] = np.where(rng.random(n) < 0.2, rng.choice(EDGES, n), rng.normal(size=n))
        elif kind == "i":
            catalog[column.name] = rng.integers(0, 2**31 - 1, n)
        elif kind == "b":
            catalog[column.name] = rng.random(n) < 0.5
        else:
            catalog[column.name] = rng.choice(np.array(["u", "r", None], dtype=object), n)
    return catalog


def make_rows(n=1, *, ra_deg=150.0, dec_deg=2.0, first_id=1, mjd=MJD, object_ids=None):
    """n sources at one place, an object and a forced source for each."""
    ids = first_id + np.arange(n)
    object_ids = ids if object_ids is None else object_ids
    sources, objects, forced = (
        fill(DIA_SOURCE_COLUMNS, n),
        fill(DIA_OBJECT_COLUMNS, n),
        fill(DIA_FORCED_SOURCE_COLUMNS, n),
    )
    sources["dia_source_id"], forced["dia_forced_source_id"] = ids, ids
    for catalog in (sources, objects, forced):
        catalog["dia_object_id"] = object_ids
        catalog["ra_deg"], catalog["dec_deg"] = ra_deg, dec_deg
    sources["midpoint_mjd_tai"], forced["midpoint_mjd_tai"] = mjd, mjd
    return {"sources": sources, "objects": objects, "forced": forced}


@dataclass
class Look:
    """All that is known of a region, and how new it is."""

    history: History
    cell_versions: dict


def look(apdb, where, *, days=360.0):
    objects, versions = apdb.read_objects(where)
    sources, forced = apdb.read_light_curves(objects["dia_object_id"], since_mjd_tai=MJD - days)
    return Look(History(objects, sources, forced), versions)


def stored_objects(database):
    """Every column of every object as it is stored."""
    names = [column.name for column in DIA_OBJECT_COLUMNS]
    with database.read() as connection:
        rows = connection.execute(sa.select(*(DIA_OBJECT.c[name] for name in names)).order_by("dia_object_id")).all()
    catalog = Catalog(DIA_OBJECT_COLUMNS, len(rows))
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        catalog[name] = np.array(values, dtype=catalog[name].dtype)
    return catalog


def none_of(columns):
    return Catalog(columns, 0)


@pytest.fixture
def apdb(database, ledger):
    return Apdb(database, ledger)


@pytest.fixture
def claims(ledger):
    """Make claims on ever new exposures."""
    keys = iter(ExposureKey("SimCam", 1, detector) for detector in range(1000))
    return lambda: ledger.claim(next(keys), owner="a", lease_s=60.0)


def store(apdb, claim, rows, cell_versions, summary=None):
    apdb.store_exposure(claim, **rows, cell_versions=cell_versions, outbox=OUTBOX, summary=summary or {})


def assert_equal(found, expected):
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
        assert found[name].dtype == expected[name].dtype


def test_a_new_sky_has_no_history_and_cells_at_version_0(apdb):
    read = look(apdb, region())
    assert (read.history.objects.n_rows, read.history.sources.n_rows, read.history.forced.n_rows) == (0, 0, 0)
    assert len(read.cell_versions) > 0
    assert set(read.cell_versions.values()) == {0}


def test_every_column_comes_back_bit_for_bit(database, apdb, claims):
    rows = make_rows(200)
    store(apdb, claims(), rows, look(apdb, region()).cell_versions)
    history = look(apdb, region()).history
    for found, expected in (
        (stored_objects(database), rows["objects"]),
        (history.sources, rows["sources"]),
        (history.forced, rows["forced"]),
    ):
        assert_equal(found, {column.name: expected[column.name] for column in expected.columns if column.stored})


def test_columns_of_the_exposure_alone_are_not_stored(apdb, claims):
    store(apdb, claims(), make_rows(), {})
    sources = look(apdb, region()).history.sources
    assert sources.columns == STORED_DIA_SOURCE_COLUMNS
    assert "sky_source" not in sources
    assert "glint_trail" in sources


def test_unmeasured_floats_are_null_in_sql(database, apdb, claims):
    rows = make_rows()
    rows["sources"]["trail_flux"] = np.nan
    store(apdb, claims(), rows, {})
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT trail_flux FROM dia_source")).scalar_one() is None


def test_ids_of_63_bits_survive(apdb, claims):
    rows = make_rows(first_id=2**63 - 1)
    rows["sources"]["visit"] = 2**62
    store(apdb, claims(), rows, {})
    history = look(apdb, region()).history
    assert history.sources["dia_source_id"].tolist() == [2**63 - 1]
    assert history.sources["visit"].tolist() == [2**62]


def test_storing_settles_the_ledger_in_the_same_transaction(apdb, ledger, claims):
    claim = claims()
    store(apdb, claim, make_rows(), {}, summary={"n_dia_sources": 1})
    row = ledger.get(claim.key)
    assert row.state is LedgerState.STORED
    assert (row.n_alerts, row.outbox_uri, row.outbox_sha256) == (3, "/outbox/x", "ab")
    assert row.summary == {"n_dia_sources": 1}


def test_an_exposure_without_sources_is_stored_too(apdb, ledger, claims):
    claim = claims()
    read = look(apdb, region())
    nothing = {
        "sources": none_of(DIA_SOURCE_COLUMNS),
        "objects": none_of(DIA_OBJECT_COLUMNS),
        "forced": none_of(DIA_FORCED_SOURCE_COLUMNS),
    }
    store(apdb, claim, nothing, read.cell_versions)
    assert ledger.get(claim.key).state is LedgerState.STORED
    assert look(apdb, region()).cell_versions == read.cell_versions


def test_the_history_ends_where_its_window_does(apdb, claims):
    for i, age in enumerate([0.0, 359.9, 360.1, 720.0]):
        store(apdb, claims(), make_rows(first_id=1 + i, mjd=MJD - age, object_ids=[1]), {})
    history = look(apdb, region()).history
    assert history.sources["dia_source_id"].tolist() == [2, 1]
    assert history.forced["dia_forced_source_id"].tolist() == [2, 1]
    assert look(apdb, region(), days=1000.0).history.sources.n_rows == 4


def test_only_objects_about_the_region_are_read(apdb, claims):
    far = make_rows(ra_deg=151.0, first_id=10)
    store(apdb, claims(), make_rows(first_id=1), {})
    store(apdb, claims(), far, {})
    assert look(apdb, region()).history.objects["dia_object_id"].tolist() == [1]


@pytest.mark.parametrize(("ra_deg", "dec_deg"), [(0.0, 0.0), (359.9999, -30.0), (10.0, 90.0), (77.0, -89.99)])
def test_neither_ra_0_nor_a_pole_is_special(apdb, claims, ra_deg, dec_deg):
    wcs = SkyWcs.from_tangent(ra_deg=ra_deg, dec_deg=dec_deg, x=199.5, y=199.5, scale_arcsec=2.0)
    rng = np.random.default_rng(5)
    n = 50
    rows = make_rows(n)
    rows["objects"]["ra_deg"], rows["objects"]["dec_deg"] = wcs.pixel_to_sky(
        x=rng.uniform(0, 399, n), y=rng.uniform(0, 399, n)
    )
    store(apdb, claims(), rows, {})
    assert look(apdb, compute_footprint(wcs, SHAPE)).history.objects.n_rows == n


def test_an_object_has_one_row_its_latest(database, apdb, claims):
    store(apdb, claims(), make_rows(2), {})
    later = make_rows(1, first_id=5, object_ids=[1])
    later["objects"]["validity_start_mjd_tai"] = MJD + 1.0
    later["objects"]["n_dia_sources"] = 2
    store(apdb, claims(), later, {})
    objects = stored_objects(database)
    assert objects["dia_object_id"].tolist() == [1, 2]
    assert objects["n_dia_sources"][0] == 2
    assert objects["validity_start_mjd_tai"][0] == MJD + 1.0


def test_objects_are_read_with_what_association_needs(database, apdb, claims):
    store(apdb, claims(), make_rows(3), {})
    objects, versions = apdb.read_objects(region())
    assert objects.columns == KNOWN_OBJECT_COLUMNS
    assert versions == look(apdb, region()).cell_versions
    stored = stored_objects(database)
    assert_equal(objects, {column.name: stored[column.name] for column in KNOWN_OBJECT_COLUMNS})


def test_light_curves_are_read_of_the_objects_asked_for(apdb, claims):
    store(apdb, claims(), make_rows(3), {})
    sources, forced = apdb.read_light_curves(np.array([2]), since_mjd_tai=MJD)
    assert sources["dia_source_id"].tolist() == forced["dia_forced_source_id"].tolist() == [2]


def test_a_history_that_moved_is_not_written_over(apdb, ledger, claims):
    read = look(apdb, region())
    store(apdb, claims(), make_rows(first_id=1), read.cell_versions)
    late = claims()
    with pytest.raises(CellsMoved) as caught:
        store(apdb, late, make_rows(first_id=2), read.cell_versions)
    assert set(caught.value.cells) <= set(read.cell_versions)
    assert apdb.count_rows() == {
        "dia_source": 1,
        "dia_object": 1,
        "dia_forced_source": 1,
        "sky_cell": len(read.cell_versions),
    }
    assert ledger.get(late.key).state is LedgerState.CLAIMED
    store(apdb, late, make_rows(first_id=2), look(apdb, region()).cell_versions)
    assert apdb.count_rows()["dia_source"] == 2


@pytest.mark.parametrize("what", ["sources", "forced"])
def test_a_new_row_of_a_known_object_moves_its_cell_too(apdb, claims, what):
    store(apdb, claims(), make_rows(1), {})
    read = look(apdb, region())
    rows = make_rows(1, first_id=2, object_ids=[1])
    rows["objects"] = none_of(DIA_OBJECT_COLUMNS)
    other = "forced" if what == "sources" else "sources"
    rows[other] = rows[other].select(np.zeros(1, dtype=bool))
    store(apdb, claims(), rows, read.cell_versions)
    with pytest.raises(CellsMoved):
        store(apdb, claims(), make_rows(first_id=3), read.cell_versions)


def test_an_object_that_moves_over_a_border_moves_both_cells(apdb, claims):
    store(apdb, claims(), make_rows(1), {})
    here, there = region(), region(ra_deg=150.5)
    read_here, read_there = (look(apdb, place).cell_versions for place in (here, there))
    moved = make_rows(1, ra_deg=150.5, first_id=2, object_ids=[1])
    store(apdb, claims(), moved, {})
    for versions in (read_here, read_there):
        with pytest.raises(CellsMoved):
            store(apdb, claims(), make_rows(first_id=9), versions)
    assert look(apdb, here).history.objects.n_rows == 0
    assert look(apdb, there).history.objects.n_rows == 1


def test_neighbours_that_only_share_a_border_do_not_disturb_each_other(apdb, claims):
    left, right = region(scale_arcsec=5.0), region(ra_deg=150.0 + 2000.0 / 3600.0, scale_arcsec=5.0)
    versions = [look(apdb, place).cell_versions for place in (left, right)]
    assert versions[0].keys() & versions[1].keys()
    store(apdb, claims(), make_rows(ra_deg=150.0 - 900.0 / 3600.0, first_id=1), versions[0])
    store(apdb, claims(), make_rows(ra_deg=150.0 + 2900.0 / 3600.0, first_id=2), versions[1])


def test_a_lost_claim_writes_nothing(apdb, ledger, clock):
    key = ExposureKey("SimCam", 2, 0)
    lost = ledger.claim(key, owner="a", lease_s=60.0)
    clock.now += 61.0
    held = ledger.claim(key, owner="b", lease_s=60.0)
    with pytest.raises(ClaimLost):
        store(apdb, lost, make_rows(), {})
    assert set(apdb.count_rows().values()) == {0}
    store(apdb, held, make_rows(), {})
    assert apdb.count_rows()["dia_source"] == 1


def test_an_id_that_is_there_already_is_a_bug_and_writes_nothing(apdb, ledger, claims):
    store(apdb, claims(), make_rows(first_id=1), {})
    twice = claims()
    with pytest.raises(sa.exc.IntegrityError):
        store(apdb, twice, make_rows(first_id=1), {})
    assert ledger.get(twice.key).state is LedgerState.CLAIMED
    assert apdb.count_rows()["dia_source"] == 1


def associate_and_store(apdb, claim, source_id, ra_deg, dec_deg):
    """Match within an arcsecond or make an object; again where the history moved. Return how often."""
    for attempt in range(100):
        read = look(apdb, region())
        objects, sources = read.history.objects, read.history.sources
        near = np.flatnonzero(separation_arcsec(objects["ra_deg"], objects["dec_deg"], ra_deg, dec_deg) < 1.0)
        object_id = int(objects["dia_object_id"][near[0]]) if near.size else source_id
        rows = make_rows(1, ra_deg=ra_deg, dec_deg=dec_deg, first_id=source_id, object_ids=[object_id])
        rows["objects"]["n_dia_sources"] = 1 + np.count_nonzero(sources["dia_object_id"] == object_id)
        try:
            store(apdb, claim, rows, read.cell_versions)
        except CellsMoved:
            continue
        return attempt
    return pytest.fail("the history never stood still")


def test_simultaneous_exposures_of_one_place_make_one_object(database_url, clock):
    n = 4
    databases = [Database(database_url) for _ in range(n)]
    ledgers = [Ledger(database, clock=clock) for database in databases]
    apdbs = [Apdb(database, ledger) for database, ledger in zip(databases, ledgers, strict=True)]
    barrier = threading.Barrier(n)

    def run(i):
        retries = 0
        for visit in range(4):
            claim = ledgers[i].claim(ExposureKey("SimCam", visit, i), owner=str(i), lease_s=60.0)
            barrier.wait()
            retries += associate_and_store(apdbs[i], claim, 1 + visit * n + i, 150.0, 2.0)
        return retries

    with ThreadPoolExecutor(n) as pool:
        retries = list(pool.map(run, range(n)))
    history = look(apdbs[0], region()).history
    assert history.objects.n_rows == 1
    assert stored_objects(databases[0])["n_dia_sources"].tolist() == [4 * n]
    assert history.sources.n_rows == 4 * n
    assert sum(retries) > 0  # else nothing was put to the test
    for database in databases:
        database.close()


def store_and_die(url):
    database = Database(url)
    ledger = Ledger(database)
    apdb = Apdb(database, ledger)
    claim = ledger.claim(ExposureKey("SimCam", 1, 1), owner="a", lease_s=0.0)
    apdb._replace_objects = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    store(apdb, claim, make_rows(50), {})


def test_a_worker_killed_within_the_store_leaves_nothing_of_it(database_url, database, ledger, apdb):
    process = multiprocessing.get_context("spawn").Process(target=store_and_die, args=(database_url,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert set(apdb.count_rows().values()) == {0}
    ledger = Ledger(database)
    assert ledger.get(ExposureKey("SimCam", 1, 1)).state is LedgerState.CLAIMED
    again = ledger.claim(ExposureKey("SimCam", 1, 1), owner="b", lease_s=60.0)
    store(apdb, again, make_rows(50), {})
    assert apdb.count_rows()["dia_source"] == 50
