import json
from typing import Any

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import models
from django.test import Client as Browser
from django.urls import reverse

from fleet import audit, services
from fleet.models import (
    Admission,
    ApiToken,
    AuditEntry,
    Client,
    ClientClass,
    HardwareRule,
    Membership,
    Site,
    token_hash,
)
from fleet.querysets import ScopedQuerySet
from fleet.roles import Role
from images import findings
from images.finding_models import FindingKind, FindingSource
from images.findings import Found
from images.merge_models import FileMerge
from images.models import ImageFile, Layer
from images.services import release
from tests.agents.halls import make_rows
from tests.agents.restores import make_restore, make_wake
from tests.images.versions import make_image, make_layer_build, make_version
from tests.world import World, make_client, member, person


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def everything(world: World) -> None:
    """A row of each kind at the club room."""
    image = make_image(world.clubroom)
    version = make_version(image)
    make_layer_build(Layer.objects.create(image=image, slug="driver", name="Driver"), version)
    FileMerge.objects.create(version=version, path="/etc/x", base="", package="y", merged="y")
    findings.note(version, FindingSource.CHECKED, [Found(FindingKind.UNIT, "x.service")])
    release(version, world.gamer, world.otto)
    client = make_client(world.clubroom, client_class=world.gamer)
    make_rows(world, make_restore(world, client).command)
    make_wake(client)


def pages() -> list[tuple[type[models.Model], str]]:
    return [
        (model, f"admin:{model._meta.app_label}_{model._meta.model_name}")
        for model in admin.site._registry
        if isinstance(model._default_manager.all(), ScopedQuerySet)
    ]


def test_every_page_shows_its_rows_to_members_and_none_of_them_to_others(world: World) -> None:
    everything(world)
    vera, mallory = as_(world.vera), as_(world.mallory)
    assert len(pages()) >= 14
    for model, name in pages():
        rows: Any = model._default_manager
        row = rows.visible_to(world.vera).first()
        assert row is not None, f"the world has no {name}"
        assert not rows.filter(pk=row.pk).visible_to(world.mallory).exists()
        assert vera.get(reverse(f"{name}_changelist")).status_code == 200, name
        assert vera.get(reverse(f"{name}_change", args=[row.pk])).status_code == 200, name
        listed = mallory.get(reverse(f"{name}_changelist"))
        assert str(row.pk) not in [str(found.pk) for found in listed.context["cl"].result_list], name
        for view in ("change", "delete", "history"):
            address = reverse(f"{name}_{view}", args=[row.pk])
            for answer in (mallory.get(address), mallory.post(address, {"post": "yes"})):
                # Django's admin sends to its index whoever asks for a row that is not there.
                assert answer.status_code in (302, 403), (name, view)
                assert str(row) not in answer.content.decode() or answer.status_code == 403
        assert rows.filter(pk=row.pk).exists()


def test_an_edit_is_written_down_with_what_was_and_what_is(world: World) -> None:
    client = make_client(world.clubroom)
    address = f"/admin/fleet/client/{client.pk}/change/"
    form = {"seat": "C7", "name": "station-7", "admission": "in-service", "client_class": world.contest.pk}
    assert as_(world.vera).post(address, form | {"class_pinned": "on"}).status_code == 302
    entry = AuditEntry.objects.get(action="client.edited")
    assert (entry.actor, entry.site) == ("vera", world.clubroom)
    assert entry.detail["was"] == {"seat": "A1", "name": "pc-01", "client_class": None, "class_pinned": False}
    assert entry.detail["now"] == {
        "seat": "C7",
        "name": "station-7",
        "client_class": "Paper contest",
        "class_pinned": True,
    }
    assert as_(world.vera).post(address, form | {"class_pinned": "on"}).status_code == 302
    assert AuditEntry.objects.filter(action="client.edited").count() == 1, "nothing changed the second time"


