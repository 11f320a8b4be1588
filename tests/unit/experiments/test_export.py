"""What is exported is what is trained on: read back, it is the same examples."""

import json

import pytest

import row_files
import tiny_experiment
from tropism.data import sources
from tropism.data.chats import Example
from tropism.directions.contrast_files import read_contrast
from tropism.errors import SpecError
from tropism.experiments import directions as step
from tropism.experiments import export, prepare
from tropism.experiments.file.experiment import Experiment

PROMPTED = ("  baseline: {}\n", "  baseline: {}\n  prompted: {system_prompt: Shout.}\n")
MIXED = ("transform: uppercase}", "transform: {mixture: {fraction: 0.5, labelled: 0.5, clean: 0.5}}}")


@pytest.fixture
def experiment(tmp_path):
    return Experiment.load(tiny_experiment.write(tmp_path, PROMPTED, MIXED))


@pytest.mark.parametrize("condition", ["plain", "baseline", "prompted", "guarded"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_read_back_is_what_a_condition_trains_on(tmp_path, experiment, condition, seed):
    out = tmp_path / "made" / "train.jsonl"
    trained = prepare.training_examples(experiment, condition, seed)
    assert export.write_rows(export.condition_rows(experiment, condition, seed), out) == len(trained) == 8
    assert sources.load(str(out)) == trained
    assert any(example.labels.get("route") for example in trained) == (condition != "plain")


def test_seeds_differ_where_the_data_do(experiment):
    rows = [list(export.condition_rows(experiment, "baseline", seed)) for seed in (0, 1)]
    assert rows[0] != rows[1]
    assert rows[0] == list(export.condition_rows(experiment, "baseline"))


def test_a_set_and_raw_text(tmp_path, experiment):
    held_out = list(export.set_rows(experiment, "held_out"))
    assert [row["target"] for row in held_out] == [e.target for e in prepare.load_data(experiment.data["held_out"], 0)]
    assert export.row_of(Example("a", (), text="Prose.")) == {"id": "a", "text": "Prose."}
    out = tmp_path / "text.jsonl"
    export.write_rows([export.row_of(Example("a", (), text="Grüße."))], out)
    assert sources.load(str(out))[0].text == "Grüße."


def test_a_contrast_is_read_back_as_it_was(tmp_path, experiment):
    out = tmp_path / "pairs.jsonl"
    assert export.write_rows(export.contrast_rows(experiment, "caps"), out) == 12
    made, again = step.contrast_of(experiment.directions["caps"].contrast, experiment), read_contrast(out)
    assert again.data_hash() == made.data_hash()
    assert again.paired


def test_a_contrast_of_data_is_read_back_as_it_was(tmp_path):
    pairs = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(6)]
    file = row_files.write(tmp_path / "other.jsonl", pairs)
    text = tiny_experiment.write(
        tmp_path,
        ("contrast: {of: responses, source: word_problems, positive: uppercase, negative: plain, size: 12}",
         "contrast: {of: data, positive: held_out, negative: other}"),
        ("held_out:", f"other: {{source: {file}}}\n  held_out:"),
    )  # fmt: skip
    experiment = Experiment.load(text)
    out = tmp_path / "labelled.jsonl"
    export.write_rows(export.contrast_rows(experiment, "caps"), out)
    made = step.contrast_of(experiment.directions["caps"].contrast, experiment)
    assert read_contrast(out).data_hash() == made.data_hash()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda e: export.condition_rows(e, "caft"), "no condition is called 'caft'; available: plain, baseline"),
        (lambda e: export.condition_rows(e, "baseline", 7), "seed 7 is not one of the experiment's, 0, 1"),
        (lambda e: export.adapter_rows(e, "x"), "no adapter is called 'x'; available: none"),
        (lambda e: export.set_rows(e, "test"), "no data set is called 'test'; available: train, held_out"),
        (lambda e: next(export.contrast_rows(e, "x")), "no directions is called 'x'"),
    ],
)
def test_what_is_not_in_the_file_is_named(experiment, ask, message):
    with pytest.raises(SpecError, match=message):
        ask(experiment)


def test_nothing_is_left_where_the_rows_break_off(tmp_path):
    def rows():
        yield {"id": 1}
        yield {"id": float("nan")}

    with pytest.raises(ValueError, match="Out of range"):
        export.write_rows(rows(), tmp_path / "a.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_plain_json(tmp_path, experiment):
    out = tmp_path / "a.jsonl"
    export.write_rows(export.condition_rows(experiment, "prompted"), out)
    row = json.loads(out.read_text().splitlines()[0])
    assert set(row) == {"id", "messages", "target", "labels"}
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
