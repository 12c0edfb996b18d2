"""Boot plans: boot tokens redeemed, classes deduced, sessions begun (docs/protocol.md, section 1). Of all that ask at once together.

Each is judged by itself, in memory; then what follows is written with a handful of statements. So what is refused leaves nothing behind.
"""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple
from uuid import UUID, uuid4

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.db.models.functions import Coalesce
from django.utils import timezone

from agents import evidence, judging, speaking, twins
from agents.daemon import protocol
from agents.models import BootSession, BootToken, SessionStatus
from agents.netboot import RETRY_S, Refusal
from agents.observing import observe_all
from agents.signing import ids, public_keys
from fleet import classifying
from fleet.exceptions import WrongState
from fleet.hardware import Adapter, parse_adapters
from fleet.models import Admission, Client, ClientClass, ClientState, RootFetch, Site, token_hash
from fleet.rows import insert_rows, update_rows
from images import bootplan, layers, releasing, signatures
from images.layer_models import LayerBuild
from images.models import ImageVersion, Release

_is_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_is_kernel = re.compile(r"[0-9A-Za-z._+~-]{1,80}").fullmatch


class Begun(NamedTuple):
    """A session that begins with a plan."""

    pk: UUID
    client_id: UUID
    bearer_digest: str
    command_keys: str  # the ids of those that its daemon is told


class Plan(NamedTuple):
    """The lines of a boot plan, not yet signed."""

    text: str
    session: Begun | None = None


def boot_plan(form: Mapping[str, str]) -> str:
    """The plan of one, not yet signed. Raises Refusal."""
    (plan,) = boot_plans([form])
    if isinstance(plan, Refusal):
        raise plan
    return plan.text


@transaction.atomic
def boot_plans(forms: Sequence[Mapping[str, str]]) -> list[Plan | Refusal]:
    """Redeem boot tokens for boot plans; the Refusal of each that is not good.

    A token is used up by a plan to boot or to restart; a client that has to wait keeps it.
    """
    tokens = _tokens(forms)
    released = _Released()
    plans: dict[int, Plan | Refusal] = {}
    while len(plans) < len(forms):  # of each client one at a time: its second boot supersedes its first
        asked: dict[object, int] = {}
        for number, form in enumerate(forms):
            if number not in plans:
                token = tokens.get(token_hash(form.get("token", "")))
                asked.setdefault(token.client_id if token else number, number)
        plans |= _plans({number: forms[number] for number in asked.values()}, tokens, released)
    return [plans[number] for number in range(len(forms))]


def _tokens(forms: Sequence[Mapping[str, str]]) -> dict[str, BootToken]:
    """The tokens that were shown, by their hashes: they and their clients are locked."""
    digests = {token_hash(form.get("token", "")) for form in forms}
    tokens = list(BootToken.objects.select_for_update(of=("self",)).filter(digest__in=digests).order_by("pk"))
    clients = {
        client.pk: client
        for client in Client.objects.select_for_update(of=("self",), no_key=True)
        .filter(pk__among={token.client_id for token in tokens})
        .order_by("pk")
    }
    sites = Site.objects.select_related("default_class").in_bulk({client.site_id for client in clients.values()})
    classes = ClientClass.objects.in_bulk({client.client_class_id for client in clients.values()} - {None})
    for client in clients.values():
        client.site, client.client_class = sites[client.site_id], classes.get(client.client_class_id)
    for token in tokens:
        token.client = clients[token.client_id]
    return {token.digest: token for token in tokens}


class _Released:
    """What is the same for all who ask at once: what is released, and what is wrong with it."""

    def __init__(self) -> None:
        self.offer_of = cache(releasing.offer_of)
        self.rules_of = cache(classifying.rules_of)
        self.fault = cache(signatures.fault)
        self.layers_of = cache(_layers_of)
        self.lines_of = cache(bootplan.of)
        self.keys = {f"{kind}_keys": public_keys(settings.PUBLIC_KEYS, kind) for kind in ("command", "session")}
        self.key_ids = {name: ids(told) for name, told in self.keys.items()}


def _layers_of(client_class: ClientClass, version: ImageVersion) -> list[LayerBuild] | WrongState:
    try:
        return layers.needed(client_class, version)
    except WrongState as error:
        return error


@dataclass
class _Draft:
    """A plan as it was judged. ``release`` is what is booted, ``used`` whether the token is used up."""

    token: BootToken
    adapters: list[Adapter]
    memory_kib: int
    boot_id: str
    found: classifying.Found
    text: str = ""
    trouble: str = ""
    used: bool = False
    release: Release | None = None
    over: Sequence[LayerBuild] = ()

    def wait(self, reason: str) -> "_Draft":
        self.text = _lines(action="wait", boot=self.boot_id, reason=reason, retry_s=RETRY_S)
        return self


