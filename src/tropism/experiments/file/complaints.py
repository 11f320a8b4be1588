"""How a mistake in an experiment file is said: one sentence with file, line, key, the value found and what is allowed."""

from typing import Any

from pydantic import BaseModel, ValidationError

from tropism.errors import SpecError
from tropism.experiments.file.yaml_file import Document, Key


class At(Exception):
    """A complaint with the key it is about, on its way to the one place that knows the line."""

    def __init__(self, key: Key, message: str) -> None:
        super().__init__(message)
        self.key = key


class Under:
    """Gives an error from inside (a guard's, a scorer's) the key under which the file caused it."""

    def __init__(self, key: Key) -> None:
        self.key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SpecError):
            raise At(self.key, str(error)) from None


def first_complaint(error: ValidationError, document: Document, root: type[BaseModel]) -> str:
    """One sentence with file, line and key, of the most specific thing that pydantic found."""
    # The most specific complaint: a union reports each of its members, and the deepest one is what the user meant.
    details = max(error.errors(), key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    key: Key = tuple(
        part
        for part in details["loc"]
        if not (isinstance(part, str) and ("[" in part or part in ("str", "dict", "list", "int", "float", "bool")))
    )
    return f"{document.where(key)}: {message(error, details, root)}"


def message(error: ValidationError, details: Any = None, root: type[BaseModel] | None = None) -> str:
    """What is wrong, what was found and what is allowed, without the place."""
    details = details or error.errors()[0]
    found = details["input"]
    if details["type"] == "extra_forbidden":
        return "unknown key" if root is None else f"unknown key; available: {listed(_allowed(details['loc'], root))}"
    if details["type"] == "missing":
        return "is required and missing"
    if isinstance(found, str) and _is_number(found) and details["type"].startswith(("float", "int")):
        return f"must be a number, but YAML reads {found!r} as a string; write {float(found)!r}, without quotes"
    text = details["msg"].removeprefix("Value error, ")
    return f"{text[0].lower()}{text[1:]}, found {found!r:.80}"


def _allowed(loc: tuple[str | int, ...], root: type[BaseModel]) -> list[str]:
    current: Any = root
    for part in loc[:-1]:
        field = (
            current.model_fields.get(str(part))
            if isinstance(current, type) and issubclass(current, BaseModel)
            else None
        )
        annotation = field.annotation if field is not None else current
        current = _model_in(annotation) or current
    return [field.alias or name for name, field in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def listed(names: Any) -> str:
    """Names for the end of a sentence."""
    return ", ".join(str(name) for name in names) or "none"
