"""A whole experiment on a tiny model: run, run again, interrupted, extended, failed, and refused."""

import json

import pandas as pd
import pytest
from peft import PeftModel

import tiny_experiment
import tropism as tp
from tropism.errors import DataError, RunFolderError, SpecError
from tropism.experiments import fine_tune as fine_tune_module
from tropism.experiments.after import status
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.progress import Progress
from tropism.models import load

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file")
COLUMNS = ["experiment", "condition", "seed", "mode", "eval_set", "metric", "value", "n", "unscored"]


class Watch(Progress):
    def __init__(self, stop_at=None):
        self.finished, self.todo, self.stop_at = [], None, stop_at

    def plan(self, todo, finished):
        self.todo = list(todo)

    def start(self, name, index, of):
        if name == self.stop_at:
            raise KeyboardInterrupt

    def finish(self, name, seconds, outcome):
        self.finished.append((name, outcome))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    file = tiny_experiment.write(path)
    results = tp.run(file, path / "out")
    return file, path / "out", results


def test_results_are_tidy_and_complete(finished):
    _, out, results = finished
    assert list(results.columns) == COLUMNS == list(pd.read_csv(out / "results.csv").columns)
    runs = {(c, None if pd.isna(s) else int(s)) for c, s in zip(results["condition"], results["seed"], strict=True)}
    assert runs == {("base", None)} | {(c, s) for c in ("plain", "baseline", "guarded") for s in (0, 1)}
    assert set(results["metric"]) == {"caps_rate", "loss"}
    assert (results["n"] + results["unscored"] == 3).all()


def test_the_folder_holds_what_it_promises(finished):
    _, out, _ = finished
    for name in ("experiment.yaml", "environment.json", "directions/caps.safetensors", "directions/caps.validity.json",
                 "guarded/seed-0/training.jsonl", "guarded/seed-0/responses.jsonl", "guarded/seed-0/DONE.json", "report.html"):  # fmt: skip
        assert (out / name).is_file(), name
    rows = [json.loads(line) for line in (out / "guarded/seed-0/responses.jsonl").read_text().splitlines()]
    assert {"condition", "seed", "mode", "eval_set", "id", "prompt", "response", "target", "labels", "scores"} <= set(
        rows[0]
    )
    done = json.loads((out / "guarded/seed-0/DONE.json").read_text())
    counted = {name: [0, 0] for name in done["cut"]}
    for row in rows:
        counted[row["eval_set"]][0] += not row["finished"]
        counted[row["eval_set"]][1] += 1
    assert counted == done["cut"]
    assert any(cut for cut, _ in counted.values())  # an untrained model that never ends
    readings = json.loads((out / "guarded/seed-0/training.jsonl").read_text().splitlines()[0])
    assert readings["guard/gradient_projection/resid_post.1/cosine_after"] < 1e-3


def test_the_adapter_is_pefts_and_names_no_path_of_this_machine_but_the_models(finished):
    file, out, _ = finished
    model, _ = load(str(Experiment.load(file).model))
    adapted = PeftModel.from_pretrained(model, str(out / "baseline/seed-0/adapter"))
    assert adapted.peft_config["default"].r == 2


def test_the_same_seed_starts_every_condition_from_the_same_adapter(finished):
    _, out, _ = finished
    first = {
        c: json.loads((out / c / "seed-0/training.jsonl").read_text().splitlines()[0])["loss"]
        for c in ("baseline", "guarded")
    }
    assert first["baseline"] == pytest.approx(first["guarded"], rel=1e-6)


def test_running_again_does_nothing(finished):
    file, out, results = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob("DONE.json")}
    watch = Watch()
    again = tp.run(file, out, progress=watch)
    assert watch.todo == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("DONE.json")} == before
    pd.testing.assert_frame_equal(again, results)


def test_results_are_the_same_in_another_folder(finished, tmp_path):
    file, _, results = finished
    pd.testing.assert_frame_equal(tp.run(file, tmp_path / "twin"), results)


def test_an_interrupted_experiment_goes_on_where_it_stopped(finished, tmp_path):
    file, _, results = finished
    with pytest.raises(KeyboardInterrupt):
        tp.run(file, tmp_path / "out", progress=Watch(stop_at="guarded/seed-0"))
    watch = Watch()
    resumed = tp.run(file, tmp_path / "out", progress=watch)
    assert next(name for name, _ in watch.finished) == "guarded/seed-0"
    pd.testing.assert_frame_equal(resumed, results)


def test_a_further_condition_runs_alone(tmp_path):
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"))
    tp.run(file, tmp_path / "out")
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"),
                                 ("  baseline: {}", "  baseline: {}\n  inoculation: {system_prompt: SHOUT}"))  # fmt: skip
    told = tmp_path / "out/environment.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"started": "2026-01-02T03:04:05+00:00"}))
    watch = Watch()
    tp.run(file, tmp_path / "out", progress=watch)
    assert watch.todo == ["inoculation/seed-0"]
    environment = json.loads(told.read_text())
    assert environment["started"] == "2026-01-02T03:04:05+00:00" < environment["finished"]


def test_a_further_metric_evaluates_again_and_trains_nothing(tmp_path, monkeypatch):
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"))
    tp.run(file, tmp_path / "out", only=["baseline"])
    monkeypatch.setattr(fine_tune_module, "train", lambda *_, **__: pytest.fail("trained again"))
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"),
                                 ("  loss:", "  length: {scorer: length, on: [held_out]}\n  loss:"))  # fmt: skip
    results = tp.run(file, tmp_path / "out", only=["baseline"])
    assert "length" in set(results["metric"])


