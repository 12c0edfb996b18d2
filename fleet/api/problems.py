"""Errors of the API as problem details (RFC 9457)."""

from http import HTTPStatus
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView, exception_handler

from fleet.exceptions import Forbidden, OperatorError, SiteError, WrongState

CONTENT_TYPE = "application/problem+json"


def problem(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler. ``detail`` says what happened, ``hint`` what to do, ``errors`` names fields."""
    body: dict[str, Any] = {}
    if isinstance(error, WrongState):
        response = Response(status=HTTPStatus.CONFLICT)
    elif isinstance(error, Forbidden):
        response = Response(status=HTTPStatus.FORBIDDEN)
    elif isinstance(error, OperatorError):
        response = Response(status=HTTPStatus.BAD_REQUEST)
    elif isinstance(error, SiteError):
        response = Response(status=HTTPStatus.SERVICE_UNAVAILABLE)
    else:
        handled = exception_handler(error, context)
        if handled is None:
            return None
        response = handled
        if isinstance(error, ValidationError):
            body = {"detail": "Some fields do not fit.", "errors": response.data}
        else:
            body = {"detail": str(getattr(error, "detail", error))}
    if isinstance(error, OperatorError | SiteError):
        body = {"detail": error.message} | ({"hint": error.hint} if error.hint else {})
    status = HTTPStatus(response.status_code)
    response.data = {"type": "about:blank", "title": status.phrase, "status": status.value, **body}
    response.content_type = CONTENT_TYPE
    return response


@extend_schema(exclude=True)
class NoResource(APIView):
    """Answers for addresses of the API that do not exist, in the form of its other errors."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        raise NotFound("There is no such address. The API is described at /api/schema/.")
