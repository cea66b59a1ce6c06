"""Compare what a method found on one field with the truth, and pool fields to numbers with standard errors.

A field's `Tally` holds sums and samples, not results: rates and widths are taken once, over all fields together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from benchmarks.quality.methods import Outcome
from benchmarks.quality.render import Field
from benchmarks.quality.scene import compute_saturated_flux, compute_sky_variance
from benchmarks.quality.truth import Truth
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from alertprod.images.mask import plane_bits

SNR_BINS = ((5.0, 7.0), (7.0, 10.0), (10.0, 20.0), (20.0, np.inf))

MATCH_PIXELS = 3.0
"""A DiaSource this near a change is that change: seven times the error of a position at 5 sigma."""

CHANGED_PIXELS = 6.0
"""A DiaSource this near any change, counted or not, is not false."""

BRIGHT_SNR, BRIGHT_REACH = 300.0, 26.0
"""What lies so near (pixels) a star of this signal-to-noise is counted as near a bright star: a kernel wrong by 1 % leaves
3 sigma of it."""

SATURATED_REACH = 60.0
GALAXY_SNR, GALAXY_REACH = 50.0, 12.0
DEFECT_REACH = 5.0

PLACES = ("near saturated stars", "near defects", "near bright stars", "near galaxies", "elsewhere")
"""Where false DiaSources lie; the first that applies."""

NOT_SKY_PLANES = ("BAD", "SAT", "CR", "NO_DATA", "EDGE", "INTRP", "SAT_TEMPLATE", "HIGH_VARIANCE")
"""Pixels that are neither sky nor source; what is detected is not among them: detections follow the noise."""

MAX_LAG = 6
"""Of the noise's autocorrelation, pixels."""

QUANTILES = np.linspace(0.0005, 0.9995, 1999)

_IQR_TO_SIGMA = 0.741301109252801

_FLAGS_OF_TESTS = ("pixel_flags_injected", "pixel_flags_injected_center", "pixel_flags_injected_template",
                   "pixel_flags_injected_template_center")  # fmt: skip


