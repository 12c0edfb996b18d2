"""Measurements of this project beside what others do: `make bench-…`. Each prints a table and a JSON line."""
