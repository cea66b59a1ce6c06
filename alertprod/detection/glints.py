"""Glint trails: detections in a row, left by something that tumbles and flashes while it crosses the field."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import betainc

from alertprod._ranges import require_ranges
from alertprod._typing import BoolArray, FloatArray, IntArray

_HALF_WIDTHS = (0.1, 0.2, 0.5, 1.0)
"""Half-widths of the strips that are tried, in units of `max_rms`: in a narrow one fewer points are there by chance."""

_MAX_NEIGHBOURS = 100
"""Of a point, the nearest ones that are looked at: among more there is no telling a row."""

_APART = 0.1
"""Share of a row's length within which points count as one: two clumps are no row, however many points each has."""

_PROLONG_RMS = 4.0
"""Points within so many rms of a row's line belong to it, where that is more than the strip it was found in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlintTrailConfig:
    """What makes a row of points a trail; lengths in pixels."""

    min_points: int = 5
    """Fewest points on a trail, the reference's."""

    radius: float = 500.0
    """Points within this of one another are looked at together, the reference's."""

    max_rms: float = 15.0
    """Largest rms distance of a trail's points from its line, the reference's."""

    max_by_chance: float = 0.01
    """Trails that points strewn at random, as many as lie about this one, would show on the whole image: among 300
    detections five within 15 pixels of some line are the rule."""

    max_lines: int = 40
    """Lines tried through each point; all where it has fewer neighbours."""

    seed: int = 42
    """Of the choice of lines where there are more, the reference's."""

    def __post_init__(self) -> None:
        if self.min_points < 3:
            msg = f"min_points is {self.min_points}; any two points lie on a line, so it is 3 or more"
            raise ValueError(msg)
        require_ranges(
            self,
            radius=(1.0, 1e9),
            max_rms=(1e-3, 1e6),
            max_by_chance=(1e-30, 1e30),
            max_lines=(1, 100_000),
            seed=(0, 2**63),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GlintTrail:
    """A row of points.

    Parameters
    ----------
    members
        Indices of its points, along the line.
    x, y
        Their middle, pixels.
    angle
        Direction of the line, radians from x towards y, in (-pi/2, pi/2].
    length
        From the first member to the last, pixels.
    rms
        Of the members about the line, pixels.
    """

    members: IntArray
    x: float
    y: float
    angle: float
    length: float
    rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GlintTrails:
    """What was found: `is_glint` of each point, shape ``(n,)``, and the trails, longest row first."""

    is_glint: BoolArray
    trails: tuple[GlintTrail, ...]


def find_glint_trails(*, x: FloatArray, y: FloatArray, config: GlintTrailConfig | None = None) -> GlintTrails:
    """Find rows of points.

    Parameters
    ----------
    x, y
        Positions of the detections, shape ``(n,)``, pixels; points that are not finite belong to no trail.
    config
        `GlintTrailConfig`.

    Notes
    -----
    Lines are drawn through each point and neighbours of it (random sample consensus, seeded, where they are many). A
    row of k points that reaches as far as L counts when so many are not to be expected of points strewn at random:
    of the m others within L of the first, a strip of half-width h holds a share p = 4 h / (pi L), so that beside the
    two that define the line k - 2 or more lie in it with probability ``I_p(k - 2, m - k + 2)``. This times the lines
    tried is what `max_by_chance` limits. Points closer together than the strip is wide say nothing of a direction and
    count as one, and so do those that are close for the length of the row: the debris about
    bright stars is no row. The best row is taken, fitted, prolonged as long as points
    go on with at most twice its widest gap, and the search goes on without it.
    """
    config = config or GlintTrailConfig()
    points = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1)
    is_glint = np.zeros(len(points), dtype=bool)
    free = np.isfinite(points).all(axis=1)
    trails: list[GlintTrail] = []
    while free.sum() >= config.min_points:
        index = np.flatnonzero(free)
        row = _find_best_row(points[index], config)
        if row is None:
            break
        start, half_width = row
        members = _prolong(points, index[start], index, half_width, config)
        is_glint[members], free[members] = True, False
        trails.append(_describe(points, members))
    trails.sort(key=lambda trail: -len(trail.members))
    return GlintTrails(is_glint=is_glint, trails=tuple(trails))


def _find_best_row(points: FloatArray, config: GlintTrailConfig) -> tuple[IntArray, float] | None:
    """Return the members of the row least to be expected by chance and its half-width; None where none is good."""
    rng = np.random.default_rng(config.seed)
    rows: list[tuple[float, IntArray, float]] = []
    n_lines = 0
    for half_width in config.max_rms * np.array(_HALF_WIDTHS):
        kept = _thin(points, 2.0 * half_width)
        if len(kept) < config.min_points:
            continue
        thinned = points[kept]
        n_asked = min(len(thinned), _MAX_NEIGHBOURS + 1)
        distance, neighbours = cKDTree(thinned).query(thinned, k=n_asked, distance_upper_bound=config.radius)
        for center, around in enumerate(neighbours):
            others = around[np.isfinite(distance[center]) & (around != center)]
            if len(others) + 1 < config.min_points:
                continue
            n_tried, chance, members = _best_line(thinned, center, others, half_width, config, rng)
            n_lines += n_tried
            if chance < 1.0 and _count_apart(thinned[members]) >= config.min_points:
                rows.append((chance, kept[members], half_width))
    if not rows:
        return None
    chance, members, half_width = min(rows, key=lambda row: (row[0], row[2], row[1].tolist()))
    return (members, half_width) if chance * n_lines <= config.max_by_chance else None


