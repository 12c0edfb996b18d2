"""Campaigns in the REST API: looked at before, ordered, watched, approved, paused and stopped."""

from collections.abc import Sequence
from typing import Any

from django.db.models import F, QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents import campaigns, previewing, services, targets
from agents.models import Campaign, CampaignStatus, Target, TargetStatus, Verb
from agents.selecting import Selection
from fleet.api.filters import Filters
from fleet.api.pagination import CursorPage
from fleet.api.scoped import ScopedViewSet
from fleet.models import ClientState, Site

MOST_NAMES = 100  # of a list in a preview
VERBS = [(verb.value, verb.label) for verb in services.ORDERED if verb != Verb.CAPTURE]


class SelectionSerializer(serializers.Serializer[Any]):
    """Whom: or within a kind, and between kinds. What is left out leaves nobody out."""

    classes = serializers.ListField(child=serializers.CharField(), required=False, help_text="Slugs of classes.")
    tags = serializers.ListField(child=serializers.CharField(), required=False, help_text="Names of tags.")
    rows = serializers.ListField(child=serializers.CharField(), required=False, help_text="Rows of seats: A of A3.")
    states = serializers.ListField(child=serializers.ChoiceField(ClientState.choices), required=False)
    clients = serializers.ListField(child=serializers.UUIDField(), required=False, help_text="Ids of clients.")


@extend_schema_field(SelectionSerializer)
class SelectionField(serializers.JSONField):
    """Refuses what ``Selection`` does not know, where a nested serializer would leave it out."""


class CampaignSerializer(serializers.ModelSerializer[Campaign]):
    id = serializers.UUIDField(source="pk", read_only=True, help_text="Also that of its order.")
    site = serializers.SlugField(source="order.site.slug", read_only=True, help_text="The slug of the site.")
    verb = serializers.ChoiceField(VERBS, source="order.verb", read_only=True)
    reason = serializers.CharField(source="order.reason", read_only=True)
    args = serializers.DictField(source="order.args", read_only=True)
    force = serializers.BooleanField(source="order.force", read_only=True)
    beyond_cap = serializers.BooleanField(source="order.beyond_cap", read_only=True)
    ordered_by = serializers.CharField(source="order.ordered_by.username", default=None, read_only=True)
    ordered_at = serializers.DateTimeField(source="order.ordered_at", read_only=True)
    approved_by = serializers.CharField(source="order.approved_by.username", default=None, read_only=True)
    approved_at = serializers.DateTimeField(source="order.approved_at", read_only=True)
    selection = SelectionField(read_only=True)
    counts = serializers.SerializerMethodField(help_text="How many clients are in which status.")

    class Meta:
        model = Campaign
        fields = [
            *("id", "site", "verb", "reason", "args", "force", "beyond_cap", "ordered_by", "ordered_at"),
            *("approved_by", "approved_at", "status", "outcome", "selection", *campaigns.HOW),
            *("wave", "wave_at", "started_at", "ended_at", "counts"),
        ]

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField()))
    def get_counts(self, campaign: Campaign) -> dict[str, int]:
        known: dict[Any, dict[str, int]] | None = self.context.get("tallies")
        return targets.tally(campaign) if known is None else known.get(campaign.pk, {})


class NewCampaignSerializer(serializers.ModelSerializer[Campaign]):
    site = serializers.SlugField(help_text="The slug of a site.")
    verb = serializers.ChoiceField(VERBS)
    reason = serializers.CharField(max_length=200, help_text="Why; it stands in the audit log.")
    selection = SelectionField(help_text="An empty object is the whole site.")
    args = serializers.DictField(
        required=False, help_text="warn_s, text, more of restart, poweroff and cycle; text, seconds of message."
    )
    force = serializers.BooleanField(default=False, help_text="Also of clients with a local hold; for organisers.")
    beyond_cap = serializers.BooleanField(default=False, help_text="Not throttled; needs a second person's approval.")

    class Meta:
        model = Campaign
        fields = ["site", "verb", "reason", "selection", "args", "force", "beyond_cap", *campaigns.HOW]
        extra_kwargs = {"expires_at": {"required": False, "help_text": "An hour after it starts, unless you say."}}

    def to_internal_value(self, data: Any) -> Any:
        """A typing error must not make a campaign that is less careful than was meant."""
        if isinstance(data, dict) and (unknown := sorted(str(key) for key in data.keys() - self.fields.keys())):
            raise serializers.ValidationError({key: ["There is no such field."] for key in unknown})
        return super().to_internal_value(data)


class NamesSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField()
    names = serializers.ListField(child=serializers.CharField(), help_text=f"The first {MOST_NAMES} of them.")


class WaveSerializer(serializers.Serializer[previewing.Wave]):
    number = serializers.IntegerField(help_text="From 1 on.")
    size = serializers.IntegerField()
    names = serializers.SerializerMethodField(help_text=f"The first {MOST_NAMES} in the order of their turns.")

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_names(self, wave: previewing.Wave) -> Sequence[str]:
        return wave.names[:MOST_NAMES]


