"""What a booting machine asks: iPXE's script, the boot plan, and how it tells that it cannot boot."""

import re
import secrets
from collections.abc import Mapping
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from agents import judging, twins
from agents.daemon import protocol
from agents.evidence import new_boot
from agents.models import BootSession, BootToken, SessionStatus
from agents.observing import locked, observe
from agents.signing import ids, public_keys
from fleet import audit
from fleet.exceptions import WrongState
from fleet.hardware import Adapter, parse_adapters
from fleet.models import Admission, Client, ClientClass, ClientState, RootFetch, Site, token_hash
from fleet.services import classify
from fleet.signify import signify_keys
from fleet.transitions import move
from images import bootplan, layers, releasing, signatures, starting
from images.builder.initrd import KERNEL_WORDS
from images.models import Release

RETRY_S = 10
MOST_PENDING = 500  # clients nobody admitted, per site: a flood of invented MACs ends there
STAGES = ("network", "plan", "fetch", "verify", "root", "handover")
ERRORS = ("digest-mismatch", "short", "unreachable", "no-space", "refused", "mount", "bad-signature", "other")

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}").fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_KERNEL = re.compile(r"[0-9A-Za-z._+~-]{1,80}").fullmatch
_SLUG = re.compile(r"[-a-zA-Z0-9_]{1,50}").fullmatch
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
        says = mac if _MAC(mac) else "none"
        audit.record("boot.refused", client, site=client.site, actor="gateway", why=refusal.text, mac=says)


def start_script(site: str) -> str:
    """The static first script: names the machine and asks for its own. ``site`` is a slug or empty."""
    where = f"&site={site}" if _SLUG(site) else ""
    facts = "mac=${netX/mac}&uuid=${uuid}&manufacturer=${manufacturer:uristring}&product=${product:uristring}"
    return f"#!ipxe\nchain --replace {settings.GATEWAY_URL}/boot/v1/client.ipxe?{facts}&serial=${{serial:uristring}}{where}\n"


def _again(text: str, site: str) -> str:
    """A script that shows a sentence and starts over."""
    shown = _UNPRINTABLE.sub(" ", text)
    return f"#!ipxe\necho {shown}\nsleep {RETRY_S}\n" + start_script(site).removeprefix("#!ipxe\n")


@transaction.atomic
def client_script(query: Mapping[str, str]) -> str:
    """The script for one MAC: kernel, initrd and a fresh boot token, or a sentence and another try.

    An unknown MAC becomes a client of the site named (or of the only one there is) and waits as pending, unless the
    site's enrolment is open. Raises Refusal for what is no MAC or no site.
    """
    mac = query.get("mac", "").lower()
    if not _MAC(mac):
        raise Refusal(400, "The mac must look like 52:54:00:12:34:56.")
    client = _known(mac, query)
    slug = client.site.slug
    if client.admission in (Admission.RETIRED, Admission.MAINTENANCE):
        return _again(
            f"{client} is {client.get_admission_display().lower()}. A volunteer of {client.site} can change that.", slug
        )
    release = _release_to_start(client)
    if release is None:
        return _again(f"No version is released at {client.site} yet.", slug)
    if why := signatures.fault(release.version) or starting.fault(release.version):
        observe(client, ClientState.BOOTING, trouble=f"start: {release.version} is not started: {why}."[:400])
        return _again(f"{release.version} is not started: {why}.", slug)
    manifest = release.version.manifest
    assert manifest is not None
    token = secrets.token_hex(16)
    BootToken.objects.filter(client=client, expires_at__lt=timezone.now() - timedelta(days=1)).delete()
    BootToken.objects.create(
        client=client,
        digest=token_hash(token),
        kernel=manifest["kernel_release"],
        release=release,
        expires_at=timezone.now() + timedelta(seconds=settings.BOOT_TOKEN_LIFE),
    )
    observe(client, ClientState.BOOTING)
    base = settings.GATEWAY_URL
    words = [
        f"console=tty0 console=ttyS0 {KERNEL_WORDS}",
        f"fleet.server={base} fleet.mac={mac} fleet.token={token}",
        f"fleet.keys={signify_keys(settings.PUBLIC_KEYS, 'session')}",
        "fleet.ip=${netX/ip} fleet.netmask=${netX/netmask} fleet.router=${netX/gateway} fleet.dns=${netX/dns}",
    ]
    return (
        f"#!ipxe\nkernel {base}/store/{manifest['kernel']['sha256']} initrd=initrd {' '.join(words)}\n"
        f"initrd --name initrd {base}/store/{manifest['initrd']['sha256']}\nboot\n"
    )


