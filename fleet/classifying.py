"""Which class a client is, by the rules of its site."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.db import transaction

from fleet import audit
from fleet.hardware import Adapter, Rule, deduce
from fleet.models import Client, ClientClass, HardwareRule, Site, UnknownHardware


class Found(NamedTuple):
    """A client's class, None where it has to wait for one; and why, in words."""

    target: ClientClass | None
    why: str


def rules_of(site: Site) -> list[Rule]:
    rules = HardwareRule.objects.filter(site=site).select_related("client_class")
    return [Rule(rule.pattern, rule.priority, rule.client_class) for rule in rules]


def class_of(client: Client, adapters: Sequence[Adapter], rules: Sequence[Rule]) -> Found:
    """A pinned class stays. Where no rule matches the site chooses: its default class, or None."""
    if client.class_pinned:
        return Found(client.client_class, "it is pinned")
    if found := deduce(adapters, rules):
        return Found(found.target, f"{found.adapter.vendor}:{found.adapter.device} by {found.rule.pattern}")
    site = client.site
    return Found(site.default_class if site.unknown_hardware == UnknownHardware.DEFAULT else None, "no rule matches")


@transaction.atomic
def settle(found: Iterable[tuple[Client, Found]], actor: str) -> None:
    """Have clients be of the class that was found, and write down for whom that is another one than before."""
    changed = [(client, one) for client, one in found if one.target != client.client_class]
    events: dict[Site, list[audit.Event]] = {}
    for client, one in changed:
        detail = {"why": one.why, "was": str(client.client_class or ""), "now": str(one.target or "")}
        events.setdefault(client.site, []).append(audit.Event("client.classified", client, actor, detail))
        client.client_class = one.target
    for target in {one.target for _, one in changed}:
        of_it = [client.pk for client, one in changed if one.target == target]
        Client.objects.filter(pk__in=of_it).update(client_class=target)
    for site, told in events.items():
        audit.record_many(site, told)
