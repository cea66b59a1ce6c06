"""The daemon's configuration."""

import os
import pickle

import pytest

from alertprod.config import DaemonConfig, config_hash, limited_threads, load_config, redacted
from alertprod.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    for name in [name for name in os.environ if name.startswith("ALERTPROD_") and "__" in name]:
        monkeypatch.delenv(name)


def load(folder, text):
    path = folder / "alertprod.toml"
    path.write_text(text)
    return load_config(path)


def test_an_empty_file_gives_the_defaults(tmp_path):
    config = load(tmp_path, "")

    assert config.kafka.delivery == "exactly-once"
    assert config.http.host == "127.0.0.1"
    assert config.instruments == {}


def test_paths_are_relative_to_the_file(tmp_path):
    config = load(
        tmp_path,
        """
        [store]
        database_url = "sqlite:///db/alerts.sqlite"
        outbox_uri = "out"
        template_index = "s3://bucket/index.json"
        [instruments.Camera]
        profile = "profiles/camera.toml"
        template_profile = "rubin"
        [solar_system]
        ephemeris_uri = "tonight.ecsv"
        """,
    )

    assert config.solar_system.ephemeris_uri == f"{tmp_path}/tonight.ecsv"
    assert config.store.database_url == f"sqlite:///{tmp_path}/db/alerts.sqlite"
    assert config.store.outbox_uri == f"{tmp_path}/out"
    assert config.store.template_index == "s3://bucket/index.json"
    assert config.store.template_cache_directory == f"{tmp_path}/template-cache"
    assert config.instruments["Camera"].profile == f"{tmp_path}/profiles/camera.toml"
    assert config.instruments["Camera"].template_profile == "rubin"


def test_absolute_paths_stay(tmp_path):
    config = load(tmp_path, '[store]\ndatabase_url = "sqlite:////var/lib/a.sqlite"\noutbox_uri = "/var/outbox"\n')

    assert config.store.database_url == "sqlite:////var/lib/a.sqlite"
    assert config.store.outbox_uri == "/var/outbox"


def test_overrides_may_be_dotted_tables_or_quoted_names(tmp_path):
    config = load(
        tmp_path,
        """
        [instruments.Camera.difference]
        detection.thresholdValue = 5.5
        "subtract.kernel.name" = "AL"
        doMerge = true
        """,
    )

    assert config.instruments["Camera"].difference == {
        "detection.thresholdValue": 5.5,
        "subtract.kernel.name": "AL",
        "doMerge": True,
    }


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        ("[kafka]\nbotstrap = 'x'", "kafka.botstrap", "no such setting"),
        ("[kafak]\n", "kafak", "no such setting"),
        ("[workers]\ncount = 'many'", "workers.count", "integer"),
        ("[workers]\ncount = 0", "workers.count", "greater than or equal to 1"),
        ("[kafka]\ndelivery = 'at-most-once'", "kafka.delivery", "exactly-once"),
        ("[instruments.Camera]\nrelease = 64", "instruments.Camera.release", "less than 64"),
        ("[alerts]\ncutout_min_pixels = 200", "alerts", "more than cutout_max_pixels"),
        ("[alerts]\ncutout_max_psf_pixels = 24", "alerts", "no middle pixel"),
        ("[alerts]\nmin_reliability = 0.5", "alerts", "needs a scorer"),
        ("[topics]\nalerts = 'visit-ready'", "topics", "two topics"),
        ("[workers", "(file)", "is not TOML"),
    ],
)
def test_what_does_not_fit_is_named_with_file_and_field(tmp_path, text, field, problem):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert caught.value.source == str(tmp_path / "alertprod.toml")
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


def test_several_problems_are_all_named(tmp_path):
    with pytest.raises(ConfigError, match=r"workers\.count.*also: http\.port"):
        load(tmp_path, "[workers]\ncount = 0\n[http]\nport = -1")


def test_the_environment_overrides_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ALERTPROD_KAFKA__BOOTSTRAP_SERVERS", "broker:9092")
    monkeypatch.setenv("ALERTPROD_WORKERS__COUNT", "7")
    monkeypatch.setenv("ALERTPROD_INSTRUMENTS__CAMERA__RELEASE", "3")
    monkeypatch.setenv("ALERTPROD_INSTRUMENTS__CAMERA__TEMPLATE_BANDS", '{"clear": "r"}')

    config = load(tmp_path, "[kafka]\ngroup_id = 'mine'\n[instruments.Camera]\nprofile = 'rubin'")

    assert (config.kafka.bootstrap_servers, config.kafka.group_id) == ("broker:9092", "mine")
    assert config.workers.count == 7
    assert list(config.instruments) == ["Camera"]
    assert config.instruments["Camera"].release == 3
    assert config.instruments["Camera"].template_bands == {"clear": "r"}


