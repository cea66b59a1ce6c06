"""What an operator does with a running daemon, on a real Kafka: dead letters, watched folders, checks, SIGHUP."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from observatory import make_event, make_observatory

from alertprod.stream.dead_letter import parse_dead_letter

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory, kafka_broker, small_night):
    """An observatory whose images come late."""
    limits = "image_wait_s = 1.0\nretry_first_s = 0.2\nretry_max_s = 0.5"
    folder = tmp_path_factory.mktemp("operating")
    return make_observatory(folder / "site", kafka_broker, small_night, lanes=2, limits=limits)


def test_dead_letters_are_listed_shown_and_replayed_and_what_was_published_since_is_refused(
    site, small_night, tmp_path
):
    night = small_night
    late = [tmp_path / "first.fits", tmp_path / "second.fits"]
    with site.start() as daemon:
        daemon.wait_ready()
        site.send((b"key", b"no event"), *(make_event(night, 0, n, calexp_uri=str(late[n])) for n in (0, 1)))
        daemon.wait_until(lambda: len(site.read(site.topics.dead_letters)) == 3)
        for n in (0, 1):
            daemon.wait_until(lambda n=n: site.state((night.visit_id(0), n)) == "dead_lettered")

        listed = [json.loads(line) for line in site.run("dead-letters", "ls", "--json").stdout.splitlines()]
        assert sorted(letter["reason"] for letter in listed) == ["image_not_yet_available"] * 2 + ["invalid_event"]
        assert {letter["ledger_state"] for letter in listed} == {None, "dead_lettered"}
        by_detector = {letter["detector"]: letter["letter"] for letter in listed}
        table = site.run("dead-letters", "ls", "--reason", "invalid_event")
        assert by_detector[None] in table.stdout
        assert "1 dead letters" in table.stderr
        shown = site.run("dead-letters", "show", by_detector[0])
        assert "first.fits: no such file" in shown.stdout
        assert "calexp_uri" in shown.stdout
        assert site.run("dead-letters", "show", "7:7").returncode == 2

        late[0].symlink_to(night.exposure_path(0, 0))
        assert site.run("dead-letters", "replay", by_detector[0], "--dry-run").returncode == 0
        done = site.run("dead-letters", "replay", by_detector[0])
        assert done.returncode == 0, done.stderr
        daemon.wait_until(lambda: site.state((night.visit_id(0), 0)) == "published")
        again = site.run("dead-letters", "replay", by_detector[0])
        assert again.returncode == 1
        assert "is published by now" in again.stderr

        late[1].symlink_to(night.exposure_path(0, 1))
        everything = site.run("dead-letters", "replay", "--all")
        assert everything.returncode == 0, everything.stderr
        assert "1 events sent again" in everything.stderr
        daemon.wait_until(lambda: site.state((night.visit_id(0), 1)) == "published")
        assert daemon.terminate() == 0
    published = [summary for summary in site.summaries() if summary.outcome == "published"]
    assert sorted((summary.visit, summary.detector) for summary in published) == [
        (night.visit_id(0), n) for n in (0, 1)
    ]
    assert len(site.read(site.topics.dead_letters)) == 3


def test_a_watched_folder_sends_each_image_once_when_it_is_complete(site, small_night, tmp_path):
    night, folder = small_night, tmp_path / "incoming"
    folder.mkdir()
    before = sum(site.positions()[1].values())
    command = [
        sys.executable,
        "-m",
        "alertprod",
        "send",
        "--watch",
        folder,
        "--settle-s",
        "1",
        "--config",
        site.config_path,
    ]

    def watch():
        return subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)

    def n_sent() -> int:
        return sum(site.positions()[1].values()) - before

    with site.start() as daemon:
        watcher = watch()
        try:
            whole = night.exposure_path(1, 0).read_bytes()
            with (folder / "a.fits").open("wb") as file:  # a camera that takes its time
                file.write(whole[:100_000])
                file.flush()
                daemon.wait_until(lambda: daemon.said("worker is warm"), timeout_s=120.0)
                file.write(whole[100_000:])
            (folder / "broken.fits").write_bytes(whole[:2000])
            daemon.wait_until(lambda: site.state((night.visit_id(1), 0)) == "published", timeout_s=60.0)
            watcher.send_signal(signal.SIGTERM)
            _, said = watcher.communicate(timeout=20)
            assert watcher.returncode == 0
            assert "broken.fits" in said
            assert n_sent() == 1

            watcher = watch()  # which knows what was sent
            shutil.copy(night.exposure_path(1, 1), folder / "b.fits")
            daemon.wait_until(lambda: site.state((night.visit_id(1), 1)) == "published", timeout_s=60.0)
            assert n_sent() == 2
        finally:
            watcher.kill()
            watcher.communicate()
        assert daemon.terminate() == 0


def test_sighup_reads_the_file_again_and_a_bad_one_changes_nothing(site, small_night):
    text = site.config_path.read_text()
    try:
        with site.start() as daemon:
            daemon.wait_ready()
            (old,) = daemon.said("starting")
            site.config_path.write_text(text.replace("max_event_age_s", "no_such_setting") + "\n[limits.x]\n")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_until(lambda: daemon.said("configuration not reloaded, the old one holds"))
            changed = (
                text.replace("[http]\nport = 0", "[http]\nport = 1")
                + 'difference = { "detection.thresholdValue" = 6.0 }\n'
            )
            site.config_path.write_text(changed)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_until(lambda: daemon.said("configuration reloaded"))
            (new,) = daemon.said("configuration reloaded")
            assert new["needs_a_restart"] == ["http"]
            assert new["config_hash"] != old["config_hash"]
            site.send(make_event(small_night, 2, 0))
            exposure = (small_night.visit_id(2), 0)
            daemon.wait_until(lambda: site.state(exposure) == "published", timeout_s=120.0)
            assert site.row(*exposure).config_hash == new["config_hash"]
            assert json.loads(daemon.ask("/livez")[1])["state"] in ("idle", "working")
            assert json.loads(daemon.ask("/startupz")[1])["started"]
            assert daemon.terminate() == 0
    finally:
        site.config_path.write_text(text)


def test_the_start_says_everything_that_is_wrong_and_exits_2(site, tmp_path):
    good = site.run("run", "--check")
    assert good.returncode == 0, good.stderr
    assert "ready to start" in good.stderr

    admin = AdminClient({"bootstrap.servers": site.broker.bootstrap_servers})
    for future in admin.delete_topics([site.topics.replay]).values():
        future.result(20)
    text = site.config_path.read_text()
    try:
        site.config_path.write_text(
            text.replace("[store]", '[store]\nmin_free_bytes = 1000000000000000\noutbox_uri = "/dev/null/x"')
        )
        bad = site.run("run")
    finally:
        site.config_path.write_text(text)
        site.broker.create_topics({site.topics.replay: 1})
    assert bad.returncode == 2
    assert f"there is no topic {site.topics.replay}" in bad.stderr
    assert "store.min_free_bytes" in bad.stderr
    assert "/dev/null is no folder" in bad.stderr


def test_a_database_that_does_not_answer_at_the_start_is_exit_status_69(site):
    text = site.config_path.read_text()
    try:
        site.config_path.write_text(
            text.replace("[store]", '[store]\ndatabase_url = "postgresql+psycopg://nobody@127.0.0.1:1/gone"')
        )
        done = site.run("run")
    finally:
        site.config_path.write_text(text)
    assert done.returncode == 69, done.stderr
    assert "database" in done.stderr


def test_secrets_in_files_reach_the_client_and_no_output(site, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    text = site.config_path.read_text()
    settings = '"security.protocol" = "plaintext"\n"sasl.username" = "alerts"'
    table = f'[kafka.security]\n{settings}\n[kafka.security_files]\n"sasl.password" = "{secret}"\n[topics]'
    try:
        site.config_path.write_text(text.replace("[topics]", table))
        shown, checked = site.run("config", "show"), site.run("run", "--check")
    finally:
        site.config_path.write_text(text)
    assert checked.returncode == 0, checked.stderr
    assert "hunter2" not in shown.stdout + shown.stderr + checked.stdout + checked.stderr


def test_letters_of_the_whole_module_are_what_they_say(site):
    for letter in site.read(site.topics.dead_letters):
        assert parse_dead_letter(letter).topic == site.topics.visit_ready
    assert not [path for path in Path(site.folder).glob("outbox/**/.*") if path.is_file()]
