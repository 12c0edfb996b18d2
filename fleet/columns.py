"""Columns read as what costs least, for thousands of rows: to make a datetime or a UUID of each value takes longer than to read it."""

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField, FloatField, Func
from django.db.models.sql.compiler import SQLCompiler


class Epoch(Func):
    """Seconds since 1970 of a time in the database, to the millisecond at least; None where there is none."""

    template = "DATE_PART('epoch', %(expressions)s)"
    output_field = FloatField()

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        return self.as_sql(
            compiler, connection, template="(JULIANDAY(%(expressions)s) - 2440587.5) * 86400.0", **context
        )


class Text(Func):
    """A UUID as ``str`` writes it; None where there is none."""

    template = "(%(expressions)s)::text"
    output_field = CharField()

    def as_sqlite(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        places = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
        parts = (f"SUBSTR(%(expressions)s, {start}, {length})" for start, length in places)
        return self.as_sql(compiler, connection, template=" || '-' || ".join(parts), **context)
