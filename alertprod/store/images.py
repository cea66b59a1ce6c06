"""Exposures by URI."""

from collections.abc import Mapping
from typing import Protocol

from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure
from alertprod.images.profile import InstrumentProfile
from alertprod.store.files import FileStamp, local_path, read_bytes, require_regular_file, stamp_file


class ImageSource(Protocol):
    """Exposures by URIs of one scheme that are no files: those of a middleware."""

    def load(self, uri: str, profile: InstrumentProfile | None = None) -> Exposure:
        """Load an exposure; see `ImageStore.load`."""
        ...

    def stamp(self, uri: str) -> FileStamp:
        """Return what tells one version of the exposure from another."""
        ...


class ImageStore:
    """Loads exposures from any fsspec URI: a path, ``file://``, and with its extra ``s3://``.

    Parameters
    ----------
    sources
        What else there is, by scheme.
    """

    def __init__(self, sources: Mapping[str, ImageSource] | None = None) -> None:
        self._sources = dict(sources or {})

    def load(self, uri: str, profile: InstrumentProfile | None = None) -> Exposure:
        """Load an exposure, everything of it, into fresh memory.

        Parameters
        ----------
        profile
            How to read this instrument's files; the project's own layout by default.

        Raises
        ------
        ImageNotYetAvailable
            Raised if there is no such file.
        StoreUnavailable
            Raised if the store does not answer or does not let us.
        CorruptImage
            Raised if the file cannot be read as an exposure.
        """
        source = self._find_source(uri)
        if source is not None:
            return source.load(uri, profile)
        path = local_path(uri)
        if path is not None:
            require_regular_file(uri, path)
        return load_exposure(read_bytes(uri) if path is None else path, profile, name=uri)

    def stamp(self, uri: str) -> FileStamp:
        """Return what tells one version of an exposure from another; errors as `load`, but for what is in it."""
        source = self._find_source(uri)
        return stamp_file(uri) if source is None else source.stamp(uri)

    def _find_source(self, uri: str) -> ImageSource | None:
        return self._sources.get(uri.partition(":")[0])
