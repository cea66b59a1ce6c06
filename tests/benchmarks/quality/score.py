"""Compare what a method found on one field with the truth.

A field's `Tally` holds sums and samples, not results: rates and widths are taken once, over all fields together.
"""

from dataclasses import dataclass

import numpy as np
from benchmarks.quality.methods import Outcome
from benchmarks.quality.noise import Pulls, compute_correlation, compute_pulls
from benchmarks.quality.places import PLACES, choose_stars, find_sky, find_sources, make_regions
from benchmarks.quality.render import Field
from benchmarks.quality.truth import Truth
from scipy.spatial import cKDTree

SNR_BINS = ((5.0, 7.0), (7.0, 10.0), (10.0, 20.0), (20.0, np.inf))

MATCH_PIXELS = 3.0
"""A DiaSource this near a change is that change: seven times the error of a position at 5 sigma."""

CHANGED_PIXELS = 6.0
"""A DiaSource this near any change, counted or not, is not false."""

_FLAGS_OF_TESTS = ("pixel_flags_injected", "pixel_flags_injected_center", "pixel_flags_injected_template",
                   "pixel_flags_injected_template_center")  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Row:
    """One DiaSource or one missed change, for the pictures."""

    what: str
    """``false``, ``missed``, or ``DiaSource`` where nobody knows the truth."""
    x: float
    y: float
    snr: float
    """Detected, or true."""
    facts: dict[str, object]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one method did on one field."""

    seed: int
    seconds: float
    figures: dict[str, float]
    area: float
    """Pixels, in millions."""
    n_true: np.ndarray
    n_found: np.ndarray
    n_found_unflagged: np.ndarray
    false: dict[str, int]
    false_unflagged: dict[str, int]
    place_area: dict[str, float]
    """Share of the image's area of each place."""
    n_duplicates: int
    sky: Pulls
    sources: Pulls
    stars: Pulls
    star_widths: np.ndarray
    """Rms of the pulls of each of the brightest unsaturated stars."""
    correlation: np.ndarray
    """Sums of products by lag, shape (MAX_LAG + 1, 2 MAX_LAG + 1); lag (0, 0) is in row 0, column MAX_LAG."""
    correlation_n: np.ndarray
    flux_true: np.ndarray
    flux_measured: np.ndarray
    flux_error: np.ndarray
    flux_noise: np.ndarray
    flux_snr: np.ndarray
    position: np.ndarray
    """Measured less true (x, y) of the same transients."""
    position_error: np.ndarray
    position_bound: np.ndarray
    dipoles: tuple[int, int]
    """Stars of proper motion that were detected, and those called dipoles."""
    called_dipoles: tuple[int, int]
    """Transients that were detected, and those called dipoles."""
    trails: tuple[int, int, int]
    """Trails above S/N 15, those detected, those with a measured length."""
    trail_length: np.ndarray
    """Measured over true length."""
    trail_angle: np.ndarray
    """Measured less true angle, degrees."""
    trail_pulls: np.ndarray
    """Length, angle and flux less the true ones over their errors, shape (n, 3), of trails longer than a FWHM: a shorter one
    is measured only where noise makes it longer."""
    rows: list[Row]


def score(made: Field, truth: Truth, outcome: Outcome) -> Tally:
    """Compare one outcome with the truth."""
    scene, changes = made.scene, made.scene.changes
    sources = outcome.sources
    unflagged = ~is_flagged(sources)
    match = match_changes(made, sources)
    found = match >= 0
    found_unflagged = found.copy()
    found_unflagged[found] = unflagged[match[found]]
    counted = np.isin(changes.kind, ["transient", "variable"]) & truth.measurable
    bins = [counted & (truth.snr >= low) & (truth.snr < high) for low, high in SNR_BINS]
    is_false, is_double = find_false(made, sources, match)
    regions = make_regions(made)
    place = regions.look_up(sources["x"], sources["y"])
    false = {name: int((is_false & (place == i)).sum()) for i, name in enumerate(PLACES)}
    false_unflagged = {name: int((is_false & unflagged & (place == i)).sum()) for i, name in enumerate(PLACES)}

    pulls = compute_pulls(outcome.difference)
    sky = find_sky(made, truth) & np.isfinite(pulls)
    lit = find_sources(made, truth) & np.isfinite(pulls)
    products, counts = compute_correlation(np.where(sky, pulls, np.nan))
    stars = measure_stars(made, pulls)
    wanted = np.flatnonzero((changes.kind == "transient") & truth.measurable & (match >= 0) & (truth.snr >= 7.0))
    rows = match[wanted]
    scale = scene.parameters.njy_per_count * made.enclosed
    return Tally(
        seed=scene.seed,
        seconds=outcome.seconds,
        figures=outcome.figures,
        area=pulls.size / 1e6,
        n_true=np.array([inside.sum() for inside in bins]),
        n_found=np.array([(inside & found).sum() for inside in bins]),
        n_found_unflagged=np.array([(inside & found_unflagged).sum() for inside in bins]),
        false=false,
        false_unflagged=false_unflagged,
        place_area=regions.shares(),
        n_duplicates=int(is_double.sum()),
        sky=Pulls.of(pulls[sky]),
        sources=Pulls.of(pulls[lit]),
        stars=Pulls.of(np.concatenate(stars) if stars else []),
        star_widths=np.array([np.sqrt(np.mean(values**2)) for values in stars]),
        correlation=products,
        correlation_n=counts,
        flux_true=changes.flux[wanted] * scale,
        flux_measured=sources["psf_flux"][rows].astype(float),
        flux_error=sources["psf_flux_err"][rows].astype(float),
        flux_noise=truth.noise[wanted] * scale,
        flux_snr=truth.snr[wanted],
        position=np.stack([sources["x"][rows] - changes.x[wanted], sources["y"][rows] - changes.y[wanted]], axis=-1),
        position_error=np.stack([sources["x_err"][rows], sources["y_err"][rows]], axis=-1).astype(float),
        position_bound=np.stack([truth.bound_x[wanted], truth.bound_y[wanted]], axis=-1),
        **_score_kinds(made, truth, sources, match),
        rows=list_rows(made, truth, outcome, match, is_false, place),
    )


