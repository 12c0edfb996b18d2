"""Bearer tokens: ``Authorization: Bearer sf_…``. Stored hashed, looked up by hash."""

from datetime import timedelta

from django.contrib.auth.models import User
from django.db.models import Q
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from fleet.exceptions import Forbidden
from fleet.models import ApiToken, token_hash

_NOTED_EVERY = timedelta(minutes=1)  # a script that polls must not cost a write per request


class TokenAuthentication(BaseAuthentication):
    """Knows a person by an API token. A read-only token may not change anything."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        scheme, _, secret = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        now = timezone.now()
        token = (
            ApiToken.objects.select_related("user")
            .filter(
                Q(expires_at=None) | Q(expires_at__gt=now),
                digest=token_hash(secret.strip()),
                user__is_active=True,
            )
            .first()
        )
        if token is None:
            raise AuthenticationFailed("The API token is unknown or has expired. Make a new one in the admin.")
        if token.read_only and request.method not in ("GET", "HEAD", "OPTIONS"):
            request.user = token.user  # known, so that the audit log says who was refused
            raise Forbidden("This API token may only read.", hint="Make one that may write in the admin.")
        if token.last_used_at is None or now - token.last_used_at > _NOTED_EVERY:
            ApiToken.objects.filter(pk=token.pk).update(last_used_at=now)
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
