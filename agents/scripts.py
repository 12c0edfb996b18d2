"""Scripts for iPXE: which kernel and initrd a client starts with, and a boot token. Of all that ask at the same moment together."""

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agents.models import BootToken
from agents.netboot import Refusal, again, is_mac, is_slug, shown
from agents.observing import locked_all, observe_all
from fleet import audit
from fleet.models import Admission, Client, ClientState, Site, token_hash
from fleet.rows import insert_rows, update_rows
from fleet.signify import signify_keys
from images import releasing, signatures, starting
from images.builder.initrd import KERNEL_WORDS
from images.models import Release

MOST_PENDING = 500  # clients nobody admitted, per site: a flood of invented MACs ends there
FACTS = ("product", "serial")  # that the firmware knows
KEPT = timedelta(days=1)  # tokens that nobody can use any more


def client_script(query: Mapping[str, str]) -> str:
    """The script for one MAC. Raises Refusal for what is no MAC or no site."""
    (script,) = client_scripts([query])
    if isinstance(script, Refusal):
        raise script
    return script


@transaction.atomic
def client_scripts(queries: Sequence[Mapping[str, str]]) -> list[str | Refusal]:
    """For each the script of its MAC: kernel, initrd and a fresh boot token, or a sentence and another try.

    An unknown MAC becomes a client of the site named (or of the only one there is) and waits as pending, unless the
    site's enrolment is open. The Refusal of what is no MAC or no site.
    """
    macs = [query.get("mac", "").lower() for query in queries]
    known = Client.objects.select_related("site").in_bulk({mac for mac in macs if is_mac(mac)}, field_name="mac")
    locked_all([client.pk for client in known.values()])
    answers: list[str | Refusal] = []
    starts: list[tuple[Client, Release, str]] = []
    news: dict[str, Client] = {}
    troubled: dict[str, list[UUID]] = {}
    offers = _Offers()
    for mac, query in zip(macs, queries, strict=True):
        try:
            client = known[mac] = known[mac] if mac in known else _enrolled(mac, query)
        except Refusal as refusal:
            answers.append(refusal)
            continue
        if _notes(client, query):
            news[mac] = client
        script = _script(client, offers)
        if script.trouble:
            troubled.setdefault(script.trouble, []).append(client.pk)
        if script.release is None:
            answers.append(script.text)
        else:
            starts.append((client, script.release, token := secrets.token_hex(16)))
            answers.append(script.text.replace(_TOKEN, token))
    update_rows(Client, FACTS, ((client.pk, *(getattr(client, fact) for fact in FACTS)) for client in news.values()))
    for trouble, clients in troubled.items():
        observe_all(clients, ClientState.BOOTING, trouble=trouble)
    _begin(starts)
    return answers


def _enrolled(mac: str, query: Mapping[str, str]) -> Client:
    """A client that was never seen."""
    if not is_mac(mac):
        raise Refusal(400, "The mac must look like 52:54:00:12:34:56.")
    site = _site(query.get("site", ""))
    if Client.objects.filter(site=site, admission=Admission.PENDING).count() >= MOST_PENDING:
        raise Refusal(429, f"{site} has {MOST_PENDING} clients that nobody admitted; admit or delete some first.")
    admission = Admission.IN_SERVICE if site.enrolment_open else Admission.PENDING
    name = f"pc-{mac.replace(':', '')[-6:]}"
    if Client.objects.filter(site=site, name=name).exists():
        name = f"pc-{mac.replace(':', '')}"
    client = Client.objects.create(site=site, mac=mac, name=name, admission=admission)
    audit.record("client.seen", client, site=site, actor="gateway", mac=mac, admission=admission.value)
    return client


def _site(slug: str) -> Site:
    if slug and not is_slug(slug):
        raise Refusal(404, "A site is named by letters, digits, - and _.")
    sites = list(Site.objects.filter(slug=slug) if slug else Site.objects.all()[:2])
    if len(sites) != 1:
        raise Refusal(
            404, f"There is no site {slug!r}." if slug else "The DHCP file name must end in ?site= and a site."
        )
    return sites[0]


