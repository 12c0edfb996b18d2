"""Sites, classes, rules, clients, the audit log, and oneself in the REST API."""

from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q, QuerySet
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from fleet import enrolment, services
from fleet.api.exporting import LogViewSet
from fleet.api.filters import Filters, LogFilters, SiteFilters
from fleet.api.scoped import ScopedRelatedField, ScopedViewSet
from fleet.hardware import adapter_name
from fleet.models import (
    Admission,
    ApiToken,
    AuditEntry,
    Client,
    ClientClass,
    ClientState,
    HardwareRule,
    Membership,
    Site,
)
from fleet.roles import RIGHTS, Right, Role


class SiteSerializer(serializers.ModelSerializer[Site]):
    class Meta:
        model = Site
        fields = ["id", "slug", "name", "unknown_hardware", "default_class", "enrolment_open", "enrolment_until"]


class EnrolmentSerializer(serializers.Serializer[Any]):
    minutes = serializers.IntegerField(
        min_value=0, max_value=enrolment.LONGEST_MIN, help_text="For how long from now; 0 closes it."
    )


class SiteViewSet(ScopedViewSet[Site]):
    """The person's sites."""

    queryset = Site.objects.all()
    serializer_class = SiteSerializer

    @extend_schema(request=EnrolmentSerializer, responses=SiteSerializer)
    @action(detail=True, methods=["post"])
    def enrolment(self, request: Request, pk: str) -> Response:
        """Admit clients never seen before without asking, for a time; or do so no more."""
        asked = EnrolmentSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        site, minutes = self.get_object(), asked.validated_data["minutes"]
        if minutes:
            enrolment.open_for(site, minutes, request.user)
        else:
            enrolment.close(site, request.user)
        return Response(self.get_serializer(site).data)


class ClassSerializer(serializers.ModelSerializer[ClientClass]):
    class Meta:
        model = ClientClass
        fields = [
            *("id", "site", "slug", "name", "colour", "root_kind", "root_fetch", "root_check", "root_percent"),
            *("home_kind", "home_percent"),
        ]


class ClassViewSet(ScopedViewSet[ClientClass]):
    """Client classes: gamer, contest, kiosk."""

    queryset = ClientClass.objects.all()
    serializer_class = ClassSerializer
    filterset_class = SiteFilters


class RuleSerializer(serializers.ModelSerializer[HardwareRule]):
    adapter = serializers.SerializerMethodField(help_text="The name of the adapter, from pci.ids.")

    class Meta:
        model = HardwareRule
        fields = [
            *(
                "id",
                "site",
                "client_class",
                "priority",
                "vendor",
                "device",
                "subvendor",
                "subdevice",
                "adapter",
                "note",
            ),
        ]

    def get_adapter(self, rule: HardwareRule) -> str:
        return adapter_name(rule.vendor, rule.device)


class RuleViewSet(ScopedViewSet[HardwareRule]):
    """Which adapter makes a client one of which class; the lowest priority number wins."""

    queryset = HardwareRule.objects.all()
    serializer_class = RuleSerializer
    filterset_class = SiteFilters
    page_order = ("site", "priority", "pk")


class AdapterSerializer(serializers.Serializer[Any]):
    address = serializers.CharField()
    vendor = serializers.CharField()
    device = serializers.CharField()
    subvendor = serializers.CharField()
    subdevice = serializers.CharField()
    pci_class = serializers.CharField()
    name = serializers.CharField(help_text="From pci.ids.")


class TagsField(serializers.ListField):
    """Tags by their names."""

    def to_representation(self, tags: Any) -> list[str]:
        return [tag.name for tag in tags.all()]


class ClientSerializer(serializers.ModelSerializer[Client]):
    adapters = serializers.SerializerMethodField()
    site_slug = serializers.CharField(source="site.slug", read_only=True)
    client_class = ScopedRelatedField(queryset=ClientClass.objects.all(), allow_null=True, required=False)
    tags = TagsField(
        child=serializers.SlugField(max_length=40),
        max_length=50,
        required=False,
        help_text="All that it has. PATCH takes away those that are not named; a new word makes a new tag of its site.",
    )

    class Meta:
        model = Client
        fields = [
            *(
                "id",
                "site",
                "site_slug",
                "mac",
                "name",
                "seat",
                "client_class",
                "class_pinned",
                "tags",
                "admission",
                "state",
                "since",
            ),
            *("last_seen", "trouble", "twin_at", "adapters", "memory_kib", "product", "serial", "secure_on"),
        ]
        read_only_fields = ["site", "mac", "admission"]
        extra_kwargs = {"secure_on": {"write_only": True}}

    @extend_schema_field(AdapterSerializer(many=True))
    def get_adapters(self, client: Client) -> list[dict[str, Any]]:
        return [adapter | {"name": adapter_name(adapter["vendor"], adapter["device"])} for adapter in client.adapters]


class AdmissionSerializer(serializers.Serializer[Any]):
    admission = serializers.ChoiceField(Admission.choices)


