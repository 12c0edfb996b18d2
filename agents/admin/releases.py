"""The page of a release tells how its boots went; images knows nothing of boots, so its page is replaced by one that does."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from agents.judging import standing
from images.admin import ReleaseAdmin
from images.models import Release

admin.site.unregister(Release)


@admin.register(Release)
class JudgedReleaseAdmin(ReleaseAdmin):
    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        context["standing"] = standing(context["original"])
        return super().render_change_form(request, context, *args, **kwargs)
