"""Integer pixel boxes, half-open: ``x_max`` and ``y_max`` are the first column and row outside."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of whole pixels, ``x_min <= x < x_max`` and ``y_min <= y < y_max``; may be empty."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    @classmethod
    def from_shape(cls, shape: tuple[int, ...]) -> "Box":
        """Return the box of an array of shape ``(ny, nx)`` whose first pixel is (0, 0)."""
        return cls(x_min=0, y_min=0, x_max=shape[1], y_max=shape[0])

    @classmethod
    def centered(cls, *, x: float, y: float, size: int) -> "Box":
        """Return the square of `size` pixels whose centre is nearest to (x, y).

        The point lies at ``(size - 1) / 2`` from the box's first pixel, give or take half a pixel.
        """
        x_min = round(x - size / 2 + 0.5)
        y_min = round(y - size / 2 + 0.5)
        return cls(x_min=x_min, y_min=y_min, x_max=x_min + size, y_max=y_min + size)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; zero where the box is empty."""
        return max(0, self.y_max - self.y_min), max(0, self.x_max - self.x_min)

    @property
    def area(self) -> int:
        """Number of pixels."""
        ny, nx = self.shape
        return ny * nx

    @property
    def slices(self) -> tuple[slice, slice]:
        """The (y, x) slices of an array that starts at pixel (0, 0); the box must not reach below it."""
        if self.x_min < 0 or self.y_min < 0:
            msg = f"{self} reaches below pixel (0, 0): negative slices would wrap"
            raise ValueError(msg)
        return slice(self.y_min, self.y_max), slice(self.x_min, self.x_max)

    def intersection(self, other: "Box") -> "Box":
        """Return the pixels in both; empty (area 0) where there are none."""
        return Box(
            x_min=max(self.x_min, other.x_min),
            y_min=max(self.y_min, other.y_min),
            x_max=min(self.x_max, other.x_max),
            y_max=min(self.y_max, other.y_max),
        )

    def grown(self, pixels: int) -> "Box":
        """Return the box moved out by `pixels` on each side (in, where negative)."""
        return Box(
            x_min=self.x_min - pixels,
            y_min=self.y_min - pixels,
            x_max=self.x_max + pixels,
            y_max=self.y_max + pixels,
        )

    def contains(self, *, x: float, y: float) -> bool:
        """Say whether a point lies on the box's pixels, whose centres are whole numbers."""
        return self.x_min - 0.5 <= x < self.x_max - 0.5 and self.y_min - 0.5 <= y < self.y_max - 0.5

    def contains_box(self, other: "Box") -> bool:
        """Say whether `other` lies wholly inside."""
        return (
            self.x_min <= other.x_min
            and self.y_min <= other.y_min
            and other.x_max <= self.x_max
            and other.y_max <= self.y_max
        )
