import pytest


def test_show_prints_every_section_with_what_was_set(alertprod, write_config):
    path = write_config("[workers]\ncount = 3\n[kafka]\nbootstrap_servers = 'kafka.example:9092'")
    ran = alertprod("config", "show", "--config", path)
    assert ran.status == 0
    for line in ("[kafka]", "[topics]", "[store]", "[limits]", "count = 3", "bootstrap_servers = 'kafka.example:9092'"):
        assert line in ran.out
    shown = alertprod("config", "show", "-c", path, "--json").json
    assert shown["workers"]["count"] == 3
    assert shown["kafka"]["bootstrap_servers"] == "kafka.example:9092"
    assert shown["instruments"]["simcam"]["bands"] == ["u", "g", "r", "i", "z", "y"]


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_show_stars_secrets_out(alertprod, write_config, as_json):
    path = write_config(
        "[kafka.security]\n'sasl.username' = 'me'\n'sasl.password' = 'hunter2'\n'ssl.key.password' = 'hunter3'\n"
        "[store]\ndatabase_url = 'postgresql://alerts:hunter4@db.example/alerts'"
    )
    ran = alertprod("config", "show", "-c", path, *as_json)
    assert ran.status == 0
    assert "hunter" not in ran.out + ran.err
    assert "db.example/alerts" in ran.out


def test_show_needs_no_file(alertprod):
    assert alertprod("config", "show", "--json").json["kafka"]["delivery"] == "exactly-once"


def test_check_says_that_all_is_good_and_what_will_run(alertprod, write_config):
    path = write_config(instrument='difference = { "detection.thresholdValue" = 6.0 }')
    ran = alertprod("config", "check", "-c", path)
    assert ran.status == 0
    assert ran.out.startswith(f"{path}: good (hash ")
    facts = alertprod("config", "check", "-c", path, "--json").json
    assert facts["ok"] is True
    assert facts["instruments"] == "simcam"
    assert facts["delivery"] == "exactly-once"
    assert facts["config_hash"].startswith(ran.out.split("hash ")[1].split(")")[0])


@pytest.mark.parametrize(
    ("more", "instrument", "said"),
    [
        ("[workers]\ncuont = 3", "", "workers.cuont"),
        ("[workers]\ncount = 'many'", "", "workers.count"),
        ("[limits]\nlease_s = 0.5", "", "limits.lease_s"),
        ("[instruments.Other]\nprofile = 'nosuch'", "", "nosuch: profile: no such file"),
        ("", 'difference = { "detection.nosuch" = 6.0 }', "detection.nosuch"),
        (
            "",
            'difference = { "detection.thresholdValue" = "high" }',
            "detection.thresholdValue: cannot be set to 'high'",
        ),
        ("[topics]\nalerts = 'same'\nvisit_ready = 'same'", "", "two topics are both called same"),
        ("[kafka", "", "(file)"),
    ],
)
def test_check_names_file_field_and_value_of_what_is_wrong(alertprod, write_config, more, instrument, said):
    path = write_config(more, instrument=instrument)
    for command in (("config", "check"), ("run",)):  # the daemon refuses what the check refuses
        ran = alertprod(*command, "-c", path)
        assert ran.status == 2
        assert ran.out == ""
        assert ran.words.startswith("alertprod: configuration: ")
        assert said in ran.words
        assert str(path) in ran.words or "profile" in said
        assert "Traceback" not in ran.err


def test_check_reads_profiles_and_names_what_is_wrong_in_them(alertprod, write_config, tmp_path):
    (tmp_path / "camera.toml").write_text("description = 'x'\ninstrument = 'C'\ndetektor = 3\n")
    ran = alertprod("config", "check", "-c", write_config("[instruments.C]\nprofile = 'camera.toml'"))
    assert ran.status == 2
    assert f"{tmp_path}/camera.toml" in ran.words
    assert "detektor" in ran.words


def test_check_refuses_instruments_whose_ids_would_collide(alertprod, write_config):
    ran = alertprod("config", "check", "-c", write_config("[instruments.Other]\nprofile = 'rubin'"))
    assert ran.status == 2
    assert "instruments.Other: its DiaSource ids overlap those of simcam" in ran.words


def test_check_refuses_a_configuration_without_instruments(alertprod, tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    ran = alertprod("config", "check", "-c", path)
    assert ran.status == 2
    assert f"{path}: instruments: none is configured" in ran.words


def test_a_file_that_is_not_there_is_named(alertprod, tmp_path):
    for command in (("config", "show"), ("config", "check"), ("run",), ("alerts", "tail"), ("send", "x.json")):
        ran = alertprod(*command, "-c", tmp_path / "absent.toml")
        assert ran.status == 2
        assert f"{tmp_path}/absent.toml: (file): No such file or directory" in ran.words
