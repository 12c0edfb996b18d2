"""The volunteers' pages of sites, classes, rules and clients, and the audit log to read."""

from django.contrib import admin

from fleet.admin.scoped import ScopedAdmin
from fleet.hardware import adapter_name
from fleet.models import AuditEntry, Client, ClientClass, HardwareRule, Membership, Site
from fleet.roles import Right


@admin.register(Site)
class SiteAdmin(ScopedAdmin[Site]):
    change_right = Right.MANAGE
    list_display = ["name", "slug", "unknown_hardware", "enrolment_open"]


@admin.register(Membership)
class MembershipAdmin(ScopedAdmin[Membership]):
    change_right = Right.MANAGE
    list_display = ["user", "site", "role"]


@admin.register(ClientClass)
class ClientClassAdmin(ScopedAdmin[ClientClass]):
    change_right = Right.MANAGE
    list_display = ["name", "site", "colour", "root_percent", "home_percent"]


@admin.register(HardwareRule)
class HardwareRuleAdmin(ScopedAdmin[HardwareRule]):
    change_right = Right.MANAGE
    list_display = ["pattern", "adapter", "client_class", "priority", "site"]

    @admin.display(description="adapter")
    def adapter(self, rule: HardwareRule) -> str:
        return adapter_name(rule.vendor, rule.device)


@admin.register(Client)
class ClientAdmin(ScopedAdmin[Client]):
    change_right = Right.ENROL
    list_display = ["seat", "name", "client_class", "state", "admission", "adapters_named", "site"]
    search_fields = ["seat", "name", "mac"]

    @admin.display(description="adapters")
    def adapters_named(self, client: Client) -> str:
        return ", ".join(adapter_name(adapter["vendor"], adapter["device"]) for adapter in client.adapters)


@admin.register(AuditEntry)
class AuditEntryAdmin(ScopedAdmin[AuditEntry]):
    list_display = ["at", "actor", "action", "subject", "chain", "sequence"]
    search_fields = ["actor", "action", "subject"]
    date_hierarchy = "at"
