import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alertprod.errors import DiskFull, PartialWriteError, StoreUnavailable
from alertprod.store.ledger import Claimed, ExposureKey, Ledger, LedgerState
from alertprod.store.outbox import (
    CorruptOutbox,
    OutboxMessage,
    clean_outbox,
    outbox_uri,
    read_outbox,
    write_outbox,
)

MESSAGES = [
    OutboxMessage(b"12", b"first value", (("version", b"11.1"), ("visit", b"7"))),
    OutboxMessage(b"", b""),
    OutboxMessage(b"12", b"\x00\x00\x00\x04M" + bytes(range(256))),
]

DAY_S = 86400.0

messages = st.lists(
    st.builds(
        OutboxMessage,
        key=st.binary(max_size=20),
        value=st.binary(max_size=300),
        headers=st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=10)), max_size=3).map(tuple),
    ),
    max_size=5,
)


def claimed(instrument="SimCam", claims=1):
    return Claimed(key=ExposureKey(instrument, 2026, 3), claims=claims, worker_deaths=0, owner="a")


@pytest.mark.parametrize("root", ["{tmp_path}", "file://{tmp_path}", "memory://outbox"])
@given(content=messages)
def test_messages_come_back_as_they_were(tmp_path_factory, root, content):
    uri = outbox_uri(root.format(tmp_path=tmp_path_factory.getbasetemp()), claimed())
    written = write_outbox(uri, iter(content))
    assert written.n_messages == len(content)
    assert list(read_outbox(written.uri, written.sha256)) == content


def test_the_hash_is_that_of_the_values_in_order(tmp_path):
    import hashlib

    written = write_outbox(str(tmp_path / "a"), MESSAGES)
    assert written.sha256 == hashlib.sha256(b"".join(message.value for message in MESSAGES)).hexdigest()
    assert written.n_bytes == (tmp_path / "a").stat().st_size


def test_equal_messages_make_equal_files(tmp_path):
    write_outbox(str(tmp_path / "a"), MESSAGES)
    write_outbox(str(tmp_path / "b"), MESSAGES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_claim_has_another_file():
    assert outbox_uri("/o", claimed(claims=1)) != outbox_uri("/o", claimed(claims=2))


@pytest.mark.parametrize("instrument", ["../x", "a/b", "..", ".", ""])
def test_no_name_of_an_instrument_leaves_the_folder(tmp_path, instrument):
    uri = outbox_uri(str(tmp_path), claimed(instrument))
    assert Path(os.path.normpath(uri)).parent.parent.parent == tmp_path


def test_a_file_cut_short_anywhere_is_an_error(tmp_path):
    path = tmp_path / "a"
    written = write_outbox(str(path), MESSAGES)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptOutbox):
            next(read_outbox(str(path), written.sha256))


def test_any_flipped_bit_is_an_error_before_the_first_message(tmp_path):
    path = tmp_path / "a"
    written = write_outbox(str(path), MESSAGES)
    whole = bytearray(path.read_bytes())
    for i in range(len(whole)):
        for bit in range(8):
            whole[i] ^= 1 << bit
            path.write_bytes(whole)
            with pytest.raises(CorruptOutbox):
                next(read_outbox(str(path), written.sha256))
            whole[i] ^= 1 << bit


@pytest.mark.parametrize("tail", [b"\x00", b"\xc0", b"\x81"])
def test_a_file_that_goes_on_after_its_foot_is_an_error(tmp_path, tail):
    path = tmp_path / "a"
    written = write_outbox(str(path), MESSAGES)
    with path.open("ab") as file:
        file.write(tail)
    with pytest.raises(CorruptOutbox):
        next(read_outbox(str(path), written.sha256))


def test_a_whole_file_that_is_not_the_ledgers_is_an_error(tmp_path):
    written = write_outbox(str(tmp_path / "a"), MESSAGES)
    write_outbox(str(tmp_path / "a"), MESSAGES[:2])
    with pytest.raises(CorruptOutbox, match="the ledger says"):
        next(read_outbox(str(tmp_path / "a"), written.sha256))


def test_swapped_keys_are_an_error_though_the_values_are_the_same(tmp_path):
    path = tmp_path / "a"
    written = write_outbox(str(path), [OutboxMessage(b"1", b"a"), OutboxMessage(b"2", b"b")])
    path.write_bytes(path.read_bytes().replace(b"\xc4\x011", b"\xc4\x013"))
    with pytest.raises(CorruptOutbox, match="altered"):
        next(read_outbox(str(path), written.sha256))


def test_a_file_that_is_gone_is_a_partial_write(tmp_path):
    with pytest.raises(PartialWriteError, match="no such file"):
        next(read_outbox(str(tmp_path / "none"), "0"))


def test_nothing_is_at_the_name_until_all_of_it_is_on_the_disk(tmp_path, monkeypatch):
    events = []
    path = tmp_path / "new" / "folder" / "a"
    fsync, replace = os.fsync, Path.replace

    def recording_fsync(descriptor):
        events.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), path.exists()))
        fsync(descriptor)

    def recording_replace(self, target):
        events.append(("rename", str(target), path.exists()))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    write_outbox(str(path), MESSAGES)
    kinds = [(kind, name) for kind, name, _ in events]
    assert kinds[:2] == [("fsync", str(tmp_path)), ("fsync", str(tmp_path / "new"))]
    assert kinds[2][0] == "fsync"
    assert Path(kinds[2][1]).name.startswith(".a.")
    assert kinds[3:] == [("rename", str(path)), ("fsync", str(path.parent))]
    assert [existed for *_, existed in events] == [False, False, False, False, True]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def fail():
        yield MESSAGES[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_outbox(str(tmp_path / "a"), fail())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StoreUnavailable)]
)
def test_a_disk_that_refuses_has_a_name(tmp_path, monkeypatch, number, error):
    def refuse(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error):
        write_outbox(str(tmp_path / "a"), MESSAGES)
    assert list(tmp_path.iterdir()) == []