@dataclass(slots=True)
class Pulls:
    """Pixels over their standard error: moments, and quantiles instead of millions of values."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    quartiles: list[tuple[int, float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, values) -> "Pulls":
        values = np.asarray(values, dtype=float)
        if values.size < 4:
            return cls()
        low, high = np.percentile(values, [25.0, 75.0])
        # One pixel of a hundred thousand must not be the rms.
        kept = np.clip(values, -10.0, 10.0)
        return cls(values.size, float(kept.sum()), float((kept**2).sum()), [(values.size, low, high)])

    def add(self, other: "Pulls") -> None:
        self.n += other.n
        self.total += other.total
        self.squares += other.squares
        self.quartiles += other.quartiles


@dataclass(slots=True, kw_only=True)
class Row:
    """One DiaSource or one missed change, for the pictures."""

    what: str
    """``false``, ``missed``, ``dipole missed`` and so on."""
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
    rows: list[Row]


def score(made: Field, truth: Truth, outcome: Outcome) -> Tally:
    """Compare one outcome with the truth."""
    scene, changes = made.scene, made.scene.changes
    sources = outcome.sources
    unflagged = ~is_flagged(sources)
    match = match_changes(made, sources)
    point = np.isin(changes.kind, ["transient", "variable"])
    counted = point & truth.measurable
    n_true, n_found, n_unflagged = (np.zeros(len(SNR_BINS), dtype=int) for _ in range(3))
    for i, (low, high) in enumerate(SNR_BINS):
        inside = counted & (truth.snr >= low) & (truth.snr < high)
        n_true[i] = inside.sum()
        n_found[i] = (inside & (match >= 0)).sum()
        n_unflagged[i] = (inside & (match >= 0))[match >= 0].sum() and unflagged[match[inside & (match >= 0)]].sum()
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
        n_true=n_true,
        n_found=n_found,
        n_found_unflagged=n_unflagged,
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


@dataclass(slots=True)
class Regions:
    """The places of an image, as numbers into `PLACES`."""

    label: np.ndarray

    def look_up(self, x, y):
        ny, nx = self.label.shape
        column, row = np.rint(np.asarray(x)).astype(int), np.rint(np.asarray(y)).astype(int)
        return self.label[np.clip(row, 0, ny - 1), np.clip(column, 0, nx - 1)]

    def shares(self) -> dict[str, float]:
        counts = np.bincount(self.label.ravel(), minlength=len(PLACES))
        return {name: float(count / self.label.size) for name, count in zip(PLACES, counts, strict=True)}


def make_regions(made: Field) -> Regions:
    """Say of each pixel which place it belongs to."""
    scene = made.scene
    label = np.full(made.science.shape, PLACES.index("elsewhere"), dtype=np.uint8)
    galaxies = scene.galaxies
    bright = galaxies.flux > GALAXY_SNR * scene.point_noise
    _paint(label, galaxies.x[bright], galaxies.y[bright], GALAXY_REACH, PLACES.index("near galaxies"))
    stars, full = scene.stars, compute_saturated_flux(scene.parameters)
    bright = (stars.flux > BRIGHT_SNR * scene.point_noise) & (stars.flux < full)
    _paint(label, stars.x[bright], stars.y[bright], BRIGHT_REACH, PLACES.index("near bright stars"))
    defects = (made.science.mask & plane_bits("CR", "BAD", "NO_DATA")) != 0
    defects |= (made.template.mask & plane_bits("BAD", "NO_DATA")) != 0
    _paint_mask(label, defects, DEFECT_REACH, PLACES.index("near defects"))
    saturated = stars.flux >= full
    number = PLACES.index("near saturated stars")
    _paint(label, stars.x[saturated], stars.y[saturated], SATURATED_REACH, number)
    wells = ((made.science.mask | made.template.mask) & plane_bits("SAT")) != 0
    _paint_mask(label, wells, 10.0, number)
    return Regions(label)


def _paint(label, x, y, radius: float, number: int) -> None:
    half = int(np.ceil(radius))
    for xi, yi in zip(x, y, strict=True):
        rows = slice(max(0, int(yi) - half), max(0, int(yi) + half + 2))
        columns = slice(max(0, int(xi) - half), max(0, int(xi) + half + 2))
        part = label[rows, columns]
        if part.size:
            v, u = np.mgrid[rows.start : rows.start + part.shape[0], columns.start : columns.start + part.shape[1]]
            part[np.hypot(u - xi, v - yi) <= radius] = number


def _paint_mask(label, mask, radius: float, number: int) -> None:
    if mask.any():
        label[distance_transform_edt(~mask) <= radius] = number


def compute_pulls(difference):
    """Return image over standard error, NaN where the difference says nothing; float32."""
    usable = difference.masked_image.usable(plane_bits(*NOT_SKY_PLANES))
    pulls = np.full(difference.shape, np.nan, dtype=np.float32)
    pulls[usable] = difference.image[usable] / np.sqrt(difference.variance[usable])
    return pulls


def find_sky(made: Field, truth: Truth):
    """Return pixels with no light to speak of in either image, by the truth alone."""
    sigma = float(np.sqrt(compute_sky_variance(made.scene.parameters)))
    sky = made.static < 0.2 * sigma
    _blank_changes(sky, made, truth)
    return sky


def find_sources(made: Field, truth: Truth):
    """Return pixels on stars and galaxies that did not change."""
    sigma = float(np.sqrt(compute_sky_variance(made.scene.parameters)))
    lit = made.static > sigma
    _blank_changes(lit, made, truth)
    return lit


def _blank_changes(mask, made: Field, truth: Truth) -> None:
    changes = made.scene.changes
    ny, nx = mask.shape
    for i in range(len(changes)):
        reach = int(16 + 0.5 * np.hypot(changes.trail_x[i], changes.trail_y[i]) + 6 * (truth.snr[i] > 50))
        column, row = round(changes.x[i]), round(changes.y[i])
        mask[max(0, row - reach) : min(ny, row + reach + 1), max(0, column - reach) : min(nx, column + reach + 1)] = (
            False
        )


def compute_correlation(pulls):
    """Return sums of products of pixels by lag and their numbers; the lags (dy >= 0, |dx| <= MAX_LAG)."""
    good = np.isfinite(pulls)
    centred = np.where(good, pulls - (np.mean(pulls[good]) if good.any() else 0.0), 0.0).astype(np.float32)
    # Bright residuals are for the pulls to tell; here noise is asked for.
    np.clip(centred, -5.0, 5.0, out=centred)
    shape = (MAX_LAG + 1, 2 * MAX_LAG + 1)
    sums, numbers = np.zeros(shape), np.zeros(shape)
    ny, nx = centred.shape
    for dy in range(MAX_LAG + 1):
        for dx in range(-MAX_LAG, MAX_LAG + 1):
            if dy == 0 and dx < 0:
                continue
            a = (slice(0, ny - dy), slice(max(0, -dx), nx - max(0, dx)))
            b = (slice(dy, ny), slice(max(0, dx), nx + min(0, dx)))
            sums[dy, dx + MAX_LAG] = np.einsum("ij,ij->", centred[a], centred[b], dtype=np.float64)
            numbers[dy, dx + MAX_LAG] = np.count_nonzero(good[a] & good[b])
    return sums, numbers


def choose_stars(made: Field):
    """Return the brightest stars that are saturated in neither image, whole and alone: indices, brightest first."""
    scene, stars = made.scene, made.scene.stars
    wanted = int(np.clip(round(100 * scene.parameters.scale(scene.size)), 12, 100))
    size = scene.size
    reach = 10
    inside = (stars.x > 30) & (stars.x < size - 31) & (stars.y > 30) & (stars.y < size - 31)
    alone = inside & (stars.flux < compute_saturated_flux(scene.parameters))
    if len(scene.changes):
        alone &= (
            cKDTree(np.stack([scene.changes.x, scene.changes.y], axis=-1)).query(np.stack([stars.x, stars.y], axis=-1))[
                0
            ]
            > 30.0
        )
    bits = plane_bits("SAT", "BAD", "CR", "NO_DATA")
    chosen = []
    for i in np.argsort(-stars.flux):
        if not alone[i]:
            continue
        rows = slice(round(stars.y[i]) - reach, round(stars.y[i]) + reach + 1)
        columns = slice(round(stars.x[i]) - reach, round(stars.x[i]) + reach + 1)
        if ((made.science.mask[rows, columns] | made.template.mask[rows, columns]) & bits).any():
            continue
        chosen.append(int(i))
        if len(chosen) == wanted:
            break
    return chosen


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
    return {
        "dipoles": (int((moving & found).sum()), int((moving & is_dipole).sum())),
        "called_dipoles": (int((transient & found).sum()), int((transient & is_dipole).sum())),
        "trails": (int(trail.sum()), len(rows), int(measured.sum())),
        "trail_length": (length / true_length)[measured],
        "trail_angle": ((angle - true_angle + 90.0) % 180.0 - 90.0)[measured],
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


def compute_width(pulls: Pulls) -> tuple[float, float]:
    """Return the robust width and its standard error: that of quartiles, or of the fields' scatter where larger."""
    if not pulls.quartiles:
        return np.nan, np.nan
    n = np.array([q[0] for q in pulls.quartiles], dtype=float)
    widths = np.array([_IQR_TO_SIGMA * (q[2] - q[1]) for q in pulls.quartiles])
    mean = float(np.average(widths, weights=n))
    error = 1.36 / np.sqrt(2.0 * n.sum()) * mean
    if len(n) > 2:
        error = max(error, float(widths.std(ddof=1) / np.sqrt(len(n))))
    return mean, error


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


def compute_lags(products, numbers):
    """Return the correlation by lag; 1 at none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = products / numbers
    return mean / mean[0, MAX_LAG]


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
        note=f"robust {_IQR_TO_SIGMA * (high - low):.3f}, largest {np.abs(values).max():.1f}",
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
    length, angle = (np.concatenate([getattr(t, n) for t in tallies]) for n in ("trail_length", "trail_angle"))
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
