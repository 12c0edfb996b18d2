"""Which PCs wake and which do not, by model: what to look for in their firmware's settings, or to buy no more of."""

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import Count, Q, QuerySet
from prometheus_client.core import CounterMetricFamily, Metric

from agents.models import CommandStatus, Wake
from fleet.hardware import adapter_name
from fleet.metrics import DATABASE, Asked

_COUNTS = {
    "woke": Count("pk", filter=Q(command__status=CommandStatus.SUCCEEDED)),
    "slept": Count("pk", filter=Q(asleep=True)),
}


@dataclass(frozen=True)
class Model:
    """PCs of one product with one graphics adapter: how often they woke, and how often they did not."""

    product: str
    adapter: str
    adapter_name: str
    woke: int
    asleep: int

    @property
    def percent(self) -> int:
        """Of those that were sent packets, how many did not wake."""
        return round(100 * self.asleep / (self.woke + self.asleep))


def by_model(wakes: QuerySet[Wake]) -> list[Model]:
    """What became of ``wakes``, the models that wake worst first. Those that came to nothing for other reasons are not counted."""
    counted = wakes.order_by().values_list("product", "adapter").annotate(**_COUNTS)
    models = [
        Model(product, adapter, _name(adapter), woke, asleep)
        for product, adapter, woke, asleep in counted
        if woke or asleep
    ]
    return sorted(models, key=lambda model: (-model.percent, -model.asleep, model.product, model.adapter))


def _name(adapter: str) -> str:
    return adapter_name(*adapter.split(":")) if adapter else ""


def wakes() -> Iterable[Metric]:
    family = CounterMetricFamily(
        "fleet_wakes",
        "PCs that were to be switched on, by model and whether they woke.",
        labels=("site", "product", "adapter", "outcome"),
    )
    rows = Wake.objects.order_by().values_list("command__client__site__slug", "product", "adapter")
    for site, product, adapter, woke, asleep in rows.annotate(**_COUNTS):
        for outcome, number in (("woke", woke), ("asleep", asleep)):
            if number:
                family.add_metric((site, product, adapter, outcome), number)
    yield family


DATABASE.register(Asked(wakes))