class ClientFilters(SiteFilters):
    state = filters.MultipleChoiceFilter(choices=ClientState.choices)
    admission = filters.MultipleChoiceFilter(choices=Admission.choices)
    client_class = filters.CharFilter(field_name="client_class__slug", help_text="The slug of a class.")
    mac = filters.CharFilter(field_name="mac", help_text="In small letters, with colons.")
    seat = filters.CharFilter(field_name="seat")
    tag = filters.CharFilter(field_name="tags__name", help_text="One that the site has put on it.")
    twin = filters.BooleanFilter(
        field_name="twin_at", lookup_expr="isnull", exclude=True, help_text="Two machines had its MAC address."
    )
    q = filters.CharFilter(method="search", help_text="A part of the seat, name or MAC address.")

    def search(self, clients: QuerySet[Client], name: str, text: str) -> QuerySet[Client]:
        return clients.filter(Q(seat__icontains=text) | Q(name__icontains=text) | Q(mac__icontains=text))


class ClientViewSet(mixins.UpdateModelMixin, ScopedViewSet[Client]):
    """The machines. PATCH names, seats and classes them; their state is what was last seen, and not written."""

    queryset = Client.objects.select_related("site").prefetch_related("tags")
    serializer_class = ClientSerializer
    filterset_class = ClientFilters
    page_order = ("site", "seat", "name")
    http_method_names = ["get", "head", "options", "patch", "post"]

    def perform_update(self, serializer: serializers.BaseSerializer[Client]) -> None:
        client, changes = serializer.instance, dict(serializer.validated_data)
        assert client is not None
        tags = changes.pop("tags", None)
        with transaction.atomic():
            services.edit_client(client, self.request.user, **changes)
            if tags is not None:
                services.set_tags(client, tags, self.request.user)

    @extend_schema(request=AdmissionSerializer, responses=ClientSerializer)
    @action(detail=True, methods=["post"])
    def admission(self, request: Request, pk: str) -> Response:
        """Take a client into service, into maintenance, or out of service."""
        asked = AdmissionSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        client = self.get_object()
        services.admit(client, request.user, Admission(asked.validated_data["admission"]))
        return Response(self.get_serializer(client).data)

    @extend_schema(request=None, responses=ClientSerializer)
    @action(detail=True, methods=["post"], url_path="take-back-twin")
    def take_back_twin(self, request: Request, pk: str) -> Response:
        """End the alarm that two machines have this MAC address (`twin_at`). It comes again if they still do."""
        client = self.get_object()
        services.take_back_twin(client, request.user)
        return Response(self.get_serializer(client).data)


class AuditSerializer(serializers.ModelSerializer[AuditEntry]):
    class Meta:
        model = AuditEntry
        fields = [
            *("id", "chain", "sequence", "site", "at", "actor", "action", "subject", "subject_type", "subject_id"),
            *("subject_seal", "detail", "previous", "digest"),
        ]


class AuditFilters(LogFilters):
    actor = filters.CharFilter(field_name="actor")
    action = filters.CharFilter(field_name="action")
    subject_id = filters.CharFilter(field_name="subject_id")


class AuditViewSet(LogViewSet[AuditEntry]):
    """The append-only log of what was done, by whom; each entry holds the digest of the one before."""

    queryset = AuditEntry.objects.all()
    serializer_class = AuditSerializer
    filterset_class = AuditFilters


class MembershipSerializer(serializers.Serializer[Membership]):
    site = serializers.CharField(source="site.slug", help_text="The slug of the site.")
    role = serializers.ChoiceField(Role.choices)
    rights = serializers.SerializerMethodField()

    @extend_schema_field(serializers.ListField(child=serializers.ChoiceField(Right.choices)))
    def get_rights(self, membership: Membership) -> list[str]:
        return sorted(RIGHTS[Role(membership.role)])


class MeSerializer(serializers.Serializer[User]):
    username = serializers.CharField()
    is_superuser = serializers.BooleanField(help_text="Holds every right at every site.")
    memberships = MembershipSerializer(many=True)


class Me(APIView):
    """Who the token or session belongs to, and what they may do where."""

    @extend_schema(responses=MeSerializer, operation_id="me_retrieve")
    def get(self, request: Request) -> Response:
        assert isinstance(request.user, User)
        return Response(MeSerializer(request.user).data)


class TokenSerializer(serializers.ModelSerializer[ApiToken]):
    class Meta:
        model = ApiToken
        fields = ["id", "name", "hint", "read_only", "created_at", "expires_at", "last_used_at"]
        read_only_fields = ["hint", "created_at", "last_used_at"]
        validators: list[Any] = []  # the service refuses a name in use, and says what to do


class NewTokenSerializer(TokenSerializer):
    token = serializers.CharField(read_only=True, help_text="The token itself. It is shown this once.")

    class Meta(TokenSerializer.Meta):
        fields = [*TokenSerializer.Meta.fields, "token"]


class TokenViewSet(mixins.ListModelMixin, mixins.DestroyModelMixin, GenericViewSet[ApiToken]):
    """One's own API tokens."""

    queryset = ApiToken.objects.all()
    serializer_class = TokenSerializer
    filterset_class = Filters

    def get_queryset(self) -> QuerySet[ApiToken]:
        return super().get_queryset().filter(user__username=self.request.user.get_username())

    @extend_schema(request=TokenSerializer, responses={201: NewTokenSerializer})
    def create(self, request: Request) -> Response:
        """A new token. A read-only token may not make one."""
        asked = TokenSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        assert isinstance(request.user, User)
        token, secret = services.issue_token(request.user, **asked.validated_data)
        return Response(TokenSerializer(token).data | {"token": secret}, status=status.HTTP_201_CREATED)

    def perform_destroy(self, token: ApiToken) -> None:
        services.revoke_token(token, self.request.user)
