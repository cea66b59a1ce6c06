"""The factory: what a configuration cannot mean is said at start-up, with file and field; what it can is built."""

import itertools
import pickle
from pathlib import Path

import pytest

from alertprod.config import DaemonConfig, InstrumentConfig, StoreConfig, WorkersConfig
from alertprod.errors import ConfigError
from alertprod.factory import WorkerPipeline, check_config, create_instruments, create_schemas, create_task
from alertprod.ids import RubinPacker, SequencePacker
from alertprod.images.profile import NATIVE_PROFILE, PROFILES_DIRECTORY
from alertprod.service.pipeline import ExposurePipeline
from alertprod.store.template_cache import TemplateCache
from alertprod.store.template_index import TemplateIndex
from alertprod.stream.schemas import FixedSchemas

SOURCE = "night.toml"


def write_profile(folder: Path, name: str, **ids) -> str:
    """Write the native profile with a table [ids] of its own, and return its path."""
    native = (PROFILES_DIRECTORY / f"{NATIVE_PROFILE}.toml").read_text()
    lines = [f"{key} = {value!r}" for key, value in ids.items()]
    path = folder / f"{name}.toml"
    path.write_text(native + "\n[ids]\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def configure(tmp_path):
    """Return a function that makes a configuration of the instruments it is given."""
    TemplateIndex([]).save(str(tmp_path / "templates.json"))

    def make(**instruments: dict) -> DaemonConfig:
        return DaemonConfig(
            store=StoreConfig(
                database_url=f"sqlite:///{tmp_path}/alertprod.sqlite",
                outbox_uri=str(tmp_path / "outbox"),
                template_index=str(tmp_path / "templates.json"),
                template_cache_directory=str(tmp_path / "cache"),
            ),
            instruments={name: InstrumentConfig(**settings) for name, settings in instruments.items()},
            workers=WorkersConfig(count=2, threads_per_worker=1),
        )

    return make


def check(config) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_config(config, source=SOURCE)
    return caught.value


def test_a_good_configuration_is_told_in_words(configure, tmp_path):
    config = configure(
        One={"profile": write_profile(tmp_path, "one", n_detectors=4, n_visits=1000)}, Two={"profile": "rubin"}
    )
    # Rubin's ids fill the whole space: nothing can stand beside them.
    assert check(config).field == "instruments.Two"
    facts = check_config(configure(One=dict(config.instruments["One"])), source=SOURCE)
    assert facts["instruments"] == "One"
    assert facts["delivery"] == "exactly-once"
    assert "alertprod.sqlite" in facts["database"]
    assert facts["workers"] == "2 x 1 threads"


def test_no_instrument_at_all(configure):
    error = check(configure())
    assert (error.source, error.field) == (SOURCE, "instruments")
    assert "[instruments.NAME]" in error.problem


@pytest.mark.parametrize("field", ["profile", "template_profile"])
@pytest.mark.parametrize("profile", ["nowhere", "/no/such/profile.toml"])
def test_an_unknown_profile_is_named_with_file_and_field(configure, field, profile):
    error = check(configure(Camera={"profile": "saao", field: profile}))
    assert (error.source, error.field) == (SOURCE, f"instruments.Camera.{field}")
    assert profile in error.problem
    assert "no such file" in error.problem


def test_a_profile_with_a_mistake_names_its_own_file(configure, tmp_path):
    path = tmp_path / "broken.toml"
    native = (PROFILES_DIRECTORY / f"{NATIVE_PROFILE}.toml").read_text()
    path.write_text(native.replace('level = { card = "SATURATE" }', 'levl = { card = "SATURATE" }'))
    error = check(configure(Camera={"profile": str(path)}))
    assert (error.source, error.field) == (str(path), "saturation.levl")


@pytest.mark.parametrize(
    ("override", "value", "problem"),
    [
        ("detection.thresholdValue", "high", "incorrect type str"),
        ("detection.treshold", 5.0, "no such field"),
        ("subtract.al.mode", "sideways", "not allowed"),
        ("doDetection", False, "needs doDetection"),
        ("scaleVariance.maskPlanes", ["NOPE"], "there is no NOPE"),
    ],
)
def test_a_bad_override_names_file_instrument_and_field(configure, override, value, problem):
    error = check(configure(Camera={"profile": "saao", "difference": {override: value}}))
    assert error.source == f"{SOURCE}: [instruments.Camera]"
    assert error.field == (override if override != "doDetection" else "doMeasurement")
    assert problem in error.problem


def test_ids_that_would_collide_are_refused(configure, tmp_path):
    one = write_profile(tmp_path, "one", n_detectors=4, n_visits=1000)
    two = write_profile(tmp_path, "two", n_detectors=2, n_visits=1000)
    error = check(configure(One={"profile": one}, Two={"profile": two}))
    assert (error.source, error.field) == (SOURCE, "instruments.Two")
    assert "One" in error.problem
    assert "instrument_number" in error.problem


def test_ids_of_one_profile_collide_with_themselves(configure, tmp_path):
    one = write_profile(tmp_path, "one", n_detectors=4, n_visits=1000)
    assert check(configure(North={"profile": one}, South={"profile": one})).field == "instruments.South"


def test_instrument_numbers_keep_ids_apart(configure, tmp_path):
    instruments = {
        f"Camera{number}": {
            "profile": write_profile(tmp_path, f"p{number}", n_detectors=4, n_visits=1000, instrument_number=number)
        }
        for number in range(3)
    }
    check_config(configure(**instruments), source=SOURCE)
    # The ranges are what the packers give: the last of one is below the first of the next.
    packers = [SequencePacker(n_detectors=4, n_visits=1000, instrument_number=number) for number in range(3)]
    for below, above in itertools.pairwise(packers):
        assert below.pack(visit=999, detector=3) + 1 == above.pack(visit=0, detector=0)


def test_instruments_of_other_sizes_collide_in_spite_of_their_numbers(configure, tmp_path):
    # Number 1 of a small span lies within number 0 of a large one.
    large = write_profile(tmp_path, "large", n_detectors=10, n_visits=100000)
    small = write_profile(tmp_path, "small", n_detectors=1, n_visits=1000, instrument_number=1)
    assert check(configure(Large={"profile": large}, Small={"profile": small})).field == "instruments.Small"


def test_releases_do_not_separate_instruments(configure, tmp_path):
    # A release is raised for a whole night: the same one comes to both sooner or later.
    one = write_profile(tmp_path, "one", n_detectors=4, n_visits=1000)
    error = check(configure(One={"profile": one, "release": 0}, Two={"profile": one, "release": 1}))
    assert error.field == "instruments.Two"


def test_a_task_has_its_overrides_and_threads():
    task = create_task({"detection.thresholdValue": 7}, source=SOURCE, n_threads=3)
    assert task.config.detection.value.thresholdValue == 7.0
    assert task.config.subtract["al"].kernel["AL"].nThreads == 3
    explicit = create_task({"subtract.al.kernel.AL.nThreads": 1}, source=SOURCE, n_threads=3)
    assert explicit.config.subtract["al"].kernel["AL"].nThreads == 1


def test_instruments_are_built_apart(configure, tmp_path):
    config = configure(
        One={
            "profile": write_profile(tmp_path, "one", packer="rubin"),
            "difference": {"detection.thresholdValue": 6.0},
            "release": 5,
            "template_bands": {"clear": "r"},
        },
        Two={"profile": write_profile(tmp_path, "two", n_detectors=2, n_visits=10)},
    )
    cache = TemplateCache(tmp_path / "cache", max_bytes=1 << 20)
    instruments = create_instruments(config, cache)
    assert set(instruments) == {"One", "Two"}
    one, two = instruments["One"], instruments["Two"]
    assert isinstance(one.packer, RubinPacker)
    assert isinstance(two.packer, SequencePacker)
    assert (one.release, two.release) == (5, 0)
    assert (one.task.config.detection.value.thresholdValue, two.task.config.detection.value.thresholdValue) == (
        6.0,
        5.0,
    )
    assert one.template_bands == {"clear": "r"}
    assert one.task is not two.task


def test_a_missing_template_index_is_said_when_instruments_are_built(configure, tmp_path):
    config = configure(Camera={"profile": "saao"})
    (tmp_path / "templates.json").unlink()
    with pytest.raises(ConfigError, match=r"templates\.json"):
        create_instruments(config, TemplateCache(tmp_path / "cache", max_bytes=1 << 20))


def test_a_workers_pipeline_travels_to_its_process(configure):
    config = configure(Camera={"profile": "saao"})
    arrived = pickle.loads(pickle.dumps(WorkerPipeline(config)))
    assert arrived == WorkerPipeline(config)
    assert isinstance(arrived(), ExposurePipeline)


def test_without_a_registry_schemas_are_the_projects_own(configure):
    assert isinstance(create_schemas(configure(Camera={"profile": "saao"})), FixedSchemas)
