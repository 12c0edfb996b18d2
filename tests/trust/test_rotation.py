"""Keys rotate in three steps without touching clients; each waits for whom it would leave behind, and says for whom."""

import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django.fixtures import Settings

from agents import netboot, rotation, sending
from agents.models import BootSession, BootToken, Command, CommandStatus
from agents.signing import ids, public_keys
from fleet.exceptions import SiteError, WrongState
from fleet.models import AuditEntry
from fleet.signify import signify_key
from fleet.signing import KINDS, Signer, make_keys, put
from fleet.slots import Slots, ever
from images.models import ImageVersion, Storage
from tests.agents.boots import boot, make_release, plan_of, token_of
from tests.agents.test_sending import ordered
from tests.services import PROJECT
from tests.world import World, make_client


def slots_of(kind: str, directory: Path) -> Slots:
    return Slots.at(kind, directory, directory / f"{kind}.key")


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    make_keys(tmp_path)
    return slots_of("command", tmp_path)


# --- files ------------------------------------------------------------------------------------------------------------


def test_three_steps_and_both_keys_are_believed_in_between(slots: Slots) -> None:
    first = slots.present
    assert (slots.old, slots.next, rotation.stage_of(slots)) == ("", "", "publish")
    slots.publish()
    second = slots.next
    assert second not in ("", first)
    assert slots.present == first, "published, and not used yet"
    assert ids(public_keys(slots.directory, "command")) == " ".join(sorted([first, second]))
    assert rotation.stage_of(slots) == "switch"
    slots.switch()
    assert (slots.old, slots.present, slots.next) == (first, second, "")
    assert ids(public_keys(slots.directory, "command")) == " ".join(sorted([first, second]))
    assert (slots.directory / "command.pub").read_text().startswith(f"{second}:")
    assert rotation.stage_of(slots) == "retire"
    slots.retire()
    assert (slots.old, slots.present, slots.next) == ("", second, "")
    assert ids(public_keys(slots.directory, "command")) == second
    assert set(ever(slots.directory, "command")) == {first, second}, "what it signed long ago can still be proved"
    assert rotation.stage_of(slots) == "publish"


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_runs_signs_with_the_new_key_from_the_switch_on(tmp_path: Path, kind: str) -> None:
    make_keys(tmp_path)
    slots = slots_of(kind, tmp_path)
    private = str(tmp_path / f"{kind}.key")
    before = Signer.load(private, kind)
    assert Signer.load(private, kind) is before, "it is read once"
    slots.publish()
    assert Signer.load(private, kind) is before
    coming = slots.next
    slots.switch()
    assert Signer.load(private, kind).key_id == coming


def test_only_the_owner_of_the_present_key_reads_the_next_one(slots: Slots) -> None:
    os.umask(os.umask(0o077))  # whatever it is
    slots.publish()
    private, public = slots.private.with_name("command-next.key"), slots.directory / "command-next.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert private.stat().st_uid == slots.private.stat().st_uid
    slots.switch()
    assert stat.S_IMODE(slots.private.stat().st_mode) == 0o600
    assert not private.exists(), "two processes never have two keys to choose from"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_the_next_key_to_the_user_who_has_the_present_one(slots: Slots) -> None:
    os.chown(slots.private, 65534, 65534)
    slots.publish()
    assert slots.private.with_name("command-next.key").stat().st_uid == 65534
    slots.switch()
    assert slots.private.stat().st_uid == 65534


def test_private_halves_may_lie_where_public_ones_do_not(tmp_path: Path) -> None:
    public, private = tmp_path / "public", tmp_path / "private"
    make_keys(public)
    private.mkdir()
    (public / "session.key").rename(private / "session.key")
    assert make_keys(public) == [], "whose public half lies there is not made anew"
    slots = Slots.at("session", public, private / "session.key")
    slots.publish()
    slots.switch()
    assert sorted(path.name for path in private.iterdir()) == ["session.key"]
    assert not list(public.glob("session*.key"))
    assert slots.present in public_keys(public, "session")


def test_the_steps_come_in_their_order(slots: Slots) -> None:
    with pytest.raises(WrongState, match="No next command key is published"):
        slots.switch()
    with pytest.raises(WrongState, match="There is no old command key"):
        slots.retire()
    slots.publish()
    with pytest.raises(WrongState, match=r"command-\w+ is published already. Switch to that one"):
        slots.publish()
    slots.switch()
    with pytest.raises(WrongState, match=r"command-\w+ is not retired yet. Retire that one first"):
        slots.publish()


