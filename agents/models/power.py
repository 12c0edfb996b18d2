import ipaddress
from typing import Self
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models

from agents.models.commands import Command, CommandStatus
from fleet.models import Client
from fleet.querysets import ScopedQuerySet
from fleet.transitions import status_constraint


class PortKind(models.TextChoices):
    """What can switch a client on from outside; ``agents.power.ports`` speaks with each."""

    REDFISH = "redfish", "Redfish (management controller)"


class PowerPort(models.Model):
    """What switches a client on from outside, where it has such a thing. Its password stands in a file of the sender's, by name."""

    SITE = "client__site"

    client = models.OneToOneField(Client, primary_key=True, on_delete=models.CASCADE, related_name="power_port")
    kind = models.CharField(max_length=10, choices=PortKind.choices, default=PortKind.REDFISH)
    address = models.CharField(
        max_length=200,
        validators=[
            RegexValidator(
                r"^https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/?$",
                "An address as in https://10.20.9.5 or https://bmc-a3.example.org:8443: no path, no password.",
            )
        ],
        help_text="Where it answers, as in https://10.20.9.5. It must lie in the networks of FLEET_POWER_NETWORKS.",
    )
    outlet = models.CharField(
        max_length=80,
        blank=True,
        validators=[RegexValidator(r"^[A-Za-z0-9._-]*$", "Letters, digits, dots, dashes and underscores.")],
        help_text="The id of the system, where the address has several. Empty: the only one.",
    )
    credential = models.SlugField(
        max_length=40,
        blank=True,
        help_text="Name of a file in the site's directory of FLEET_POWER_CREDENTIALS. Empty: it asks for no password.",
    )

    objects = ScopedQuerySet["PowerPort"].as_manager()

    class Meta:
        ordering = ["client"]
        constraints = [status_constraint(PortKind, "power_port_kind_declared", "kind")]

    def __str__(self) -> str:
        return f"power port of {self.client}"

    def clean(self) -> None:
        """The sender looks again, at what a name means then; here a person is told at once."""
        if not settings.POWER_NETWORKS:
            raise ValidationError(
                "This server reaches no power ports: whoever runs it sets FLEET_POWER_NETWORKS first."
            )
        try:
            address = ipaddress.ip_address(urlsplit(self.address).hostname or "")
        except ValueError:
            return  # a name
        if not any(address in network for network in settings.POWER_NETWORKS):
            allowed = ", ".join(map(str, settings.POWER_NETWORKS))
            raise ValidationError(
                {"address": f"This server reaches power ports in {allowed} alone (FLEET_POWER_NETWORKS)."}
            )


class Way(models.TextChoices):
    RELAYS = "relays", "Wake-on-LAN"
    PORT = "port", "Its power port"


class WakeQuerySet(ScopedQuerySet["Wake"]):
    def under_way(self) -> Self:
        """Those that were let, and of which it is not known yet what came of them."""
        return self.filter(command__is_open=True, command__status=CommandStatus.SENT)


class Wake(models.Model):
    """How a command to power on is carried out: by which way, how often it was tried, and by whom.

    A round is one try: of the site's boot host (any gateway) and of awake clients, whose own commands are ``relays``; or of the client's power
    port. The server begins rounds (``rounds``); the boot host, or the sender for a port, notes which it has dealt with (``dealt``).
    """

    SITE = "command__client__site"

    command = models.OneToOneField(Command, primary_key=True, on_delete=models.CASCADE, related_name="wake")
    way = models.CharField(max_length=6, choices=Way.choices)
    rounds = models.PositiveSmallIntegerField(default=0, help_text="Begun so far.")
    next_at = models.DateTimeField(null=True, help_text="When the next one begins, if nothing is heard until then.")
    dealt = models.PositiveSmallIntegerField(
        default=0, help_text="Rounds that boot host or power port have dealt with."
    )
    sent_at = models.DateTimeField(null=True, help_text="When boot host or power port last did it.")
    relays = models.ManyToManyField(Command, related_name="wakes", help_text="What awake clients were ordered for it.")
    trouble = models.CharField(max_length=300, blank=True, help_text="What kept its power port from it.")
    asleep = models.BooleanField("did not wake", default=False, help_text="Packets were sent, and nothing was heard.")
    product = models.CharField(max_length=100, blank=True, help_text="Of the client, as it was then.")
    adapter = models.CharField(max_length=9, blank=True, help_text="Its first graphics adapter: 1013:00b8.")

    objects = WakeQuerySet.as_manager()

    class Meta:
        ordering = ["-command__queued_at"]
        constraints = [status_constraint(Way, "wake_way_declared", "way")]
        indexes = [models.Index(fields=["next_at"], name="wake_next_round")]

    def __str__(self) -> str:
        return str(self.command)
