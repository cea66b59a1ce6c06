"""From the tallies of many fields to the numbers of the table, with their standard errors."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from benchmarks.quality.noise import IQR_TO_SIGMA, MAX_LAG, Pulls, compute_lags, compute_width
from benchmarks.quality.places import PLACES
from benchmarks.quality.score import SNR_BINS, Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of the table."""

    name: str
    value: float
    error: float
    """Standard error; NaN where nothing was counted."""
    n: float
    """What it rests on: changes, pixels, stars."""
    note: str = ""


def pool(tallies: Iterable[Tally]) -> list[Measure]:
    """Return the table's numbers over all fields."""
    tallies = list(tallies)
    return [
        *_pool_completeness(tallies),
        *_pool_false(tallies),
        *_pool_pulls(tallies),
        *_pool_correlation(tallies),
        *_pool_fluxes(tallies),
        *_pool_positions(tallies),
        *_pool_stars(tallies),
        *_pool_kinds(tallies),
        *_pool_figures(tallies),
    ]


def _pool_completeness(tallies: list[Tally]) -> list[Measure]:
    measures = []
    for i, (low, high) in enumerate(SNR_BINS):
        n, k = sum(int(t.n_true[i]) for t in tallies), sum(int(t.n_found[i]) for t in tallies)
        unflagged = sum(int(t.n_found_unflagged[i]) for t in tallies)
        label = f"{low:.0f}-{high:.0f}" if np.isfinite(high) else f"> {low:.0f}"
        measures.append(
            Measure(
                name=f"completeness {label}", value=k / n if n else np.nan, error=_binomial_error(k, n), n=n,
                note=f"{k}/{n}, {unflagged} unflagged",
            )
        )  # fmt: skip
    return measures


def _binomial_error(k: int, n: int) -> float:
    """Return a standard error that is not zero at 0 and 1 (Agresti & Coull)."""
    if n == 0:
        return np.nan
    p = (k + 0.5) / (n + 1.0)
    return float(np.sqrt(p * (1.0 - p) / n))


def _pool_false(tallies: list[Tally]) -> list[Measure]:
    area = sum(t.area for t in tallies)
    per_image = 16.777216 / area if area else np.nan
    measures = []
    for title, counts in (
        ("false", [t.false for t in tallies]),
        ("false unflagged", [t.false_unflagged for t in tallies]),
    ):
        total = sum(sum(c.values()) for c in counts)
        measures.append(_count(title, total, per_image))
        for place in PLACES:
            share = np.mean([t.place_area[place] for t in tallies])
            n = sum(c[place] for c in counts)
            measures.append(_count(f"{title} {place}", n, per_image, note=f"{100 * share:.2f} % of the area"))
    measures.append(_count("fragments of changes", sum(t.n_duplicates for t in tallies), per_image))
    return measures


def _count(name: str, n: int, per_image: float, note: str = "") -> Measure:
    return Measure(
        name=name, value=n * per_image, error=np.sqrt(max(n, 1)) * per_image, n=n,
        note=f"{n} in all" + (f", {note}" if note else ""),
    )  # fmt: skip


def _pool_pulls(tallies: list[Tally]) -> list[Measure]:
    measures = []
    for title, parts in (("sky", [t.sky for t in tallies]), ("sources", [t.sources for t in tallies])):
        pulls = Pulls()
        for part in parts:
            pulls.add(part)
        width, error = compute_width(pulls)
        n = max(pulls.n, 1)
        means = [p.total / p.n for p in parts if p.n]
        mean_error = 1.0 / np.sqrt(n)
        if len(means) > 2:
            mean_error = max(mean_error, float(np.std(means, ddof=1) / np.sqrt(len(means))))
        mean = pulls.total / n if pulls.n else np.nan
        rms = np.sqrt(pulls.squares / n) if pulls.n else np.nan
        measures += [
            Measure(name=f"pull width, {title}", value=width, error=error, n=pulls.n),
            Measure(name=f"pull mean, {title}", value=mean, error=mean_error, n=pulls.n),
            Measure(name=f"pull rms, {title}", value=rms, error=rms / np.sqrt(2.0 * n), n=pulls.n),
        ]
    return measures


def _pool_correlation(tallies: list[Tally]) -> list[Measure]:
    products, numbers = (sum(getattr(t, name) for t in tallies) for name in ("correlation", "correlation_n"))
    lags = compute_lags(products, numbers)
    magnitude = np.abs(lags)
    magnitude[0, : MAX_LAG + 1] = -1.0
    dy, dx = np.unravel_index(int(np.nanargmax(magnitude)), lags.shape)
    n = float(numbers[dy, dx])
    return [
        Measure(
            name="autocorrelation", value=float(magnitude[dy, dx]), error=1.0 / np.sqrt(max(n, 1.0)), n=n,
            note=f"{lags[dy, dx]:+.4f} at lag (x {dx - MAX_LAG}, y {dy}); "
            f"x 1: {lags[0, MAX_LAG + 1]:+.4f}, y 1: {lags[1, MAX_LAG]:+.4f}",
        )
    ]  # fmt: skip


