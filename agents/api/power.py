"""Power on in the REST API: how it went, by model of PC, and the power ports that clients have."""

from typing import Any

from django.db.models import F
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from agents.models import PowerPort, Wake, Way
from agents.power import report
from fleet.api.filters import Filters
from fleet.api.scoped import ScopedViewSet


class WakeSerializer(serializers.ModelSerializer[Wake]):
    client = serializers.UUIDField(source="command.client_id", read_only=True)
    order = serializers.UUIDField(source="command.order_id", read_only=True)
    status = serializers.CharField(source="command.status", read_only=True)
    reason = serializers.CharField(source="command.reason", read_only=True)
    relays = serializers.PrimaryKeyRelatedField[Any](
        many=True, read_only=True, help_text="Commands of the awake clients that sent its packets."
    )

    class Meta:
        model = Wake
        fields = [
            *("command", "client", "order", "status", "reason", "way", "rounds", "next_at", "dealt", "sent_at"),
            *("relays", "trouble", "asleep", "product", "adapter"),
        ]


class WakeFilters(Filters):
    site = filters.CharFilter(field_name="command__client__site__slug", help_text="The slug of a site.")
    client = filters.UUIDFilter(field_name="command__client_id")
    order = filters.UUIDFilter(field_name="command__order_id")
    way = filters.MultipleChoiceFilter(choices=Way.choices)
    asleep = filters.BooleanFilter(help_text="Those that did not wake, though packets were sent.")
    product = filters.CharFilter()
    since = filters.IsoDateTimeFilter(field_name="command__queued_at", lookup_expr="gte")
    until = filters.IsoDateTimeFilter(field_name="command__queued_at", lookup_expr="lt")


class ModelSerializer(serializers.Serializer[Any]):
    product = serializers.CharField(help_text="As its firmware says; empty where nobody has seen it boot.")
    adapter = serializers.CharField(help_text="Of its first graphics adapter: vendor:device.")
    adapter_name = serializers.CharField(help_text="From pci.ids.")
    woke = serializers.IntegerField()
    asleep = serializers.IntegerField(help_text="How often it did not wake, though packets were sent.")
    percent = serializers.IntegerField(help_text="Of both, how many did not wake.")


class WakeViewSet(ScopedViewSet[Wake]):
    """How commands to power on (`wake`) were carried out: by whom, how often it was tried, and what came of it."""

    queryset = (
        Wake.objects.select_related("command").prefetch_related("relays").annotate(ordered_at=F("command__queued_at"))
    )
    serializer_class = WakeSerializer
    filterset_class = WakeFilters
    page_order = ("-ordered_at", "pk")

    @extend_schema(responses=ModelSerializer(many=True))
    @action(detail=False, methods=["get"], pagination_class=None)
    def models(self, request: Request) -> Response:
        """Which models of PC wake and which do not, the worst first; the filters are those of the list."""
        wakes = self.filter_queryset(self.get_queryset())
        return Response(ModelSerializer(report.by_model(wakes), many=True).data)


class PowerPortSerializer(serializers.ModelSerializer[PowerPort]):
    class Meta:
        model = PowerPort
        fields = ["client", "kind", "address", "outlet", "credential"]


class PowerPortFilters(Filters):
    site = filters.CharFilter(field_name="client__site__slug", help_text="The slug of a site.")


class PowerPortViewSet(ScopedViewSet[PowerPort]):
    """What switches clients on from outside; `credential` names a file that only the sender can read."""

    queryset = PowerPort.objects.all()
    serializer_class = PowerPortSerializer
    filterset_class = PowerPortFilters
