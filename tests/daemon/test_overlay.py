"""A restored home is its template again, whatever the user did to it; real mounts in a namespace of their own."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.hands import home, overlay
from tests.daemon.namespace import UID, Namespace

pytestmark = pytest.mark.root
# A home on the template that the initrd left, restored once.
HOME = """
from agent.hands.overlay import Home
from agent.hands import home as tool
def unwanted(*asked): raise AssertionError(asked)
home = Home("/home/player", FIRST, "50", KIND)
home.prepare(FIRST, SIZE, unwanted)
home.restore()
restored = home.measure()
home.swap()
def put(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(data)
"""


def template(folder: Path, volume: int) -> Path:
    tree = folder / f"home-{volume}"
    (tree / ".config/game").mkdir(parents=True)
    (tree / ".config/game/settings").write_text(f"volume={volume}\n")
    (tree / ".profile").write_text("PATH=/usr/games:$PATH\n")
    (tree / "current").symlink_to(".config/game")
    os.mkfifo(tree / "pipe")
    os.setxattr(tree / ".profile", "user.origin", b"template")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    tree.chmod(0o2750)
    os.setxattr(tree, "trusted.fleet", b"template")
    return tree


class Place(Namespace):
    """With the template of the boot in /run/fleet; `digest` is that of its tree."""

    kind = overlay.OVERLAY

    def prepare(self, folder: Path) -> None:
        tree = template(folder, 11)
        self.digest = home.tree_digest(str(tree))
        self.squashfs(tree, "/run/fleet/home.squashfs")
        file = self.path("/run/fleet/home.squashfs")
        names = f"FIRST, SIZE, KIND = {home.file_digest(str(file))!r}, {file.stat().st_size}, {self.kind!r}\n"
        self.prelude = names + HOME

    def run(self, code: str) -> Any:
        return self.python(self.prelude + code)


@pytest.fixture(params=[overlay.OVERLAY, overlay.COPY])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    with Place() as place:
        place.kind = request.param
        place.prepare(tmp_path)
        yield place


def test_a_fresh_home_has_the_digest_of_its_template(place: Place) -> None:
    assert place.run("result = [restored, tool.tree_digest('/home/player')]") == [place.digest] * 2


def test_all_that_the_user_did_is_gone(place: Place) -> None:
    code = """
put("/home/player/saves/one", "x")
put("/home/player/.profile", "evil")
os.unlink("/home/player/current")
os.chmod("/home/player", 0o777)
os.setxattr("/home/player", "trusted.fleet", b"mine")
os.mknod("/home/player/pipe2")
soiled = tool.tree_digest("/home/player")
home.restore()
between = [home.measure(), tool.tree_digest("/home/player")]
home.swap()
result = [soiled, between, tool.tree_digest("/home/player")]
"""
    soiled, between, after = place.run(code)
    assert soiled != place.digest
    assert between == [place.digest, soiled], "the old home is there until the new one takes its place"
    assert after == place.digest


def test_what_was_thrown_away_can_be_accounted_for_when_the_new_home_is_there(place: Place) -> None:
    code = """
put("/home/player/saves/one", "x" * 1000)
put("/home/player/two", "x" * 24)
os.unlink("/home/player/current")
wanted = tool.tree_digest("/home/player")
home.restore()
kept = [f"/proc/self/fd/{fd}" for fd in home.swap()]
# A copy is thrown away with what came from the template: .profile, settings and the pipe.
of_template = [0, 0] if KIND == "overlay" else [3, 32]
result = [tool.account(*kept), {"before": wanted, "files": 2 + of_template[0], "bytes": 1024 + of_template[1]}]
"""
    counted, wanted = place.run(code)
    assert counted == wanted


@pytest.mark.slow
def test_the_memory_of_the_old_home_is_free_once_it_is_let_go(place: Place) -> None:
    code = """
def shared(): return int(next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("Shmem:")))
put("/home/player/big", "x" * (64 << 20))
full = shared()
home.restore()
kept = home.swap()
held = shared()
for fd in kept: os.close(fd)
for _ in range(100):  # the kernel frees a detached file system in its own time
    if shared() < full - (48 << 10): break
    time.sleep(0.05)
result = [held > full - (8 << 10), shared() < full - (48 << 10)]
"""
    assert place.run(code) == [True, True]


@pytest.mark.slow
def test_a_restore_touches_no_file_of_a_full_home(place: Place) -> None:
    code = """
touched = []
sys.addaudithook(lambda event, arguments: touched.append(event))
def counted():
    before = len(touched)
    home.restore()
    home.measure()
    home.swap()
    return len(touched) - before
