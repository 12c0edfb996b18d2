"""Every edit in the admin leaves an entry: who, what, was and is; no secrets."""

from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client as Browser

from fleet import audit
from fleet.admin.audited import AuditedAdmin
from fleet.models import AuditEntry, Client, ClientClass, HardwareRule, Membership, Site
from images.models import ImageFile
from tests.images.versions import make_image
from tests.world import World, make_client


def as_(user: User) -> Browser:
    browser = Browser()
    browser.force_login(user)
    return browser


def root() -> Browser:
    return as_(User.objects.create_superuser("root"))


def entry(action: str) -> AuditEntry:
    return AuditEntry.objects.get(action=action)


def test_other_rows_are_written_by_their_names_and_values_as_the_database_had_them(world: World) -> None:
    client = make_client(world.clubroom, client_class=world.gamer)
    form = {"seat": "A1", "name": "pc-01", "admission": "in-service", "client_class": world.contest.pk}
    Client.objects.filter(pk=client.pk).update(seat="B9")  # by somebody else, after the form was drawn
    assert as_(world.vera).post(f"/admin/fleet/client/{client.pk}/change/", form).status_code == 302
    detail = entry("client.edited").detail
    assert detail["was"] == {"seat": "B9", "client_class": "Gamer"}
    assert detail["now"] == {"seat": "A1", "client_class": "Paper contest"}


def test_a_site_and_its_first_admin_begin_the_sites_log(world: World) -> None:
    browser = root()
    form = {"name": "Hall", "slug": "hall", "unknown_hardware": "pending"}
    assert browser.post("/admin/fleet/site/add/", form).status_code == 302
    hall = Site.objects.get(slug="hall")
    member = {"user": "otto", "site": hall.pk, "role": "site-admin"}
    assert browser.post("/admin/fleet/membership/add/", member).status_code == 302
    log = AuditEntry.objects.filter(site=hall).order_by("sequence")
    assert [(each.action, each.actor) for each in log] == [("site.added", "root"), ("membership.added", "root")]
    assert log[1].detail["now"] == {"user": "otto", "site": "Hall", "role": "site-admin"}


def test_a_change_of_role_is_written_down_and_the_person_stays(world: World) -> None:
    mine = world.vera.memberships.get()
    world.otto.memberships.update(role="site-admin")
    form = {"role": "organiser", "user": "mallory", "site": world.school.pk}
    assert as_(world.otto).post(f"/admin/fleet/membership/{mine.pk}/change/", form).status_code == 302
    mine.refresh_from_db()
    assert (mine.user, mine.site, mine.role) == (world.vera, world.clubroom, "organiser")
    assert entry("membership.edited").detail == {"was": {"role": "volunteer"}, "now": {"role": "organiser"}}


def test_a_deleted_row_is_remembered_with_what_went_with_it(world: World) -> None:
    world.vera.memberships.update(role="site-admin")
    address = f"/admin/fleet/clientclass/{world.gamer.pk}/delete/"
    assert as_(world.vera).post(address, {"post": "yes"}).status_code == 302
    assert not ClientClass.objects.filter(slug="gamer").exists()
    detail = entry("clientclass.deleted").detail
    assert (detail["was"]["slug"], detail["was"]["site"]) == ("gamer", "Club room")
    assert detail["removed"] == {"hardware rules": 1}


