"""Who asks for a page of a site, and what they may there."""

from http import HTTPStatus

from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.shortcuts import get_object_or_404

from fleet.exceptions import Forbidden, OperatorError, WrongState
from fleet.models import Site
from fleet.roles import Right


def visible_site(request: HttpRequest, slug: str) -> Site:
    return get_object_or_404(Site.objects.visible_to(request.user), slug=slug)


def may_operate(request: HttpRequest, site: Site) -> bool:
    return Site.objects.visible_to(request.user, Right.OPERATE).filter(pk=site.pk).exists()


def may_release(request: HttpRequest, site: Site) -> bool:
    return Site.objects.visible_to(request.user, Right.RELEASE).filter(pk=site.pk).exists()


def person(request: HttpRequest) -> User | AnonymousUser:
    assert isinstance(request.user, User | AnonymousUser)
    return request.user


def status_of(error: OperatorError | None) -> HTTPStatus:
    if error is None:
        return HTTPStatus.OK
    if isinstance(error, WrongState):
        return HTTPStatus.CONFLICT
    return HTTPStatus.FORBIDDEN if isinstance(error, Forbidden) else HTTPStatus.BAD_REQUEST
