"""Orders, commands, sessions and restores in the REST API."""

from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from agents import services
from agents.models import BootSession, Command, CommandStatus, HomeRestore, Order, RestoreResult, SessionStatus, Verb
from fleet.api.exporting import LogViewSet
from fleet.api.filters import Filters, LogFilters, SiteFilters
from fleet.api.scoped import ScopedViewSet
from fleet.models import Client


class CommandSerializer(serializers.ModelSerializer[Command]):
    class Meta:
        model = Command
        fields = [
            *("id", "order", "client", "verb", "status", "sequence", "key_id", "queued_at", "sent_at", "accepted_at"),
            *("finished_at", "expires_at", "reason", "result"),
        ]


class CommandFilters(Filters):
    site = filters.CharFilter(field_name="client__site__slug", help_text="The slug of a site.")
    client = filters.UUIDFilter(field_name="client_id")
    order = filters.UUIDFilter(field_name="order_id")
    verb = filters.MultipleChoiceFilter(choices=Verb.choices)
    status = filters.MultipleChoiceFilter(choices=CommandStatus.choices)


class CommandViewSet(ScopedViewSet[Command]):
    """One order to one client and what became of it; `reason` says by which evidence it ended."""

    queryset = Command.objects.all()
    serializer_class = CommandSerializer
    filterset_class = CommandFilters
    page_order = ("-queued_at", "pk")

    @extend_schema(request=None, responses=CommandSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Take back a command that was not sent yet."""
        command = self.get_object()
        services.cancel(command, request.user)
        return Response(self.get_serializer(command).data)


class OrderSerializer(serializers.ModelSerializer[Order]):
    ordered_by = serializers.CharField(source="ordered_by.username", default=None, read_only=True)
    commands = CommandSerializer(many=True, read_only=True)

    class Meta:
        model = Order
        fields = ["id", "site", "verb", "reason", "ordered_by", "ordered_at", "commands"]


class NewOrderSerializer(serializers.Serializer[Any]):
    verb = serializers.ChoiceField(Verb.choices)
    clients = serializers.ListField(
        child=serializers.UUIDField(), allow_empty=False, max_length=services.MOST_CLIENTS, help_text="Ids of clients."
    )
    reason = serializers.CharField(max_length=200, help_text="Why; it stands in the audit log.")


class OrderFilters(SiteFilters):
    verb = filters.MultipleChoiceFilter(choices=Verb.choices)


class OrderViewSet(ScopedViewSet[Order]):
    """What people asked of clients: restart, power down (`poweroff`), cycle."""

    queryset = Order.objects.select_related("ordered_by").prefetch_related("commands")
    serializer_class = OrderSerializer
    filterset_class = OrderFilters
    page_order = ("-ordered_at", "pk")

    @extend_schema(request=NewOrderSerializer, responses={202: OrderSerializer})
    def create(self, request: Request) -> Response:
        """Order something of one client or several of one site. All get it, or none."""
        asked = NewOrderSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wanted = asked.validated_data["clients"]
        clients = {client.pk: client for client in Client.objects.visible_to(request.user).filter(pk__in=wanted)}
        if unknown := [str(pk) for pk in wanted if pk not in clients]:
            raise serializers.ValidationError({"clients": [f"There is no client {pk}." for pk in unknown]})
        order = services.order(
            asked.validated_data["verb"], clients.values(), asked.validated_data["reason"], request.user
        )
        return Response(OrderSerializer(order).data, status=status.HTTP_202_ACCEPTED)


class SessionSerializer(serializers.ModelSerializer[BootSession]):
    class Meta:
        model = BootSession
        fields = [
            *("id", "client", "boot_id", "status", "client_class", "release", "facts", "planned_at", "opened_at"),
            *("last_seen", "ended_at", "ready_at", "verdict"),
        ]


class SessionFilters(Filters):
    site = filters.CharFilter(field_name="client__site__slug", help_text="The slug of a site.")
    client = filters.UUIDFilter(field_name="client_id")
    status = filters.MultipleChoiceFilter(choices=SessionStatus.choices)


class SessionViewSet(ScopedViewSet[BootSession]):
    """Boots of clients: when, of what version, how long each stage took (`facts.boot_ms`), and how they ended."""

    queryset: QuerySet[BootSession] = BootSession.objects.all()
    serializer_class = SessionSerializer
    filterset_class = SessionFilters
    page_order = ("-planned_at", "pk")


class RestoreSerializer(serializers.ModelSerializer[HomeRestore]):
    class Meta:
        model = HomeRestore
        fields = [
            *("id", "site", "client", "command", "at", "client_name", "class_name", "asked_by", "reason", "result"),
            *("explanation", "template", "expected", "before", "after", "files", "bytes", "killed", "phases_ms"),
        ]


class RestoreFilters(LogFilters):
    client = filters.UUIDFilter(field_name="client_id")
    result = filters.MultipleChoiceFilter(choices=RestoreResult.choices)
    asked_by = filters.CharFilter(field_name="asked_by")


class RestoreViewSet(LogViewSet[HomeRestore]):
    """Every restore of a home directory, successful or not; append-only and sealed into the audit log."""

    queryset = HomeRestore.objects.all()
    serializer_class = RestoreSerializer
    filterset_class = RestoreFilters
