"""What was signed gets a table of its own, with all that was signed so far. The next migration takes it out of the commands."""

import django.db.models.deletion
from django.db import migrations, models

COPY = """
INSERT INTO agents_envelope (command_id, session_id, sequence, body, signature, key_id, signed_at)
SELECT id, session_id, sequence, envelope, signature, key_id, sent_at FROM agents_command WHERE sent_at IS NOT NULL
"""


class Migration(migrations.Migration):
    dependencies = [("agents", "0013_newest_restores_of_a_site"), ("fleet", "0014_quickly_packed_entries")]

    operations = [
        migrations.CreateModel(
            name="Envelope",
            fields=[
                (
                    "command",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="envelope",
                        serialize=False,
                        to="agents.command",
                    ),
                ),
                (
                    "session",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="envelopes",
                        to="agents.bootsession",
                    ),
                ),
                ("sequence", models.PositiveBigIntegerField(null=True)),
                ("body", models.BinaryField()),
                ("signature", models.BinaryField()),
                ("key_id", models.CharField(max_length=40)),
                ("signed_at", models.DateTimeField()),
            ],
            options={"ordering": ["-signed_at"]},
        ),
        migrations.AddIndex(
            model_name="envelope", index=models.Index(fields=["signed_at"], name="envelope_by_signed_at")
        ),
        migrations.AddConstraint(
            model_name="envelope",
            constraint=models.UniqueConstraint(
                condition=models.Q(("sequence__gte", 1000000000000)),
                fields=("sequence",),
                name="envelope_sequence_unique",
            ),
        ),
        migrations.RunSQL(COPY, migrations.RunSQL.noop),
    ]
