"""The one base of all API resources: it scopes rows to the person's sites."""

from typing import Generic, TypeVar

from django.db import models
from rest_framework.relations import PrimaryKeyRelatedField
from rest_framework.viewsets import ReadOnlyModelViewSet

from fleet.querysets import ScopedQuerySet

M = TypeVar("M", bound=models.Model)


class ScopedViewSet(ReadOnlyModelViewSet[M], Generic[M]):
    """Read what the person may see; whatever is another site's answers 404, as if it were not there.

    ``queryset`` is the whole table with its joins; scoping happens here and nowhere else in the API. Actions that write
    call a service with ``request.user``, and the service asks for the right.
    """

    def get_queryset(self) -> ScopedQuerySet[M]:
        queryset = super().get_queryset()
        assert isinstance(queryset, ScopedQuerySet)
        return queryset.visible_to(self.request.user)


class ScopedRelatedField(PrimaryKeyRelatedField[M], Generic[M]):
    """A row named by its key; one of another site is as unknown as one that does not exist."""

    def get_queryset(self) -> ScopedQuerySet[M]:
        queryset = super().get_queryset()
        assert isinstance(queryset, ScopedQuerySet)
        return queryset.visible_to(self.context["request"].user)
