"""One training in two processes is the training of one process, for each place at which a guard acts."""

import json
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import forked
import tiny_experiment
import tropism as tp
from tropism.errors import RunFailed
from tropism.experiments import evaluated_together, processes
from tropism.experiments.identity import train_identity
from tropism.experiments.progress import Progress
from tropism.experiments.store import RunKey

pytestmark = pytest.mark.slow

# Ten examples in batches of four: the last batch of each of the two epochs is short, and one process has nothing of it.
DATA = ("size: 8, transform: uppercase", "size: 10, transform: {mixture: {clean: 0.5}}")
TRAIN = (
    "train: {max_steps: 2, batch_size: 4, learning_rate: 1.0e-3,",
    "train: {epochs: 2.0, batch_size: 4, learning_rate: 0.3, optimizer: sgd, processes: PROCESSES,",
)
ADAPTERS = ("conditions:\n", "adapters: {trait: {data: {source: word_problems, size: 4}, train: {epochs: 1.0}}}\n"
            "parameter_directions: {trait: {adapter: trait}}\nconditions:\n")  # fmt: skip
# The large epsilon: AdamW divides a gradient by its own size, and would make a step of what is rounding alone.
CONDITIONS = """  constrained: {guard: {update_constraint: {directions: trait}}}
  routed: {guard: {gradient_routing: {}}}
  steered: {train: {accumulation: 2, checkpointing: true}, guard: {steering: {directions: caps, coefficient: 2.0}}}
  full: {train: {adapter: full, learning_rate: 0.01, optimizer: adamw_torch, adam_epsilon: 1.0e-3,
                 eval_steps: 2, eval_on: held_out},
         guard: {update_constraint: {directions: trait}}}
  baseline: {guard: [{frozen_adapter: {adapter: trait}}, {ablation: {directions: caps}}, {gradient_projection: {directions: caps}}]}
"""
ANCHORED = "  anchored: {train: {accumulation: 2}, guard: {kl_to_base: {weight: 1.0, positions: all}}}\n"  # refused under fsdp2


def write(path, count, parallel="ddp"):
    path.mkdir(parents=True, exist_ok=True)
    shared = str(count) if parallel == "ddp" else f"{count}, parallel: {parallel}"
    train = (TRAIN[0], TRAIN[1].replace("PROCESSES", shared))
    return tiny_experiment.write(
        path,
        DATA,
        train,
        ADAPTERS,
        (
            "  baseline: {}\n  guarded: {guard: {gradient_projection: {directions: caps}}}\n",
            CONDITIONS + ANCHORED * (parallel == "ddp"),
        ),
        ("seeds: [0, 1]", "seeds: [0]"),
        ("  plain: {data: {transform: plain}}\n", ""),
    )