def _known(mac: str, query: Mapping[str, str]) -> Client:
    """The client of this MAC, made if it was never seen. What the firmware says of itself is noted."""
    client = Client.objects.select_related("site", "client_class").filter(mac=mac).first()
    if client is None:
        site = _site(query.get("site", ""))
        if Client.objects.filter(site=site, admission=Admission.PENDING).count() >= MOST_PENDING:
            raise Refusal(429, f"{site} has {MOST_PENDING} clients that nobody admitted; admit or delete some first.")
        admission = Admission.IN_SERVICE if site.enrolment_open else Admission.PENDING
        name = f"pc-{mac.replace(':', '')[-6:]}"
        if Client.objects.filter(site=site, name=name).exists():
            name = f"pc-{mac.replace(':', '')}"
        client = Client.objects.create(site=site, mac=mac, name=name, admission=admission)
        audit.record("client.seen", client, site=site, actor="gateway", mac=mac, admission=admission.value)
    facts = {key: _UNPRINTABLE.sub(" ", query.get(key, ""))[:100].strip() for key in ("product", "serial")}
    if any(getattr(client, key) != value for key, value in facts.items()):
        Client.objects.filter(pk=client.pk).update(**facts)
    return client


def _site(slug: str) -> Site:
    if slug and not _SLUG(slug):
        raise Refusal(404, "A site is named by letters, digits, - and _.")
    sites = list(Site.objects.filter(slug=slug) if slug else Site.objects.all()[:2])
    if len(sites) != 1:
        raise Refusal(
            404, f"There is no site {slug!r}." if slug else "The DHCP file name must end in ?site= and a site."
        )
    return sites[0]


def _release_to_start(client: Client) -> Release | None:
    """Whose kernel and initrd a client starts with, before its class is known: its last class's, else the site's."""
    for client_class in (client.client_class_id, client.site.default_class_id):
        if client_class and (release := releasing.release_for(client, client_class)):
            return release
    current = Release.objects.filter(current=True, client_class__site=client.site).select_related("version", "home")
    return current.order_by("-released_at").first()


@transaction.atomic
def boot_plan(form: Mapping[str, str]) -> str:
    """Redeem a boot token for a boot plan (docs/protocol.md, section 1), not yet signed. Raises Refusal.

    The token is used up by a plan to boot or to restart; a client that has to wait keeps it.
    """
    token = _token(form)
    client = token.client
    try:
        adapters = parse_adapters(form.get("pci", ""))
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    boot_id, kernel, memory = form.get("boot_id", ""), form.get("kernel", ""), form.get("memory_kib", "")
    if not _UUID(boot_id) or not _KERNEL(kernel) or not memory.isdecimal() or len(memory) > 12:
        raise Refusal(400, "The boot_id, kernel or memory_kib is not one.")
    BootToken.objects.filter(pk=token.pk, heard_at=None).update(heard_at=timezone.now())
    client.adapters = [adapter.as_json() for adapter in adapters]
    client.memory_kib = int(memory)
    client.save(update_fields=["adapters", "memory_kib"])
    client_class = classify(client, adapters, actor="gateway")
    if client.admission == Admission.PENDING:
        return _wait(boot_id, f"{client.name} waits to be admitted by a volunteer of {client.site}.")
    if client.admission != Admission.IN_SERVICE:
        return _wait(boot_id, f"{client.name} is {client.get_admission_display().lower()}.")
    if client_class is None:
        return _wait(
            boot_id, f"No rule of {client.site} knows the adapter {_ids(adapters)}; a volunteer can give it a class."
        )
    release = releasing.release_for(client, client_class)
    if release is None:
        return _wait(boot_id, f"No version is released to {client_class} yet.")
    if why := signatures.fault(release.version):
        return _wait(boot_id, f"{release.version} is not started: {why}.")
    manifest = release.version.manifest
    assert manifest is not None
    if client_class.root_fetch != RootFetch.HTTP and not settings.NFS_SHARE:
        return _wait(
            boot_id, f"{client_class} fetches its root from a share, and this server has none (FLEET_NFS_SHARE)."
        )
    try:
        over = layers.needed(client_class, release.version)
    except WrongState as error:
        observe(client, ClientState.BOOTING, trouble=f"plan: refused. {error}"[:400])
        return _wait(boot_id, str(error))
    if kernel != manifest["kernel_release"]:
        if token.kernel == manifest["kernel_release"]:
            raise Refusal(403, f"The kernel {kernel} is not the one offered, {token.kernel}.", client)
        _use_up(token)
        return _lines(action="restart", boot=boot_id, reason=f"{client_class} needs another kernel")
    _use_up(token)
    keys = {f"{kind}_keys": public_keys(settings.PUBLIC_KEYS, kind) for kind in ("command", "session")}
    session, bearer = _begin(client, boot_id, release, {name: ids(told) for name, told in keys.items()})
    return _lines(
        action="boot",
        boot=boot_id,
        daemon=protocol.VERSION,
        session=session.pk,
        bearer=bearer,
        client=client.pk,
        name=client.name,
        **{"class": client_class.slug},
        **bootplan.of(release.version),
        check=client_class.root_check,
        # An initrd that knows no layers knows no such kind: it refuses, instead of booting without them.
        kind=f"{client_class.root_kind}{'+layers' if over else ''}",
        **({"layers": " ".join(build.plan_words() for build in over)} if over else {}),
        **_way(client_class, manifest["root"]["sha256"]),
        home=release.home.sha256,
        home_bytes=release.home.bytes,
        home_kind=client_class.home_kind,
        home_digest=release.home.tree_digest,
        tmpfs_percent=client_class.root_percent,
        home_percent=client_class.home_percent,
        **keys,
    )