counted()
empty = counted()
for number in range(1000):
    put(f"/home/player/{number % 10}/{number}", "x")
result = [empty, counted()]
"""
    empty, full = place.run(code)
    assert empty == full > 0


def test_a_file_that_somebody_holds_open_does_not_hold_the_restore(place: Place) -> None:
    code = """
put("/home/player/one", "mine")
os.chdir("/home/player")
held = open("one")
home.restore()
home.swap()
result = [os.listdir("/home/player"), held.read()]
"""
    names, content = place.run(code)
    assert "one" not in names
    assert content == "mine"


def test_a_mount_that_the_user_left_in_the_home_goes_with_it(place: Place) -> None:
    code = """
os.mkdir("/home/player/mounted")
subprocess.run(["mount", "-t", "tmpfs", "user", "/home/player/mounted"], check=True)
home.restore()
home.swap()
result = [tool.tree_digest("/home/player"), "/home/player/mounted" in open("/proc/self/mounts").read()]
"""
    assert place.run(code) == [place.digest, False]


def test_a_digest_is_measured_anew_where_the_upper_layer_is_not_empty(place: Place) -> None:
    code = """
home.restore()
settings = "/run/fleet/home/next/.config/game/settings"
before = os.stat(settings)
put(settings, "volume=99\\n")
os.utime(settings, ns=(before.st_atime_ns, before.st_mtime_ns))
result = home.measure()
"""
    assert place.run(code) != place.digest


def test_a_template_that_is_not_what_it_should_be_is_refused_and_the_home_left_alone(place: Place) -> None:
    code = """
put("/home/player/one", "mine")
def fetch(digest, size, target):
    with open(target, "wb") as file: file.write(b"rubbish")
try:
    home.prepare("f" * 64, 7, fetch)
except OSError as error:
    result = [str(error), os.path.exists("/home/player/one"), home.template == FIRST]
"""
    text, kept, same = place.run(code)
    assert "is not the template ffff" in text
    assert (kept, same) == (True, True)


def test_another_template_serves_from_the_next_restore_and_the_old_one_goes(place: Place, tmp_path: Path) -> None:
    tree = template(tmp_path, 12)
    place.squashfs(tree, "/run/second")
    second = hashlib.sha256(place.path("/run/second").read_bytes()).hexdigest()
    code = f"""
import shutil
home.prepare({second!r}, os.stat("/run/second").st_size, lambda digest, size, target: shutil.copy("/run/second", target))
home.restore()
kept = home.swap()
home.forget_others()
old = tool.tree_digest(f"/proc/self/fd/{{kept[0]}}")  # still readable: it is being accounted for
for fd in kept: os.close(fd)
files = sorted(os.listdir("/run/fleet"))
home.prepare({second!r}, 0, unwanted)
home.restore()
home.swap()
result = [old, tool.tree_digest("/home/player"), files]
"""
    old, new, files = place.run(code)
    assert old == place.digest
    assert new == home.tree_digest(str(tree)) != old
    assert "home.squashfs" not in files


def test_a_copy_that_has_no_room_is_refused_while_the_old_home_is_there(place: Place) -> None:
    code = """
put("/home/player/one", "mine")
def prepared(percent, kind):
    try:
        Home("/home/player", FIRST, percent, kind).prepare(FIRST, SIZE, unwanted)
    except OSError as error:
        return str(error)
result = [prepared("0", "copy"), prepared("50", "copy"), prepared("0", "overlay"), os.path.exists("/home/player/one")]
"""
    refused, *others = place.run(code)
    assert "a copy of the template takes 0 MiB, and the home has 0" in refused
    assert others == [None, None, True]


def test_a_home_can_be_restored_where_an_interrupted_restore_left_none_or_half_of_one(place: Place) -> None:
    code = """
from agent.hands.overlay import bind, detach, mounts
home.restore()
home.restore()
detach("/home/player")
again = home.swap()
home.restore()
last = home.swap()
left = sorted(point for point, _ in mounts() if point.startswith(("/run/fleet/home", "/home/player")))
result = [again, len(last), tool.tree_digest("/home/player"), left]
"""
    points = ["/home/player", "/run/fleet/home/template", "/run/fleet/home/upper"]
    assert place.run(code) == [[], 2, place.digest, points]


def test_no_mount_is_left_behind_by_any_number_of_restores(place: Place) -> None:
    code = """
def count(): return len(open("/proc/self/mountinfo").readlines())
before = count()
for _ in range(5):
    home.restore()
    for fd in home.swap(): os.close(fd)
result = [before, count()]
"""
    before, after = place.run(code)
    assert before == after
