"""Enrolment is open until a time, not for ever: where it was on, it stays so for one more day."""

from datetime import timedelta

from django.db import migrations, models
from django.utils import timezone

LEFT = timedelta(days=1)


def to_windows(apps, schema_editor):
    apps.get_model("fleet", "Site").objects.filter(enrolment_open=True).update(enrolment_until=timezone.now() + LEFT)


def to_switches(apps, schema_editor):
    apps.get_model("fleet", "Site").objects.filter(enrolment_until__gt=timezone.now()).update(enrolment_open=True)


class Migration(migrations.Migration):
    dependencies = [("fleet", "0010_tags_holds_and_checkpoints")]

    operations = [
        migrations.AddField(
            model_name="site",
            name="enrolment_until",
            field=models.DateTimeField(
                editable=False,
                help_text="Until then clients never seen before are admitted without asking.",
                null=True,
            ),
        ),
        migrations.RunPython(to_windows, to_switches),
        migrations.RemoveField(model_name="site", name="enrolment_open"),
    ]
