"""Who sends wake packets: the site's boot host, and awake clients of the same LAN. The server chooses, anew for each round."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Case, Exists, OuterRef, Value, When
from django.utils import timezone

from agents.models import BootSession, Command, CommandStatus, Order, SessionStatus, Verb, Wake
from agents.power import permits
from fleet.models import Admission, ClientState
from fleet.rows import update_rows

RELAYS, PACKETS = 2, 3
PAUSES_S = (20, 60)  # after the first round, and after the second; the third is the last
BUSY_S = 2  # until it is tried again, where all who could relay are busy
MOST_MACS = 32  # that one relay is given at once
RELAY_LIFE_S = 20  # within which it must accept; the next round chooses others
MOST_LOOKED_AT = 200  # awake clients among which relays are chosen


def boot_host() -> bool:
    """Whether a gateway stands in the boot LAN. It takes its part from the database itself (``agents.gateway.waker``)."""
    return bool(settings.WAKE_BROADCAST)


def begin(wakes: Iterable[Wake]) -> list[Wake]:
    """Begin one more round for each, within the present transaction; those for which there never was anybody are returned."""
    lans = defaultdict[tuple[Order, str], list[Wake]](list)
    for wake in wakes:
        lans[wake.command.order, wake.command.client.network].append(wake)
    hopeless, begun = list[Wake](), list[Wake]()
    for (order, network), lan in lans.items():
        awake = _awake(order.site_id, network)
        if not awake and not boot_host():
            hopeless += [wake for wake in lan if not wake.rounds]
            lan = [wake for wake in lan if wake.rounds]  # which an earlier round may wake yet
        free = [client for client, busy in awake if not busy]
        for start in range(0, len(lan), MOST_MACS):
            targets = lan[start : start + MOST_MACS]
            relayed = _order(order, targets, _choose(free, targets))
            for wake in targets:
                count(wake, boot_host() or relayed)
        begun += lan
    save(begun)
    return hopeless


def _awake(site: int, network: str) -> list[tuple[UUID, bool]]:
    """Clients of a LAN that could relay, the idle ones first, and whether each is busy with a command of its own."""
    if not network:
        return []
    commands = Command.objects.open().filter(client=OuterRef("client"))
    idle = Case(When(client__state=ClientState.READY, then=Value(0)), default=Value(1))
    sessions = BootSession.objects.filter(
        status=SessionStatus.OPEN,
        protocol__gte=2,
        client__site=site,
        client__network=network,
        client__admission=Admission.IN_SERVICE,
    ).order_by(idle, "?")
    return list(sessions.annotate(busy=Exists(commands)).values_list("client", "busy")[:MOST_LOOKED_AT])


def _choose(free: list[UUID], targets: Sequence[Wake]) -> list[UUID]:
    """Take relays for ``targets`` out of ``free``: rather some that did not try it before."""
    tried = set(Command.objects.filter(wakes__in=targets).values_list("client", flat=True))
    chosen = sorted(free, key=lambda client: client in tried)[: RELAYS - boot_host()]
    for client in chosen:
        free.remove(client)
    return chosen


def _order(order: Order, targets: Sequence[Wake], chosen: Iterable[UUID]) -> bool:
    """Queue a command for each of the ``chosen``; whether any could be. Passwords are left to the moment of signing."""
    macs = [{"mac": wake.command.client.mac, "secure": ""} for wake in targets]
    expires = timezone.now() + timedelta(seconds=RELAY_LIFE_S)
    queued = [
        Command(
            order=order,
            client_id=client,
            verb=Verb.RELAY,
            args={"macs": macs, "packets": PACKETS},
            expires_at=expires,
        )
        for client in chosen
    ]
    # Somebody may have ordered something of one of them this very moment: then it is not ours to use.
    Command.objects.bulk_create(queued, ignore_conflicts=True)
    made = list(Command.objects.filter(pk__in=[command.pk for command in queued]))
    through = Wake.relays.through
    through.objects.bulk_create(through(wake_id=wake.pk, command_id=relay.pk) for relay in made for wake in targets)
    return bool(made)


def count(wake: Wake, begun: bool) -> None:
    """Note that a round has begun and when the next one is due; or that everybody was busy."""
    now = timezone.now()
    if not begun:
        wake.next_at = now + timedelta(seconds=BUSY_S)
        return
    wake.rounds += 1
    more = wake.rounds <= len(PAUSES_S)
    wake.next_at = now + timedelta(seconds=PAUSES_S[wake.rounds - 1]) if more else None


def save(wakes: Iterable[Wake]) -> None:
    """Write down what ``count`` noted."""
    update_rows(Wake, ["rounds", "next_at"], ((wake.pk, wake.rounds, wake.next_at) for wake in wakes))


def permitted(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a relay's command as they are signed: those MACs that the sender has let be woken, with their passwords.

    The passwords stand nowhere else with it.
    """
    macs = [entry["mac"] for entry in args["macs"]]
    sent = Command.objects.open(CommandStatus.SENT).filter(verb=Verb.WAKE, client__mac__in=macs)
    waking = sent.select_related("client", "envelope")
    keys = permits.keys()
    allowed = {mac: command.client.secure_on for command in waking if (mac := permits.permitted(command, keys))}
    return {**args, "macs": [{"mac": mac, "secure": allowed[mac]} for mac in macs if mac in allowed]}
