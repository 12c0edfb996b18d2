"""Images, versions, releases and home templates in the REST API."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.api.filters import Filters, SiteFilters
from fleet.api.scoped import ScopedViewSet
from fleet.exceptions import OperatorError, WrongState
from fleet.models import Client, ClientClass
from images import homes, quota, releasing, services, storing
from images.bill import bill_of_materials
from images.builder.errors import BuildError
from images.builder.store import Store
from images.comparing import compare, compare_files
from images.models import (
    BuildStep,
    HomeTemplate,
    Image,
    ImageFile,
    ImageHook,
    ImageVersion,
    Release,
    TemplateStatus,
    VersionStatus,
)


class FileSerializer(serializers.ModelSerializer[ImageFile]):
    class Meta:
        model = ImageFile
        fields = ["path", "mode", "content"]


class HookSerializer(serializers.ModelSerializer[ImageHook]):
    class Meta:
        model = ImageHook
        fields = ["position", "script", "network"]


class ImageSerializer(serializers.ModelSerializer[Image]):
    files = FileSerializer(source="recipe_files", many=True)
    hooks = HookSerializer(source="recipe_hooks", many=True)

    class Meta:
        model = Image
        fields = [
            *("id", "site", "slug", "name", "family", "suite", "components", "mirror", "packages", "volatile"),
            *("user", "uid", "most_minutes", "most_mib", "files", "hooks"),
        ]


class StepSerializer(serializers.ModelSerializer[BuildStep]):
    progress = serializers.CharField(
        read_only=True, help_text="done, total, bytes_done and bytes_total in words: 34 of 120 packages, 81 of 230 MB."
    )

    class Meta:
        model = BuildStep
        fields = [
            *("number", "name", "title", "command", "output", "exit_code", "failed", "done", "total"),
            *("bytes_done", "bytes_total", "progress", "started_at", "finished_at"),
        ]


class VersionSerializer(serializers.ModelSerializer[ImageVersion]):
    name = serializers.CharField(source="__str__", read_only=True)
    sizes = serializers.SerializerMethodField()

    class Meta:
        model = ImageVersion
        fields = [
            *(
                "id",
                "image",
                "name",
                "number",
                "status",
                "reason",
                "parent",
                "change",
                "digest",
                "signature",
                "sizes",
                "failure",
            ),
            *("storage", "requested_at", "started_at", "finished_at"),
        ]

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "integer"}})
    def get_sizes(self, version: ImageVersion) -> dict[str, int]:
        """Bytes by part of a ready version."""
        return version.contents.sizes if version.contents else {}


class RequestedSerializer(VersionSerializer):
    warning = serializers.CharField(read_only=True, help_text="That the site nears its limit of storage; else empty.")

    class Meta:
        model = ImageVersion
        fields = [*VersionSerializer.Meta.fields, "warning"]


class VersionDetailSerializer(VersionSerializer):
    steps = StepSerializer(many=True)
    recipe = serializers.JSONField()
    manifest = serializers.JSONField()
    upgrades = serializers.JSONField()
    volatile_change = serializers.JSONField()
    checked = serializers.JSONField()

    class Meta:
        model = ImageVersion
        fields = [
            *VersionSerializer.Meta.fields,
            *("recipe", "manifest", "upgrades", "volatile_change", "checked", "steps"),
        ]


class ReleaseSerializer(serializers.ModelSerializer[Release]):
    class Meta:
        model = Release
        fields = [
            *("id", "client_class", "version", "home", "current", "restores", "released_at", "reason"),
            *("canary", "share", "clients", "ready_within_s", "most_bad", "ended_at", "outcome"),
        ]


class HomeTemplateSerializer(serializers.ModelSerializer[HomeTemplate]):
    class Meta:
        model = HomeTemplate
        fields = [
            *(
                "id",
                "image",
                "status",
                "origin",
                "name",
                "sha256",
                "bytes",
                "tree_digest",
                "details",
                "failure",
                "reason",
            ),
            *("created_at", "decided_at"),
        ]


class ReasonSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)


class PutFileSerializer(serializers.Serializer[Any]):
    path = serializers.CharField(max_length=255, help_text="Absolute, as a client sees it.")
    content = serializers.CharField(allow_blank=True, trim_whitespace=False)
    mode = serializers.RegexField(r"^[0-7]{3,4}$", default="0644", help_text="Octal.")


class DeriveOrderSerializer(ReasonSerializer):
    install = serializers.ListField(child=serializers.CharField(max_length=100), required=False, default=list)
    remove = serializers.ListField(child=serializers.CharField(max_length=100), required=False, default=list)
    upgrade = serializers.BooleanField(
        required=False, default=False, help_text="All packages, before others are installed."
    )
    files = PutFileSerializer(many=True, required=False, default=list)
    script = serializers.CharField(required=False, default="", allow_blank=True, trim_whitespace=False)
    keep = serializers.BooleanField(required=False, default=False, help_text="Have the recipe learn the change, too.")


class ReleaseOrderSerializer(ReasonSerializer):
    client_class = serializers.IntegerField(help_text="The id of the class that is to boot the version.")


class CanaryOrderSerializer(ReleaseOrderSerializer):
    share = serializers.IntegerField(
        min_value=0, max_value=100, default=0, help_text="Percent of the clients of the class."
    )
    clients = serializers.ListField(
        child=serializers.UUIDField(), default=list, max_length=1000, help_text="Ids of clients, beside that share."
    )
    ready_within_s = serializers.IntegerField(
        min_value=10, max_value=3600, default=Release.READY_WITHIN_S, help_text="A boot that takes longer (s) is bad."
    )
    most_bad = serializers.IntegerField(
        min_value=0,
        max_value=10000,
        default=Release.MOST_BAD,
        help_text="So many bad clients withdraw it by itself; 0: never.",
    )


def _asked(serializer: type[serializers.Serializer[Any]], request: Request) -> dict[str, Any]:
    order = serializer(data=request.data)
    order.is_valid(raise_exception=True)
    return dict(order.validated_data)


def _class_of(request: Request, pk: int) -> ClientClass:
    client_class = ClientClass.objects.visible_to(request.user).filter(pk=pk).first()
    if client_class is None:
        raise serializers.ValidationError({"client_class": [f"There is no class {pk}."]})
    return client_class


class ArchiveSerializer(ReasonSerializer):
    archive = serializers.FileField(help_text="A tar archive, compressed or not, or a zip of a home directory.")


class ImageViewSet(ScopedViewSet[Image]):
    """Recipes. Edited in the admin; a build takes a snapshot of one."""

    queryset = Image.objects.prefetch_related("recipe_files", "recipe_hooks")
    serializer_class = ImageSerializer
    filterset_class = SiteFilters

    @extend_schema(request=ReasonSerializer, responses={202: RequestedSerializer})
    @action(detail=True, methods=["post"])
    def build(self, request: Request, pk: str) -> Response:
        """Queue a new version from the recipe as it is now. Refused when the site has no room for one."""
        image = self.get_object()
        warning = quota.outlook(image).warning
        version = services.request_build(image, request.user, **_asked(ReasonSerializer, request))
        return Response({**VersionSerializer(version).data, "warning": warning}, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request={"multipart/form-data": ArchiveSerializer}, responses={202: HomeTemplateSerializer})
    @action(detail=True, methods=["post"], parser_classes=[MultiPartParser], url_path="home-templates")
    def home_templates(self, request: Request, pk: str) -> Response:
        """Upload a home template; a worker looks it through and packs it."""
        image, asked = self.get_object(), _asked(ArchiveSerializer, request)
        file = asked["archive"]
        row = homes.propose(image, file.name, file.chunks(), request.user, asked["reason"])
        return Response(HomeTemplateSerializer(row).data, status=status.HTTP_202_ACCEPTED)


class VersionFilters(Filters):
    image = filters.CharFilter(field_name="image__slug", help_text="The slug of an image.")
    status = filters.MultipleChoiceFilter(choices=VersionStatus.choices)


class VersionViewSet(ScopedViewSet[ImageVersion]):
    """Versions of images; a single one comes with its steps, recipe and manifest."""

    queryset = ImageVersion.objects.select_related("image").prefetch_related("steps")
    filterset_class = VersionFilters
    page_order = ("-requested_at", "pk")

    def get_serializer_class(self) -> type[VersionSerializer]:
        return VersionDetailSerializer if self.action == "retrieve" else VersionSerializer

    @extend_schema(request=ReleaseOrderSerializer, responses={201: ReleaseSerializer})
    @action(detail=True, methods=["post"])
    def release(self, request: Request, pk: str) -> Response:
        """Give a ready version to a class: its clients boot it from their next boot on."""
        version, order = self.get_object(), _asked(ReleaseOrderSerializer, request)
        client_class = _class_of(request, order["client_class"])
        new = services.release(version, client_class, request.user, order["reason"])
        return Response(ReleaseSerializer(new).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=CanaryOrderSerializer, responses={201: ReleaseSerializer})
    @action(detail=True, methods=["post"])
    def canary(self, request: Request, pk: str) -> Response:
        """Give a ready version to some clients of a class, to see how it does before all get it."""
        version, order = self.get_object(), _asked(CanaryOrderSerializer, request)
        client_class = _class_of(request, order["client_class"])
        clients = list(Client.objects.visible_to(request.user).filter(pk__in=order["clients"]))
        if len(clients) != len(set(order["clients"])):
            raise OperatorError("Not all of these clients are known.", hint="Name clients of this class by their ids.")
        limits = releasing.Limits(order["ready_within_s"], order["most_bad"])
        asked = {"share": order["share"], "clients": clients, "limits": limits}
        new = releasing.start(version, client_class, request.user, order["reason"], **asked)
        return Response(ReleaseSerializer(new).data, status=status.HTTP_201_CREATED)

    @extend_schema(
        parameters=[
            OpenApiParameter("other", int, required=True, description="The id of the older version."),
            OpenApiParameter("files", bool, description="Compare the files of the roots, too."),
        ],
        responses={200: OpenApiTypes.OBJECT},
    )
    @action(detail=True, methods=["get"], filterset_class=None)
    def compare(self, request: Request, pk: str) -> Response:
        """What is different from another version: packages, sizes, volatile files, and on demand the files of the roots."""
        new = self.get_object()
        asked = request.query_params.get("other", "")
        known = asked.isascii() and asked.isdecimal() and len(asked) < 18
        old = self.get_queryset().filter(pk=int(asked)).first() if known else None
        if old is None:
            raise OperatorError(f"There is no version {asked!r}.", hint="Give the id of a version as other=.")
        if old.contents is None or new.contents is None:
            raise WrongState("Only ready versions can be compared.", hint="Wait until both are built.")
        answer: dict[str, Any] = asdict(compare(old.contents, new.contents))
        if request.query_params.get("files", "").lower() in ("1", "true", "yes"):
            try:
                answer["files"] = asdict(compare_files(old.contents, new.contents, Store(settings.STORE)))
            except BuildError as error:
                raise WrongState(f"The files cannot be compared: {error}.", hint="Compare without files.") from error
        return Response(answer)

    @extend_schema(request=DeriveOrderSerializer, responses={202: VersionSerializer})
    @action(detail=True, methods=["post"])
    def derive(self, request: Request, pk: str) -> Response:
        """Queue a version that is this one with a change; this one stays as it is."""
        order = _asked(DeriveOrderSerializer, request)
        reason, keep = order.pop("reason"), order.pop("keep")
        version = services.request_derived(self.get_object(), order, request.user, reason, keep=keep)
        return Response(VersionSerializer(version).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=ReasonSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel a version that is queued or building."""
        version = self.get_object()
        services.cancel_build(version, request.user, **_asked(ReasonSerializer, request))
        return Response(VersionSerializer(version).data)

    @extend_schema(request=ReasonSerializer, responses={202: VersionSerializer})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Queue a new version from the recipe of a failed or cancelled one."""
        version = services.retry(self.get_object(), request.user, **_asked(ReasonSerializer, request))
        return Response(VersionSerializer(version).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=ReasonSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"])
    def forget(self, request: Request, pk: str) -> Response:
        """Give up the artefacts of a version that nobody runs or boots; its row and history stay."""
        return self._kept(storing.forget, request)

    @extend_schema(request=ReasonSerializer, responses=VersionSerializer)
    @action(detail=True, methods=["post"])
    def archive(self, request: Request, pk: str) -> Response:
        """Keep a version that nobody runs or boots as chunks, until it is restored."""
        return self._kept(storing.archive, request)

    @extend_schema(request=ReasonSerializer, responses={202: VersionSerializer})
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, pk: str) -> Response:
        """Have an archived version made files again, which takes less than a minute; then it can be released."""
        return self._kept(storing.restore, request, status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses={202: VersionSerializer})
    @action(detail=True, methods=["post"])
    def upgrades(self, request: Request, pk: str) -> Response:
        """Have a worker look which packages have newer versions; `upgrades` of the version tells when it has."""
        version = self.get_object()
        services.look_for_upgrades(version, request.user)
        return Response(VersionSerializer(version).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses={202: VersionSerializer})
    @action(detail=True, methods=["post"])
    def check(self, request: Request, pk: str) -> Response:
        """Have a worker boot it in a virtual PC; `checked` of the version tells when it has, its findings what it met."""
        version = self.get_object()
        services.request_check(version, request.user)
        return Response(VersionSerializer(version).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={(200, "application/vnd.cyclonedx+json"): OpenApiTypes.OBJECT})
    @action(detail=True, methods=["get"])
    def sbom(self, request: Request, pk: str) -> HttpResponse:
        """The bill of materials: CycloneDX 1.5."""
        return bill_of_materials(self.get_object())

    def _kept(self, give: Callable[..., None], request: Request, code: int = status.HTTP_200_OK) -> Response:
        version = self.get_object()
        give(version, request.user, **_asked(ReasonSerializer, request))
        return Response(VersionSerializer(version).data, status=code)


class ReleaseFilters(Filters):
    site = filters.CharFilter(field_name="client_class__site__slug", help_text="The slug of a site.")
    client_class = filters.NumberFilter(field_name="client_class_id")
    current = filters.BooleanFilter()


class ReleaseViewSet(ScopedViewSet[Release]):
    """What each class boots (`current`), and booted before."""

    queryset = Release.objects.prefetch_related("clients")
    serializer_class = ReleaseSerializer
    filterset_class = ReleaseFilters
    page_order = ("-released_at", "pk")

    @extend_schema(request=ReasonSerializer, responses={201: ReleaseSerializer})
    @action(detail=True, methods=["post"], url_path="roll-back")
    def roll_back(self, request: Request, pk: str) -> Response:
        """Give the class of this release again what it booted before its current one."""
        earlier = services.roll_back(self.get_object().client_class, request.user, **_asked(ReasonSerializer, request))
        return Response(ReleaseSerializer(earlier).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=ReasonSerializer, responses={201: ReleaseSerializer})
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """Give the version of this canary to all clients of its class."""
        new = releasing.promote(self.get_object(), request.user, **_asked(ReasonSerializer, request))
        return Response(ReleaseSerializer(new).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=ReasonSerializer, responses=ReleaseSerializer)
    @action(detail=True, methods=["post"])
    def withdraw(self, request: Request, pk: str) -> Response:
        """Take this canary back."""
        row = self.get_object()
        releasing.withdraw(row, request.user, **_asked(ReasonSerializer, request))
        return Response(ReleaseSerializer(row).data)


class TemplateFilters(Filters):
    image = filters.CharFilter(field_name="image__slug", help_text="The slug of an image.")
    status = filters.MultipleChoiceFilter(choices=TemplateStatus.choices)


class HomeTemplateViewSet(ScopedViewSet[HomeTemplate]):
    """What home directories are restored to. A new one is uploaded to its image, looked at, accepted, and given to a class."""

    queryset = HomeTemplate.objects.all()
    serializer_class = HomeTemplateSerializer
    filterset_class = TemplateFilters
    page_order = ("-created_at", "pk")

    @extend_schema(request=ReasonSerializer, responses=HomeTemplateSerializer)
    @action(detail=True, methods=["post"])
    def accept(self, request: Request, pk: str) -> Response:
        """Let a template that was looked at be given to classes."""
        row = self.get_object()
        homes.accept(row, request.user, **_asked(ReasonSerializer, request))
        return Response(HomeTemplateSerializer(row).data)

    @extend_schema(request=ReasonSerializer, responses=HomeTemplateSerializer)
    @action(detail=True, methods=["post"])
    def refuse(self, request: Request, pk: str) -> Response:
        """Have a template never be used."""
        row = self.get_object()
        homes.refuse(row, request.user, **_asked(ReasonSerializer, request))
        return Response(HomeTemplateSerializer(row).data)

    @extend_schema(request=ReleaseOrderSerializer, responses={201: ReleaseSerializer})
    @action(detail=True, methods=["post"])
    def use(self, request: Request, pk: str) -> Response:
        """Give an accepted template to a class: its clients get it at their next cycle or boot."""
        row, order = self.get_object(), _asked(ReleaseOrderSerializer, request)
        new = homes.use(row, _class_of(request, order["client_class"]), request.user, order["reason"])
        return Response(ReleaseSerializer(new).data, status=status.HTTP_201_CREATED)
