"""The charts of the nightly report."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from alertprod.view.report_facts import FAILED, OBJECTIVE_S, QUALITY, ExposureFacts, NightFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _GREY = "#2b6cb0", "#c53030", "#a0aec0"


def plot_latencies(night: NightFacts) -> Figure:
    """Draw the latency of each exposure against time, and how many alerts took how long."""
    from matplotlib.figure import Figure  # late: plots are for a few commands

    figure = Figure(figsize=(11, 3.4), dpi=110, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    timed = night.timed()
    late = np.array([each.latency_s for each in timed])
    left.scatter([_time(each) for each in timed], late, s=14, color=[_RED if x > OBJECTIVE_S else _BLUE for x in late])
    for each in night.failed():
        left.axvline(_time(each), color=_RED, linewidth=0.8, alpha=0.5)
    left.axhline(OBJECTIVE_S, color=_RED, linewidth=0.9, linestyle="--")
    left.set(ylabel="shutter to alert (s)", ylim=(0, None), title="each exposure; red lines: failed")
    _dates(left)
    top = max([OBJECTIVE_S * 1.1, *late]) if len(late) else OBJECTIVE_S
    right.hist(late, bins=np.linspace(0, top, 40), weights=[max(each.n_alerts, 0) for each in timed], color=_BLUE)
    right.axvline(OBJECTIVE_S, color=_RED, linewidth=0.9, linestyle="--")
    right.set(xlabel="shutter to alert (s)", ylabel="alerts", title="all alerts")
    return figure


def plot_stages(night: NightFacts) -> Figure:
    """Draw where the time of an exposure goes: the mean seconds of each stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.9), dpi=110, layout="constrained", facecolor="white")
    axis = figure.subplots()
    stages = sorted({name for each in night.published() for name in each.stage_seconds} - {"compute"})
    means = {name: float(np.mean([each.stage_seconds.get(name, 0.0) for each in night.published()])) for name in stages}
    ordered = sorted(means, key=lambda name: -means[name])
    axis.bar(ordered, [means[name] for name in ordered], color=_BLUE)
    axis.set(ylabel="mean seconds")
    axis.tick_params(axis="x", rotation=45, labelsize=8)
    return figure


def plot_quality(night: NightFacts) -> Figure:
    """Draw the science of each exposure against time, one panel a figure, one colour a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(2, 3, sharex=True).ravel()
    bands = sorted({each.band for each in night.published()})
    for axis, (name, (title, wanted)) in zip(axes, QUALITY.items(), strict=True):
        for n, band in enumerate(bands):
            points = [
                (_time(each), each.figures[name])
                for each in night.published()
                if each.band == band and math.isfinite(each.figures.get(name, math.nan))
            ]
            if points:
                times, values = zip(*points, strict=True)
                axis.scatter(times, values, s=10, color=f"C{n}", label=band)
        if wanted is not None:
            axis.axhline(wanted, color=_GREY, linewidth=0.9, linestyle="--", zorder=0)
        axis.set_title(title, fontsize=9)
        axis.ticklabel_format(axis="y", useOffset=False)
        _dates(axis)
    if bands:
        axes[0].legend(fontsize=7, title="band", title_fontsize=7)
    return figure


def plot_outcomes(night: NightFacts) -> Figure:
    """Draw how many exposures came and how they ended, over the night."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.4), dpi=110, layout="constrained", facecolor="white")
    axis = figure.subplots()
    groups = {
        "published": ([_time(each) for each in night.published()], _BLUE),
        "failed": ([_time(each) for each in night.failed()], _RED),
        "other": (
            [_time(each) for each in night.exposures if each not in night.published() and each.state not in FAILED],
            _GREY,
        ),
    }
    shown = {name: pair for name, pair in groups.items() if pair[0]}
    if shown:
        times = [list(map(_number, found)) for found, _ in shown.values()]
        axis.hist(times, bins=40, stacked=True, color=[color for _, color in shown.values()], label=list(shown))
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis.xaxis_date()
    axis.set(ylabel="exposures")
    _dates(axis)
    return figure


def _time(each: ExposureFacts) -> datetime:
    return datetime.fromtimestamp(each.claimed_unix_s, tz=UTC)


def _number(time: datetime) -> float:
    from matplotlib.dates import date2num

    return float(date2num(time))


def _dates(axis: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=7)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
    axis.tick_params(labelsize=8)