def _notes(client: Client, query: Mapping[str, str]) -> bool:
    """Take what the firmware says of itself; whether that is news."""
    said = {fact: shown(query.get(fact, ""))[:100].strip() for fact in FACTS}
    news = any(getattr(client, fact) != value for fact, value in said.items())
    for fact, value in said.items():
        setattr(client, fact, value)
    return news


class _Offers:
    """What is released where, and what is wrong with it: asked once for all who ask now."""

    def __init__(self) -> None:
        self.of_class = cache(releasing.offer_of)
        self.of_site = cache(_current_of)
        self.keys = signify_keys(settings.PUBLIC_KEYS, "session")
        self._faults = dict[int, str]()

    def release_for(self, client: Client) -> Release | None:
        """Whose kernel and initrd a client starts with, before its class is known: its last class's, else the site's."""
        for client_class in (client.client_class_id, client.site.default_class_id):
            if client_class and (release := self.of_class(client_class).to(client)):
                return release
        return self.of_site(client.site_id)

    def fault(self, release: Release) -> str:
        version = release.version
        if version.pk not in self._faults:
            self._faults[version.pk] = signatures.fault(version) or starting.fault(version)
        return self._faults[version.pk]


def _current_of(site: int) -> Release | None:
    current = Release.objects.filter(current=True, client_class__site=site).select_related("version__image", "home")
    return current.order_by("-released_at").first()


_TOKEN = "@token@"  # noqa: S105 - where one will stand; no character of a script


class _Script(NamedTuple):
    text: str
    release: Release | None = None  # that is started by it
    trouble: str = ""


def _script(client: Client, offers: _Offers) -> _Script:
    slug = client.site.slug
    if client.admission in (Admission.RETIRED, Admission.MAINTENANCE):
        why = f"{client} is {client.get_admission_display().lower()}. A volunteer of {client.site} can change that."
        return _Script(again(why, slug))
    release = offers.release_for(client)
    if release is None:
        return _Script(again(f"No version is released at {client.site} yet.", slug))
    if why := offers.fault(release):
        said = f"{release.version} is not started: {why}."
        return _Script(again(said, slug), trouble=f"start: {said}"[:400])
    return _Script(_start(client, release, offers.keys), release)


def _start(client: Client, release: Release, keys: str) -> str:
    manifest, base = release.version.manifest, settings.GATEWAY_URL
    assert manifest is not None
    words = [
        f"console=tty0 console=ttyS0 {KERNEL_WORDS}",
        f"fleet.server={base} fleet.mac={client.mac} fleet.token={_TOKEN}",
        f"fleet.keys={keys}",
        "fleet.ip=${netX/ip} fleet.netmask=${netX/netmask} fleet.router=${netX/gateway} fleet.dns=${netX/dns}",
    ]
    return (
        f"#!ipxe\nkernel {base}/store/{manifest['kernel']['sha256']} initrd=initrd {' '.join(words)}\n"
        f"initrd --name initrd {base}/store/{manifest['initrd']['sha256']}\nboot\n"
    )


def _begin(starts: Sequence[tuple[Client, Release, str]]) -> None:
    """Write down the tokens that were given out, and that their clients boot."""
    if not starts:
        return
    clients = {client.pk for client, _, _ in starts}
    now = timezone.now()
    BootToken.objects.filter(client__among=clients, expires_at__lt=now - KEPT).delete()
    pattern = BootToken(created_at=now, expires_at=now + timedelta(seconds=settings.BOOT_TOKEN_LIFE))
    rows = (
        (client.pk, token_hash(token), (release.version.manifest or {})["kernel_release"], release.pk)
        for client, release, token in starts
    )
    insert_rows(pattern, ["client", "digest", "kernel", "release"], rows)
    observe_all(clients, ClientState.BOOTING)
