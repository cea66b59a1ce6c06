"""Draws the dashboard's panels from a live Prometheus: ``python ops/grafana/preview.py URL SECONDS OUT.png [ROW...]``.

The same expressions as Grafana's, drawn with matplotlib: a picture for the README, and a look without Grafana.
"""

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from make_dashboards import ROWS, Panel, fill_in
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

_INK, _SOFT, _PAPER, _CARD = "#d8d9da", "#8e9299", "#111217", "#1a1c22"
_GOOD, _BAD = "#73bf69", "#f2495c"
_COLORS = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300",
)  # fmt: skip
_MAX_LEGEND = 6


def ask(url: str, path: str, **parameters: object) -> list[dict[str, Any]]:
    """Return the series Prometheus answers with."""
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:  # noqa: S310 - the user's own address
        return list(json.load(answer)["data"]["result"])


def draw_panel(axis: Any, panel: Panel, url: str, since: float, until: float) -> None:
    """Draw one panel."""
    window = f"{max(60, round((until - since) / 20))}s"
    whole = f"{round(until - since)}s"
    axis.set_facecolor(_CARD)
    axis.set_title(panel.title, color=_INK, fontsize=10, loc="left")
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(colors=_SOFT, labelsize=8, length=0)
    series: list[tuple[str, list[tuple[float, float]]]] = []
    for query in panel.queries:
        expr = fill_in(query.expr, window=window, whole=whole)
        if panel.kind == "stat":
            draw_number(axis, panel, ask(url, "query", query=expr, time=until))
            return
        step = max(1, round((until - since) / 240))
        for each in ask(url, "query_range", query=expr, start=since, end=until, step=step):
            name = query.legend or panel.title
            for label, value in each["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            points = [(float(x), float(y)) for x, y in each["values"]]
            series.append((name, [(x, y) for x, y in points if math.isfinite(y)]))
    draw_series(axis, panel, [pair for pair in series if pair[1]])
    axis.set_xlim(datetime.fromtimestamp(since, tz=UTC), datetime.fromtimestamp(until, tz=UTC))


def draw_number(axis: Any, panel: Panel, result: list[dict[str, Any]]) -> None:
    """Write one number."""
    axis.set_xticks([])
    axis.set_yticks([])
    value = float(result[0]["value"][1]) if result else math.nan
    text = "no data" if math.isnan(value) else f"{value:.1%}" if panel.unit == "percentunit" else f"{value:,.0f}"
    bad = (panel.limit is not None and value < panel.limit) or (panel.bad_from is not None and value >= panel.bad_from)
    axis.text(
        0.5,
        0.45,
        text,
        color=_SOFT if math.isnan(value) else _BAD if bad else _GOOD,
        fontsize=20,
        ha="center",
        va="center",
        transform=axis.transAxes,
    )


def draw_series(axis: Any, panel: Panel, series: list[tuple[str, list[tuple[float, float]]]]) -> None:
    """Draw lines, or layers where they are stacked."""
    axis.grid(color="#2c2f36", linewidth=0.6)
    if panel.kind == "heatmap":
        draw_heatmap(axis, series)
    elif panel.stacked:
        layers = [pair for pair in series if any(y for _, y in pair[1])]
        times = sorted({x for _, points in layers for x, _ in points})
        heights = [[dict(points).get(x, 0.0) for x in times] for _, points in layers]
        if layers:
            dates = [datetime.fromtimestamp(x, tz=UTC) for x in times]
            axis.stackplot(dates, heights, labels=[name for name, _ in layers], colors=_COLORS, alpha=0.85)
    else:
        for n, (name, points) in enumerate(series):
            dates = [datetime.fromtimestamp(x, tz=UTC) for x, _ in points]
            axis.plot(dates, [y for _, y in points], color=_COLORS[n % len(_COLORS)], linewidth=1.2, label=name)
    if panel.unit == "bytes":
        axis.yaxis.set_major_formatter(lambda size, _: f"{size / 1e6:,.1f} MB")
    if panel.limit is not None and panel.kind == "timeseries":
        axis.axhline(panel.limit, color=_BAD, linewidth=0.8, linestyle="--")
    if panel.low is not None and panel.kind != "heatmap":
        axis.set_ylim(panel.low, max(axis.get_ylim()[1], panel.low + 1e-3))
    if panel.kind != "heatmap":
        handles, labels = axis.get_legend_handles_labels()
        if handles:
            # Beside the title, not over the curves.
            axis.legend(
                handles[:_MAX_LEGEND],
                labels[:_MAX_LEGEND],
                fontsize=7,
                frameon=False,
                labelcolor=_SOFT,
                loc="upper left",
                bbox_to_anchor=(0.0, -0.1),
                borderaxespad=0.0,
                handlelength=1.2,
                columnspacing=1.2,
                ncols=5 if panel.width > 8 else 3,
            )
    if not axis.has_data():
        axis.text(0.5, 0.5, "none", color=_SOFT, ha="center", va="center", transform=axis.transAxes)
        axis.set_yticks([])
    locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=6)
    axis.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=UTC, show_offset=False)
    axis.xaxis.set_major_formatter(formatter)


