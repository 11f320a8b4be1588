"""`grid:` makes conditions with stable names, once, and refuses what is no option of a condition."""

import pandas as pd
import pytest
import yaml

import tiny_experiment
import tropism as tp
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.grid_section import grid_section

GRID = (
    "conditions:\n",
    "grid: {train.lora.r: [2, 4], guard.steering.coefficient: [0.5, 2], data.train.size: [4]}\nconditions:\n",
)
STEERED = (
    "  guarded: {guard: {gradient_projection: {directions: caps}}}",
    "  steered: {guard: {steering: {directions: caps}}}",
)


@pytest.fixture
def experiment(tmp_path):
    return Experiment.load(tiny_experiment.write(tmp_path, GRID, STEERED))


def test_every_condition_has_its_cells_and_those_of_its_own_guard(experiment):
    assert list(experiment.conditions) == [
        "plain", "baseline", "steered",
        *(f"{name}__r-{r}__size-4" for name in ("plain", "baseline") for r in (2, 4)),
        *(f"steered__r-{r}__coefficient-{c}__size-4" for r in (2, 4) for c in ("0p5", "2")),
    ]  # fmt: skip
    cell = experiment.conditions["steered__r-4__coefficient-0p5__size-4"]
    assert cell.guard == {"steering": {"directions": "caps", "coefficient": 0.5}}
    assert experiment.train_options("steered__r-4__coefficient-0p5__size-4").lora.r == 4
    assert experiment.train_data("plain__r-2__size-4").size == 4
    assert experiment.train_data("plain__r-2__size-4").transform == "plain"
    assert (cell.cell.of, cell.cell.at["train.lora.r"]) == ("steered", 4)


def test_a_folders_file_is_read_again_without_cells_of_cells(experiment):
    text = yaml.safe_dump(experiment.resolved(), sort_keys=False)
    assert list(Experiment.from_text(text).conditions) == list(experiment.conditions)
    assert ExperimentSpec.model_validate(yaml.safe_load(text)).conditions == experiment.conditions


def test_a_table_has_a_row_for_each_cell(experiment):
    rows = [
        (name, seed, "full", "held_out", "loss", value)
        for name, value in {"baseline": 1.0, "baseline__r-2__size-4": 1.5, "baseline__r-4__size-4": 2.0}.items()
        for seed in (0, 1)
    ]
    results = pd.DataFrame(rows, columns=["condition", "seed", "mode", "eval_set", "metric", "value"])
    section = grid_section(experiment, results)
    assert section.summary.startswith(
        "8 cells of train.lora.r, guard.steering.coefficient, data.train.size, of which 2"
    )
    table = {(row[0], row[1], row[2]): row[4:] for row in section.tables[0].rows}
    assert table["baseline", 2, None] == [1.5, 0.0, 2, 0.5]
    assert table["baseline", 4, None] == [2.0, 0.0, 2, 1.0]
    assert table["plain", 4, None] == [None, None, 0, None]
    assert grid_section(experiment.model_copy(update={"conditions": {}}), results) is None


SEARCH = (
    "conditions:\n",
    "grid: {train.lora.r: [2, 4]}\nsearch: {metric: loss, on: dev, report: held_out}\nconditions:\n",
)
DEV = ("  held_out:", "  dev: {source: word_problems, size: 4, split: train, seed: 7}\n  held_out:")
ON_BOTH = ("loss: {scorer: response_loss, on: [held_out]}", "loss: {scorer: response_loss, on: [dev, held_out]}")
COLUMNS = ["condition", "seed", "mode", "eval_set", "metric", "value"]


def searched(tmp_path, values):
    """The experiment and its section; `values`: (condition, set) → value at both seeds."""
    experiment = Experiment.load(tiny_experiment.write(tmp_path, SEARCH, DEV, ON_BOTH))
    rows = [(name, seed, "full", on, "loss", v) for (name, on), v in values.items() for seed in (0, 1)]
    return experiment, grid_section(experiment, pd.DataFrame(rows, columns=COLUMNS), tmp_path / "figures")


