"""What `auto` means is written down at the first start, and every later one keeps to it."""

import json

import pytest

import tiny_experiment
import tropism as tp
from tropism import models, precision
from tropism.errors import RunFailed
from tropism.experiments import one_run
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.settled import NAME, Settled, settle
from tropism.experiments.store import Folder

AUTO = (("bf16: false, ", ""), ("dtype: float32", "dtype: auto"))


def measured(bfloat16):
    one = dict(zip(precision.CANDIDATES, (2.0, 1.0) if bfloat16 else (1.0, 2.0), strict=True))
    return lambda *_: dict.fromkeys(precision.PHASES, one)


@pytest.fixture
def settled(tmp_path, monkeypatch):
    """Settles an experiment's folder on a machine that is faster in one of the two; returns what was said as well."""
    monkeypatch.setattr(models, "computes_bfloat16", lambda _: True)

    def settled(*changes, bfloat16, device="cpu"):
        monkeypatch.setattr(precision, "measured", measured(bfloat16))
        experiment = Experiment.load(tiny_experiment.write(tmp_path, *changes))
        said = []
        source = models.resolve(experiment.model)
        return settle(experiment, Folder(tmp_path / "out"), source, device, said.append), said

    return settled


def test_what_was_chosen_first_stays(settled, tmp_path):
    first, said = settled(*AUTO, bfloat16=False)
    assert first == Settled(training=False, generation=False)
    assert said == [
        f"precision: training in {(why := 'float32 (measured 2.00 times as fast as bfloat16 here)')}, generation in {why}"
    ]
    assert settled(*AUTO, bfloat16=True) == (first, [])
    (tmp_path / "out" / NAME).unlink()
    assert settled(*AUTO, bfloat16=True)[0] == Settled(training=True, generation=True)


def test_a_folder_from_before_goes_on_as_it_was_begun(settled, tmp_path):
    run = tmp_path / "out/baseline/seed-0"
    run.mkdir(parents=True)
    (run / "TRAINED.json").write_text("{}")
    chosen, said = settled(*AUTO, bfloat16=False)
    assert chosen == Settled(training=True, generation=True)
    assert "as the runs that are there" in said[0]


def test_nothing_is_settled_where_the_file_says_it_or_a_gpu_computes(settled, tmp_path):
    assert settled(bfloat16=True) == (Settled(), [])
    assert settled(*AUTO, bfloat16=True, device="cuda") == (Settled(), [])
    assert not (tmp_path / "out" / NAME).exists()


def test_a_run_trains_and_answers_in_what_was_settled(tmp_path, monkeypatch):
    seen = {}

    def fine_tune(fresh_model, rows, options, **_):
        seen["training"] = options.bf16
        raise RunFailed("enough")

    monkeypatch.setattr(precision, "measured", measured(bfloat16=False))
    monkeypatch.setattr(one_run, "fine_tune", fine_tune)
    evaluate = one_run.evaluate
    monkeypatch.setattr(
        one_run, "evaluate", lambda e, *rest: seen.update(generation=e.generate.dtype) or evaluate(e, *rest)
    )
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"), *AUTO)
    tp.run(file, tmp_path / "out", only=["plain"])
    assert seen == {"training": False, "generation": "float32"}
    assert json.loads((tmp_path / "out" / NAME).read_text())["training"] == "float32"