def write_and_die(path):
    def messages_then_death():
        for _ in range(3):
            yield OutboxMessage(b"k", b"v" * 100_000)
        os.kill(os.getpid(), signal.SIGKILL)
        yield MESSAGES[0]

    write_outbox(path, messages_then_death())


def test_a_writer_killed_halfway_leaves_the_name_free(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(str(tmp_path / "3.1.outbox"),))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "3.1.outbox").exists()
    (left_over,) = tmp_path.iterdir()
    os.utime(left_over, (0, 0))
    assert clean_outbox(str(tmp_path), lambda _: {}, max_age_s=0.0, max_bytes=0)[0] == 1


def put(root, name, *, age_s, size=100, now=1e9):
    path = root / "SimCam" / "1" / f"{name}.outbox"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (now - age_s, now - age_s))
    return str(path)


def clean(root, states, *, max_age_s=30 * DAY_S, max_bytes=10**9):
    return clean_outbox(
        str(root),
        lambda uris: {uri: states[uri] for uri in uris if uri in states},
        max_age_s=max_age_s,
        max_bytes=max_bytes,
        clock=lambda: 1e9,
    )


def left(root):
    return sorted(path.name for path in root.rglob("*.outbox"))


def test_settled_files_go_by_age(tmp_path):
    states = {
        put(tmp_path, "old", age_s=31 * DAY_S): LedgerState.PUBLISHED,
        put(tmp_path, "young", age_s=29 * DAY_S): LedgerState.PUBLISHED,
    }
    assert clean(tmp_path, states) == (1, 100)
    assert left(tmp_path) == ["young.outbox"]


def test_settled_files_go_by_size_the_oldest_first(tmp_path):
    states = {put(tmp_path, str(i), age_s=float(i)): LedgerState.PUBLISHED for i in range(5)}
    assert clean(tmp_path, states, max_bytes=250) == (3, 300)
    assert left(tmp_path) == ["0.outbox", "1.outbox"]


def test_a_file_that_is_not_published_stays_however_old_and_large(tmp_path):
    states = {put(tmp_path, "stored", age_s=1e8, size=10_000): LedgerState.STORED}
    states[put(tmp_path, "published", age_s=1.0)] = LedgerState.PUBLISHED
    assert clean(tmp_path, states, max_age_s=0.0, max_bytes=0) == (1, 100)
    assert left(tmp_path) == ["stored.outbox"]


def test_a_file_no_row_names_is_spared_for_a_day(tmp_path):
    put(tmp_path, "being stored", age_s=3600.0)
    put(tmp_path, "lost claim", age_s=25 * 3600.0)
    assert clean(tmp_path, {}, max_age_s=0.0, max_bytes=0) == (1, 100)
    assert left(tmp_path) == ["being stored.outbox"]


def test_what_is_not_an_outbox_file_is_not_touched(tmp_path):
    other = tmp_path / "alerts.db"
    other.write_bytes(b"x")
    os.utime(other, (0, 0))
    assert clean(tmp_path, {}) == (0, 0)
    assert other.exists()


def test_empty_folders_go_with_their_last_file(tmp_path):
    states = {put(tmp_path, "a", age_s=9e9): LedgerState.PUBLISHED}
    clean(tmp_path, states)
    assert not (tmp_path / "SimCam" / "1").exists()
    assert tmp_path.exists()


def test_an_outbox_that_is_not_there_yet_is_clean(tmp_path):
    assert clean(tmp_path / "none", {}) == (0, 0)


@pytest.mark.parametrize("spelling", ["{tmp_path}", "file://{tmp_path}", "{tmp_path}/", "."])
def test_the_ledger_protects_its_files_however_the_outbox_is_spelled(database, tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(database)
    files = {}
    for detector in range(2):
        claim = ledger.claim(ExposureKey("SimCam", 1, detector), owner="a", lease_s=60.0)
        files[detector] = write_outbox(outbox_uri(f"file://{tmp_path}", claim), MESSAGES)
        with database.write() as connection:
            ledger.mark_stored(
                connection,
                claim,
                n_alerts=3,
                outbox_uri=files[detector].uri,
                outbox_sha256=files[detector].sha256,
                summary={},
            )
    ledger.mark_published(ExposureKey("SimCam", 1, 1))
    late = time.time() + 100 * DAY_S
    root = spelling.format(tmp_path=tmp_path)
    n_files, _ = clean_outbox(root, ledger.states_of_outboxes, max_age_s=0.0, max_bytes=0, clock=lambda: late)
    assert n_files == 1
    assert list(read_outbox(files[0].uri, files[0].sha256)) == MESSAGES


def test_other_stores_are_cleaned_too():
    written = write_outbox("memory://cleaned/a.outbox", MESSAGES)
    states = {written.uri: LedgerState.PUBLISHED}
    assert clean_outbox("memory://cleaned", lambda _: states, max_age_s=-1.0, max_bytes=0) == (1, written.n_bytes)
    assert not fsspec.filesystem("memory").exists("/cleaned/a.outbox")