def _plans(
    forms: Mapping[int, Mapping[str, str]], tokens: Mapping[str, BootToken], released: _Released
) -> dict[int, Plan | Refusal]:
    """The plans of different clients."""
    plans: dict[int, Plan | Refusal] = {}
    drafts: dict[int, _Draft] = {}
    used = _last_used({token.client_id for token in tokens.values()})
    for number, form in forms.items():
        try:
            drafts[number] = _judge(form, _good(form, tokens, used), released)
        except Refusal as refusal:
            plans[number] = refusal
    _write_down(drafts.values())
    begun = _begin([draft for draft in drafts.values() if draft.release], released.key_ids)
    for number, draft in drafts.items():
        if draft.release is None:
            plans[number] = Plan(draft.text)
        else:
            session, bearer = begun[draft.token.client_id]
            plans[number] = Plan(_to_boot(draft, draft.release, session, bearer, released), session)
    return plans


def _last_used(clients: Collection[UUID]) -> dict[UUID, int]:
    """The last token of each of these that was used: those that they were given before are good no more."""
    rows = BootToken.objects.filter(client__among=list(clients), used_at__isnull=False).order_by()
    return dict(rows.values_list("client").annotate(Max("pk")))


def _good(form: Mapping[str, str], tokens: Mapping[str, BootToken], used: Mapping[UUID, int]) -> BootToken:
    """The unused token of this form's client. Each refusal says why, to the one who holds the token only."""
    token = tokens.get(token_hash(form.get("token", "")))
    if token is None:
        raise Refusal(403, "The boot token is unknown.")
    if token.client.mac != form.get("mac", "").lower():
        raise Refusal(403, "The boot token belongs to another client.", token.client)
    if token.used_at is not None:
        raise Refusal(403, "The boot token was used already.", token.client)
    if token.pk < used.get(token.client_id, 0):  # a question that was under way for long must not end a younger boot
        raise Refusal(403, "A younger boot token of this client was used.", token.client)
    if token.expires_at <= timezone.now():
        raise Refusal(403, "The boot token has expired.", token.client)
    return token


def _judge(form: Mapping[str, str], token: BootToken, released: _Released) -> _Draft:
    """What a client that asks with a good token is to do."""
    try:
        adapters = parse_adapters(form.get("pci", ""))
    except ValueError as error:
        raise Refusal(400, str(error)) from None
    boot_id, kernel, memory = form.get("boot_id", ""), form.get("kernel", ""), form.get("memory_kib", "")
    if not _is_uuid(boot_id) or not _is_kernel(kernel) or not memory.isdecimal() or len(memory) > 12:
        raise Refusal(400, "The boot_id, kernel or memory_kib is not one.")
    client = token.client
    found = classifying.class_of(client, adapters, released.rules_of(client.site))
    draft, client_class = _Draft(token, adapters, int(memory), boot_id, found), found.target
    if client.admission == Admission.PENDING:
        return draft.wait(f"{client.name} waits to be admitted by a volunteer of {client.site}.")
    if client.admission != Admission.IN_SERVICE:
        return draft.wait(f"{client.name} is {client.get_admission_display().lower()}.")
    if client_class is None:
        what = f"No rule of {client.site} knows the adapter {_ids(adapters)}"
        return draft.wait(f"{what}; a volunteer can give it a class.")
    release = released.offer_of(client_class).to(client)
    if release is None:
        return draft.wait(f"No version is released to {client_class} yet.")
    if why := released.fault(release.version):
        return draft.wait(f"{release.version} is not started: {why}.")
    if client_class.root_fetch != RootFetch.HTTP and not settings.NFS_SHARE:
        what = f"{client_class} fetches its root from a share"
        return draft.wait(f"{what}, and this server has none (FLEET_NFS_SHARE).")
    over = released.layers_of(client_class, release.version)
    if isinstance(over, WrongState):
        draft.trouble = f"plan: refused. {over}"[:400]
        return draft.wait(str(over))
    manifest = release.version.manifest
    assert manifest is not None
    if kernel != manifest["kernel_release"]:
        if token.kernel == manifest["kernel_release"]:
            raise Refusal(403, f"The kernel {kernel} is not the one offered, {token.kernel}.", client)
        draft.text = _lines(action="restart", boot=boot_id, reason=f"{client_class} needs another kernel")
    else:
        draft.release, draft.over = release, over
    draft.used = True
    return draft


