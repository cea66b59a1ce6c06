"""Which files of a watched folder are sent, and when."""

import os

import pytest

from alertprod.errors import StoreUnavailable
from alertprod.service.watch import JOURNAL_NAME, FolderWatch


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(tmp_path, clock):
    return FolderWatch(tmp_path, settle_s=2.0, clock=clock)


def names(watch):
    return [path.name for path in watch.scan()]


def test_a_file_is_sent_once_it_has_not_changed_for_a_while(tmp_path, watch, clock):
    image = tmp_path / "a.fits"
    image.write_bytes(b"half")
    assert names(watch) == []
    clock.now += 1.9
    image.write_bytes(b"half and more")
    assert names(watch) == []
    clock.now += 1.9
    assert names(watch) == []
    clock.now += 0.1
    assert names(watch) == ["a.fits"]


def test_what_is_done_with_is_not_sent_again_not_even_by_the_next_process(tmp_path, watch, clock):
    (tmp_path / "a.fits").write_bytes(b"x")
    watch.scan()
    clock.now += 2.0
    (path,) = watch.scan()
    watch.finish(path)
    assert watch.scan() == []

    again = FolderWatch(tmp_path, settle_s=0.0, clock=clock)
    assert again.scan() == []
    path.write_bytes(b"another one")
    os.utime(path, ns=(1, 1))
    assert names(again) == ["a.fits"]


def test_files_come_oldest_first_from_folders_below_and_without_the_hidden_empty_and_foreign(tmp_path, watch, clock):
    (tmp_path / "night").mkdir()
    for age, name in enumerate(["night/new.fits.fz", "old.fit", ".part.fits", "log.txt", "empty.fits"]):
        (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"x")
        os.utime(tmp_path / name, (2000.0 - age, 2000.0 - age))
    (tmp_path / "folder.fits").mkdir()
    watch.scan()
    clock.now += 2.0
    assert names(watch) == ["old.fit", "new.fits.fz"]


def test_a_journal_cut_short_is_read_as_far_as_it_goes(tmp_path, clock):
    (tmp_path / "a.fits").write_bytes(b"x")
    stamp = (tmp_path / "a.fits").stat()
    (tmp_path / JOURNAL_NAME).write_text(f'["a.fits", {stamp.st_size}, {stamp.st_mtime_ns}]\n["b.fi')
    (tmp_path / "b.fits").write_bytes(b"x")
    assert names(FolderWatch(tmp_path, settle_s=0.0, clock=clock)) == ["b.fits"]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(StoreUnavailable, match="no such folder"):
        FolderWatch(tmp_path / "nowhere")
