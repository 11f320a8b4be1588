"""The JSON Schema says what the file's check says: it is complete, current, and agrees on files good and bad."""

import json
from pathlib import Path

import jsonschema
import pytest

from command import tropism
from spec_text import TEXT
from tropism.errors import SpecError
from tropism.evals.scorers.registry import scorer_names
from tropism.experiments.analyses import ANALYSES
from tropism.experiments.file import guards
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.schema import experiment_schema
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.file.yaml_file import parse, read

ROOT = Path(__file__).parents[4]
SCHEMA = experiment_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
OURS = scorer_names()
"""As they are when the schema is made: other tests register scorers of their own."""


def described(schema, path="file"):
    """Every property of every object of the schema, with its description or None."""
    if isinstance(schema, list):
        for item in schema:
            yield from described(item, path)
    if isinstance(schema, dict):
        for name, value in schema.get("properties", {}).items():
            if not {"$ref", "anyOf"} & set(value) or "description" in value or "const" in value:
                yield f"{path}.{name}", value.get("description") or value.get("const")
        for key, value in schema.items():
            yield from described(value, f"{path}.{key}" if key != "properties" else path)


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_every_key_and_every_option_has_a_description():
    found = dict(described(SCHEMA))
    assert len(found) > 150
    assert [path for path, text in found.items() if not text] == []
    own = {name: value.get("description") for name, value in SCHEMA["properties"].items()}
    assert set(own) == {field.alias or name for name, field in ExperimentSpec.model_fields.items()}
    assert all(own.values())


def test_everything_registered_is_in_it():
    text = json.dumps(SCHEMA)
    for name in [*guards.GUARDS, *guards.AFTER, *guards.FINDERS, *ANALYSES]:
        assert f'"{name}":' in text
    for name in OURS:
        assert f'"const": "{name}"' in text


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_agrees_with_it(file):
    VALIDATOR.validate(read(file).data)


def test_a_resolved_file_agrees_with_it():
    VALIDATOR.validate(Experiment.from_text(TEXT).resolved())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model:", "modle:"),
        ("seeds: [0, 1, 2]", "seeds: 3"),
        ("r: 8", "r: 0"),
        ("transform: uppercase", "transform: upercase"),
        ("transform: uppercase", "transform: {mixture: {fractoin: 0.5}}"),
        ("{transform: plain}", "{transfrom: plain}"),
        ("ablation:", "ablate:"),
        ("directions: caps}", "directions: caps, mode: sideways}"),
        ("directions: caps}", "mode: both}"),
        ("sites: 25%..75%", "finder: svd"),
        ("sites: 25%..75%", "finder: {pca: {components: 3}}"),
        ("wanted: true", "toleranse: 1"),
        ("quick:", "analyses: {presure: {}}\nquick:"),
        ("quick:", "analyses: {routing: {trate: x}}\nquick:"),
        ("quick: {seeds: [0]}", "quick: {sedes: [0]}"),
    ],
)
def test_the_schema_and_the_check_refuse_the_same(old, new):
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    with pytest.raises(SpecError):
        Experiment.from_text(text, quick="quick:" in old and "sedes" in new)
    assert not VALIDATOR.is_valid(parse(text).data)


def test_a_scorer_of_the_users_may_have_any_option():
    text = TEXT.replace("scorer: final_number", "scorer: mine, strictness: 3")
    assert VALIDATOR.is_valid(parse(text).data)


def test_the_published_file_is_current():
    """`make schema` writes it anew."""
    printed = tropism("schema")
    assert (ROOT / "docs" / "experiment.schema.json").read_text(encoding="utf-8") == printed.stdout
