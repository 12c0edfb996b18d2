from typing import Any

from django.db.models import QuerySet
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView


class CursorPage(CursorPagination):
    """Pages by cursor: stable while rows are added. ``?size=`` up to 500.

    A view's ``page_order`` names the fields it is ordered by; what grows for ever comes newest first.
    """

    page_size = 50
    page_size_query_param = "size"
    max_page_size = 500

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        return tuple(getattr(view, "page_order", ("pk",)))
