"""What runs on every client as root stays small, and may do no more than it must."""

import io
import subprocess
import tokenize
from pathlib import Path

import pytest

from tests.services import PROJECT

MOST_LINES = 800  # of code: neither empty, nor a comment, nor a text that stands for itself
UNIT = PROJECT / "agents/units/fleet-agent.service"


def code_lines(text: str) -> int:
    """How many lines have code on them."""
    lines = set[int]()
    begins = True  # a statement
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            begins = True
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            if not (begins and token.type == tokenize.STRING):
                lines.update(range(token.start[0], token.end[0] + 1))
            begins = False
    return len(lines)


def test_lines_of_code_are_counted() -> None:
    assert (
        code_lines(
            '"""Text\nof two lines."""\n\n# why\nx = (\n    1,  # one\n)\n\ndef f():\n    "says"\n    return 2\n'
        )
        == 5
    )


def test_what_listens_to_the_network_and_decides_is_small() -> None:
    """What its hands do (``agents/hands``) talks to nobody."""
    parts = {path.name: code_lines(path.read_text()) for path in Path(PROJECT / "agents/daemon").glob("*.py")}
    assert sum(parts.values()) < MOST_LINES, parts


@pytest.mark.once
def test_its_unit_takes_away_what_it_does_not_need() -> None:
    """By the points of systemd-analyze, ten times over: 94 without, and 54 is what mounting homes, killing and restarting leave."""
    words = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=54", str(UNIT)]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
