"""From `name` or `{name: {options}}` in a file to the frozen dataclass that the code runs on."""

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema, create_model

from tropism.errors import SiteError, SpecError, UsageError

if TYPE_CHECKING:
    from tropism.site import Site

T = TypeVar("T")


def name_and_options(named: str | Mapping[str, Any], what: str) -> tuple[str, dict[str, Any]]:
    """Split `name` or `{name: {options}}`."""
    if isinstance(named, str):
        return named, {}
    if len(named) != 1:
        raise SpecError(f"a {what} is a name or one {{name: {{options}}}}, found the keys {', '.join(named) or 'none'}")
    name, options = next(iter(named.items()))
    if options is not None and not isinstance(options, Mapping):
        raise SpecError(f"{what} {name!r}: its options must be a mapping, found {options!r:.60}")
    return name, dict(options or {})


def from_options(named: str | Mapping[str, Any], registry: Mapping[str, type[T]], what: str) -> T:
    """Build the registered dataclass, its options checked against its own fields; raises `SpecError`."""
    name, options = name_and_options(named, what)
    if name not in registry:
        raise SpecError(f"unknown {what} {name!r}; available: {', '.join(registry)}")
    cls = registry[name]
    given = validated(shape_of(cls), options, f"{what} {name!r}")
    try:
        return cls(**given)
    except SpecError:
        raise
    except UsageError as error:
        # A class that is used outside files has errors of its own; here they are the file's.
        raise SpecError(f"{what} {name!r}: {error}") from None


def shape_of(
    cls: type, replaced: Mapping[str, Any] | None = None, added: Mapping[str, Any] | None = None
) -> type[BaseModel]:
    """Return a strict pydantic model of a dataclass's own fields.

    `replaced` gives other types for fields that a file writes as a word; `added` gives further `(type, default)`.
    """
    hints = get_type_hints(cls)
    shape: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.init:
            kind = (replaced or {}).get(f.name, _in_a_file(hints[f.name]))
            shape[f.name] = (kind, _default(f))
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    made: type[BaseModel] = create_model(cls.__name__, __config__=config, **shape, **(added or {}))
    return made


def validated(shape: type[BaseModel], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the options, checked and with defaults; a complaint is one sentence."""
    for key in options:
        if key not in shape.model_fields:
            raise SpecError(f"{what} has no option {key!r}; its options are {', '.join(shape.model_fields) or 'none'}")
    try:
        # As JSON, because a file has no tuples: a list stands for one.
        checked = shape.model_validate_json(json.dumps(dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise SpecError(f"{what} needs the option {key!r}") from None
        raise SpecError(
            f"{what}: option {key!r}: {first['msg'].removeprefix('Value error, ')}, found {first['input']!r}"
        ) from None
    return {name: getattr(checked, name) for name in shape.model_fields}


def _default(f: "Field[Any]") -> Any:
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else ...


def _site(value: Any) -> Any:
    from tropism.site import Site

    if isinstance(value, Site):
        return value
    try:
        return Site.parse(str(value))
    except SiteError as error:
        raise ValueError(str(error).rpartition(", found")[0]) from None


def _in_a_file(kind: Any) -> Any:
    """Return the type by which a file writes a field: a site is written as text."""
    # A class that has a site has imported it; what has none, like `tropism status`, does without torch.
    loaded = sys.modules.get("tropism.site")
    if loaded is None:
        return kind
    site: type[Site] = loaded.Site
    as_text = WithJsonSchema({"type": ["string", "integer"], "examples": [12, "resid_post.12"]})
    in_file = Annotated[site, BeforeValidator(_site), as_text]  # type: ignore[valid-type]
    if kind is site:
        return in_file
    if kind == site | None:
        return in_file | None
    return kind
