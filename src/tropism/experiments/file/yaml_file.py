"""Read an experiment file: YAML without tags, duplicates or alias bombs, and with the line of every key.

Plain values are read as in YAML 1.2: only `true` and `false` are truth values, and the words `on`, `off`, `yes` and `no`
stay words, as dates and times do; `1e-3` is a number, and `010` is ten. `--set` on the command line is read by the same rules.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tropism.errors import SpecError

MAX_BYTES = 1_000_000
MAX_NODES = 20_000

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without the surprises of YAML 1.1."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# Whole numbers before the others: the first that matches decides.
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def _whole_number(_loader: _Loader, node: yaml.Node) -> int:
    text = str(node.value)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


class Document:
    """The plain data of a YAML file, and the line of each key."""

    def __init__(self, data: dict[str, Any], lines: dict[Key, int], name: str) -> None:
        self.data, self.lines, self.name = data, lines, name

    @classmethod
    def of(cls, data: dict[str, Any], name: str) -> "Document":
        """Return plain data that no file holds, such as a command's options; its complaints name no line."""
        return cls(data, {}, name)

    def where(self, key: Key) -> str:
        """`FILE line N: a.b.c`, with the line of the nearest enclosing key that the file holds."""
        if not self.lines:
            return ": ".join([self.name, ".".join(str(part) for part in key)] if key else [self.name])
        line = next((self.lines[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.lines), 1)
        dotted = ".".join(str(part) for part in key)
        return f"{self.name} line {line}" + (f": {dotted}" if dotted else "")


def read(path: str | Path) -> Document:
    """Read a YAML file; raises `SpecError` with file and line."""
    source = Path(path)
    if not source.is_file():
        raise SpecError(f"no experiment file at {source}; 'tropism init {source}' writes one")
    if source.stat().st_size > MAX_BYTES:
        raise SpecError(f"{source} has {source.stat().st_size} bytes; an experiment file may have at most {MAX_BYTES}")
    try:
        return parse(source.read_text(encoding="utf-8"), source.name)
    except UnicodeDecodeError as error:
        raise SpecError(f"{source} is not UTF-8 text (byte {error.start})") from None


def parse(text: str, name: str = "experiment") -> Document:
    """Return the document of a YAML text."""
    root = _compose(text, name)
    if not isinstance(root, yaml.MappingNode):
        raise SpecError(f"{name}: an experiment file is a mapping of keys, found {_kind(root)}")
    reader = _Reader(name)
    data = reader.value(root, ())
    return Document(data, reader.lines, name)


def parse_value(text: str, name: str) -> Any:
    """Return one value, by the rules of the file; `name` begins the message of an error.

    >>> parse_value("on", "--set x"), parse_value("{on: [held_out], wanted: true}", "--set x")
    ('on', {'on': ['held_out'], 'wanted': True})
    """
    root = _compose(text, name)
    return None if root is None else _Reader(name).value(root, ())


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"{name}{line}: not valid YAML ({problem})") from None
    return root


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Key, int] = {(): 1}
        self.nodes = 0
        self.scalars = _Loader("")

    def value(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        self.nodes += 1
        # An alias is visited once for every place that names it, so a bomb runs into the limit as it expands.
        if self.nodes > MAX_NODES or len(key) > 40:
            raise SpecError(f"{self.name} line {line}: more than {MAX_NODES} values after its aliases are expanded")
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise SpecError(
                f"{self.name} line {line}: the tag {node.tag!r} is not allowed; an experiment file has plain values only"
            )
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                at = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                    raise SpecError(f"{self.name} line {at}: a key must be a plain word, found {_kind(key_node)}")
                word = key_node.value
                if word in found:
                    dotted = ".".join(str(part) for part in (*key, word))
                    raise SpecError(f"{self.name} line {at}: {dotted} is given twice; keep one of the two")
                self.lines[(*key, word)] = at
                found[word] = self.value(value_node, (*key, word))
            return found
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        try:
            return self.scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            raise SpecError(
                f"{self.name} line {line}: {node.value!r} is not a valid {node.tag.rpartition(':')[2]} ({error})"
            ) from None


def _kind(node: Any) -> str:
    if node is None:
        return "nothing"
    return {"MappingNode": "a mapping", "SequenceNode": "a list", "ScalarNode": "a single value"}.get(
        type(node).__name__, "?"
    )