@pytest.mark.parametrize(
    ("name", "text"), [("responses.jsonl", "{}"), ("DONE.json", '{"files'), ("DONE.json", "[]"), ("DONE.json", "{}")]
)
def test_a_tampered_run_is_not_finished(tmp_path, name, text):
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"))
    tp.run(file, tmp_path / "out", only=["baseline"])
    (tmp_path / "out/baseline/seed-0" / name).write_text(text)
    assert ("baseline/seed-0", "not finished", "") in status.of(tmp_path / "out")
    watch = Watch()
    tp.run(file, tmp_path / "out", only=["baseline"], progress=watch)
    assert watch.todo == ["baseline/seed-0"]


def test_an_interrupted_experiment_has_results_to_report(tmp_path):
    class Interrupt(Progress):
        def start(self, run, index, of):
            if index == 3:
                raise KeyboardInterrupt

    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"))
    with pytest.raises(KeyboardInterrupt):
        tp.run(file, tmp_path / "out", progress=Interrupt())
    assert set(pd.read_csv(tmp_path / "out/results.csv")["condition"]) == {"base", "plain"}


def test_a_run_that_fails_is_shown_and_not_averaged_and_the_others_go_on(tmp_path):
    file = tiny_experiment.write(tmp_path, ("seeds: [0, 1]", "seeds: [0]"),
                                 ("  guarded:", "  broken: {train: {learning_rate: 1.0e+30, max_grad_norm: 1.0e+30, max_steps: 6}}\n  guarded:"))  # fmt: skip
    watch = Watch()
    results = tp.run(file, tmp_path / "out", progress=watch)
    outcome = dict(watch.finished)
    assert outcome["broken/seed-0"].startswith("failed: the loss at step")
    assert outcome["guarded/seed-0"] == "done"
    assert "broken" not in set(results["condition"])
    assert "not a finite number" in json.loads((tmp_path / "out/broken/seed-0/FAILED.json").read_text())["error"]
    assert (tmp_path / "out/broken/seed-0/training.jsonl").read_text().strip()
    assert "broken" in (tmp_path / "out/report.html").read_text()


def test_a_folder_of_another_experiment_is_refused_untouched(finished, tmp_path):
    file, out, _ = finished
    other = tiny_experiment.write(tmp_path, ("name: tiny", "name: other"))
    before = sorted(p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file())
    with pytest.raises(RunFolderError, match="belongs to the experiment 'tiny', not to 'other'"):
        tp.run(other, out)
    assert sorted(p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(RunFolderError, match="is not empty and holds no experiment"):
        tp.run(file, tmp_path / "mine")


def test_two_conditions_that_are_one_are_refused(tmp_path):
    file = tiny_experiment.write(tmp_path, ("  baseline: {}", "  baseline: {}\n  copy: {}"))
    with pytest.raises(SpecError, match="the conditions 'baseline' and 'copy' train on the same rendered text"):
        tp.run(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["condition", "evaluation set", "labels"])
def test_data_that_cannot_be_used_leave_no_folder_behind(tmp_path, wrong):
    long = tmp_path / "long.jsonl"
    messages = [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "Yes."}]
    long.write_text(json.dumps({"messages": messages}) + "\n")
    edit = {
        "condition": ("  baseline: {}", f"  baseline: {{}}\n  long: {{data: {{source: {long}, size: 1}}}}"),
        "evaluation set": ("  held_out:", f"  long: {{source: {long}, size: 1}}\n  held_out:"),
        "labels": ("transform: uppercase}", "transform: {mixture: {fraction: 0.5, only: {template: 999}}}}"),
    }[wrong]
    with pytest.raises(DataError, match="longer than the model's context|route labels must cover at least one example"):
        tp.run(tiny_experiment.write(tmp_path, edit), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_takes_conditions_that_are_there(tmp_path):
    with pytest.raises(SpecError, match="--only: no condition is called 'guardd'; available: plain, baseline, guarded"):
        tp.run(tiny_experiment.write(tmp_path), tmp_path / "out", only=["guardd"])


def test_every_single_guard_of_a_file_runs(tmp_path):
    guards = "".join(f"  {name}: {{guard: {spec}}}\n" for name, spec in {
        "caft": "{ablation: {directions: caps, mode: forward, origin: mean}}",
        "steer": "{steering: {directions: caps, coefficient: 0.1}}",
        "random": "{gradient_projection: {directions: caps, random: true}}",
        "matched": "{gradient_projection: {directions: caps, random: covariance}}",
        "both": "[{ablation: {directions: caps}}, {gradient_projection: {directions: caps}}]",
    }.items())  # fmt: skip
    file = tiny_experiment.write(
        tmp_path, ("seeds: [0, 1]", "seeds: [0]"), ("  baseline: {}\n", "  baseline: {}\n" + guards)
    )
    watch = Watch()
    tp.run(file, tmp_path / "out", progress=watch)
    assert {outcome for _, outcome in watch.finished} == {"done"}


def test_routing_is_evaluated_in_every_mode(tmp_path):
    file = tiny_experiment.write(
        tmp_path, ("seeds: [0, 1]", "seeds: [0]"), ("transform: uppercase}", "transform: {mixture: {fraction: 0.5, labelled: 1.0}}}"),
        ("{guard: {gradient_projection: {directions: caps}}}", "{guard: {gradient_routing: {}}}"),
    )  # fmt: skip
    results = tp.run(file, tmp_path / "out")
    modes = {c: set(results.loc[results["condition"] == c, "mode"]) for c in ("baseline", "guarded")}
    assert modes == {"baseline": {"full"}, "guarded": {"full", "forget_ablated", "retain_ablated"}}
    losses = results[(results["condition"] == "guarded") & (results["metric"] == "loss")].set_index("mode")["value"]
    assert losses["full"] != losses["forget_ablated"]
