"""What is open has a column of its own, and each page of commands some room: so that no index has to learn of an acceptance."""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps


def make_room(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute('ALTER TABLE "agents_command" SET (fillfactor = 60)')


class Migration(migrations.Migration):
    dependencies = [("agents", "0011_room_for_updates"), ("fleet", "0012_checkpoints_are_append_only")]

    operations = [
        migrations.RemoveConstraint(model_name="command", name="command_one_open_per_client"),
        migrations.AddField(
            model_name="command",
            name="is_open",
            field=models.GeneratedField(
                db_persist=True,
                expression=models.ExpressionWrapper(
                    models.Q(status__in=["queued", "sent", "accepted"]), output_field=models.BooleanField()
                ),
                output_field=models.BooleanField(),
            ),
        ),
        migrations.AddConstraint(
            model_name="command",
            constraint=models.UniqueConstraint(
                fields=["client"], condition=models.Q(is_open=True), name="command_one_open_per_client"
            ),
        ),
        migrations.RunPython(make_room, migrations.RunPython.noop),
    ]
