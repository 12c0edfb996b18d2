"""One world for all tests: two sites and three named people, one of whom must see nothing of the first site."""

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User

from fleet.models import Admission, Client, ClientClass, HardwareRule, Membership, Site
from fleet.roles import Role


@dataclass
class World:
    """``vera`` is a volunteer and ``otto`` an organiser of the club room; ``mallory`` belongs to the school alone."""

    clubroom: Site
    school: Site
    vera: User
    otto: User
    mallory: User
    gamer: ClientClass
    contest: ClientClass


def person(name: str) -> User:
    """A person who may log in to the admin, without any membership."""
    return User.objects.create_user(name, password="correct horse battery", is_staff=True)


def member(user: User, site: Site, role: Role) -> Membership:
    return Membership.objects.create(user=user, site=site, role=role)


def make_client(site: Site, mac: str = "52:54:00:00:00:01", **fields: Any) -> Client:
    """A client in service, of no class unless told."""
    defaults = {"name": f"pc-{mac[-2:]}", "seat": f"A{int(mac[-2:], 16)}", "admission": Admission.IN_SERVICE}
    return Client.objects.create(site=site, mac=mac, **(defaults | fields))


def make_world() -> World:
    clubroom = Site.objects.create(slug="clubroom", name="Club room")
    school = Site.objects.create(slug="school", name="School")
    gamer = ClientClass.objects.create(site=clubroom, slug="gamer", name="Gamer", colour="blue")
    contest = ClientClass.objects.create(site=clubroom, slug="contest", name="Paper contest", colour="orange")
    HardwareRule.objects.create(site=clubroom, client_class=gamer, vendor="1013", device="00b8", priority=10)
    HardwareRule.objects.create(site=clubroom, client_class=contest, vendor="1002", priority=20)
    vera, otto, mallory = (person(name) for name in ("vera", "otto", "mallory"))
    member(vera, clubroom, Role.VOLUNTEER)
    member(otto, clubroom, Role.ORGANISER)
    member(mallory, school, Role.SITE_ADMIN)
    return World(clubroom, school, vera, otto, mallory, gamer, contest)
