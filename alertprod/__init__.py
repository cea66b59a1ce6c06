"""Streaming alert production for observatories: from a visit-ready event to Rubin-compatible alerts."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("alertprod")
except PackageNotFoundError:  # a source tree on sys.path that nobody installed
    __version__ = "0.0.0+uninstalled"
