"""One worker's pipeline with everything real but Kafka: FITS files, template tiles, SQLite, outbox, ledger."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from made_skies import NIGHT

from alertprod.alerts.avro import decode_alert
from alertprod.config import (
    AlertsConfig,
    DaemonConfig,
    InstrumentConfig,
    SolarSystemConfig,
    StoreConfig,
    WorkersConfig,
)
from alertprod.factory import WorkerPipeline
from alertprod.service.work import WorkOrder
from alertprod.store.database import Database
from alertprod.store.ledger import Claimed, EventPosition, ExposureKey, Ledger
from alertprod.store.outbox import read_outbox
from alertprod.stream.messages import VisitReady


@dataclass
class Bench:
    """One worker's pipeline and the stores it works on."""

    folder: Path
    config: DaemonConfig
    database: Database
    ledger: Ledger
    pipeline: object

    def event(self, night, index=0, **changes) -> VisitReady:
        return VisitReady(**(night.event(index, 0) | changes))

    def order(self, event: VisitReady, *, lease_s=60.0) -> WorkOrder:
        key = ExposureKey(event.instrument, event.visit, event.detector)
        position = EventPosition("visit-ready", 0, event.visit % 100)
        claim = self.ledger.claim(key, owner="here", lease_s=lease_s, event=position)
        assert isinstance(claim, Claimed)
        return WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=60.0)

    def process(self, event: VisitReady):
        return self.pipeline.process(self.order(event))

    def alerts(self, result):
        return [decode_alert(message.value) for message in read_outbox(result.outbox.uri, result.outbox.sha256)]

    def row(self, event: VisitReady):
        return self.ledger.get(ExposureKey(event.instrument, event.visit, event.detector))

    def count_rows(self):
        return self.pipeline._apdb.count_rows()


def set_up(
    folder, night, empty_database, *, max_per_exposure=5000, alerts=None, solar_system=None, **difference
) -> Bench:
    path = folder / "alertprod.sqlite"
    shutil.copy(empty_database, path)
    config = DaemonConfig(
        store=StoreConfig(
            database_url=f"sqlite:///{path}",
            outbox_uri=str(folder / "outbox"),
            template_index=str(night.templates_directory / "templates.json"),
            template_cache_directory=str(folder / "cache"),
        ),
        instruments={
            NIGHT.instrument: InstrumentConfig(
                profile=str(night.directory / "profile.toml"), release=3, difference=difference
            )
        },
        alerts=AlertsConfig(max_per_exposure=max_per_exposure, **(alerts or {})),
        solar_system=SolarSystemConfig(**(solar_system or {})),
        workers=WorkersConfig(threads_per_worker=1),
    )
    database = Database(config.store.database_url)
    return Bench(folder, config, database, Ledger(database), WorkerPipeline(config)())


def source_facts(alert):
    source = alert["diaSource"]
    return source["diaSourceId"], source["x"], source["y"], source["psfFlux"], source["psfFluxErr"]
