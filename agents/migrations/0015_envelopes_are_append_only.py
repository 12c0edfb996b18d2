"""Commands no longer hold what was signed, and the database itself refuses to change or remove that."""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

TABLE = "agents_envelope"
MOVED = ("envelope", "signature", "key_id", "sequence", "session")


def add(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        # Nothing of a command that changes on its way is in an index now; its end, with what its client measured, is as long as the rest.
        editor.execute('ALTER TABLE "agents_command" SET (fillfactor = 30)')
        editor.execute(
            """
            CREATE FUNCTION agents_envelope_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'envelopes are append-only'; END $$
            """
        )
        editor.execute(
            f"""
            CREATE TRIGGER {TABLE}_append_only BEFORE UPDATE OR DELETE ON {TABLE}
            FOR EACH ROW EXECUTE FUNCTION agents_envelope_is_append_only()
            """
        )
        return
    for action in ("UPDATE", "DELETE"):
        editor.execute(
            f"""
            CREATE TRIGGER {TABLE}_no_{action.lower()} BEFORE {action} ON {TABLE}
            BEGIN SELECT RAISE(ABORT, 'envelopes are append-only'); END
            """
        )


def remove(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(f"DROP TRIGGER {TABLE}_append_only ON {TABLE}")
        editor.execute("DROP FUNCTION agents_envelope_is_append_only()")
        return
    for action in ("update", "delete"):
        editor.execute(f"DROP TRIGGER {TABLE}_no_{action}")


class Migration(migrations.Migration):
    dependencies = [("agents", "0014_envelopes")]

    operations = [
        migrations.RemoveConstraint(model_name="command", name="command_sequence_unique_for_client"),
        migrations.RemoveIndex(model_name="command", name="command_by_sent_at"),
        *(migrations.RemoveField(model_name="command", name=name) for name in MOVED),
        migrations.AlterField(
            model_name="command",
            name="args",
            field=models.JSONField(default=dict, help_text="Of a relay's own; others have those of their order."),
        ),
        migrations.AddIndex(
            model_name="command", index=models.Index(fields=["client", "queued_at"], name="command_newest_of_client")
        ),
        migrations.RunPython(add, remove),
    ]
