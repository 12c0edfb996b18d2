"""What packages ship and the site changed: told apart through full builds, upgrades and maintenance shells. And merged."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from images.builder.merge3 import merge
from images.builder.sitefiles import MOST_BYTES, SiteFile, Watch
from images.builder.store import Artefact, Store

CONF = "/etc/tool.conf"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/etc").mkdir(parents=True)
    return tmp_path / "tree"


def put(tree: Path, content: str | None, path: str = CONF) -> None:
    file = tree / path.lstrip("/")
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
        file.chmod(0o640)


def said(store: Store, changed: dict[str, SiteFile]) -> dict[str, tuple[str, str, bool]]:
    """path → what the package has, what the site has, whether this build changed the former."""

    def text(artefact: Artefact) -> str:
        return store.require(artefact).read_text()

    return {path: (text(file.original), text(file.site), file.upgraded) for path, file in changed.items()}


def kept(watch: Watch, store: Store, tmp_path: Path) -> dict[str, SiteFile]:
    """What has changed, its contents put into the store as a finished version's are."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as ready:
        changed = watch.changed(Path(ready) / "site-files")
        for path in (Path(ready) / "site-files").iterdir():
            store.put(path)
    return changed


def built(tree: Path, store: Store, tmp_path: Path, site: str = "site 1") -> dict[str, SiteFile]:
    """A full build: the package's file, then the site's."""
    put(tree, "package 1")
    watch = Watch(tree, store)
    watch.packages_are_done([CONF, "/etc/missing"])
    put(tree, site)
    return kept(watch, store, tmp_path)


def test_a_build_notes_what_the_package_had(tree: Path, store: Store, tmp_path: Path) -> None:
    changed = built(tree, store, tmp_path)
    assert said(store, changed) == {CONF: ("package 1", "site 1", False)}
    assert changed[CONF].mode == 0o640


def test_a_file_that_is_as_the_package_has_it_is_not_the_site_s(tree: Path, store: Store, tmp_path: Path) -> None:
    assert built(tree, store, tmp_path, site="package 1") == {}


@pytest.mark.parametrize("ending", [".dpkg-dist", ".dpkg-new", ".rpmnew"])
def test_an_upgrade_that_leaves_its_file_beside_the_site_s_is_noted_and_the_leaving_goes(
    tree: Path, store: Store, tmp_path: Path, ending: str
) -> None:
    watch = Watch(tree, store, built(tree, store, tmp_path))
    put(tree, "package 2", CONF + ending)
    watch.packages_are_done([CONF])
    assert said(store, kept(watch, store, tmp_path)) == {CONF: ("package 2", "site 1", True)}
    assert not (tree / f"etc/tool.conf{ending}").exists()


def test_an_upgrade_that_overwrites_the_site_s_file_is_noted_and_the_site_s_stays(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    watch = Watch(tree, store, built(tree, store, tmp_path))
    put(tree, "package 2")
    watch.packages_are_done([])
    assert (tree / "etc/tool.conf").read_text() == "site 1"
    assert said(store, kept(watch, store, tmp_path)) == {CONF: ("package 2", "site 1", True)}


def test_what_no_upgrade_touched_is_carried_on(tree: Path, store: Store, tmp_path: Path) -> None:
    changed = built(tree, store, tmp_path)
    for _ in range(2):
        watch = Watch(tree, store, changed)
        watch.packages_are_done([CONF])
        changed = kept(watch, store, tmp_path)
    assert said(store, changed) == {CONF: ("package 1", "site 1", False)}


def test_a_file_that_the_site_changes_only_now_has_the_upgraded_one_as_its_original(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    put(tree, "package 1")
    watch = Watch(tree, store)
    put(tree, "package 2")
    watch.packages_are_done([CONF])
    put(tree, "site 1")
    assert said(store, kept(watch, store, tmp_path)) == {CONF: ("package 2", "site 1", False)}


def test_an_upgrade_beside_a_change_nobody_noted_is_told_without_what_was_before(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    put(tree, "site 1")
    watch = Watch(tree, store)
    put(tree, "package 2", f"{CONF}.dpkg-dist")
    watch.packages_are_done([CONF])
    assert said(store, kept(watch, store, tmp_path)) == {CONF: ("package 2", "site 1", True)}


def test_a_change_in_a_maintenance_shell_is_told_by_what_the_parent_has(
    tree: Path, store: Store, tmp_path: Path
) -> None:
    put(tree, "by hand")
    watch = Watch(tree, store)
    watch.expect(CONF, b"package 1")
    watch.expect("/etc/new", None)
    watch.packages_are_done([CONF])
    assert said(store, kept(watch, store, tmp_path)) == {CONF: ("package 1", "by hand", False)}


def test_a_file_that_is_gone_or_no_setting_is_left_alone(tree: Path, store: Store, tmp_path: Path) -> None:
    watch = Watch(tree, store, built(tree, store, tmp_path))
    put(tree, None)
    (tree / "etc/large").write_bytes(b"x" * (MOST_BYTES + 1))
    (tree / "etc/link").symlink_to("/etc/passwd")  # the tree's, which has none
    watch.packages_are_done([CONF, "/etc/large", "/etc/link", "/etc/tool.conf/below"])
    put(tree, "x", "/etc/large")
    assert kept(watch, store, tmp_path) == {}


def test_what_both_changed_in_different_places_is_merged() -> None:
    base = "one\ntwo\nthree\nfour\nfive\n"
    merged, clean = merge(base.replace("one", "mine"), base, base.replace("five", "theirs"))
    assert (merged, clean) == ("mine\ntwo\nthree\nfour\ntheirs\n", True)


def test_what_contradicts_stands_between_marks() -> None:
    merged, clean = merge("mine\n", "one\n", "theirs\n")
    assert not clean
    assert merged == "<<<<<<< yours\nmine\n=======\ntheirs\n>>>>>>> package\n"


@pytest.mark.parametrize(
    ("ours", "base", "theirs", "merged"),
    [("a\n", "a\n", "b\n", "b\n"), ("b\n", "a\n", "b\n", "b\n"), ("", "a\n", "a\n", ""), ("a", "", "a", "a")],
)
def test_what_one_changed_or_both_alike_is_no_question(ours: str, base: str, theirs: str, merged: str) -> None:
    assert merge(ours, base, theirs) == (merged, True)
