"""A version is signed by who built it, once; the database refuses to change that."""

from django.db import migrations, models

CHANGED = "A version that is signed stays signed as it is."

SQLITE = [
    f"""CREATE TRIGGER signature_never_changes BEFORE UPDATE OF signature ON images_imageversion
    WHEN OLD.signature <> '' AND OLD.signature <> NEW.signature BEGIN SELECT RAISE(ABORT, '{CHANGED}'); END"""
]
SQLITE_REVERSE = ["DROP TRIGGER signature_never_changes"]

POSTGRESQL = [
    f"""CREATE TRIGGER signature_never_changes BEFORE UPDATE ON images_imageversion FOR EACH ROW
    WHEN (OLD.signature <> '' AND OLD.signature IS DISTINCT FROM NEW.signature)
    EXECUTE FUNCTION refuse_ready_version('{CHANGED}')"""
]
POSTGRESQL_REVERSE = ["DROP TRIGGER signature_never_changes ON images_imageversion"]


def run(sqlite, postgresql):
    def execute(apps, schema_editor):
        for statement in {"sqlite": sqlite, "postgresql": postgresql}[schema_editor.connection.vendor]:
            schema_editor.execute(statement, params=None)

    return execute


class Migration(migrations.Migration):
    dependencies = [("images", "0008_pending_upgrades")]
    operations = [
        migrations.AddField(
            "imageversion",
            "signature",
            models.CharField(
                blank=True, editable=False, help_text="<key id>:<base64>, of who built it.", max_length=128
            ),
        ),
        migrations.RunPython(run(SQLITE, POSTGRESQL), run(SQLITE_REVERSE, POSTGRESQL_REVERSE)),
    ]
