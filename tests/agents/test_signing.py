"""Keys: made once, read by one process, rotated; and which process has which."""

import base64
import re
import stat
from pathlib import Path

import pytest
from django.core.management import call_command
from pytest_django.fixtures import Settings

from agents.daemon import ed25519, protocol
from agents.signing import public_keys
from fleet import signing
from fleet.exceptions import SiteError
from fleet.signing import Signer, make_keys
from tests.services import PROJECT


def test_a_signature_verifies_with_the_public_key_beside_it(tmp_path: Path) -> None:
    make_keys(tmp_path)
    signer = Signer.load(str(tmp_path / "command.key"), "command")
    public = protocol.parse_keys(public_keys(tmp_path, "command"))[signer.key_id]
    assert ed25519.verify(public, b"body", signer.sign(b"body"))
    assert not ed25519.verify(public, b"other", signer.sign(b"body"))
    other = protocol.parse_keys(public_keys(tmp_path, "session"))
    assert signer.key_id not in other


def test_keys_are_made_once_and_only_their_owner_reads_the_private_ones(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.PUBLIC_KEYS = tmp_path / "keys"
    call_command("keys")
    assert capsys.readouterr().out.count("Made ") == 3
    before = {path.name: path.read_bytes() for path in settings.PUBLIC_KEYS.iterdir()}
    call_command("keys")
    assert capsys.readouterr().out == ""
    assert {path.name: path.read_bytes() for path in settings.PUBLIC_KEYS.iterdir()} == before
    for kind in signing.KINDS:
        assert stat.S_IMODE((settings.PUBLIC_KEYS / f"{kind}.key").stat().st_mode) == 0o600


def test_a_missing_key_names_its_setting_and_the_way_to_one(tmp_path: Path) -> None:
    with pytest.raises(SiteError) as caught:
        Signer.load("", "command")
    assert "This process has no command key" in str(caught.value)
    assert "Set FLEET_COMMAND_KEY for it, and for no other process; `manage.py keys` makes one." in str(caught.value)
    with pytest.raises(SiteError, match=r"gone\.key cannot be read.*`manage\.py keys` makes one"):
        Signer.load(str(tmp_path / "gone.key"), "command")
    with pytest.raises(SiteError, match=r"There is no public command key in .*Run `manage\.py keys`"):
        public_keys(tmp_path, "command")


@pytest.mark.parametrize("content", ["", "command-1", "command-1:%%%", "command-1:AAAA", "\0\xff"])
def test_a_file_that_is_no_key_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.key").write_bytes(content.encode("latin-1"))
    with pytest.raises(SiteError, match=r"bad\.key cannot be read"):
        Signer.load(str(tmp_path / "bad.key"), "command")


def test_a_public_file_that_holds_no_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "command.pub").write_text("nonsense\n")
    with pytest.raises(SiteError, match=r"command\.pub"):
        public_keys(tmp_path, "command")


def test_while_keys_rotate_plans_carry_the_old_and_the_new_one(tmp_path: Path) -> None:
    make_keys(tmp_path)
    old = (tmp_path / "command.pub").read_text()
    (tmp_path / "command.pub").rename(tmp_path / "command-old.pub")
    (tmp_path / "command.key").unlink()
    make_keys(tmp_path)
    new = (tmp_path / "command.pub").read_text()
    both = protocol.parse_keys(public_keys(tmp_path, "command"))
    assert both == protocol.parse_keys(old.strip()) | protocol.parse_keys(new.strip())
    assert len(both) == 2


def test_the_key_id_is_of_the_public_key(tmp_path: Path) -> None:
    make_keys(tmp_path)
    key_id, _, public = (tmp_path / "session.pub").read_text().strip().partition(":")
    assert re.fullmatch(r"session-[0-9a-f]{8}", key_id)
    assert len(base64.b64decode(public)) == 32


@pytest.mark.parametrize(
    ("setting", "process"),
    [("FLEET_COMMAND_KEY", "sender"), ("FLEET_SESSION_KEY", "gateway"), ("FLEET_IMAGE_KEY", "builds")],
)
def test_each_private_key_is_given_to_one_process_alone(setting: str, process: str) -> None:
    lines = (PROJECT / "Procfile").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines if setting in line] == [process]
    units = (PROJECT / "deploy").glob("*.service")
    assert [unit.stem for unit in units if setting in unit.read_text()] == [f"fleet-{process}"]
