"""The factory: what a configuration cannot mean is said at start-up, with file and field; what it can is built."""

import io
import itertools
import pickle
from pathlib import Path

import pytest
from installed_scorers import install as install_scorers

from alertprod.association import config as association_config
from alertprod.association import solar_system
from alertprod.config import (
    AlertsConfig,
    AssociationConfig,
    DaemonConfig,
    InstrumentConfig,
    KafkaConfig,
    SolarSystemConfig,
    StoreConfig,
    WorkersConfig,
)
from alertprod.errors import ConfigError
from alertprod.factory import (
    WorkerPipeline,
    check_config,
    create_instruments,
    create_schemas,
    create_science,
    create_task,
)
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
    stream = io.StringIO()
    task.config.saveToStream(stream)
    threads = [line for line in stream.getvalue().splitlines() if "nThreads" in line]
    assert len(threads) >= 5
    assert all(line.endswith("nThreads=3") for line in threads)
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
    none = config.model_copy(update={"store": StoreConfig(template_index="")})
    assert create_instruments(none, TemplateCache(tmp_path / "cache", max_bytes=1 << 20))


def test_a_workers_pipeline_travels_to_its_process(configure):
    config = configure(Camera={"profile": "saao"})
    arrived = pickle.loads(pickle.dumps(WorkerPipeline(config)))
    assert arrived == WorkerPipeline(config)
    assert isinstance(arrived(), ExposurePipeline)


def test_a_registry_is_asked_with_the_authorization_in_its_file(configure, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("alertprod.factory.RegistrySchemas", lambda url, **options: asked.append((url, options)))
    (tmp_path / "secret").write_text("Basic eA==\n")
    kafka = KafkaConfig(registry_url="http://registry", registry_authorization_file=str(tmp_path / "secret"))
    create_schemas(configure(Camera={"profile": "saao"}).model_copy(update={"kafka": kafka}))
    assert asked == [("http://registry", {"authorization": "Basic eA=="})]


def test_without_a_registry_schemas_are_the_projects_own(configure):
    assert isinstance(create_schemas(configure(Camera={"profile": "saao"})), FixedSchemas)


# -- association, scores, the Solar System --


def test_settings_of_association_and_solar_system_reach_the_pipeline(configure):
    config = configure(Camera={"profile": "saao"}).model_copy(
        update={
            "association": AssociationConfig(
                radius_arcsec=2.0,
                systematic_err_arcsec=0.3,
                history_days=100.0,
                excluded_flags=(),
                new_object_flags=("glint_trail",),
                min_science_snr=-4.0,
                max_trail_deg_per_day=24.0,
                min_new_object_reliability=0.3,
            ),
            "solar_system": SolarSystemConfig(radius_arcsec=3.0, max_propagation_s=60.0),
        }
    )
    science = create_science(config)
    assert science.scorer is None
    made = science.association
    assert (made.radius_arcsec, made.systematic_err_arcsec, made.history_days) == (2.0, 0.3, 100.0)
    assert (made.excluded_flags, made.new_object_flags) == ((), ("glint_trail",))
    assert (made.min_science_snr, made.min_reliability, made.min_new_object_reliability) == (-4.0, None, 0.3)
    assert made.max_trail_rate_arcsec_per_s == pytest.approx(1.0)
    bodies = science.solar_system
    assert (bodies.radius_arcsec, bodies.systematic_err_arcsec, bodies.max_propagation_s) == (3.0, 0.3, 60.0)


def test_defaults_of_the_configuration_are_those_of_the_science(configure):
    science = create_science(configure(Camera={"profile": "saao"}))
    defaults = association_config.AssociationConfig()
    for name in (slot for slot in defaults.__slots__ if slot != "max_trail_rate_arcsec_per_s"):
        assert getattr(science.association, name) == getattr(defaults, name), name
    assert science.association.max_trail_rate_arcsec_per_s == pytest.approx(defaults.max_trail_rate_arcsec_per_s)
    assert science.solar_system == solar_system.SolarSystemConfig()


def test_a_flag_that_is_none_is_named_with_file_and_field(configure):
    association = AssociationConfig(excluded_flags=("psf_flux_flg",))
    config = configure(Camera={"profile": "saao"}).model_copy(update={"association": association})
    error = check(config)
    assert (error.source, error.field) == (SOURCE, "association.excluded_flags")
    assert "psf_flux_flg" in error.problem


def test_a_scorer_that_is_not_installed_is_named_and_one_that_is_is_made(configure, tmp_path, monkeypatch):
    alerts = AlertsConfig(scorer="sharpness", scorer_options={"name": "mine"}, min_reliability=0.4)
    config = configure(Camera={"profile": "saao"}).model_copy(update={"alerts": alerts})
    error = check(config)
    assert (error.source, error.field) == (SOURCE, "alerts.scorer")
    assert "sharpness" in error.problem
    install_scorers(tmp_path, monkeypatch)
    check_config(config, source=SOURCE)
    science = create_science(config)
    assert science.scorer.stamp_size == 21
    assert science.association.min_reliability == 0.4
