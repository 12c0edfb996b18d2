"""What every route answers to whom. A route that stands in no table fails ``test_routes`` by its name: state here who may what."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver

from agents.models import Campaign, Rollout, Verb
from fleet.models import Client, ClientClass
from fleet.roles import Right
from images.models import ImageVersion
from tests.world import World

VIEW, OPERATE, ENROL, BUILD, RELEASE, MANAGE = Right
OWN = "own"  # of the person who asks, whoever that is

# The REST API: the right that each needs. Strangers get 401. Who is of another site sees none of its rows: 404, in lists nothing.
API: dict[str, Right | str] = {
    "GET me/": OWN,
    "GET tokens/": OWN,
    "POST tokens/": OWN,
    "DELETE tokens/<pk>/": OWN,
    "GET sites/": VIEW,
    "GET sites/<pk>/": VIEW,
    "POST sites/<pk>/enrolment/": MANAGE,
    "GET classes/": VIEW,
    "GET classes/<pk>/": VIEW,
    "GET rules/": VIEW,
    "GET rules/<pk>/": VIEW,
    "GET clients/": VIEW,
    "GET clients/<pk>/": VIEW,
    "PATCH clients/<pk>/": ENROL,
    "POST clients/<pk>/admission/": ENROL,
    "POST clients/<pk>/take-back-twin/": ENROL,
    "GET audit/": VIEW,
    "GET audit/export/": VIEW,
    "GET audit/<pk>/": VIEW,
    "GET images/": VIEW,
    "GET images/<pk>/": VIEW,
    "POST images/<pk>/build/": BUILD,
    "POST images/<pk>/home-templates/": BUILD,
    "GET versions/": VIEW,
    "GET versions/<pk>/": VIEW,
    "GET versions/<pk>/compare/": VIEW,
    "GET versions/<pk>/sbom/": VIEW,
    "POST versions/<pk>/archive/": BUILD,
    "POST versions/<pk>/cancel/": BUILD,
    "POST versions/<pk>/check/": BUILD,
    "POST versions/<pk>/derive/": BUILD,
    "POST versions/<pk>/forget/": BUILD,
    "POST versions/<pk>/restore/": BUILD,
    "POST versions/<pk>/retry/": BUILD,
    "POST versions/<pk>/upgrades/": BUILD,
    "POST versions/<pk>/canary/": RELEASE,
    "POST versions/<pk>/release/": RELEASE,
    "GET releases/": VIEW,
    "GET releases/<pk>/": VIEW,
    "POST releases/<pk>/promote/": RELEASE,
    "POST releases/<pk>/roll-back/": RELEASE,
    "POST releases/<pk>/withdraw/": RELEASE,
    "GET home-templates/": VIEW,
    "GET home-templates/<pk>/": VIEW,
    "POST home-templates/<pk>/accept/": BUILD,
    "POST home-templates/<pk>/refuse/": BUILD,
    "POST home-templates/<pk>/use/": RELEASE,
    "GET findings/": VIEW,
    "GET findings/<pk>/": VIEW,
    "POST findings/<pk>/accept/": BUILD,
    "POST findings/<pk>/dismiss/": BUILD,
    "GET merges/": VIEW,
    "GET merges/<pk>/": VIEW,
    "POST merges/<pk>/keep/": BUILD,
    "POST merges/<pk>/take/": BUILD,
    "GET layers/": VIEW,
    "GET layers/<pk>/": VIEW,
    "POST layers/<pk>/build/": BUILD,
    "GET layer-builds/": VIEW,
    "GET layer-builds/<pk>/": VIEW,
    "POST layer-builds/<pk>/cancel/": BUILD,
    "GET orders/": VIEW,
    "POST orders/": OPERATE,
    "GET orders/<pk>/": VIEW,
    "POST orders/<pk>/approve/": RELEASE,
    "POST orders/<pk>/cancel/": OPERATE,
    "GET commands/": VIEW,
    "GET commands/<pk>/": VIEW,
    "POST commands/<pk>/cancel/": OPERATE,
    "GET campaigns/": VIEW,
    "POST campaigns/": OPERATE,
    "POST campaigns/preview/": OPERATE,
    "GET campaigns/<pk>/": VIEW,
    "GET campaigns/<pk>/targets/": VIEW,
    "POST campaigns/<pk>/approve/": RELEASE,
    "POST campaigns/<pk>/pause/": OPERATE,
    "POST campaigns/<pk>/resume/": OPERATE,
    "POST campaigns/<pk>/stop/": OPERATE,
    "GET rollouts/": VIEW,
    "POST rollouts/": OPERATE,
    "GET rollouts/<pk>/": VIEW,
    "POST rollouts/<pk>/stop/": OPERATE,
    "GET wakes/": VIEW,
    "GET wakes/<pk>/": VIEW,
    "GET wakes/models/": VIEW,
    "GET power-ports/": VIEW,
    "GET power-ports/<pk>/": VIEW,
    "GET sessions/": VIEW,
    "GET sessions/<pk>/": VIEW,
    "POST sessions/<pk>/revoke/": ENROL,
    "GET restores/": VIEW,
    "GET restores/export/": VIEW,
    "GET restores/<pk>/": VIEW,
}


def _client() -> str:
    return str(Client.objects.filter(site__slug="clubroom").order_by("pk").values_list("pk", flat=True)[0])


def _campaign() -> dict[str, Any]:
    return {"site": "clubroom", "verb": "restart", "reason": "why", "selection": {}}


def _class() -> int:
    return ClientClass.objects.get(slug="contest").pk


# What is asked for where {} would be refused before the right is looked at.
BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "POST sites/<pk>/enrolment/": lambda: {"minutes": 60},
    "PATCH clients/<pk>/": lambda: {"seat": "B7"},
    "POST clients/<pk>/admission/": lambda: {"admission": "maintenance"},
    "POST versions/<pk>/canary/": lambda: {"client_class": _class(), "share": 50},
    "POST versions/<pk>/release/": lambda: {"client_class": _class()},
    "POST home-templates/<pk>/use/": lambda: {"client_class": _class()},
    "POST merges/<pk>/take/": lambda: {"content": "x"},
    "POST campaigns/": _campaign,
    "POST campaigns/preview/": _campaign,
    "POST orders/": lambda: {"verb": "restart", "clients": [_client()], "reason": "why"},
    "POST rollouts/": lambda: {"client_class": ClientClass.objects.get(slug="gamer").pk},
    "POST tokens/": lambda: {"name": "mine"},
    "POST layers/<pk>/build/": lambda: {"version": ImageVersion.objects.order_by("pk").values_list("pk", flat=True)[0]},
}
# What names rows of another site in its body is told that there are none.
ELSEWHERE = {"POST orders/": 400, "POST rollouts/": 400, "POST campaigns/": 400, "POST campaigns/preview/": 400}
QUERIES = {"GET versions/<pk>/compare/": "?other=<pk>"}

# Pages for people: the right that each needs. Strangers are sent to the login, also with a token of the API; who is of another
# site gets 404, who lacks the right 403.
PAGES: dict[str, Right | str] = {
    "GET ": OWN,
    "GET sites/<slug:slug>/": VIEW,
    "GET sites/<slug:slug>/events": VIEW,
    "POST sites/<slug:slug>/orders": OPERATE,
    "POST sites/<slug:slug>/orders/<uuid:order>/cancel": OPERATE,
    "GET sites/<slug:slug>/campaigns/": VIEW,
    "POST sites/<slug:slug>/campaigns/": OPERATE,
    "GET sites/<slug:slug>/campaigns/<uuid:campaign>/": VIEW,
    "POST sites/<slug:slug>/campaigns/<uuid:campaign>/<slug:what>": OPERATE,
    "POST sites/<slug:slug>/freeze": OPERATE,
    "POST sites/<slug:slug>/freeze/lift": RELEASE,
    "POST sites/<slug:slug>/rollouts/<int:client_class>": OPERATE,
    "POST sites/<slug:slug>/rollouts/<uuid:row>/stop": OPERATE,
}
FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "POST sites/<slug:slug>/orders": lambda: {"verb": Verb.RESTART, "client": _client(), "reason": "why"},
}


def page_parameters(world: World) -> dict[str, str]:
    """The parameters of the pages, each of the club room."""
    order = world.clubroom.orders.order_by("pk").first()
    rollout = Rollout.objects.order_by("pk").first()
    campaign = Campaign.objects.first()
    assert campaign is not None
    assert order is not None
    assert rollout is not None
    parameters = {"<slug:slug>": "clubroom", "<uuid:order>": str(order.pk), "<uuid:row>": str(rollout.pk)}
    parameters |= {"<uuid:campaign>": str(campaign.pk), "<slug:what>": "stop"}
    return {**parameters, "<int:client_class>": str(world.gamer.pk)}


# What anybody may ask, with the answers.
OPEN: dict[str, tuple[int, ...]] = {
    "GET healthz": (200, 503),  # how the server is, in a word
    "GET login/": (200,),
    "GET favicon.ico": (301,),
    "GET api/schema/": (200, 401),  # how the API is spoken, no row of it; 401 for a token that is none
    "GET admin/login/": (302,),  # to the one login
    "GET api/v1/<path:path>": (401, 404),  # no address of the API: 404 for who is known there
    "POST logout/": (302,),
    "GET metrics": (401,),  # for who brings FLEET_METRICS_TOKEN, whatever else they are
}


def web_routes() -> Iterator[tuple[str, Any]]:
    """Every route of the web process but the admin's own (tests/fleet/test_admin_sweep.py has those): its methods and its view."""

    def walk(patterns: Any, before: str) -> Iterator[tuple[str, URLPattern]]:
        for pattern in patterns:
            if getattr(pattern, "namespace", "") == "admin":
                continue
            address = before + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, address)
            else:
                yield address, pattern

    for address, pattern in walk(get_resolver().url_patterns, ""):
        address = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"<\1>", address).replace("^", "").replace("$", "")
        for method in _methods(address, pattern.callback):
            yield f"{method} {address}", pattern.callback


def _methods(address: str, view: Any) -> list[str]:
    if actions := getattr(view, "actions", None):
        return [method.upper() for method in actions if method in view.cls.http_method_names and method != "head"]
    return [method for method in ("GET", "POST") if f"{method} {address}" in {*PAGES, *OPEN}] or ["GET"]


# The gateway: what each route answers to wrong credentials.
FIRMWARE = {  # no credentials exist yet: a MAC is a name
    ("GET", "/boot/v1/start.ipxe"): 200,
    ("GET", "/boot/v1/client.ipxe"): 200,
}
BOOT_TOKEN = {("POST", "/boot/v1/plan"): 403, ("POST", "/boot/v1/trouble"): 403}
BEARER = {
    ("POST", "/agent/v1/session"),
    ("GET", "/agent/v1/next"),
    ("POST", "/agent/v1/reports"),
    ("PUT", "/agent/v1/capture"),
    ("PUT", "/agent/v1/writes"),
    ("PUT", "/agent/v1/hold"),
    ("POST", "/agent/v1/bye"),
}
MONITOR = {("GET", "/metrics"): 401}
GATEWAY = {*FIRMWARE, *BOOT_TOKEN, *BEARER, *MONITOR}
