import time

import numpy as np
import pytest

from alertprod.service.work import WorkOrder
from alertprod.sim.load import INSTRUMENT, LoadConfig, make_visit
from alertprod.sim.load_pipeline import LoadPipelineFactory, StageModel, make_objects, spend
from alertprod.store.apdb import Apdb
from alertprod.store.database import Database
from alertprod.store.ledger import EventPosition, ExposureKey, Ledger, LedgerState
from alertprod.store.outbox import read_outbox

MODEL = StageModel(stage_seconds={"subtract": 0.01}, n_alerts=5, alert_bytes=3000)


class Worker:
    def __init__(self, folder):
        url = f"sqlite:///{folder}/load.sqlite"
        self.database = Database(url)
        self.database.upgrade()
        self.ledger = Ledger(self.database)
        self.pipeline = LoadPipelineFactory(url, str(folder / "outbox"), MODEL)()

    def process(self, event):
        key = ExposureKey(INSTRUMENT, event.visit, event.detector)
        position = EventPosition("visit-ready", 0, event.visit)
        claim = self.ledger.claim(key, owner="here", lease_s=60.0, event=position)
        order = WorkOrder(event=event, position=position, claim=claim, received_unix_s=0.0, deadline_s=60.0)
        return self.pipeline.process(order)


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    worker.database.close()


def make_events(visit):
    return make_visit(LoadConfig(detectors=2), visit, now_unix_s=time.time())[0]


def test_an_exposure_leaves_its_rows_and_its_outbox(worker):
    event = make_events(1)[0]
    result = worker.process(event)
    assert result.outcome == "stored"
    messages = list(read_outbox(result.outbox.uri, result.outbox.sha256))
    assert [len(message.value) for message in messages] == [MODEL.alert_bytes] * MODEL.n_alerts
    assert len({message.value for message in messages}) == MODEL.n_alerts
    counts = Apdb(worker.database, worker.ledger).count_rows()
    assert [counts[name] for name in ("dia_source", "dia_forced_source", "dia_object")] == [MODEL.n_alerts] * 3
    assert worker.ledger.get(ExposureKey(INSTRUMENT, 1, 0)).state is LedgerState.STORED
    assert {"subtract", "history", "store", "compute"} <= result.stage_seconds.keys()


def test_every_visit_sees_the_same_objects_again(worker):
    for visit in (1, 2, 3):
        for event in make_events(visit):
            assert worker.process(event).outcome == "stored"
    counts = Apdb(worker.database, worker.ledger).count_rows()
    assert counts["dia_object"] == 2 * MODEL.n_alerts
    assert counts["dia_source"] == 3 * 2 * MODEL.n_alerts


def test_an_exposures_time_is_the_models_in_the_mean_and_the_same_again():
    event = make_events(9)[1]
    factors = np.array([MODEL.draw_factor(event.model_copy(update={"visit": n})) for n in range(400)])
    assert factors[9] == MODEL.draw_factor(event)
    assert factors.mean() == pytest.approx(1.0, abs=5.0 * MODEL.spread / 20.0)


def test_objects_lie_on_their_detector():
    event = make_events(1)[1]
    objects = make_objects(event, 100)
    assert np.abs(objects["dec_deg"] - event.dec_deg).max() < 0.12
    assert np.unique(objects["dia_object_id"]).size == 100


def test_burning_keeps_a_core_busy_and_sleeping_does_not():
    started = time.thread_time()
    spend(0.05, burns=True)
    burnt = time.thread_time() - started
    spend(0.05, burns=False)
    slept = time.thread_time() - started - burnt
    assert burnt >= 0.05
    assert slept < 0.02


@pytest.mark.parametrize("changes", [{"stage_seconds": {"load": -1.0}}, {"n_alerts": 1 << 16}, {"spread": -0.1}])
def test_a_model_that_is_none_is_refused(changes):
    with pytest.raises(ValueError, match="no exposure costs"):
        StageModel(**changes)
