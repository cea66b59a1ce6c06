"""The tree of errors: every error has its fate, and keeps its numbers and words across processes."""

import copy
import inspect
import pickle

import pytest

from alertprod import errors
from alertprod.errors import (
    AlertprodError,
    BadInputError,
    BadSubtraction,
    BrokerUnavailable,
    ConfigError,
    CorruptImage,
    DatasetExists,
    DatasetMismatch,
    DiskFull,
    ExposureMismatch,
    HeaderMismatch,
    ImageNotYetAvailable,
    InsufficientKernelSources,
    InsufficientPsfStars,
    InvalidEvent,
    NoTemplateCoverage,
    NoWorkFound,
    PartialWriteError,
    ProcessingError,
    RegistryUnavailable,
    SchemaMismatch,
    StoreUnavailable,
    TaskError,
    TemplateUnreadable,
    TooManyCosmicRays,
    TooManyDiaSources,
    TransientError,
    UnusableExposure,
    WorkerDied,
)
from alertprod.store.outbox import CorruptOutbox

FATES = (ConfigError, TransientError, BadInputError, ProcessingError, NoWorkFound, PartialWriteError)

EXAMPLES = [
    # error, its fate, its reason, its attributes, its words
    (
        ConfigError("night.toml", "workers.count", "is 0"),
        ConfigError,
        "config_error",
        {"source": "night.toml", "field": "workers.count", "problem": "is 0"},
        "night.toml: workers.count: is 0",
    ),
    (StoreUnavailable("locked"), TransientError, "store_unavailable", {}, "locked"),
    (BrokerUnavailable("away"), TransientError, "broker_unavailable", {}, "away"),
    (RegistryUnavailable("away"), TransientError, "registry_unavailable", {}, "away"),
    (
        ImageNotYetAvailable("s3://a/b.fits"),
        TransientError,
        "image_not_yet_available",
        {"uri": "s3://a/b.fits"},
        "s3://a/b.fits: no such file (yet)",
    ),
    (DiskFull("/outbox"), TransientError, "disk_full", {}, "/outbox"),
    (
        InvalidEvent("visit", "is -1"),
        BadInputError,
        "invalid_event",
        {"field": "visit", "problem": "is -1"},
        "event field visit: is -1",
    ),
    (
        CorruptImage("a.fits", "MASK", "truncated"),
        BadInputError,
        "corrupt_image",
        {"uri": "a.fits", "hdu": "MASK", "problem": "truncated"},
        "a.fits[MASK]: truncated",
    ),
    (
        HeaderMismatch("a.fits", "visit", 7, 8),
        BadInputError,
        "header_mismatch",
        {"uri": "a.fits", "field": "visit", "event_value": 7, "header_value": 8},
        "a.fits: visit: the event says 7, the header 8",
    ),
    (
        UnusableExposure("template", "variance", "no pixel has a positive variance"),
        BadInputError,
        "unusable_exposure",
        {"which": "template", "part": "variance", "problem": "no pixel has a positive variance"},
        "template exposure: variance: no pixel has a positive variance",
    ),
    (
        ExposureMismatch("band", "r", "g"),
        BadInputError,
        "exposure_mismatch",
        {"field": "band", "science_value": "r", "template_value": "g"},
        "band: the science exposure has 'r', the template 'g'",
    ),
    (
        DatasetMismatch("calexp visit=3", "its data id needs detector too"),
        BadInputError,
        "dataset_mismatch",
        {"dataset": "calexp visit=3", "problem": "its data id needs detector too"},
        "dataset calexp visit=3: its data id needs detector too",
    ),
    (
        DatasetExists("deepDiff_diaSrc visit=3 detector=1", "u/me/diff"),
        BadInputError,
        "dataset_exists",
        {"dataset": "deepDiff_diaSrc visit=3 detector=1", "collection": "u/me/diff"},
        "dataset deepDiff_diaSrc visit=3 detector=1: the collection u/me/diff holds one already; use another, or remove it",
    ),
    (TaskError("Exposure has no psf"), ProcessingError, "task_error", {}, "Exposure has no psf"),
    (SchemaMismatch("5 bytes are left over"), BadInputError, "schema_mismatch", {}, "5 bytes are left over"),
    (
        TemplateUnreadable("t.fits", "no world coordinates"),
        BadInputError,
        "template_unreadable",
        {"uri": "t.fits", "problem": "no world coordinates"},
        "template t.fits: no world coordinates",
    ),
    (
        InsufficientPsfStars(4, 8),
        ProcessingError,
        "insufficient_psf_stars",
        {"n_stars": 4, "n_required": 8},
        "4 usable PSF stars, 8 required",
    ),
    (
        InsufficientKernelSources(1, 3),
        ProcessingError,
        "insufficient_kernel_sources",
        {"n_sources": 1, "n_required": 3},
        "1 usable kernel sources, 3 required",
    ),
    (
        BadSubtraction("kernel sum", -0.12345678, 0.0),
        ProcessingError,
        "bad_subtraction",
        {"quantity": "kernel sum", "value": -0.12345678, "limit": 0.0},
        "kernel sum is -0.1235, the limit is 0",
    ),
    (
        TooManyDiaSources(5001, 5000),
        ProcessingError,
        "too_many_dia_sources",
        {"n": 5001, "limit": 5000},
        "5001 DiaSources, the limit is 5000",
    ),
    (
        TooManyCosmicRays(70000, 5000),
        ProcessingError,
        "too_many_cosmic_rays",
        {"n": 70000, "limit": 5000},
        "70000 pixels look like cosmic rays, the limit is 5000",
    ),
    (
        WorkerDied("memory", 3),
        ProcessingError,
        "worker_died",
        {"cause": "memory", "deaths": 3},
        "3 workers died on it, the last one of: memory",
    ),
    (
        NoTemplateCoverage(0.0625, 0.1),
        NoWorkFound,
        "no_template_coverage",
        {"fraction": 0.0625, "required": 0.1},
        "templates cover 6.2% of the exposure, 10.0% is required (requiredTemplateFraction = 0 tries all the same)",
    ),
    (
        CorruptOutbox("7.1.outbox", "is gone"),
        PartialWriteError,
        "corrupt_outbox",
        {"uri": "7.1.outbox", "problem": "is gone"},
        "outbox 7.1.outbox: is gone",
    ),
]

