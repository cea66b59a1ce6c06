"""Exposures by URI."""

from pathlib import Path

from alertprod.errors import CorruptImage
from alertprod.images.exposure import Exposure
from alertprod.images.fits_io import load_exposure
from alertprod.images.profile import InstrumentProfile
from alertprod.store.files import local_path, read_bytes


class ImageStore:
    """Loads exposures from any fsspec URI: a path, ``file://``, and with its extra ``s3://``."""

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
        path = local_path(uri)
        if path is not None and Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
            raise CorruptImage(uri, "file", "no regular file")
        return load_exposure(read_bytes(uri) if path is None else path, profile, name=uri)
