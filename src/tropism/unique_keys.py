"""JSON and YAML in which every key of an object is given once.

Both formats' readers keep the last of two equal keys without a word, and what the first one said is gone.
"""

import json
from collections.abc import Hashable
from typing import Any

import yaml


class KeyTwice(ValueError):
    """An object gives one key two values."""

    def __init__(self, key: object) -> None:
        super().__init__(f"the key {key!r} is given twice; keep one of the two")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, as an `object_pairs_hook`; raises `KeyTwice`.

    >>> once([("a", 1), ("b", 2)])
    {'a': 1, 'b': 2}
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise KeyTwice(next(key for key in names if names.count(key) > 1))
    return found


def from_json(text: str) -> Any:
    """Read JSON; raises `KeyTwice`, and what `json.loads` raises."""
    return json.loads(text, object_pairs_hook=once)


def from_yaml(text: str) -> Any:
    """Read YAML without tags; raises `KeyTwice`, and `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but for keys that are there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            # `<<` may stand there several times; what it merges may be said anew, which is what it is for.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)  # type: ignore[no-untyped-call]
            if isinstance(name, Hashable):
                if name in seen:
                    raise KeyTwice(name)
                seen.add(name)
        return super().construct_mapping(node, deep)
