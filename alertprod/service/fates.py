"""What an error means for an exposure: its fate, acted on in one place.

A fate is the job's next step: the same one again after a pause, or a publication that says how it ended. Where there
is none (the partition is somebody else's, the daemon is stopping) the job is dropped: its event will come again.
"""

import random
from typing import Any

from alertprod.config import DaemonConfig
from alertprod.errors import (
    AlertprodError,
    BrokerUnavailable,
    ImageNotYetAvailable,
    NoWorkFound,
    PartialWriteError,
    TransientError,
)
from alertprod.logs import get_logger
from alertprod.metrics import Metrics
from alertprod.service.clock import Clock, unix_from_mjd_tai
from alertprod.service.lanes import Job, Lanes, Step
from alertprod.service.publications import PublicationMaker
from alertprod.service.steps import Identity
from alertprod.stream.dead_letter import UNEXPECTED, make_dead_letter, shorten_dead_letter
from alertprod.stream.errors import BrokerFatal, PartitionRevoked

_log = get_logger(__name__)


class Fates:
    """Decides what becomes of a job after an error.

    Parameters
    ----------
    lanes
        Says whether the daemon is stopping: nothing is tried again then.
    """

    def __init__(
        self,
        config: DaemonConfig,
        *,
        identity: Identity,
        lanes: Lanes,
        publications: PublicationMaker,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._config, self._identity, self._lanes = config, identity, lanes
        self._publications, self._metrics, self._clock = publications, metrics, clock

    def reconfigure(self, config: DaemonConfig, identity: Identity) -> None:
        """Judge by other limits from now on."""
        self._config, self._identity = config, identity

    def judge(self, job: Job, error: Exception, traceback_text: str = "") -> bool:
        """Act on an error by its place in the tree.

        Returns
        -------
        bool
            Whether the job goes on; otherwise it is to be dropped.

        Raises
        ------
        BrokerFatal
            Raised if `error` is one: no job can go on.
        """
        match error:
            case BrokerFatal():
                raise error
            case PartitionRevoked():
                return False
            case BrokerUnavailable():  # nothing can be sent, a dead letter no more than alerts
                return self.retry(job, error.reason(), str(error))
            case TransientError() | PartialWriteError() if self.may_retry(job, error):
                return self.retry(job, error.reason(), str(error))
            case NoWorkFound():
                log_of(job).info("nothing to do", reason=error.reason(), problem=str(error))
                return self._skip(job, error)
            case AlertprodError():
                log_of(job).warning("given up", reason=error.reason(), problem=str(error), stage=job.stage)
                return self._give_up(job, error)
            case _:
                log_of(job).error(UNEXPECTED, problem=repr(error), traceback=traceback_text, stage=job.stage)
                return self._give_up(job, error)

    def retry(self, job: Job, reason: str, problem: str) -> bool:
        """Begin the job's step again after a pause; False where the daemon is stopping."""
        if self._lanes.is_draining:
            return False
        limits = self._config.limits
        job.failures += 1
        job.attempts += 1
        job.problem = f"{reason}: {problem}"
        pause_s = min(limits.retry_max_s, limits.retry_first_s * 2.0 ** min(job.failures - 1, 30))
        pause_s *= random.uniform(0.5, 1.5)  # daemons that failed together must not come back together
        job.not_before = self._clock.monotonic_s() + pause_s
        self._metrics.count_retry(reason)
        log_of(job).warning(
            "trying again",
            reason=reason,
            problem=problem,
            stage=job.stage,
            attempt=job.attempts,
            pause_s=round(pause_s, 2),
        )
        return True

    def is_expired(self, job: Job) -> bool:
        """Tell whether a job's event is too old to begin with; replays never are."""
        return self._clock.unix_s() - self._born_unix_s(job) > self._config.limits.max_event_age_s

    def may_retry(self, job: Job, error: Exception) -> bool:
        """Tell whether an error may pass, and the event is young enough to wait for it."""
        if not isinstance(error, TransientError | PartialWriteError):
            return False
        limits, now = self._config.limits, self._clock.unix_s()
        since = None if job.claim is None else job.claim.first_claimed_unix_s  # by an earlier daemon, perhaps
        since = job.received_unix_s if since is None else since
        if isinstance(error, ImageNotYetAvailable) and now - since > limits.image_wait_s:
            return False
        is_replay = job.publication is not None and job.publication.kind == "replayed"  # its file went by age, no doubt
        if isinstance(error, PartialWriteError) and (is_replay or now - job.received_unix_s > limits.outbox_wait_s):
            return False
        return not self.is_expired(job)

    def _born_unix_s(self, job: Job) -> float:
        """Return since when a job ages: shutter close; for replays, which are old by nature, when it was received."""
        if job.event is None or job.event.replay or job.is_reopening:
            return job.received_unix_s
        return unix_from_mjd_tai(job.event.shutter_close_mjd_tai)

    def _skip(self, job: Job, error: NoWorkFound) -> bool:
        assert job.received is not None
        job.publication = self._publications.without_alerts(
            "skipped",
            job.event,
            offset=job.received.next_offset,
            reason=error.reason(),
            claim=job.claim,
            result=job.result,
        )
        job.begin_at(Step.PUBLISH)
        return True

    def _give_up(self, job: Job, error: Exception) -> bool:
        """Send the event to the dead letters, with the summary and the offset."""
        if job.received is None:  # a stored row found on assignment: its event will come, and be judged then
            return False
        is_refused = job.publication is not None and job.publication.kind == "dead_lettered"
        if is_refused and job.is_shortened:
            return self.retry(job, "other", f"the dead letter itself is refused: {error}")
        if is_refused:  # larger than the topic takes: with the reason it was given up for, and the event's beginning
            assert job.given_up_for is not None
            error, job.is_shortened = job.given_up_for, True
        job.given_up_for = error
        event = job.event
        letter = make_dead_letter(
            job.received,
            error,
            topic=self._config.topics.dead_letters,
            stage=job.stage,
            attempts=job.attempts,
            version=self._identity.version,
            config_hash=self._identity.config_hash,
            worker_deaths=job.claim.worker_deaths if job.claim else 0,
            exposure=None if event is None else (event.instrument, event.visit, event.detector),
            clock=self._clock.unix_s,
        )
        if job.is_shortened:
            letter = shorten_dead_letter(letter)
        unpublished = job.publication.outbox_uri if job.publication is not None else None
        job.publication = self._publications.without_alerts(
            "dead_lettered",
            event,
            offset=job.received.next_offset,
            reason=error.reason() if isinstance(error, AlertprodError) else UNEXPECTED,
            claim=job.claim,
            dead_letter=letter,
            result=job.result,
            outbox_uri=unpublished,
        )
        job.begin_at(Step.PUBLISH)
        return True


def log_of(job: Job) -> Any:
    """Return a logger whose lines say which exposure they are about."""
    return _log.bind(**job.names())