def test_a_search_chooses_on_the_development_set_and_reports_on_the_test_set(tmp_path):
    values = {
        ("baseline__r-2", "dev"): 1.0, ("baseline__r-4", "dev"): 2.0,
        # on the test set the other one is better, which must not matter
        ("baseline__r-2", "held_out"): 9.0, ("baseline__r-4", "held_out"): 3.0,
        ("plain__r-2", "dev"): 5.0, ("plain__r-4", "dev"): 4.0,
        ("plain__r-2", "held_out"): 0.5, ("plain__r-4", "held_out"): 7.0,
    }  # fmt: skip
    _, section = searched(tmp_path, values)
    table = section.tables[0]
    assert table.title == "chosen by loss on dev, reported on held_out"
    assert {row[0]: list(row[1:]) for row in table.rows} == {
        "baseline": [2, 1.0, 9.0, 0.0, 2, 0.0],
        "plain": [4, 4.0, 7.0, 0.0, 2, -2.0],
    }
    assert "2 cells are not measured with every seed yet" in section.notes[0]
    assert [one.file for one in section.figures] == ["grid-loss-dev", "grid-loss-held_out"]
    assert "baseline" in (tmp_path / "figures" / "grid-loss-dev.svg").read_text()


def test_of_equal_cells_the_first_is_chosen(tmp_path):
    values = {(f"baseline__r-{r}", on): 1.0 for r in (4, 2) for on in ("dev", "held_out")}
    assert searched(tmp_path, values)[1].tables[0].rows[0][1] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([(SEARCH[0], SEARCH[1].replace("grid: {train.lora.r: [2, 4]}\n", ""))], "search: chooses a cell of a grid"),
        ([(SEARCH[0], SEARCH[1].replace("metric: loss", "metric: los"))], "search.metric: no metric is called 'los'"),
        (
            [(SEARCH[0], SEARCH[1].replace("on: dev", "on: held_out"))],
            "must be another set than the one that is chosen on",
        ),
        (
            [(SEARCH[0], SEARCH[1].replace("report: held_out", "report: train"))],
            "search.report: must be a set that loss is",
        ),
        (
            [
                (SEARCH[0], SEARCH[1].replace("metric: loss", "metric: caps_rate")),
                ("on: [held_out], unwanted: true", "on: [dev, held_out]"),
            ],
            "search.better: is required: caps_rate is marked neither wanted nor unwanted",
        ),
    ],
)
def test_what_is_no_search_is_one_sentence(tmp_path, changes, said):
    with pytest.raises(SpecError, match=said):
        Experiment.load(tiny_experiment.write(tmp_path, DEV, ON_BOTH, *changes))


def test_a_search_whose_two_sets_share_prompts_is_refused_before_anything_is_written(tmp_path):
    same = (DEV[0], DEV[1].replace("split: train, seed: 7", "split: test"))
    with pytest.raises(SpecError, match="prompts of held_out are also in dev"):
        tp.run(tiny_experiment.write(tmp_path, SEARCH, same, ON_BOTH), tmp_path / "out")
    assert not (tmp_path / "out" / "experiment.yaml").exists()


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (
            "{seeds: [0, 1]}",
            r"line \d+: grid.seeds: must be an option of a condition, which begins with train., data.train., guard.",
        ),
        ("{train.lora.r: 4}", r"grid.train.lora.r: must be the list of values to try, found 4"),
        ("{train.lora.r: [4, 4]}", r"names a value twice, found \[4, 4\]"),
        ("{train.lora.rank: [4]}", r"rank: unknown key"),
        ("{guard.steering.coefficient: [1, 2]}", r"does nothing: no condition has the guard 'steering'"),
    ],
)
def test_what_is_no_grid_is_one_sentence(tmp_path, grid, said):
    with pytest.raises(SpecError, match=said):
        Experiment.load(tiny_experiment.write(tmp_path, ("conditions:\n", f"grid: {grid}\nconditions:\n")))
