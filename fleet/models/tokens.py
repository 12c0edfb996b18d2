import hashlib
import secrets

from django.conf import settings
from django.db import models
from django.utils import timezone

_PREFIX = "sf_"


def token_hash(token: str) -> str:
    """SHA-256 in hex. A token has 128 random bits or more, so a slow hash would protect nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


class ApiToken(models.Model):
    """A person's key for scripts and kiosks; it can do what the person can. Only its hash is kept."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80, help_text="What uses it: kiosk at the door.")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=8, editable=False, help_text="Its first characters, to tell tokens apart.")
    read_only = models.BooleanField(default=False, help_text="May read but not order.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = "API token"
        ordering = ["user", "name"]
        constraints = [models.UniqueConstraint(fields=["user", "name"], name="api_token_name_unique_for_person")]

    def __str__(self) -> str:
        return f"{self.name} ({self.hint}…)"

    @staticmethod
    def generate() -> tuple[str, str, str]:
        """A new token, its digest and its hint. The token itself is shown once and kept nowhere."""
        token = _PREFIX + secrets.token_urlsafe(32)
        return token, token_hash(token), token[:8]
