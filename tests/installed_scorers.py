"""A package with reliability scorers, installed for the time of a test: a module and its metadata on the path."""

from pathlib import Path

import pytest

_MODULE = '''
import numpy as np

from alertprod.association.reliability import Reliability


class SharpnessScorer:
    """Scores by how much of a stamp's light lies in its middle: no model, but of the right kind."""

    def __init__(self, stamp_size=21, name="sharpness"):
        self.stamp_size, self._version = stamp_size, f"{name} 1.0"

    def score(self, sources, stamps):
        size = self.stamp_size
        y, x = np.mgrid[:size, :size] - size // 2
        light = np.nan_to_num(np.abs(stamps.difference.image))
        inner = (light * (x**2 + y**2 <= 16)).sum(axis=(1, 2))
        scores = np.clip(inner / np.maximum(light.sum(axis=(1, 2)), 1e-30), 0.0, 1.0)
        return Reliability(scores, self._version)


class FixedScorer:
    """Gives what it is told, one after the other."""

    stamp_size = 11

    def __init__(self, scores, version="fixed 2"):
        self._scores, self._version = scores, version

    def score(self, sources, stamps):
        return Reliability(np.resize(np.asarray(self._scores, dtype=float), sources.n_rows), self._version)


class BrokenScorer:
    """Fails in the way it is told."""

    stamp_size = 11

    def __init__(self, how):
        self._how = how

    def score(self, sources, stamps):
        n = sources.n_rows
        sources["psf_flux"] = np.nan
        stamps.difference.image[...] = np.nan
        match self._how:
            case "raises":
                raise RuntimeError("the model is broken")
            case "too few":
                return Reliability(np.zeros(n - 1), "1")
            case "too many dimensions":
                return Reliability(np.zeros((n, 2)), "1")
            case "out of range":
                return Reliability(np.linspace(0.0, 1.5, n), "1")
            case "infinite":
                return Reliability(np.full(n, np.inf), "1")
            case "text":
                return Reliability(["good"] * n, "1")
            case "no version":
                return Reliability(np.zeros(n), None)
            case "empty version":
                return Reliability(np.zeros(n), "")
            case "endless version":
                return Reliability(np.zeros(n), "1" * 1000)
            case "nothing":
                return None


def unusable(**options):
    raise OSError("the model's file is not there")
'''

_METADATA = "Metadata-Version: 2.1\nName: example-scorers\nVersion: 1.0\n"

_ENTRY_POINTS = """[alertprod.reliability_scorers]
sharpness = example_scorers:SharpnessScorer
fixed = example_scorers:FixedScorer
broken = example_scorers:BrokenScorer
unusable = example_scorers:unusable
misspelt = example_scorers:SharpnesScorer
"""

FAILURES = {
    "raises": "RuntimeError: the model is broken",
    "too few": "scores of shape",
    "too many dimensions": "scores of shape",
    "out of range": "not from 0 to 1",
    "infinite": "not from 0 to 1",
    "text": "ValueError",
    "no version": "version is None",
    "empty version": "version is ''",
    "endless version": "version is '111",
    "nothing": "AttributeError",
}
"""Ways of the scorer ``broken``, and what is said of each."""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package where Python, and the processes it starts, find it."""
    (folder / "example_scorers.py").write_text(_MODULE)
    information = folder / "example_scorers-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(_METADATA)
    (information / "entry_points.txt").write_text(_ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
