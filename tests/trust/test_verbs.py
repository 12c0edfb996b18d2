"""The verbs are a closed set: the database stores no other, and a daemon knows no other."""

import pytest
from django.db import IntegrityError, transaction

from agents.daemon import protocol
from agents.models import Cap, Command, Order, Verb
from tests.agents.test_sending import ordered
from tests.world import World, make_client


@pytest.mark.parametrize("verb", ["", "format", "RESTART", "restart ", "shell"])
def test_the_database_stores_no_other(world: World, verb: str) -> None:
    command = ordered(world, make_client(world.clubroom))
    Cap.objects.create(site=world.clubroom, verb=Verb.CYCLE, at_once=1)
    for rows in (Command.objects.filter(pk=command.pk), Order.objects.all(), Cap.objects.all()):
        with pytest.raises(IntegrityError, match=r"verb_declared"), transaction.atomic():
            rows.update(verb=verb)


def test_a_daemon_knows_those_of_the_server_but_for_the_one_that_others_do_to_it() -> None:
    assert set(protocol.VERBS[protocol.VERSION]) == {*Verb} - {Verb.WAKE}
    assert set(protocol.VERBS[1]) == {Verb.RESTART, Verb.POWEROFF, Verb.CYCLE, Verb.CAPTURE}
    assert set(protocol.NEEDS) == set(protocol.VERBS[protocol.VERSION]), "each says which arguments it needs"


@pytest.mark.parametrize("verb", protocol.NEEDS)
def test_no_verb_takes_text_for_a_shell_or_what_nobody_declared(verb: str) -> None:
    for strange in ("command", "shell", "path", "url", "argv", "script"):
        assert not protocol.fits(verb, {strange: "reboot"}, protocol.VERSION)
