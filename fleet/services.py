"""What is done to sites and clients. Each service asks for the right and writes its audit entry in the same transaction."""

from datetime import datetime
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import ValidationError
from django.db import transaction

from fleet import audit
from fleet.exceptions import Forbidden, OperatorError
from fleet.models import Admission, ApiToken, Client
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
            was={name: _text(was[name]) for name in changed},
            now={name: _text(changes[name]) for name in changed},
        )


def _text(value: object) -> object:
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
