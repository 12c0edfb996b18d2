from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from images.models import ImageHook, ImageVersion, VersionStatus
from tests.images.versions import make_image, make_version
from tests.world import World, make_world


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "nothing", "--as", "vera"], "There is no image 'nothing'"),
        (["build", "gamer", "--as", "nobody"], "There is no user 'nobody'"),
        (["build", "gamer", "--as", "mallory"], "You may not edit recipes"),
        (["replay", "gamer-7"], "There is no version 'gamer-7'"),
        (["replay", "²"], "There is no version '²'"),
    ],
)
def test_what_cannot_be_done_is_told(world: World, arguments: list[str], said: str) -> None:
    make_image(world.clubroom)
    with pytest.raises(CommandError, match=said):
        call_command("image", *arguments)
    assert not ImageVersion.objects.exists()


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_build_in_the_foreground_tells_its_steps_and_what_failed(
    transactional_db: None, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"  # type: ignore[attr-defined]
    make_image(make_world().clubroom, packages="no-such-game")
    output = StringIO()
    with pytest.raises(CommandError, match=r"gamer-1 is failed.*has no package no-such-game"):
        call_command("image", "build", "gamer", "--as", "vera", stdout=output)
    assert "▸ Install Debian bookworm" in output.getvalue()
    assert "bootstrap failed after" in output.getvalue()


@pytest.mark.slow
@pytest.mark.build
@pytest.mark.root
def test_a_replay_leaves_the_tree_for_the_failing_command(
    transactional_db: None, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.STORE, settings.BUILD_WORK = tmp_path / "store", tmp_path / "work"  # type: ignore[attr-defined]
    image = make_image(make_world().clubroom)
    ImageHook.objects.create(image=image, script="no-such-command")
    make_version(image, VersionStatus.FAILED)
    with pytest.raises(CommandError, match="stays below") as caught:
        call_command("image", "replay", "gamer-1")
    tree = next((tmp_path / "work").glob("scratch-*/tree"))
    assert (tree / "usr/bin/dpkg").exists()
    assert str(tree) in str(caught.value)
