"""Many rows made or changed at once, each with its own values: one statement for all of them."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection, models


def update_rows(model: type[models.Model], columns: Sequence[str], rows: Iterable[Sequence[Any]], **only: Any) -> int:
    """Set ``columns`` of each row to its values, where the row still has what ``only`` says; how many rows changed.

    ``rows`` are ``(primary key, value, …)``. Django's ``bulk_update`` makes one statement with a CASE for each value, which takes longer to
    write than to carry out; this is prepared once (PostgreSQL: in a pipeline).
    """
    fields = [model._meta.get_field(name) for name in columns]
    conditions = [model._meta.get_field(name) for name in only]
    key = model._meta.pk
    assert key is not None

    def stored(field: Any, value: Any) -> Any:
        return field.get_db_prep_save(getattr(value, "pk", value), connection)

    fixed = [stored(field, value) for field, value in zip(conditions, only.values(), strict=True)]
    parameters = [
        (
            *(stored(field, value) for field, value in zip(fields, values, strict=True)),
            stored(key, pk),
            *fixed,
        )
        for pk, *values in rows
    ]
    if not parameters:
        return 0
    quote = connection.ops.quote_name
    changes = ", ".join(f"{quote(str(field.column))} = %s" for field in fields)  # type: ignore[union-attr]
    where = " AND ".join(f"{quote(str(field.column))} = %s" for field in (key, *conditions))  # type: ignore[union-attr]
    with connection.cursor() as cursor:
        cursor.executemany(f"UPDATE {quote(model._meta.db_table)} SET {changes} WHERE {where}", parameters)  # noqa: S608 - names of columns
        return int(cursor.rowcount)


def insert_rows(
    pattern: models.Model, columns: Sequence[str], rows: "models.QuerySet[Any, Any] | Iterable[Sequence[Any]]"
) -> int:
    """Make a row like ``pattern`` of each of ``rows``, which are values of ``columns``, or a query for them; how many.

    One statement, in the order of ``rows``. What would break a unique constraint is left out. Django's ``bulk_create`` makes an object and
    its columns one by one for each row, which takes longer than to store them.
    """
    quote = connection.ops.quote_name
    given = [pattern._meta.get_field(name) for name in columns]
    # A key that the database counts up itself is left to it.
    fixed = [field for field in pattern._meta.concrete_fields if field not in given and field.db_returning is False]
    names = ", ".join(quote(str(field.column)) for field in (*given, *fixed))  # type: ignore[union-attr]
    values = [field.get_db_prep_save(field.pre_save(pattern, add=True), connection) for field in fixed]
    query, parameters = _query(rows) if isinstance(rows, models.QuerySet) else _listed(given, rows)
    statement = (
        f"INSERT INTO {quote(pattern._meta.db_table)} ({names}) "  # noqa: S608 - names of columns
        f"SELECT given.*{', %s' * len(fixed)} FROM ({query}) AS given WHERE TRUE ON CONFLICT DO NOTHING"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, [*values, *parameters])
        return int(cursor.rowcount)


def _query(rows: "models.QuerySet[Any, Any]") -> tuple[str, Sequence[Any]]:
    return rows.query.sql_with_params()


def _listed(fields: Sequence[Any], rows: Iterable[Sequence[Any]]) -> tuple[str, Sequence[Any]]:
    """Rows as one value: however many, the database has one statement to read."""
    text = json.dumps(
        [[field.get_db_prep_save(value, connection) for field, value in zip(fields, row, strict=True)] for row in rows],
        default=str,
    )
    if connection.vendor == "sqlite":
        values = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(len(fields)))
        return f"SELECT {values} FROM json_each(%s)", [text]  # noqa: S608 - numbers
    values = ", ".join(f"(value->>{number})::{field.db_type(connection)}" for number, field in enumerate(fields))
    return f"SELECT {values} FROM json_array_elements(%s::json)", [text]  # noqa: S608 - types of columns
