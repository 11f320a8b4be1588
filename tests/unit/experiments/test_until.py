"""Seeds until it is decided: what is looked at, what stops it, what is kept and shown."""

import pandas as pd
import pytest

import tiny_experiment
from tropism.errors import UsageError
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.progress import Progress
from tropism.experiments.until import run_until_decided, seeds_in_order
from tropism.results import sequential
from tropism.results.decided import undecided
from tropism.results.folder import load
from tropism.results.summary import summary_table
from tropism.stats import looks


class Heard(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The tiny experiment with at most four seeds; its model never shouts, and nothing makes a difference."""
    path = tmp_path_factory.mktemp("until")
    file = tiny_experiment.write(path)
    heard = Heard()
    run_until_decided(Experiment.load(file), path / "out", max_seeds=4, only=["baseline", "guarded"], progress=heard)
    return path, heard.lines


def test_the_plan_and_the_looks_are_said_kept_and_shown(ran):
    path, lines = ran
    text = " ".join(lines)
    assert "look at 3 of at most 4 seeds" in text
    assert "power: with 3 to 4 seeds and 3 prompts" in text
    held = load(path / "out")
    assert held.sequential.looks == looks(4)
    assert held.look.seeds == len(held.experiment["seeds"])
    assert "Seeds were added until it was decided" in (path / "out" / "report.html").read_text()


def test_intervals_are_those_of_the_look_and_p_values_are_adjusted(ran):
    held = load(ran[0] / "out")
    fixed = summary_table(held.results, held.experiment, held.scores)
    own = summary_table(held.results, held.experiment, held.scores, held.look)
    wide = (own["difference_high"] - own["difference_low"]).dropna()
    narrow = (fixed["difference_high"] - fixed["difference_low"]).dropna()
    assert len(wide) > 0
    assert (wide >= narrow).all()
    assert ((own["p"].dropna() >= fixed["p"].dropna()).all()) or own["p"].dropna().empty


def test_the_most_may_not_change_after_a_look(ran):
    with pytest.raises(UsageError, match="planned for at most 4 seeds, found 8"):
        run_until_decided(ran[0] / "tiny.yaml", ran[0] / "out", max_seeds=8)


def test_nothing_to_decide_is_an_error(tmp_path):
    file = tiny_experiment.write(tmp_path, (", unwanted: true", ""))
    with pytest.raises(UsageError, match="no metric is marked wanted or unwanted"):
        run_until_decided(file, tmp_path / "out", max_seeds=4)
    assert not (tmp_path / "out").exists()


def row(**changes):
    found = {
        "arm": "caft", "condition": "caft", "mode": "", "eval_set": "in_domain", "metric": "caps", "mark": "unwanted",
        "difference_low": -0.5, "difference_high": -0.1, "difference_over": "seeds", "p_holm": 0.01, "kept": "",
    }  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    ("changes", "open_"),
    [
        ({}, False),
        ({"p_holm": 0.2}, True),
        ({"difference_high": 0.1}, True),
        ({"difference_low": -0.04, "difference_high": 0.03, "p_holm": 0.9}, False),
        ({"difference_low": None, "difference_high": None}, True),
        ({"mark": "wanted", "kept": "undecided"}, True),
        ({"mark": "wanted", "kept": "lost"}, False),
        ({"mark": ""}, False),
    ],
)
def test_what_is_decided(changes, open_):
    experiment = {"conditions": {"baseline": {}, "caft": {"guard": {"ablation": {"directions": "caps"}}}}}
    assert bool(undecided(pd.DataFrame([row(**changes)]), experiment)) is open_


def test_seeds_are_the_files_then_the_smallest_others():
    assert seeds_in_order([5, 0], 5) == [5, 0, 1, 2, 3]
    assert seeds_in_order([0, 1, 2, 3], 3) == [0, 1, 2]


def test_a_damaged_plan_is_said(tmp_path):
    from tropism.errors import RunFolderError

    (tmp_path / sequential.NAME).write_text("{}")
    with pytest.raises(RunFolderError, match="is not a plan of looks"):
        sequential.read(tmp_path)
