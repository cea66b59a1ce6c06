"""Warping onto another pixel grid."""
