"""Versions are signed by their builder; what is not is not booted, derived from, released or taken in."""

from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from pytest_django.fixtures import Settings

from fleet.exceptions import WrongState
from fleet.models import AuditEntry
from fleet.signing import make_keys
from images import builds, services, signatures, storing
from images.builder.store import Store
from images.models import ImageVersion, VersionStatus
from tests.images.stored import ROOT_BYTES, stored_version
from tests.images.versions import make_image, make_version
from tests.world import World

STRANGER = "is signed by the key image-[0-9a-f]{8}, which this server does not trust"


@pytest.fixture
def version(world: World) -> ImageVersion:
    return make_version(make_image(world.clubroom))


def unsigned(version: ImageVersion) -> ImageVersion:
    """As a row of before there were signatures, or one that somebody without the key wrote."""
    row = ImageVersion.objects.get(pk=version.pk)
    row.pk, row.number, row.signature = None, row.number + 1, ""
    row.save(force_insert=True)
    return row


def test_what_was_built_is_signed_and_believed(version: ImageVersion) -> None:
    assert version.signature.startswith("image-")
    assert signatures.fault(version) == ""


def test_a_signature_is_of_one_manifest_by_one_key(
    world: World, version: ImageVersion, settings: Settings, tmp_path: Path
) -> None:
    assert version.manifest is not None
    forged = make_version(version.image)
    assert forged.manifest is not None
    forged.manifest["root_hash"] = "ef" * 64
    assert signatures.fault(forged) == "its manifest is not that of its digest"
    other = make_version(version.image)
    other.signature = version.signature
    assert signatures.fault(other) == "its signature is wrong"
    other.signature = version.signature.partition(":")[0] + ":%%"
    assert signatures.fault(other) == "its signature is wrong"
    make_keys(tmp_path / "keys")
    settings.PUBLIC_KEYS = tmp_path / "keys"
    assert "which this server does not trust" in signatures.fault(version)


def test_without_a_signature_it_is_neither_released_nor_derived_from(world: World, version: ImageVersion) -> None:
    stray = unsigned(version)
    with pytest.raises(WrongState, match=r"gamer-2 is not used: it is not signed.*manage\.py image sign"):
        services.release(stray, world.gamer, world.otto)
    with pytest.raises(WrongState, match="is not signed"):
        services.request_derived(stray, {"install": ["tmux"]}, world.otto)


def test_the_database_keeps_a_signature_as_it_is(version: ImageVersion) -> None:
    with pytest.raises(IntegrityError, match="stays signed as it is"), transaction.atomic():
        ImageVersion.objects.filter(pk=version.pk).update(signature="")
    stray = unsigned(version)
    assert ImageVersion.objects.filter(pk=stray.pk).update(signature=version.signature) == 1


def test_a_build_without_the_key_fails_before_it_begins(version: ImageVersion, settings: Settings) -> None:
    settings.IMAGE_KEY = ""
    queued = make_version(version.image, VersionStatus.QUEUED)
    builds.run(queued.pk)
    queued.refresh_from_db()
    assert queued.status == VersionStatus.FAILED
    assert "This process has no image key" in queued.failure
    assert not queued.steps.exists()


@pytest.fixture
def store(settings: Settings, tmp_path: Path) -> Store:
    settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"
    return Store(settings.STORE)


def test_an_administrator_vouches_for_what_is_stored_whole(
    world: World, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    version = unsigned(stored_version(make_image(world.clubroom), store))
    with pytest.raises(CommandError, match="You may not vouch"):
        call_command("image", "sign", str(version), "--as", world.mallory.username)
    call_command("image", "sign", str(version), "--as", world.otto.username, "--reason", "from before")
    version.refresh_from_db()
    assert signatures.fault(version) == ""
    entry = AuditEntry.objects.get(action="version.signed")
    assert (entry.detail["reason"], entry.detail["digest"]) == ("from before", version.digest)
    with pytest.raises(CommandError, match="is not signed now: ready"):
        call_command("image", "sign", str(version), "--as", world.otto.username)


def test_verifying_the_store_names_what_is_not_signed(
    world: World, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    version = stored_version(make_image(world.clubroom), store)
    call_command("store", "verify")
    assert "Everything is there, whole and signed." in capsys.readouterr().out
    stray = unsigned(version)
    with pytest.raises(CommandError, match="1 version or layer is not signed by a builder this server trusts"):
        call_command("store", "verify")
    assert f"{stray} is not to be believed: it is not signed" in capsys.readouterr().out


def test_nobody_vouches_for_what_is_damaged(world: World, store: Store) -> None:
    version = unsigned(stored_version(make_image(world.clubroom), store))
    assert version.contents is not None
    path = store.path(version.contents.root.sha256)
    path.chmod(0o644)
    path.write_bytes(bytes(ROOT_BYTES))
    with pytest.raises(CommandError, match=r"its artefact .* is damaged; build it again"):
        call_command("image", "sign", str(version), "--as", world.otto.username)
    version.refresh_from_db()
    assert version.signature == ""


def test_a_version_of_a_stranger_is_not_taken_in_until_its_key_is_trusted(
    world: World, store: Store, settings: Settings, tmp_path: Path
) -> None:
    version = stored_version(make_image(world.clubroom), store)
    file = tmp_path / "parcel"
    storing.export(version, [], store, file, lambda _: None)
    home = settings.PUBLIC_KEYS
    make_keys(tmp_path / "keys")
    settings.PUBLIC_KEYS, there = tmp_path / "keys", Store(tmp_path / "there")
    image = make_image(world.clubroom, "other")
    with pytest.raises(Exception, match=f"{STRANGER}.*image-<name>.pub"):
        storing.bring(file, image, world.otto, there, lambda _: None)
    assert not image.versions.exists()
    (tmp_path / "keys/image-friend.pub").write_text((home / "image.pub").read_text())
    taken = storing.bring(file, image, world.otto, there, lambda _: None)
    assert (taken.signature, signatures.fault(taken)) == (version.signature, "")
