"""Boxes of pixels, world coordinates, the sphere."""
