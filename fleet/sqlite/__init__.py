"""Django's SQLite backend, in which a table keeps its triggers when a migration changes it."""
