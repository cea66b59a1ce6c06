"""What a warm worker reads for an exposure, with the template and the history brought into memory beforehand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from traced_worker import bytes_from_disk

from alertprod.config import DaemonConfig, InstrumentConfig, StoreConfig, WorkersConfig
from alertprod.factory import _create_prefetch as create_prefetch
from alertprod.geometry.sphere import SphericalPolygon
from alertprod.store.apdb import Apdb
from alertprod.store.database import Database, upgrade
from alertprod.store.ledger import Ledger
from alertprod.stream.messages import NextVisit

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_night):
    folder = tmp_path_factory.mktemp("worker")
    upgrade(f"sqlite:///{folder}/alertprod.sqlite")
    store = StoreConfig(
        database_url=f"sqlite:///{folder}/alertprod.sqlite",
        outbox_uri=str(folder / "outbox"),
        template_index=str(small_night.templates_directory / "templates.json"),
        template_cache_directory=str(folder / "cache"),
    )
    profile = str(small_night.directory / "profile.toml")
    instrument = InstrumentConfig(profile=profile, field_radius_deg=0.05)
    return DaemonConfig(
        store=store,
        instruments={small_night.config.instrument: instrument},
        workers=WorkersConfig(threads_per_worker=1),
    )


def announce(config, event):
    prefetch = create_prefetch(config)
    assert prefetch is not None
    prefetch(
        NextVisit(
            instrument=event["instrument"], visit=event["visit"], band=event["band"], ra_deg=event["ra_deg"],
            dec_deg=event["dec_deg"], shutter_opens_at_mjd_tai=event["shutter_open_mjd_tai"],
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def told(config, small_night, tmp_path_factory):
    """What a worker of its own did for the first exposure, having been announced."""
    folder, event = tmp_path_factory.mktemp("told"), small_night.event(0, 0)
    announce(config, event)
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "event.json").write_text(json.dumps(event))
    done = subprocess.run(
        [sys.executable, TESTS / "traced_worker.py", folder / "config.json", folder / "event.json"],
        capture_output=True, text=True, timeout=250, check=False,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_with_a_warm_cache_an_exposure_opens_nothing_but_its_own_image(told, config, small_night):
    assert told["outcome"] == "stored"
    assert told["n_alerts"] > 0
    hits, misses = told["cache"]
    assert (hits > 0, misses) == (True, 0)
    ours = str(Path(config.store.outbox_uri).parent)  # the cache's mapped files, and where the alerts go
    seen = {(how, path) for how, path in map(tuple, told["seen"]) if not path.startswith(ours)}
    assert seen == {("read", small_night.event(0, 0)["calexp_uri"])}


def test_history_read_ahead_costs_the_exposure_no_disk(told, config, small_night):
    """Nothing of the database is in memory; once the next visit is announced, all that its exposure reads of it is."""
    assert told["n_alerts"] > 0
    database = Path(config.store.database_url.removeprefix("sqlite:///"))
    forget(database)
    cold = read_history(config, small_night.event(1, 0))
    if cold == 0:
        pytest.skip("this file system does not tell what comes from its disk")
    forget(database)
    announce(config, small_night.event(1, 0))
    assert read_history(config, small_night.event(1, 0)) == 0


def forget(database):
    """Have the kernel drop what it keeps of a database in memory, its log included."""
    for path in (database, database.with_name(f"{database.name}-wal")):
        if path.exists():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def read_history(config, event):
    """Read what an exposure's association reads; return how many bytes of it came from the disk."""
    database = Database(config.store.database_url)
    try:
        apdb = Apdb(database, Ledger(database))
        database.current_revision()  # the connection, and the file's first page
        before = bytes_from_disk()
        field = SphericalPolygon.cap(ra_deg=event["ra_deg"], dec_deg=event["dec_deg"], radius_arcsec=60.0)
        objects, _ = apdb.read_objects(field)
        assert objects.n_rows > 0
        sources, _ = apdb.read_light_curves(objects["dia_object_id"], since_mjd_tai=0.0)
        assert sources.n_rows >= objects.n_rows
        return bytes_from_disk() - before
    finally:
        database.close()
