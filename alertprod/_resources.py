"""Where the package's data files are: inside an installed wheel, or beside the package in a source tree."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def schemas_directory() -> Path:
    """Return the folder of the Avro schemas."""
    installed = _PACKAGE / "schemas"
    return installed if installed.is_dir() else _PACKAGE.parent / "schemas"
