"""Streaming alert production for observatories: from a visit-ready event to Rubin-compatible alerts."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alertprod.service.alert_reader import read_alerts

try:
    __version__ = version("alertprod")
except PackageNotFoundError:  # a source tree on sys.path that nobody installed
    __version__ = "0.0.0+uninstalled"

__all__ = ["__version__", "read_alerts"]


def __getattr__(name: str) -> Any:
    # Late: most of what imports this package reads no alerts, and pays for nothing of that.
    if name == "read_alerts":
        from alertprod.service.alert_reader import read_alerts

        return read_alerts
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
