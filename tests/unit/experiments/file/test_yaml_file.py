"""YAML is read without tags, duplicates or alias bombs."""

import pytest

from spec_text import TEXT
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.yaml_file import parse, parse_value

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in ("ab", "bc", "cd", "de", "ef")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + TEXT, "more than 20000 values after its aliases are expanded"),
        ("x: !!python/object/apply:os.system [echo]\n" + TEXT, "line 1: the tag .* is not allowed"),
        ("x: !Custom y\n" + TEXT, "the tag '!Custom' is not allowed"),
        ("- a\n- b\n", "an experiment file is a mapping of keys, found a list"),
        ("", "found nothing"),
        ("name: [caps\nmodel: x", r"line 2: not valid YAML"),
        ("? [a, b]\n: c\n", "line 1: a key must be a plain word"),
        ("x: " + "[" * 60 + "]" * 60, "line 1"),
    ],
)
def test_yaml_that_is_none_or_does_harm_is_refused(text, message):
    with pytest.raises(SpecError, match=message):
        Experiment.from_text(text)


def test_a_missing_file_and_a_binary_one_are_named(tmp_path):
    with pytest.raises(SpecError, match="no experiment file at .*nothing.yaml"):
        Experiment.load(tmp_path / "nothing.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SpecError, match=r"b.yaml is not UTF-8 text \(byte 0\)"):
        Experiment.load(tmp_path / "b.yaml")


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "Yes", "y", "2024-01-31"])
def test_only_true_and_false_are_truth_values_and_a_date_is_text(word):
    assert parse_value(word, "--set x") == word
    assert parse(f"a: {word}\n{word}: [{word}]").data == {"a": word, word: [word]}


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("", None), ("1.0e-3", 1e-3), ("[1, a]", [1, "a"])]
)
def test_a_value_is_read_as_in_the_file(text, value):
    assert parse_value(text, "--set x") == value
    assert parse(f"a: {text}").data == {"a": value}


def test_a_value_that_is_not_yaml_names_its_option():
    with pytest.raises(SpecError, match=r"--set train.lora line 1: not valid YAML"):
        parse_value("{r: ", "--set train.lora")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2E4", 20000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.5e+1", -5.0),
        ("010", 10),
        ("-08", -8),
        ("1_000", 1000),
        ("0x10", 16),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("e3", "e3"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_numbers_are_those_that_a_person_reads(text, value):
    found = parse(f"key: {text}").data["key"]
    assert (type(found), found) == (type(value), value)
