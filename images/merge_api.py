"""Files that the site and an upgrade have both changed, in the REST API."""

from typing import Any

from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.api.filters import Filters
from fleet.api.scoped import ScopedViewSet
from images import merge_orders, merges
from images.api import VersionSerializer
from images.merge_models import FileMerge, MergeStatus


class MergeSerializer(serializers.ModelSerializer[FileMerge]):
    class Meta:
        model = FileMerge
        fields = [
            *("id", "version", "path", "base", "site", "package", "merged", "is_clean", "status"),
            *("created_at", "decided_at"),
        ]


class TakeOrderSerializer(serializers.Serializer[Any]):
    content = serializers.CharField(
        max_length=merges.MOST_BYTES, trim_whitespace=False, allow_blank=True, help_text="What the file is to be."
    )


class MergeFilters(Filters):
    image = filters.CharFilter(field_name="version__image__slug", help_text="The slug of an image.")
    version = filters.NumberFilter(field_name="version_id")
    status = filters.MultipleChoiceFilter(choices=MergeStatus.choices)


class MergeViewSet(ScopedViewSet[FileMerge]):
    """Files that the site and an upgrade have both changed: what each side has, what was before, and both in one."""

    queryset = FileMerge.objects.select_related("version__image")
    serializer_class = MergeSerializer
    filterset_class = MergeFilters
    page_order = ("-created_at", "pk")

    @extend_schema(request=None, responses=MergeSerializer)
    @action(detail=True, methods=["post"])
    def keep(self, request: Request, pk: str) -> Response:
        """The site's file stays."""
        row = self.get_object()
        merge_orders.keep(row, request.user)
        return Response(MergeSerializer(row).data)

    @extend_schema(request=TakeOrderSerializer, responses={202: VersionSerializer})
    @action(detail=True, methods=["post"])
    def take(self, request: Request, pk: str) -> Response:
        """Queue a derived version with this content: the package's, the merged one, or another."""
        row, order = self.get_object(), TakeOrderSerializer(data=request.data)
        order.is_valid(raise_exception=True)
        version = merge_orders.take(row, order.validated_data["content"], request.user)
        return Response(VersionSerializer(version).data, status=status.HTTP_202_ACCEPTED)
