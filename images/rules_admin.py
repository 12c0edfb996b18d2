"""What volatile rules cost, on the page of an image: told while they are typed, and once more when they are saved."""

from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST

from fleet.roles import Right
from images import services, weighing
from images.builder.errors import RecipeError
from images.builder.families import FAMILIES
from images.builder.volatile import MOST_RULES, Rule, parse_rules, refuse_rules
from images.models import Image

if TYPE_CHECKING:
    from images.admin import OrderAdmin

    _Orders = OrderAdmin[Image]
else:
    _Orders = object


class RuleWeights(_Orders):
    """``POST <pk>/weigh/`` with the text of the rules: what each line would copy, as JSON. Nothing is changed."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.weigh_view))
        return [path("<int:pk>/weigh/", view, name="images_image_weigh"), *super().get_urls()]

    def weigh_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        image = self.row(request, pk)
        if not services.may(request.user, Right.BUILD, image):
            return JsonResponse({"detail": f"You may not change {image}."}, status=403)
        return JsonResponse(weights_of(image, request.POST.get("volatile", "")))

    def save_model(self, request: HttpRequest, obj: Image, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if change and "volatile" in form.changed_data and (found := weights_of(obj, obj.volatile))["version"]:
            copied = [row for row in found["rules"] if row["bytes"]]
            each = "; ".join(f"{row['rule']}: {row['said']}" for row in copied)
            text = (
                f"The volatile rules copy {found['said']} into the memory of every client, as {found['version']} has it"
            )
            self.message_user(request, f"{text} ({each})." if each else f"{text}.")


def weights_of(image: Image, text: str) -> dict[str, Any]:
    """The rules of ``text``, one row each, and all together; half a line, as somebody types it, has a problem of its own.

    ``version`` is empty when no version of the image can be looked into; ``refusal`` is what saving them would say.
    """
    rows: list[tuple[int, str, Rule | None, str]] = []
    for number, line in enumerate(text.splitlines()[: 2 * MOST_RULES], 1):
        try:
            rows += [(number, str(rule), rule, "") for rule in parse_rules(line)]
        except RecipeError as error:
            rows.append((number, line.strip(), None, _bare(error)))
    if not rows:
        rows = [(0, str(rule), rule, "") for rule in FAMILIES[image.family].volatile]
    rules = [rule for _, _, rule, _ in rows if rule]
    refusal = ""
    try:
        refuse_rules(rules)
    except RecipeError as error:
        refusal = _bare(error)
    weighed = None if len(rules) > MOST_RULES else weighing.weigh(image, rules)
    if weighed and not refusal:
        try:
            weighing.refuse_heavy(weighed)
        except RecipeError as error:
            refusal = _bare(error)
    weights = {weight.rule: weight for weight in weighed.weights} if weighed else {}
    shown = []
    for number, line, rule, problem in rows:
        weight = weights.get(rule) if rule else None
        files, size = (weight.files, weight.bytes) if weight else (0, 0)
        told = problem or (weight.problem if weight else "")
        said = _said(files, size) if weight else ""
        shown.append({"line": number, "rule": line, "files": files, "bytes": size, "said": said, "problem": told})
    whole = (weighed.files, weighed.bytes) if weighed else (0, 0)
    return {
        "version": str(weighed.version) if weighed else "",
        "rules": shown,
        "files": whole[0],
        "bytes": whole[1],
        "said": _said(*whole) if weighed else "",
        "refusal": refusal,
    }


def _said(files: int, size: int) -> str:
    return f"{files} file{'' if files == 1 else 's'}, {filesizeformat(size)}"


def _bare(error: RecipeError) -> str:
    return str(error).removeprefix(f"{error.field}: ")