def test_a_site_without_a_log_is_deleted_with_an_entry_of_its_end(world: World) -> None:
    empty = Site.objects.create(slug="empty", name="Empty")
    assert root().post(f"/admin/fleet/site/{empty.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Site.objects.filter(slug="empty").exists()
    assert entry("site.deleted").chain == audit.EVERYWHERE
    assert list(audit.verify()) == []


def test_a_client_with_a_history_stays_and_the_page_says_what_to_do(world: World) -> None:
    from tests.agents.restores import make_restore

    client = make_client(world.clubroom)
    make_restore(world, client)
    vera = as_(world.vera)
    page = vera.post(f"/admin/fleet/client/{client.pk}/delete/", {"post": "yes"})
    assert "Retire it instead" in page.content.decode()
    assert Client.objects.filter(pk=client.pk).exists()
    chosen = {"action": "delete_selected", "_selected_action": [str(client.pk)]}
    assert "Retire it instead" in vera.post("/admin/fleet/client/", chosen).content.decode()
    assert not AuditEntry.objects.filter(action="client.deleted").exists()


def test_what_is_added_to_and_taken_from_a_recipe_is_named(world: World) -> None:
    image = make_image(world.clubroom)
    old = ImageFile.objects.create(image=image, path="/etc/old", content="x")
    page = as_(world.vera).get(f"/admin/images/image/{image.pk}/change/")
    form: dict[str, Any] = {}
    for one in (page.context["adminform"].form, *_inlines(page)):
        values = {one.add_prefix(name): one[name].value() for name in one.fields}
        form |= {name: value for name, value in values.items() if value is not None and value is not False}
    form |= {"recipe_files-TOTAL_FORMS": 2, "recipe_files-0-DELETE": "on"}
    form |= {"recipe_files-1-path": "/etc/new", "recipe_files-1-mode": "0644", "recipe_files-1-content": "y" * 600}
    assert as_(world.vera).post(f"/admin/images/image/{image.pk}/change/", form).status_code == 302
    assert not ImageFile.objects.filter(pk=old.pk).exists()
    [part] = entry("image.edited").detail["parts"].values()
    assert part["deleted"] == ["/etc/old"]
    [new] = part["added"]
    assert (new["row"], new["now"]["mode"]) == ("/etc/new", "0644")
    assert new["now"]["content"].endswith("… (600 characters)"), "a long text is told by its beginning"


def _inlines(page: Any) -> list[Any]:
    sets = [inline.formset for inline in page.context["inline_admin_formsets"]]
    return [form for each in sets for form in (each.management_form, *each.initial_forms)]


def test_accounts_are_written_down_without_their_passwords(world: World) -> None:
    browser = root()
    secret = "correct-horse-9-battery"
    form = {"username": "nina", "password1": secret, "password2": secret, "usable_password": "true"}
    assert browser.post("/admin/auth/user/add/", form).status_code == 302
    nina = User.objects.get(username="nina")
    form = {"username": "nina", "is_staff": "on", "is_active": "on", "first_name": "Nina"}
    form |= {"date_joined_0": f"{nina.date_joined:%Y-%m-%d}", "date_joined_1": f"{nina.date_joined:%H:%M:%S}"}
    assert browser.post(f"/admin/auth/user/{nina.pk}/change/", form).status_code == 302
    other = {"password1": f"{secret}-2", "password2": f"{secret}-2", "usable_password": "true"}
    assert browser.post(f"/admin/auth/user/{nina.pk}/password/", other).status_code == 302
    assert browser.post(f"/admin/auth/user/{nina.pk}/password/", other | {"password2": "no"}).status_code == 200
    assert browser.post(f"/admin/auth/user/{nina.pk}/delete/", {"post": "yes"}).status_code == 302
    assert browser.post("/admin/auth/group/add/", {"name": "Crew"}).status_code == 302
    assert Group.objects.exists()
    log = AuditEntry.objects.filter(actor="root").exclude(action="login").order_by("sequence")
    did = [f"user.{what}" for what in ("added", "edited", "password-set", "deleted")]
    assert [each.action for each in log] == [*did, "group.added"]
    assert log[1].detail["was"]["is_staff"] is False
    assert log[1].detail["now"]["is_staff"] is True
    told = " ".join(str(each.detail) for each in log)
    assert "correct-horse" not in told
    assert "pbkdf2" not in told


def test_ones_own_new_password_is_written_down_without_it(world: World) -> None:
    vera = as_(world.vera)
    form = {
        "old_password": "correct horse battery",
        "new_password1": "staple-7-orbit",
        "new_password2": "staple-7-orbit",
    }
    assert vera.post("/admin/password_change/", form | {"old_password": "wrong"}).status_code == 200
    assert not AuditEntry.objects.filter(action="user.password-set").exists()
    assert vera.post("/admin/password_change/", form).status_code == 302
    noted = entry("user.password-set")
    assert (noted.actor, noted.subject, noted.detail) == ("vera", "vera", {})


def test_an_edit_and_its_entry_stand_or_fall_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.vera.memberships.update(role="site-admin")
    rule = HardwareRule.objects.filter(site=world.clubroom).first()
    assert rule is not None

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the log is away")

    vera = as_(world.vera)
    monkeypatch.setattr(audit, "record", fail)
    form = {"client_class": rule.client_class_id, "priority": 77, "vendor": rule.vendor, "device": rule.device}
    address = f"/admin/fleet/hardwarerule/{rule.pk}"
    for post, fields in (
        ("change", form | {"subvendor": "*", "subdevice": "*"}),
        ("delete", {"post": "yes"}),
    ):
        with pytest.raises(RuntimeError, match="the log is away"):
            vera.post(f"{address}/{post}/", fields)
    chosen = {"action": "delete_selected", "_selected_action": [rule.pk], "post": "yes"}
    with pytest.raises(RuntimeError, match="the log is away"):
        vera.post("/admin/fleet/hardwarerule/", chosen)
    before = rule.priority
    rule.refresh_from_db()
    assert rule.priority == before


def test_a_row_stays_at_its_site(world: World) -> None:
    """Also for somebody who may change both: what hangs on it would stay behind."""
    Membership.objects.create(user=world.mallory, site=world.clubroom, role="site-admin")
    form = {"site": world.school.pk, "name": "Gamer", "slug": "gamer", "colour": "red"}
    form |= {"root_percent": 50, "home_percent": 50, "root_check": "read", "root_kind": "symlink"}
    form |= {"root_fetch": "http", "home_kind": "overlay"}
    assert as_(world.mallory).post(f"/admin/fleet/clientclass/{world.gamer.pk}/change/", form).status_code == 302
    world.gamer.refresh_from_db()
    assert (world.gamer.site, world.gamer.colour) == (world.clubroom, "red")


def test_every_page_that_changes_rows_is_audited() -> None:
    from django.contrib import admin

    from fleet.models import ApiToken

    assert {model for model, page in admin.site._registry.items() if not isinstance(page, AuditedAdmin)} == {ApiToken}
