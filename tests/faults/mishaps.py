"""What may go wrong at any moment: one thing each, done to a hall. The number says of what: which client, which message."""

from collections.abc import Callable

from tests.faults.clients import PC, Mood
from tests.faults.hall import CRASHES, Hall

Mishap = Callable[[Hall, int], object]


def _pc(hall: Hall, number: int) -> PC:
    return hall.pcs[number % len(hall.pcs)]


# --- people and their PCs


def _cancelled(hall: Hall, number: int) -> None:
    hall.cancel(_pc(hall, number))


def _unplugged(hall: Hall, number: int) -> None:
    pc = _pc(hall, number)
    if pc.on:
        pc.unplug()


def _power_button(hall: Hall, number: int) -> None:
    """A reset, or the first thing somebody does in the morning."""
    _unplugged(hall, number)
    _pc(hall, number).switch_on()


def _touched(hall: Hall, number: int) -> None:
    _pc(hall, number).touched += 1


def _wish(what: str) -> Mishap:
    return lambda hall, number: _pc(hall, number).wishes(what)


def _mood(mood: Mood) -> Mishap:
    def turns(hall: Hall, number: int) -> None:
        _pc(hall, number).mood = Mood(**vars(mood))

    return turns


# --- the network


def _message(what: Callable[[Hall, int], None]) -> Mishap:
    """Of the messages that are under way, one."""

    def happens(hall: Hall, number: int) -> None:
        if hall.wire.moving:
            what(hall, number % len(hall.wire.moving))

    return happens


@_message
def _overtakes(hall: Hall, number: int) -> None:
    """It arrives before all others."""
    hall.wire.carry(hall.wire.moving[number])


@_message
def _twice(hall: Hall, number: int) -> None:
    """A request arrives, and will arrive once more, whenever the network likes."""
    call = hall.wire.moving[number]
    if call.line is None:
        hall.wire.calls.append(call.copy())
    hall.wire.carry(call)


@_message
def _lost(hall: Hall, number: int) -> None:
    hall.wire.lose(hall.wire.moving[number])


def _cut(hall: Hall, number: int) -> None:
    """A connection breaks; what was asked on it may have arrived, or may arrive later."""
    if calls := hall.wire.calls:
        hall.wire.cut(calls[number % len(calls)])


def _partition(hall: Hall, number: int) -> None:
    """No network at all, for longer than silence is borne."""
    for call in hall.wire.calls[:]:
        hall.wire.cut(call)
    hall.passes(14 + 10 * (number % 3), network=False)


# --- the server


def _sender_dies(when: str) -> Mishap:
    return lambda hall, number: hall.send(when)


def _nudge_lost(hall: Hall, number: int) -> None:
    hall.hints.deaf = True
    hall.send()
    hall.hints.deaf = False


def _gateway_dies(hall: Hall, number: int) -> None:
    if hall.gate.up:
        hall.kill_gateway()


def _gateway_is_back(hall: Hall, number: int) -> None:
    """After a kill, at once: with an empty memory."""
    _gateway_dies(hall, number)
    hall.gate.start()


def _gateway_away_for_long(hall: Hall, number: int) -> None:
    _gateway_dies(hall, number)
    hall.passes(40)


def _database_away(doubtful: bool) -> Mishap:
    def happens(hall: Hall, number: int) -> None:
        hall.gate.rows.away, hall.gate.rows.doubtful = 1 + number % 3, doubtful

    return happens


def _redis_away(hall: Hall, number: int) -> None:
    hall.hints.away = True


def _clock_away(hall: Hall, number: int) -> None:
    """Neither sender nor clock, for a while."""
    hall.passes(40, server=False)


def _stands_still(hall: Hall, number: int) -> None:
    """The whole server is stopped, and goes on."""
    hall.clock.advance([3, 14, 40, 130][number % 4])


def _clock_is_set(hall: Hall, number: int) -> None:
    hall.clock.step([-20, -3, 3, 20][number % 4])


MISHAPS: dict[str, Mishap] = {
    "nothing": lambda hall, number: None,
    "cancelled": _cancelled,
    "campaigns stopped": lambda hall, number: hall.stop_campaigns(),
    "unplugged": _unplugged,
    "reset": _power_button,
    "touched": _touched,
    "held": _wish("hold"),
    "released": _wish("release"),
    "more time": _wish("more"),
    "daemon killed": lambda hall, number: _pc(hall, number).kill_daemon(),
    "daemon dies before it writes down": _mood(Mood(dies="before")),
    "daemon dies after it wrote down": _mood(Mood(dies="after")),
    "cycle fails": _mood(Mood(cycle="fails")),
    "cycle gives another home": _mood(Mood(cycle="other")),
    "power stuck": _mood(Mood(power="stuck")),
    "overtaken": _overtakes,
    "twice": _twice,
    "message lost": _lost,
    "connection cut": _cut,
    "partition": _partition,
    **{f"sender dies {when}": _sender_dies(when) for when in CRASHES},
    "nudge lost": _nudge_lost,
    "gateway dies": _gateway_dies,
    "gateway dies and is back": _gateway_is_back,
    "gateway away for long": _gateway_away_for_long,
    "database away": _database_away(doubtful=False),
    "database away after a commit": _database_away(doubtful=True),
    "Redis away": _redis_away,
    "clock away": _clock_away,
    "server stands still": _stands_still,
    "server's clock is set": _clock_is_set,
}
