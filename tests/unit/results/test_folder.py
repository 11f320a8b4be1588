"""Reading an experiment's folder: what is damaged is named with file and line, what must not be averaged is kept apart."""

import dataclasses
import json

import pandas as pd
import pytest

import fake_runs
from tropism.errors import RunFolderError
from tropism.reports.page import _extent
from tropism.results.caveats import caveats
from tropism.results.folder import check_results, load
from tropism.results.measurement import RESULT_COLUMNS
from tropism.results.section import Section
from tropism.results.summary import summary_table


@pytest.fixture
def folder(tmp_path):
    return fake_runs.caps(tmp_path / "caps", prompts=8, conditions=("plain", "baseline", "caft"), steps=5)


def rewrite(path, change):
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def test_loads_what_the_run_wrote(folder):
    loaded = load(folder)
    assert loaded.name == "caps"
    assert [run.state for run in loaded.runs] == ["done"] * 10
    assert set(loaded.results["condition"]) == {"base", "plain", "baseline", "caft"}
    assert len(loaded.responses) == 10 * 16
    assert loaded.scores["value"].isna().sum() == loaded.scores["unscored"].notna().sum()
    assert list(loaded.validity) == ["caps"]
    assert loaded.unusable == 0


def test_answers_that_were_cut_off_are_said(folder):
    def cut(run, **found):
        rewrite(folder / run / "DONE.json", lambda text: json.dumps({**json.loads(text), "cut": found}))

    cut("baseline/seed-0", in_domain=[1, 8], out_of_domain=[0, 8])
    cut("baseline/seed-1", in_domain=[6, 8], out_of_domain=[0, 8])
    cut("caft/seed-0", in_domain="damaged")
    loaded = load(folder)
    said = [text for text in caveats(loaded, summary_table(loaded.results, loaded.experiment)) if "Cut off" in text]
    assert len(said) == 1
    assert said[0].endswith(
        ": 7 of 16 answers on in domain had not ended (most in baseline/1, 6 of 8); they are scored as they stand."
    )


def test_the_base_model_has_no_seed(folder):
    loaded = load(folder)
    assert loaded.results.loc[loaded.results["condition"] == "base", "seed"].isna().all()


def test_values_that_are_not_finite_are_kept_apart_and_said(folder):
    rewrite(folder / "results.csv", lambda text: text.replace(text.splitlines()[1].split(",")[6], "nan", 1))
    loaded = load(folder)
    assert loaded.unusable == 1
    assert loaded.results["value"].notna().all()
    summary = summary_table(loaded.results, loaded.experiment, loaded.scores)
    assert "1 measurement in results.csv had no finite value and is left out." in caveats(loaded, summary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("eval_set", "evalset", 1),
            "results.csv: lacks the column eval_set; expected experiment,",
        ),
        (lambda text: text + text.splitlines()[4] + "\n", "has a measurement twice"),
        (
            lambda text: text + "caps,plain,0,full,x,y,many,1,0\n",
            "column value, row .*: is not a number: 'many'",
        ),
        (lambda text: "", "cannot be read as CSV"),
    ],
)
def test_a_results_file_that_cannot_be_believed_is_refused(folder, change, message):
    rewrite(folder / "results.csv", change)
    with pytest.raises(RunFolderError, match=message):
        load(folder)


