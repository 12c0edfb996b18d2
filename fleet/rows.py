"""Many rows changed at once, each by its own values: one statement, sent with all of them."""

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
