"""Driver layers in the REST API."""

from typing import Any

from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from fleet.api.filters import Filters
from fleet.api.scoped import ScopedViewSet
from fleet.models import ClientClass
from images import layer_orders
from images.layer_models import Layer, LayerBuild, LayerFile, LayerStatus, LayerStep
from images.models import ImageVersion


class LayerFileSerializer(serializers.ModelSerializer[LayerFile]):
    class Meta:
        model = LayerFile
        fields = ["path", "mode", "content"]


class LayerSerializer(serializers.ModelSerializer[Layer]):
    files = LayerFileSerializer(many=True)
    classes = serializers.SerializerMethodField()

    class Meta:
        model = Layer
        fields = ["id", "image", "slug", "name", "packages", "script", "files", "classes"]

    @extend_schema_field({"type": "array", "items": {"type": "integer"}})
    def get_classes(self, layer: Layer) -> list[int]:
        """The ids of the classes that need it, of those that may be seen."""
        mine = ClientClass.objects.visible_to(self.context["request"].user).filter(layers=layer)
        return list(mine.order_by("pk").values_list("pk", flat=True))


class LayerStepSerializer(serializers.ModelSerializer[LayerStep]):
    class Meta:
        model = LayerStep
        fields = [
            *("number", "name", "title", "command", "output", "exit_code", "failed", "done", "total"),
            *("bytes_done", "bytes_total", "progress"),
            *("started_at", "finished_at"),
        ]


class LayerBuildSerializer(serializers.ModelSerializer[LayerBuild]):
    class Meta:
        model = LayerBuild
        fields = [
            *("id", "layer", "version", "status", "reason", "change", "digest", "failure"),
            *("requested_at", "started_at", "finished_at"),
        ]


class LayerBuildDetailSerializer(LayerBuildSerializer):
    steps = LayerStepSerializer(many=True)
    manifest = serializers.JSONField()

    class Meta:
        model = LayerBuild
        fields = [*LayerBuildSerializer.Meta.fields, "manifest", "steps"]


class BuildOrderSerializer(serializers.Serializer[Any]):
    version = serializers.IntegerField(
        required=False, help_text="The id of the version it is for; the newest that is ready if left out."
    )
    reason = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)


class CancelOrderSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(max_length=200, required=False, default="", allow_blank=True)


class LayerFilters(Filters):
    image = filters.CharFilter(field_name="image__slug", help_text="The slug of an image.")


class LayerViewSet(ScopedViewSet[Layer]):
    """What some classes of an image need beside it. Edited in the admin; a build takes a snapshot of one."""

    queryset = Layer.objects.prefetch_related("files")
    serializer_class = LayerSerializer
    filterset_class = LayerFilters

    @extend_schema(request=BuildOrderSerializer, responses={202: LayerBuildSerializer})
    @action(detail=True, methods=["post"])
    def build(self, request: Request, pk: str) -> Response:
        """Queue a build for a version. Each new version has its layers built by itself."""
        layer, order = self.get_object(), BuildOrderSerializer(data=request.data)
        order.is_valid(raise_exception=True)
        asked = dict(order.validated_data)
        if (wanted := asked.get("version")) is None:
            version = layer_orders.newest(layer)
        else:
            visible = ImageVersion.objects.visible_to(request.user).select_related("image")
            found = visible.filter(pk=wanted).first()
            if found is None:
                raise serializers.ValidationError({"version": [f"There is no version {wanted}."]})
            version = found
        row = layer_orders.build(layer, version, request.user, asked["reason"])
        return Response(LayerBuildSerializer(row).data, status=status.HTTP_202_ACCEPTED)


class LayerBuildFilters(Filters):
    layer = filters.NumberFilter(field_name="layer_id")
    version = filters.NumberFilter(field_name="version_id")
    status = filters.MultipleChoiceFilter(choices=LayerStatus.choices)


class LayerBuildViewSet(ScopedViewSet[LayerBuild]):
    """Layers as built, each against one version; a single one comes with its manifest and its steps."""

    queryset = LayerBuild.objects.select_related("layer__image", "version__image").prefetch_related("steps")
    filterset_class = LayerBuildFilters
    page_order = ("-requested_at", "pk")

    def get_serializer_class(self) -> type[LayerBuildSerializer]:
        return LayerBuildDetailSerializer if self.action == "retrieve" else LayerBuildSerializer

    @extend_schema(request=CancelOrderSerializer, responses=LayerBuildSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Cancel a build that is queued or under way."""
        row, order = self.get_object(), CancelOrderSerializer(data=request.data)
        order.is_valid(raise_exception=True)
        layer_orders.cancel(row, request.user, order.validated_data["reason"])
        return Response(LayerBuildSerializer(row).data)
