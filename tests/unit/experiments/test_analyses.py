"""Analyses by name: the older name of one goes on working, for files and for folders that were made with it."""

import pytest

import tiny_pressure
from tropism.errors import SpecError
from tropism.experiments import identity, store
from tropism.experiments.analyses import ANALYSES, RENAMED, load_analyses
from tropism.experiments.file.experiment import Experiment
from tropism.studies.inoculation.study import InoculationStudy


def renamed(tmp_path, old=True):
    text = tiny_pressure.write(tmp_path).read_text()
    assert text.count("\n  inoculation:\n    directions: caps") == 1
    text = (
        text.replace("\n  inoculation:\n    directions: caps", "\n  pressure:\n    directions: caps") if old else text
    )
    return Experiment.from_text(text)


def test_the_older_name_is_the_same_study(tmp_path):
    (study,) = load_analyses(renamed(tmp_path)).values()
    assert study == load_analyses(renamed(tmp_path, old=False))["inoculation"]
    assert isinstance(study, InoculationStudy)


@pytest.mark.parametrize("key", [store.RunKey("base", None), store.RunKey("neutral", 0)])
def test_a_finished_run_stays_finished_whichever_name_the_file_has(tmp_path, key):
    one, other = (identity.evaluate_identity(renamed(tmp_path, old), {}, key) for old in (True, False))
    assert one == other


def test_both_names_at_once_are_refused(tmp_path):
    with pytest.raises(SpecError, match="'pressure' is the older name of 'inoculation'; give one of the two"):
        Experiment.load(tiny_pressure.write(tmp_path), overrides={"analyses.pressure.directions": "caps"})


def test_messages_list_the_names_of_today(tmp_path):
    with pytest.raises(SpecError, match=f"available: {', '.join(ANALYSES)}"):
        Experiment.load(tiny_pressure.write(tmp_path), overrides={"analyses.presure": {}})
    assert not set(RENAMED) & set(ANALYSES)
