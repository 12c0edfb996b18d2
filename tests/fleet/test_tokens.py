"""Who the API believes: bearer tokens, as long as they and their owner are good, and nothing else."""

import base64
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from rest_framework.test import APIClient

from fleet import services
from fleet.models import ApiToken, AuditEntry
from tests.world import World


def ask(authorization: str, method: str = "get", path: str = "me") -> Any:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=authorization)
    return getattr(client, method)(f"/api/v1/{path}/")


def make(world: World, **options: Any) -> tuple[ApiToken, str]:
    return services.issue_token(world.vera, "kiosk", **options)


def test_a_token_is_believed_and_kept_as_a_hash_alone(world: World) -> None:
    token, secret = make(world)
    assert ask(f"Bearer {secret}").json()["username"] == "vera"
    assert ask(f"bearer  {secret} ").status_code == 200, "schemes have no case (RFC 9110)"
    assert secret not in str(list(ApiToken.objects.values()))
    assert ask(f"Bearer {token.digest}").status_code == 401, "the hash opens nothing"
    assert len(secret) > 40


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer ",
        "Bearer sf_unknown",
        "Bearer \x00\xff",
        "Bearer " + "x" * 4000,
        "Basic " + base64.b64encode(b"vera:correct horse battery").decode(),
        "Token sf_unknown",
        'Digest username="vera"',
        "",
    ],
)
def test_nothing_else_is_believed(world: World, authorization: str) -> None:
    make(world)
    answer = ask(authorization)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")


def test_a_password_is_no_token(world: World) -> None:
    assert ask("Bearer correct horse battery").status_code == 401


def test_a_token_ends_at_its_time(world: World) -> None:
    _, secret = make(world, expires_at=timezone.now() + timedelta(hours=1))
    assert ask(f"Bearer {secret}").status_code == 200
    with time_machine.travel(timezone.now() + timedelta(hours=1, seconds=1)):
        answer = ask(f"Bearer {secret}")
    assert answer.status_code == 401
    assert answer.json()["detail"] == "The API token is unknown or has expired. Make a new one in the admin."


def test_a_token_ends_with_its_owners_account(world: World) -> None:
    _, secret = make(world)
    world.vera.is_active = False
    world.vera.save()
    assert ask(f"Bearer {secret}").status_code == 401


def test_a_token_that_was_ended_is_believed_no_more(world: World) -> None:
    token, secret = make(world)
    services.revoke_token(token, world.vera)
    assert ask(f"Bearer {secret}").status_code == 401


def test_a_token_can_do_what_its_owner_can_now(world: World) -> None:
    _, secret = make(world)
    assert len(ask(f"Bearer {secret}", path="sites").json()["results"]) == 1
    world.vera.memberships.all().delete()
    assert ask(f"Bearer {secret}", path="sites").json()["results"] == []


def test_a_read_only_token_is_refused_and_its_owner_finds_that_in_the_log(world: World) -> None:
    _, secret = make(world, read_only=True)
    for _ in range(3):
        answer = ask(f"Bearer {secret}", "post", "orders")
        assert (answer.status_code, answer.json()["detail"]) == (403, "This API token may only read.")
    entry = AuditEntry.objects.get(action="refused")
    assert (entry.actor, entry.detail) == ("vera", {"request": "POST /api/v1/orders/"})


def test_its_use_is_noted_at_most_once_a_minute(world: World) -> None:
    token, secret = make(world)
    for seconds, noted in ((0, 0), (30, 0), (61, 61)):
        with time_machine.travel(token.created_at + timedelta(seconds=seconds), tick=False):
            assert ask(f"Bearer {secret}").status_code == 200
        token.refresh_from_db()
        assert token.last_used_at == token.created_at + timedelta(seconds=noted)
