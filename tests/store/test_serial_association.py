"""Exposures of one piece of sky at one time, in two processes: what is stored and what is sent is that of one order."""

import itertools
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa

from alertprod.alerts.avro import decode_alert
from alertprod.alerts.cutouts import CutoutConfig
from alertprod.association.config import AssociationConfig
from alertprod.association.forced import ExposureFacts
from alertprod.association.solar_system import SolarSystemConfig
from alertprod.config import DaemonConfig, StoreConfig
from alertprod.geometry.wcs import SkyWcs
from alertprod.ids import IdFactory, SequencePacker
from alertprod.images.exposure import Exposure
from alertprod.images.masked_image import MaskedImage
from alertprod.measurement.catalog import DIA_SOURCE_COLUMNS, Catalog
from alertprod.psf.analytic import GaussianPsf
from alertprod.service.differencing import Differenced
from alertprod.service.packaging import prepare_sources
from alertprod.service.pipeline import ID_EXPOSURE_BITS, Computed, ExposurePipeline, Science, store
from alertprod.service.stopwatch import Stopwatch
from alertprod.service.work import WorkOrder
from alertprod.store.apdb import Apdb
from alertprod.store.database import Database
from alertprod.store.ephemerides import EphemeridesStore
from alertprod.store.ledger import EventPosition, ExposureKey, Ledger
from alertprod.store.outbox import read_outbox
from alertprod.store.tables import DIA_FORCED_SOURCE, DIA_OBJECT, DIA_SOURCE
from alertprod.stream.messages import VisitReady

N_ROUNDS = 3
SHAPE = (64, 64)
WCS = SkyWcs.from_tangent(ra_deg=150.0, dec_deg=2.0, x=32.0, y=32.0, scale_arcsec=0.5)
START_MJD = 61000.0
CONFIG = AssociationConfig()


class StandingClock:
    """The time of processing must not tell two runs apart."""

    def mjd_tai(self):
        return START_MJD + 50.0

    def unix_s(self):
        return 1.8e9


def make_computed(visit):
    """One exposure after its pixels: some of eight stars, jittered by their errors, on a flat difference."""
    rng = np.random.default_rng(visit)
    seen = np.flatnonzero(rng.random(8) < 0.7)
    x = 10.0 + 14.0 * (seen % 4) + rng.normal(0, 0.2, len(seen))
    y = 16.0 + 28.0 * (seen // 4) + rng.normal(0, 0.2, len(seen))
    mjd = START_MJD + visit // 2  # the two exposures of a round are of one moment
    sources = Catalog(DIA_SOURCE_COLUMNS, len(seen))
    packed = SequencePacker().pack(visit=visit, detector=0)
    ids = IdFactory(packed, ID_EXPOSURE_BITS)
    sources["dia_source_id"] = [ids() for _ in seen]
    sources["visit"], sources["detector"], sources["band"] = visit, 0, "r"
    sources["midpoint_mjd_tai"], sources["exposure_time_s"], sources["bbox_size"] = mjd, 30.0, 12
    sources["x"], sources["y"] = x, y
    sources["ra_deg"], sources["dec_deg"] = WCS.pixel_to_sky(x=x, y=y)
    sources["ra_err_deg"] = sources["dec_err_deg"] = 0.1 / 3600
    sources["psf_flux"], sources["psf_flux_err"] = rng.normal(1000, 50, len(seen)), 50.0
    planes = MaskedImage(
        rng.normal(0, 1, SHAPE).astype(np.float32), np.zeros(SHAPE, np.int32), np.ones(SHAPE, np.float32)
    )
    image = Exposure(masked_image=planes, wcs=WCS, psf=GaussianPsf(fwhm=3.0, size=15))
    differenced = Differenced(
        science=image, template=image, difference=image, sources=sources, figures={}, stage_seconds={}
    )
    facts = ExposureFacts(
        visit=visit, detector=0, band="r", midpoint_mjd_tai=mjd, time_processed_mjd_tai=mjd, wcs=WCS, shape=SHAPE
    )
    cutouts = CutoutConfig(min_size=9, max_size=9)
    prepared = prepare_sources(differenced, facts, association=CONFIG, cutouts=cutouts)
    return Computed(differenced=differenced, facts=facts, prepared=prepared)


class Worker:
    """A pipeline of its own on the shared database."""

    def __init__(self, url, outbox):
        self.database = Database(url)
        self.ledger = Ledger(self.database)
        task = SimpleNamespace(makeIdFactory=IdFactory)
        self.pipeline = ExposurePipeline(
            DaemonConfig(store=StoreConfig(database_url=url, outbox_uri=str(outbox))),
            instruments={"SimCam": SimpleNamespace(task=task, packer=SequencePacker(), release=0)},
            images=None,
            cache=None,
            apdb=Apdb(self.database, self.ledger),
            ephemerides=EphemeridesStore(),
            science=Science(association=CONFIG, solar_system=SolarSystemConfig()),
            clock=StandingClock(),
        )

    def run(self, visit, *, on_read=lambda: None):
        """Associate and store one exposure; return its alerts' bytes, and how often the history was read."""
        computed, reads = make_computed(visit), []
        read_objects = self.pipeline._apdb.read_objects

        def read(*args, **kwargs):
            answer = read_objects(*args, **kwargs)
            reads.append(1)
            if len(reads) == 1:
                on_read()
            return answer

        self.pipeline._apdb.read_objects = read
        mjd = computed.facts.midpoint_mjd_tai
        event = VisitReady(
            instrument="SimCam", visit=visit, detector=0, band="r", shutter_open_mjd_tai=mjd, shutter_close_mjd_tai=mjd,
            exposure_time_s=30.0, ra_deg=150.0, dec_deg=2.0, calexp_uri="/x", sent_at_mjd_tai=mjd,
        )  # fmt: skip
        claim = self.ledger.claim(ExposureKey("SimCam", visit, 0), owner=str(visit), lease_s=60.0)
        order = WorkOrder(
            event=event, position=EventPosition("t", 0, visit), claim=claim, received_unix_s=0.0, deadline_s=60.0
        )
        _, outbox = store(self.pipeline, order, computed, Stopwatch())
        self.pipeline._apdb.read_objects = read_objects
        return [message.value for message in read_outbox(outbox.uri, outbox.sha256)], len(reads)


def work(url, outbox, visits, barrier, results):
    """Be one of two processes: both have read the history before either stores."""
    worker = Worker(url, outbox)
    for visit in visits:
        barrier.wait()  # what the other did before is stored
        results.put((visit, *worker.run(visit, on_read=barrier.wait)))
    worker.database.close()


def dump(database):
    """Every row of every table, in a fixed order."""
    with database.read() as connection:
        return {
            table.name: [
                tuple(
                    # PostgreSQL tells the digits that a float has, SQLite those of its double.
                    np.float32(value) if isinstance(column.type, sa.REAL) and value is not None else value
                    for column, value in zip(table.columns, row, strict=True)
                )
                for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))
            ]
            for table in (DIA_SOURCE, DIA_OBJECT, DIA_FORCED_SOURCE)
        }


