"""Accounts, which superusers manage: Django's pages, and each change is written down."""

from typing import TYPE_CHECKING

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.http import HttpRequest, HttpResponse

from fleet.admin.audited import AuditedAdmin, write_down

if TYPE_CHECKING:
    _UserAdmin = UserAdmin[User]
else:
    _UserAdmin = UserAdmin

admin.site.unregister([User, Group])


@admin.register(User)
class PersonAdmin(AuditedAdmin[User], _UserAdmin):
    @transaction.atomic
    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        before = User.objects.filter(pk=id).values_list("password", flat=True).first() if id.isdecimal() else None
        answer: HttpResponse = super().user_change_password(request, id, form_url)
        person = User.objects.filter(pk=id).first() if before is not None else None
        if person is not None and person.password != before:
            write_down(request, person, "password-set")
        return answer


@admin.register(Group)
class AuditedGroupAdmin(AuditedAdmin[Group], GroupAdmin):
    """Django's."""