def _count_apart(points: FloatArray) -> int:
    """Return how many points of a row are apart from one another by a tenth of its length."""
    middle, direction = _fit_line(points)
    along = np.sort((points - middle) @ direction)
    count, last = 0, -np.inf
    for position in along.tolist():
        if position - last >= _APART * (along[-1] - along[0]):
            count, last = count + 1, position
    return count


def _thin(points: FloatArray, distance: float) -> IntArray:
    """Return indices of points no two of which are within `distance`; of a group the first ones stay."""
    kept = np.ones(len(points), dtype=bool)
    for i, around in enumerate(cKDTree(points).query_ball_point(points, distance)):
        if kept[i]:
            later = np.array([j for j in around if j > i], dtype=np.int64)
            kept[later] = False
    return np.flatnonzero(kept)


def _best_line(
    points: FloatArray,
    center: int,
    others: IntArray,
    half_width: float,
    config: GlintTrailConfig,
    rng: np.random.Generator,
) -> tuple[int, float, IntArray]:
    """Return how many lines through a point were tried, the probability of the best row, and its members."""
    offsets = points[others] - points[center]
    distance = np.hypot(offsets[:, 0], offsets[:, 1])
    order = np.argsort(distance, kind="stable")
    others, offsets, distance = others[order], offsets[order], distance[order]
    n = len(others)
    chosen = np.arange(n) if n <= config.max_lines else np.sort(rng.choice(n, config.max_lines, replace=False))
    unit = offsets[chosen] / distance[chosen, None]
    inside = np.abs(unit[:, 1:] * offsets[:, 0] - unit[:, :1] * offsets[:, 1]) <= half_width
    # Rows end at one of their points, and hold the point that gave the line.
    n_members = 1 + np.cumsum(inside, axis=1)
    is_row = inside & (n_members >= config.min_points) & (np.arange(n) >= chosen[:, None])
    lines, ends = np.nonzero(is_row)
    if not len(lines):
        return len(chosen), 1.0, np.zeros(0, dtype=np.int64)
    share = np.minimum(1.0, 4.0 * half_width / (np.pi * distance[ends]))
    hits = n_members[lines, ends] - 2
    chance = betainc(hits, ends - hits + 1, share)
    best = int(np.argmin(chance))
    members = others[: ends[best] + 1][inside[lines[best], : ends[best] + 1]]
    return len(chosen), float(chance[best]), np.append(members, center)


def _prolong(
    points: FloatArray, members: IntArray, free: IntArray, half_width: float, config: GlintTrailConfig
) -> IntArray:
    """Return the members of a row among the free points, along its line, those at and beyond its ends too."""
    for _ in range(len(free)):
        middle, direction = _fit_line(points[members])
        along = (points[free] - middle) @ direction
        normal = np.array([-direction[1], direction[0]])
        rms = float(np.sqrt(np.mean(((points[members] - middle) @ normal) ** 2)))
        is_near = np.abs((points[free] - middle) @ normal) <= min(config.max_rms, max(half_width, _PROLONG_RMS * rms))
        near, along = free[is_near], along[is_near]
        order = np.argsort(along, kind="stable")
        near, along = near[order], along[order]
        row = np.sort((points[members] - middle) @ direction)
        allowed = min(config.radius, 2.0 * float(np.diff(row).max()))
        run = np.concatenate([[0], np.cumsum(np.diff(along) > allowed)])
        # Of the runs without a wide gap the one with most of the row.
        shares = np.bincount(run, weights=np.isin(near, members).astype(float))
        longer = near[run == int(np.argmax(shares))]
        if len(longer) <= len(members):
            break
        members = longer
    return members


def _fit_line(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the middle of the points and the unit vector along them, x component not negative."""
    middle = points.mean(axis=0)
    direction = np.linalg.svd(points - middle, full_matrices=False)[2][0]
    if direction[0] < 0 or (direction[0] == 0 and direction[1] < 0):
        direction = -direction
    return middle, direction


def _describe(points: FloatArray, members: IntArray) -> GlintTrail:
    middle, direction = _fit_line(points[members])
    along = (points[members] - middle) @ direction
    across = (points[members] - middle) @ np.array([-direction[1], direction[0]])
    return GlintTrail(
        members=members[np.argsort(along, kind="stable")],
        x=float(middle[0]),
        y=float(middle[1]),
        angle=float(np.arctan2(direction[1], direction[0])),
        length=float(along.max() - along.min()),
        rms=float(np.sqrt(np.mean(across**2))),
    )
