"""What clients boot must stay what was built: the database itself refuses to change a ready version or to remove it."""

from django.db import migrations

CHANGED = "A ready version never changes: build a new one."
REMOVED = "A ready version is not removed: releases and the audit log name it."
SEALED = ("image_id", "number", "status", "recipe", "digest", "manifest")

SQLITE = [
    f"""CREATE TRIGGER ready_version_never_changes BEFORE UPDATE OF {", ".join(SEALED)} ON images_imageversion
    WHEN OLD.status = 'ready' BEGIN SELECT RAISE(ABORT, '{CHANGED}'); END""",
    f"""CREATE TRIGGER ready_version_is_not_removed BEFORE DELETE ON images_imageversion
    WHEN OLD.status = 'ready' BEGIN SELECT RAISE(ABORT, '{REMOVED}'); END""",
]
SQLITE_REVERSE = ["DROP TRIGGER ready_version_never_changes", "DROP TRIGGER ready_version_is_not_removed"]

POSTGRESQL = [
    """CREATE FUNCTION refuse_ready_version() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    # No list of columns here: it would look at the columns an UPDATE names, and another trigger may change more.
    f"""CREATE TRIGGER ready_version_never_changes BEFORE UPDATE ON images_imageversion FOR EACH ROW
    WHEN (OLD.status = 'ready' AND ({" OR ".join(f"OLD.{c} IS DISTINCT FROM NEW.{c}" for c in SEALED)}))
    EXECUTE FUNCTION refuse_ready_version('{CHANGED}')""",
    f"""CREATE TRIGGER ready_version_is_not_removed BEFORE DELETE ON images_imageversion FOR EACH ROW
    WHEN (OLD.status = 'ready') EXECUTE FUNCTION refuse_ready_version('{REMOVED}')""",
]
POSTGRESQL_REVERSE = [
    "DROP TRIGGER ready_version_never_changes ON images_imageversion",
    "DROP TRIGGER ready_version_is_not_removed ON images_imageversion",
    "DROP FUNCTION refuse_ready_version()",
]


def run(sqlite, postgresql):
    def execute(apps, schema_editor):
        for statement in {"sqlite": sqlite, "postgresql": postgresql}[schema_editor.connection.vendor]:
            schema_editor.execute(statement, params=None)

    return execute


class Migration(migrations.Migration):
    dependencies = [("images", "0001_initial")]
    operations = [migrations.RunPython(run(SQLITE, POSTGRESQL), run(SQLITE_REVERSE, POSTGRESQL_REVERSE))]