def _pool_fluxes(tallies: list[Tally]) -> list[Measure]:
    true, measured, error, noise = (
        np.concatenate([getattr(t, name) for t in tallies])
        for name in ("flux_true", "flux_measured", "flux_error", "flux_noise")
    )
    measures = []
    for title, sign in (("", 0.0), (" positive", 1.0), (" negative", -1.0)):
        chosen = np.isfinite(measured) & np.isfinite(error) & (error > 0)
        if sign:
            chosen &= np.sign(true) == sign
        n = int(chosen.sum())
        weight = true[chosen] ** 2 / noise[chosen] ** 2
        if n:
            bias = float((weight * (measured[chosen] / true[chosen] - 1.0)).sum() / weight.sum())
            pulls = (measured[chosen] - true[chosen]) / error[chosen]
        else:
            bias, pulls, weight = np.nan, np.array([]), np.array([np.nan])
        measures += [
            Measure(name=f"flux bias{title}", value=bias, error=float(1.0 / np.sqrt(weight.sum())), n=n),
            _width_of(f"flux pull width{title}", pulls),
            _mean_of(f"flux pull mean{title}", pulls),
        ]
    return measures


def _pool_positions(tallies: list[Tally]) -> list[Measure]:
    off, error, bound = (
        np.concatenate([getattr(t, name) for t in tallies]) for name in ("position", "position_error", "position_bound")
    )
    bright = np.concatenate([t.flux_snr for t in tallies]) >= 10.0
    chosen = np.isfinite(off).all(axis=1) & np.isfinite(error).all(axis=1) & bright
    ratio = (off / bound)[chosen].ravel()
    pulls = (off / error)[chosen].ravel()
    return [
        _width_of("centroid scatter / bound", ratio),
        _width_of("centroid pull width", pulls),
        _mean_of("centroid pull mean x", (off / error)[chosen][:, 0]),
        _mean_of("centroid pull mean y", (off / error)[chosen][:, 1]),
    ]


def _width_of(name: str, values) -> Measure:
    """Rms about zero, with the robust width in the note."""
    n = len(values)
    if n < 4:
        return Measure(name=name, value=np.nan, error=np.nan, n=n)
    rms = float(np.sqrt(np.mean(values**2)))
    low, high = np.percentile(values, [25.0, 75.0])
    # The standard error of an rms from the values' own fourth moment: tails make it larger.
    error = float(np.sqrt(max(np.mean(values**4) - rms**4, 0.0) / n) / (2.0 * rms))
    return Measure(
        name=name, value=rms, error=error, n=n,
        note=f"robust {IQR_TO_SIGMA * (high - low):.3f}, largest {np.abs(values).max():.1f}",
    )  # fmt: skip


def _mean_of(name: str, values) -> Measure:
    n = len(values)
    if n < 2:
        return Measure(name=name, value=np.nan, error=np.nan, n=n)
    return Measure(name=name, value=float(np.mean(values)), error=float(np.std(values, ddof=1) / np.sqrt(n)), n=n)


def _pool_stars(tallies: list[Tally]) -> list[Measure]:
    pixels = Pulls()
    for t in tallies:
        pixels.add(t.stars)
    widths = np.concatenate([t.star_widths for t in tallies])
    n = len(widths)
    if not n:
        return [Measure(name="residual at bright stars", value=np.nan, error=np.nan, n=0)]
    rms = float(np.sqrt(np.mean(widths**2)))
    # Pixels of a star are not independent where its residual is systematic: stars are.
    error = float(np.std(widths**2, ddof=1) / np.sqrt(n) / (2.0 * rms)) if n > 1 else np.nan
    return [
        Measure(
            name="residual at bright stars", value=rms, error=error, n=n,
            note=f"median star {np.median(widths):.3f}, worst {widths.max():.2f}",
        )
    ]  # fmt: skip


def _pool_kinds(tallies: list[Tally]) -> list[Measure]:
    found, told = (sum(t.dipoles[i] for t in tallies) for i in (0, 1))
    transients, mistaken = (sum(t.called_dipoles[i] for t in tallies) for i in (0, 1))
    trails, detected, measured = (sum(t.trails[i] for t in tallies) for i in (0, 1, 2))
    length, angle, pulls = (
        np.concatenate([getattr(t, n) for t in tallies]) for n in ("trail_length", "trail_angle", "trail_pulls")
    )
    return [
        Measure(
            name="dipoles told", value=told / found if found else np.nan, error=_binomial_error(told, found), n=found,
            note=f"{told}/{found} moving stars that were detected",
        ),
        Measure(
            name="transients called dipoles", value=mistaken / transients if transients else np.nan,
            error=_binomial_error(mistaken, transients), n=transients, note=f"{mistaken}/{transients}",
        ),
        Measure(
            name="trails detected", value=detected / trails if trails else np.nan,
            error=_binomial_error(detected, trails), n=trails, note=f"{detected}/{trails} above S/N 15",
        ),
        Measure(
            name="trails measured", value=measured / detected if detected else np.nan,
            error=_binomial_error(measured, detected), n=detected, note=f"{measured}/{detected}",
        ),
        _mean_of("trail length / true", length),
        _width_of("trail angle error, deg", angle),
        _width_of("trail length pull width", pulls[:, 0]),
        _width_of("trail angle pull width", pulls[:, 1]),
        _width_of("trail flux pull width", pulls[:, 2]),
    ]  # fmt: skip


def _pool_figures(tallies: list[Tally]) -> list[Measure]:
    measures = []
    for name in sorted({name for t in tallies for name in t.figures}):
        values = [t.figures[name] for t in tallies if name in t.figures]
        measures.append(_mean_of(f"figure {name}", np.array(values)) if len(values) > 1 else Measure(
            name=f"figure {name}", value=values[0], error=np.nan, n=1))  # fmt: skip
    seconds = np.array([t.seconds for t in tallies])
    measures.append(Measure(name="seconds a field", value=float(seconds.mean()), error=np.nan, n=len(seconds)))
    return measures
