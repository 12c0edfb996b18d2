"""A version goes to some clients first; their boots decide whether all get it, or whether it is taken back by itself."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from agents import attendance, judging, netboot, plans, scripts
from agents.models import BootSession, BootToken, SessionStatus, Verdict
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import AuditEntry, Client
from images import homes, keeping, releasing, services
from images.models import ImageVersion, Release
from tests.agents.boots import boot, form, make_release, plan_of, token_of
from tests.images.versions import make_version
from tests.world import World, make_client


@pytest.fixture
def stable(world: World, keys: Path) -> Release:
    return make_release(world.gamer)


@pytest.fixture
def pcs(world: World, stable: Release) -> list[Client]:
    """Four PCs of the class."""
    return [make_client(world.clubroom, f"52:54:00:00:00:0{n}", client_class=world.gamer) for n in range(1, 5)]


@pytest.fixture
def fresh(stable: Release) -> ImageVersion:
    return make_version(stable.version.image)


def boots(client: Client) -> str:
    return plan_of(client)["version"]


def ready(client: Client) -> BootSession:
    session = boot(client)
    attendance.says_state(session.pk, "ready")
    session.refresh_from_db()
    return session


def cannot_boot(client: Client) -> None:
    token = token_of(client.mac)
    plans.boot_plan(form(token, client.mac))
    said = {"token": token, "mac": client.mac, "stage": "verify", "error": "digest-mismatch", "detail": "a block"}
    netboot.trouble(said)


def start(world: World, version: ImageVersion, *clients: Client, share: int = 0, **limits: int) -> Release:
    return releasing.start(
        version, world.gamer, world.otto, "see", share=share, clients=clients, limits=releasing.Limits(**limits)
    )


# --- who gets it ------------------------------------------------------------------------------------------------------


def test_the_chosen_boot_the_canary_kernel_and_all_and_the_others_what_they_booted(
    world: World, pcs: list[Client], stable: Release, fresh: ImageVersion
) -> None:
    canary = start(world, fresh, pcs[0])
    assert (boots(pcs[0]), boots(pcs[1])) == (str(fresh), str(stable.version))
    assert fresh.manifest is not None
    assert f"/store/{fresh.manifest['kernel']['sha256']} " in scripts.client_script({"mac": pcs[0].mac})
    assert BootSession.objects.get(client=pcs[0], status=SessionStatus.BOOTING).release == canary
    entry = AuditEntry.objects.get(action="version.canary")
    assert (entry.actor, entry.detail["clients"], entry.detail["reason"]) == ("otto", ["A1 (pc-01)"], "see")
    assert Release.objects.get(client_class=world.gamer, current=True) == stable


def test_a_share_is_drawn_once_and_stays_the_same(world: World, stable: Release, fresh: ImageVersion) -> None:
    many = [
        make_client(world.clubroom, f"52:54:00:00:01:{n:02x}", name=f"s{n}", client_class=world.gamer)
        for n in range(200)
    ]
    canary = start(world, fresh, share=25)
    chosen = [client for client in many if releasing.release_for(client, world.gamer) == canary]
    assert 30 <= len(chosen) <= 70
    assert sorted(map(str, chosen)) == sorted(map(str, releasing.clients_of(canary)))
    assert boots(chosen[0]) == str(fresh)
    assert all(releasing._drawn(Release(pk=canary.pk, share=100), client) for client in many)
    assert not any(releasing._drawn(Release(pk=canary.pk, share=0), client) for client in many)


def test_a_client_of_another_class_gets_it_no_more(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    start(world, fresh, pcs[0])
    Client.objects.filter(pk=pcs[0].pk).update(client_class=world.contest)
    other = make_release(world.contest)
    assert plan_of(pcs[0], "0000:00:03.0,1002:5046,1af4:1100,030000")["version"] == str(other.version)


@pytest.mark.parametrize(
    ("share", "of", "words"),
    [
        (0, [], "Nobody would get"),
        (101, [], "Nobody would get"),
        (-1, [0], "Nobody would get"),
        (0, ["x"], "is not of"),
    ],
)
def test_a_choice_that_is_none_is_refused(
    world: World, pcs: list[Client], fresh: ImageVersion, share: int, of: list[object], words: str
) -> None:
    stranger = make_client(world.clubroom, "52:54:00:00:00:77", client_class=world.contest)
    clients = [pcs[item] if isinstance(item, int) else stranger for item in of]
    with pytest.raises(OperatorError, match=words):
        start(world, fresh, *clients, share=share)
    assert not Release.objects.filter(canary=True).exists()


def test_a_class_has_one_canary_at_a_time(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    canary = start(world, fresh, pcs[0])
    other = make_version(fresh.image)
    with pytest.raises(WrongState, match="has a canary already"):
        start(world, other, pcs[1])
    with pytest.raises(IntegrityError), transaction.atomic():
        Release.objects.create(client_class=world.gamer, version=other, home=canary.home, canary=True, current=False)
    with pytest.raises(IntegrityError), transaction.atomic():
        Release.objects.filter(pk=canary.pk).update(current=True)


def test_only_who_may_release_decides(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    for person in (world.vera, world.mallory):
        with pytest.raises(Forbidden):
            releasing.start(fresh, world.gamer, person, clients=pcs[:1])
    canary = start(world, fresh, pcs[0])
    for person in (world.vera, world.mallory):
        for act in (releasing.promote, releasing.withdraw):
            with pytest.raises(Forbidden):
                act(canary, person)


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_promoted_it_is_everybodys_and_rolling_back_leads_to_what_was_before(
    world: World, pcs: list[Client], stable: Release, fresh: ImageVersion
) -> None:
    canary = start(world, fresh, pcs[0])
    new = releasing.promote(canary, world.otto, "it does well")
    assert (new.current, new.canary, new.version) == (True, False, fresh)
    assert boots(pcs[1]) == str(fresh)
    canary.refresh_from_db()
    assert canary.outcome == "promoted"
    for act in (releasing.promote, releasing.withdraw):
        with pytest.raises(WrongState, match="is no canary of Gamer any more: promoted"):
            act(canary, world.otto)
    assert services.roll_back(world.gamer, world.otto).version == stable.version


def test_withdrawn_its_clients_boot_what_all_boot(
    world: World, pcs: list[Client], stable: Release, fresh: ImageVersion
) -> None:
    canary = start(world, fresh, pcs[0])
    assert fresh.pk in keeping.holds()
    releasing.withdraw(canary, world.otto, "flickers")
    assert boots(pcs[0]) == str(stable.version)
    assert AuditEntry.objects.get(action="version.withdrawn").detail["reason"] == "flickers"
    with pytest.raises(WrongState, match="no earlier release"):
        services.roll_back(world.gamer, world.otto)
    assert fresh.pk in keeping.holds(), "one of its clients may be on its way"
    Release.objects.filter(pk=canary.pk).update(ended_at=timezone.now() - timedelta(days=30))
    BootSession.objects.all().delete()
    assert fresh.pk not in keeping.holds()


def test_a_home_is_restored_to_that_of_the_canary(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    canary = start(world, fresh, pcs[0])
    assert homes.now_for(canary) == canary.home
    releasing.withdraw(canary, world.otto)
    assert homes.now_for(canary) == Release.objects.get(current=True).home


# --- boots are counted ------------------------------------------------------------------------------------------------


def test_ready_in_time_is_good_and_said_again_changes_nothing(pcs: list[Client], stable: Release) -> None:
    session = ready(pcs[0])
    assert (session.verdict, session.ready_at is not None) == (Verdict.GOOD, True)
    BootSession.objects.update(planned_at=timezone.now() - timedelta(hours=1))
    attendance.says_state(session.pk, "in-use")
    session.refresh_from_db()
    assert session.verdict == Verdict.GOOD
    assert judging.standing(stable) == judging.Standing(1, 0)


def test_too_late_trouble_and_silence_are_bad(pcs: list[Client], stable: Release) -> None:
    late = boot(pcs[0])
    BootSession.objects.update(planned_at=timezone.now() - timedelta(seconds=stable.ready_within_s + 1))
    attendance.says_state(late.pk, "ready")
    cannot_boot(pcs[1])
    boot(pcs[2])
    BootSession.objects.filter(client=pcs[2]).update(planned_at=timezone.now() - timedelta(hours=1))
    token_of(pcs[3].mac)  # it took the kernel, which never came up
    judging.judge()
    assert judging.standing(stable) == judging.Standing(0, 3)
    BootToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert judging.standing(stable) == judging.Standing(0, 4)


def test_a_boot_that_was_cut_short_and_one_that_waits_count_as_neither(
    world: World, pcs: list[Client], stable: Release
) -> None:
    first = boot(pcs[0])
    attendance.close_session(first)
    BootSession.objects.update(planned_at=timezone.now() - timedelta(hours=1))
    token = token_of(pcs[1].mac)
    Client.objects.filter(pk=pcs[1].pk).update(admission="maintenance")
    plans.boot_plan(form(token, pcs[1].mac))
    BootToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    judging.judge()
    assert judging.standing(stable) == judging.Standing(0, 0)


def test_who_boots_anew_before_it_was_ready_boots_badly(pcs: list[Client], stable: Release) -> None:
    for _ in range(3):
        boot(pcs[0])
    assert judging.standing(stable) == judging.Standing(0, 1)
    ready(pcs[1])
    boot(pcs[1])
    assert judging.standing(stable) == judging.Standing(1, 1), "one that was ready may be reset"


def test_each_client_counts_by_its_last_boot(pcs: list[Client], stable: Release) -> None:
    for _ in range(3):
        cannot_boot(pcs[0])
    assert judging.standing(stable) == judging.Standing(0, 1)
    ready(pcs[0])
    assert judging.standing(stable) == judging.Standing(1, 0)


# --- and what follows -------------------------------------------------------------------------------------------------


def test_a_bad_canary_withdraws_itself_and_says_so(
    world: World, pcs: list[Client], stable: Release, fresh: ImageVersion
) -> None:
    canary = start(world, fresh, *pcs[:3])
    ready(pcs[0])
    cannot_boot(pcs[1])
    judging.judge()
    canary.refresh_from_db()
    assert canary.is_under_way, "one bad client of two may be the client's fault"
    cannot_boot(pcs[2])
    judging.judge()
    judging.judge()
    canary.refresh_from_db()
    assert canary.outcome == (f"withdrawn by itself: of 3 clients that booted {fresh}, 2 did not become ready")
    entry = AuditEntry.objects.get(action="version.withdrawn")
    assert (entry.actor, entry.detail["digest"]) == ("clock", fresh.digest)
    assert boots(pcs[2]) == str(stable.version)


def test_the_only_client_of_a_canary_is_enough(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    canary = start(world, fresh, pcs[0], most_bad=5)
    cannot_boot(pcs[0])
    judging.judge()
    canary.refresh_from_db()
    assert not canary.is_under_way


def test_a_bad_release_is_rolled_back_once_and_not_to_and_fro(
    world: World, pcs: list[Client], stable: Release, fresh: ImageVersion
) -> None:
    bad = services.release(fresh, world.gamer, world.otto)
    for client in pcs[:2]:
        cannot_boot(client)
    judging.judge()
    again = Release.objects.get(client_class=world.gamer, current=True)
    assert (again.version, again.restores, again.released_by) == (stable.version, stable, None)
    assert "did not become ready" in again.reason
    bad.refresh_from_db()
    assert bad.outcome.startswith("rolled back by itself: of 2 clients that booted gamer-2, 2 did not")
    assert AuditEntry.objects.get(action="version.rolled-back").actor == "clock"
    for client in pcs:
        cannot_boot(client)
    judging.judge()
    assert Release.objects.get(client_class=world.gamer, current=True) == again


def test_one_broken_pc_among_good_ones_changes_nothing(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    new = services.release(fresh, world.gamer, world.otto)
    for client in pcs[1:]:
        ready(client)
    for _ in range(5):
        cannot_boot(pcs[0])
    judging.judge()
    assert Release.objects.get(client_class=world.gamer, current=True) == new


def test_the_first_release_stays_and_says_that_it_is_bad(world: World, pcs: list[Client], stable: Release) -> None:
    for client in pcs[:2]:
        cannot_boot(client)
    judging.judge()
    judging.judge()
    stable.refresh_from_db()
    assert stable.current
    assert stable.outcome.startswith("bad, but not rolled back (Gamer has no earlier release to go back to.): of 2")
    assert AuditEntry.objects.filter(action="version.bad").count() == 1


def test_without_a_limit_nothing_follows(world: World, pcs: list[Client], fresh: ImageVersion) -> None:
    canary = start(world, fresh, *pcs, most_bad=0)
    for client in pcs:
        cannot_boot(client)
    judging.judge()
    canary.refresh_from_db()
    assert canary.is_under_way
    assert judging.standing(canary) == judging.Standing(0, 4)
