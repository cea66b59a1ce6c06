import os

import fsspec
import pytest

from alertprod.errors import CorruptImage, ImageNotYetAvailable, StoreUnavailable
from alertprod.store.files import local_path, read_bytes, stamp_file


@pytest.mark.parametrize("root", ["{tmp_path}", "file://{tmp_path}", "memory://files"])
def test_bytes_are_read_from_any_store(tmp_path, root):
    uri = root.format(tmp_path=tmp_path) + "/a"
    with fsspec.open(uri, "wb") as file:
        file.write(b"content")
    assert read_bytes(uri) == b"content"
    assert stamp_file(uri).size == 7


def test_only_local_uris_have_a_path(tmp_path):
    assert local_path(str(tmp_path)) == str(tmp_path)
    assert local_path(f"file://{tmp_path}") == str(tmp_path)
    assert local_path("memory://a") is None


@pytest.mark.parametrize("uri", ["/nowhere/a.fits", "file:///nowhere/a.fits", "memory://nowhere/a.fits"])
def test_a_missing_file_is_not_yet_available(uri):
    with pytest.raises(ImageNotYetAvailable):
        read_bytes(uri)
    with pytest.raises(ImageNotYetAvailable):
        stamp_file(uri)


@pytest.mark.parametrize("uri", ["nonsense://host/a.fits", "gs://bucket/a.fits"])
def test_a_protocol_nobody_knows_is_bad_input(uri):
    with pytest.raises(CorruptImage):
        read_bytes(uri)


def test_a_folder_is_bad_input(tmp_path):
    with pytest.raises(CorruptImage, match="folder"):
        read_bytes(str(tmp_path))


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for_and_a_device_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(CorruptImage, match="no regular file"):
            read_bytes(path)


def test_a_file_beyond_the_limit_is_bad_input(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert len(read_bytes(str(tmp_path / "a"), max_bytes=11)) == 11
    with pytest.raises(CorruptImage, match="more than 10 bytes"):
        read_bytes(str(tmp_path / "a"), max_bytes=10)


class AwayFileSystem(fsspec.AbstractFileSystem):
    """A store that answers with an error of its own."""

    protocol = "away"

    def open(self, path, *_arguments, **_options):
        raise type("EndpointConnectionError", (Exception,), {})(path)

    def info(self, path, **_options):
        raise TimeoutError(path)


def test_whatever_a_store_raises_it_is_unavailable():
    fsspec.register_implementation("away", AwayFileSystem, clobber=True)
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        read_bytes("away://bucket/a.fits")
    with pytest.raises(StoreUnavailable):
        stamp_file("away://bucket/a.fits")


def test_a_changed_file_has_another_stamp(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    stamps = {stamp_file(str(path))}
    path.write_bytes(b"12")
    stamps.add(stamp_file(str(path)))
    assert len(stamps) == 2
