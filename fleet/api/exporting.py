"""Whole logs as a download: CSV for people's spreadsheets, JSON lines for their scripts."""

from collections.abc import Iterator
from typing import Any

from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from fleet.api.scoped import M, ScopedViewSet
from fleet.exports import WRITERS, download


class LogViewSet(ScopedViewSet[M]):
    """A log: newest first, filtered by time, and as one file at ``export/``."""

    page_order = ("-at", "-pk")

    @extend_schema(
        parameters=[OpenApiParameter("as", enum=list(WRITERS), default="csv", description="CSV, or JSON lines.")],
        filters=True,
        responses={
            (200, "text/csv"): OpenApiResponse(OpenApiTypes.STR),
            (200, "application/jsonl"): OpenApiResponse(OpenApiTypes.STR),
        },
    )
    @action(detail=False, pagination_class=None)
    def export(self, request: Request) -> StreamingHttpResponse:
        """All rows that the filters leave, oldest first, as CSV or JSON lines."""
        kind = request.query_params.get("as", "csv")
        if kind not in WRITERS:
            raise ValidationError({"as": [f"{kind!r} is not one of {', '.join(WRITERS)}."]})
        serializer: Any = self.get_serializer()
        rows = self.filter_queryset(self.get_queryset()).order_by("at", "pk")
        return download(request._request, self.basename, kind, _plain(rows, serializer), list(serializer.fields))


def _plain(rows: QuerySet[Any], serializer: Any) -> Iterator[dict[str, Any]]:
    for row in rows.iterator(chunk_size=500):
        yield serializer.to_representation(row)