def _write_down(drafts: Collection[_Draft]) -> None:
    """What was heard of the clients, and which tokens are used up."""
    now = timezone.now()
    BootToken.objects.filter(pk__among=[draft.token.pk for draft in drafts], heard_at=None).update(heard_at=now)
    changed = []
    for draft in drafts:
        client, adapters = draft.token.client, [adapter.as_json() for adapter in draft.adapters]
        if (client.adapters, client.memory_kib) != (adapters, draft.memory_kib):
            client.adapters, client.memory_kib = adapters, draft.memory_kib
            changed.append((client.pk, adapters, draft.memory_kib))
    update_rows(Client, ["adapters", "memory_kib"], changed)
    classifying.settle([(draft.token.client, draft.found) for draft in drafts], "gateway")
    for draft in drafts:
        if draft.trouble:
            observe_all([draft.token.client_id], ClientState.BOOTING, trouble=draft.trouble)
        draft.token.used_at = now if draft.used else None
    BootToken.objects.filter(pk__among=[draft.token.pk for draft in drafts if draft.used]).update(used_at=now)


def _begin(drafts: Sequence[_Draft], keys: Mapping[str, str]) -> dict[UUID, tuple[Begun, str]]:
    """A session for each boot, in the place of any older one of its client; by client, with their bearer tokens.

    ``keys`` are the ids of those that they are told.
    """
    if not drafts:
        return {}
    clients, now = [draft.token.client_id for draft in drafts], timezone.now()
    twins.booted([(draft.token.client, UUID(draft.boot_id)) for draft in drafts])
    # A lost one too: it would open again as soon as it is heard of.
    alive = (*BootSession.LIVE, SessionStatus.LOST)
    older = list(BootSession.objects.filter(client__among=clients, status__in=alive).values_list("pk", flat=True))
    ended = Coalesce("ended_at", now)
    BootSession.objects.filter(pk__among=older).update(status=SessionStatus.SUPERSEDED, ended_at=ended)
    judging.failed(older)  # they began anew without a word, as what panics does
    begun, rows = {}, []
    for draft in drafts:
        client, bearer = draft.token.client, secrets.token_hex(32)
        session = Begun(uuid4(), client.pk, token_hash(bearer), keys["command_keys"])
        begun[client.pk] = (session, bearer)
        rows.append((*session[:3], draft.boot_id, client.client_class_id, draft.release))
    columns = ["id", "client", "bearer_digest", "boot_id", "client_class", "release"]
    if insert_rows(BootSession(planned_at=now, last_seen=now, **keys), columns, rows) != len(rows):
        raise IntegrityError("A client has a live session already.")
    evidence.new_boots([evidence.Boot(draft.token.client_id, UUID(draft.boot_id)) for draft in drafts])
    observe_all(clients, ClientState.BOOTING, trouble="")
    return begun


def _to_boot(draft: _Draft, release: Release, session: Begun, bearer: str, released: _Released) -> str:
    client, client_class = draft.token.client, draft.found.target
    assert client_class is not None
    version, over = release.version, draft.over
    assert version.manifest is not None
    return _lines(
        action="boot",
        boot=draft.boot_id,
        daemon=protocol.VERSION,
        session=session.pk,
        bearer=bearer,
        client=client.pk,
        name=client.name,
        **{"class": client_class.slug},
        **released.lines_of(version),
        check=client_class.root_check,
        # An initrd that knows no layers knows no such kind: it refuses, instead of booting without them.
        kind=f"{client_class.root_kind}{'+layers' if over else ''}",
        **({"layers": " ".join(build.plan_words() for build in over)} if over else {}),
        **_way(client_class, version.manifest["root"]["sha256"]),
        home=release.home.sha256,
        home_bytes=release.home.bytes,
        home_kind=client_class.home_kind,
        home_digest=release.home.tree_digest,
        tmpfs_percent=client_class.root_percent,
        home_percent=client_class.home_percent,
        **released.keys,
    )


def _way(client_class: ClientClass, root: str) -> dict[str, str]:
    """How the root is fetched, and where it lies on the share; the store's own layout (images/builder/store.py)."""
    if client_class.root_fetch == RootFetch.HTTP:
        return {"fetch": RootFetch.HTTP}
    return {"fetch": client_class.root_fetch, "share": f"{settings.NFS_SHARE}/{root[:2]}/{root}"}


def _ids(adapters: list[Adapter]) -> str:
    return ", ".join(f"{adapter.vendor}:{adapter.device}" for adapter in adapters) or "(none)"


def _lines(**plan: object) -> str:
    if "reason" in plan:
        plan["reason"] = re.sub(r"[^A-Za-z0-9._:/+=,@ -]", " ", str(plan["reason"]))
    return speaking.format_plan({"protocol": protocol.PLAN_VERSION, **plan})
