"""The results as a table on the terminal, as JSON, and as one HTML file with a picture of each false and each missed source."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.quality.methods import Outcome
from benchmarks.quality.pool import Measure
from benchmarks.quality.render import Field
from benchmarks.quality.score import Row
from benchmarks.quality.targets import Verdict
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.image import imsave
from rich.table import Table

from alertprod.view.stretch import compute_center_and_noise, stretch_sky

HALF = 24
"""Half side of the pictures, pixels."""

MOST_PICTURES = 120
"""A field and method; the worst ones."""

PANELS = ("science", "matched template", "difference / error", "science - truth / error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One source in four panels, each of (2 HALF + 1) squared, 0 to 1; `row` says what it is."""

    regime: str
    seed: int
    method: str
    row: Row
    panels: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The table of one method in one regime."""

    regime: str
    method: str
    measures: list[Measure]
    verdicts: dict[str, Verdict]
    n_fields: int


def cut_pictures(made: Field, outcome: Outcome, rows: Sequence[Row], *, regime: str, method: str) -> list[Picture]:
    """Cut out what the rows are about."""
    error = np.sqrt(np.where(made.science.variance > 0, made.science.variance, np.nan))
    with np.errstate(invalid="ignore"):
        pulls = outcome.difference.image / np.sqrt(outcome.difference.variance)
        truth = (made.science.image - made.model) / error
    pictures = []
    center, noise = compute_center_and_noise(made.science.image)
    for row in rows[:MOST_PICTURES]:
        panels = (
            scale_sky(cut_panel(made.science.image, row), center=center, noise=noise),
            scale_sky(cut_panel(outcome.template.image, row), center=0.0, noise=noise),
            scale_pulls(cut_panel(pulls, row)),
            scale_pulls(cut_panel(truth, row)),
        )
        pictures.append(Picture(regime=regime, seed=made.scene.seed, method=method, row=row, panels=panels))
    return pictures


def scale_sky(image, *, center: float, noise: float):
    """Return pixels as shades, 0 to 1, in the stretch of the project's pictures."""
    return _shade(stretch_sky(image, center=center, noise=noise) / 4.0 + 0.125)


def scale_pulls(image):
    """Return pulls from -8 to 8 as shades."""
    return _shade(image / 16.0 + 0.5)


def _shade(values):
    # NaN stays: it is shown in a colour of its own.
    return np.clip(values, 0.0, 1.0).astype(np.float32)


def _make_greys():
    greys = colormaps["gray"].copy()
    greys.set_bad("#35507a")
    return greys


def cut_panel(image, row: Row):
    """Return the square about a row's position, NaN beyond the image."""
    side = 2 * HALF + 1
    cut = np.full((side, side), np.nan, dtype=np.float32)
    left, bottom = round(row.x) - HALF, round(row.y) - HALF
    rows = slice(max(0, bottom), min(image.shape[0], bottom + side))
    columns = slice(max(0, left), min(image.shape[1], left + side))
    cut[rows.start - bottom : rows.stop - bottom, columns.start - left : columns.stop - left] = image[rows, columns]
    return cut


def describe(picture: Picture) -> tuple[str, str]:
    """Return a title and a line of facts."""
    row = picture.row
    title = f"{row.what}, S/N {row.snr:.1f}, x {row.x:.1f} y {row.y:.1f}"
    return title, ", ".join(f"{name} {value}" for name, value in row.facts.items())


def make_table(regime: str, sections: Sequence[Section], *, everything: bool) -> Table:
    """Return a regime's table for the terminal: a row a measure, a column a method; figures only where wanted."""
    n = sections[0].n_fields
    table = Table(title=f"{regime} ({n} field{'s' if n > 1 else ''})", title_justify="left", show_lines=False)
    table.add_column("measure", no_wrap=True)
    for section in sections:
        table.add_column(section.method, justify="right")
    table.add_column("target")
    names = list(dict.fromkeys(m.name for s in sections for m in s.measures))
    for name in names:
        if name.startswith("figure ") and not everything:
            continue
        cells = []
        for section in sections:
            measure = {m.name: m for m in section.measures}.get(name)
            verdict = section.verdicts.get(name)
            text = format_measure(measure) if measure is not None else ""
            if verdict is not None and verdict.met is not None:
                text = f"[{'green' if verdict.met else 'red'}]{text} {'met' if verdict.met else 'NOT'}[/]"
            cells.append(text)
        verdict = sections[0].verdicts.get(name)
        table.add_row(name, *cells, verdict.target if verdict is not None else "")
    return table


def format_measure(measure: Measure) -> str:
    """Return value and standard error in as many digits as the error allows."""
    if not np.isfinite(measure.value):
        return "-"
    if not np.isfinite(measure.error) or measure.error == 0:
        return f"{measure.value:.4g}"
    digits = int(np.clip(np.ceil(-np.log10(measure.error)) + 1, 0, 5))
    return f"{measure.value:.{digits}f} ± {measure.error:.{digits}f}"


