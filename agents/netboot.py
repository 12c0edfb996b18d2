"""What a booting machine says and is told: its names, its refusals, and how it tells that it cannot boot.

The script that firmware asks for is made in ``agents.scripts``, the boot plan of an initrd in ``agents.plans``.
"""

import re
from collections.abc import Mapping

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agents import judging
from agents.models import BootSession, BootToken, SessionStatus
from agents.observing import observe
from fleet import audit
from fleet.models import Client, ClientState, token_hash
from fleet.transitions import move

RETRY_S = 10
STAGES = ("network", "plan", "fetch", "verify", "root", "handover")
ERRORS = ("digest-mismatch", "short", "unreachable", "no-space", "refused", "mount", "bad-signature", "other")

is_mac = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}").fullmatch
is_slug = re.compile(r"[-a-zA-Z0-9_]{1,50}").fullmatch
_UNPRINTABLE = re.compile(r"[^A-Za-z0-9 .,:;()/_'+-]")


class Refusal(Exception):
    """The request is refused with ``status`` and a sentence for the client's screen; ``client`` is whose token was shown."""

    def __init__(self, status: int, text: str, client: Client | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.client = status, text, client


def note(refusal: Refusal, form: Mapping[str, str]) -> None:
    """Write a refusal down, in a transaction of its own: the refused one was taken back."""
    if client := refusal.client:
        mac = form.get("mac", "").lower()
        says = mac if is_mac(mac) else "none"
        audit.record("boot.refused", client, site=client.site, actor="gateway", why=refusal.text, mac=says)


def start_script(site: str) -> str:
    """The static first script: names the machine and asks for its own. ``site`` is a slug or empty."""
    where = f"&site={site}" if is_slug(site) else ""
    facts = "mac=${netX/mac}&uuid=${uuid}&manufacturer=${manufacturer:uristring}&product=${product:uristring}"
    return f"#!ipxe\nchain --replace {settings.GATEWAY_URL}/boot/v1/client.ipxe?{facts}&serial=${{serial:uristring}}{where}\n"


def again(text: str, site: str) -> str:
    """A script that shows a sentence and starts over."""
    return f"#!ipxe\necho {shown(text)}\nsleep {RETRY_S}\n" + start_script(site).removeprefix("#!ipxe\n")


def shown(text: str) -> str:
    """What a firmware's screen, and a database, can take of it."""
    return _UNPRINTABLE.sub(" ", text)


@transaction.atomic
def trouble(form: Mapping[str, str]) -> None:
    """A client says why it could not boot. Its token, used or not, says who it is; a bare MAC says nothing."""
    stage, error = form.get("stage", ""), form.get("error", "")
    if stage not in STAGES or error not in ERRORS:
        raise Refusal(400, f"The stage is one of {', '.join(STAGES)}, the error one of {', '.join(ERRORS)}.")
    token = BootToken.objects.select_related("client__site").filter(digest=token_hash(form.get("token", ""))).first()
    if token is None or token.client.mac != form.get("mac", "").lower():
        raise Refusal(403, "The boot token is unknown, or belongs to another client.")
    detail = "".join(char if char.isprintable() else " " for char in form.get("detail", ""))[:400].strip()
    text = f"{stage}: {error}. {detail}"
    client = token.client
    for session in BootSession.objects.filter(client=client, status=SessionStatus.BOOTING):
        move(session, SessionStatus.LOST, ended_at=timezone.now())
        judging.failed([session.pk])
    observe(client, ClientState.BOOTING, trouble=text)
    audit.record("boot.failed", client, site=client.site, actor="gateway", stage=stage, error=error, detail=detail)
