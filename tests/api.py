"""The REST API as a person calls it."""

from typing import Any

from django.contrib.auth.models import User
from rest_framework.test import APIClient


def as_(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


def call(user: User, path: str, body: dict[str, Any] | None = None, method: str = "") -> tuple[int, Any]:
    """GET, or POST of ``body``, unless ``method`` says else: the status and the JSON, None where there is none."""
    send = getattr(as_(user), method or ("get" if body is None else "post"))
    answer = send(f"/api/v1/{path}", body, format="json") if body is not None else send(f"/api/v1/{path}")
    return answer.status_code, answer.json() if answer.headers.get("Content-Type", "").endswith("json") else None
