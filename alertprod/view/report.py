"""The nightly report: one HTML file with everything in it, for a browser without network, a mail, or an archive."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any, Final

from alertprod.view.light_curves import plot_light_curves
from alertprod.view.report_facts import OBJECTIVE_S, OBJECTIVE_SHARE, QUALITY, ExposureFacts, NightFacts
from alertprod.view.report_pictures import plot_latencies, plot_outcomes, plot_quality, plot_stages
from alertprod.view.triplets import describe_alert, plot_triplets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_ROWS: Final = 2000
"""Of the list of all exposures: a browser shows as many at ease; the ledger has them all."""

_MAX_NAMES: Final = 8

_INK_ON_ANY_PAPER: Final = "#7c8594"
"""Read on white and on the page's dark alike, at a contrast of 3.7 and 4.7."""

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1a202c; --paper: #fff; --soft: #718096; --line: #e2e8f0; --good: #276749; --bad: #c53030; --card: #f7fafc }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --paper: #171a21; --soft: #a0aec0; --line: #2d3748; --good: #68d391; --bad: #fc8181; --card: #1f2430 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem }
.soft { color: var(--soft) } .good { color: var(--good) } .bad { color: var(--bad) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin-top: 1.2rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right } code { font-size: .92em }
td.n { white-space: nowrap } img { max-width: 100%; border-radius: 6px } img.chart { background: #fff }
@media (prefers-color-scheme: dark) { img.chart { filter: invert(.91) hue-rotate(180deg) } }
@media (max-width: 46rem) { .wide { overflow-x: auto } .wide table { width: max-content; min-width: 100% } .wide td { max-width: 20rem } }
"""


def make_report(
    night: NightFacts,
    *,
    best: Sequence[Mapping[str, Any]],
    made_at_unix_s: float,
    remarks: Iterable[str] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    best
        Decoded alerts, the best first.
    made_at_unix_s
        Seconds UTC since 1970.
    remarks
        What could not be looked at.
    """
    parts = [
        f"<h1>{escape(night.title)}</h1>",
        f'<p class="soft">{_utc(night.since_unix_s)} to {_utc(night.until_unix_s)} UTC &middot; made {_utc(made_at_unix_s)}'
        + "".join(
            f" &middot; {escape(kind)} {escape(', '.join(values))}" for kind, values in night.versions.items() if values
        )
        + "</p>",
        *(f'<p class="bad">{escape(remark)}</p>' for remark in remarks),
        _cards(night),
        "<h2>What failed and why</h2>",
        _failures(night),
    ]
    if night.exposures:
        parts += [
            "<h2>Exposures over the night</h2>",
            _picture(plot_outcomes(night), "exposures by outcome over the night"),
        ]
    if night.published():
        parts.append("<h2>Latency</h2>")
        if len(night.timed()) < len(night.published()):
            n_again = len(night.published()) - len(night.timed())
            parts.append(f'<p class="soft">{n_again} sent again more than a day after they were taken have none.</p>')
        if night.timed():
            parts += [
                _picture(plot_latencies(night), "latency of each exposure, and of all alerts"),
                "<h3>The slowest</h3>",
                _slowest(night.slowest(10)),
            ]
        parts += [
            "<h3>Where the time goes</h3>",
            _picture(plot_stages(night), "mean seconds of each stage"),
            "<h2>Quality</h2>",
            _quality(night),
            _picture(plot_quality(night), "science figures of each exposure over the night"),
        ]
    parts += ["<h2>The best alerts</h2>", _best(best)]
    if night.exposures:
        parts += ["<h2>All exposures</h2>", _all_exposures(night.exposures)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(night.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _cards(night: NightFacts) -> str:
    half, most = night.latency_quantiles_s(0.5, 0.98)
    alerts, exposures = night.share_of_alerts_in_time(), night.share_of_exposures_in_time()
    n_failed, outcomes = len(night.failed()), night.outcomes()
    n_other = len(night.exposures) - n_failed - len(night.published()) - outcomes.get("skipped", 0)
    cards = [
        ("exposures", str(len(night.exposures)), ""),
        ("published", str(len(night.published())), ""),
        ("failed", str(n_failed), "bad" if n_failed else "good"),
        ("without templates", str(outcomes.get("skipped", 0)), ""),
        ("not finished", str(n_other), "bad" if n_other else ""),
        ("alerts", f"{night.n_alerts:,}", ""),
        (f"alerts within {OBJECTIVE_S:.0f} s", _share(alerts), _judge(alerts)),
        ("exposures in time", _share(exposures), _judge(exposures)),
        ("latency, half the alerts", _seconds(half), ""),
        ("latency, 98 % of them", _seconds(most), "bad" if most > OBJECTIVE_S else ""),
        ("new objects", f"{night.count('new_objects'):,}", ""),
        ("matched to objects", f"{night.count('matched_objects'):,}", ""),
        ("Solar System", f"{night.count('solar_system'):,}", ""),
        ("workers lost", str(sum(each.worker_deaths for each in night.exposures)), ""),
    ]
    return '<div class="cards">' + "".join(
        f'<div class="card"><b class="{style}">{escape(value)}</b><span class="soft">{escape(name)}</span></div>'
        for name, value, style in cards
    ) + "</div>"  # fmt: skip


def _failures(night: NightFacts) -> str:
    reasons = night.reasons()
    told = {(each.exposure, each.reason): each.message for each in night.failures or ()}
    parts = []
    if reasons:
        rows = []
        for reason, exposures in reasons.items():
            messages = sorted({told.get((each.name, each.reason), "") for each in exposures} - {""})
            names = [each.name for each in exposures]
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            rows.append((reason, len(names), ", ".join(names[:_MAX_NAMES]) + more, "; ".join(messages[:3])))
        parts.append(_table(("what", "#n", "which", "why, by the dead letters"), rows))
    known = {each.name for each in night.exposures}
    unread = [each for each in night.failures or () if each.exposure not in known]
    if unread:
        parts.append("<h3>Events that made no exposure</h3>")
        parts.append(
            _table(
                ("event", "reason", "stage", "message"),
                [(each.exposure, each.reason, each.stage, each.message) for each in unread],
            )
        )
    if not parts:
        parts.append('<p class="good">Nothing failed.</p>')
    if night.failures is None:
        parts.append(
            '<p class="soft">The dead letters were not looked at: events that nobody could read are not in this report'
            " (<code>alertprod dead-letters ls</code>).</p>"
        )
    return "".join(parts)


def _slowest(exposures: Sequence[ExposureFacts]) -> str:
    rows = []
    for each in exposures:
        stages = sorted(
            ((seconds, name) for name, seconds in each.stage_seconds.items() if name != "compute"), reverse=True
        )
        longest = ", ".join(f"{name} {seconds:.2f}" for seconds, name in stages[:3])
        tries = f"{each.claims} claims" if each.claims > 1 else ""
        waited = f"{each.waited_s:.1f}"
        rows.append((each.name, each.band, f"{each.latency_s:.1f}", waited, each.n_alerts, longest, tries))
    head = ("exposure", "band", "#latency s", "#shutter to claim s", "#alerts", "longest stages, s", "")
    note = "Until an exposure is claimed it waits for its event, for the ones before it in its lane, or for a worker."
    return f'{_table(head, rows)}<p class="soft">{note}</p>'


def _quality(night: NightFacts) -> str:
    rows = []
    for (instrument, band), figures in night.quality().items():
        cells: list[object] = [instrument, band]
        for name in QUALITY:
            found = figures.get(name)
            cells.append("-" if found is None else f"{found[0]:.4g} ({found[1]:.4g} to {found[2]:.4g})")
        rows.append(tuple(cells))
    head = ("instrument", "band", *(title for title, _ in QUALITY.values()))
    return _table(head, rows) + '<p class="soft">Median, and least to greatest.</p>'


def _best(packets: Sequence[Mapping[str, Any]]) -> str:
    if not packets:
        return '<p class="soft">No alert to show.</p>'
    rows = []
    for packet in packets:
        source = packet["diaSource"]
        rows.append(
            (
                packet["diaSourceId"], describe_alert(packet)[0], f"{source['visit']}/{source['detector']}",
                f"{source['ra']:.6f} {source['dec']:+.6f}", f"{source['snr']:.1f}",
                "-" if source["reliability"] is None else f"{source['reliability']:.2f}",
            )
        )  # fmt: skip
    table = _table(("diaSourceId", "what", "exposure", "ra, dec (deg)", "#S/N", "#reliability"), rows)
    pictures = _picture(
        plot_triplets(packets, alerts_per_row=2), "science, template and difference of the best alerts", is_chart=False
    )
    curves = [packet for packet in packets if packet["diaSource"]["diaObjectId"] is not None]
    if curves:
        pictures += "<h3>Their light curves</h3>" + _picture(
            plot_light_curves(curves), "light curves of the best alerts"
        )
    return table + pictures


def _all_exposures(exposures: Sequence[ExposureFacts]) -> str:
    rows = [
        (
            _utc(each.claimed_unix_s), each.name, each.band, str(each.state), each.reason, each.n_alerts,
            "-" if math.isnan(each.latency_s) else f"{each.latency_s:.1f}",
        )
        for each in exposures[:_MAX_ROWS]
    ]  # fmt: skip
    more = f'<p class="soft">The first {_MAX_ROWS} of {len(exposures)}.</p>' if len(exposures) > _MAX_ROWS else ""
    head = ("first claimed, UTC", "exposure", "band", "outcome", "reason", "#alerts", "#latency s")
    return f"<details><summary>{len(exposures)} exposures</summary>{_table(head, rows)}{more}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; a ``#`` before a heading sets its column to the right."""
    kinds = [' class="n"' if title.startswith("#") else "" for title in head]
    top = "".join(f"<th{kind}>{escape(title.lstrip('#'))}</th>" for title, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(str(cell))}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(figure: "Figure", text: str, *, is_chart: bool = True) -> str:
    """Return a figure; in the dark a chart is shown with light and dark exchanged, which images of the sky must not be."""
    from matplotlib.text import Text

    buffer = io.BytesIO()
    if not is_chart:
        for words in figure.findobj(Text):
            words.set_color(_INK_ON_ANY_PAPER)
    figure.savefig(buffer, format="png", facecolor="white" if is_chart else "none")
    data = base64.b64encode(buffer.getvalue()).decode()
    kind = ' class="chart"' if is_chart else ""
    return f'<p><img{kind} alt="{escape(text)}" src="data:image/png;base64,{data}"></p>'


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _judge(value: float) -> str:
    return "" if math.isnan(value) else "good" if value >= OBJECTIVE_SHARE else "bad"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f} s"
