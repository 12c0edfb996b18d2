"""A version taken to another store as one file, of which nothing is believed."""

import io
import json
import tarfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from fleet.exceptions import Forbidden, OperatorError
from fleet.models import AuditEntry
from images import collecting, storing
from images.builder.chunks import Archive, cut
from images.builder.errors import BuildError
from images.builder.store import Store
from images.models import HomeTemplate, Image, ImageVersion, Storage, VersionStatus
from tests.images.stored import age, flip_a_bit, like, noise, paths, store, stored_version
from tests.images.versions import make_image, make_version
from tests.world import World

__all__ = ["store"]
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def pair(world: World, store: Store) -> tuple[ImageVersion, ImageVersion]:
    """A version and one derived from it: kernel and initrd the same, the root a little longer."""
    image, root = make_image(world.clubroom), noise("root", 2_000_000)
    same = {"kernel": noise("kernel", 50_000), "initrd": noise("initrd", 50_000)}
    return (
        stored_version(image, store, "a", root=root, **same),
        stored_version(image, store, "b", root=like(root, "new"), **same),
    )


@pytest.fixture
def elsewhere(tmp_path: Path, world: World) -> tuple[Store, Image]:
    """Another store; the rows stand in the same database, in an image of another site."""
    return Store(tmp_path / "elsewhere"), make_image(world.school, "theirs")


def export(version: ImageVersion, store: Store, file: Path, *have: ImageVersion) -> Path:
    storing.export(version, have, store, file, print)
    return file


def test_a_version_goes_to_an_empty_store_and_the_next_costs_what_is_new(
    pair: tuple[ImageVersion, ImageVersion],
    store: Store,
    elsewhere: tuple[Store, Image],
    tmp_path: Path,
    world: World,
) -> None:
    theirs, image = elsewhere
    first, second = pair
    whole = export(first, store, tmp_path / "first")
    small = export(second, store, tmp_path / "second", first)
    assert whole.stat().st_size > 2_000_000
    assert small.stat().st_size < 250_000
    for version, file in ((first, whole), (second, small)):
        came = storing.bring(file, image, world.mallory, theirs, print)
        assert (came.status, came.digest, came.recipe) == (VersionStatus.READY, version.digest, version.recipe)
        assert all(theirs.whole(path.name) for path in paths(theirs, came).values())
        assert theirs.whole(came.digest)
        assert HomeTemplate.objects.filter(image=image, sha256=paths(theirs, came)["home"].name).exists()
    assert [str(version) for version in image.versions.all()] == ["theirs-2", "theirs-1"]
    entry = AuditEntry.objects.filter(action="version.imported").latest("sequence")
    assert (entry.site, entry.actor, entry.detail["origin"]) == (world.school, "mallory", "gamer-2")
    exported = AuditEntry.objects.filter(action="version.exported").latest("sequence")
    assert exported.detail == {"bytes": small.stat().st_size, "have": ["gamer-1"]}
    assert list(theirs.ingest.iterdir()) == []


def test_an_import_again_makes_no_second_version_and_brings_a_forgotten_one_back(
    pair: tuple[ImageVersion, ImageVersion],
    store: Store,
    tmp_path: Path,
    world: World,
) -> None:
    first, _ = pair
    file = export(first, store, tmp_path / "first")
    storing.forget(first, world.vera)
    age(store)
    collecting.collect(store)
    assert not paths(store, first)["root"].exists()
    assert storing.bring(file, first.image, world.vera, store, print) == first
    first.refresh_from_db()
    assert first.storage == Storage.FILES
    age(store)
    assert collecting.collect(store).files == 0
    assert store.whole(paths(store, first)["root"].name)


def test_an_archived_version_is_exported_and_serves_as_a_base(
    pair: tuple[ImageVersion, ImageVersion],
    store: Store,
    elsewhere: tuple[Store, Image],
    tmp_path: Path,
    world: World,
) -> None:
    first, second = pair
    theirs, image = elsewhere
    storing.bring(export(first, store, tmp_path / "all"), image, world.mallory, theirs, print)
    storing.archive(first, world.vera)
    storing.archive(image.versions.get(), world.mallory)
    for place in (store, theirs):
        age(place)
        collecting.collect(place)
    assert not paths(theirs, first)["root"].exists()
    came = storing.bring(export(second, store, tmp_path / "new", first), image, world.mallory, theirs, print)
    assert all(theirs.whole(path.name) for path in paths(theirs, came).values())
    assert Archive(theirs).bytes() > 0


