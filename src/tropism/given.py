"""Text files that a person gives: read whole, or one sentence says why not."""

from pathlib import Path
from typing import Any

import yaml

from tropism.errors import TropismError
from tropism.unique_keys import KeyTwice, from_yaml


def read_text(path: Path, what: str, error: type[TropismError]) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises `error` where there is no such file or it is not such text; `what` says in the message who asked for it, an option
    (`--recipe`) or a kind of file.
    """
    if not path.is_file():
        raise error(f"{what}: no such file: {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as damage:
        raise error(f"{what}: {path} is not UTF-8 text (byte {damage.start}); save it as UTF-8") from None


def read_yaml(path: Path, what: str, error: type[TropismError]) -> Any:
    """What a YAML file holds; raises `error` as `read_text` does, and for a key that is given twice or text that is not YAML."""
    return parse_yaml(read_text(path, what, error), f"{what}: {path}", error)


def parse_yaml(text: str, where: str, error: type[TropismError]) -> Any:
    """What a YAML text holds; raises `error` for a key that is given twice, text that is not YAML, or nested too deep."""
    try:
        return from_yaml(text)
    except KeyTwice as twice:
        raise error(f"{where}: {twice}") from None
    except yaml.YAMLError as damage:
        raise error(f"{where} is not valid YAML ({str(damage).splitlines()[0]})") from None
    except RecursionError:
        raise error(f"{where} is not valid YAML (it is nested too deep)") from None
