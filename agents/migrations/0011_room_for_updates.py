"""Room on each page of what is written often: a new version of a row then lies beside the old one, and no index has to learn of it."""

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

# Presence, state and number of every client, several times a minute.
TABLES = ("agents_bootsession", "fleet_client")


def make_room(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        for table in TABLES:
            editor.execute(f'ALTER TABLE "{table}" SET (fillfactor = 50)')


class Migration(migrations.Migration):
    dependencies = [("agents", "0010_commands_by_client_and_sequence"), ("fleet", "0012_checkpoints_are_append_only")]

    operations = [migrations.RunPython(make_room, migrations.RunPython.noop)]
