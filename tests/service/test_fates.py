"""The fate of each error."""

import dataclasses

import pytest
from daemon_fakes import make_event

from alertprod.config import DaemonConfig, InstrumentConfig, LimitsConfig
from alertprod.errors import (
    AlertprodError,
    BadInputError,
    BrokerUnavailable,
    CorruptImage,
    ImageNotYetAvailable,
    NoTemplateCoverage,
    PartialWriteError,
    StoreUnavailable,
    TooManyDiaSources,
)
from alertprod.metrics import Metrics
from alertprod.service.clock import mjd_tai_from_unix
from alertprod.service.fates import Fates
from alertprod.service.lanes import Lanes, Step
from alertprod.service.publications import Publication, PublicationMaker
from alertprod.service.steps import Identity
from alertprod.store.ledger import Claimed, ExposureKey
from alertprod.stream.dead_letter import REPLAY_HEADER, TRUNCATED_HEADER, parse_dead_letter
from alertprod.stream.errors import BrokerFatal, MessageRefused, PartitionRevoked, ProducerFenced
from alertprod.stream.messages import decode_visit_summary
from alertprod.stream.records import Lane, Offset, Received

NOW = 1_800_000_000.0
AGE_LIMIT_S = 100.0
OUTBOX_WAIT_S = 20.0


class StoppedClock:
    def unix_s(self):
        return NOW

    def monotonic_s(self):
        return 50.0

    def mjd_tai(self):
        return mjd_tai_from_unix(NOW)


@pytest.fixture
def lanes():
    return Lanes()


@pytest.fixture
def metrics():
    return Metrics({"Camera": ("r",)})


@pytest.fixture
def fates(lanes, metrics):
    config = DaemonConfig(
        instruments={"Camera": InstrumentConfig()},
        limits=LimitsConfig(
            max_event_age_s=AGE_LIMIT_S,
            image_wait_s=10.0,
            outbox_wait_s=OUTBOX_WAIT_S,
            retry_first_s=1.0,
            retry_max_s=8.0,
        ),
    )
    identity = Identity(owner="me", version="1.0", config_hash="c0ffee")
    clock = StoppedClock()
    publications = PublicationMaker(config.topics, identity.versions(), clock)
    return Fates(config, identity=identity, lanes=lanes, publications=publications, metrics=metrics, clock=clock)


@pytest.fixture
def make_job(lanes):
    """A job at work on an event whose shutter closed `age_s` ago and that was received `waited_s` ago."""

    def make(*, age_s=5.0, waited_s=1.0, headers=(), **fields):
        closed = mjd_tai_from_unix(NOW - age_s)
        event = make_event(7, shutter_open_mjd_tai=closed - 1e-4, shutter_close_mjd_tai=closed, **fields)
        lane = Lane("visit-ready", 3)
        lanes.add(lane)
        received = Received(topic=lane.topic, partition=3, offset=41, key=event.key, value=b"bytes", headers=headers)
        job = lanes.begin(lanes.get(lane), step=Step.WORK, received=received, received_unix_s=NOW - waited_s, now=49.0)
        job.event, job.key = event, ExposureKey("Camera", 7, 0)
        return job

    return make


def messages_of(job):
    return list(job.publication.messages())


@pytest.mark.parametrize("error", [StoreUnavailable("away"), BrokerUnavailable("away"), ImageNotYetAvailable("x")])
def test_what_may_work_later_is_tried_again_at_the_same_step(fates, make_job, error):
    job = make_job()

    assert fates.judge(job, error)

    assert job.step is Step.WORK
    assert job.publication is None
    assert 50.5 <= job.not_before <= 51.5
    assert job.problem == f"{error.reason()}: {error}"  # for whoever sees it wait


def test_pauses_double_up_to_a_limit(fates, make_job):
    job = make_job()
    pauses = []
    for _ in range(7):
        fates.judge(job, StoreUnavailable("away"))
        pauses.append(job.not_before - 50.0)

    for pause, nominal in zip(pauses, [1, 2, 4, 8, 8, 8, 8], strict=True):
        assert 0.5 * nominal <= pause <= 1.5 * nominal
    assert job.attempts == 8


def test_beyond_the_age_limit_a_transient_failure_is_a_dead_letter(fates, make_job):
    job = make_job(age_s=AGE_LIMIT_S + 1)

    assert fates.judge(job, StoreUnavailable("away"))

    assert job.publication.kind == "dead_lettered"
    assert job.publication.reason == "store_unavailable"


def test_replays_age_from_their_receipt(fates, make_job):
    for job in (
        make_job(age_s=1e6, replay=True),
        make_job(age_s=1e6, headers=((REPLAY_HEADER, b"dead-letter"),)),
    ):
        assert not fates.is_expired(job)
        fates.judge(job, StoreUnavailable("away"))
        assert job.publication is None


def test_a_broker_that_is_away_is_waited_for_without_end(fates, make_job):
    job = make_job(age_s=1e6)

    assert fates.judge(job, BrokerUnavailable("away"))

    assert job.publication is None


def test_an_image_is_waited_for_only_so_long(fates, make_job):
    job = make_job(waited_s=11.0)

    fates.judge(job, ImageNotYetAvailable("file:///x.fits"))

    assert job.publication.reason == "image_not_yet_available"


