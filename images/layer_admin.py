"""Driver layers in the admin: what is in one and which classes need it, and its builds to watch."""

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path

from fleet.admin.guarded import actor
from fleet.admin.scoped import holds
from fleet.models import ClientClass
from fleet.roles import Right
from images import layer_orders, quota, services
from images.admin import OrderAdmin
from images.layer_models import Layer, LayerBuild, LayerFile, LayerStatus
from images.layers import UNDER_WAY

if TYPE_CHECKING:
    _StackedInline = admin.StackedInline[LayerFile, Layer]
    _Form = forms.ModelForm[Layer]
else:
    _StackedInline, _Form = admin.StackedInline, forms.ModelForm


class LayerFileInline(_StackedInline):
    model = LayerFile
    fields = [("path", "mode"), "content"]
    extra = 0

    def _may(self, request: HttpRequest, layer: Layer | None) -> bool:
        return services.may(request.user, Right.BUILD, layer) if layer and layer.pk else True

    def has_view_permission(self, request: HttpRequest, obj: Layer | None = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest, obj: Layer | None = None) -> bool:
        return self._may(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Layer | None = None) -> bool:
        return self._may(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Layer | None = None) -> bool:
        return self._may(request, obj)


class LayerForm(_Form):
    def clean(self) -> dict[str, Any]:
        """The classes are those of the image's site: no other can boot it."""
        values = super().clean() or {}
        image = values.get("image") or (self.instance.image if self.instance.pk else None)
        if image and image.site_id:
            for client_class in values.get("classes") or ():
                if client_class.site_id != image.site_id:
                    self.add_error(
                        "classes", f"{client_class} is a class of {client_class.site}, which has not {image}."
                    )
        return values


@admin.register(Layer)
class LayerAdmin(OrderAdmin[Layer]):
    form = LayerForm
    change_right = Right.BUILD
    orders = ("build",)
    list_display = ["name", "image", "needed_by", "latest"]
    list_filter = ["image"]
    list_select_related = ["image__site"]
    search_fields = ["name", "slug", "packages"]
    prepopulated_fields = {"slug": ["name"]}
    inlines = [LayerFileInline]
    fields = ["image", "name", "slug", "classes", "packages", "script"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Layer]:
        light = LayerBuild.objects.defer("manifest").select_related("version__image").order_by("-pk")
        return super().get_queryset(request).prefetch_related("classes", models.Prefetch("builds", light))

    def get_prepopulated_fields(self, request: HttpRequest, obj: Layer | None = None) -> dict[str, Any]:
        return {} if obj else dict(self.prepopulated_fields)

    def get_readonly_fields(self, request: HttpRequest, obj: Layer | None = None) -> Any:
        """To give a class a layer changes what its clients boot, as a release does."""
        may = services.may(request.user, Right.RELEASE, obj) if obj else holds(request.user, Right.RELEASE)
        return [*super().get_readonly_fields(request, obj), *([] if may else ["classes"])]

    def has_delete_permission(self, request: HttpRequest, obj: Layer | None = None) -> bool:
        """Without it the clients of its classes boot without it: that is a release, too."""
        may = super().has_delete_permission(request, obj)
        if obj is None or not obj.pk or not obj.classes.exists():
            return may
        return may and services.may(request.user, Right.RELEASE, obj)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs["queryset"] = ClientClass.objects.visible_to(actor(request), Right.RELEASE).select_related("site")
        kwargs["widget"] = forms.CheckboxSelectMultiple
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    @admin.display(description="needed by")
    def needed_by(self, layer: Layer) -> str:
        return ", ".join(str(client_class) for client_class in layer.classes.all()) or "no class"

    @admin.display(description="latest build")
    def latest(self, layer: Layer) -> str:
        return next((f"{row.version}: {row.get_status_display()}" for row in layer.builds.all()), "none yet")

    def order_build(self, request: HttpRequest, layer: Layer) -> LayerBuild:
        version = layer_orders.newest(layer)
        if (chosen := request.POST.get("version", "")).isdecimal() and len(chosen) < 18:
            version = layer.image.versions.filter(pk=int(chosen)).first() or version
        warning = quota.outlook(layer.image).warning
        row = layer_orders.build(layer, version, actor(request), request.POST.get("reason", ""))
        if warning:
            self.message_user(request, warning, messages.WARNING)
        self.message_user(request, f"{row} is queued. Its steps appear below as they run.", messages.SUCCESS)
        return row

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        layer: Layer | None = context.get("original")
        context["builds"] = layer.builds.all()[:10] if layer else []
        context["may_build"] = layer is not None and services.may(request.user, Right.BUILD, layer)
        ready = layer.image.versions.filter(status="ready", storage="files") if layer else None
        context["versions"] = ready.select_related("image").order_by("-number")[:10] if ready is not None else []
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(LayerBuild)
class LayerBuildAdmin(OrderAdmin[LayerBuild]):
    orders = ("cancel", "again")
    list_display = ["__str__", "layer", "status", "requested_at", "requested_by", "reason"]
    list_filter = ["status", "layer"]
    search_fields = ["layer__slug", "layer__name", "digest", "reason"]
    list_select_related = ["layer__image", "version__image", "requested_by"]

    def get_urls(self) -> list[URLPattern]:
        live = self.admin_site.admin_view(self.live_view)
        return [path("<int:pk>/live/", live, name="images_layerbuild_live"), *super().get_urls()]

    def _steps(self, row: LayerBuild, after: int = 0) -> dict[str, Any]:
        """What the page shows of a build, as that of a version does."""
        return {
            "version": row,
            "steps": row.steps.filter(number__gt=after),
            "under_way": LayerStatus(row.status) in UNDER_WAY,
        }

    def live_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The steps as HTML; the page asks for it while a build is under way."""
        after = request.GET.get("after", "0")
        steps = self._steps(self.row(request, pk), int(after) if after.isdecimal() and len(after) < 6 else 0)
        return render(request, "admin/images/imageversion/steps.html", steps)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        row: LayerBuild = context["original"]
        context |= self._steps(row)
        context["contents"] = row.contents
        context["may_build"] = services.may(request.user, Right.BUILD, row)
        return super().render_change_form(request, context, *args, **kwargs)

    def order_cancel(self, request: HttpRequest, row: LayerBuild) -> LayerBuild:
        layer_orders.cancel(row, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"The build of {row} is cancelled.", messages.SUCCESS)
        return row

    def order_again(self, request: HttpRequest, row: LayerBuild) -> LayerBuild:
        again = layer_orders.build(row.layer, row.version, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{again} is queued, from the layer as it is now.", messages.SUCCESS)
        return again
