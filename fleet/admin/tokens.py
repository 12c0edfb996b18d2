"""API tokens: everybody's own, shown once."""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from fleet import services
from fleet.admin.guarded import GuardedAdmin, actor
from fleet.models import ApiToken

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[ApiToken]
else:
    _ModelForm = forms.ModelForm


class TokenForm(_ModelForm):
    """A new token of the person who asks."""

    owner: User

    class Meta:
        model = ApiToken
        fields = ["name", "read_only", "expires_at"]

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if ApiToken.objects.filter(user=self.owner, name=name).exists():
            raise forms.ValidationError("You have a token of that name already.")
        return name

    def clean_expires_at(self) -> datetime | None:
        at: datetime | None = self.cleaned_data["expires_at"]
        if at and at <= timezone.now():
            raise forms.ValidationError("That is past already.")
        return at


@admin.register(ApiToken)
class ApiTokenAdmin(GuardedAdmin[ApiToken]):
    form = TokenForm
    list_display = ["name", "hint", "user", "read_only", "created_at", "expires_at", "last_used_at"]
    list_select_related = ["user"]
    fields = ["name", "read_only", "expires_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        """One's own; a superuser sees, and may end, everybody's."""
        tokens = super().get_queryset(request)
        return tokens if actor(request).is_superuser else tokens.filter(user=actor(request))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated

    def has_view_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return request.user.is_authenticated

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated

    def has_change_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return obj is None or self.get_queryset(request).filter(pk=obj.pk).exists()

    def get_form(self, request: HttpRequest, obj: ApiToken | None = None, change: bool = False, **kwargs: Any) -> Any:
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.owner = request.user
        return form

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        made, secret = services.issue_token(actor(request), **form.cleaned_data)
        obj.pk, obj.user, obj.hint = made.pk, made.user, made.hint
        request.META["fleet.secret"] = secret  # for the very answer to this request, see below

    def response_add(self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None) -> HttpResponse:
        """The one page that shows it: no message, which would wait in a cookie, and nothing for a cache."""
        context = {**self.admin_site.each_context(request), "title": f"The token {obj.name}", "opts": self.opts}
        answer = render(request, "admin/fleet/token.html", context | {"secret": request.META["fleet.secret"]})
        answer["Cache-Control"] = "no-store"
        return answer

    def delete_model(self, request: HttpRequest, obj: ApiToken) -> None:
        services.revoke_token(obj, actor(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        for token in queryset:
            self.delete_model(request, token)