def to_json(sections: Sequence[Section], meta: dict[str, object]) -> str:
    """Return everything a program may want to read."""
    content = {
        **meta,
        "rows": [
            {
                "regime": s.regime,
                "method": s.method,
                "fields": s.n_fields,
                "measure": m.name,
                "value": _finite(m.value),
                "error": _finite(m.error),
                "n": _finite(m.n),
                "note": m.note,
                "target": s.verdicts[m.name].target if m.name in s.verdicts else None,
                "met": s.verdicts[m.name].met if m.name in s.verdicts else None,
            }
            for s in sections
            for m in s.measures
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _finite(value) -> float | None:
    return float(value) if np.isfinite(value) else None


def to_html(sections: Sequence[Section], pictures: Sequence[Picture], meta: dict[str, object]) -> str:
    """Return a page that needs nothing but itself."""
    parts = [_HEAD, f"<h1>Science quality</h1><p>{html.escape(', '.join(f'{k} {v}' for k, v in meta.items()))}</p>"]
    for regime in dict.fromkeys(s.regime for s in sections):
        mine = [s for s in sections if s.regime == regime]
        parts.append(f"<h2>{html.escape(regime)}</h2><table><tr><th>measure</th>")
        parts += [f"<th>{html.escape(s.method)}</th>" for s in mine]
        parts.append("<th>target</th></tr>")
        for name in dict.fromkeys(m.name for s in mine for m in s.measures):
            parts.append(f"<tr><td>{html.escape(name)}</td>")
            for section in mine:
                measure = {m.name: m for m in section.measures}.get(name)
                verdict = section.verdicts.get(name)
                style = ""
                if verdict is not None and verdict.met is not None:
                    style = " class=met" if verdict.met else " class=missed"
                text = format_measure(measure) if measure is not None else ""
                note = f"<small>{html.escape(measure.note)}</small>" if measure is not None and measure.note else ""
                parts.append(f"<td{style}>{html.escape(text)}{note}</td>")
            verdict = mine[0].verdicts.get(name)
            parts.append(f"<td>{html.escape(verdict.target) if verdict is not None else ''}</td></tr>")
        parts.append("</table>")
        for section in mine:
            of_mine = [p for p in pictures if p.regime == regime and p.method == section.method]
            if not of_mine:
                continue
            parts.append(
                f"<details><summary>{html.escape(section.method)}: {len(of_mine)} pictures ({', '.join(PANELS)})</summary>"
            )
            parts += [_show(picture) for picture in of_mine]
            parts.append("</details>")
    return "\n".join(parts)


def _show(picture: Picture) -> str:
    title, facts = describe(picture)
    buffer = io.BytesIO()
    gap = np.ones((2 * HALF + 1, 2), dtype=np.float32)
    strip = np.hstack([part for panel in picture.panels for part in (panel, gap)][:-1])
    imsave(buffer, strip, cmap=_make_greys(), vmin=0.0, vmax=1.0, origin="lower", format="png")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(title)}">'
        f"<figcaption><b>{html.escape(title)}</b> seed {picture.seed}<br>{html.escape(facts)}</figcaption></figure>"
    )


def save_contact_sheets(pictures: Sequence[Picture], folder: Path, *, rows_per_sheet: int = 12) -> list[Path]:
    """Write the pictures of each regime and method as PNG sheets of a few rows each."""
    paths = []
    groups: dict[tuple[str, str, str], list[Picture]] = {}
    for picture in pictures:
        groups.setdefault((picture.regime, picture.method, picture.row.what), []).append(picture)
    for (regime, method, what), group in groups.items():
        for first in range(0, len(group), rows_per_sheet):
            part = group[first : first + rows_per_sheet]
            n_rows = -(-len(part) // 2)
            figure = Figure(figsize=(17.0, 2.35 * n_rows), dpi=80, layout="constrained", facecolor="white")
            axes = figure.subplots(n_rows, 8, squeeze=False)
            for axis in axes.ravel():
                axis.set_axis_off()
            for i, picture in enumerate(part):
                row, offset = divmod(i, 2)
                title, facts = describe(picture)
                for j, panel in enumerate(picture.panels):
                    axis = axes[row, 4 * offset + j]
                    axis.imshow(panel, cmap=_make_greys(), vmin=0.0, vmax=1.0, origin="lower", interpolation="nearest")
                axes[row, 4 * offset].set_title(f"{title} (seed {picture.seed})\n{facts[:110]}", fontsize=7, loc="left")
            name = f"{regime}_{method}_{what.replace(' ', '_')}_{first // rows_per_sheet + 1}.png"
            figure.savefig(folder / name)
            paths.append(folder / name)
    return paths


_HEAD = """<!doctype html><meta charset="utf-8"><title>Science quality</title><style>
body{font:14px/1.4 system-ui,sans-serif;margin:2em;max-width:110em}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right;vertical-align:top}
td:first-child,th:first-child{text-align:left}.met{background:#e3f6e3}.missed{background:#fbdcdc}
small{display:block;color:#666}figure{display:inline-block;margin:.4em;width:420px;vertical-align:top}
img{width:420px;image-rendering:pixelated}figcaption{font-size:12px}</style>"""
