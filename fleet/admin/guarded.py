"""What every page of the admin stands on: rubbish in an address or a form is answered, not fallen over."""

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import DataError, models
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

M = TypeVar("M", bound=models.Model)


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin
else:

    class _ModelAdmin(admin.ModelAdmin):
        """Django's, which knows no type parameters while it runs."""

        def __class_getitem__(cls, _: object) -> type:
            return cls


def actor(request: HttpRequest) -> User:
    """Who asks; the admin lets nobody in who is not logged in."""
    assert isinstance(request.user, User)
    return request.user


def page_of(row: models.Model) -> str:
    """The address of the row's page."""
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


class GuardedAdmin(_ModelAdmin[M], Generic[M]):
    """Django's page, without the server errors that it answers some nonsense with."""

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Filters that the database cannot take (a number of forty digits, a NUL) are wrong filters like any other."""
        try:
            return super().get_changelist_instance(request)
        except (OverflowError, ValueError, ValidationError, DataError) as error:
            raise IncorrectLookupParameters(error) from None

    def response_action(
        self, request: HttpRequest, queryset: models.QuerySet[Any], *args: Any, **kwargs: Any
    ) -> HttpResponse | None:
        """What cannot be a row's key was not chosen from this list."""
        try:
            for key in request.POST.getlist(ACTION_CHECKBOX_NAME):
                self.opts.pk.run_validators(self.opts.pk.to_python(key))
        except ValidationError:
            self.message_user(request, "What was chosen is not in this list.", messages.WARNING)
            return None
        return super().response_action(request, queryset, *args, **kwargs)
