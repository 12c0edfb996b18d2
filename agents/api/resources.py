"""Orders, commands, sessions and restores in the REST API."""

from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from agents import revoking, services
from agents.models import BootSession, Command, CommandStatus, HomeRestore, Order, RestoreResult, SessionStatus, Verb
from fleet.api.exporting import LogViewSet
from fleet.api.filters import Filters, LogFilters, SiteFilters
from fleet.api.scoped import ScopedViewSet
from fleet.models import Client


class CommandSerializer(serializers.ModelSerializer[Command]):
    sequence = serializers.IntegerField(source="envelope.sequence", default=None, read_only=True, allow_null=True)
    key_id = serializers.CharField(source="envelope.key_id", default="", read_only=True)

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

    queryset = Command.objects.select_related("envelope").defer("envelope__body", "envelope__signature")
    serializer_class = CommandSerializer
    filterset_class = CommandFilters
    page_order = ("-queued_at", "pk")

    @extend_schema(request=None, responses=CommandSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Take back a command that its client has not accepted yet."""
        command = self.get_object()
        services.cancel(command, request.user)
        return Response(self.get_serializer(command).data)


class OrderSerializer(serializers.ModelSerializer[Order]):
    ordered_by = serializers.CharField(source="ordered_by.username", default=None, read_only=True)
    approved_by = serializers.CharField(source="approved_by.username", default=None, read_only=True)
    commands = CommandSerializer(many=True, read_only=True)

    class Meta:
        model = Order
        fields = [
            *("id", "site", "verb", "args", "force", "beyond_cap", "reason", "ordered_by", "ordered_at", "approved_by"),
            *("approved_at", "commands"),
        ]


class WhatSerializer(serializers.Serializer[Any]):
    """What is ordered, of whomever."""

    verb = serializers.ChoiceField([(verb.value, verb.label) for verb in services.ORDERED])
    reason = serializers.CharField(max_length=200, help_text="Why; it stands in the audit log.")
    warn_s = serializers.IntegerField(
        required=False, min_value=1, max_value=3600, help_text="How long before it happens the user is warned."
    )
    text = serializers.CharField(required=False, max_length=300, help_text="Of the warning, or the message.")
    more = serializers.IntegerField(
        required=False, min_value=1, max_value=12, help_text="How often the user may ask for five minutes more."
    )
    seconds = serializers.IntegerField(
        required=False, min_value=1, max_value=3600, help_text="How long a message stays on the screen."
    )
    force = serializers.BooleanField(default=False, help_text="Also of clients with a local hold; for organisers.")
    beyond_cap = serializers.BooleanField(
        default=False, help_text="Faster than the site's caps; waits for another organiser's approval."
    )

    def keywords(self) -> dict[str, Any]:
        """What ``services.order`` takes beside verb, clients and reason."""
        data = self.validated_data
        args = {name: data[name] for name in ("warn_s", "text", "more", "seconds") if name in data}
        return {"args": args, "force": data["force"], "beyond_cap": data["beyond_cap"]}


class NewOrderSerializer(WhatSerializer):
    clients = serializers.ListField(
        child=serializers.UUIDField(), allow_empty=False, max_length=services.MOST_CLIENTS, help_text="Ids of clients."
    )


class OrderFilters(SiteFilters):
    verb = filters.MultipleChoiceFilter(choices=Verb.choices)


class OrderViewSet(ScopedViewSet[Order]):
    """What people asked of clients: restart, power down (`poweroff`), cycle, message, power on (`wake`)."""

    queryset = Order.objects.select_related("ordered_by", "approved_by").prefetch_related("commands__envelope")
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
        data = asked.validated_data
        order = services.order(data["verb"], clients.values(), data["reason"], request.user, **asked.keywords())
        return Response(OrderSerializer(order).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=OrderSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Take back what no client has accepted yet."""
        order = self.get_object()
        services.cancel_order(order, request.user)
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(request=None, responses=OrderSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Let an order go beyond the site's caps, as its second person."""
        services.approve(self.get_object(), request.user)
        return Response(self.get_serializer(self.get_object()).data)


class SessionSerializer(serializers.ModelSerializer[BootSession]):
    class Meta:
        model = BootSession
        fields = [
            *("id", "client", "boot_id", "status", "client_class", "release", "facts", "planned_at", "opened_at"),
            *("last_seen", "ended_at", "ready_at", "verdict"),
        ]


class RevocationSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(
        max_length=200, default="", allow_blank=True, help_text="It stands in the audit log."
    )


class SessionFilters(Filters):
    site = filters.CharFilter(field_name="client__site__slug", help_text="The slug of a site.")
    client = filters.UUIDFilter(field_name="client_id")
    status = filters.MultipleChoiceFilter(choices=SessionStatus.choices)


class SessionViewSet(ScopedViewSet[BootSession]):
    """Boots of clients: when, of what version, how long each stage took (`facts.boot_ms`), and how they ended."""

    queryset: QuerySet[BootSession] = BootSession.objects.select_related("client__site")
    serializer_class = SessionSerializer
    filterset_class = SessionFilters
    page_order = ("-planned_at", "pk")

    @extend_schema(request=RevocationSerializer, responses=SessionSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Hear no more of this boot: its bearer answers 401 from now on. The client gets a session again by booting anew."""
        asked = RevocationSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        session = self.get_object()
        revoking.revoke(session, request.user, asked.validated_data["reason"])
        return Response(self.get_serializer(session).data)


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
