"""Many rows found, made or changed at once, each with its own values: one statement for all of them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from django.db import connection, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.sql.compiler import SQLCompiler


@models.Field.register_lookup
@models.ForeignObject.register_lookup
class Among(models.Lookup):
    """``pk__among=keys``: as ``pk__in``, with the keys as one value of the statement.

    ``__in`` makes an expression of each of them, which for five hundred takes longer to write than to carry out.
    """

    lookup_name = "among"
    prepare_rhs = False

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, tuple[Any, ...]]:
        column, parameters = self.process_lhs(compiler, connection)
        field = getattr(
            self.lhs, "target", self.lhs.output_field
        )  # of the column, not of the relation by which it was found
        if connection.vendor == "sqlite":
            values = [field.get_db_prep_value(getattr(value, "pk", value), connection) for value in self.rhs]
            return f"{column} IN (SELECT value FROM json_each(%s))", (*parameters, json.dumps(values))  # noqa: S608
        array, parameter = _array(field, list(self.rhs))
        return f"{column} = ANY({array})", (*parameters, parameter)


@contextmanager
def _cursor() -> Iterator[Any]:
    """A cursor for a megabyte of values. On PostgreSQL they travel beside the statement, each as what it is.

    Django has them written into it, where they are quoted by us and read by the server byte by byte: twice the time of both.
    """
    if connection.vendor != "postgresql":
        with connection.cursor() as cursor:
            yield cursor
        return
    from django.db.backends.postgresql.base import ServerBindingCursor

    connection.ensure_connection()
    usual, connection.connection.cursor_factory = connection.connection.cursor_factory, ServerBindingCursor
    try:
        cursor = connection.cursor()
    finally:
        connection.connection.cursor_factory = usual
    with cursor:
        yield cursor


def update_rows(model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]], **only: Any) -> int:
    """Set ``columns`` of each row to its values, where the row still has what ``only`` says; how many rows changed.

    ``rows`` are ``(primary key, value, …)``. Django's ``bulk_update`` makes one statement with a CASE for each value, which takes longer to
    write than to carry out. Here PostgreSQL has a column of values for each column of the table, SQLite one statement prepared for all.
    """
    key = model._meta.pk
    assert key is not None
    values = list(rows)
    if not values:
        return 0
    table, quote = connection.ops.quote_name(model._meta.db_table), connection.ops.quote_name
    fields = [model._meta.get_field(name) for name in columns]
    conditions = [model._meta.get_field(name) for name in only]
    fixed = [_stored(field, value) for field, value in zip(conditions, only.values(), strict=True)]
    # PostgreSQL must not count on how rare that is: what its statistics have not heard of yet it believes to be one row, and then
    # compares each of thousands with each of these.
    where = [f"CASE WHEN {table}.{quote(str(field.column))} = %s THEN TRUE END" for field in conditions]  # type: ignore[union-attr]
    with _cursor() as cursor:
        if connection.vendor == "sqlite":
            changes = ", ".join(f"{quote(str(field.column))} = %s" for field in fields)  # type: ignore[union-attr]
            where = [f"{quote(str(key.column))} = %s", *where]
            statement = f"UPDATE {table} SET {changes} WHERE {' AND '.join(where)}"  # noqa: S608 - names of columns
            fields.append(key)
            prepared = (
                [_stored(field, value) for field, value in zip(fields, (*others, pk), strict=True)]
                for pk, *others in values
            )
            cursor.executemany(statement, [(*row, *fixed) for row in prepared])
        else:
            cursor.execute(*_update(table, key, fields, values, where, fixed))
        return int(cursor.rowcount)


def _update(
    table: str,
    key: Any,
    fields: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    where: Sequence[str],
    fixed: Sequence[Any],
) -> tuple[str, list[Any]]:
    """PostgreSQL's statement for all rows, and its parameters. What is the same in all of them is said once."""
    quote = connection.ops.quote_name
    keys, *columns = zip(*rows, strict=True)
    changes, said = [], []
    array, parameter = _array(key, keys)
    arrays, given, names = [array], [parameter], ["given0"]
    for field, values in zip(fields, columns, strict=True):
        if all(value == values[0] for value in values):
            changes.append(f"{quote(field.column)} = %s")
            said.append(_stored(field, values[0]))
        else:
            names.append(f"given{len(names)}")
            changes.append(f"{quote(field.column)} = {names[-1]}")
            array, parameter = _array(field, values)
            arrays.append(array)
            given.append(parameter)
    # The keys once more, as a list: or all rows of a table that is not large yet would be read for a thousand of them.
    where = [f"{table}.{quote(key.column)} = given0", f"{table}.{quote(key.column)} = ANY({arrays[0]})", *where]
    statement = (
        f"UPDATE {table} SET {', '.join(changes)} FROM UNNEST({', '.join(arrays)}) AS given({', '.join(names)}) "  # noqa: S608
        f"WHERE {' AND '.join(where)}"
    )
    return statement, [*said, *given, given[0], *fixed]


