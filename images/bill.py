"""The bill of materials of a version as an answer to admin and API."""

from django.http import HttpResponse

from fleet.exceptions import WrongState
from images.builder import sbom
from images.builder.recipe import Recipe
from images.models import ImageVersion


def bill_of_materials(version: ImageVersion) -> HttpResponse:
    """CycloneDX JSON, to be kept as a file. Raises WrongState for a version that is not ready."""
    if version.contents is None:
        raise WrongState(
            f"{version} has no bill of materials: it is {version.get_status_display().lower()}.",
            hint="Only a ready version has.",
        )
    text = sbom.document(str(version), version.contents, Recipe.from_dict(version.recipe))
    name = f"{version}.cdx.json"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return HttpResponse(text, content_type="application/vnd.cyclonedx+json; version=1.5", headers=headers)