def is_flagged(sources):
    """Return which rows have any pixel flag but those of injection."""
    names = [name for name in sources if name.startswith("pixel_flags_") and name not in _FLAGS_OF_TESTS]
    flagged = np.zeros(sources.n_rows, dtype=bool)
    for name in names:
        flagged |= np.asarray(sources[name], dtype=bool)
    return flagged


def match_changes(made: Field, sources):
    """Return the row of the catalog that is each change, -1 for none; no row is two changes."""
    changes = made.scene.changes
    match = np.full(len(changes), -1)
    if not sources.n_rows:
        return match
    x, y = np.asarray(sources["x"], dtype=float), np.asarray(sources["y"], dtype=float)
    reach = np.where(changes.kind == "transient", MATCH_PIXELS, CHANGED_PIXELS)
    distance = _distance_to_changes(changes, x, y)
    order = np.argsort(distance, axis=None)
    free_row = np.ones(len(x), dtype=bool)
    for flat in order:
        i, row = divmod(int(flat), len(x))
        if distance[i, row] > max(reach):
            break
        if match[i] < 0 and free_row[row] and distance[i, row] <= reach[i]:
            match[i], free_row[row] = row, False
    return match


def _distance_to_changes(changes, x, y):
    """Return distances of points to the changes, trails being lines; shape (n_changes, n_points)."""
    dx, dy = x[None, :] - changes.x[:, None], y[None, :] - changes.y[:, None]
    length2 = np.maximum(changes.trail_x**2 + changes.trail_y**2, 1e-12)[:, None]
    along = np.clip((dx * changes.trail_x[:, None] + dy * changes.trail_y[:, None]) / length2, -0.5, 0.5)
    return np.hypot(dx - along * changes.trail_x[:, None], dy - along * changes.trail_y[:, None])


def find_false(made: Field, sources, match):
    """Return which rows are at no change at all, and which are at a change that another row is."""
    matched = np.zeros(sources.n_rows, dtype=bool)
    matched[match[match >= 0]] = True
    x, y = np.asarray(sources["x"], dtype=float), np.asarray(sources["y"], dtype=float)
    near = np.zeros(sources.n_rows, dtype=bool)
    if len(made.scene.changes):
        near = _distance_to_changes(made.scene.changes, x, y).min(axis=0) <= CHANGED_PIXELS
    return ~matched & ~near, ~matched & near


def measure_stars(made: Field, pulls):
    """Return the pulls within 1.5 FWHM of each of the brightest unsaturated stars."""
    stars = made.scene.stars
    radius = 1.5 * made.scene.parameters.science.fwhm
    half = int(np.ceil(radius)) + 1
    samples = []
    for i in choose_stars(made):
        row, column = round(stars.y[i]), round(stars.x[i])
        part = pulls[row - half : row + half + 1, column - half : column + half + 1]
        v, u = np.mgrid[row - half : row + half + 1, column - half : column + half + 1]
        inside = (np.hypot(u - stars.x[i], v - stars.y[i]) <= radius) & np.isfinite(part)
        if inside.sum() > 20:
            samples.append(part[inside].astype(float))
    return samples


