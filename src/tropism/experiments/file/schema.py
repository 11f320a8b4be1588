"""The JSON Schema of an experiment file, for editors and other programs: every key and every registered option.

The keys come from `ExperimentSpec`, the options of guards, finders, transforms, scorers and analyses from the classes
that the code runs on, so the schema cannot say anything that the file's own check does not.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from tropism.data.sources import NAMES
from tropism.data.transforms import TRANSFORMS
from tropism.evals.scorers.base import SCORERS
from tropism.evals.scorers.registry import option_names, scorer_names
from tropism.experiments.analyses import ANALYSES, RENAMED, analysis_class
from tropism.experiments.file import guards
from tropism.experiments.file.descriptions import descriptions
from tropism.experiments.file.options import shape_of
from tropism.experiments.file.spec import DataSpec, ExperimentSpec, MeasureSpec
from tropism.training.options import TrainOptions

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
URL = "https://tropism-dev.github.io/tropism/experiment.schema.json"
"""Where the docs publish it, for an editor to read."""
PARAMETER_DIRECTIONS: Mapping[str, tuple[Json, str]] = {
    "adapter": ({"type": "string"}, "A prepared adapter: the direction that it learned."),
    "adapters": ({"type": "array", "items": {"type": "string"}}, "Several prepared adapters: a subspace."),
    "difference": (
        {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
        "Two prepared adapters: what the first learned beyond the second.",
    ),
    "file": ({"type": "string"}, "A file of parameter directions."),
}


def experiment_schema() -> Json:
    """Return the schema of an experiment file (JSON Schema 2020-12)."""
    schema = ExperimentSpec.model_json_schema()
    defs: Json = schema["$defs"]
    guard = _choices("guard", guards.GUARDS, guards.shape, defs)
    after = _choices("after", guards.AFTER, guards.shape, defs)
    finder = _choices("finder", guards.FINDERS, lambda name: (shape_of(cls := guards.finder_class(name)), cls), defs)
    transform = _choices("transform", TRANSFORMS, lambda name: (shape_of(TRANSFORMS[name]), TRANSFORMS[name]), defs)
    analyses = _choices("analysis", [*ANALYSES, *RENAMED], lambda name: (cls := analysis_class(name), cls), defs)

    _set(defs["DataSpec"], "source", {"anyOf": [{"enum": list(NAMES)}, {"type": "string"}, {"type": "null"}]})
    _set(
        defs["DataSpec"],
        "transform",
        {"anyOf": [*_named(transform), {"type": "array", "items": {"anyOf": _named(transform)}}]},
    )
    for side in ("positive", "negative"):
        _set(defs["ContrastSpec"], side, {"anyOf": [*_named(transform), {"type": "string"}, {"type": "null"}]})
    _set(defs["DirectionsSpec"], "finder", {"anyOf": [*_named(finder), {"type": "null"}]})
    _set(defs["AdapterSpec"], "train", _reference(TrainOptions))
    _set(defs["ConditionSpec"], "train", _reference(TrainOptions))
    _set(defs["ConditionSpec"], "data", _reference(DataSpec))
    _set(defs["ConditionSpec"], "guard", _composition(guard))
    _set(defs["ConditionSpec"], "after", _composition(after))
    defs["MeasureSpec"] = _measure(defs)
    parameter = {name: {**kind, "description": told} for name, (kind, told) in PARAMETER_DIRECTIONS.items()}
    _set(
        schema,
        "parameter_directions",
        _mapping(
            {
                "type": "object",
                "properties": parameter,
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            }
        ),
    )
    _set(schema, "analyses", {"type": "object", "properties": analyses, "additionalProperties": False})
    _set(schema, "quick", _partial(schema))
    return {"$schema": DIALECT, "$id": URL, "title": "Tropism experiment", **_without_titles(schema)}


def _choices(
    what: str, names: Iterable[str], shape: Callable[[str], tuple[type[BaseModel], type]], defs: Json
) -> dict[str, Json]:
    """Return name → a reference to the schema of its options, which is added to `defs`."""
    found: dict[str, Json] = {}
    for name in names:
        options, cls = shape(name)
        key = f"{what}.{name}"
        defs[key] = _options_schema(options, cls, defs)
        reference = {"$ref": f"#/$defs/{key}"}
        found[name] = reference if defs[key].get("required") else {"anyOf": [reference, {"type": "null"}]}
    return found


def _options_schema(options: type[BaseModel], cls: type, defs: Json) -> Json:
    """Return the schema of a class's options, with what the class and each option mean."""
    schema = options.model_json_schema()
    defs |= schema.pop("$defs", {})
    told = descriptions(cls)
    for name, option in schema.get("properties", {}).items():
        if name in told:
            option["description"] = told[name]
    schema["description"] = _first_sentence(cls)
    return schema


def _first_sentence(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _named(choices: dict[str, Json]) -> list[Json]:
    """A name, or one name with its options."""
    one = {
        "type": "object",
        "properties": choices,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return [{"enum": list(choices)}, one]


def _composition(choices: dict[str, Json]) -> Json:
    """Nothing, a mapping of one or several, or a list of such."""
    some = {"type": "object", "properties": choices, "additionalProperties": False}
    return {"anyOf": [{"type": "null"}, some, {"type": "array", "items": some}]}


def _mapping(of: Json) -> Json:
    return {"type": "object", "additionalProperties": of}


def _measure(defs: Json) -> Json:
    """A metric: its own keys, and beside them the options of its scorer; of a scorer of the user's, any."""
    own = MeasureSpec.model_json_schema()
    shared = {name: value for name, value in own["properties"].items() if name != "scorer"}
    kinds: list[Json] = []
    for name in scorer_names():
        options = _options_schema(shape_of(SCORERS[name]), SCORERS[name], defs)
        taken = option_names(SCORERS[name])
        kinds.append(
            {
                "type": "object",
                "description": options["description"],
                "properties": {"scorer": {"const": name}, **shared, **{o: options["properties"][o] for o in taken}},
                "required": ["scorer", "on", *options.get("required", [])],
                "additionalProperties": False,
            }
        )
    theirs = {
        "type": "string",
        "not": {"enum": scorer_names()},
        "description": own["properties"]["scorer"]["description"],
    }
    kinds.append({"type": "object", "properties": {"scorer": theirs, **shared}, "required": ["scorer", "on"]})
    return {"description": own["description"], "anyOf": kinds}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/$defs/{model.__name__}"}


def _set(owner: Json, name: str, value: Json) -> None:
    """Replace a property's schema and keep its description and default."""
    kept = {
        key: owner["properties"][name][key] for key in ("description", "default") if key in owner["properties"][name]
    }
    owner["properties"][name] = {**value, **kept}


def _partial(schema: Json) -> Json:
    """Return a schema in which nothing is required: for `quick:`, whose keys are merged over the file's."""
    defs: Json = schema["$defs"]
    for name in list(defs):
        defs[f"{name}.partial"] = _without_required(defs[name])
    properties = {name: _without_required(value) for name, value in schema["properties"].items() if name != "quick"}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _without_titles(value: Any) -> Any:
    """Drop the titles that pydantic makes of every key: an editor would show them before the description."""
    if isinstance(value, list):
        return [_without_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_titles(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))}


def _without_required(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_required(item) for item in value]
    if not isinstance(value, dict):
        return copy.copy(value)
    return {
        key: f"{item}.partial" if key == "$ref" else _without_required(item)
        for key, item in value.items()
        if key not in ("required", "minProperties")
    }
