"""Exposures and their files."""
