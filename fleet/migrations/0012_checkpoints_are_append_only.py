"""The database itself refuses to change or remove a signed head of the audit chain."""

from django.db import migrations

TABLE = "fleet_auditcheckpoint"


def add(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            f"""
            CREATE FUNCTION {TABLE}_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'checkpoints of the audit log are append-only'; END $$
            """
        )
        schema_editor.execute(
            f"""
            CREATE TRIGGER {TABLE}_append_only BEFORE UPDATE OR DELETE ON {TABLE}
            FOR EACH ROW EXECUTE FUNCTION {TABLE}_is_append_only()
            """
        )
        return
    for action in ("UPDATE", "DELETE"):
        schema_editor.execute(
            f"""
            CREATE TRIGGER {TABLE}_no_{action.lower()} BEFORE {action} ON {TABLE}
            BEGIN SELECT RAISE(ABORT, 'checkpoints of the audit log are append-only'); END
            """
        )


def remove(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"DROP TRIGGER {TABLE}_append_only ON {TABLE}")
        schema_editor.execute(f"DROP FUNCTION {TABLE}_is_append_only()")
        return
    for action in ("update", "delete"):
        schema_editor.execute(f"DROP TRIGGER {TABLE}_no_{action}")


class Migration(migrations.Migration):
    dependencies = [("fleet", "0011_enrolment_windows")]
    operations = [migrations.RunPython(add, remove)]
