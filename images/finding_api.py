"""Findings in the REST API."""

from django.db.models import Count
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.api.filters import Filters
from fleet.api.scoped import ScopedViewSet
from images import findings
from images.finding_models import Finding, FindingKind, FindingSource, FindingStatus


class FindingSerializer(serializers.ModelSerializer[Finding]):
    told_by = serializers.IntegerField(read_only=True, default=0, help_text="How many PCs told of it.")

    class Meta:
        model = Finding
        fields = [
            *("id", "version", "source", "kind", "subject", "rule", "detail", "bytes", "told_by", "status"),
            *("first_at", "last_at", "decided_at"),
        ]


class FindingFilters(Filters):
    image = filters.CharFilter(field_name="version__image__slug", help_text="The slug of an image.")
    version = filters.NumberFilter(field_name="version_id")
    kind = filters.MultipleChoiceFilter(choices=FindingKind.choices)
    source = filters.MultipleChoiceFilter(choices=FindingSource.choices)
    status = filters.MultipleChoiceFilter(choices=FindingStatus.choices)


class FindingViewSet(ScopedViewSet[Finding]):
    """What checks and running PCs met: read-only paths, failed units, files that no rule names; each with a rule, if one is known."""

    queryset = Finding.objects.select_related("version__image").annotate(told_by=Count("clients"))
    serializer_class = FindingSerializer
    filterset_class = FindingFilters
    page_order = ("-last_at", "pk")

    @extend_schema(request=None, responses=FindingSerializer)
    @action(detail=True, methods=["post"])
    def accept(self, request: Request, pk: str) -> Response:
        """Put its rule into the image's recipe."""
        row = self.get_object()
        findings.accept(row, request.user)
        return Response(FindingSerializer(row).data)

    @extend_schema(request=None, responses=FindingSerializer)
    @action(detail=True, methods=["post"])
    def dismiss(self, request: Request, pk: str) -> Response:
        """It is no matter."""
        row = self.get_object()
        findings.dismiss(row, request.user)
        return Response(FindingSerializer(row).data)
