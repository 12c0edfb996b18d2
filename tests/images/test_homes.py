"""Home templates that somebody brought: from the upload to a class that has them."""

import io
import os
import tarfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client as Browser
from django.utils import timezone
from rest_framework.test import APIClient

from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, HomeKind
from images import homebuilds, homes, services
from images.models import HomeTemplate, Image, Release, TemplateOrigin, TemplateStatus, VersionStatus
from tests.builder.images import SMALL, built_image
from tests.images.versions import make_image, make_version
from tests.services import celery_sends_to, celery_worker, redis_server, wait_for
from tests.world import World, make_client, make_world


def packed(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def make_template(image: Image, status: TemplateStatus = TemplateStatus.ACCEPTED, number: int = 1) -> HomeTemplate:
    return HomeTemplate.objects.create(
        image=image,
        status=status,
        origin=TemplateOrigin.UPLOAD,
        sha256=f"{number:064x}",
        tree_digest="ef" * 32,
        bytes=9,
    )


@pytest.fixture
def uploads(settings: Any, tmp_path: Path) -> Path:
    settings.UPLOADS = tmp_path / "uploads"
    return tmp_path / "uploads"


def test_an_archive_is_taken_in_and_waits_for_a_worker(world: World, uploads: Path) -> None:
    image = make_image(world.clubroom)
    make_version(image)
    row = homes.propose(image, "home.tgz", [b"one", b"two"], world.vera, "new desktop")
    assert (row.status, row.origin, row.requested_by, row.reason) == ("packing", "upload", world.vera, "new desktop")
    assert (uploads / str(row.archive)).read_bytes() == b"onetwo"
    entry = AuditEntry.objects.get(action="home.proposed")
    assert (entry.site, entry.actor, entry.detail["bytes"]) == (world.clubroom, "vera", 6)


def test_what_is_not_taken_in_leaves_no_file(world: World, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(world.clubroom)
    with pytest.raises(WrongState, match="has no version yet"):
        homes.propose(image, "home.tgz", [b"x"], world.vera)
    make_version(image)
    with pytest.raises(Forbidden):
        homes.propose(image, "home.tgz", [b"x"], world.mallory)
    monkeypatch.setattr(homes, "MOST_BYTES", 5)
    with pytest.raises(OperatorError, match="is larger than"):
        homes.propose(image, "home.tgz", [b"123", b"456"], world.vera)
    assert not uploads.exists() or list(uploads.iterdir()) == []
    assert HomeTemplate.objects.filter(origin="upload").count() == 0


def test_a_template_is_accepted_once_and_only_when_it_was_looked_at(world: World) -> None:
    image = make_image(world.clubroom)
    row = make_template(image, TemplateStatus.PROPOSED)
    with pytest.raises(Forbidden):
        homes.accept(row, world.mallory)
    homes.accept(row, world.vera, "looks good")
    assert (row.status, row.decided_by) == ("accepted", world.vera)
    with pytest.raises(WrongState):
        homes.refuse(row, world.vera)
    with pytest.raises(WrongState):
        homes.accept(make_template(image, TemplateStatus.REFUSED, 2), world.vera)
    assert [entry.action for entry in AuditEntry.objects.filter(action__startswith="home.")] == ["home.accepted"]


def test_a_class_gets_a_template_and_keeps_it_over_new_versions_and_rolls_back_from_it(world: World) -> None:
    image = make_image(world.clubroom)
    first = services.release(make_version(image), world.gamer, world.otto)
    row = make_template(image)
    with pytest.raises(Forbidden):
        homes.use(row, world.gamer, world.mallory)
    given = homes.use(row, world.gamer, world.otto, "tournament")
    assert (given.version, given.home, homes.now_for(first)) == (first.version, row, row)
    entry = AuditEntry.objects.get(action="version.home-given")
    assert (entry.actor, entry.detail["home"]) == ("otto", row.tree_digest)
    with pytest.raises(WrongState, match="has already"):
        homes.use(row, world.gamer, world.otto)
    later = services.release(make_version(image), world.gamer, world.otto)
    assert later.home == row
    services.roll_back(world.gamer, world.otto)
    assert services.roll_back(world.gamer, world.otto).home == first.home
    assert homes.now_for(later) == first.home


def test_a_home_of_another_image_or_one_nobody_accepted_is_given_to_nobody(world: World) -> None:
    image, other = make_image(world.clubroom), make_image(world.clubroom, "contest")
    with pytest.raises(OperatorError, match="boots nothing"):
        homes.use(make_template(image), world.gamer, world.otto)
    release = services.release(make_version(image), world.gamer, world.otto)
    with pytest.raises(OperatorError, match="is a home of Contest image"):
        homes.use(make_template(other), world.gamer, world.otto)
    for number, status in enumerate((TemplateStatus.PROPOSED, TemplateStatus.REFUSED), 5):
        with pytest.raises(WrongState, match="cannot be used"):
            homes.use(make_template(image, status, number), world.gamer, world.otto)
    assert Release.objects.get(client_class=world.gamer) == release
    # Who booted another image meanwhile keeps the home of its user.
    services.release(make_version(other), world.gamer, world.otto)
    assert homes.now_for(release) == release.home


def test_the_clock_sends_again_and_throws_away_what_no_row_names(world: World, uploads: Path) -> None:
    image = make_image(world.clubroom)
    make_version(image)
    row = homes.propose(image, "home.tgz", [b"x"], world.vera)
    (uploads / "stray").write_text("")
    assert homebuilds.overdue() == []
    HomeTemplate.objects.filter(pk=row.pk).update(created_at=timezone.now() - 2 * homebuilds.SEND_AGAIN)
    os.utime(uploads / "stray", (0, 0))
    assert homebuilds.overdue() == [row.pk]
    assert [path.name for path in uploads.iterdir()] == [str(row.archive)]


def test_people_upload_and_decide_in_the_admin(world: World, uploads: Path, client: Browser) -> None:
    image = make_image(world.clubroom)
    make_version(image)
    client.force_login(world.vera)
    page = f"/admin/images/image/{image.pk}"
    assert b"New home template" in client.get(f"{page}/change/").content
    none = client.post(f"{page}/order/home/", {"reason": "x"}, follow=True)
    assert b"No file was chosen" in none.content
    sent = {"archive": SimpleUploadedFile("home.tgz", packed(x=b"y")), "reason": "new"}
    answer = client.post(f"{page}/order/home/", sent, follow=True)
    assert b"Being packed" in answer.content
    row = make_template(image, TemplateStatus.PROPOSED)
    row.details = {
        "files": 1,
        "bytes": 2,
        "secrets": [[".netrc", "access token"]],
        "difference": {"added": 1, "removed": 0, "changed": 0, "paths": ["+<b>.netrc"]},
    }
    row.save()
    shown = client.get(f"/admin/images/hometemplate/{row.pk}/change/").content
    assert b"These may be secrets" in shown
    assert b"+&lt;b&gt;.netrc" in shown
    assert b"is accepted" in client.post(f"/admin/images/hometemplate/{row.pk}/order/accept/", follow=True).content
    services.release(make_version(image), world.gamer, world.otto)
    client.force_login(world.otto)
    url = f"/admin/images/hometemplate/{row.pk}/order/use/"
    assert b"at their next cycle" in client.post(url, {"client_class": world.gamer.pk}, follow=True).content
    assert Release.objects.get(client_class=world.gamer, current=True).home == row


def test_scripts_upload_and_decide_through_the_api(world: World, uploads: Path) -> None:
    image = make_image(world.clubroom)
    services.release(make_version(image), world.gamer, world.otto)
    api = APIClient()
    api.force_authenticate(world.vera)
    url = f"/api/v1/images/{image.pk}/home-templates/"
    assert api.post(url, {}, format="multipart").status_code == 400
    answer = api.post(url, {"archive": SimpleUploadedFile("home.tgz", packed(x=b"y"))}, format="multipart")
    assert (answer.status_code, answer.json()["status"]) == (202, "packing")
    row = make_template(image, TemplateStatus.PROPOSED)
    assert api.post(f"/api/v1/home-templates/{row.pk}/accept/", {}, format="json").json()["status"] == "accepted"
    assert api.post(f"/api/v1/home-templates/{row.pk}/refuse/", {}, format="json").status_code == 409
    api.force_authenticate(world.mallory)
    assert api.post(url, {"archive": SimpleUploadedFile("h", b"x")}, format="multipart").status_code == 404
    assert api.post(f"/api/v1/home-templates/{row.pk}/use/", {"client_class": 1}, format="json").status_code == 404
    api.force_authenticate(world.otto)
    given = api.post(f"/api/v1/home-templates/{row.pk}/use/", {"client_class": world.gamer.pk}, format="json")
    assert (given.status_code, given.json()["home"]) == (201, row.pk)


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_worker_packs_an_archive_and_names_what_it_refuses(
    transactional_db: None, settings: Any, tmp_path: Path
) -> None:
    manifest, store = built_image()
    settings.STORE, settings.BUILD_WORK, settings.UPLOADS = store.root, tmp_path / "work", tmp_path / "uploads"
    world = make_world()
    image = make_image(world.clubroom)
    fields: dict[str, Any] = {"manifest": manifest.to_dict(), "digest": manifest.digest, "recipe": SMALL.to_dict()}
    make_version(image, VersionStatus.READY, **fields)
    values = {"sha256": manifest.home.sha256, "bytes": manifest.home.bytes}
    HomeTemplate.objects.filter(image=image).update(**values)
    with redis_server() as redis, celery_sends_to(redis.url):
        environment = {"FLEET_REDIS_URL": redis.url, "FLEET_STORE": str(store.root), "FLEET_DATA": str(tmp_path)}
        environment["FLEET_BUILD_WORK"] = str(tmp_path / "work")
        with celery_worker("builds", environment):
            good = homes.propose(image, "home.tgz", [packed(**{".profile": b"x=1", ".netrc": b"secret"})], world.vera)
            evil = homes.propose(image, "evil.tgz", [packed(**{"../evil": b"x"})], world.vera)
            key = uuid.uuid4()
            (settings.UPLOADS / str(key)).write_bytes(packed(**{"caf\udce9/logins.json": b"of a client"}))
            with transaction.atomic():
                captured = homes.captured(image, key, "A1 (pc-01)", world.otto, "finals", sha256="ab" * 32)
            packing = HomeTemplate.objects.filter(status="packing")
            wait_for(lambda: not packing.exists(), "they were looked at", 60)
            good.refresh_from_db()
            again = homes.propose(image, "again.tgz", [packed(**{".profile": b"x=1", ".netrc": b"secret"})], world.vera)
            wait_for(lambda: not packing.exists(), "it was looked at", 60)
    assert (good.status, good.details["secrets"]) == ("proposed", [[".netrc", "access token"]])
    captured.refresh_from_db()
    assert (captured.status, captured.origin, captured.name) == ("proposed", "capture", "A1 (pc-01)")
    assert captured.details["secrets"] == [["caf\\xe9/logins.json", "browser passwords"]]
    assert "+caf\\xe9/logins.json" in captured.details["difference"]["paths"], "no database takes half a character"
    assert {"+.netrc", "~.profile", "-.bashrc"} <= set(good.details["difference"]["paths"])
    assert store.path(good.sha256).stat().st_size == good.bytes
    evil.refresh_from_db()
    again.refresh_from_db()
    assert (evil.status, "'..'" in evil.failure) == ("failed", True)
    assert (again.status, again.failure) == ("failed", f"It is the same as {good}.")
    assert list((tmp_path / "uploads").iterdir()) == []
    assert list((tmp_path / "work").glob("scratch-*")) == []


def test_a_class_of_copies_gets_no_template_that_its_smallest_pc_has_no_room_for(world: World) -> None:
    image = make_image(world.clubroom)
    services.release(make_version(image), world.gamer, world.otto)
    for number, memory_mib in enumerate((4096, 1000), 1):
        mac = f"52:54:00:00:00:{number:02x}"
        make_client(world.clubroom, mac, client_class=world.gamer, memory_kib=memory_mib << 10)
    large = make_template(image, number=1)
    large.details = {"bytes": 501 << 20}
    large.save()
    world.gamer.home_kind = HomeKind.COPY
    world.gamer.full_clean()
    world.gamer.save()
    with pytest.raises(OperatorError, match=r"takes 501 MiB, and the home of A2.* has 500"):
        homes.use(large, world.gamer, world.otto)
    large.details = {"bytes": 500 << 20}
    large.save()
    homes.use(large, world.gamer, world.otto)
    world.gamer.home_percent = 49
    with pytest.raises(ValidationError, match="takes 500 MiB") as caught:
        world.gamer.full_clean()
    assert set(caught.value.message_dict) == {"home_kind"}
    world.gamer.home_kind = HomeKind.OVERLAY
    world.gamer.full_clean()
