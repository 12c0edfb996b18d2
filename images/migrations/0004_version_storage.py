"""How the artefacts of a version are kept. SQLite makes the table anew for it and loses its triggers: they are set again."""

from importlib import import_module

from django.conf import settings
from django.db import migrations, models

sealed = import_module("images.migrations.0002_ready_versions_never_change")


def set_again(apps, schema_editor):
    if schema_editor.connection.vendor == "sqlite":
        for statement in (*(drop.replace("TRIGGER", "TRIGGER IF EXISTS") for drop in sealed.SQLITE_REVERSE), *sealed.SQLITE):
            schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):

    dependencies = [
        ('images', '0003_family_declared'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name='imageversion',
            name='chunk_bytes',
            field=models.PositiveBigIntegerField(default=0, editable=False, help_text='What archiving it added.'),
        ),
        migrations.AddField(
            model_name='imageversion',
            name='storage',
            field=models.CharField(choices=[('files', 'Files'), ('chunks', 'Archived'), ('restoring', 'Being restored'), ('nothing', 'Forgotten')], default='files', editable=False, max_length=10),
        ),
        migrations.AddConstraint(
            model_name='imageversion',
            constraint=models.CheckConstraint(condition=models.Q(('storage__in', ['files', 'chunks', 'restoring', 'nothing'])), name='version_storage_declared'),
        ),
        migrations.RunPython(set_again, migrations.RunPython.noop),
    ]
