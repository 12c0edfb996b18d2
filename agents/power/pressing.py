"""The sender's hands: it presses power ports in threads of their own, so that a dead one holds up no signature."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from django.db import close_old_connections, connection
from django.db.models import F
from django.utils import timezone

from agents.evidence import end
from agents.models import CommandStatus, Wake, Way
from agents.power import permits, ports, relays
from agents.power.web import Away
from fleet.exceptions import SiteError, WrongState

log = logging.getLogger(__name__)
_AT_ONCE = 8
_pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="power-port")
_lock = threading.Lock()
_pressed: set[UUID] = set()  # commands that a thread has in hand


def press_due() -> None:
    """Begin to press what waits for it. Called often, also when nothing does; returns at once."""
    due = Wake.objects.under_way().filter(way=Way.PORT, dealt__lt=F("rounds"))
    for command in due.values_list("command", flat=True):
        with _lock:
            if command in _pressed:
                continue
            _pressed.add(command)
        _pool.submit(_press, command)


def _press(command: UUID) -> None:
    try:
        close_old_connections()
        press(command)
    except Exception:  # nobody asks the future
        log.exception("The power port of command %s", command)
    finally:
        connection.close()
        with _lock:
            _pressed.discard(command)


def press(command: UUID) -> None:
    """Press the power port of one command's client. One that cannot be reached is tried again in the next round, if there is one."""
    needed = ("command__client__site", "command__client__power_port", "command__envelope")
    wakes = Wake.objects.under_way().select_related(*needed)
    wake = wakes.filter(pk=command, dealt__lt=F("rounds")).first()
    if wake is None:
        return
    client, trouble = wake.command.client, ""
    try:
        if not permits.permitted(wake.command, permits.keys()):
            raise SiteError("The sender has not let it, or too long ago.", hint="Order it again.")
        if not hasattr(client, "power_port"):
            raise SiteError("Its power port was taken away meanwhile.", hint="Order it again.")
        log.info("%s: %s", client, ports.port_of(client.power_port).on())
    except SiteError as error:
        trouble = str(error)[:300]
        if not isinstance(error, Away) or wake.rounds > len(relays.PAUSES_S):
            _fail(wake, trouble)
            return
    # Once is enough: a PC may take longer to its first word than the next round would wait, and be on already then.
    done = {} if trouble else {"sent_at": timezone.now(), "next_at": None}
    Wake.objects.filter(pk=wake.pk).update(dealt=wake.rounds, trouble=trouble, **done)


def _fail(wake: Wake, trouble: str) -> None:
    try:
        end(wake.command, CommandStatus.FAILED, trouble)
    except WrongState as error:
        log.info("%s", error)  # it booted meanwhile