def draw_heatmap(axis: Any, series: list[tuple[str, list[tuple[float, float]]]]) -> None:
    """Draw how many exposures fell into each bucket; buckets are cumulative as Prometheus has them."""
    edges = sorted((float(name), dict(points)) for name, points in series)
    times = sorted({x for _, points in edges for x in points})
    below = [0.0] * len(times)
    counts, lows = [], [0.0]
    for edge, points in edges:
        if math.isinf(edge):
            continue
        now = [points.get(x, 0.0) for x in times]
        counts.append([max(0.0, high - low) for high, low in zip(now, below, strict=True)])
        below = now
        lows.append(edge)
    if not counts or not times:
        return
    dates = [datetime.fromtimestamp(x, tz=UTC) for x in (*times, 2 * times[-1] - times[-2])]
    axis.pcolormesh(dates, lows, counts, cmap="magma")
    filled = [edge for edge, line in zip(lows[1:], counts, strict=True) if any(line)]
    axis.set_ylim(0, 1.2 * max(filled, default=1.0))


def main(url: str, seconds: str, target: str, *titles: str) -> None:
    """Draw the dashboard, or the rows whose titles begin so."""
    chosen = [row for row in ROWS if not titles or row.title.startswith(titles)]
    until = time.time()
    since = until - float(seconds)
    heights = [height for row in chosen for height in (0.32, *(_row_heights(row.panels)))]
    figure = Figure(figsize=(15, 1.9 * sum(heights) + 0.5), dpi=100, facecolor=_PAPER)
    grid = figure.add_gridspec(
        len(heights), 24, height_ratios=heights, hspace=0.62, wspace=2.2, left=0.03, right=0.985, top=0.985, bottom=0.02
    )
    line = 0
    for row in chosen:
        heading = figure.add_subplot(grid[line, :])
        heading.set_axis_off()
        heading.text(0.0, 0.2, row.title, color=_INK, fontsize=12, fontweight="bold", transform=heading.transAxes)
        line += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > 24:
                x, line = 0, line + 1
            draw_panel(figure.add_subplot(grid[line, x : x + panel.width]), panel, url, since, until)
            x += panel.width
        line += 1
    figure.savefig(Path(target), facecolor=_PAPER)


def _row_heights(panels: tuple[Panel, ...]) -> list[float]:
    heights: list[float] = []
    x = 24
    for panel in panels:
        if x + panel.width > 24:
            x = 0
            heights.append(0.5 if panel.kind == "stat" else 1.35)
        x += panel.width
    return heights


if __name__ == "__main__":
    main(*sys.argv[1:])