def test_a_damaged_line_is_named(folder):
    path = folder / "caft" / "seed-0" / "responses.jsonl"
    rewrite(path, lambda text: text.replace("\n", "\n{\n", 1))
    with pytest.raises(RunFolderError, match=r"responses.jsonl:2: is not valid JSON"):
        load(folder).responses  # noqa: B018


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("experiment.yaml", "a: [", "is not valid YAML"),
        ("experiment.yaml", "- 1", "must be a mapping, found list"),
        ("environment.json", "[1]", "must hold a JSON object, found list"),
        ("environment.json", "{", "is not valid JSON"),
        ("analyses/x.json", '{"name": "x"}', "is not an analysis that can be shown"),
    ],
)
def test_damaged_files_are_named(folder, name, text, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(RunFolderError, match=message):
        load(folder)


def test_a_folder_that_is_none_says_so(tmp_path):
    with pytest.raises(RunFolderError, match="not an experiment folder: experiment.yaml is missing"):
        load(tmp_path)


def test_unfinished_and_failed_runs_are_never_averaged(tmp_path):
    folder = fake_runs.caps(tmp_path / "f", prompts=8, conditions=("baseline", "caft"), failed=[("caft", 1)], steps=3)
    (folder / "caft" / "seed-2" / "DONE.json").unlink()
    loaded = load(folder)
    assert {run.state for run in loaded.runs if run.condition == "caft"} == {"done", "failed", "unfinished"}
    assert set(loaded.scores.loc[loaded.scores["condition"] == "caft", "seed"]) == {0}
    said = caveats(loaded, summary_table(loaded.results, loaded.experiment, loaded.scores))
    assert any("Failed and not averaged: caft, seed 1: the loss is not finite" in text for text in said)
    assert any("1 run of 7 did not finish" in text for text in said)


def test_caveats_and_extent_count_what_is_there(tmp_path):
    """Interrupted: of 5 seeds 2 have run, and the other conditions not at all."""
    folder = fake_runs.caps(
        tmp_path / "f", prompts=8, seeds=(0, 1, 2, 3, 4), steps=3, conditions=("baseline", "caft", "plain")
    )
    for done in (*folder.glob("*/seed-[234]/DONE.json"), *folder.glob("plain/*/DONE.json")):
        done.unlink(missing_ok=True)  # plain's later seeds are in both lists
    loaded = load(folder)
    kept = loaded.results[
        (loaded.results["condition"] != "plain") & (loaded.results["seed"].isna() | (loaded.results["seed"] < 2))
    ]
    said = caveats(loaded, summary_table(kept, loaded.experiment, loaded.scores))
    assert any(text.startswith("2 seeds: no interval over seeds is possible") for text in said)
    assert not any(text.startswith("5 seeds") for text in said)
    assert (
        "11 runs of 16 did not finish and are left out: baseline/2, baseline/3, baseline/4, caft/2, caft/3, caft/4 …"
        in said
    )
    assert _extent(loaded) == "2 of 3 conditions, 4 of 15 runs"


def test_what_was_unscored_is_counted_among_all_responses(folder):
    """`n` is what was scored, so that what was not comes on top."""
    loaded = load(folder)
    summary = summary_table(loaded.results, loaded.experiment, loaded.scores)
    summary = summary.assign(n=30, unscored=10).head(1)
    assert any("Unscored: 10 of 40 responses (25%)" in text for text in caveats(loaded, summary))


def test_a_whole_experiment_is_conditions_times_seeds(folder):
    assert _extent(load(folder)) == "3 conditions × 3 seeds"


def test_the_base_model_that_did_not_finish_is_named_without_a_seed(folder):
    (folder / "base" / "DONE.json").unlink()
    loaded = load(folder)
    said = caveats(loaded, summary_table(loaded.results, loaded.experiment, loaded.scores))
    assert "1 run of 10 did not finish and is left out: base." in said


def test_roles_that_were_assumed_are_said_where_a_verdict_rests_on_them(tmp_path):
    given = load(fake_runs.caps(tmp_path / "given", prompts=6, steps=3))
    assert not any("role" in text for text in said_of(given))
    older = load(fake_runs.caps(tmp_path / "older", prompts=6, steps=3, older=True))
    (told,) = [text for text in said_of(older) if "role" in text]
    assert told.startswith(
        "The file gives no role for inoculation and placebo, which count as guards here; `role: control`"
    )
    nothing_unwanted = dataclasses.replace(older, experiment={**older.experiment, "measure": {}})
    assert not any("role" in text for text in said_of(nothing_unwanted))


def said_of(loaded):
    return caveats(loaded, summary_table(loaded.results, loaded.experiment, loaded.scores))


def test_a_table_needs_its_columns():
    with pytest.raises(RunFolderError, match="lacks the columns experiment, condition"):
        check_results(pd.DataFrame({"value": [1.0]}))
    empty, unusable = check_results(pd.DataFrame({name: [] for name in RESULT_COLUMNS}))
    assert empty.empty
    assert unusable == 0


def test_sections_come_back_as_they_were_saved(folder):
    section = Section("x", "Title", "Summary.", notes=("a note",))
    section.save(folder)
    assert load(folder).analyses == (section,)