_PLAIN = {"UUIDField", "AutoField", "BigAutoField", "IntegerField", "BigIntegerField", "PositiveBigIntegerField"}


def _array(field: Any, values: Sequence[Any]) -> tuple[str, Any]:
    """An array of a column's type for PostgreSQL: the expression and its parameter.

    Where no value has a comma they are joined, which costs a tenth of what the driver takes to quote each of them.
    """
    while field.is_relation:
        field = field.target_field
    kind, of = field.get_internal_type(), field.db_type(connection)
    if kind in _PLAIN:
        text = ",".join(["" if value is None else str(getattr(value, "pk", value)) for value in values])
        return f"string_to_array(%s, ',', '')::{of}[]", text
    if kind == "BinaryField":
        return f"%b::{of}[]", [value if value is None else bytes(value) for value in values]
    return f"%s::{of}[]", [_stored(field, value) for value in values]


def _stored(field: Any, value: Any) -> Any:
    """As the driver takes it. One of a list of choices is its value: a column of them is all of one type."""
    value = getattr(value, "pk", value)
    return field.get_db_prep_save(value.value if isinstance(value, Enum) else value, connection)


def insert_rows(pattern: models.Model, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Make a row like ``pattern`` of each of ``rows``, which are values of ``columns``; how many.

    In the order of ``rows``. What would break a unique constraint is left out. Django's ``bulk_create`` makes an object and its columns one
    by one for each row, which takes longer than to store them.
    """
    quote = connection.ops.quote_name
    given: list[Any] = [pattern._meta.get_field(name) for name in columns]
    # A key that the database counts up itself is left to it.
    fixed = [field for field in pattern._meta.concrete_fields if field not in given and field.db_returning is False]
    values = [field.get_db_prep_save(field.pre_save(pattern, add=True), connection) for field in fixed]
    names = ", ".join(quote(str(field.column)) for field in (*given, *fixed))
    into = f"INSERT INTO {quote(pattern._meta.db_table)} ({names})"
    with _cursor() as cursor:
        if connection.vendor == "sqlite":
            each = ", ".join(["%s"] * (len(given) + len(fixed)))
            prepared = [[_stored(field, value) for field, value in zip(given, row, strict=True)] for row in rows]
            cursor.executemany(f"{into} VALUES ({each}) ON CONFLICT DO NOTHING", [[*row, *values] for row in prepared])
        else:
            given_columns = list(zip(*rows, strict=True)) or [()] * len(given)
            arrays, parameters = zip(*map(_array, given, given_columns), strict=True)
            listed = f"SELECT given.*{', %s' * len(fixed)} FROM UNNEST({', '.join(arrays)}) AS given"  # noqa: S608 - types of columns
            cursor.execute(f"{into} {listed} ON CONFLICT DO NOTHING", [*values, *parameters])
        return max(0, int(cursor.rowcount))