def test_a_switch_that_was_interrupted_anywhere_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write and each rename of it fails once; whatever is left, both keys are believed, and the next try ends it."""
    acts = {"put": "fleet.slots.put", "replace": "pathlib.Path.replace", "unlink": "pathlib.Path.unlink"}
    for name, where in acts.items():
        for number in range(1, 4):
            directory = tmp_path / f"{name}-{number}"
            make_keys(directory)
            slots = slots_of("command", directory)
            slots.publish()
            both = {slots.present, slots.next}
            with monkeypatch.context() as patch:
                patch.setattr(
                    where, _fails_at(number, {"put": put, "replace": Path.replace, "unlink": Path.unlink}[name])
                )
                try:
                    slots.switch()
                except OSError:
                    assert ids(public_keys(directory, "command")).split() == sorted(both)
                    assert slots.present in both, "the sender has a key at every moment"
                    with pytest.raises(WrongState):
                        slots.retire()
            if slots.next:
                slots.switch()
            assert {slots.old, slots.present} == both
            assert (directory / "command.pub").read_text().startswith(f"{slots.present}:")
            slots.retire()


def _fails_at(number: int, act: Any) -> Any:
    count = iter(range(1, 100))

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(count) == number:
            raise OSError("the disk is full")
        return act(*arguments, **options)

    return failing


def test_a_next_key_without_its_private_half_is_named(slots: Slots) -> None:
    slots.publish()
    slots.private.with_name("command-next.key").unlink()
    with pytest.raises(SiteError, match=r"The private half of command-\w+ is not at .*command-next\.key"):
        slots.switch()


# --- who is waited for ------------------------------------------------------------------------------------------------


@pytest.fixture
def room(world: World, keys: Path) -> World:
    make_release(world.gamer)
    return world


def test_the_command_key_waits_for_daemons_that_were_not_told(room: World, keys: Path) -> None:
    early = boot(make_client(room.clubroom))
    slots = slots_of("command", keys)
    rotation.advance(slots, "publish")
    late = boot(make_client(room.clubroom, "52:54:00:00:00:02"))
    assert late.command_keys == ids(public_keys(keys, "command")), "its plan had both"
    with pytest.raises(WrongState) as refused:
        rotation.advance(slots, "switch")
    assert f"It is too early to switch the command key: pc-01: not told of {slots.next} yet" in str(refused.value)
    assert "pc-02" not in str(refused.value)
    early.command_keys = late.command_keys  # as the gateway writes when it answers the next session
    early.save()
    assert rotation.advance(slots, "switch") == []


def test_who_is_not_connected_holds_nothing_up(room: World, keys: Path) -> None:
    session = boot(make_client(room.clubroom))
    BootSession.objects.filter(pk=session.pk).update(status="lost")
    slots = slots_of("command", keys)
    rotation.advance(slots, "publish")
    assert rotation.advance(slots, "switch") == []


def test_the_old_command_key_is_kept_while_something_of_it_is_on_its_way(room: World, keys: Path) -> None:
    client = make_client(room.clubroom)
    boot(client)
    command = ordered(room, client)
    sending.send(Command.objects.filter(pk=command.pk))
    slots = slots_of("command", keys)
    rotation.advance(slots, "publish")
    BootSession.objects.update(command_keys=ids(public_keys(keys, "command")))
    rotation.advance(slots, "switch")
    with pytest.raises(WrongState, match=rf"cycle of A1 \(pc-01\): sent with {slots.old}"):
        rotation.advance(slots, "retire")
    Command.objects.update(status=CommandStatus.EXPIRED)
    rotation.advance(slots, "retire")
    assert ids(public_keys(keys, "command")) == slots.present


def test_the_session_key_waits_for_boots_that_know_only_the_present_one(room: World, keys: Path) -> None:
    client = make_client(room.clubroom)
    session = boot(client)
    starting = make_client(room.clubroom, "52:54:00:00:00:02")
    token_of(starting.mac)
    slots = slots_of("session", keys)
    rotation.advance(slots, "publish")
    [running, underway] = rotation.hindrances(slots, "switch")
    assert running.startswith(f"pc-01: booted before {slots.next} was published")
    assert underway == f"pc-02: starting with a command line that does not know {slots.next}"
    BootToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    script = netboot.client_script({"mac": client.mac})
    keys_told = script.partition("fleet.keys=")[2].split()[0].split(",")
    assert len(keys_told) == 2, "a boot from now on knows both from its command line"
    assert plan_of(client)["session_keys"].count(":") == 2
    session.refresh_from_db()
    assert session.status == "superseded"
    assert rotation.advance(slots, "switch") == []
    assert signify_key(ever(keys, "session")[slots.present]) in keys_told


def test_a_stolen_key_is_changed_at_once_and_who_is_left_behind_is_named(
    room: World, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boot(make_client(room.clubroom))
    call_command("keys", "rotate", "session", "--stage", "publish")
    said = capsys.readouterr().out
    assert "Not yet: pc-01: booted before session-" in said
    with pytest.raises(CommandError, match=r"too early to switch the session key: pc-01.*with --now"):
        call_command("keys", "rotate", "session", "--stage", "switch")
    call_command("keys", "rotate", "session", "--stage", "switch", "--now")
    said = capsys.readouterr().out
    assert "Left behind: pc-01: booted before" in said
    assert "The gateway signs with the new key. --stage retire" in said
    call_command("keys", "rotate", "session", "--stage", "retire")
    assert "Nothing is under way" in capsys.readouterr().out
    entries = AuditEntry.objects.filter(action__startswith="keys.").order_by("sequence")
    assert [entry.action for entry in entries] == ["keys.publish", "keys.switch", "keys.retire"]
    assert "pc-01" in str(entries[1].detail["left_behind"])


def test_an_image_key_is_kept_while_versions_are_signed_by_it(world: World, keys: Path) -> None:
    make_release(world.gamer)
    slots = slots_of("image", keys)
    rotation.advance(slots, "publish")
    rotation.advance(slots, "switch")
    with pytest.raises(WrongState, match=rf"gamer-1: signed by {slots.old}, and not started any more"):
        rotation.advance(slots, "retire")
    ImageVersion.objects.update(storage=Storage.NOTHING)
    rotation.advance(slots, "retire")


def test_a_switch_of_the_command_key_stands_in_every_sites_chain(world: World, keys: Path) -> None:
    """So that the sender signs the head of each anew."""
    slots = slots_of("command", keys)
    rotation.advance(slots, "publish")
    rotation.advance(slots, "switch")
    chains = set(AuditEntry.objects.filter(action="keys.switch").values_list("chain", flat=True))
    assert chains == {"everywhere", f"site-{world.clubroom.pk}", f"site-{world.school.pk}"}


def test_the_private_key_in_use_must_be_named_where_it_is_not_given(db: None, keys: Path, settings: Settings) -> None:
    settings.COMMAND_KEY = ""
    (keys / "command.key").rename(keys.parent / "command.key")
    with pytest.raises(CommandError, match=r"There is no command key at .*Name the one in use, as in --private"):
        call_command("keys", "rotate", "command")
    make_keys(keys.parent / "other")
    with pytest.raises(CommandError, match=r"is the key command-\w+, which nobody believes here"):
        call_command("keys", "rotate", "command", "--private", str(keys.parent / "other" / "command.key"))
    call_command("keys", "rotate", "command", "--private", str(keys.parent / "command.key"), "--stage", "publish")
    assert (keys.parent / "command-next.key").exists()
    assert (keys / "command-next.pub").exists()


def test_readers_of_public_keys_never_see_one_missing_while_keys_rotate(tmp_path: Path) -> None:
    """The gateway reads them for each plan, whatever the command is doing at that moment."""
    make_keys(tmp_path)
    slots = slots_of("command", tmp_path)
    with _rotating(tmp_path) as rotating:
        for _ in range(3000):
            found = public_keys(tmp_path, "command")
            assert 1 <= found.count(":") <= 2
            Signer.load(str(slots.private), "command")
            if rotating.poll() is not None:
                break
        assert rotating.wait(60) == 0, rotating.communicate()


class _rotating:
    """Another process that rotates the keys of ``directory`` twenty times."""

    def __init__(self, directory: Path) -> None:
        code = (
            "import sys; from pathlib import Path; from fleet.slots import Slots\n"
            "place = Path(sys.argv[1])\n"
            "for _ in range(20):\n"
            "    slots = Slots.at('command', place, place / 'command.key')\n"
            "    slots.publish(); slots.switch(); slots.retire()\n"
        )
        self._argv = [sys.executable, "-c", code, str(directory)]

    def __enter__(self) -> "subprocess.Popen[str]":
        self._process = subprocess.Popen(self._argv, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
