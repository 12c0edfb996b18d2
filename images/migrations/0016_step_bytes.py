from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("images", "0015_findings"),
    ]

    operations = [
        migrations.AddField(
            model_name="buildstep",
            name="bytes_done",
            field=models.PositiveBigIntegerField(default=0, help_text="Fetched, or packed."),
        ),
        migrations.AddField(
            model_name="buildstep",
            name="bytes_total",
            field=models.PositiveBigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="layerstep",
            name="bytes_done",
            field=models.PositiveBigIntegerField(default=0, help_text="Fetched, or packed."),
        ),
        migrations.AddField(
            model_name="layerstep",
            name="bytes_total",
            field=models.PositiveBigIntegerField(default=0),
        ),
        migrations.AlterField(
            model_name="buildstep",
            name="done",
            field=models.PositiveIntegerField(default=0, help_text="Packages that are in place."),
        ),
        migrations.AlterField(
            model_name="layerstep",
            name="done",
            field=models.PositiveIntegerField(default=0, help_text="Packages that are in place."),
        ),
    ]
