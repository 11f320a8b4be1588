"""`grid:` makes conditions with stable names, once, and refuses what is no option of a condition."""

import pandas as pd
import pytest
import yaml

import tiny_experiment
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
    ],
)
def test_what_is_no_grid_is_one_sentence(tmp_path, grid, said):
    with pytest.raises(SpecError, match=said):
        Experiment.load(tiny_experiment.write(tmp_path, ("conditions:\n", f"grid: {grid}\nconditions:\n")))
