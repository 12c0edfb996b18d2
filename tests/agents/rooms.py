"""A gateway, its Redis and a club room: what a test of the gateway process works with."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_django.fixtures import Settings

from agents import sending, services, tasks
from agents.daemon import protocol
from agents.models import BootSession, Command, Verb
from fleet.models import Client
from tests.agents.boots import command_keys, make_release, plan_of
from tests.agents.conftest import forget
from tests.agents.gateways import Gateway, Reply, Visitor
from tests.services import celery_sends_to
from tests.world import World, make_client, make_world


@dataclass
class Room:
    """A world that is committed. This process is web and sender; the gateway is one of its own."""

    world: World
    gate: Gateway
    redis_url: str

    def client(self, number: int = 1) -> Client:
        return make_client(self.world.clubroom, f"52:54:00:00:00:{number:02x}")

    def boot(self, client: Client) -> tuple[BootSession, Visitor]:
        """A boot of ``client`` whose plan came by another gateway, and its daemon's connection to this one."""
        plan = plan_of(client)
        return BootSession.objects.get(pk=plan["session"]), self.gate.visitor(plan["bearer"])

    def running(self, number: int = 1) -> tuple[BootSession, Visitor]:
        """A new client with an open session."""
        session, visitor = self.boot(self.client(number))
        assert visitor.open(str(session.boot_id)).status == 200
        return session, visitor

    def order(self, session: BootSession, verb: Verb = Verb.RESTART) -> Command:
        """An order as the web process leaves it: its message is lost."""
        with celery_sends_to("redis://127.0.0.1:1/0"):
            return services.order(verb, [session.client], "why", self.world.vera).commands.get()

    def send(self, session: BootSession, verb: Verb = Verb.RESTART) -> Command:
        """An order that the sender signed, and nudged the gateway for."""
        command = self.order(session, verb)
        tasks.send_order(str(command.order_id))
        command.refresh_from_db()
        return command

    def opened(self, reply: Reply, session: BootSession) -> list[str]:
        """The ids of the commands in a poll's answer, each proved as the daemon does."""
        assert reply.status == 200, reply.body
        assert abs(reply.json["server_time_ms"] - time.time() * 1000) < 5000
        keys = command_keys(self.gate.keys)
        client, boot = str(session.client_id), str(session.boot_id)
        return [protocol.authenticate(wrapped, keys, client, boot).command for wrapped in reply.json["commands"]]


@contextmanager
def make_room(gate: Gateway, redis_url: str, settings: Settings) -> Iterator[Room]:
    """The rows, and this process's settings for the gateway's keys and Redis. The gateway must not have tripped."""
    world = make_world()
    make_release(world.gamer)
    settings.PUBLIC_KEYS, settings.REDIS_URL = gate.keys, redis_url
    settings.COMMAND_KEY = str(gate.keys / "command.key")
    forget()
    try:
        yield Room(world, gate, redis_url)
    finally:
        gate.send_visitors_home()
        sending.connection().close()
        forget()
    assert "Traceback" not in gate.log, gate.log
