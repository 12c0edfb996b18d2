"""Images in the admin: recipes to edit, versions to watch and release, releases to roll back. Orders are POSTs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from django.contrib import admin, messages
from django.db import models
from django.db.models import Prefetch, QuerySet
from django.forms import ModelChoiceField
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST

from fleet.admin.guarded import actor, page_of
from fleet.admin.scoped import ScopedAdmin
from fleet.exceptions import FleetError, OperatorError
from fleet.models import ClientClass
from fleet.roles import Right
from images import durations, homes, quota, releasing, services
from images.bill import bill_of_materials
from images.models import HomeTemplate, Image, ImageFile, ImageHook, ImageVersion, Release, VersionStatus
from images.release_admin import CanaryEnds, CanaryOrders, others_of
from images.rules_admin import RuleWeights
from images.storage_admin import StorageOrders, storage_of, storage_page

M = TypeVar("M", bound=models.Model)
UNDER_WAY = (VersionStatus.QUEUED, VersionStatus.BUILDING)


class OrderAdmin(ScopedAdmin[M]):
    """A page with orders: ``POST <pk>/order/<name>/`` calls ``order_<name>``, which returns the row to show then."""

    orders: ClassVar[tuple[str, ...]] = ()

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.order_view))
        name = f"{self.opts.app_label}_{self.opts.model_name}_order"
        return [path("<int:pk>/order/<slug:order>/", view, name=name), *super().get_urls()]

    def row(self, request: HttpRequest, pk: int) -> M:
        """The row, if the person may see it."""
        found = self.get_queryset(request).filter(pk=pk).first()
        if found is None:
            raise Http404(f"There is no {self.opts.verbose_name} {pk}.")
        return found

    def order_view(self, request: HttpRequest, pk: int, order: str) -> HttpResponse:
        row = self.row(request, pk)
        if order not in self.orders:
            raise Http404(f"There is no order {order!r}.")
        give: Callable[[HttpRequest, M], models.Model] = getattr(self, f"order_{order.replace('-', '_')}")
        try:
            return HttpResponseRedirect(page_of(give(request, row)))
        except FleetError as error:  # of the server, too: whoever clicked can tell somebody what it lacks
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(page_of(row))


def chosen_class(request: HttpRequest) -> ClientClass:
    chosen = request.POST.get("client_class", "")
    classes = ClientClass.objects.visible_to(actor(request))
    client_class = classes.filter(pk=int(chosen)).first() if chosen.isdecimal() and len(chosen) < 18 else None
    if client_class is None:
        raise OperatorError("No class was chosen.", hint="Choose the class that is to have it.")
    return client_class


if TYPE_CHECKING:
    _StackedInline = admin.StackedInline[models.Model, Image]
else:
    _StackedInline = admin.StackedInline  # it knows no type parameters while it runs


class RecipeInline(_StackedInline):
    """Part of a recipe: changed by whoever may change its image."""

    extra = 0

    def _may(self, request: HttpRequest, image: Image | None) -> bool:
        return services.may(request.user, Right.BUILD, image) if image and image.pk else True

    def has_view_permission(self, request: HttpRequest, obj: Image | None = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest, obj: Image | None = None) -> bool:
        return self._may(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Image | None = None) -> bool:
        return self._may(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Image | None = None) -> bool:
        return self._may(request, obj)


class FileInline(RecipeInline):
    model = ImageFile
    fields = [("path", "mode"), "content"]


class HookInline(RecipeInline):
    model = ImageHook
    fields = [("position", "network"), "script"]


@admin.register(Image)
class ImageAdmin(RuleWeights, OrderAdmin[Image]):
    change_right = Right.BUILD
    orders = ("build", "home")
    list_display = ["name", "site", "suite", "latest", "status"]
    list_filter = ["site", "suite"]
    search_fields = ["name", "slug", "packages"]
    prepopulated_fields = {"slug": ["name"]}
    inlines = [FileInline, HookInline]
    fieldsets = [
        (None, {"fields": ["name", "slug", "site"]}),
        ("System", {"fields": ["family", "suite", "components", "mirror", "packages"]}),
        ("On the client", {"fields": ["user", "uid", "volatile"]}),
        ("Limits of a build", {"fields": [("most_minutes", "most_mib")]}),
    ]

    def get_urls(self) -> list[URLPattern]:
        return [path("storage/", self.admin_site.admin_view(storage_page), name="images_storage"), *super().get_urls()]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Image]:
        light = ImageVersion.objects.defer("manifest", "recipe", "failure").order_by("-number")
        return super().get_queryset(request).select_related("site").prefetch_related(Prefetch("versions", light))

    def get_prepopulated_fields(self, request: HttpRequest, obj: Image | None = None) -> dict[str, Any]:
        return {} if obj else dict(self.prepopulated_fields)

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if field and db_field.name == "site":
            field.required = not actor(request).is_superuser  # only superusers make an image everybody's
        return field

    @admin.display(description="latest version")
    def latest(self, image: Image) -> str:
        return next((str(version) for version in image.versions.all()), "none yet")

    @admin.display(description="status")
    def status(self, image: Image) -> str:
        return next((version.get_status_display() for version in image.versions.all()), "none yet")

    def order_build(self, request: HttpRequest, image: Image) -> ImageVersion:
        warning = quota.outlook(image).warning
        version = services.request_build(image, actor(request), request.POST.get("reason", ""))
        if warning:
            self.message_user(request, warning, messages.WARNING)
        self.message_user(request, f"{version} is queued. Its steps appear below as they run.", messages.SUCCESS)
        return version

    def order_home(self, request: HttpRequest, image: Image) -> HomeTemplate:
        file = request.FILES.get("archive")
        if file is None:
            raise OperatorError("No file was chosen.", hint="Choose a tar or zip archive of a home directory.")
        assert not isinstance(file, list)
        asked = request.POST.get("reason", "")
        row = homes.propose(image, file.name or "archive", file.chunks(), actor(request), asked)
        self.message_user(
            request, f"{row} is being looked through; reload this page to see what is in it.", messages.SUCCESS
        )
        return row

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        image = context.get("original")
        context["versions"] = image.versions.all()[:10] if image else []
        context["may_build"] = image is not None and services.may(request.user, Right.BUILD, image)
        context["room"] = quota.outlook(image) if image else None
        context["chart"] = durations.chart(image) if image else None
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(ImageVersion)
class ImageVersionAdmin(CanaryOrders, StorageOrders, OrderAdmin[ImageVersion]):
    orders = ("release", "canary", "derive", "upgrades", "check", "cancel", "retry", "forget", "archive", "restore")
    list_display = ["__str__", "image", "status", "requested_at", "requested_by", "reason"]
    list_filter = ["status", "image"]
    search_fields = ["image__slug", "image__name", "digest", "reason"]
    list_select_related = ["image", "requested_by", "parent__image"]

    def get_urls(self) -> list[URLPattern]:
        live = self.admin_site.admin_view(self.live_view)
        bill = self.admin_site.admin_view(self.bill_view)
        beside = self.admin_site.admin_view(self.compare_view)
        return [
            path("<int:pk>/live/", live, name="images_imageversion_live"),
            path("<int:pk>/sbom/", bill, name="images_imageversion_sbom"),
            path("<int:pk>/beside/<int:other>/", beside, name="images_imageversion_compare"),
            *super().get_urls(),
        ]

    def bill_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The bill of materials, to download."""
        try:
            return bill_of_materials(self.row(request, pk))
        except OperatorError as error:
            raise Http404(str(error)) from error

    def _steps(self, version: ImageVersion, after: int = 0) -> dict[str, Any]:
        """What the page shows of a build; steps up to number ``after`` are there already."""
        steps = version.steps.filter(number__gt=after)
        return {
            "version": version,
            "steps": steps,
            "under_way": version.status in UNDER_WAY,
            "outlook": durations.outlook(version),
        }

    def live_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The steps as HTML; the page asks for it while a build is under way."""
        after = request.GET.get("after", "0")
        version = self.row(request, pk)
        steps = self._steps(version, int(after) if after.isdecimal() and len(after) < 6 else 0)
        return render(request, "admin/images/imageversion/steps.html", steps)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        version: ImageVersion = context["original"]
        site = version.image.site
        classes = ClientClass.objects.visible_to(actor(request), Right.RELEASE).select_related("site")
        context |= self._steps(version) | storage_of(version)
        context["may_build"] = services.may(request.user, Right.BUILD, version)
        context["classes"] = classes.filter(site=site) if site else classes
        context["contents"] = version.contents
        context["others"] = others_of(version) if version.contents else []
        context |= finding_admin.findings_of(version) | merge_admin.merges_of(version)
        context["layers"] = version.layers.select_related("layer").defer("manifest")
        context["releases"] = Release.objects.visible_to(actor(request)).filter(version=version, current=True)
        return super().render_change_form(request, context, *args, **kwargs)

    def order_release(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        client_class = chosen_class(request)
        services.release(version, client_class, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{client_class} boots {version} from its next boot on.", messages.SUCCESS)
        return version

    def order_upgrades(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        services.look_for_upgrades(version, actor(request))
        self.message_user(request, "A worker looks for upgrades; reload this page in a moment.", messages.SUCCESS)
        return version

    def order_check(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        services.request_check(version, actor(request))
        self.message_user(
            request, "A worker boots it in a virtual PC; reload this page in some minutes.", messages.SUCCESS
        )
        return version

    def order_derive(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        asked = request.POST
        path, content = asked.get("path", "").strip(), asked.get("content", "").replace("\r\n", "\n")
        change = {
            "install": asked.get("install", "").split(),
            "remove": asked.get("remove", "").split(),
            "upgrade": "upgrade" in asked,
            "files": [{"path": path, "content": content}] if path else [],
            "script": asked.get("script", "").replace("\r\n", "\n").strip(),
        }
        keep = "keep" in asked
        derived = services.request_derived(version, change, actor(request), asked.get("reason", ""), keep=keep)
        self.message_user(request, f"{derived} is queued: {version} with {derived.changes}.", messages.SUCCESS)
        return derived

    def order_cancel(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        services.cancel_build(version, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{version} is cancelled.", messages.SUCCESS)
        return version

    def order_retry(self, request: HttpRequest, version: ImageVersion) -> ImageVersion:
        again = services.retry(version, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{again} is queued, from the recipe of {version}.", messages.SUCCESS)
        return again


@admin.register(Release)
class ReleaseAdmin(CanaryEnds, OrderAdmin[Release]):
    orders = ("roll-back", "promote", "withdraw")
    actions = ["roll_back"]
    list_display = ["client_class", "version", "stage", "released_at", "released_by", "reason", "outcome"]
    list_filter = ["current", "canary", "client_class"]
    list_select_related = ["client_class", "version__image", "released_by"]

    @admin.display(description="stage")
    def stage(self, release: Release) -> str:
        return "current" if release.current else "canary" if release.is_under_way else "past"

    @admin.action(description="Roll the classes of the selected releases back")
    def roll_back(self, request: HttpRequest, releases: QuerySet[Release]) -> None:
        for client_class in {release.client_class for release in releases.select_related("client_class")}:
            try:
                earlier = services.roll_back(client_class, actor(request), "rolled back from the list of releases")
            except OperatorError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"{client_class} boots {earlier.version} again.", messages.SUCCESS)

    def order_roll_back(self, request: HttpRequest, release: Release) -> Release:
        earlier = services.roll_back(release.client_class, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{release.client_class} boots {earlier.version} again.", messages.SUCCESS)
        return earlier

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        release: Release = context["original"]
        may = services.may(request.user, Right.RELEASE, release)
        context["may_roll_back"] = release.current and may
        context["may_end"] = release.is_under_way and may
        context["canaries"] = releasing.clients_of(release) if release.is_under_way else []
        return super().render_change_form(request, context, *args, **kwargs)


@admin.register(HomeTemplate)
class HomeTemplateAdmin(OrderAdmin[HomeTemplate]):
    orders = ("accept", "refuse", "use")
    list_display = ["__str__", "image", "status", "origin", "bytes", "created_at", "requested_by", "reason"]
    list_filter = ["status", "origin", "image"]
    list_select_related = ["image", "requested_by"]

    def order_accept(self, request: HttpRequest, row: HomeTemplate) -> HomeTemplate:
        homes.accept(row, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{row} is accepted. Give it to a class below.", messages.SUCCESS)
        return row

    def order_refuse(self, request: HttpRequest, row: HomeTemplate) -> HomeTemplate:
        homes.refuse(row, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"{row} is refused, nobody will get it.", messages.SUCCESS)
        return row

    def order_use(self, request: HttpRequest, row: HomeTemplate) -> HomeTemplate:
        client_class = chosen_class(request)
        homes.use(row, client_class, actor(request), request.POST.get("reason", ""))
        self.message_user(request, f"Clients of {client_class} get {row} at their next cycle.", messages.SUCCESS)
        return row

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        row: HomeTemplate = context["original"]
        classes = ClientClass.objects.visible_to(actor(request), Right.RELEASE).select_related("site")
        context["classes"] = classes.filter(releases__current=True, releases__version__image=row.image)
        context["may_build"] = services.may(request.user, Right.BUILD, row)
        context["releases"] = Release.objects.visible_to(actor(request)).filter(home=row, current=True)
        return super().render_change_form(request, context, *args, **kwargs)


from images import finding_admin, layer_admin, merge_admin  # noqa: E402, F401 - their pages are made of those above
