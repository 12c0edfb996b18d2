"""Build from the command line: `python -m images.builder recipe.json --work … --store …`.

Instead of a recipe the file may hold an order, as images/builder/apart.py gives it:

    {"recipe": {…}}                                           build
    {"recipe": {…}, "parent": digest, "change": {…}}          derive; "place": a directory changed in a shell
    {"recipe": {…}, "base": digest, "layer": {…}}             build a driver layer over that version
    {"recipe": {…}, "parent": digest, "shell": directory}     open a shell there
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from images.builder import maintenance
from images.builder.apart import Events, error_event
from images.builder.change import Change
from images.builder.director import Context, build, derive_here, layer_here
from images.builder.errors import BuildError
from images.builder.layer import LayerManifest
from images.builder.manifest import Manifest
from images.builder.recipe import Recipe
from images.builder.ruling import TOTAL_BYTES
from images.builder.run import Runner
from images.builder.steps import Steps
from images.builder.store import Store
from images.builder.trees import Trees

DAEMON = Path(__file__).resolve().parents[2] / "agents" / "daemon"


class Terminal:
    """Prints the steps of a build to standard error: title, command, output if wanted, seconds."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Terminal]:
        started = time.monotonic()
        print(f"▸ {title} ({name})", file=sys.stderr)
        yield self
        print(f"  {name}: {time.monotonic() - started:.1f} s", file=sys.stderr)

    def command(self, argv: Sequence[str]) -> None:
        print(f"  $ {shlex.join(argv)}", file=sys.stderr)

    def output(self, text: str) -> None:
        if self._verbose:
            sys.stderr.write(f"    {text}")

    def exited(self, exit_code: int) -> None:
        if exit_code:
            print(f"  ended with {exit_code}", file=sys.stderr)

    def progress(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        """The terminal shows whole steps only."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m images.builder", description=__doc__)
    parser.add_argument("recipe", help="a file with a recipe as JSON; - for standard input")
    parser.add_argument("--work", type=Path, required=True, help="scratch directory")
    parser.add_argument("--store", type=Path, required=True, help="the store of artefacts")
    parser.add_argument("--daemon", type=Path, default=DAEMON, help="the agent that goes into the initrd")
    parser.add_argument("--epoch", type=int, help="no time in the version is later (s)")
    parser.add_argument("--most-bytes", type=int, default=0, help="that the files of the root may have; 0: no limit")
    parser.add_argument(
        "--copied-bytes", type=int, default=TOTAL_BYTES, help="that the volatile rules may copy in all; 0: no limit"
    )
    parser.add_argument("--keep", action="store_true", help="leave the tree in the scratch directory")
    parser.add_argument("--verbose", action="store_true", help="show the output of commands")
    parser.add_argument("--events", action="store_true", help="print steps as JSON lines (see apart.py)")
    arguments = parser.parse_args()
    store, limits = Store(arguments.store), (arguments.most_bytes, arguments.copied_bytes)
    context = Context(arguments.work, store, arguments.daemon, arguments.epoch, *limits, arguments.keep)
    events = Events(sys.stdout) if arguments.events else None
    try:
        text = sys.stdin.read() if arguments.recipe == "-" else Path(arguments.recipe).read_text()
        given = json.loads(text)
        order = given if "recipe" in given else {"recipe": given}
        steps = events or Terminal(verbose=arguments.verbose)
        if "shell" in order:
            return _shell(order, context, steps)
        manifest = _build(order, context, steps)
    except BuildError as error:
        if events:
            events.write(error_event(error))
        print(error, file=sys.stderr)
        return 1
    if events:
        events.write({"manifest": manifest.to_dict()})
    else:
        print(json.dumps({"digest": manifest.digest, **manifest.to_dict()}))
    return 0


def _build(order: Mapping[str, Any], context: Context, steps: Steps) -> Manifest | LayerManifest:
    recipe = Recipe.from_dict(order["recipe"])
    if "layer" in order:
        base = Manifest.load(context.store, order["base"])
        return layer_here(base, recipe, Change.from_dict(recipe, order["layer"]), context, steps)
    if "parent" not in order:
        return build(recipe, context, steps)
    parent = Manifest.load(context.store, order["parent"])
    place = Path(order["place"]) if order.get("place") else None
    return derive_here(parent, recipe, Change.from_dict(recipe, order["change"]), context, steps, place)


def _shell(order: Mapping[str, Any], context: Context, steps: Steps) -> int:
    parent = Manifest.load(context.store, order["parent"])
    recipe = Recipe.from_dict(order["recipe"])
    with steps.step("open", "Open the root") as step:
        run = Runner(step)
        maintenance.shell(Path(order["shell"]), parent, recipe, context.store, Trees(context.work), run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
