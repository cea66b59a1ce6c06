"""A simulated sky, night and camera, with the truth."""