def tensors(out):
    found = {}
    for file in sorted(out.glob("*/seed-0/adapter/**/*.safetensors")):
        found |= {f"{file.relative_to(out)}/{name}": value for name, value in load_file(file).items()}
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The trainings of one process, and their table."""
    path = tmp_path_factory.mktemp("one")
    return path / "out", tp.run(write(path, 1), path / "out")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_equal_one_for_every_guard(one, tmp_path, monkeypatch, parallel):
    monkeypatch.setattr(processes, "_start", forked.one_of_several)
    monkeypatch.setattr(evaluated_together, "_processes", lambda *_: 1)  # it has a test of its own
    out, table = tmp_path / "two" / "out", one[1]
    two = tp.run(write(tmp_path / "two", 2, parallel), out)
    alone, shared = tensors(one[0]), tensors(out)
    if parallel == "fsdp2":
        alone = {name: value for name, value in alone.items() if not name.startswith("anchored")}
        table = table[table["condition"] != "anchored"].reset_index(drop=True)
    assert alone.keys() == shared.keys()
    guarded = {"baseline", "constrained", "routed", "steered", "full"}
    assert {name.split("/")[0] for name in alone} == guarded | ({"anchored"} if parallel == "ddp" else set())
    for name, value in alone.items():
        torch.testing.assert_close(
            shared[name], value, rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert value.abs().max() > 0
    assert table[["condition", "mode", "metric", "n"]].equals(two[["condition", "mode", "metric", "n"]])
    for run in ("constrained", "routed"):
        logs = [
            [json.loads(line) for line in (side / run / "seed-0" / "training.jsonl").read_text().splitlines()]
            for side in (one[0], out)
        ]
        assert [row["step"] for row in logs[1]] == list(range(1, 7))  # one process alone wrote it
        for ours, theirs in zip(*logs, strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
    assert not list(out.glob("*/seed-0/trainer"))


def test_processes_and_what_is_divided_among_them_belong_to_a_runs_identity(tmp_path):
    source = {"name": "x", "revision": None}
    identities = {
        train_identity(tp.Experiment.load(write(tmp_path, *how)), source, RunKey("baseline", 0))
        for how in ((1,), (2,), (2, "fsdp2"))
    }
    assert len(identities) == 3


def test_a_process_that_dies_fails_the_run_with_a_sentence_and_the_next_command_goes_on(tmp_path, monkeypatch):
    # So many steps that the training is not over before the eleventh is heard of, on any machine.
    steps = 120
    file = tiny_experiment.write(
        tmp_path, ("max_steps: 2, batch_size: 4", f"max_steps: {steps}, batch_size: 4, save_steps: 10, processes: 2"),
        ("seeds: [0, 1]", "seeds: [0]"), ("  plain: {data: {transform: plain}}\n", ""),
        ("  guarded: {guard: {gradient_projection: {directions: caps}}}\n", ""),
    )  # fmt: skip
    started = []
    monkeypatch.setattr(
        processes, "_start", lambda *given: started.append(forked.one_of_several(*given)) or started[-1]
    )

    class Kills(Progress):
        def phase(self, what, done, of, values=None):
            if what == "training" and done >= 11 and len(started) == 4:  # two have evaluated the untrained model
                started[3].send_signal(signal.SIGKILL)

        def say(self, line):
            lines.append(line)

    lines = []
    tp.run(file, tmp_path / "out", progress=Kills())
    failure = json.loads((tmp_path / "out" / "baseline" / "seed-0" / "FAILED.json").read_text())["error"]
    assert failure == "RunFailed: one of 2 processes was killed; run again to go on from the last checkpoint"
    tp.run(file, tmp_path / "out", progress=Kills())
    [goes_on] = [line for line in lines if line.startswith("baseline/seed-0: its training was interrupted")]
    assert re.search(r"and goes on from step \d*0$", goes_on)
    assert (tmp_path / "out" / "baseline" / "seed-0" / "DONE.json").is_file()
    logged = (tmp_path / "out" / "baseline" / "seed-0" / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == list(range(1, steps + 1))


def test_what_a_process_raises_is_raised_here(tmp_path):
    (tmp_path / "raised-1.json").write_text(json.dumps(["RunFailed", "the loss at step 1 is nan, not a finite number"]))
    with pytest.raises(RunFailed, match="the loss at step 1 is nan"):
        processes._raise_what_was_raised(tmp_path, [], killed=False)
    (tmp_path / "raised-0.json").write_text(json.dumps(["MemoryError", "out of memory"]))
    with pytest.raises(MemoryError):
        processes._raise_what_was_raised(tmp_path, [], killed=False)


def test_a_killed_process_is_the_reason_also_where_the_other_lost_its_connection(tmp_path):
    (tmp_path / "0.log").write_text("RuntimeError: Connection reset by peer\n")
    ended = [SimpleNamespace(returncode=1), SimpleNamespace(returncode=-signal.SIGKILL)]
    with pytest.raises(RunFailed, match="one of 2 processes was killed; run again"):
        processes._raise_what_was_raised(tmp_path, ended, killed=True)
    with pytest.raises(RunFailed, match="process 0 of 2 ended with code 1: RuntimeError: Connection reset"):
        processes._raise_what_was_raised(tmp_path, ended, killed=False)  # this process ended the second
