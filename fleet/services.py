"""What is done to sites and clients. Each service asks for the right and writes its audit entry in the same transaction."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ValidationError
from django.db import transaction

from fleet import audit
from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Admission, ApiToken, Client, Tag
from fleet.roles import Right


@transaction.atomic
def admit(client: Client, actor: User | AnonymousUser, admission: Admission = Admission.IN_SERVICE) -> None:
    """Set what people want of ``client``: in service, maintenance, retired. Raises Forbidden without the right ENROL."""
    if not Client.objects.filter(pk=client.pk).visible_to(actor, Right.ENROL).exists():
        raise Forbidden(f"You may not admit {client}.", hint="Ask a volunteer of its site.", site=client.site)
    client.refresh_from_db()
    if client.admission == admission:
        return
    audit.record("client.admission", client, site=client.site, actor=actor, was=client.admission, now=admission.value)
    client.admission = admission
    client.save(update_fields=["admission"])


@transaction.atomic
def take_back_twin(client: Client, actor: User | AnonymousUser) -> None:
    """End the alarm that two machines have the MAC address of ``client``; it comes again if they still do.

    Raises Forbidden without the right ENROL, WrongState where there is no alarm.
    """
    if not Client.objects.filter(pk=client.pk).visible_to(actor, Right.ENROL).exists():
        raise Forbidden(f"You may not judge {client}.", hint="Ask a volunteer of its site.", site=client.site)
    if not Client.objects.filter(pk=client.pk).exclude(twin_at=None).update(twin_at=None):
        raise WrongState(f"There is no such alarm of {client}.", hint="Somebody else was there first.")
    client.refresh_from_db(fields=["twin_at"])
    audit.record("client.twin-taken-back", client, site=client.site, actor=actor, mac=client.mac)


@transaction.atomic
def edit_client(client: Client, actor: User | AnonymousUser, **changes: Any) -> None:
    """Name, seat or class ``client``. Raises Forbidden without the right ENROL, OperatorError for what does not fit."""
    row = (
        Client.objects.select_for_update(of=("self",), no_key=True)
        .visible_to(actor, Right.ENROL)
        .filter(pk=client.pk)
        .first()
    )
    if row is None:
        raise Forbidden(f"You may not edit {client}.", hint="Ask a volunteer of its site.", site=client.site)
    was = {name: getattr(row, name) for name in changes}
    changed = [name for name, value in changes.items() if was[name] != value]
    for name in changed:
        setattr(row, name, changes[name])
        setattr(client, name, changes[name])
    try:
        row.full_clean()
    except ValidationError as error:
        raise OperatorError(
            f"{client} cannot be so: {' '.join(error.messages)}", hint="Change that, and try again."
        ) from None
    if changed:
        row.save(update_fields=changed)
        audit.record(
            "client.edited",
            row,
            site=row.site,
            actor=actor,
            was={name: _text(name, was[name]) for name in changed},
            now={name: _text(name, changes[name]) for name in changed},
        )


@transaction.atomic
def tag(clients: Iterable[Client], name: str, actor: User | AnonymousUser, *, off: bool = False) -> int:
    """Put the tag ``name`` on clients, or take it away; of how many that changed something. A site's first use of a tag makes it.

    Raises Forbidden naming those that the actor may not edit, OperatorError for what is no tag.
    """
    chosen = {client.pk: client for client in clients}
    allowed = Client.objects.filter(pk__in=chosen).visible_to(actor, Right.ENROL).select_related("site")
    rows = {client.pk: client for client in allowed}
    if missing := [str(client) for pk, client in chosen.items() if pk not in rows]:
        raise Forbidden(f"You may not tag {', '.join(missing)}.", hint="Ask a volunteer of that site.")
    changed = 0
    for site in sorted({client.site for client in rows.values()}, key=lambda site: site.pk):
        mine = {pk: client for pk, client in rows.items() if client.site_id == site.pk}
        row = Tag.objects.filter(site=site, name=name).first() or Tag(site=site, name=name)
        try:
            row.full_clean()
        except ValidationError as error:
            raise OperatorError(
                f"{name!r} is no tag: {' '.join(error.messages)}", hint="Choose another word."
            ) from None
        if row.pk is None and off:
            continue
        row.save()
        tagged = set(row.clients.filter(pk__in=mine).values_list("pk", flat=True))
        if moving := [client for pk, client in mine.items() if (pk in tagged) == off]:
            (row.clients.remove if off else row.clients.add)(*moving)
            names = [str(client) for client in moving]
            audit.record("clients.untagged" if off else "clients.tagged", row, site=site, actor=actor, clients=names)
        changed += len(moving)
    return changed


@transaction.atomic
def set_tags(client: Client, names: Collection[str], actor: User | AnonymousUser) -> None:
    """Have ``client`` carry these tags and no others. Raises as ``tag`` does."""
    there = {row.name for row in client.tags.all()}
    for name in sorted(there.symmetric_difference(names)):
        tag([client], name, actor, off=name in there)
    getattr(client, "_prefetched_objects_cache", {}).pop("tags", None)


def _text(name: str, value: object) -> object:
    if name == "secure_on":
        return "(one)" if value else ""  # a password: that it changed is told, and not to what
    return value if value is None or isinstance(value, bool | int | str) else str(value)


@transaction.atomic
def issue_token(
    owner: User, name: str, *, read_only: bool = False, expires_at: datetime | None = None
) -> tuple[ApiToken, str]:
    """A new API token of ``owner`` and its secret, which is shown this once. Raises OperatorError for a name in use."""
    if ApiToken.objects.filter(user=owner, name=name).exists():
        raise OperatorError(f"You have a token called {name} already.", hint="Choose another name, or delete that one.")
    secret, digest, hint = ApiToken.generate()
    token = ApiToken.objects.create(
        user=owner, name=name, digest=digest, hint=hint, read_only=read_only, expires_at=expires_at
    )
    audit.record("token.issued", str(token), site=None, actor=owner, read_only=read_only)
    return token, secret


@transaction.atomic
def revoke_token(token: ApiToken, actor: User | AnonymousUser) -> None:
    """End an API token. Raises Forbidden for somebody else's, unless ``actor`` is a superuser."""
    if not isinstance(actor, User) or not (actor.is_superuser or token.user_id == actor.pk):
        raise Forbidden(f"The token {token} is not yours.", hint="Ask its owner.")
    audit.record("token.revoked", str(token), site=None, actor=actor, owner=token.user.get_username())
    token.delete()