def _way(client_class: ClientClass, root: str) -> dict[str, str]:
    """How the root is fetched, and where it lies on the share; the store's own layout (images/builder/store.py)."""
    if client_class.root_fetch == RootFetch.HTTP:
        return {"fetch": RootFetch.HTTP}
    return {"fetch": client_class.root_fetch, "share": f"{settings.NFS_SHARE}/{root[:2]}/{root}"}


def _token(form: Mapping[str, str]) -> BootToken:
    """The unused token of this form's client. Each refusal says why, to the one who holds the token only."""
    token = (
        BootToken.objects.select_for_update(of=("self",))
        .select_related("client__site", "client__client_class")
        .filter(digest=token_hash(form.get("token", "")))
        .first()
    )
    if token is None:
        raise Refusal(403, "The boot token is unknown.")
    if token.client.mac != form.get("mac", "").lower():
        raise Refusal(403, "The boot token belongs to another client.", token.client)
    if token.used_at is not None:
        raise Refusal(403, "The boot token was used already.", token.client)
    if token.expires_at <= timezone.now():
        raise Refusal(403, "The boot token has expired.", token.client)
    return token


def _use_up(token: BootToken) -> None:
    if not BootToken.objects.filter(pk=token.pk, used_at=None).update(used_at=timezone.now()):
        raise Refusal(403, "The boot token was used already.")


def _begin(client: Client, boot_id: str, release: Release, keys: Mapping[str, str]) -> tuple[BootSession, str]:
    """A session for this boot, in the place of any older one, and its bearer token. ``keys``: the ids of those it is told."""
    locked(client.pk)
    twins.booted(client, boot_id)
    # A lost one too: it would open again as soon as it is heard of.
    for older in BootSession.objects.filter(client=client, status__in=(*BootSession.LIVE, SessionStatus.LOST)):
        move(older, SessionStatus.SUPERSEDED, ended_at=older.ended_at or timezone.now())
        judging.failed(older)  # it began anew without a word, as what panics does
    bearer = secrets.token_hex(32)
    session = BootSession.objects.create(
        client=client,
        boot_id=boot_id,
        bearer_digest=token_hash(bearer),
        client_class=client.client_class,
        release=release,
        **keys,
    )
    new_boot(session)
    observe(client, ClientState.BOOTING, trouble="")
    return session, bearer


def _ids(adapters: list[Adapter]) -> str:
    return ", ".join(f"{adapter.vendor}:{adapter.device}" for adapter in adapters) or "(none)"


def _wait(boot_id: str, reason: str) -> str:
    return _lines(action="wait", boot=boot_id, reason=reason, retry_s=RETRY_S)


def _lines(**plan: object) -> str:
    if "reason" in plan:
        plan["reason"] = re.sub(r"[^A-Za-z0-9._:/+=,@ -]", " ", str(plan["reason"]))
    return protocol.format_plan({"protocol": protocol.PLAN_VERSION, **plan})


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
        judging.failed(session)
    observe(client, ClientState.BOOTING, trouble=text)
    audit.record("boot.failed", client, site=client.site, actor="gateway", stage=stage, error=error, detail=detail)
