"""Filters that refuse what they do not understand: a typing error must not show more rows than were asked for."""

from typing import Any

from django_filters import rest_framework as filters
from rest_framework.exceptions import ValidationError


class Filters(filters.FilterSet):  # type: ignore[misc]
    """A filter set that answers 400 for a parameter it does not know, but for those of pages and exports."""

    OTHERS = frozenset({"size", "cursor", "as"})

    def filter_queryset(self, queryset: Any) -> Any:
        if unknown := sorted(set(self.data) - set(self.filters) - self.OTHERS):
            raise ValidationError({name: [f"No filter. There are {', '.join(self.filters)}."] for name in unknown})
        return super().filter_queryset(queryset)


class SiteFilters(Filters):
    """Of what belongs to one site."""

    site = filters.CharFilter(field_name="site__slug", help_text="The slug of a site.")


class LogFilters(SiteFilters):
    """Of what is written down with a time ``at``."""

    since = filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")
