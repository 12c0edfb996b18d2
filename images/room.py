"""Whether the PCs of a class have room for a copy of their home template: asked when either is chosen, not at a boot.

Each PC looks again before a cycle takes anything away (agents/hands/overlay.py), for only it knows the memory it has that day.
"""

from django.core.exceptions import ValidationError

from fleet.exceptions import OperatorError
from fleet.models import Admission, Client, ClientClass, HomeKind
from fleet.models.clients import class_check
from images.models import HomeTemplate, Release

MIB = 1 << 20


def require_room(client_class: ClientClass, template: HomeTemplate) -> None:
    """Refuse ``template`` for a class whose homes are copies larger than its smallest PC holds. Raises OperatorError."""
    if client_class.home_kind != HomeKind.COPY:
        return
    known = Client.objects.filter(client_class=client_class, admission=Admission.IN_SERVICE, memory_kib__isnull=False)
    smallest = known.order_by("memory_kib").first()
    if smallest is None or smallest.memory_kib is None:
        return
    room = smallest.memory_kib * 1024 * client_class.home_percent // 100
    needed = int(template.details.get("bytes", template.bytes))  # of one from a build the packed size alone is known
    if needed > room:
        raise OperatorError(
            f"A copy of {template} takes {needed // MIB} MiB, and the home of {smallest} has {room // MIB}.",
            hint=f"Make {client_class} an overlay, give its homes more memory, or choose a smaller template.",
        )


@class_check
def current_template_fits(client_class: ClientClass) -> None:
    """Refuse to make a class one of copies, or to give its homes less memory, where what it has now would not fit."""
    current = Release.objects.filter(client_class=client_class.pk, current=True).select_related("home__image").first()
    if current is None:
        return
    try:
        require_room(client_class, current.home)
    except OperatorError as error:
        raise ValidationError({"home_kind": str(error)}) from error