def test_a_bad_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ALERTPROD_WORKERS__COUNT", "many")

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "")

    assert "ALERTPROD_WORKERS__COUNT" in caught.value.source


@pytest.mark.parametrize("name", ["ALERTPROD_WORKRES__COUNT", "ALERTPROD_WORKERS__COUNTS"])
def test_a_misspelt_variable_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "2")

    with pytest.raises(ConfigError):
        load(tmp_path, "")


def test_variables_without_sections_are_not_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("ALERTPROD_TEST_KAFKA", "broker:9092")

    load(tmp_path, "")


def test_the_hash_follows_what_changes_results_and_nothing_else(tmp_path):
    base = "[instruments.Camera]\nrelease = 1\n"
    hash_of = config_hash(load(tmp_path, base))

    for same in (
        "[kafka]\ngroup_id = 'x'\n",
        "[log]\nlevel = 'debug'\n",
        "[workers]\ncount = 5\n",
        "[solar_system]\nephemeris_uri = 's3://night/bodies.parquet'\n",
    ):
        assert config_hash(load(tmp_path, base + same)) == hash_of
    for other in (
        "[instruments.Camera]\nrelease = 2\n",
        base + "difference.detection.thresholdValue = 6.0\n",
        base + "[association]\nradius_arcsec = 2.0\n",
        base + "[association]\nexcluded_flags = ['is_dipole']\n",
        base + "[solar_system]\nradius_arcsec = 2.0\n",
        base + "[alerts]\nscorer = 'sharpness'\n",
        base + "[alerts]\nmax_per_exposure = 7\n",
    ):
        assert config_hash(load(tmp_path, other)) != hash_of


def test_the_hash_follows_a_profiles_contents_not_its_place(tmp_path):
    hashes = []
    for folder, text in (("a", "x = 1"), ("b", "x = 1"), ("c", "x = 2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "camera.toml").write_text(text)
        hashes.append(config_hash(load(tmp_path / folder, "[instruments.Camera]\nprofile = 'camera.toml'")))

    assert hashes[0] == hashes[1] != hashes[2]


def test_secrets_are_not_shown(tmp_path):
    config = load(
        tmp_path,
        """
        [kafka.security]
        "security.protocol" = "SASL_SSL"
        "sasl.password" = "hunter2"
        [store]
        database_url = "postgresql://alerts:hunter2@db/alerts"
        [alerts]
        scorer = "remote"
        scorer_options = {Token = "hunter2", model = "resnet"}
        """,
    )

    assert "hunter2" not in str(redacted(config))
    assert redacted(config)["alerts"]["scorer_options"] == {"Token": "***", "model": "resnet"}
    assert "hunter2" not in repr(config.kafka)
    assert "SASL_SSL" in str(redacted(config))


def test_it_survives_the_way_to_a_worker(tmp_path):
    config = load(tmp_path, "[instruments.Camera]\ndifference.a.b = [1, 2]")

    assert pickle.loads(pickle.dumps(config)) == config


def test_every_field_says_why():
    def fields(model, path):
        for name, field in model.model_fields.items():
            yield f"{path}{name}", field
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                yield from fields(inner, f"{path}{name}.")

    assert [path for path, field in fields(DaemonConfig, "") if not field.description] == []


def test_thread_limits_are_for_the_processes_started_within(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)

    with limited_threads(2):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["NUMBA_NUM_THREADS"] == "2"
        assert os.environ["MKL_NUM_THREADS"] == "1"

    assert os.environ["OMP_NUM_THREADS"] == "9"
    assert "MKL_NUM_THREADS" not in os.environ


def test_paths_that_nobody_wrote_are_relative_to_the_file_too(tmp_path, monkeypatch):
    path = tmp_path / "alertprod.toml"
    path.write_text("[http]\nport = 0\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store = load_config(path).store
    assert store.database_url == f"sqlite:///{tmp_path}/alertprod.sqlite"
    assert store.outbox_uri == str(tmp_path / "outbox")


def test_no_template_index_is_a_choice_and_no_other_path_may_be_empty(tmp_path):
    path = tmp_path / "alertprod.toml"
    path.write_text('[store]\ntemplate_index = ""\noutbox_uri = ""\nallowed_roots = [""]\n')
    store = load_config(path).store
    assert store.template_index == ""
    assert (store.outbox_uri, store.allowed_roots) == (str(tmp_path), (str(tmp_path),))