def _members(file: Path) -> Members:
    with tarfile.open(file) as tar:
        return [(member, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar]


def _write(file: Path, members: Members) -> None:
    with tarfile.open(file, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, b"" if kind != tarfile.REGTYPE else b"owned"


def _change(members: Members, name: str, content: Callable[[bytes], bytes]) -> Members:
    assert any(member.name.startswith(name) for member, _ in members)
    first = next(number for number, (member, _) in enumerate(members) if member.name.startswith(name))
    return [(member, content(old) if number == first else old) for number, (member, old) in enumerate(members)]


def _label(**changes: Any) -> Callable[[Members], Members]:
    def change(old: bytes) -> bytes:
        return json.dumps(json.loads(old) | changes).encode()

    return lambda members: _change(members, "version.json", change)


CHUNK = "chunk/" + "0" * 64
SPOILED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "a path out of the store": (lambda all: [*all, _named("../../etc/cron.d/x")], "no exported version has"),
    "an absolute path": (lambda all: [*all, _named("/etc/cron.d/x")], "no exported version has"),
    "a chunk in another place": (lambda all: [*all, _named("chunk/../../x" + "0" * 60)], "no exported version has"),
    "a link": (lambda all: [*all, _named(CHUNK, tarfile.SYMTYPE, "/etc/passwd")], "no exported version has"),
    "a hard link": (lambda all: [*all, _named(CHUNK, tarfile.LNKTYPE, "/etc/passwd")], "no exported version has"),
    "a device": (lambda all: [*all, _named(CHUNK, tarfile.CHRTYPE)], "no exported version has"),
    "a chunk too long": (lambda all: _change(all, "chunk/", lambda old: old + bytes(300_000)), "more than it can have"),
    "a chunk damaged": (
        lambda all: _change(all, "chunk/", lambda old: old[:9] + b"?" + old[10:]),
        "casync extract failed",
    ),
    "a chunk missing": (lambda all: all[:-1], "casync extract failed: .*No such file"),
    "an index damaged": (lambda all: _change(all, "index/", lambda old: b"x" * len(old)), "no index of chunks"),
    "an index cut short": (lambda all: _change(all, "index/", lambda old: old[:50]), "is cut short"),
    "an index missing": (lambda all: [row for row in all if "index/" not in row[0].name], "it lacks the artefact"),
    "another manifest": (lambda all: _change(all, "manifest", lambda old: old + b" "), "manifest is damaged"),
    "another format": (_label(format="something else 3"), "no version that was exported by this program"),
    "a label without a digest": (_label(digest=7), "its label is not one"),
    "a label with a path": (_label(digest="../x"), "names what is no artefact"),
    "a base that is a path": (_label(base=["../../etc/passwd"]), "names what is no artefact"),
    "a base that is not there": (_label(base=["ab" * 32]), "missing or damaged"),
    "fewer artefacts than the manifest": (_label(artefacts=[]), "does not list the artefacts"),
    "a size below nothing": (_label(artefacts=[{"sha256": "ab" * 32, "bytes": -1}]), "names what is no artefact"),
    "a recipe that is none": (_label(recipe={"name": 7}), "recipe or manifest is not one"),
    "nothing but a label": (lambda all: all[:1], "it ends before manifest"),
    "another tar": (lambda all: [_named("README")], "it has 'README' where version.json belongs"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_file_damaged_foreign_or_forged_is_refused_and_leaves_nothing(
    what: str,
    pair: tuple[ImageVersion, ImageVersion],
    store: Store,
    elsewhere: tuple[Store, Image],
    tmp_path: Path,
    world: World,
) -> None:
    theirs, image = elsewhere
    file, (spoil, said) = export(pair[0], store, tmp_path / "file"), SPOILED[what]
    _write(file, spoil(_members(file)))
    with pytest.raises(OperatorError, match=said):
        storing.bring(file, image, world.mallory, theirs, print)
    assert not image.versions.exists()
    assert not theirs.path(pair[0].digest).exists(), "no manifest: the version is not complete"
    assert list(theirs.ingest.iterdir()) == []
    assert not list(tmp_path.glob("**/x*"))
    assert list(theirs.verify()) == []


@pytest.mark.parametrize(
    ("size", "said"),
    [(2_000_000, "does not give the artefact"), (2_400_000, "is for another artefact")],
)
def test_an_index_forged_to_give_other_bytes_is_refused(
    size: int,
    said: str,
    pair: tuple[ImageVersion, ImageVersion],
    store: Store,
    elsewhere: tuple[Store, Image],
    tmp_path: Path,
    world: World,
) -> None:
    """Every chunk is what it says and the index fits them: what they give is not what the manifest names."""
    theirs, image = elsewhere
    file, root = export(pair[0], store, tmp_path / "file"), paths(store, pair[0])["root"].name
    (tmp_path / "other").write_bytes(noise("other", size))
    cut(tmp_path / "other", tmp_path / "chunks", tmp_path / "other.caibx")
    members = _change(_members(file), f"index/{root}", lambda _: (tmp_path / "other.caibx").read_bytes())
    for chunk in (tmp_path / "chunks").glob("*/*"):
        members.append((_named(f"chunk/{chunk.stem}")[0], chunk.read_bytes()))
    _write(file, members)
    with pytest.raises(OperatorError, match=said):
        storing.bring(file, image, world.mallory, theirs, print)
    assert not theirs.path(root).exists()


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + b"0" * 2000])
def test_a_file_of_something_else_is_refused(
    content: bytes, elsewhere: tuple[Store, Image], tmp_path: Path, world: World
) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(OperatorError, match=r"file is not imported: .*Nothing was changed"):
        storing.bring(tmp_path / "file", elsewhere[1], world.mallory, elsewhere[0], print)


def test_a_file_cut_short_at_any_place_is_refused(
    pair: tuple[ImageVersion, ImageVersion], store: Store, elsewhere: tuple[Store, Image], tmp_path: Path, world: World
) -> None:
    theirs, image = elsewhere
    whole = export(pair[0], store, tmp_path / "file").read_bytes()
    for part in (0.1, 0.5, 0.9):
        (tmp_path / "file").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(OperatorError, match=r"is not imported"):
            storing.bring(tmp_path / "file", image, world.mallory, theirs, print)
    assert not image.versions.exists()


def test_an_import_that_lacks_its_base_says_so(
    pair: tuple[ImageVersion, ImageVersion], store: Store, elsewhere: tuple[Store, Image], tmp_path: Path, world: World
) -> None:
    file = export(pair[1], store, tmp_path / "file", pair[0])
    with pytest.raises(OperatorError, match="missing or damaged"):
        storing.bring(file, elsewhere[1], world.mallory, elsewhere[0], print)


def test_a_damaged_artefact_is_not_exported_and_no_file_is_left(
    pair: tuple[ImageVersion, ImageVersion], store: Store, tmp_path: Path
) -> None:
    flip_a_bit(paths(store, pair[0])["root"])
    with pytest.raises(BuildError, match="missing or damaged"):
        export(pair[0], store, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_file_that_is_there_is_not_written_over(
    pair: tuple[ImageVersion, ImageVersion], store: Store, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(CommandError, match="File exists"):
        call_command("store", "export", "gamer-1", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_import_needs_the_right_to_build(
    pair: tuple[ImageVersion, ImageVersion], store: Store, tmp_path: Path, world: World
) -> None:
    file = export(pair[0], store, tmp_path / "file")
    with pytest.raises(Forbidden):
        storing.bring(file, pair[0].image, world.mallory, store, print)


def store_command(*arguments: str) -> str:
    output = StringIO()
    call_command("store", *arguments, stdout=output, stderr=StringIO())
    return output.getvalue()


def test_the_command_verifies_collects_measures_exports_and_imports(
    pair: tuple[ImageVersion, ImageVersion], store: Store, tmp_path: Path, world: World
) -> None:
    second = pair[1]
    assert store_command("verify") == "Everything is there, whole and signed.\n"
    assert "% of the version's" in store_command("export", "gamer-2", str(tmp_path / "file"), "--have", "gamer-1")
    storing.forget(second, world.vera)
    age(store)
    dry = store_command("gc", "--dry-run")
    root = second.manifest["root"]["sha256"]  # type: ignore[index]
    assert f"remove {root} 2001000" in dry
    assert store.path(root).exists()
    assert "Removed 4 files of 2011013 bytes" in store_command("gc")
    assert "is ready" in store_command("import", str(tmp_path / "file"), "--image", "gamer", "--as", "vera")
    usage = store_command("usage")
    assert "Club room: 4 MiB" in usage
    assert "gamer-2" in usage
    flip_a_bit(store.path(root))
    with pytest.raises(CommandError, match="1 artefact is not as it should be"):
        store_command("verify")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "gamer-9", "x"], "There is no version 'gamer-9'"),
        (["export", "²", "x"], "There is no version '²'"),
        (["export", "gamer-1", "x"], "gamer-1 is queued"),
        (["import", "x", "--image", "nothing", "--as", "vera"], "There is no image 'nothing'"),
        (["import", "x", "--image", "gamer", "--as", "nobody"], "There is no user 'nobody'"),
        (["import", "/nowhere/x", "--image", "gamer", "--as", "vera"], "No such file"),
    ],
)
def test_what_the_command_cannot_do_is_told(world: World, store: Store, arguments: list[str], said: str) -> None:
    make_version(make_image(world.clubroom), VersionStatus.QUEUED)
    with pytest.raises(CommandError, match=said):
        store_command(*arguments)
