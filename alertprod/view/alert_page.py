"""One alert on one page: its pictures, its light curve, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astropy.time import Time
from rich.box import SIMPLE
from rich.table import Table

from alertprod.view.light_curves import choose_time_axis, draw_light_curve_panel, make_legend_handles
from alertprod.view.triplets import describe_alert, draw_cutouts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLUXES = (
    ("PSF flux", "psfFlux", "nJy"),
    ("aperture flux", "apFlux", "nJy"),
    ("science flux", "scienceFlux", "nJy"),
    ("template flux", "templateFlux", "nJy"),
    ("trail", "trailLength", "arcsec"),
    ("trail angle", "trailAngle", "deg"),
    ("dipole", "dipoleLength", "arcsec"),
)

_NOT_FLAGS = ("isNegative", "isDipole", "dipoleFitAttempted")


def list_facts(packet: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a person wants to know of an alert, name and value; what is null is left out."""
    source, parent, body = packet["diaSource"], packet["diaObject"], packet["ssSource"]
    yield "alert", str(source["diaSourceId"])
    if parent is not None:
        plural = "" if parent["nDiaSources"] == 1 else "s"
        yield "object", f"{parent['diaObjectId']}, {parent['nDiaSources']} detection{plural}"
    if body is not None:
        offset = "" if body["ephOffset"] is None else f", {body['ephOffset']:.2f} arcsec from its prediction"
        yield "Solar System", f"{body['designation'] or body['ssObjectId']}{offset}"
    moment = Time(source["midpointMjdTai"], format="mjd", scale="tai")
    yield "midpoint", f"{moment.utc.strftime('%Y-%m-%d %H:%M:%S')} UTC (MJD {source['midpointMjdTai']:.6f} TAI)"
    exposure = "" if source["exposureTime"] is None else f", {source['exposureTime']:.1f} s"
    yield "visit", f"{source['visit']}, detector {source['detector']}, band {source['band'] or '?'}{exposure}"
    for name in ("target_name", "observation_reason"):
        if packet[name] is not None:
            yield name.replace("_", " "), packet[name]
    place = f"{source['ra']:.7f} {source['dec']:+.7f}"
    if source["raErr"] is not None and source["decErr"] is not None:
        place += f" ± {source['raErr'] * 3600:.3f} {source['decErr'] * 3600:.3f} arcsec"
    yield "ra, dec (ICRS)", place
    yield "x, y", f"{source['x']:.2f} {source['y']:.2f}"
    yield "S/N", "-" if source["snr"] is None else f"{source['snr']:.1f}{', negative' if source['isNegative'] else ''}"
    for name, field, unit in _FLUXES:
        value, error = source[field], source.get(f"{field}Err")
        if value is not None:
            yield name, f"{_number(value)}{'' if error is None else f' ± {_number(error)}'} {unit}"
    if source["reliability"] is not None:
        yield "reliability", f"{source['reliability']:.3f} ({source['reliabilityVersion'] or 'of nobody'})"
    raised = [name for name, value in source.items() if value is True and name not in _NOT_FLAGS]
    yield "flags", ", ".join(raised) or "none"
    if source["isDipole"]:
        yield "kind", "dipole"


def _number(value: float) -> str:
    """Return four digits, or all before the point where there are more."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def make_facts_table(packet: Mapping[str, Any]) -> Table:
    """Return `list_facts` for a terminal."""
    table = Table(box=SIMPLE, show_header=False, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in list_facts(packet):
        table.add_row(name, value)
    return table


def plot_alert(packet: Mapping[str, Any]) -> Figure:
    """Draw an alert's page: cutouts above, facts and light curve below."""
    from matplotlib.figure import Figure  # late: plots are for a few commands

    figure = Figure(figsize=(10.0, 7.6), dpi=120, layout="constrained", facecolor="white")
    title, details = describe_alert(packet)
    figure.suptitle(f"{title}\n{details}", fontsize=10)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.0, 1.05), squeeze=False)[:, 0]
    draw_cutouts(list(upper.subplots(1, 3)), packet)
    panels = lower.subplots(1, 2, width_ratios=(1.0, 1.25))
    panels[0].set_axis_off()
    facts = list(list_facts(packet))
    for row, (name, value) in enumerate(facts):
        y = 1.0 - row / max(len(facts), 12)
        panels[0].text(0.0, y, name, fontsize=7.5, color="0.4", va="top", transform=panels[0].transAxes)
        panels[0].text(0.27, y, value, fontsize=7.5, va="top", transform=panels[0].transAxes, wrap=True)
    times = choose_time_axis([packet])
    bands = draw_light_curve_panel(panels[1], packet, times)
    panels[1].legend(handles=make_legend_handles(bands), fontsize=7, frameon=False, loc="best")
    panels[1].set_xlabel(times.label, fontsize=8)
    panels[1].set_ylabel("difference flux (nJy)", fontsize=8)
    return figure


def save_alert_page(packet: Mapping[str, Any], path: Path) -> None:
    """Write `plot_alert` as PNG."""
    plot_alert(packet).savefig(path)