class PreviewSerializer(serializers.Serializer[previewing.Preview]):
    total = serializers.IntegerField(help_text="Clients that are selected.")
    reached = serializers.IntegerField(help_text="Those that would carry it out, as things stand.")
    states = serializers.SerializerMethodField(help_text="How many are in which state.")
    offline = serializers.SerializerMethodField()
    busy = serializers.SerializerMethodField(help_text="With what they are.")
    held = serializers.SerializerMethodField(help_text="Why, and until when.")
    in_use = serializers.SerializerMethodField()
    waves = WaveSerializer(many=True)
    takes_s = serializers.IntegerField(help_text="Seconds until the last has its turn, at the most.")
    needs_approval = serializers.BooleanField()
    warnings = serializers.ListField(child=serializers.CharField())

    @extend_schema_field(serializers.DictField(child=serializers.IntegerField()))
    def get_states(self, preview: previewing.Preview) -> dict[str, int]:
        return {state: number for state, _, number in preview.states}

    @extend_schema_field(NamesSerializer)
    def get_offline(self, preview: previewing.Preview) -> dict[str, Any]:
        return _named(preview.offline)

    @extend_schema_field(NamesSerializer)
    def get_busy(self, preview: previewing.Preview) -> dict[str, Any]:
        return _named(preview.busy)

    @extend_schema_field(NamesSerializer)
    def get_held(self, preview: previewing.Preview) -> dict[str, Any]:
        return _named(preview.held)

    @extend_schema_field(NamesSerializer)
    def get_in_use(self, preview: previewing.Preview) -> dict[str, Any]:
        return _named(preview.in_use)


def _named(names: Sequence[str]) -> dict[str, Any]:
    return {"number": len(names), "names": names[:MOST_NAMES]}


class TargetSerializer(serializers.ModelSerializer[Target]):
    name = serializers.CharField(source="client.__str__", read_only=True)
    command_status = serializers.CharField(source="command.status", default=None, read_only=True)

    class Meta:
        model = Target
        fields = ["client", "name", "wave", "place", "status", "reason", "command", "command_status", "ended_at"]


class TargetFilters(Filters):
    status = filters.MultipleChoiceFilter(choices=TargetStatus.choices)
    wave = filters.NumberFilter()


class TargetPage(CursorPage):
    """In the order in which they were made, which is that of their turns."""

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        return ("pk",)


class CampaignFilters(Filters):
    site = filters.CharFilter(field_name="order__site__slug", help_text="The slug of a site.")
    verb = filters.MultipleChoiceFilter(field_name="order__verb", choices=VERBS)
    status = filters.MultipleChoiceFilter(choices=CampaignStatus.choices)


class CampaignViewSet(ScopedViewSet[Campaign]):
    """Orders to many clients, carried out in waves, within the site's caps."""

    queryset = Campaign.objects.select_related("order__site", "order__ordered_by", "order__approved_by").annotate(
        ordered_at=F("order__ordered_at")
    )
    serializer_class = CampaignSerializer
    filterset_class = CampaignFilters
    page_order = ("-ordered_at", "pk")

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset())) or []
        context = {**self.get_serializer_context(), "tallies": targets.tallies(page)}
        return self.get_paginated_response(CampaignSerializer(page, many=True, context=context).data)

    @extend_schema(request=NewCampaignSerializer, responses={202: CampaignSerializer})
    def create(self, request: Request) -> Response:
        """Order something of many clients. Whom it reaches is decided when it starts: now, unless `starts_at` says otherwise."""
        campaign = campaigns.start(self._planned(request), request.user)
        return Response(CampaignSerializer(campaign).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=NewCampaignSerializer, responses=PreviewSerializer)
    @action(detail=False, methods=["post"])
    def preview(self, request: Request) -> Response:
        """What a campaign would do, as things stand. Nothing is written."""
        return Response(PreviewSerializer(previewing.preview(self._planned(request))).data)

    @extend_schema(
        parameters=[
            OpenApiParameter("status", enum=TargetStatus.values, many=True, description="Those in one of these."),
            OpenApiParameter("wave", OpenApiTypes.INT),
        ],
        responses=TargetSerializer(many=True),
        filters=False,
    )
    @action(detail=True, pagination_class=TargetPage, filterset_class=None)
    def targets(self, request: Request, pk: str) -> Response:
        """The clients of a campaign in the order of their turns, and what became of each."""
        rows = Target.objects.filter(campaign=self.get_object()).select_related("client", "command")
        rows = rows.defer("command__result", "client__adapters")
        asked = TargetFilters(request.query_params, queryset=rows, request=request)
        if not asked.is_valid():
            raise serializers.ValidationError(asked.errors)
        return self.get_paginated_response(TargetSerializer(self.paginate_queryset(asked.qs), many=True).data)

    @extend_schema(request=None, responses=CampaignSerializer)
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: str) -> Response:
        """End it now. What no client has accepted is called back; what one has accepted ends by itself."""
        campaign = self.get_object()
        campaigns.stop(campaign, request.user)
        return Response(CampaignSerializer(campaign).data)

    @extend_schema(request=None, responses=CampaignSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Order nothing more for now; what is on its way ends."""
        campaign = self.get_object()
        campaigns.pause(campaign, request.user)
        return Response(CampaignSerializer(campaign).data)

    @extend_schema(request=None, responses=CampaignSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on; thresholds count from now on."""
        campaign = self.get_object()
        campaigns.resume(campaign, request.user)
        return Response(CampaignSerializer(campaign).data)

    @extend_schema(request=None, responses=CampaignSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """Let it go beyond the site's caps; for an organiser who did not order it."""
        campaign = self.get_object()
        campaigns.approve(campaign, request.user)
        return Response(CampaignSerializer(campaign).data)

    def _planned(self, request: Request) -> Campaign:
        asked = NewCampaignSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wanted = dict(asked.validated_data)
        slug = wanted.pop("site")
        site = Site.objects.visible_to(request.user).filter(slug=slug).first()
        if site is None:
            raise serializers.ValidationError({"site": [f"There is no site {slug}."]})
        selection = Selection.from_json(wanted.pop("selection"))
        return campaigns.plan(site, request.user, selection=selection, **wanted)
