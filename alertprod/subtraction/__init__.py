"""Matching two images and subtracting them."""
