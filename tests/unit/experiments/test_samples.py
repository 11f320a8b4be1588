"""Several responses to a prompt: each from its own seed, averaged within its prompt, and no more certain for being more."""

import json

import pandas as pd
import pytest
import yaml

import tiny_experiment
import tropism as tp
from tropism.data.generation import GenerateOptions, cut_before
from tropism.errors import SpecError
from tropism.experiments.file.yaml_file import parse
from tropism.experiments.identity import evaluate_identity
from tropism.experiments.store import RunKey
from tropism.results.folder import load
from tropism.results.summary import Cells, compare, estimate


def file(path, **generate):
    made = parse(tiny_experiment.text(path)).data
    made["generate"] = {"max_new_tokens": 6, "dtype": "float32", **generate}
    made |= {"seeds": [0], "conditions": {"baseline": {}}, "directions": {}}
    made["measure"]["letters"] = {"scorer": "contains", "text": "e", "on": ["held_out"]}
    return made


def test_every_sample_is_drawn_scored_and_kept(tmp_path):
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(file(tmp_path, samples=2, temperature=1.0)), encoding="utf-8")
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(file(tmp_path, temperature=1.0)), encoding="utf-8")
    results = tp.run(tmp_path / "two.yaml", tmp_path / "two")
    tp.run(tmp_path / "one.yaml", tmp_path / "one")
    rows = [
        json.loads(line) for line in (tmp_path / "two/base/responses.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    alone = [
        json.loads(line) for line in (tmp_path / "one/base/responses.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["sample"] for row in rows] == [0, 0, 0, 1, 1, 1]
    # The first sample is what one sample is, and the second is another.
    assert [row["response"] for row in rows[:3]] == [row["response"] for row in alone]
    assert [row["response"] for row in rows[3:]] != [row["response"] for row in alone]
    assert "sample" not in alone[0]
    # The loss is of the reference, so it has one score a prompt.
    assert ["loss" in row["scores"] for row in rows] == [True] * 3 + [False] * 3
    counts = results[results["condition"] == "base"].set_index("metric")
    assert counts.loc["letters", "n"] + counts.loc["letters", "unscored"] == 6
    assert counts.loc["loss", "n"] == 3
    scores = load(tmp_path / "two").scores
    letters = scores[(scores["metric"] == "letters") & (scores["condition"] == "base")]["value"]
    assert counts.loc["letters", "value"] == pytest.approx(letters.mean())


@pytest.mark.parametrize("seeds", [[0, 1, 2], [None]])
def test_equal_samples_change_nothing_in_any_interval(seeds):
    values = [0.0, 1.0, 0.5, 0.25, 1.0, 0.0]

    def cells(shift, count):
        rows = [(s, f"p{p}", (v * (1 + 0.1 * (s or 0)) + shift) / 2) for s in seeds for p, v in enumerate(values)]
        table = pd.DataFrame(rows * count, columns=["seed", "id", "value"]).astype({"seed": "Int64"})
        return Cells(table, True)

    assert estimate(cells(0.0, 1)) == estimate(cells(0.0, 2))
    once, often = compare(cells(0.2, 1), cells(0.0, 1)), compare(cells(0.2, 2), cells(0.0, 2))
    assert once is not None
    assert often is not None
    assert once[0] == often[0]
    # Nothing but the same answer, whatever its count: the exact interval is over prompts, not over samples.
    assert estimate(Cells(cells(0.0, 1).table.assign(value=0.0), True)) == estimate(
        Cells(cells(0.0, 2).table.assign(value=0.0), True)
    )


def test_options_that_are_not_used_leave_the_identity_alone(tmp_path):
    plain = GenerateOptions(temperature=1.0)
    assert set(plain.in_use()) == {"max_new_tokens", "batch_size", "temperature", "top_p", "dtype"}
    held = plain.in_use()
    assert GenerateOptions(temperature=1.0, samples=3).in_use() == {**held, "samples": 3}
    one = tp.Experiment.from_text(yaml.safe_dump(file(tmp_path)))
    other = tp.Experiment.from_text(yaml.safe_dump(file(tmp_path, stop=["e"])))
    key = RunKey("base", None)
    assert evaluate_identity(one, {"name": "m"}, key) != evaluate_identity(other, {"name": "m"}, key)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, "samples does nothing at temperature 0"),
        ({"top_k": 5}, "top_k does nothing at temperature 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens must be at most max_new_tokens"),
    ],
)
def test_an_option_that_does_nothing_is_refused(tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        tp.Experiment.from_text(yaml.safe_dump(file(tmp_path, **options)))


def test_a_response_is_cut_before_the_first_stop():
    assert cut_before("one\n\nQ: two", ["Q:", "\n\n"]) == "one"
    assert cut_before("one", ["two"]) == "one"
