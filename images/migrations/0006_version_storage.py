from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('images', '0005_home_templates_of_people'),
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
    ]
