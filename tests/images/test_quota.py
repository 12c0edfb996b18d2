"""What images take is told before a build, and a limit is kept."""

from typing import Any

import pytest
from django.urls import reverse

from fleet.exceptions import OperatorError
from images import quota, services
from images.models import Image, ImageVersion, Storage, VersionStatus
from tests.api import call
from tests.images.test_admin import as_, order, page
from tests.images.versions import make_image, make_manifest, make_version
from tests.world import World, person

MIB = 1 << 20


def big_version(image: Image, root_mib: float, salt: str, kernel: str = "kernel") -> ImageVersion:
    """A version of that many MiB: its own root, and a kernel of 1 MiB that others may have, too."""
    manifest = make_manifest(salt).to_dict()
    for part in ("initrd", "plan", "home"):
        manifest[part] = {"sha256": manifest[part]["sha256"], "bytes": 0}
    manifest["root"]["bytes"] = int(root_mib * MIB)
    manifest["kernel"] = {"sha256": (kernel.encode().hex() + "0" * 64)[:64], "bytes": MIB}
    return ImageVersion.objects.create(
        image=image,
        number=ImageVersion.objects.filter(image=image).count() + 1,
        manifest=manifest,
        status=VersionStatus.READY,
        digest="ab" * 32,
        recipe=image.recipe().to_dict(),
    )


def limit(world: World, mib: int) -> None:
    world.clubroom.storage_limit = mib
    world.clubroom.save()


def used(world: World) -> int:
    return quota.use(Image.objects.filter(site=world.clubroom)).bytes


def test_what_versions_share_counts_once_and_the_forgotten_not_at_all(world: World) -> None:
    image, other = make_image(world.clubroom), make_image(world.clubroom, "kiosk")
    first, second = big_version(image, 10, "a"), big_version(other, 20, "b")
    assert used(world) == 31 * MIB
    rows = {str(row.version): (row.own, row.shared) for row in quota.use(Image.objects.all()).versions}
    assert rows == {"gamer-1": (10 * MIB, MIB), "kiosk-1": (20 * MIB, MIB)}
    ImageVersion.objects.filter(pk=first.pk).update(storage=Storage.NOTHING)
    assert used(world) == 21 * MIB
    ImageVersion.objects.filter(pk=second.pk).update(storage=Storage.CHUNKS, chunk_bytes=5)
    assert used(world) == 5


@pytest.mark.parametrize(("limit_mib", "warned", "refused"), [(22, False, False), (21, True, False), (18, True, True)])
def test_a_build_is_warned_of_beyond_the_limit_and_refused_beyond_the_hard_one(
    world: World, limit_mib: int, warned: bool, refused: bool
) -> None:
    """10 MiB and a kernel are there; another version is taken to need 11: 22 MiB. Hard is 120 percent of the limit."""
    image = make_image(world.clubroom)
    big_version(image, 10, "a")
    limit(world, limit_mib)
    outlook = quota.outlook(image)
    assert (outlook.used, outlook.estimate) == (11 * MIB, 11 * MIB)
    assert bool(outlook.warning) == warned
    if refused:
        with pytest.raises(
            OperatorError, match=r"take 11 MiB, another version about 11 MiB; the limit is 18 MiB.*Forget"
        ):
            services.request_build(image, world.vera)
        assert not ImageVersion.objects.filter(status=VersionStatus.QUEUED).exists()
    else:
        services.request_build(image, world.vera)


def test_at_the_hard_limit_itself_a_build_starts(world: World, settings: Any) -> None:
    image = make_image(world.clubroom)
    big_version(image, 10, "a")
    limit(world, 22)
    settings.STORAGE_HARD = 100
    services.cancel_build(services.request_build(image, world.vera), world.vera)
    limit(world, 21)
    failed = make_version(image, VersionStatus.FAILED)
    with pytest.raises(OperatorError, match="until 1 MiB are free"):
        services.retry(failed, world.vera)


def test_the_servers_limit_holds_for_sites_without_their_own(world: World, settings: Any) -> None:
    image = make_image(world.clubroom)
    big_version(image, 10, "a")
    assert quota.outlook(image).warning == ""
    settings.SITE_STORAGE = 15
    assert "the limit is 15 MiB" in quota.outlook(image).warning
    for own in (100, 0):
        limit(world, own)
        assert quota.outlook(image).warning == ""


