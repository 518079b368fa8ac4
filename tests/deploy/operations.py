"""What docs/operations.md tells operators to type."""

import re
import shlex

from tests.running import ROOT

PAGE = ROOT / "docs" / "operations.md"


def console() -> list[list[str]]:
    """The commands of all console blocks, in their order."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line.removeprefix("$ ")) for line in lines if line.startswith("$ ")]


def commands(*programs: str) -> list[list[str]]:
    """The one command of each of these programs."""
    found = []
    for program in programs:
        (command,) = (command for command in console() if command[0] == program)
        found.append(command)
    return found
