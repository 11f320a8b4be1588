"""For mkdocstrings: a doctest in a docstring becomes a code block, whatever section it stands in."""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$|```).*\n?)*", re.M)


class FenceDoctests(griffe.Extension):
    """Fence every run of lines that begins with a prompt and ends at the next empty line."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = DOCTEST.sub(lambda m: f"```pycon\n{m.group(0).rstrip()}\n```\n", obj.docstring.value)
