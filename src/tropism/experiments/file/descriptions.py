"""What each option of a class means, read from its own source: the string below a field, or an entry under `Args:`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping


def descriptions(cls: type) -> Mapping[str, str]:
    """Return field → description, for the fields that have one.

    A string below the field wins over the docstring's `Args:`, and a subclass over its bases.
    """
    told: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        told |= _arguments(inspect.getdoc(one) or "")
        told |= _below_fields(one)
    return told


def _arguments(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n(.*?)(?:\n\s*\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", section.group(1), re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _below_fields(cls: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}  # defined where there is no source to read, such as at a prompt
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    told: dict[str, str] = {}
    for declared, below in zip(definition.body, definition.body[1:], strict=False):
        text = _text(below)
        if isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name) and text is not None:
            told[declared.target.id] = text
    return told


def _text(node: ast.stmt) -> str | None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(inspect.cleandoc(node.value.value).split())
    return None
