"""Every address of the admin, found in its own list of addresses, asked by everybody: a page added tomorrow is asked too."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.db import connection, models
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, URLPattern, URLResolver, get_resolver, reverse

from agents import campaigning, campaigns, freezing
from agents.models import BootSession, Campaign, Cap, Command, Freeze, HomeRestore, Order, PowerPort, Target, Wake
from agents.selecting import Selection
from fleet import services
from fleet.models import ApiToken, AuditEntry, Client, ClientClass, HardwareRule, Membership, Site, Tag
from fleet.querysets import ScopedQuerySet, site_of
from images import findings
from images.finding_models import FindingKind, FindingSource
from images.findings import Found
from images.merge_models import FileMerge
from images.models import HomeTemplate, Image, ImageFile, ImageHook, ImageVersion, Layer, LayerBuild, LayerFile, Release
from images.services import release
from tests.agents.restores import make_restore, make_wake
from tests.images.versions import make_image, make_layer_build, make_version
from tests.world import World, make_client, member, person

pytestmark = pytest.mark.slow

# What a page of the club room would give away.
TRACES = re.compile(
    r"\b(club room|gamer|paper contest|vera|otto|pc-0\d|52:54:00:00:00:0\d|next player|scoreboard)\b",
    re.IGNORECASE,
)
LOGIN, LOGOUT = "login", "logout"
PARAMETERS: dict[str, tuple[str, ...]] = {
    "kind": ("csv", "jsonl"),
    "order": ("build", "release", "cancel", "retry", "again", "roll-back", "forget", "archive", "restore"),
    "url": ("nothing",),
    "app_label": ("fleet", "agents", "images", "auth"),
}
RUBBISH = ("rubbish", "0", "-1", "9" * 40, "\0", "_5F", "00000000-0000-0000-0000-000000000000", "ü" * 300)


@pytest.fixture
def full_world(world: World) -> World:
    """The club room with a row of each kind."""
    image = make_image(world.clubroom)
    ImageFile.objects.create(image=image, path="/etc/motd", content="x")
    ImageHook.objects.create(image=image, position=1, script="true")
    layer = Layer.objects.create(image=image, slug="driver", name="Gamer driver", packages="hello")
    LayerFile.objects.create(layer=layer, path="/etc/X11/xorg.conf", content="x")
    version = make_version(image)
    make_layer_build(layer, version)
    FileMerge.objects.create(version=version, path="/etc/x", base="", package="y", merged="y")
    findings.note(version, FindingSource.CHECKED, [Found(FindingKind.EROFS, "/etc/locked", "copy /etc/locked")])
    release(version, world.gamer, world.otto)
    client = make_client(world.clubroom, client_class=world.gamer)
    make_restore(world, client)
    services.tag([client], "scoreboard", world.vera)
    Cap.objects.create(site=world.clubroom, verb="cycle", at_once=5)
    campaign = campaigns.plan(
        world.clubroom, world.vera, verb="cycle", reason="next player", selection=Selection(), beyond_cap=True
    )
    campaigns.approve(campaigns.start(campaign, world.vera), world.otto)
    campaigning.step()
    freezing.freeze(world.clubroom, "next player", world.vera)
    make_wake(client)
    services.issue_token(world.vera, "scoreboard")
    Group.objects.create(name="Club room")
    return world


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def views() -> Iterator[tuple[str, list[str]]]:
    """The name of each view of the admin, and the parameters of its address."""
    [resolver] = [found for found in get_resolver().url_patterns if getattr(found, "namespace", "") == "admin"]

    def walk(patterns: Any, before: list[str]) -> Iterator[tuple[str, list[str]]]:
        for pattern in patterns:
            names = [*before, *pattern.pattern.regex.groupindex]
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, names)
            elif isinstance(pattern, URLPattern) and pattern.name:
                yield pattern.name, names

    assert isinstance(resolver, URLResolver)
    yield from walk(resolver.url_patterns, [])


def models_by_name() -> dict[str, type[models.Model]]:
    return {f"{model._meta.app_label}_{model._meta.model_name}": model for model in admin.site._registry}


def addresses() -> list[str]:
    """Every address of the admin, for each row there is."""
    known = models_by_name()
    found = []
    for name, parameters in views():
        if name in (LOGIN, LOGOUT):
            continue
        # The longest, for images_imageversion_live begins like images_image too.
        model = max((each for each in known if name.startswith(f"{each}_")), key=len, default=None)
        choices: list[dict[str, Any]] = [{}]
        for parameter in parameters:
            if parameter in PARAMETERS:
                values: list[Any] = list(PARAMETERS[parameter])
            elif parameter == "content_type_id":
                values = list(ContentType.objects.values_list("pk", flat=True))
            elif model and parameter in ("object_id", "pk", "id", "other"):
                values = [str(row.pk) for row in known[model]._default_manager.all()]
                assert values, f"the world has no {model}"
            elif parameter == "object_id":
                values = [str(row.pk) for row in Client.objects.all()]
            else:
                raise AssertionError(f"The sweep does not know what {parameter} of {name} is: teach it.")
            choices = [choice | {parameter: value} for choice in choices for value in values]
        found += [address for choice in choices if (address := _reverse(name, choice))]
    return found


def _reverse(name: str, choice: dict[str, Any]) -> str | None:
    try:
        return reverse(f"admin:{name}", kwargs=choice)
    except NoReverseMatch:
        # The site's own catch-all has no address of its own; a user's password has a numbered one.
        if "url" in choice:
            return "/admin/nothing"
        return reverse(f"admin:{name}", args=list(choice.values()))


def rows() -> dict[str, list[dict[str, Any]]]:
    """What the admin edits, but for what anybody may change of their own: the other site, tokens, times of logins and of requests.

    The audit log is left out too: it notes who was refused.
    """
    kept: dict[str, list[dict[str, Any]]] = {}
    edited: list[type[models.Model]] = [*admin.site._registry, ImageFile, ImageHook, LayerFile]
    for model in edited:
        if model is AuditEntry:
            continue
        for row in model._default_manager.order_by("pk"):
            site = site_of(row)
            if (site is None or site.slug == "clubroom") and getattr(row, "name", "") != "taken":
                values = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
                for noted in ("last_login", "last_used_at"):
                    values.pop(noted, None)
                kept.setdefault(model._meta.label, []).append(values)
    return kept


def forms(address: str) -> Iterator[dict[str, Any]]:
    """What an attacker would post there."""
    if address.endswith("/delete/"):
        yield {"post": "yes"}
        return
    yield {"name": "taken", "slug": "taken", "reason": "mine", "role": "site-admin", "_save": "Save"}
    model = next(
        (known for name, known in models_by_name().items() if address == f"/admin/{name.replace('_', '/')}/"), None
    )
    if model is not None:
        chosen = [str(row.pk) for row in model._default_manager.all()]
        more = {"post": "yes", "confirmed": "yes", "reason": "mine", "select_across": "1", "tag": "mine"}
        for action in ("delete_selected", *(str(name) for name in admin.site._registry[model].actions or ())):
            yield {"action": action, ACTION_CHECKBOX_NAME: chosen, **more}


@pytest.mark.parametrize("who", ["mallory", "nina"])
def test_nobody_sees_or_changes_anything_of_a_site_that_is_not_theirs(full_world: World, who: str) -> None:
    """``mallory`` is admin of another site; ``nina`` may log in and has no role anywhere."""
    user = full_world.mallory if who == "mallory" else person("nina")
    browser = as_(user)
    before = rows()
    asked = addresses()
    assert len(asked) > 120
    for address in asked:
        if who == "mallory":  # who may well have taken it from herself a moment ago
            Membership.objects.get_or_create(user=user, site=full_world.school, role="site-admin")
        answer = browser.get(address, follow=True)
        seen = TRACES.search(_said(answer))
        assert seen is None, f"GET {address} shows {seen}"
        for form in forms(address):
            answer = browser.post(address, form, follow=True)
            seen = TRACES.search(_said(answer))
            assert seen is None, f"POST {address} {form.get('action')} shows {seen}"
    assert rows() == before


def _said(answer: Any) -> str:
    return str(answer.getvalue().decode())


def test_a_viewer_sees_every_page_and_changes_nothing(full_world: World) -> None:
    full_world.vera.memberships.update(role="viewer")
    browser = as_(full_world.vera)
    before = rows()
    for address in addresses():
        if "apitoken" in address:
            continue  # one's own
        assert browser.get(address).status_code < 500
        for form in forms(address):
            assert browser.post(address, form).status_code < 500
    assert rows() == before


def test_strangers_see_the_login_and_nothing_else(full_world: World) -> None:
    before = rows()
    for address in addresses():
        for answer in (Browser().get(address), Browser().post(address, {"post": "yes"})):
            assert answer.status_code == 302, address
            assert "/login/?next=" in answer["Location"], address
    assert rows() == before


VOLUNTEER = {Client, Tag, Image, Layer, ApiToken, Freeze}
EDITS = {Client, Tag, Image, Layer}
MANAGER = VOLUNTEER | {ClientClass, HardwareRule, Membership, Cap, PowerPort}
READ_ONLY = {
    Campaign,
    Target,
    AuditEntry,
    HomeRestore,
    BootSession,
    Command,
    Order,
    ImageVersion,
    LayerBuild,
    Release,
    HomeTemplate,
    Wake,
}


@pytest.mark.parametrize(
    ("role", "adds", "edits"),
    [
        ("viewer", {ApiToken}, set()),
        ("volunteer", VOLUNTEER, EDITS),
        ("organiser", VOLUNTEER, EDITS),
        ("site-admin", MANAGER, EDITS | {ClientClass, HardwareRule, Membership, Site, Cap, PowerPort}),
    ],
)
def test_each_role_adds_and_edits_what_its_rights_name(
    full_world: World, role: str, adds: set[type[models.Model]], edits: set[type[models.Model]]
) -> None:
    full_world.vera.memberships.update(role=role)
    browser = as_(full_world.vera)
    for name, model in models_by_name().items():
        adding = browser.get(reverse(f"admin:{name}_add")).status_code
        assert adding == (200 if model in adds else 403), (role, name)
        if isinstance(model._default_manager.all(), ScopedQuerySet):
            rows_of: Any = model._default_manager
            row = rows_of.visible_to(full_world.vera).first()
            page = browser.get(reverse(f"admin:{name}_change", args=[row.pk]))
            assert page.context["has_change_permission"] == (model in edits), (role, name)


def test_every_model_of_a_site_is_registered_with_the_base_that_scopes_it() -> None:
    from fleet.admin.scoped import ScopedAdmin

    unscoped = {model for model, page in admin.site._registry.items() if not isinstance(page, ScopedAdmin)}
    assert unscoped == {ApiToken, User, Group}, "these scope themselves: to their owner, and to superusers"
    for model in READ_ONLY:
        page = admin.site._registry[model]
        assert isinstance(page, ScopedAdmin)
        assert page.change_right is None, f"{model} is written by the server alone"


@pytest.mark.parametrize("model", ["user", "group"])
def test_accounts_are_for_superusers(full_world: World, model: str) -> None:
    assert as_(full_world.mallory).get(f"/admin/auth/{model}/").status_code == 403
    assert as_(User.objects.create_superuser("root")).get(f"/admin/auth/{model}/").status_code == 200


def test_rubbish_breaks_no_page(full_world: World) -> None:
    """An unhandled error raises here."""
    root = as_(User.objects.create_superuser("root"))
    values = ("", "x", "9" * 40, "\0", "2026-99-99")
    names = (
        *(
            "q",
            "p",
            "o",
            "_facets",
            "_to_field",
            "_changelist_filters",
            "nonsense",
            "id",
            "site__id__exact",
            "at__year",
        ),
        *("action", "client__site__id__exact", "client_class__id__exact", "class_name"),
    )
    lists = [reverse(f"admin:{name}_changelist") for name in models_by_name()]
    exports = [f"/admin/{name}/export/csv/" for name in ("fleet/auditentry", "agents/homerestore")]
    for address in lists + exports:
        for name in names:
            for value in values:
                answer = root.get(address, {name: value})
                assert answer.status_code in (200, 302, 400), (address, name, value)
                answer.getvalue()  # a download fails while it is read


@pytest.mark.parametrize("key", RUBBISH)
def test_rubbish_as_a_row_leads_nowhere(full_world: World, key: str) -> None:
    root = as_(User.objects.create_superuser("root"))
    for name in models_by_name():
        for view in ("change", "delete", "history"):
            address = reverse(f"admin:{name}_{view}", args=[key])
            assert root.get(address).status_code in (302, 403, 404), address
            assert root.post(address, {"post": "yes"}).status_code in (302, 403, 404), address
        for action in ("delete_selected", "cycle", "admit", "cancel", "roll_back", "stop", "lift", "tag", "rubbish"):
            chosen = {"action": action, ACTION_CHECKBOX_NAME: [key], "confirmed": "yes", "index": key}
            answer = root.post(reverse(f"admin:{name}_changelist"), chosen)
            assert answer.status_code in (200, 302, 403), (name, action)


def test_a_list_asks_the_database_as_often_for_many_rows_as_for_few(full_world: World) -> None:
    vera = as_(full_world.vera)

    def queries() -> dict[str, int]:
        counts = {}
        for name in models_by_name():
            if name.startswith("auth_"):
                continue
            with CaptureQueriesContext(
                connection,
            ) as asked:
                assert vera.get(reverse(f"admin:{name}_changelist")).status_code == 200
            counts[name] = len(asked)
        return counts

    few = queries()
    for number in range(2, 6):
        make_restore(
            full_world, make_client(full_world.clubroom, f"52:54:00:00:00:0{number}", client_class=full_world.gamer)
        )
        image = make_image(full_world.clubroom, f"image-{number}")
        klass = ClientClass.objects.create(site=full_world.clubroom, slug=f"c{number}", name=f"C{number}")
        release(make_version(image), klass, full_world.otto)
        HardwareRule.objects.create(site=full_world.clubroom, client_class=klass, vendor="10de", device=f"000{number}")
        member(person(f"p{number}"), full_world.clubroom, "viewer")  # type: ignore[arg-type]
        services.issue_token(full_world.vera, f"t{number}")
        services.tag(Client.objects.filter(site=full_world.clubroom), f"tag{number}", full_world.vera)
        freezing.lift(Freeze.objects.get(lifted_at=None), full_world.otto)
        freezing.freeze(full_world.clubroom, "again", full_world.vera)
        campaigns.start(
            campaigns.plan(full_world.clubroom, full_world.vera, verb="cycle", reason="x", selection=Selection()),
            full_world.vera,
        )
        campaigning.step()
    assert queries() == few
