import django.db.models.deletion
from django.db import migrations, models

ONE_OPEN = models.UniqueConstraint(
    fields=["client"],
    condition=models.Q(status__in=["queued", "sent", "accepted"]),
    name="command_one_open_per_client",
)


class Migration(migrations.Migration):
    dependencies = [
        ("agents", "0009_power"),
        ("fleet", "0012_checkpoints_are_append_only"),
    ]

    operations = [
        # On PostgreSQL Django takes every index on the column alone for the field's own, this constraint's too.
        migrations.RemoveConstraint(model_name="command", name="command_one_open_per_client"),
        migrations.AlterField(
            model_name="command",
            name="client",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="commands",
                to="fleet.client",
            ),
        ),
        migrations.AddConstraint(model_name="command", constraint=ONE_OPEN),
    ]
