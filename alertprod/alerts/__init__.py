"""Packets, cutouts and their encoding."""
