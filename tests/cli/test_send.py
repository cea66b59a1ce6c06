import json

import pytest

from alertprod.stream.embedded import EmbeddedBroker
from alertprod.stream.messages import decode_visit_ready
from alertprod.stream.tail import AlertTail


@pytest.fixture
def config(write_config, small_night):
    return write_config(profile=small_night.directory / "profile.toml")


@pytest.fixture
def exposure(small_night):
    return small_night.exposure_path(0, 1)


def test_an_images_event_is_what_its_header_says(alertprod, config, small_night, exposure):
    ran = alertprod("send", exposure, "-c", config, "--dry-run")
    assert ran.status == 0
    event, planned = ran.json, small_night.event(0, 1)
    for name in ("n_detectors", "sent_at_mjd_tai", "observation_reason", "target_name"):
        del planned[name]  # no header of this night says it
    for name in ("shutter_open_mjd_tai", "shutter_close_mjd_tai", "ra_deg", "dec_deg"):
        assert event.pop(name) == pytest.approx(planned.pop(name), abs=1e-9), name
    assert planned.items() <= event.items()
    assert event["replay"] is False
    decode_visit_ready(ran.out.encode())


def test_templates_and_replay_go_into_the_event(alertprod, config, small_night, exposure):
    tile = next(small_night.templates_directory.glob("*.fits"))
    event = alertprod("send", exposure, "-c", config, "--dry-run", "--template", tile, "--replay").json
    assert event["template_uris"] == [str(tile)]
    assert event["replay"] is True


def test_files_of_events_are_sent_as_they_are(alertprod, config, small_night):
    ran = alertprod("send", small_night.directory / "events.jsonl", "-c", config, "--dry-run")
    assert ran.status == 0
    written = [json.loads(line) for line in (small_night.directory / "events.jsonl").read_text().splitlines()]
    assert len(written) == 6
    assert ran.json_lines == [{**event, "replay": False} for event in written]


def test_what_is_bad_is_named_and_the_rest_is_sent(alertprod, config, small_night, exposure, tmp_path):
    good = (small_night.directory / "events.jsonl").read_text().splitlines()
    without_band = json.dumps({key: value for key, value in json.loads(good[1]).items() if key != "band"})
    (tmp_path / "events.jsonl").write_text("\n".join([good[0], without_band, "nonsense", good[2]]))
    (tmp_path / "truncated.fits").write_bytes(exposure.read_bytes()[:2000])
    (tmp_path / "event.json").write_text('{"instrument": "simcam", "visit": "seven"}')
    files = ["absent.fits", "truncated.fits", "absent.json", "event.json", "events.jsonl"]
    ran = alertprod("send", *(tmp_path / file for file in files), exposure, "-c", config, "--dry-run")
    assert ran.status == 1
    assert [(event["visit"], event["detector"]) for event in ran.json_lines] == [
        (small_night.visit_id(0), 0),
        (small_night.visit_id(1), 0),
        (small_night.visit_id(0), 1),
    ]
    for said in (
        f"{tmp_path}/absent.fits: {tmp_path}/absent.fits: no such file",
        f"{tmp_path}/truncated.fits: {tmp_path}/truncated.fits[",
        f"{tmp_path}/absent.json: event field (file): ",
        f"{tmp_path}/event.json: event field visit: Input should be a valid integer",
        f"{tmp_path}/events.jsonl: event field band: line 2: Field required",
        f"{tmp_path}/events.jsonl: event field value: line 3: neither Avro nor JSON",
    ):
        assert said in ran.words
    assert "Traceback" not in ran.err


def test_an_instrument_must_be_configured(alertprod, write_config, exposure):
    ran = alertprod("send", exposure, "-c", write_config(), "--instrument", "Other", "--dry-run")
    assert ran.status == 1
    assert "'Other' is not configured; --instrument takes one of: simcam" in ran.words
    two = write_config("[instruments.Other]\nprofile = 'saao'")
    assert "--instrument takes one of: simcam, Other" in alertprod("send", exposure, "-c", two, "--dry-run").words


def test_a_watched_folder_is_left_alone_where_nobody_knows_whose_images_it_holds(
    alertprod, write_config, exposure, tmp_path
):
    (tmp_path / "in").mkdir()
    two = write_config("[instruments.Other]\nprofile = 'saao'")
    for options in ([], ["--instrument", "Third"]):
        ran = alertprod("send", "--watch", tmp_path / "in", "-c", two, *options)
        assert ran.status == 2
        assert "--instrument takes one of: simcam, Other" in " ".join(ran.words.replace("│", " ").split())
    assert list((tmp_path / "in").iterdir()) == []


def test_a_header_that_lacks_what_an_event_needs_is_named(alertprod, write_config, small_night, exposure, tmp_path):
    profile = tmp_path / "camera.toml"
    lines = (small_night.directory / "profile.toml").read_text().splitlines()
    profile.write_text("\n".join(line for line in lines if not line.startswith("band =")))
    ran = alertprod("send", exposure, "-c", write_config(profile=profile), "--dry-run")
    assert ran.status == 1
    assert f"{exposure}: event field band: Field required; the profile {profile} looks for it nowhere" in ran.words


def test_a_files_name_without_the_visit_is_held_against_the_pattern(
    alertprod, write_config, small_night, exposure, tmp_path
):
    profile = tmp_path / "camera.toml"
    lines = (small_night.directory / "profile.toml").read_text().splitlines()
    named = ("visit = { file_name = 'img([0-9]+)' }" if line.startswith("visit =") else line for line in lines)
    profile.write_text("\n".join(named))
    ran = alertprod("send", exposure, "-c", write_config(profile=profile), "--dry-run")
    assert ran.status == 1
    assert f"{exposure}: event field visit: Field required" in ran.words
    assert "looks for it in the file's name, by 'img([0-9]+)'" in ran.words


def test_events_arrive_on_the_topic_with_their_keys(alertprod, write_config, small_night, exposure):
    with EmbeddedBroker({"visit-ready": 1}) as broker:
        config = write_config(
            f"[kafka]\nbootstrap_servers = '{broker.bootstrap_servers}'", profile=small_night.directory / "profile.toml"
        )
        ran = alertprod("send", exposure, small_night.directory / "events.jsonl", exposure, "-c", config)
        assert (ran.status, ran.out) == (0, "")
        assert "8 events sent to visit-ready" in ran.err
        with AlertTail(broker.bootstrap_servers, ["visit-ready"]) as tail:
            messages = list(tail.messages())
    assert [decode_visit_ready(message.value).key for message in messages] == [message.key for message in messages]
    assert messages[0].key == f"simcam/{small_night.visit_id(0)}/1".encode()
    assert len(messages) == 8


def test_a_broker_that_is_not_there_is_a_failure(alertprod, write_config, small_night, exposure):
    config = write_config(
        "[kafka]\nbootstrap_servers = '127.0.0.1:1'\nsecurity = { 'message.timeout.ms' = '1000' }",
        profile=small_night.directory / "profile.toml",
    )
    ran = alertprod("send", exposure, "-c", config)
    assert ran.status == 1
    assert "alertprod: broker_unavailable: " in ran.words
    assert "Traceback" not in ran.err
