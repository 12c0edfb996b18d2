"""What is pending for a version, by apt's own reckoning; its bill of materials."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from images.builder import sbom
from images.builder.chroot.debian import DEBIAN
from images.builder.director import Context, pending
from images.builder.families import FAMILIES
from images.builder.manifest import Manifest
from images.builder.run import Runner
from images.builder.store import Store
from tests.builder.images import DAEMON, SMALL, Recorded, Silent, built_image

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.root]


@pytest.fixture(scope="module")
def version() -> tuple[Manifest, Store]:
    return built_image()


@pytest.fixture
def database(version: tuple[Manifest, Store], tmp_path: Path) -> Path:
    """What is installed in the image, as `pending` sees it."""
    tree = tmp_path / "tree"
    argv = ["unsquashfs", "-q", "-n", "-d", str(tree), str(version[1].require(version[0].root)), *DEBIAN.database]
    subprocess.run(argv, check=True)
    return tree


def test_packages_that_are_older_than_the_archive_s_are_pending_and_security_is_told(
    database: Path, tmp_path: Path
) -> None:
    status = database / "var/lib/dpkg/status"
    text = status.read_text()
    for name, older in (("tmux", "3.0-1"), ("libssl3", "3.0.1-1")):
        text, count = re.subn(rf"(Package: {name}\n(?:.+\n)*?Version: ).+", rf"\g<1>{older}", text)
        assert count == 1
    status.write_text(text)
    found = {
        upgrade.name: upgrade
        for upgrade in DEBIAN.pending(SMALL, database, tmp_path / "apt", Runner(Recorded("look", "")))
    }
    assert (found["tmux"].installed, found["tmux"].available[:2], found["tmux"].security) == ("3.0-1", "3.", False)
    assert (found["libssl3"].installed, found["libssl3"].security) == ("3.0.1-1", True)
    assert "bash" not in found or found["bash"].installed != found["bash"].available


def test_a_version_is_looked_at_without_being_unpacked(version: tuple[Manifest, Store], tmp_path: Path) -> None:
    steps = Silent()
    found = pending(version[0], SMALL, Context(tmp_path / "work", version[1], DAEMON), steps)
    assert all(upgrade.installed != upgrade.available for upgrade in found)
    installed = {package.name: package.version for package in version[0].packages}
    assert all(installed[upgrade.name] == upgrade.installed for upgrade in found)
    assert steps.names == ["upgrades"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["apt"]


def test_the_bill_of_materials_names_each_package_and_artefact_and_is_the_same_for_the_same_version(
    version: tuple[Manifest, Store],
) -> None:
    manifest = version[0]
    text = sbom.document("test-small-1", manifest, SMALL)
    assert sbom.document("test-small-1", manifest, SMALL) == text
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", bill["serialNumber"])
    packages = [part for part in bill["components"] if part["type"] == "library"]
    assert len(packages) == len(manifest.packages)
    [tmux] = [part for part in packages if part["name"] == "tmux"]
    assert re.fullmatch(r"pkg:deb/debian/tmux@3[^?]*\?arch=amd64&distro=bookworm", tmux["purl"])
    [passwd] = [part for part in packages if part["name"] == "passwd"]
    assert "@1%3A4.13" in passwd["purl"]  # the epoch's colon, escaped
    files = {part["name"]: part["hashes"][0]["content"] for part in bill["components"] if part["type"] == "file"}
    assert files == {part: artefact.sha256 for part, artefact in manifest.artefacts().items()}
    references = [part["bom-ref"] for part in bill["components"]]
    assert len(set(references)) == len(references)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_says_where_it_keeps_what_is_installed(name: str) -> None:
    assert all(path and not path.startswith("/") for path in FAMILIES[name].database)