@pytest.fixture(scope="module")
def serial_results(migrated_sqlite, tmp_path_factory):
    """What each order of exposures gives, one after the other: (rows, alerts by visit)."""
    folder = tmp_path_factory.mktemp("serial")
    results = []
    rounds = [((2 * k, 2 * k + 1), (2 * k + 1, 2 * k)) for k in range(N_ROUNDS)]
    for number, choices in enumerate(itertools.product(*rounds)):
        path = folder / f"{number}.db"
        path.write_bytes(migrated_sqlite.read_bytes())
        worker = Worker(f"sqlite:///{path}", folder / f"outbox-{number}")
        alerts = {visit: worker.run(visit)[0] for visit in itertools.chain(*choices)}
        results.append((dump(worker.database), alerts))
        worker.database.close()
    return results


def test_orders_differ(serial_results):
    # Else nothing is put to the test: a star seen first by one of a round has that one's id.
    assert len({tuple(row[0] for row in rows["dia_object"]) for rows, _ in serial_results}) > 1
    for _, alerts in serial_results:
        packets = [decode_alert(value) for values in alerts.values() for value in values]
        assert sum(packet["prvDiaSources"] is not None for packet in packets) > 10
        for packet in packets:
            assert packet["diaObject"]["nDiaSources"] == 1 + len(packet["prvDiaSources"] or ())


@pytest.mark.slow
def test_two_processes_on_one_piece_of_sky_give_what_one_of_the_orders_gives(
    database_url, database, tmp_path, serial_results
):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(
            target=work, args=(database_url, tmp_path / "outbox", range(k, 2 * N_ROUNDS, 2), barrier, results)
        )
        for k in range(2)
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in range(2 * N_ROUNDS)]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    alerts = {visit: values for visit, values, _ in answers}
    reads = {visit: n for visit, _, n in answers}
    # Both had read before either stored, so one of each round had to read again, and the other not.
    for k in range(N_ROUNDS):
        assert sorted((reads[2 * k], reads[2 * k + 1])) == [1, 2]
    # Association alone was repeated; whatever the interleaving, rows and packets are those of an order, bit for bit.
    assert (dump(database), alerts) in serial_results
