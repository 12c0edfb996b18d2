"""Boots a version in a virtual PC and reports what it could not write, and what failed: the path that should be volatile."""
