"""Our server, all of it, and a volunteer who has a message shown at the whole site: by a campaign, as for so many clients one must."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.bench.brokers import daemon
from tests.bench.brokers.gathering import TEXT, Said, System
from tests.bench.servers import server
from tests.services import wait_for

PATIENCE_S = 300.0


@contextmanager
def ours(clients: int, database: str = "postgres") -> Iterator[System]:
    """From here on this process is the web process of that server (``tests.bench.servers``)."""
    with server(database) as one:
        from django.contrib.auth.models import User
        from django.db import transaction

        from agents import campaigns
        from agents.models import Campaign, Command, Verb
        from agents.selecting import Selection
        from fleet.models import Admission, Client, ClientState, Site
        from tests.agents.boots import KERNEL

        site, vera = Site.objects.get(slug="clubroom"), User.objects.get(username="vera")
        Client.objects.bulk_create(
            Client(site=site, mac=daemon.mac_of(who), name=f"pc-{who:05}", admission=Admission.IN_SERVICE)
            for who in range(clients)
        )

        def say() -> Said:
            said = Said(0.0)
            args = {"text": TEXT, "seconds": 10}
            campaign = campaigns.plan(
                site, vera, verb=Verb.MESSAGE, reason="the show", selection=Selection(), args=args
            )
            with transaction.atomic():
                transaction.on_commit(lambda: setattr(said, "at", time.monotonic()))
                campaigns.start(campaign, vera)
            return said

        def settled() -> bool:
            ready = Client.objects.filter(state=ClientState.READY).count() == clients
            return ready and not Command.objects.filter(status__in=Command.OPEN).exists()

        def settle() -> None:
            wait_for(settled, "all have carried it out, and poll", PATIENCE_S)
            wait_for(lambda: not Campaign.objects.filter(ended_at=None).exists(), "the campaign has ended", PATIENCE_S)
            time.sleep(1)

        place = {"port": urlsplit(one.gateway_url).port, "site": site.slug, "kernel": KERNEL}
        yield System(f"ours, {database}", daemon.__name__, place, lambda: one.pids.values(), say, settle)
