"""Every error has a fate, and its place in this tree is that fate.

::

    AlertprodError
    ├─ ConfigError        stop at start-up, exit status 2
    ├─ TransientError     retry with back-off in its lane, do not commit, until the event's age limit
    │  ├─ StoreUnavailable, BrokerUnavailable, RegistryUnavailable, ImageNotYetAvailable, DiskFull
    ├─ BadInputError      dead letter, commit
    │  ├─ InvalidEvent, CorruptImage, HeaderMismatch, SchemaMismatch, TemplateUnreadable
    │  ├─ UnusableExposure, ExposureMismatch, DatasetMismatch, DatasetExists
    ├─ ProcessingError    dead letter with its numbers, commit
    │  ├─ InsufficientPsfStars, InsufficientKernelSources, BadSubtraction, TooManyDiaSources,
    │  │  TooManyCosmicRays, WorkerDied
    │  ├─ TaskError
    ├─ NoWorkFound        nothing to do: said in the visit summary, no dead letter
    │  └─ NoTemplateCoverage
    └─ PartialWriteError  stored but not published: publish again, never recompute

Anything that is not an `AlertprodError` when it reaches the daemon is a bug. Third-party errors
are translated once, where they are raised. Arguments are kept in ``args`` as they were given, so
that an error keeps its numbers on its way from a worker process to the daemon (pickle).
"""

import re
from typing import Any


class AlertprodError(Exception):
    """Root of the tree; catch it to catch everything the package raises on purpose."""

    @classmethod
    def reason(cls) -> str:
        """Return the class's name in snake_case: the label of metrics, summaries and dead letters."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class ConfigError(AlertprodError, ValueError):
    """A configuration that cannot be used: `source` names the file, `field` the setting."""

    def __init__(self, source: str, field: str, problem: str) -> None:
        super().__init__(source, field, problem)
        self.source, self.field, self.problem = source, field, problem

    def __str__(self) -> str:
        return f"{self.source}: {self.field}: {self.problem}"


class TransientError(AlertprodError):
    """Something that may work later."""


class StoreUnavailable(TransientError, OSError):
    """The database or an image store did not answer, or was locked."""


class BrokerUnavailable(TransientError, ConnectionError):
    """The Kafka broker did not take or give a message."""


class RegistryUnavailable(TransientError, ConnectionError):
    """The schema registry did not answer."""


class ImageNotYetAvailable(TransientError, FileNotFoundError):
    """The event names a file that is not there (yet)."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uri = uri

    def __str__(self) -> str:
        return f"{self.uri}: no such file (yet)"


class DiskFull(TransientError, OSError):
    """No space is left for an outbox, cache or database file."""


class BadInputError(AlertprodError, ValueError):
    """Input that will not become right by trying again."""


