"""Points and polygons on the sphere; no singularity at the poles or at RA 0, because all is unit vectors."""

import numpy as np

from alertprod._typing import BoolArray, FloatArray

ARCSEC_PER_DEG = 3600.0


def unit_vectors(ra_deg: FloatArray | float, dec_deg: FloatArray | float) -> FloatArray:
    """Return unit vectors, shape ``(..., 3)``, of ICRS positions in degrees."""
    ra, dec = np.radians(np.asarray(ra_deg, dtype=float)), np.radians(np.asarray(dec_deg, dtype=float))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def sky_positions(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ICRS (ra, dec) in degrees, RA in [0, 360), of vectors of any positive length, shape ``(..., 3)``."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arctan2(z, np.hypot(x, y)))


def east_and_north(ra_deg: FloatArray | float, dec_deg: FloatArray | float) -> tuple[FloatArray, FloatArray]:
    """Return unit vectors, shape ``(..., 3)``, that point east and north at ICRS positions in degrees."""
    ra, dec = np.radians(np.asarray(ra_deg, dtype=float)), np.radians(np.asarray(dec_deg, dtype=float))
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    north = np.stack([-np.sin(dec) * np.cos(ra), -np.sin(dec) * np.sin(ra), np.cos(dec)], axis=-1)
    return east, north


def separation_arcsec(
    ra1_deg: FloatArray | float, dec1_deg: FloatArray | float, ra2_deg: FloatArray | float, dec2_deg: FloatArray | float
) -> FloatArray:
    """Return angular separations in arcsec; accurate from zero to 180 degrees (chord and its complement)."""
    a, b = unit_vectors(ra1_deg, dec1_deg), unit_vectors(ra2_deg, dec2_deg)
    chord = np.linalg.norm(a - b, axis=-1)
    complement = np.linalg.norm(a + b, axis=-1)
    return np.degrees(2.0 * np.arctan2(chord, complement)) * ARCSEC_PER_DEG


class SphericalPolygon:
    """A convex polygon on the sphere, bounded by great circles; smaller than a hemisphere.

    Parameters
    ----------
    vertices
        Unit vectors, shape ``(n, 3)`` with n >= 3, counter-clockwise as seen from outside the sphere. Use `hull`
        for points in any order.

    Raises
    ------
    ValueError
        Raised if the vertices are no convex polygon of a positive area, or reach beyond 85 degrees from their centre.

    Notes
    -----
    Neither the poles nor RA 0 are special: a point is inside when it is on the inner side of the plane of every
    edge. In the gnomonic projection about any point of their common hemisphere great circles are straight lines,
    so that what holds for convex polygons of the plane holds here.
    """

    def __init__(self, vertices: FloatArray) -> None:
        vertices = np.asarray(vertices, dtype=float)
        if vertices.ndim != 2 or vertices.shape[0] < 3 or vertices.shape[1] != 3:
            msg = f"vertices of shape {vertices.shape}; (3 or more, 3) is needed"
            raise ValueError(msg)
        following = np.roll(vertices, -1, axis=0)
        normals = np.cross(vertices, following)
        lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
        if not np.all(lengths > 0):  # NaN too
            msg = "two vertices that follow one another coincide, or a vertex is not finite"
            raise ValueError(msg)
        self.vertices = vertices
        self.normals = normals / lengths
        """Unit normals of the edges' planes, pointing inwards; edge i runs from vertex i to the next."""
        middle = vertices.mean(axis=0)
        self.center: FloatArray = middle / np.linalg.norm(middle)
        """Unit vector in the direction of the vertices' mean."""
        self._cos_radius = float((vertices @ self.center).min())
        if self._cos_radius < np.cos(np.radians(_MAX_POLYGON_RADIUS_DEG)):
            msg = f"the polygon reaches beyond {_MAX_POLYGON_RADIUS_DEG} degrees from its centre"
            raise ValueError(msg)
        if (vertices @ self.normals.T).min() < -_NOT_CONVEX:
            msg = "the vertices are no convex polygon, counter-clockwise from outside"
            raise ValueError(msg)

    @classmethod
    def hull(cls, ra_deg: FloatArray, dec_deg: FloatArray) -> "SphericalPolygon":
        """Build the convex hull of points within one hemisphere, ICRS degrees, shape ``(n,)``, in any order.

        Raises
        ------
        ValueError
            Raised if fewer than three of the points span an area, or they do not fit a hemisphere, or are not finite.
        """
        points = unit_vectors(np.ravel(ra_deg), np.ravel(dec_deg))
        if len(points) < 3 or not np.all(np.isfinite(points)):
            msg = f"{len(points)} points, some perhaps not finite, have no hull"
            raise ValueError(msg)
        center = points.mean(axis=0)
        east, north, up = _tangent_axes(center)
        depth = points @ up
        if depth.min() < np.cos(np.radians(_MAX_POLYGON_RADIUS_DEG)):
            msg = f"the points reach beyond {_MAX_POLYGON_RADIUS_DEG} degrees from their centre"
            raise ValueError(msg)
        x, y = (points @ east) / depth, (points @ north) / depth
        step = _HULL_RESOLUTION * max(np.ptp(x), np.ptp(y), _ON_EDGE)
        # Of points that nearly coincide one is enough: an edge between them would point anywhere.
        _, kept = np.unique(np.round(np.stack([x, y]) / step), axis=1, return_index=True)
        return cls(points[kept[_hull_indices(x[kept], y[kept])]])

    @classmethod
    def cap(cls, *, ra_deg: float, dec_deg: float, radius_arcsec: float, n_vertices: int = 32) -> "SphericalPolygon":
        """Build the regular polygon that a cap just fits into, at most ``radius / cos(pi / n_vertices)`` wide."""
        east, north, up = _tangent_axes(unit_vectors(ra_deg, dec_deg))
        angle = np.arange(n_vertices) * 2.0 * np.pi / n_vertices
        size = np.tan(np.radians(radius_arcsec / ARCSEC_PER_DEG)) / np.cos(np.pi / n_vertices)
        vertices = up + size * (np.cos(angle)[:, None] * east + np.sin(angle)[:, None] * north)
        return cls(vertices / np.linalg.norm(vertices, axis=-1, keepdims=True))

    @property
    def radius_arcsec(self) -> float:
        """Radius of the cap about `center` that holds the polygon."""
        chord = np.linalg.norm(self.vertices - self.center, axis=-1).max()
        return float(np.degrees(2.0 * np.arcsin(chord / 2.0)) * ARCSEC_PER_DEG)

    def contains(self, vectors: FloatArray) -> BoolArray:
        """Return which points are inside or on the edge; unit vectors of shape ``(..., 3)``, NaN is outside."""
        return np.asarray((np.asarray(vectors) @ self.normals.T >= -_ON_EDGE).all(axis=-1))

    def overlaps(self, other: "SphericalPolygon") -> bool:
        """Say whether two polygons have a point in common.

        Notes
        -----
        First the caps about them, which settles polygons that share no hemisphere (below 45 degrees of radius); then
        the separating axis theorem: convex polygons are disjoint exactly when an edge of one of them has the other
        wholly outside.
        """
        chord = float(np.linalg.norm(self.center - other.center))
        reach = np.radians((self.radius_arcsec + other.radius_arcsec) / ARCSEC_PER_DEG)
        if 2.0 * np.arcsin(min(1.0, chord / 2.0)) > reach + _ON_EDGE:
            return False
        if (other.vertices @ self.normals.T).max(axis=0).min() < -_ON_EDGE:
            return False
        return bool((self.vertices @ other.normals.T).max(axis=0).min() >= -_ON_EDGE)

    def compute_distance_arcsec(self, vectors: FloatArray) -> FloatArray:
        """Return the angle from points, unit vectors of shape ``(..., 3)``, to the polygon: 0 inside."""
        points = np.asarray(vectors, dtype=float)[..., None, :]
        start, end = self.vertices, np.roll(self.vertices, -1, axis=0)
        to_vertex = 2.0 * np.arcsin(np.minimum(1.0, np.linalg.norm(points - start, axis=-1) / 2.0))
        # The foot of the perpendicular lies on an edge when the point is between the planes at its two ends.
        beside = (points * np.cross(self.normals, start)).sum(-1) >= 0
        beside &= (points * np.cross(end, self.normals)).sum(-1) >= 0
        to_circle = np.abs(np.arcsin(np.clip((points * self.normals).sum(-1), -1.0, 1.0)))
        distance = np.where(beside, np.minimum(to_circle, to_vertex), to_vertex).min(axis=-1)
        return np.where(self.contains(vectors), 0.0, np.degrees(distance) * ARCSEC_PER_DEG)

    def compute_area_arcsec2(self) -> float:
        """Return the solid angle, by Girard's theorem on the triangles about `center`."""
        a, b = self.vertices, np.roll(self.vertices, -1, axis=0)
        c = self.center
        # Van Oosterom & Strackee (1983), eq. 8; no cancellation for small triangles, as angle sums have.
        volume = (np.cross(a, b) * c).sum(-1)
        below = 1.0 + (a * b).sum(-1) + a @ c + b @ c
        return float(np.degrees(np.degrees((2.0 * np.arctan2(volume, below)).sum())) * ARCSEC_PER_DEG**2)


_ON_EDGE = 1e-12
"""Radians (0.2 microarcsec): the rounding of products of unit vectors, far below any pixel."""

_HULL_RESOLUTION = 1e-7
"""Of a hull's extent: below a hundredth of a pixel of any detector."""

_NOT_CONVEX = 1e-8
"""Radians (2 milliarcsec): rounding of an edge's direction, 1e-16 / `_HULL_RESOLUTION`, with room."""

_MAX_POLYGON_RADIUS_DEG = 85.0
"""Short of the hemisphere, where the gnomonic projection ends."""


def _tangent_axes(vector: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return orthonormal (first, second, up), right-handed, up along `vector`; any turn about it."""
    up = vector / np.linalg.norm(vector)
    aside = np.eye(3)[np.argmin(np.abs(up))]
    first = np.cross(aside, up)
    first /= np.linalg.norm(first)
    return first, np.cross(up, first), up


def _hull_indices(x: FloatArray, y: FloatArray) -> list[int]:
    """Return the corners of the convex hull, counter-clockwise (Andrew's monotone chain, 1979)."""
    order = [int(i) for i in np.lexsort((y, x))]

    def chain(indices: list[int]) -> list[int]:
        kept: list[int] = []
        for i in indices:
            while len(kept) >= 2:
                a, b = kept[-2], kept[-1]
                if (x[b] - x[a]) * (y[i] - y[a]) - (y[b] - y[a]) * (x[i] - x[a]) > 0:
                    break
                kept.pop()
            kept.append(i)
        return kept[:-1]

    corners = chain(order) + chain(order[::-1])
    if len(corners) < 3:
        msg = "the points lie on one great circle: they have no hull"
        raise ValueError(msg)
    return corners