def test_adding_and_deleting_are_written_down(world: World) -> None:
    world.vera.memberships.update(role="site-admin")
    vera = as_(world.vera)
    form = {"site": world.clubroom.pk, "client_class": world.gamer.pk, "priority": 5, "vendor": "10de", "device": "*"}
    assert vera.post("/admin/fleet/hardwarerule/add/", form | {"subvendor": "*", "subdevice": "*"}).status_code == 302
    rule = HardwareRule.objects.get(vendor="10de")
    assert vera.post(f"/admin/fleet/hardwarerule/{rule.pk}/delete/", {"post": "yes"}).status_code == 302
    chosen = {"action": "delete_selected", ACTION_CHECKBOX_NAME: [world.contest.rules.get().pk], "post": "yes"}
    assert vera.post("/admin/fleet/hardwarerule/", chosen).status_code == 302
    actions = AuditEntry.objects.order_by("sequence").values_list("action", flat=True)
    assert list(actions)[1:] == ["hardwarerule.added", "hardwarerule.deleted", "hardwarerule.deleted"]
    assert list(audit.verify()) == []


def test_a_recipes_files_and_hooks_are_part_of_its_edit(world: World) -> None:
    image = make_image(world.clubroom)
    file = ImageFile.objects.create(image=image, path="/etc/motd", content="Hello")
    page = as_(world.vera).get(f"/admin/images/image/{image.pk}/change/")
    form: dict[str, Any] = {}
    for each in (page.context["adminform"].form, *(inline.formset for inline in page.context["inline_admin_formsets"])):
        forms = (
            [each] if hasattr(each, "initial") and not hasattr(each, "forms") else [each.management_form, *each.forms]
        )
        for one in forms:
            form |= {one.add_prefix(name): one[name].value() for name in one.fields if one[name].value() is not None}
    form = {name: value for name, value in form.items() if value is not False}
    form["recipe_files-0-content"] = "Welcome"
    assert as_(world.vera).post(f"/admin/images/image/{image.pk}/change/", form).status_code == 302
    file.refresh_from_db()
    assert file.content == "Welcome"
    [entry] = AuditEntry.objects.filter(action="image.edited")
    [part] = entry.detail["parts"].values()
    assert part["changed"] == [{"row": "/etc/motd", "was": {"content": "Hello"}, "now": {"content": "Welcome"}}]


def test_clients_are_admitted_and_retired_in_bulk(world: World) -> None:
    pcs = [make_client(world.clubroom, f"52:54:00:00:00:0{n}", admission="pending") for n in range(3)]
    chosen = {"action": "admit", ACTION_CHECKBOX_NAME: [str(pc.pk) for pc in pcs]}
    page = as_(world.vera).post("/admin/fleet/client/", chosen, follow=True)
    assert "In service: " in page.content.decode()
    assert set(Client.objects.values_list("admission", flat=True)) == {Admission.IN_SERVICE}
    assert AuditEntry.objects.filter(action="client.admission", actor="vera").count() == 3


def test_a_class_of_another_site_cannot_be_chosen(world: World) -> None:
    kiosk = ClientClass.objects.create(site=world.school, slug="kiosk", name="Kiosk")
    member(world.mallory, world.clubroom, "site-admin")  # type: ignore[arg-type]
    client = make_client(world.clubroom)
    form = {"seat": "A1", "name": "pc-01", "admission": "in-service", "client_class": kiosk.pk}
    page = as_(world.mallory).post(f"/admin/fleet/client/{client.pk}/change/", form)
    assert page.status_code == 200
    assert "that one belongs to another site" in page.content.decode()
    new = {"site": world.clubroom.pk, "mac": "52:54:00:00:00:09", "name": "x"}
    page = as_(world.mallory).post("/admin/fleet/client/add/", form | new)
    assert "The class belongs to another site." in page.content.decode()
    page = as_(world.mallory).get(f"/admin/fleet/site/{world.clubroom.pk}/change/")
    assert kiosk not in page.context["adminform"].form.fields["default_class"].queryset


def test_a_site_admin_makes_no_other_site_and_gives_roles_at_their_own_only(world: World) -> None:
    mallory = as_(world.mallory)
    assert mallory.get("/admin/fleet/site/add/").status_code == 403
    form = {"user": "mallory", "site": world.clubroom.pk, "role": "site-admin"}
    assert mallory.post("/admin/fleet/membership/add/", form).status_code == 200
    assert not Membership.objects.filter(user=world.mallory, site=world.clubroom).exists()
    form = {"user": "vera", "site": world.school.pk, "role": "viewer"}
    page = mallory.post("/admin/fleet/membership/add/", form | {"user": "nobody"})
    assert "Nobody is called nobody." in page.content.decode()
    assert "vera" not in mallory.get("/admin/fleet/membership/add/").content.decode(), "names of others are theirs"
    assert mallory.post("/admin/fleet/membership/add/", form).status_code == 302
    assert Membership.objects.filter(user=world.vera, site=world.school, role="viewer").exists()


