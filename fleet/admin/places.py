"""Sites, their people, classes and hardware rules."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import models
from django.db.models import Count, Q, QuerySet
from django.forms import ModelChoiceField
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from fleet import enrolment
from fleet.admin.guarded import actor
from fleet.admin.scoped import ScopedAdmin, edited
from fleet.hardware import adapter_name, adapters_from_json
from fleet.models import Admission, Client, ClientClass, HardwareRule, Membership, Site
from fleet.roles import RIGHTS, Right, Role

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[Membership]
    _SiteForm = forms.ModelForm[Site]
else:
    _ModelForm = _SiteForm = forms.ModelForm


CLOSE = "close"
WINDOWS = [
    ("", "as it is"),
    ("15", "for 15 minutes from now"),
    ("60", "for 1 hour from now"),
    ("240", "for 4 hours from now"),
    ("720", "for 12 hours from now"),
    (CLOSE, "no more"),
]


class SiteForm(_SiteForm):
    enrolment = forms.ChoiceField(
        label="admit them without asking",
        choices=WINDOWS,
        required=False,
        help_text="For setting up: whoever switches a PC on in that time is in service. It ends by itself.",
    )

    def clean_enrolment(self) -> str:
        chosen = str(self.cleaned_data["enrolment"])
        if chosen == CLOSE and not self.instance.enrolment_open:
            return ""
        return chosen


@admin.register(Site)
class SiteAdmin(ScopedAdmin[Site]):
    change_right = Right.MANAGE
    form = SiteForm
    list_display = ["name", "slug", "clients", "pending", "unknown_hardware", "enrolment_now"]
    search_fields = ["name", "slug"]
    fieldsets = [
        (None, {"fields": ["name", "slug"]}),
        (
            "Clients never seen before",
            {"fields": ["pending", ("enrolment_now", "enrolment"), "unknown_hardware", "default_class"]},
        ),
        ("Images", {"fields": ["storage_limit"]}),
    ]

    readonly_fields = ["pending", "enrolment_now"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Site]:
        waiting = Count("clients", filter=Q(clients__admission=Admission.PENDING))
        return super().get_queryset(request).annotate(number_of_clients=Count("clients"), number_waiting=waiting)

    def save_model(self, request: HttpRequest, obj: Site, form: Any, change: bool) -> None:
        """A window of enrolment has an entry of its own in the log."""
        minutes = form.cleaned_data.get("enrolment", "")
        form.changed_data = [name for name in form.changed_data if name != "enrolment"]
        super().save_model(request, obj, form, change)
        if minutes == CLOSE:
            enrolment.close(obj, actor(request))
        elif minutes:
            enrolment.open_for(obj, int(minutes), actor(request))

    @admin.display(description="waiting to be admitted", ordering="number_waiting")
    def pending(self, site: Site) -> SafeString | str:
        """How many, and the way to them."""
        number = int(getattr(site, "number_waiting", 0))
        if not number:
            return "none"
        query = urlencode({"site__id__exact": site.pk, "admission__exact": Admission.PENDING})
        return format_html('<a href="{}?{}">{}</a>', reverse("admin:fleet_client_changelist"), query, number)

    @admin.display(description="admits them without asking", ordering="enrolment_until")
    def enrolment_now(self, site: Site) -> str:
        return f"until {site.enrolment_until:%-d %B %H:%M} UTC" if site.enrolment_open else "no"

    @admin.display(description="clients", ordering="number_of_clients")
    def clients(self, site: Site) -> int:
        return int(getattr(site, "number_of_clients", 0))

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Somebody's right at one site makes no other; a superuser makes sites and gives each its first admin."""
        return isinstance(request.user, User) and request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Site | None = None) -> bool:
        return self.has_add_permission(request)

    def formfield_for_foreignkey(
        self, db_field: models.ForeignKey[Any, Any], request: HttpRequest, **kwargs: Any
    ) -> "ModelChoiceField[Any] | None":
        if db_field.name == "default_class":
            key = edited(request)
            kwargs["queryset"] = ClientClass.objects.filter(site=int(key)) if key else ClientClass.objects.none()
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


class MembershipForm(_ModelForm):
    """Asks for the person by name: a list of all accounts would tell each site who belongs to the others."""

    user = forms.CharField(
        label="Person", max_length=150, help_text="The user name. Whoever runs the server makes the accounts."
    )

    def clean_user(self) -> User:
        name = str(self.cleaned_data["user"])
        found = User.objects.filter(username=name, is_active=True).first()
        if found is None:
            raise forms.ValidationError(f"Nobody is called {name}. Check the spelling, or ask for the account first.")
        return found


@admin.register(Membership)
class MembershipAdmin(ScopedAdmin[Membership]):
    change_right = Right.MANAGE
    form = MembershipForm
    fields = ["user", "site", "role"]
    list_display = ["user", "site", "role", "may"]
    list_filter = ["site", "role"]
    list_select_related = ["user", "site"]
    search_fields = ["user__username"]

    def get_readonly_fields(self, request: HttpRequest, obj: Membership | None = None) -> list[str]:
        """Another person's is another membership."""
        return [*super().get_readonly_fields(request, obj), *(["user"] if obj else [])]

    @admin.display(description="may")
    def may(self, membership: Membership) -> str:
        return "; ".join(right.label for right in Right if right in RIGHTS[Role(membership.role)])

    def formfield_for_choice_field(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_choice_field(db_field, request, **kwargs)
        if db_field.name == "role" and field is not None:
            more = "Each may what the one before may, and more: a viewer sees; a volunteer orders, admits and builds; "
            field.help_text = (
                more + "an organiser releases; a site admin edits the site, its classes, rules and members."
            )
        return field


@admin.register(ClientClass)
class ClientClassAdmin(ScopedAdmin[ClientClass]):
    change_right = Right.MANAGE
    list_display = ["name", "site", "colour", "root_percent", "home_percent"]
    list_filter = ["site"]
    list_select_related = ["site"]
    search_fields = ["name", "slug"]
    prepopulated_fields = {"slug": ["name"]}

    def get_prepopulated_fields(self, request: HttpRequest, obj: ClientClass | None = None) -> dict[str, Any]:
        return {} if obj else dict(self.prepopulated_fields)


@admin.register(HardwareRule)
class HardwareRuleAdmin(ScopedAdmin[HardwareRule]):
    change_right = Right.MANAGE
    list_display = ["priority", "pattern", "adapter", "client_class", "site", "note"]
    list_display_links = ["pattern"]
    list_filter = ["site", "client_class"]
    list_select_related = ["client_class", "site"]
    search_fields = ["vendor", "device", "note"]
    readonly_fields = ["adapter", "matches"]
    fieldsets = [
        (None, {"fields": ["site", "client_class", "priority", "note"]}),
        ("Graphics adapter", {"fields": [("vendor", "device"), ("subvendor", "subdevice"), "adapter", "matches"]}),
    ]

    @admin.display(description="adapter")
    def adapter(self, rule: HardwareRule) -> str:
        return adapter_name(rule.vendor, rule.device) if rule.vendor else "—"

    @admin.display(description="fits now")
    def matches(self, rule: HardwareRule) -> str:
        """Which present clients have such an adapter; another rule may still come first."""
        if rule.pk is None:
            return "Save it to see which clients it fits."
        clients = Client.objects.filter(site=rule.site)
        fits = [
            str(client)
            for client in clients
            if any(rule.pattern.matches(adapter) for adapter in adapters_from_json(client.adapters))
        ]
        return ", ".join(fits) or "no client that has been seen"