class InvalidEvent(BadInputError):
    """An event that cannot be decoded, or that breaks its schema in `field`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"event field {self.field}: {self.problem}"


class CorruptImage(BadInputError):
    """An image file that cannot be read as an exposure; `hdu` says where it went wrong."""

    def __init__(self, uri: str, hdu: str, problem: str) -> None:
        super().__init__(uri, hdu, problem)
        self.uri, self.hdu, self.problem = uri, hdu, problem

    def __str__(self) -> str:
        return f"{self.uri}[{self.hdu}]: {self.problem}"


class HeaderMismatch(BadInputError):
    """Event and image header disagree in `field`."""

    def __init__(self, uri: str, field: str, event_value: Any, header_value: Any) -> None:
        super().__init__(uri, field, event_value, header_value)
        self.uri, self.field = uri, field
        self.event_value, self.header_value = event_value, header_value

    def __str__(self) -> str:
        return f"{self.uri}: {self.field}: the event says {self.event_value!r}, the header {self.header_value!r}"


class SchemaMismatch(BadInputError):
    """Bytes that do not fit the Avro schema they claim."""


class TemplateUnreadable(BadInputError):
    """A template tile that cannot be read or used."""

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(uri, problem)
        self.uri, self.problem = uri, problem

    def __str__(self) -> str:
        return f"template {self.uri}: {self.problem}"


class UnusableExposure(BadInputError):
    """An exposure in memory that nothing can be done with: `which` is science or template, `part` the plane or PSF."""

    def __init__(self, which: str, part: str, problem: str) -> None:
        super().__init__(which, part, problem)
        self.which, self.part, self.problem = which, part, problem

    def __str__(self) -> str:
        return f"{self.which} exposure: {self.part}: {self.problem}"


class ExposureMismatch(BadInputError):
    """Science and template exposure that do not belong together: `field` is band, shape or wcs."""

    def __init__(self, field: str, science_value: Any, template_value: Any) -> None:
        super().__init__(field, science_value, template_value)
        self.field, self.science_value, self.template_value = field, science_value, template_value

    def __str__(self) -> str:
        return f"{self.field}: the science exposure has {self.science_value!r}, the template {self.template_value!r}"


class DatasetMismatch(BadInputError):
    """A dataset of a Butler repository that is not what it is asked for as: its type, its dimensions, its contents."""

    def __init__(self, dataset: str, problem: str) -> None:
        super().__init__(dataset, problem)
        self.dataset, self.problem = dataset, problem

    def __str__(self) -> str:
        return f"dataset {self.dataset}: {self.problem}"


class DatasetExists(BadInputError):
    """A dataset that a collection holds already: what was run there before is not replaced."""

    def __init__(self, dataset: str, collection: str) -> None:
        super().__init__(dataset, collection)
        self.dataset, self.collection = dataset, collection

    def __str__(self) -> str:
        return f"dataset {self.dataset}: the collection {self.collection} holds one already; use another, or remove it"


class ProcessingError(AlertprodError, RuntimeError):
    """Readable input on which the algorithms fail; carries the numbers."""


class InsufficientPsfStars(ProcessingError):
    """Too few usable stars to fit the point spread function of an image that came without one."""

    def __init__(self, n_stars: int, n_required: int) -> None:
        super().__init__(n_stars, n_required)
        self.n_stars, self.n_required = n_stars, n_required

    def __str__(self) -> str:
        return f"{self.n_stars} usable PSF stars, {self.n_required} required"


class InsufficientKernelSources(ProcessingError):
    """Too few usable stars to solve for the matching kernel."""

    def __init__(self, n_sources: int, n_required: int) -> None:
        super().__init__(n_sources, n_required)
        self.n_sources, self.n_required = n_sources, n_required

    def __str__(self) -> str:
        return f"{self.n_sources} usable kernel sources, {self.n_required} required"


class BadSubtraction(ProcessingError):
    """The difference is far from noise where stars were subtracted."""

    def __init__(self, quantity: str, value: float, limit: float) -> None:
        super().__init__(quantity, value, limit)
        self.quantity, self.value, self.limit = quantity, value, limit

    def __str__(self) -> str:
        return f"{self.quantity} is {self.value:.4g}, the limit is {self.limit:.4g}"


class TooManyDiaSources(ProcessingError):
    """More DiaSources than the configured limit: junk, not sky."""

    def __init__(self, n: int, limit: int) -> None:
        super().__init__(n, limit)
        self.n, self.limit = n, limit

    def __str__(self) -> str:
        return f"{self.n} DiaSources, the limit is {self.limit}"


class TooManyCosmicRays(ProcessingError):
    """More cosmic-ray pixels than the configured limit: the PSF is wrong, or the image is no sky."""

    def __init__(self, n: int, limit: int) -> None:
        super().__init__(n, limit)
        self.n, self.limit = n, limit

    def __str__(self) -> str:
        return f"{self.n} pixels look like cosmic rays, the limit is {self.limit}"


class TaskError(ProcessingError):
    """A task that cannot do what it is asked to: the message says what is missing."""


class WorkerDied(ProcessingError):
    """Worker processes died on this exposure too often; `cause` is crash, deadline or memory, of the last one."""

    def __init__(self, cause: str, deaths: int) -> None:
        super().__init__(cause, deaths)
        self.cause, self.deaths = cause, deaths

    def __str__(self) -> str:
        return f"{self.deaths} workers died on it, the last one of: {self.cause}"


class NoWorkFound(AlertprodError):
    """Nothing can be done for this exposure, and nothing is wrong with it."""


class NoTemplateCoverage(NoWorkFound):
    """Too little of the exposure lies on the templates; fractions are of the detector's area."""

    def __init__(self, fraction: float, required: float) -> None:
        super().__init__(fraction, required)
        self.fraction, self.required = fraction, required

    def __str__(self) -> str:
        return (
            f"templates cover {self.fraction:.1%} of the exposure, {self.required:.1%} is required"
            " (requiredTemplateFraction = 0 tries all the same)"
        )


class PartialWriteError(AlertprodError, RuntimeError):
    """Stored, but not published: the stored bytes are published again, nothing is recomputed."""
