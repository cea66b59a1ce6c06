"""The numbers to reach, and whether a table reaches them: met where met within two standard errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.quality.pool import Measure

TOLERANCE = 2.0
"""Standard errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether one measure meets its target; `met` is None where it cannot be told."""

    target: str
    met: bool | None


def judge(measures: Sequence[Measure], oracle: Sequence[Measure] | None) -> dict[str, Verdict]:
    """Return the verdicts by name of measure, for those that have a target.

    Parameters
    ----------
    measures
        Of the method that is judged.
    oracle
        Of the oracle on the same fields; without it what is relative to it is not judged.
    """
    by_name = {m.name: m for m in measures}
    best = {m.name: m for m in oracle} if oracle is not None else {}
    verdicts = {}
    for name, measure in by_name.items():
        if name.startswith("completeness ") or name in _AS_ORACLE:
            verdicts[name] = _judge_completeness(measure, best.get(name))
    if "false unflagged" in by_name:
        verdicts["false unflagged"] = _judge_false(by_name["false unflagged"], best.get("false unflagged"))
    for name, (centre, width) in _WITHIN.items():
        if name in by_name:
            verdicts[name] = _judge_within(by_name[name], centre, width)
    for name, most in _AT_MOST.items():
        if name in by_name:
            m = by_name[name]
            met = None if not np.isfinite(m.value) else bool(m.value - TOLERANCE * _error(m) <= most)
            verdicts[name] = Verdict(target=f"<= {most:g}", met=met)
    return verdicts


_AS_ORACLE = ("dipoles told", "trails detected", "trails measured")
"""Shares of what there is that are to be the oracle's: what a fit can tell of its noise, nobody can tell of more."""

_WITHIN: Mapping[str, tuple[float, float]] = {
    "pull width, sky": (1.0, 0.01),
    "pull mean, sky": (0.0, 0.01),
    "flux bias": (0.0, 0.002),
    "flux bias positive": (0.0, 0.002),
    "flux bias negative": (0.0, 0.002),
    "flux pull width": (1.0, 0.05),
    "flux pull width positive": (1.0, 0.05),
    "flux pull width negative": (1.0, 0.05),
    "centroid pull width": (1.0, 0.1),
    "trail length pull width": (1.0, 0.1),
    "trail angle pull width": (1.0, 0.1),
    "trail flux pull width": (1.0, 0.1),
}

_AT_MOST: Mapping[str, float] = {
    "pull width, sources": 1.05,
    "autocorrelation": 0.02,
    "centroid scatter / bound": 1.1,
    "residual at bright stars": 1.02,
    "transients called dipoles": 0.01,
}


def _judge_completeness(measure: Measure, oracle: Measure | None) -> Verdict:
    """Within 1 %, or one transient, of the oracle; the same noise made both, so one transient is what two are apart."""
    if oracle is None or not oracle.n:
        return Verdict(target="within 1 % of the oracle", met=None)
    allowed = max(0.01, 1.0 / oracle.n)
    # Both saw the same noise: what differs is a handful of transients near the threshold, each a coin of its own.
    lost = max(oracle.value - measure.value, 0.0) * oracle.n
    error = np.sqrt(lost) / oracle.n
    met = bool(measure.value + TOLERANCE * error >= oracle.value - allowed - 1e-9)
    return Verdict(target=f">= {oracle.value:.3f} - {allowed:.3f}", met=met)


def _judge_false(measure: Measure, oracle: Measure | None) -> Verdict:
    if oracle is None:
        return Verdict(target="<= 1.5 x the oracle's", met=None)
    most = 1.5 * oracle.value
    error = np.hypot(measure.error, 1.5 * oracle.error)
    return Verdict(target=f"<= {most:.1f}", met=bool(measure.value - TOLERANCE * error <= most))


def _judge_within(measure: Measure, centre: float, width: float) -> Verdict:
    met = None
    if np.isfinite(measure.value):
        met = bool(abs(measure.value - centre) - TOLERANCE * _error(measure) <= width)
    return Verdict(target=f"{centre:g} +- {width:g}", met=met)


def _error(measure: Measure) -> float:
    return measure.error if np.isfinite(measure.error) else 0.0