def _score_kinds(made: Field, truth: Truth, sources, match):
    changes = made.scene.changes
    found = match >= 0
    moving, transient = changes.kind == "proper_motion", changes.kind == "transient"
    is_dipole = np.zeros(len(changes), dtype=bool)
    is_dipole[found] = sources["is_dipole"][match[found]]
    trail = (changes.kind == "trail") & truth.measurable & (truth.snr >= 15.0)
    rows = match[trail & found]
    arcsec = made.science.wcs.compute_pixel_scale_arcsec(x=made.size / 2, y=made.size / 2)
    length = sources["trail_length_arcsec"][rows].astype(float) / arcsec
    true_length = np.hypot(changes.trail_x, changes.trail_y)[trail & found]
    angle = sources["trail_angle_deg"][rows].astype(float)
    jacobian = made.science.wcs.compute_jacobian(x=changes.x[trail & found], y=changes.y[trail & found])
    vector = np.stack([changes.trail_x, changes.trail_y], axis=-1)[trail & found]
    sky = (jacobian @ vector[:, :, None])[:, :, 0] if len(vector) else np.zeros((0, 2))
    true_angle = np.degrees(np.arctan2(sky[:, 0], sky[:, 1]))
    measured = np.isfinite(length) & (sources["trail_ndata"][rows] > 0)
    turned = (angle - true_angle + 90.0) % 180.0 - 90.0
    true_flux = changes.flux_science[trail & found] * made.scene.parameters.njy_per_count * made.enclosed
    pulls = np.stack(
        [
            (length - true_length) * arcsec / sources["trail_length_err_arcsec"][rows],
            turned / sources["trail_angle_err_deg"][rows],
            (sources["trail_flux"][rows] - true_flux) / sources["trail_flux_err"][rows],
        ],
        axis=-1,
    )
    return {
        "dipoles": (int((moving & found).sum()), int((moving & is_dipole).sum())),
        "called_dipoles": (int((transient & found).sum()), int((transient & is_dipole).sum())),
        "trails": (int(trail.sum()), len(rows), int(measured.sum())),
        "trail_length": (length / true_length)[measured],
        "trail_angle": turned[measured],
        "trail_pulls": pulls[measured & (true_length > made.scene.parameters.science.fwhm)],
    }


def list_rows(made: Field, truth: Truth, outcome: Outcome, match, is_false, place) -> list[Row]:
    """Return every false DiaSource and every missed or misjudged change with its numbers, worst first."""
    scene, changes, sources = made.scene, made.scene.changes, outcome.sources
    tree = cKDTree(np.stack([scene.stars.x, scene.stars.y], axis=-1)) if len(scene.stars) else None
    noise = scene.point_noise
    rows = []

    def neighbourhood(x: float, y: float) -> dict[str, object]:
        if tree is None:
            return {}
        near = tree.query_ball_point([x, y], 60.0)
        if not near:
            return {"star": "none within 60 px"}
        # The star that puts most light here counts, not the nearest.
        distance = np.hypot(scene.stars.x[near] - x, scene.stars.y[near] - y)
        weight = scene.stars.flux[near] / (1.0 + (distance / 4.0) ** 5)
        i = int(np.argmax(weight))
        return {"star": f"S/N {scene.stars.flux[near][i] / noise:.0f} at {distance[i]:.1f} px"}

    for row in np.flatnonzero(is_false):
        flags = [n.removeprefix("pixel_flags_") for n in sources if n.startswith("pixel_flags_") and sources[n][row]]
        x, y = float(sources["x"][row]), float(sources["y"][row])
        rows.append(
            Row(
                what="false", x=x, y=y, snr=float(sources["snr"][row]),
                facts={
                    "place": PLACES[place[row]],
                    "flux/err": f"{sources['psf_flux'][row] / sources['psf_flux_err'][row]:.1f}",
                    "chi2/n": f"{sources['psf_chi2'][row] / max(int(sources['psf_ndata'][row]), 1):.2f}",
                    "dipole": bool(sources["is_dipole"][row]),
                    "flags": " ".join(flags) or "none",
                    **neighbourhood(x, y),
                },
            )
        )  # fmt: skip
    for i in np.flatnonzero(np.isin(changes.kind, ["transient", "variable"]) & (match < 0) & truth.measurable):
        if truth.snr[i] < SNR_BINS[0][0]:
            continue
        x, y = float(changes.x[i]), float(changes.y[i])
        rows.append(
            Row(
                what="missed", x=x, y=y, snr=float(truth.snr[i]),
                facts={"kind": str(changes.kind[i]), "sign": "+" if changes.flux[i] > 0 else "-", **neighbourhood(x, y)},
            )
        )  # fmt: skip
    rows.sort(key=lambda row: -abs(row.snr))
    return rows
