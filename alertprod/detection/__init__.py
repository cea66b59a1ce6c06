"""Finding what changed."""
