from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("images", "0013_driver_layers"),
    ]

    operations = [
        migrations.AddField(
            model_name="imageversion",
            name="volatile_change",
            field=models.JSONField(
                editable=False,
                help_text="Volatile files against the version before (images/volatility.py).",
                null=True,
            ),
        ),
    ]