@pytest.mark.parametrize(
    "error", [CorruptImage("x.fits", "IMAGE", "truncated"), TooManyDiaSources(9000, 5000), BadInputError("odd")]
)
def test_bad_input_and_failed_processing_are_dead_letters_with_summary_and_offset(fates, make_job, error):
    job = make_job()

    assert fates.judge(job, error)

    assert job.step is Step.PUBLISH
    assert job.publication.offset == Offset("visit-ready", 3, 42)
    letter, summary = messages_of(job)
    said = parse_dead_letter(
        Received(topic="dlq", partition=0, offset=0, key=letter.key, value=letter.value, headers=letter.headers)
    )
    assert (letter.value, letter.key) == (b"bytes", b"Camera/7/0")
    assert (said.reason, said.stage, said.message) == (error.reason(), "compute", str(error))
    assert (said.topic, said.partition, said.offset, said.visit) == ("visit-ready", 3, 41, 7)
    told = decode_visit_summary(summary.value)
    assert (told.outcome, told.reason, told.n_alerts) == ("dead_lettered", error.reason(), 0)


def test_nothing_to_do_is_said_in_the_summary_alone(fates, make_job):
    job = make_job()

    assert fates.judge(job, NoTemplateCoverage(0.02, 0.1))

    (summary,) = messages_of(job)
    told = decode_visit_summary(summary.value)
    assert (told.outcome, told.reason) == ("skipped", "no_template_coverage")
    assert told.latency_s == pytest.approx(5.0, abs=1e-3)


def test_a_bug_is_a_dead_letter_called_unexpected(fates, make_job):
    job = make_job()

    assert fates.judge(job, KeyError("no such key"), "Traceback ...")

    assert job.publication.reason == "unexpected"
    assert b"KeyError" in dict(messages_of(job)[0].headers)["alertprod-error-exception"]


def test_stored_and_unpublished_is_published_again(fates, make_job):
    job = make_job()
    job.step = Step.PUBLISH

    assert fates.judge(job, PartialWriteError("half"))

    assert job.step is Step.PUBLISH
    assert job.publication is None


def test_a_revoked_partition_drops_the_job(fates, make_job):
    assert not fates.judge(make_job(), PartitionRevoked("visit-ready", 3))


@pytest.mark.parametrize("error", [ProducerFenced("zombie"), BrokerFatal("fatal")])
def test_a_finished_client_ends_the_daemon(fates, make_job, error):
    with pytest.raises(type(error)):
        fates.judge(make_job(), error)


def test_while_stopping_nothing_is_tried_again(fates, make_job, lanes):
    lanes.is_draining = True

    assert not fates.judge(make_job(), StoreUnavailable("away"))


def test_a_dead_letter_that_is_refused_is_sent_shortened_with_the_first_reason_and_then_only_tried_again(
    fates, make_job
):
    job = make_job()
    fates.judge(job, CorruptImage("x", "IMAGE", "bad"))

    assert fates.judge(job, MessageRefused("dead-letters", b"key", 1 << 24, "too large"))

    assert (job.step, job.not_before, job.publication.reason) == (Step.PUBLISH, 0.0, "corrupt_image")
    letter, _summary = job.publication.messages()
    assert dict(letter.headers)[TRUNCATED_HEADER] == str(len(job.received.value)).encode()
    shortened = job.publication

    assert fates.judge(job, MessageRefused("dead-letters", b"key", 1 << 10, "too large"))

    assert job.publication is shortened
    assert job.not_before > 50.0


def test_what_is_stored_and_cannot_be_read_is_waited_for_a_while_and_then_given_up_by_its_files_name(fates, make_job):
    job = make_job()
    job.publication = dataclasses.replace(stored_publication(), outbox_uri="/outbox/1.outbox")

    assert fates.judge(job, PartialWriteError("gone"))
    assert job.publication.kind == "published"

    job.received_unix_s = NOW - OUTBOX_WAIT_S - 1.0
    assert fates.judge(job, PartialWriteError("gone"))
    assert (job.publication.kind, job.publication.outbox_uri) == ("dead_lettered", "/outbox/1.outbox")


def test_a_replay_whose_stored_bytes_went_by_age_holds_nothing_up(fates, make_job):
    job = make_job()
    job.publication = dataclasses.replace(stored_publication(), kind="replayed")

    assert fates.judge(job, PartialWriteError("gone"))

    assert job.publication.kind == "dead_lettered"


def test_the_wait_for_an_image_counts_from_the_first_claim_whoever_made_it(fates, make_job):
    job = make_job()
    job.claim = Claimed(ExposureKey("Camera", 1, 0), 2, 0, "daemon-0", first_claimed_unix_s=NOW - 11.0)

    assert fates.judge(job, ImageNotYetAvailable("file:///late.fits"))

    assert job.publication.kind == "dead_lettered"


def stored_publication():
    return Publication(kind="published", messages=lambda: iter(()), offset=None)


def test_a_stored_row_without_its_event_waits_for_the_event(fates, make_job):
    job = make_job()
    job.received = None

    assert not fates.judge(job, AlertprodError("cannot be published"))
