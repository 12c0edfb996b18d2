"""Rollouts in the REST API: restarts of clients that run an older version, a few at a time."""

from typing import Any

from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from agents import rollouts, services
from agents.models import Rollout, RolloutStatus
from fleet.api.filters import Filters
from fleet.api.scoped import ScopedViewSet
from fleet.models import ClientClass


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    ordered_by = serializers.CharField(source="ordered_by.username", default=None, read_only=True)

    class Meta:
        model = Rollout
        fields = [
            *("id", "client_class", "status", "at_once", "reason", "ordered_by", "started_at", "ended_at", "outcome")
        ]


class NewRolloutSerializer(serializers.Serializer[Any]):
    client_class = serializers.IntegerField(help_text="The id of a class, some clients of which run an older version.")
    at_once = serializers.IntegerField(
        min_value=0, max_value=services.MOST_CLIENTS, default=0, help_text="How many restart at a time; 0: a tenth."
    )
    reason = serializers.CharField(max_length=200, default="", allow_blank=True)


class RolloutFilters(Filters):
    site = filters.CharFilter(field_name="client_class__site__slug", help_text="The slug of a site.")
    client_class = filters.NumberFilter(field_name="client_class_id")
    status = filters.MultipleChoiceFilter(choices=RolloutStatus.choices)


class RolloutViewSet(ScopedViewSet[Rollout]):
    """Restarts of idle clients into the version that is released to them."""

    queryset = Rollout.objects.select_related("ordered_by", "client_class__site")
    serializer_class = RolloutSerializer
    filterset_class = RolloutFilters
    page_order = ("-started_at", "pk")

    @extend_schema(request=NewRolloutSerializer, responses={202: RolloutSerializer})
    def create(self, request: Request) -> Response:
        """Have the clients of a class that are behind restarted while nobody uses them."""
        asked = NewRolloutSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wanted = asked.validated_data
        kind = ClientClass.objects.visible_to(request.user).filter(pk=wanted["client_class"]).first()
        if kind is None:
            raise serializers.ValidationError({"client_class": [f"There is no class {wanted['client_class']}."]})
        row = rollouts.start(kind, request.user, wanted["reason"], wanted["at_once"])
        return Response(RolloutSerializer(row).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: str) -> Response:
        """Restart no more of them."""
        row = self.get_object()
        rollouts.stop(row, request.user)
        return Response(RolloutSerializer(row).data)