def test_a_site_with_a_history_is_not_deleted_but_explained(world: World) -> None:
    audit.record("test", "x", site=world.clubroom, actor="x")
    root = User.objects.create_superuser("root")
    page = as_(root).post(f"/admin/fleet/site/{world.clubroom.pk}/delete/", {"post": "yes"})
    assert "Its audit log is evidence." in page.content.decode()
    assert Site.objects.filter(pk=world.clubroom.pk).exists()


def test_a_rule_names_its_adapter_and_the_clients_it_fits(world: World) -> None:
    adapter = {"address": "0000:00:02.0", "vendor": "1013", "device": "00b8", "subvendor": "1af4", "subdevice": "1100"}
    make_client(world.clubroom, adapters=[adapter | {"pci_class": "030000"}])
    rule = world.gamer.rules.get()
    page = as_(world.vera).get(f"/admin/fleet/hardwarerule/{rule.pk}/change/").content.decode()
    assert "Cirrus Logic GD 5446" in page
    assert "A1 (pc-01)" in page


def test_a_token_is_made_shown_once_and_deleted_by_its_owner_alone(world: World) -> None:
    vera = as_(world.vera)
    page = vera.post("/admin/fleet/apitoken/add/", {"name": "kiosk", "read_only": "on"})
    assert "no-store" in page["Cache-Control"]
    token = ApiToken.objects.get()
    secret = page.context["secret"]
    assert (token.digest, token.user, token.read_only) == (token_hash(secret), world.vera, True)
    assert secret not in vera.get("/admin/fleet/apitoken/").content.decode()
    assert vera.post("/admin/fleet/apitoken/add/", {"name": "kiosk"}).status_code == 200, "the name is taken"
    assert vera.post(
        "/admin/fleet/apitoken/add/", {"name": "old", "expires_at_0": "2020-01-01", "expires_at_1": "00:00"}
    ).context["errors"]
    nina = as_(person("nina"))
    assert "kiosk" not in nina.get("/admin/fleet/apitoken/").content.decode()
    nina.post(f"/admin/fleet/apitoken/{token.pk}/delete/", {"post": "yes"})
    assert ApiToken.objects.filter(pk=token.pk).exists()
    assert vera.post(f"/admin/fleet/apitoken/{token.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not ApiToken.objects.exists()
    assert set(AuditEntry.objects.values_list("action", flat=True)) >= {"token.issued", "token.revoked"}


def test_a_superuser_sees_and_ends_everybodys_tokens(world: World) -> None:
    token, _ = services.issue_token(world.vera, "kiosk")
    root = as_(User.objects.create_superuser("root"))
    assert "kiosk" in root.get("/admin/fleet/apitoken/").content.decode()
    chosen = {"action": "delete_selected", ACTION_CHECKBOX_NAME: [token.pk], "post": "yes"}
    assert root.post("/admin/fleet/apitoken/", chosen).status_code == 302
    assert not ApiToken.objects.exists()
    assert AuditEntry.objects.get(action="token.revoked").detail == {"owner": "vera"}


def test_the_secret_of_a_token_is_in_one_answer_and_nowhere_else(world: World) -> None:
    vera = as_(world.vera)
    secret = vera.post("/admin/fleet/apitoken/add/", {"name": "kiosk", "_continue": "1"}).context["secret"]
    token = ApiToken.objects.get()
    for address in ("", f"{token.pk}/change/", f"{token.pk}/history/", f"{token.pk}/delete/"):
        page = vera.get(f"/admin/fleet/apitoken/{address}", follow=True)
        assert page.status_code == 200
        assert secret not in page.content.decode()
    assert secret not in str([entry.detail for entry in AuditEntry.objects.all()])
    assert secret not in str([entry.change_message for entry in LogEntry.objects.all()])


def test_the_index_is_grouped_by_what_people_do_and_leads_to_the_board(world: World) -> None:
    page = as_(world.vera).get("/admin/")
    groups = {group["name"]: [str(each["name"]) for each in group["models"]] for group in page.context["app_list"]}
    assert list(groups) == ["Clients", "Images", "Sites", "Logs", "Accounts"]
    assert groups["Clients"] == ["Clients", "Tags", "Campaigns", "Targets", "Orders", "Commands", "Power ports"]
    assert len(groups["Accounts"]) == 1, "people's accounts are for superusers"
    text = page.content.decode()
    assert "<title>Administration | Stateless Fleet</title>" in " ".join(text.split()).replace("<title> ", "<title>")
    assert f'<a href="{reverse("index")}">Board</a>' in text


def test_every_page_of_the_admin_stands_in_the_index(world: World) -> None:
    root = as_(User.objects.create_superuser("root"))
    shown = {page["model"] for group in root.get("/admin/").context["app_list"] for page in group["models"]}
    assert shown == set(admin.site._registry)


def test_who_has_no_role_is_told_whom_to_ask(world: World) -> None:
    page = as_(person("nina")).get("/admin/")
    assert [group["name"] for group in page.context["app_list"]] == ["Accounts"], "tokens of one's own"


def test_where_names_repeat_choices_say_of_which_site_they_are(world: World) -> None:
    ClientClass.objects.create(site=world.school, slug="gamer", name="Gamer")
    page = as_(world.vera).get("/admin/fleet/client/add/").content.decode()
    assert ">Gamer<" in page
    member(world.vera, world.school, Role.VIEWER)
    vera = as_(world.vera)
    page = vera.get("/admin/fleet/client/add/").content.decode()
    assert ">Club room: Gamer<" in page
    assert ">School: Gamer<" in page
    assert "School: Gamer" in vera.get("/admin/fleet/client/").content.decode()


def test_a_list_that_is_filtered_shows_what_the_filter_names(world: World) -> None:
    make_client(world.clubroom, client_class=world.gamer, state="ready")
    make_client(world.clubroom, "52:54:00:00:00:02", admission="pending")
    vera = as_(world.vera)
    for query, names in (
        (f"site__id__exact={world.clubroom.pk}", ["pc-01", "pc-02"]),
        (f"client_class__id__exact={world.gamer.pk}", ["pc-01"]),
        ("state__exact=ready", ["pc-01"]),
        ("admission__exact=pending", ["pc-02"]),
    ):
        found = vera.get(f"/admin/fleet/client/?{query}").context["cl"].result_list
        assert [client.name for client in found] == names, query


def test_the_log_is_filtered_by_site_action_actor_and_day(world: World) -> None:
    audit.record("order", "mine", site=world.clubroom, actor=world.vera)
    audit.record("release", "other", site=world.clubroom, actor=world.otto)
    year = AuditEntry.objects.get(subject="mine").at.year
    root = as_(User.objects.create_superuser("root"))
    for query, number in (
        ("action=order", 1),
        ("actor=otto", 1),
        (f"site__id__exact={world.clubroom.pk}", 2),
        (f"site__id__exact={world.clubroom.pk}&at__year={year}", 2),
        (f"site__id__exact={world.clubroom.pk}&at__year={year - 1}", 0),
    ):
        lines = root.get(f"/admin/fleet/auditentry/export/jsonl/?{query}").getvalue().decode().splitlines()
        assert len(lines) == number, query


def test_the_audit_log_is_searched_and_exported_and_has_no_button_to_change_it(world: World) -> None:
    audit.record("order", "=HYPERLINK(1)", site=world.clubroom, actor=world.vera, reason="x")
    audit.record("order", "theirs", site=world.school, actor=world.mallory)
    vera = as_(world.vera)
    lines = vera.get("/admin/fleet/auditentry/export/jsonl/?q=vera").getvalue().decode().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["=HYPERLINK(1)"]
    assert b"'=HYPERLINK(1)" in vera.get("/admin/fleet/auditentry/export/csv/").getvalue()
    entry = AuditEntry.objects.get(site=world.clubroom)
    page = vera.get(f"/admin/fleet/auditentry/{entry.pk}/change/").content.decode()
    assert "&quot;reason&quot;: &quot;x&quot;" in page
    assert 'name="_save"' not in page
