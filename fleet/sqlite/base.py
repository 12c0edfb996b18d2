"""SQLite changes few things of a table in place: Django makes a new one and drops the old, and its triggers with it.

Ours hold what must never change (ready versions, the audit chain), so a migration that forgot them would fail open.
"""

from typing import Any

from django.db.backends.sqlite3 import base, schema
from django.db.models import Model


class SchemaEditor(schema.DatabaseSchemaEditor):
    def _remake_table(self, model: type[Model], *args: Any, **kwargs: Any) -> None:
        with self.connection.cursor() as cursor:
            query = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = %s"
            triggers = [sql for (sql,) in cursor.execute(query, [model._meta.db_table]).fetchall()]
        super()._remake_table(model, *args, **kwargs)  # type: ignore[misc]
        for sql in triggers:
            self.execute(sql, params=None)


class DatabaseWrapper(base.DatabaseWrapper):
    SchemaEditorClass = SchemaEditor
