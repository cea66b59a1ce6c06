"""Measuring what was found."""
