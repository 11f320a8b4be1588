"""What `auto` means is written down at the first start, and every later one keeps to it."""

import json

import pytest
import torch

import tiny
import tiny_experiment
import tropism as tp
from tropism import models, precision
from tropism.errors import RunFailed
from tropism.experiments import evaluated_together, one_run
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.settled import NAME, Settled, settle
from tropism.experiments.store import Folder

AUTO = (("bf16: false, ", ""), ("dtype: float32", "dtype: auto"))


def measured(bfloat16, eager=1.0):
    """Seconds on a machine that is twice as fast in one of the two, and with eager attention takes `eager` times as long."""
    one = dict(zip(precision.CANDIDATES, (2.0, 1.0) if bfloat16 else (1.0, 2.0), strict=True))
    slower = {name: seconds * eager for name, seconds in one.items()}
    return lambda *_: dict.fromkeys(precision.PHASES, one) | {precision.EAGER: slower}


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
    evaluate = evaluated_together.evaluate
    monkeypatch.setattr(
        evaluated_together, "evaluate", lambda e, *rest: seen.update(generation=e.generate.dtype) or evaluate(e, *rest)
    )
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"), *AUTO)
    tp.run(file, tmp_path / "out", only=["plain"])
    assert seen == {"training": False, "generation": "float32"}
    assert json.loads((tmp_path / "out" / NAME).read_text())["training"] == "float32"


@pytest.mark.parametrize(("eager", "longest", "taken"), [(0.5, 256, "eager"), (0.5, 257, "sdpa"), (1.0, 256, "sdpa")])
def test_a_model_is_trained_with_the_faster_attention_where_rows_are_short(
    tmp_path, monkeypatch, eager, longest, taken
):
    monkeypatch.setattr(models, "computes_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "measured", measured(True, eager))
    experiment = Experiment.load(tiny_experiment.write(tmp_path, *AUTO))
    source, folder, said = models.resolve(experiment.model), Folder(tmp_path / "out"), []
    chosen = settle(experiment, folder, source, "cpu", said.append)
    assert settle(experiment, folder, source, "cpu", said.append) == chosen  # from the folder
    assert ("attention: eager" in said[-1]) == (eager < 1)
    model = chosen.to_train(tiny.model, longest)()
    assert model.config._attn_implementation == taken


def test_the_files_own_attention_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "computes_bfloat16", lambda _: True)
    monkeypatch.setattr(precision, "measured", measured(True, 0.5))
    file = tiny_experiment.write(tmp_path, *AUTO, ("seeds:", "load: {attn_implementation: sdpa}\nseeds:"))
    experiment = Experiment.load(file)
    assert not settle(experiment, Folder(tmp_path / "out"), models.resolve(experiment.model), "cpu", print).eager


def test_eager_and_fused_attention_train_the_same_adapter_up_to_rounding(tmp_path):
    """In float64; the softmax of eager attention is taken in float32 all the same."""
    found = []
    for name in ("sdpa", "eager"):
        model = tiny.model(dtype=torch.float64)
        model.set_attn_implementation(name)
        model(**tiny.batch()).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() < 1e-6 * found[0].norm()