def test_a_shared_image_and_another_sites_have_no_part_in_it(world: World) -> None:
    limit(world, 1)
    shared = make_image(None, "shared")
    big_version(shared, 10, "a")
    big_version(make_image(world.school, "theirs"), 10, "b")
    assert used(world) == 0
    assert quota.outlook(shared).warning == ""


def test_the_api_warns_and_refuses(world: World) -> None:
    image = make_image(world.clubroom)
    version = big_version(image, 10, "a")
    limit(world, 20)
    status, answer = call(world.vera, f"images/{image.pk}/build/", {})
    assert (status, answer["status"]) == (202, "queued")
    assert "beyond 24 MiB no build starts" in answer["warning"]
    services.cancel_build(ImageVersion.objects.get(pk=answer["id"]), world.vera)
    limit(world, 5)
    status, problem = call(world.vera, f"images/{image.pk}/build/", {})
    assert status == 400
    assert "No room for another version" in problem["detail"]
    assert call(world.mallory, f"versions/{version.pk}/forget/", {})[0] == 404
    assert call(world.vera, f"versions/{version.pk}/archive/", {})[1]["storage"] == "chunks"
    assert call(world.vera, f"versions/{version.pk}/restore/", {})[0] == 202
    assert call(world.vera, f"versions/{version.pk}/forget/", {"reason": "old"})[1]["storage"] == "nothing"
    assert call(world.vera, f"versions/{version.pk}/forget/", {})[0] == 409
    limit(world, 10)
    assert call(world.vera, f"images/{image.pk}/build/", {})[0] == 202, "room was made"


def test_the_admin_warns_before_and_refuses_with_the_figures(world: World) -> None:
    image = make_image(world.clubroom)
    version = big_version(image, 10, "a")
    assert "What takes room" not in page(world.vera, image).content.decode()
    limit(world, 20)
    assert "What takes room" in page(world.vera, image).content.decode()
    shown = order(world.vera, image, "build")[1]
    assert "is queued" in shown
    assert "beyond 24 MiB no build starts" in shown
    limit(world, 5)
    image.packages = "tmux"
    image.save()
    assert "No room for another version" in order(world.vera, image, "build")[1]
    shown = page(world.vera, version).content.decode()
    assert 'order/forget/"' in shown
    assert 'order/archive/"' in shown
    assert "Gamer-1 is archived" in order(world.vera, version, "archive")[1]
    assert "Gamer-1 is being restored" in order(world.vera, version, "restore")[1]
    assert "Gamer-1 is forgotten" in order(world.vera, version, "forget")[1]
    shown = page(world.vera, version).content.decode()
    assert "order/forget/" not in shown
    assert "order/release/" not in shown


def test_a_version_in_use_offers_no_forgetting(world: World) -> None:
    version = make_version(make_image(world.clubroom))
    services.release(version, world.gamer, world.otto)
    assert "order/forget/" not in page(world.vera, version).content.decode()
    assert "Gamer boots it" in order(world.vera, version, "forget")[1]


def test_the_chart_shows_ones_own_sites_and_what_is_shared(world: World) -> None:
    big_version(make_image(world.clubroom), 10, "a")
    old = big_version(Image.objects.get(slug="gamer"), 30, "b")
    big_version(make_image(None, "everybodys"), 5, "c")
    limit(world, 35)
    address = reverse("admin:images_storage")
    shown = as_(world.vera).get(address).content.decode()
    assert "Gamer image" in shown
    assert "Everybodys image" in shown
    assert 'width="96.77"' in shown, "30 of 31 MiB, the longest bar"
    assert "More than the limit" in shown
    assert reverse("admin:images_imageversion_change", args=[old.pk]) in shown
    assert "Everybodys image" not in as_(person("nobody")).get(address).content.decode()
    theirs = as_(world.mallory).get(address).content.decode()
    assert "Gamer" not in theirs
    assert "Everybodys image" in theirs
    assert as_(world.vera).get(reverse("admin:images_image_changelist")).content.decode().count(address) == 1
