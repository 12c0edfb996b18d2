"""The root plan against a model: made from random images, unpacked by busybox, and looked at path by path."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from images.builder.errors import RecipeError
from images.builder.rootplan import RootPlan, archive, plan
from images.builder.ruling import LIMIT_BYTES
from images.builder.tree import Entry, listing
from images.builder.volatile import MOUNT_POINTS, SHARE, Rule, Verb, parse_rules

NAMES = ("a", "b", "a-b", "c.d", "ü")
FILE, DIRECTORY = "file", "directory"

# An image as a dict: path → its content, None for a directory, or ("link", target).
Content = bytes | None | tuple[str, str]
Image = dict[str, Content]


@st.composite
def images(draw: st.DrawFn) -> Image:
    image: Image = {"/etc": None, "/usr": None}
    directories = ["", "/etc", "/usr"]
    for _ in range(draw(st.integers(0, 14))):
        path = f"{draw(st.sampled_from(directories))}/{draw(st.sampled_from(NAMES))}"
        if path in image:
            continue
        kind = draw(st.sampled_from([FILE, DIRECTORY, DIRECTORY, "absolute", "relative"]))
        if kind == FILE:
            image[path] = draw(st.sampled_from([b"", b"one", b"two"]))
        elif kind == DIRECTORY:
            image[path] = None
            directories.append(path)
        else:
            # Links to what stands already: no loops. A relative one stays below its own top directory.
            target = draw(st.sampled_from(sorted(image)))
            is_relative = kind == "relative"
            image[path] = ("link", os.path.relpath(target, parent(path)) if is_relative else target)
    return image


@st.composite
def rules_for(draw: st.DrawFn, image: Image) -> list[Rule]:
    known = sorted(image)
    fresh = st.builds(lambda top, name: f"{top}/{name}", st.sampled_from([*known, ""]), st.sampled_from(NAMES))
    path = st.one_of(st.sampled_from(known), st.sampled_from(known), fresh)
    globbed = st.builds(lambda path: f"{parent(path).rstrip('/')}/*", st.sampled_from(known))
    rule = st.builds(Rule, st.sampled_from(list(Verb)), st.one_of(path, path, path, globbed))
    return draw(st.lists(rule, max_size=5))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Image, list[Rule]]:
    image = draw(images())
    return image, draw(rules_for(image))


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def write(image: Image, top: Path) -> None:
    top.mkdir()
    for path, content in sorted(image.items(), key=lambda item: item[0].count("/")):
        target = top / path[1:]
        if content is None:
            target.mkdir()
        elif isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.symlink_to(content[1])


def unpack(packed: Path, top: Path) -> None:
    top.mkdir()
    with packed.open("rb") as stream:
        subprocess.run(["busybox", "cpio", "-idm"], stdin=stream, cwd=top, check=True, capture_output=True)


def resolve(root: Path, path: str, links: list[str] | None = None) -> Path | None:
    """Where a process whose root is `root` finds `path`, or None; `links` gets the links on the way."""
    links = [] if links is None else links
    pending, at = path.split("/")[::-1], ""
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        here = root / f"{at}/{part}"[1:]
        if here.is_symlink():
            links.append(f"{at}/{part}")
            if len(links) > 40:
                return None
            target = str(here.readlink())
            pending += target.split("/")[::-1]
            at = "" if target.startswith("/") else at
        elif os.path.lexists(here):
            at = f"{at}/{part}"
        else:
            return None
    return root / at[1:]


def ruling(path: str, decided: dict[str, Rule]) -> Verb:
    """The reference: the rule of the longest path wins."""
    while path not in decided:
        if path == "/":
            return Verb.SHARE
        path = parent(path)
    return decided[path].verb


def decide(image: Image, rules: list[Rule]) -> dict[str, Rule]:
    """Which path each rule means, in an image without links on the way to it."""
    decided: dict[str, Rule] = {}
    for rule in rules:
        if rule.is_glob:
            above = parent(rule.path)
            matches = [path for path in image if parent(path) == above]
            decided.update(dict.fromkeys(matches, rule))
        else:
            decided[rule.path] = rule
    return decided


def leads_through_something_else(image: Image, path: str) -> bool:
    """Whether there is a link or a file on the way to `path`."""
    parts = path.split("/")[1:-1]
    above = ["/" + "/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(image.get(directory) is not None for directory in above)


@settings(max_examples=250, deadline=None)
@given(cases())
@example(
    (
        {"/etc": None, "/usr": None, "/etc/a": None, "/etc/a/b": b"one"},
        parse_rules("copy /etc\nshare /etc/a\ncopy /etc/a/b"),
    )
)
@pytest.mark.slow
def test_the_root_shows_the_image_and_is_real_exactly_where_rules_say(case: tuple[Image, list[Rule]]) -> None:
    image, rules = case
    rules = list(rules)
    assume(not any(leads_through_something_else(image, rule.path) for rule in rules))
    with tempfile.TemporaryDirectory() as scratch:
        top, root, packed = Path(scratch, "image"), Path(scratch, "root"), Path(scratch, "plan")
        write(image, top)
        entries = listing(top)
        made = plan(entries, rules, ["/home/player"])
        archive(made, top, packed)
        unpack(packed, root)
        (root / SHARE[1:]).rmdir()
        shutil.copytree(top, root / SHARE[1:], symlinks=True)
        _check(image, rules, top, root, made)


def _check(image: Image, rules: list[Rule], top: Path, root: Path, made: RootPlan) -> None:
    decided = decide(image, rules)
    for point in (*MOUNT_POINTS, "/home/player"):
        assert (root / point[1:]).is_dir()
        assert not (root / point[1:]).is_symlink()
    copied = set()
    for path, content in image.items():
        verb = ruling(path, decided)
        real = root / path[1:]
        if verb is Verb.COPY:
            assert resolve(root, parent(path)) == real.parent, f"{path} is reached through a link"
            if isinstance(content, bytes):
                copied.add(path)
                assert real.read_bytes() == content
                assert not real.is_symlink()
            elif content is None:
                assert real.is_dir()
                assert not real.is_symlink()
        elif verb is Verb.EMPTY:
            if path in decided and not isinstance(content, tuple):
                assert not real.is_symlink()
                assert real.is_dir() if content is None else real.read_bytes() == b""
        else:
            _same(top, root, path, decided)
        if isinstance(content, tuple) and resolve(root, parent(path)) == real.parent and real.is_symlink():
            assert str(real.readlink()) in (content[1], SHARE + path)
    for path, rule in decided.items():
        if rule.verb is Verb.SHARE or isinstance(image.get(path), tuple):
            continue
        assert resolve(root, parent(path)) == root / parent(path)[1:], f"{path} is not writable"
        if rule.verb is Verb.EMPTY and path not in image:
            assert (root / path[1:]).is_dir()
    _is_smallest(image, decided, copied, made)


def _same(top: Path, root: Path, path: str, decided: dict[str, Rule]) -> None:
    """A shared path shows what the image has, unless a link on the way leads to what a rule empties."""
    links: list[str] = []
    there, here = resolve(top, path, links), resolve(root, path)
    assert there is not None
    end = "/" + str(there.relative_to(top)) if there != top else "/"
    if any(ruling(place, decided) is Verb.EMPTY for place in (end, *links)):
        return
    assert here is not None, f"{path} is not there"
    assert here.is_dir() == there.is_dir()
    if there.is_file():
        assert here.read_bytes() == there.read_bytes()


def _is_smallest(image: Image, decided: dict[str, Rule], copied: set[str], made: RootPlan) -> None:
    """No file is copied that no rule names, no directory is real without a reason, no link is two."""
    assert {copy.path for copy in made.copies if copy.size} == {path for path in copied if image[path]}
    changing = [path for path, rule in decided.items() if rule.verb is not Verb.SHARE]
    excepted = [path for path in decided if path in image and ruling(parent(path), decided) is not Verb.SHARE]
    for directory in made.directories:
        path = directory.path
        inside = path.rstrip("/") + "/"
        assert (
            path == "/"
            or ruling(path, decided) is not Verb.SHARE
            or path in (*MOUNT_POINTS, "/home/player", "/home")
            or any(other.startswith(inside) for other in (*changing, *excepted))
        ), f"{path} is real for nothing"
    paths = [entry.path for entry in (*made.directories, *made.copies, *made.links)]
    assert len(paths) == len(set(paths))


def _tree(*paths: str) -> list[Entry]:
    """Entries: `name/` is a directory, `name>target` a link, anything else a file of ten bytes."""
    entries = [Entry("/", "d")]
    for path in paths:
        if ">" in path:
            name, target = path.split(">")
            entries.append(Entry(name, "l", target=target))
        elif path.endswith("/"):
            entries.append(Entry(path.rstrip("/"), "d"))
        else:
            entries.append(Entry(path, "f", 0o644, size=10))
    return entries


def _shape(made: RootPlan) -> set[str]:
    mounts = {point.rstrip("/") for point in MOUNT_POINTS}
    return {
        *(f"{entry.path}/" for entry in made.directories if entry.path not in {*mounts, "/"}),
        *(entry.path for entry in made.copies),
        *(f"{entry.path}>{entry.target}" for entry in made.links),
    }


def test_an_image_without_rules_is_a_link_per_top_level_path() -> None:
    made = plan(_tree("/bin>usr/bin", "/usr/", "/usr/bin/", "/usr/bin/sh", "/etc/", "/etc/passwd"), [])
    assert _shape(made) == {"/bin>usr/bin", "/usr>/.ro/usr", "/etc>/.ro/etc"}


def test_exceptions_nest_as_deep_as_one_likes() -> None:
    rules = parse_rules("copy /etc\nshare /etc/ssl\ncopy /etc/ssl/private\nshare /etc/ssl/private/ca")
    tree = _tree(
        "/etc/",
        "/etc/a",
        "/etc/ssl/",
        "/etc/ssl/b",
        "/etc/ssl/private/",
        "/etc/ssl/private/ca",
        "/etc/ssl/private/k",
    )
    assert _shape(plan(tree, rules)) == {
        "/etc/", "/etc/a", "/etc/ssl/", "/etc/ssl/b>/.ro/etc/ssl/b", "/etc/ssl/private/",
        "/etc/ssl/private/ca>/.ro/etc/ssl/private/ca", "/etc/ssl/private/k",
    }  # fmt: skip


def test_one_volatile_file_makes_its_directory_real_and_its_neighbours_links() -> None:
    made = plan(_tree("/etc/", "/etc/a", "/etc/b", "/etc/d/", "/etc/d/x"), parse_rules("copy /etc/a"))
    assert _shape(made) == {"/etc/", "/etc/a", "/etc/b>/.ro/etc/b", "/etc/d>/.ro/etc/d"}
    assert made.copied_bytes == 10


def test_an_empty_directory_keeps_what_a_longer_rule_names() -> None:
    rules = parse_rules("empty /var\nshare /var/a/lib\ncopy /var/b")
    made = plan(_tree("/var/", "/var/a/", "/var/a/lib/", "/var/a/x", "/var/b", "/var/c"), rules)
    assert _shape(made) == {"/var/", "/var/a/", "/var/a/lib>/.ro/var/a/lib", "/var/b"}


def test_of_two_rules_for_one_path_the_later_counts() -> None:
    tree = _tree("/etc/", "/etc/a")
    assert _shape(plan(tree, parse_rules("copy /etc\nshare /etc"))) == {"/etc>/.ro/etc"}
    assert _shape(plan(tree, parse_rules("share /etc\ncopy /etc"))) == {"/etc/", "/etc/a"}


def test_a_rule_follows_the_links_on_its_way() -> None:
    made = plan(_tree("/lib>usr/lib", "/usr/", "/usr/lib/", "/usr/lib/a", "/usr/x"), parse_rules("copy /lib/a"))
    assert _shape(made) == {"/lib>usr/lib", "/usr/", "/usr/lib/", "/usr/lib/a", "/usr/x>/.ro/usr/x"}


def test_globs_match_within_one_directory() -> None:
    rules = parse_rules("copy /etc/*.d")
    made = plan(_tree("/etc/", "/etc/a.d/", "/etc/a.d/x", "/etc/b/", "/etc/b/c.d/", "/etc/e"), rules)
    assert _shape(made) == {"/etc/", "/etc/a.d/", "/etc/a.d/x", "/etc/b>/.ro/etc/b", "/etc/e>/.ro/etc/e"}


def test_what_does_not_exist_yet_can_be_made_by_a_client() -> None:
    made = plan(_tree("/var/", "/var/x"), parse_rules("copy /var/lib/game/scores\nempty /srv/new"))
    assert _shape(made) == {"/var/", "/var/x>/.ro/var/x", "/var/lib/", "/var/lib/game/", "/srv/", "/srv/new/"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("copy /var/run/x", "mounted over"),
        ("copy /etc/a/b", "/etc/a is not a directory"),
        ("copy /loop/x", "/loop is not a directory"),
    ],
)
def test_a_rule_that_leads_nowhere_is_refused_by_name(line: str, problem: str) -> None:
    tree = _tree("/var/", "/var/run>/run", "/etc/", "/etc/a", "/loop>loop")
    with pytest.raises(RecipeError, match=problem) as caught:
        plan(tree, parse_rules(line))
    assert line in str(caught.value)


def test_a_rule_that_copies_too_much_is_refused_with_its_size() -> None:
    tree = [*_tree("/usr/", "/etc/", "/etc/a"), Entry("/usr/game", "f", size=3 * LIMIT_BYTES)]
    with pytest.raises(RecipeError, match=r"'copy /' would copy 192 MiB .*at most 64"):
        plan(tree, parse_rules("copy /etc\ncopy /"))
    assert plan(tree, parse_rules("copy /\nshare /usr/game")).copied_bytes == 10


def test_a_file_with_capabilities_is_not_copied_without_them() -> None:
    tree = [*_tree("/usr/"), Entry("/usr/ping", "f", size=1, capable=True)]
    with pytest.raises(RecipeError, match="share /usr/ping"):
        plan(tree, parse_rules("copy /usr"))


def test_an_image_that_uses_the_share_s_place_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"/\.ro"):
        plan(_tree("/.ro/"), [])


@pytest.mark.root
def test_owners_modes_hard_links_and_special_files_survive_the_archive(tmp_path: Path) -> None:
    top = tmp_path / "image"
    (top / "etc/sub").mkdir(parents=True)
    (top / "etc/one").write_text("shared content")
    (top / "etc/sub/two").hardlink_to(top / "etc/one")
    (top / "etc/void").touch()
    (top / "etc/void2").hardlink_to(top / "etc/void")
    os.chown(top / "etc/one", 12, 34)
    (top / "etc/one").chmod(0o4750)
    (top / "etc/sub").chmod(0o1777)
    os.mkfifo(top / "etc/fifo", 0o600)
    os.mknod(top / "etc/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "etc/link").symlink_to("sub/two")
    made = plan(listing(top), parse_rules("copy /etc"))
    assert made.copied_bytes == len("shared content")
    archive(made, top, tmp_path / "plan", epoch=86400)
    unpack(tmp_path / "plan", tmp_path / "root")
    etc = tmp_path / "root/etc"
    status = (etc / "one").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o4750)
    assert (etc / "sub/two").samefile(etc / "one")
    assert (etc / "sub/two").read_text() == "shared content"
    assert (etc / "void").read_bytes() == (etc / "void2").read_bytes() == b""
    assert stat.S_IMODE((etc / "sub").stat().st_mode) == 0o1777
    assert stat.S_ISFIFO((etc / "fifo").stat().st_mode)
    assert (etc / "null").stat().st_rdev == os.makedev(1, 3)
    assert str((etc / "link").readlink()) == "sub/two"
    assert (etc / "one").stat().st_mtime == 86400


def test_the_archive_of_the_same_tree_is_the_same_bytes(tmp_path: Path) -> None:
    packed = []
    for name, order in (("a", ("x", "y", "z")), ("b", ("z", "y", "x"))):
        top = tmp_path / name
        (top / "etc").mkdir(parents=True)
        for file in order:
            (top / "etc" / file).write_text(file)
        archive(plan(listing(top), parse_rules("copy /etc")), top, tmp_path / f"{name}.cpio")
        packed.append((tmp_path / f"{name}.cpio").read_bytes())
    assert packed[0] == packed[1]
