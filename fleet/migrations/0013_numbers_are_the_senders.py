"""Commands get their numbers from the sender's book: they rise for all, and no client need be locked and written for its next one."""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('fleet', '0012_checkpoints_are_append_only'),
    ]

    operations = [
        migrations.RemoveField(
            model_name='client',
            name='sequence',
        ),
    ]
