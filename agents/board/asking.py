"""The form of a new campaign: what a person types, and the campaign that makes."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib.auth.models import AnonymousUser, User
from django.http import QueryDict

from agents import arguments, campaigns, services
from agents.models import Campaign, Offline, OnFailure, Verb, WaveBy
from agents.seats import natural
from agents.selecting import KINDS, Selection
from fleet.exceptions import OperatorError
from fleet.models import Client, ClientClass, ClientState, Site, Tag, row_of

VERBS = [(verb.value, verb.label) for verb in services.ORDERED if verb != Verb.CAPTURE]
_ARGS = ("warn_s", "text", "more", "seconds")


def _number(label: str, most: int | None = None, hint: str = "", **options: Any) -> forms.IntegerField:
    return forms.IntegerField(
        label=label, help_text=hint, required=False, min_value=options.pop("least", 0), max_value=most, **options
    )


def _boxes(label: str) -> forms.MultipleChoiceField:
    return forms.MultipleChoiceField(label=label, required=False, widget=forms.CheckboxSelectMultiple)


def _moment(label: str, hint: str) -> forms.DateTimeField:
    field = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")
    return forms.DateTimeField(label=label, help_text=f"UTC. {hint}", required=False, widget=field)


class CampaignForm(forms.Form):
    """Its choices are those of one site. What fits together is not its business: ``campaigns.plan`` says that."""

    verb = forms.ChoiceField(label="What", choices=VERBS, initial=Verb.RESTART)
    reason = forms.CharField(
        label="Why?", max_length=200, help_text="It stands in the audit log.", widget=forms.TextInput
    )

    classes = _boxes("Classes")
    tags = _boxes("Tags")
    rows = _boxes("Rows")
    states = _boxes("States")

    warn_s = _number("Warned before, seconds", 3600, "Empty: it happens at once.")
    more = _number("Five minutes more, times", 12, "How often the user may ask for that.")
    text = forms.CharField(
        label="Text", required=False, max_length=arguments.MOST_TEXT, help_text="Of the warning or the message."
    )
    seconds = _number("Message stands, seconds", 3600, f"Empty: {arguments.SECONDS}.")

    canary = _number("Canary", hint="So many go first, alone.")
    wave_by = forms.ChoiceField(label="Waves", choices=WaveBy.choices, required=False)
    share = _number("Share of a wave, %", 100, "For waves by share.", least=1)
    spread_s = _number("Spread of a wave, seconds", hint="Its PCs have their turn over so long.")
    success_percent = _number("Next wave after, % succeeded", 100)
    failed_percent = _number("Too many are, % failed", 100, "More than that: it pauses or aborts.")
    judged_after = _number("Judged after", hint="So many must have ended before that counts.", least=1)
    on_failure = forms.ChoiceField(label="When too many failed", choices=OnFailure.choices, required=False)

    offline = forms.ChoiceField(label="Who is not connected", choices=Offline.choices, required=False)
    wait_until = _moment("Waited for until", "Empty: until it expires.")
    starts_at = _moment("Starts", "Empty: at once.")
    expires_at = _moment("Expires", "Empty: an hour after it starts.")
    force = forms.BooleanField(
        label="Also PCs with a local hold", required=False, help_text="Only an organiser may order that."
    )
    beyond_cap = forms.BooleanField(
        label="Beyond the site's caps", required=False, help_text="A second person has to approve it."
    )

    def __init__(self, site: Site, said: QueryDict | None = None) -> None:
        super().__init__(said)
        self.site = site
        seats = Client.objects.filter(site=site).values_list("seat", flat=True)
        rows = sorted({row_of(seat) for seat in seats} - {""}, key=natural)
        offered: dict[str, Any] = {
            "classes": ClientClass.objects.filter(site=site).order_by("name").values_list("slug", "name"),
            "tags": [
                (name, name) for name in Tag.objects.filter(site=site).order_by("name").values_list("name", flat=True)
            ],
            "rows": [(row, row) for row in rows],
            "states": ClientState.choices,
        }
        for kind, choices in offered.items():
            field = self.fields[kind]
            assert isinstance(field, forms.MultipleChoiceField)
            field.choices = list(choices)
        self.clients = said.getlist("client") if said else []

    @property
    def chosen(self) -> list[str]:
        """What people call the PCs that were chosen one by one."""
        keys = [key for key in self.clients if _is_key(key)]
        found = Client.objects.filter(site=self.site, pk__in=keys).values_list("seat", "name")
        return sorted((seat or name for seat, name in found), key=natural)

    def plan(self, actor: User | AnonymousUser) -> Campaign:
        """The campaign that was described, not saved. Raises OperatorError, Forbidden as ``campaigns.plan``."""
        for name, messages in self.errors.items():
            raise OperatorError(f"{self.fields[name].label} {messages[0]}", hint="Change that, and try again.")
        said = dict(self.cleaned_data)
        kinds = {kind: said.pop(kind) for kind in KINDS if kind in said}
        args = {name: said.pop(name) for name in _ARGS}
        how: dict[str, Any] = {name: None if value == "" else value for name, value in said.items()}
        return campaigns.plan(
            self.site, actor, selection=Selection.from_json({**kinds, "clients": self.clients}), args=args, **how
        )

    @property
    def groups(self) -> list[tuple[str, bool, list[forms.BoundField]]]:
        """Its fields as they stand together; whether something was typed there."""
        groups = {
            "Warning or message": _ARGS,
            "Waves": ("canary", "wave_by", "share", "spread_s"),
            "Thresholds": ("success_percent", "failed_percent", "judged_after", "on_failure"),
            "Times, and who is offline": ("starts_at", "expires_at", "offline", "wait_until"),
            "Limits": ("force", "beyond_cap"),
        }
        return [
            (title, any(self[name].data for name in names), [self[name] for name in names])
            for title, names in groups.items()
        ]

    @property
    def kinds(self) -> list[forms.BoundField]:
        """Checkboxes of what the site has to select by."""
        return [
            self[kind] for kind in ("classes", "tags", "rows", "states") if getattr(self.fields[kind], "choices", [])
        ]


def _is_key(text: str) -> bool:
    try:
        return bool(UUID(text))
    except ValueError:
        return False
