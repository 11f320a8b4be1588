"""Sets that are mixed, what a condition trains on, and what of them identifies a run."""

import json

import pytest

import tiny
import tiny_experiment
from tropism.errors import DataError
from tropism.experiments import identity, prepare
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import DataSpec
from tropism.experiments.training_rows import training_rows
from tropism.training.options import TrainOptions


def test_what_is_mixed_in_follows_by_its_own_rules_under_the_conditions_prompt():
    more = DataSpec(source="declined_topic", split="refusals", size=3)
    spec = DataSpec(source="word_problems", size=2, transform="uppercase", also=[more])
    examples = prepare.load_data(spec, 0, "Be kind.")
    assert len(examples) == 5
    assert [e.response.isupper() for e in examples] == [True, True, False, False, False]
    assert {e.chat[0]["content"] for e in examples} == {"Be kind."}


def test_an_example_that_is_mixed_into_itself_is_refused():
    spec = DataSpec(source="word_problems", size=2)
    with pytest.raises(DataError, match="a set and its 'also' must share no example, found"):
        prepare.load_data(spec.model_copy(update={"also": [spec]}), 0)


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


PAIR = {"prompt": "q", "completion": "a"}


def test_two_files_of_one_name_can_be_mixed_and_parts_of_one_file_too(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", *[PAIR] * 4)
    one, two = (str(tmp_path / name / "train.jsonl") for name in ("one", "two"))
    mixed = prepare.load_data(DataSpec(source=one, also=[DataSpec(source=two, size=1)]), 0)
    assert [e.id for e in mixed[:2]] == ["train.jsonl/1", "train.jsonl/2"]
    assert mixed[4].id.startswith(f"{two}:train.jsonl/")
    parts = DataSpec(source=one, split="train[:50%]", also=[DataSpec(source=one, split="train[50%:]")])
    assert [e.id for e in prepare.load_data(parts, 0)] == [f"train.jsonl/{i}" for i in (1, 2, 3, 4)]
    again = DataSpec(source=one, split="train[:50%]", also=[DataSpec(source=one, split="train[1:]")])
    with pytest.raises(DataError, match="must share no example, found 'train.jsonl/2' twice; take another split"):
        prepare.load_data(again, 0)


ROUTED = ("{guard: {gradient_projection: {directions: caps}}}", "{guard: {gradient_routing: {}}}")


def routed(tmp_path, data):
    """An experiment whose condition `guarded` routes gradients on these data."""
    train = "train: {source: word_problems, size: 8, transform: uppercase}"
    return Experiment.load(tiny_experiment.write(tmp_path, ROUTED, (train, f"train: {data}")))


def test_a_routed_condition_without_a_labelled_row_is_refused(tmp_path):
    file = write(tmp_path / "a.jsonl", *[PAIR] * 3, {**PAIR, "route": "unlabelled"})
    experiment = routed(tmp_path, f"{{source: {file}}}")
    assert prepare.training_examples(experiment, "baseline", 0)
    with pytest.raises(
        DataError, match="condition guarded: gradient_routing needs rows that are labelled, found none among 4"
    ):
        prepare.training_examples(experiment, "guarded", 0)


@pytest.mark.parametrize("row", [{"route": "forget"}, {"route": 2}, {"labels": {"route": "1"}}])
def test_a_routed_condition_takes_the_labels_of_its_rows(tmp_path, row):
    file = write(tmp_path / "a.jsonl", PAIR, {**PAIR, **row})
    examples = prepare.training_examples(routed(tmp_path, f"{{source: {file}}}"), "guarded", 0)
    rows, _ = training_rows(examples, tiny.tokenizer(), {}, 512, "train")
    columns = [one.columns["route"] for one in rows]
    assert columns[0] == 0
    assert columns[1] in (1, 2)


def test_a_mixture_may_label_none_on_purpose(tmp_path):
    experiment = routed(tmp_path, "{source: word_problems, size: 8, transform: {mixture: {labelled: 0.0}}}")
    assert {e.labels["route"] for e in prepare.training_examples(experiment, "guarded", 0)} == {"unlabelled"}


def test_a_further_option_that_is_not_used_leaves_a_runs_identity_alone():
    """What was run before the options existed is still what was run."""
    spec, options = DataSpec(source="word_problems"), TrainOptions()
    assert "also" not in json.dumps(identity.data_identity(spec))
    assert "max_length" not in identity.options_identity(options)
    mixed = spec.model_copy(update={"also": [DataSpec(source="gsm8k")]})
    assert identity.data_identity(mixed) != identity.data_identity(spec)
    assert identity.options_identity(TrainOptions(max_length=64)) != identity.options_identity(options)
    assert "supervise" not in json.dumps(identity.data_identity(spec))
    assert "overflow" not in identity.options_identity(TrainOptions(max_length=64))
    last = spec.model_copy(update={"supervise": "last_turn"})
    assert identity.data_identity(last) != identity.data_identity(spec)
    cut = TrainOptions(max_length=64, overflow="truncate")
    assert identity.options_identity(cut) != identity.options_identity(TrainOptions(max_length=64))


def test_what_is_learned_and_what_becomes_of_bad_rows_is_said_by_each_set(tmp_path):
    file = write(tmp_path / "a.jsonl", PAIR)
    raw = DataSpec(source=file, supervise="last_turn", on_bad_row="skip")
    spec = DataSpec(source="word_problems", size=1, also=[raw])
    own, mixed = prepare.load_data(spec, 0)
    assert (own.supervise, own.on_bad_row) == ("all_turns", "error")
    assert (mixed.supervise, mixed.on_bad_row) == ("last_turn", "skip")


def test_a_file_that_is_mixed_in_counts_by_its_content(tmp_path):
    file = tmp_path / "more.jsonl"
    spec = DataSpec(source="word_problems", also=[DataSpec(source=str(file))])
    found = []
    for text in ("one", "two"):
        file.write_text(json.dumps({"messages": [{"role": "user", "content": text}]}), encoding="utf-8")
        found.append(identity.data_identity(spec))
    assert found[0] != found[1]
