"""The daemon, its workers and the six steps of an exposure."""
