"""Everything Prometheus hears from the daemon, declared once: name, unit, meaning, and the closed set of each label.

Nothing is labelled by visit, detector or object: those are in the visit summaries. A value outside a label's set
becomes ``other``, so that no event can make series without end. Only the daemon's process has metrics; workers
report durations and counts in their results.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.process_collector import ProcessCollector

from alertprod.errors import AlertprodError, BadInputError, PartialWriteError, ProcessingError, TransientError

LATENCY_EDGES_S: Final = (5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 120, 180, 300, 600, 1800, 3600)
"""Edges exactly on Rubin's requirement (60) and on its first year's number (120), so that no rule interpolates them."""

STAGE_EDGES_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
"""From a database round trip to a stage that eats the whole budget."""

POLL_EDGES_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)
"""The loop is to turn every second whatever happens; /livez gives it up at 30."""

STAGES: Final = (
    "claim",
    "load",
    "templates",
    "warp",
    "psf",
    "select",
    "match",
    "subtract",
    "decorrelate",
    "detect",
    "measure",
    "dipole",
    "ephemerides",
    "score",
    "cutouts",
    "history",
    "associate",
    "forced",
    "packets",
    "outbox",
    "store",
    "keep",
    "compute",
    "publish",
    "settle",
)
"""``compute`` is all of a worker's time on an exposure, the others are its parts and the daemon's."""

EXPOSURE_OUTCOMES: Final = ("published", "skipped", "expired", "duplicate", "dead_lettered", "replayed")
ALERT_OUTCOMES: Final = ("acked", "replayed")
WORKER_DEATHS: Final = ("crash", "deadline", "memory", "warm_up")


def _reasons(*roots: type[AlertprodError]) -> tuple[str, ...]:
    """Return the labels of a part of the tree, as far as `alertprod.errors` draws it."""
    found: list[str] = []
    for root in roots:
        if root.__module__ == AlertprodError.__module__:
            found += [root.reason(), *_reasons(*root.__subclasses__())]
    return tuple(dict.fromkeys(found))


DEAD_LETTER_REASONS: Final = (
    *_reasons(BadInputError, ProcessingError, TransientError),
    "message_refused",
    "corrupt_outbox",
    "unexpected",
)
"""Names of the errors, as `AlertprodError.reason` gives them; ``unexpected`` is a bug."""

RETRY_REASONS: Final = (
    *_reasons(TransientError, PartialWriteError),
    "corrupt_outbox",
    "worker_died",
    "claim_lost",
)

FIGURES: Final[Mapping[str, tuple[tuple[float, ...], str]]] = {
    "kernel_sum": (
        (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.01, 1.02, 1.05, 1.1, 1.25, 2.0),
        "Sum of the matching kernel at the centre: the ratio of the photometric scales.",
    ),
    "residual_ratio": (
        (0.9, 0.95, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0),
        "Rms of the difference at bright unsaturated stars over the expected noise.",
    ),
    "pull_width": (
        (0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5),
        "Width of difference / sqrt(variance) over the good pixels.",
    ),
    "n_sources": (
        (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000),
        "DiaSources of the exposure.",
    ),
    "limiting_magnitude": (
        (15, 16, 17, 18, 19, 20, 21, 22, 22.5, 23, 23.5, 24, 24.5, 25, 26),
        "AB magnitude of a point source at 5 sigma on the difference.",
    ),
}
"""The science of each exposure: histogram edges and meaning."""

DELIVERY_OUTCOMES: Final = ("delivered", "undelivered")
TRANSACTION_OUTCOMES: Final = ("committed", "aborted")
RELOAD_OUTCOMES: Final = ("done", "refused")
PREFETCH_OUTCOMES: Final = ("done", "failed", "dropped", "invalid")

SOURCE_OUTCOMES: Final = (
    "matched_objects",
    "new_objects",
    "solar_system",
    "dropped_low_reliability",
    "dropped_unfit_for_new_object",
    "dropped_excluded",
)
"""What became of the DiaSources of stored exposures, as the visit summary counts them. ``dropped_excluded`` is every other
reason to drop one: flags by name, trails, positions that failed."""

_DROPPED = "dropped_"

SHORTCOMINGS: Final = (
    "scorer_failed",
    "ephemerides_failed",
    "forced_failed",
    "missing_cutouts",
    "cutouts_without_psf",
    "cutouts_without_wcs",
    "shortened_alerts",
    "difference_not_kept",
)
"""What alerts may lack though they go out, as the visit summary counts it."""

OTHER: Final = "other"

_REMEMBERED_VISITS: Final = 1000
"""A night's: an exposure that is tried again in the morning does not make its visit a new one."""


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """One metric as it was declared, for the page that lists them."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """The daemon's metrics on a registry of their own.

    Parameters
    ----------
    bands
        By instrument, the bands that get their own label.
    registry
        Where they are registered; None: a fresh one.
    """

    def __init__(
        self, bands: Mapping[str, Iterable[str]] | None = None, registry: CollectorRegistry | None = None
    ) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.declared: list[MetricFacts] = []
        self._counted: dict[str, int] = {}
        self._visits: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._bands = {instrument: frozenset(names) for instrument, names in (bands or {}).items()}
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        by_exposure = ("instrument", "band")
        self._shutter_to_ack = self._histogram(
            "shutter_to_ack_seconds",
            "From shutter close to the acknowledged publication, per alert.",
            by_exposure,
            LATENCY_EDGES_S,
        )
        self._shutter_to_published = self._histogram(
            "shutter_to_published_seconds",
            "From shutter close to the acknowledged publication, per exposure, those without alerts too.",
            by_exposure,
            LATENCY_EDGES_S,
        )
        self._shutter_to_event = self._histogram(
            "shutter_to_event_seconds",
            "From shutter close to receiving the event: what camera, transfer and backlog took before us.",
            ("instrument",),
            LATENCY_EDGES_S,
        )
        self._event_wait = self._histogram(
            "event_wait_seconds", "From receiving an event to its claim.", ("instrument",), STAGE_EDGES_S
        )
        self._stage = self._histogram(
            "stage_seconds", "Wall time of a stage of an exposure.", ("stage",), STAGE_EDGES_S
        )
        self.poll_interval_seconds = self._histogram(
            "poll_interval_seconds",
            "From one poll of the broker to the next: beyond 1 s something holds the loop up, beyond 30 s it is wedged.",
            (),
            POLL_EDGES_S,
        )
        self._figures = {
            name: self._histogram(name, meaning, by_exposure, edges) for name, (edges, meaning) in FIGURES.items()
        }

        self._exposures = self._counter("exposures", "Events by what became of them.", ("instrument", "outcome"))
        self._expected = self._counter(
            "exposures_expected", "Distinct valid events: the denominator of every success rate.", ("instrument",)
        )
        self._visits_expected = self._counter(
            "visits_expected",
            "Visits of which this daemon heard at least one exposure; with several daemons take the largest, not the sum.",
            ("instrument",),
        )
        self._alerts = self._counter("alerts", "Alerts acknowledged by the broker.", ("instrument", "outcome"))
        self._dead_letters = self._counter("dead_letters", "Events given up.", ("reason",))
        self._retries = self._counter("retries", "Steps that failed and will be tried again.", ("reason",))
        self._worker_deaths = self._counter("worker_deaths", "Workers that died or were killed.", ("cause",))
        self._deliveries = self._counter(
            "delivery_reports", "Messages that the broker acknowledged, or that were given up.", ("outcome",)
        )
        self._transactions = self._counter("transactions", "Transactions of the producer.", ("outcome",))
        self._reloads = self._counter("reloads", "Configurations read again.", ("outcome",))
        self._negative_latencies = self._counter(
            "negative_latencies", "Latencies below zero, not observed: a clock is wrong here or at the camera.", ()
        )
        self._cache_hits = self._counter("template_cache_hits", "Template tiles found in the cache.", ())
        self._cache_misses = self._counter("template_cache_misses", "Template tiles read from their URI.", ())
        self._cache_evictions = self._counter("template_cache_evictions", "Template tiles that made room.", ())
        self._cache_bytes = self._gauge("template_cache_bytes", "Decoded tiles in the cache, bytes.", ())
        self._sources = self._counter("dia_sources", "DiaSources by what became of them.", ("instrument", "outcome"))
        self._shortcomings = self._counter(
            "shortcomings",
            "What alerts lack: exposures without scores or without predicted positions, cutouts that could not be made.",
            ("instrument", "what"),
        )
        self._prefetches = self._counter("prefetches", "Announced pointings.", ("outcome",))

        self.consumer_lag = self._gauge("consumer_lag", "Events waiting on the partitions assigned here.", ())
        self.inflight = self._gauge("inflight", "Exposures between their event and their outcome.", ())
        self.oldest_inflight_seconds = self._gauge(
            "oldest_inflight_seconds", "Age of the oldest exposure in flight, since its event was received.", ()
        )
        self._last_success = self._gauge(
            "last_success_timestamp_seconds",
            "When an exposure was last published, seconds since 1970.",
            ("instrument",),
        )
        self.workers_ready = self._gauge("workers_ready", "Workers that are warm.", ())
        self.assigned_partitions = self._gauge("assigned_partitions", "Lanes of this daemon.", ())
        self._build_info = self._gauge(
            "build_info", "1, with what is running.", ("version", "schema", "config_hash", "delivery")
        )
        self._declare_series()

    def set_build_info(self, *, version: str, schema: str, config_hash: str, delivery: str) -> None:
        """Say what is running."""
        self._build_info.labels(version, schema, config_hash, delivery).set(1)

    def count_expected(self, instrument: str, visit: int) -> None:
        """Count a valid event that was not seen before, and its visit where that is new."""
        label = self._instrument(instrument)
        self._expected.labels(label).inc()
        if (label, visit) not in self._visits:
            self._visits_expected.labels(label).inc()
            self._visits[label, visit] = None
            if len(self._visits) > _REMEMBERED_VISITS:
                self._visits.popitem(last=False)

    def count_exposure(self, instrument: str, outcome: str) -> None:
        """Count what became of an event; one of `EXPOSURE_OUTCOMES`."""
        self._exposures.labels(self._instrument(instrument), _closed(outcome, EXPOSURE_OUTCOMES)).inc()

    def count_dead_letter(self, reason: str) -> None:
        """Count an event given up."""
        self._dead_letters.labels(_closed(reason, DEAD_LETTER_REASONS)).inc()

    def count_retry(self, reason: str) -> None:
        """Count a step that will be tried again."""
        self._retries.labels(_closed(reason, RETRY_REASONS)).inc()

    def count_worker_death(self, cause: str) -> None:
        """Count a worker that died or was killed; one of `WORKER_DEATHS`."""
        self._worker_deaths.labels(_closed(cause, WORKER_DEATHS)).inc()

    def count_deliveries(self, counts: Mapping[str, int]) -> None:
        """Bring the producer's counts, which only grow, up to now; keys ``delivered``, ``committed`` and so on."""
        for counter, outcomes in ((self._deliveries, DELIVERY_OUTCOMES), (self._transactions, TRANSACTION_OUTCOMES)):
            for outcome in outcomes:
                new = counts.get(outcome, 0) - self._counted.get(outcome, 0)
                if new > 0:
                    counter.labels(outcome).inc(new)
                    self._counted[outcome] = counts[outcome]

    def count_reload(self, outcome: str) -> None:
        """Count a SIGHUP: done, refused."""
        self._reloads.labels(_closed(outcome, RELOAD_OUTCOMES)).inc()

    def count_prefetch(self, outcome: str) -> None:
        """Count an announced pointing: done, failed, dropped, invalid."""
        self._prefetches.labels(_closed(outcome, PREFETCH_OUTCOMES)).inc()

    def count_sources(self, instrument: str, counts: Mapping[str, int]) -> None:
        """Add the counts of one exposure that was stored; kinds that are no outcome and no shortcoming are left out."""
        name = self._instrument(instrument)
        for kind, n in counts.items():
            if kind in SHORTCOMINGS:
                self._shortcomings.labels(name, kind).inc(n)
            elif kind in SOURCE_OUTCOMES:
                self._sources.labels(name, kind).inc(n)
            elif kind.startswith(_DROPPED):
                self._sources.labels(name, f"{_DROPPED}excluded").inc(n)

    def count_cache(self, *, hits: int, misses: int, evictions: int, size_bytes: int | None) -> None:
        """Add one exposure's use of the template cache."""
        self._cache_hits.inc(hits)
        self._cache_misses.inc(misses)
        self._cache_evictions.inc(evictions)
        if size_bytes is not None:
            self._cache_bytes.set(size_bytes)

    def observe_event(self, instrument: str, *, waited_s: float, age_s: float) -> None:
        """Record how long an event waited for its claim, and how old its exposure was when it was received."""
        label = self._instrument(instrument)
        self._event_wait.labels(label).observe(max(0.0, waited_s))
        self._observe_latency(self._shutter_to_event.labels(label), age_s)

    def observe_stages(self, stage_seconds: Mapping[str, float]) -> None:
        """Record stage times; names outside `STAGES` are counted as ``other``."""
        for stage, seconds in stage_seconds.items():
            self._stage.labels(_closed(stage, STAGES)).observe(seconds)

    def observe_figures(self, instrument: str, band: str, figures: Mapping[str, float]) -> None:
        """Record the science figures named in `FIGURES`; NaN and other names are left to the visit summary."""
        labels = self._exposure_labels(instrument, band)
        for name, histogram in self._figures.items():
            value = figures.get(name)
            if value is not None and value == value:  # noqa: PLR0124 - NaN
                histogram.labels(*labels).observe(value)

    def observe_published(
        self,
        instrument: str,
        band: str,
        *,
        shutter_close_unix_s: float,
        now_unix_s: float,
        ack_unix_s: Iterable[float],
        exposure: Mapping[str, str] | None = None,
        is_replay: bool = False,
    ) -> None:
        """Record that an exposure with its alerts was acknowledged.

        Parameters
        ----------
        shutter_close_unix_s, now_unix_s
            Seconds UTC since 1970: end of the exposure, and when its publication was acknowledged.
        ack_unix_s
            The same for each alert: the transaction's commit, or the alert's delivery report.
        exposure
            Visit and detector: the exemplar of the latency's bucket, by which a slow exposure is found from a graph.
        is_replay
            Sent again on purpose, however long ago its shutter closed: counted, but its latency says nothing. Where it
            had failed before, that failure was counted.
        """
        labels = self._exposure_labels(instrument, band)
        n_alerts = 0
        per_alert = self._shutter_to_ack.labels(*labels)
        for acked in ack_unix_s:
            n_alerts += 1
            if not is_replay:
                self._observe_latency(per_alert, acked - shutter_close_unix_s)
        per_exposure = self._shutter_to_published.labels(*labels)
        if not is_replay:
            self._observe_latency(per_exposure, now_unix_s - shutter_close_unix_s, exposure)
        self._alerts.labels(labels[0], "acked").inc(n_alerts)
        self._last_success.labels(labels[0]).set(now_unix_s)

    def count_replayed_alerts(self, instrument: str, n_alerts: int) -> None:
        """Count alerts published again on the replay topic; they say nothing of latency."""
        self._alerts.labels(self._instrument(instrument), "replayed").inc(n_alerts)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return everything, and its content type: OpenMetrics, which has exemplars, where `accept` asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _observe_latency(self, histogram: Histogram, seconds: float, exemplar: Mapping[str, str] | None = None) -> None:
        if seconds < 0:
            self._negative_latencies.inc()
        else:
            histogram.observe(seconds, None if exemplar is None else dict(exemplar))

    def _exposure_labels(self, instrument: str, band: str) -> tuple[str, str]:
        bands = self._bands.get(instrument, frozenset())
        return self._instrument(instrument), band if band in bands else OTHER

    def _instrument(self, instrument: str) -> str:
        return instrument if instrument in self._bands else OTHER

    def _declare_series(self) -> None:
        """Make the countable series at 0: a rate over a series that appears with its first count misses that count."""
        for reason in (*DEAD_LETTER_REASONS, OTHER):
            self._dead_letters.labels(reason)
        for reason in RETRY_REASONS:
            self._retries.labels(reason)
        for cause in WORKER_DEATHS:
            self._worker_deaths.labels(cause)
        for counter, outcomes in (
            (self._deliveries, DELIVERY_OUTCOMES),
            (self._transactions, TRANSACTION_OUTCOMES),
            (self._reloads, RELOAD_OUTCOMES),
        ):
            for outcome in outcomes:
                counter.labels(outcome)
        for outcome in PREFETCH_OUTCOMES:
            self._prefetches.labels(outcome)
        for instrument, bands in self._bands.items():
            for band in bands:
                self._shutter_to_ack.labels(instrument, band)
                self._shutter_to_published.labels(instrument, band)
                for histogram in self._figures.values():
                    histogram.labels(instrument, band)
            self._shutter_to_event.labels(instrument)
            self._event_wait.labels(instrument)
        for stage in STAGES:
            self._stage.labels(stage)
        for instrument in (*self._bands, OTHER):
            self._expected.labels(instrument)
            self._visits_expected.labels(instrument)
            for outcome in EXPOSURE_OUTCOMES:
                self._exposures.labels(instrument, outcome)
            for outcome in ALERT_OUTCOMES:
                self._alerts.labels(instrument, outcome)
            for outcome in SOURCE_OUTCOMES:
                self._sources.labels(instrument, outcome)
            for what in SHORTCOMINGS:
                self._shortcomings.labels(instrument, what)

    def _histogram(self, name: str, meaning: str, labels: tuple[str, ...], edges: tuple[float, ...]) -> Histogram:
        self._declare(name, "histogram", labels, meaning)
        return Histogram(f"alertprod_{name}", meaning, labels, buckets=edges, registry=self.registry)

    def _counter(self, name: str, meaning: str, labels: tuple[str, ...]) -> Counter:
        self._declare(f"{name}_total", "counter", labels, meaning)
        return Counter(f"alertprod_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, labels: tuple[str, ...]) -> Gauge:
        self._declare(name, "gauge", labels, meaning)
        return Gauge(f"alertprod_{name}", meaning, labels, registry=self.registry)

    def _declare(self, name: str, kind: str, labels: tuple[str, ...], meaning: str) -> None:
        self.declared.append(MetricFacts(f"alertprod_{name}", kind, labels, meaning))


def _closed(value: str, allowed: tuple[str, ...]) -> str:
    return value if value in allowed else OTHER


def parse_metrics(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return labels and value of every sample of Prometheus' text format, by name.

    Raises
    ------
    ValueError
        Raised if it is not that format.
    """
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found
