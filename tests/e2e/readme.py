"""Commands of a README, taken out of its text: what a reader would copy, in the order of the page.

Between `<!-- test:begin -->` and `<!-- test:end -->`, a block marked `bash` is run, and a block marked with a language
and a file name (```yaml job.yaml) becomes that file. Everything else is prose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = re.compile(r"<!-- test:begin -->(.*?)<!-- test:end -->", re.DOTALL)
_FENCE = re.compile(r"^```(\S+)(?:[ \t]+(\S+))?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    text: str
    file: str | None = None
    """Name of the file that it becomes; None = commands."""


def blocks_of(page: str) -> list[Block]:
    """The blocks to run or write, in order."""
    found = []
    for part in _PART.findall(page):
        for language, file, text in _FENCE.findall(part):
            if file:
                found.append(Block(text, file))
            elif language == "bash":
                found.append(Block(text))
    return found
