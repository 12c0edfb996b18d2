"""What a person adds to an order: a warning before it is carried out, the text of a message. A closed set, checked here."""

from collections.abc import Mapping
from typing import Any

from agents.models import Verb
from fleet.exceptions import OperatorError

MOST_TEXT = 300
_WARNED = (Verb.RESTART, Verb.POWEROFF, Verb.CYCLE)
_BOUNDS = {"warn_s": 3600, "more": 12, "seconds": 3600}
_TAKES: dict[Verb, tuple[str, ...]] = {
    **dict.fromkeys(_WARNED, ("warn_s", "text", "more")),
    Verb.MESSAGE: ("text", "seconds"),
}
SECONDS = 60  # that a message stays on the screen, unless somebody says otherwise


def clean(verb: Verb, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an order in their right form: ``warn_s``, ``more`` (how often the user may ask for five minutes more),
    ``text``, ``seconds``; empty ones are left out. Raises OperatorError naming what is wrong.
    """
    given = {name: value for name, value in asked.items() if value not in (None, "", 0)}
    if strange := sorted(set(given) - set(_TAKES.get(verb, ()))):
        raise OperatorError(f"{verb.label} takes no {', '.join(strange)}.", hint="Leave that out.")
    for name, most in _BOUNDS.items():
        value = given.get(name, 1)
        if type(value) is not int or not 1 <= value <= most:
            raise OperatorError(f"{name} is {value!r}.", hint=f"It is a whole number of 1 to {most}.")
    text = given.get("text", "")
    if not isinstance(text, str) or not text.isprintable() or len(text) > MOST_TEXT:
        raise OperatorError("The text cannot be shown.", hint=f"Write one line of at most {MOST_TEXT} characters.")
    if verb == Verb.MESSAGE:
        if not text.strip():
            raise OperatorError("There is no message.", hint="Write what is to stand on the screen.")
        given.setdefault("seconds", SECONDS)
    elif "warn_s" not in given and given:
        raise OperatorError("A warning needs its time.", hint="Say how long before it happens the user is warned.")
    return given