IDS = [type(example[0]).__name__ for example in EXAMPLES]


def tree_of(root):
    return {root, *(error for child in root.__subclasses__() for error in tree_of(child))}


@pytest.mark.parametrize(("error", "fate", "reason", "attributes", "words"), EXAMPLES, ids=IDS)
@pytest.mark.parametrize(
    "travel",
    [copy.copy, *(lambda e, p=p: pickle.loads(pickle.dumps(e, p)) for p in range(2, pickle.HIGHEST_PROTOCOL + 1))],
)
def test_an_error_keeps_its_numbers_and_words_between_processes(error, fate, reason, attributes, words, travel):
    arrived = travel(error)
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert {name: getattr(arrived, name) for name in attributes} == attributes
    assert str(arrived) == str(error) == words


@pytest.mark.parametrize(("error", "fate", "reason", "attributes", "words"), EXAMPLES, ids=IDS)
def test_an_error_has_one_fate_and_one_label(error, fate, reason, attributes, words):
    assert [candidate for candidate in FATES if isinstance(error, candidate)] == [fate]
    assert error.reason() == type(error).reason() == reason


def test_every_error_of_the_tree_is_among_the_examples():
    defined = {error for error in tree_of(AlertprodError) if error.__module__ == errors.__name__}
    abstract = {AlertprodError, *FATES} - {ConfigError}
    assert defined - abstract == {type(example[0]) for example in EXAMPLES} - {CorruptOutbox}


def test_the_drawing_names_every_error_of_the_module():
    drawing = inspect.getdoc(errors)
    for _, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, AlertprodError):
            assert error.__name__ in drawing


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ConfigError, ValueError),
        (StoreUnavailable, OSError),
        (DiskFull, OSError),
        (BrokerUnavailable, ConnectionError),
        (RegistryUnavailable, ConnectionError),
        (ImageNotYetAvailable, FileNotFoundError),
        (BadInputError, ValueError),
        (ProcessingError, RuntimeError),
        (PartialWriteError, RuntimeError),
    ],
)
def test_an_error_is_also_the_builtin_that_fits(error, builtin):
    assert issubclass(error, builtin)


def test_nothing_to_do_is_not_an_error_of_processing():
    assert not issubclass(NoWorkFound, ProcessingError | BadInputError | TransientError)
    # Not a BaseException of its own kind: `except Exception` must catch it.
    assert issubclass(NoWorkFound, Exception)
