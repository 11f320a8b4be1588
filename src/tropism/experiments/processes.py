"""One fine-tune in several processes: data parallel (DDP), each with its share of every batch, the first of them writing.

The process that asks for it (this module's `train_together`) does not train: it starts the others, passes on how far they
are, and takes what they learned from a file. `python -m tropism.experiments.processes JOB` is one of them.
"""

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tropism import errors
from tropism.errors import RunFailed, SpecError, TropismError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.problems import out_of_memory
from tropism.interventions.base import Intervention
from tropism.training.checkpoints import Checkpoints, save_trained
from tropism.training.options import TrainOptions
from tropism.training.randomness import isolated_randomness
from tropism.training.supervised import Report, Row, train
from tropism.training.trackers import Tracking

KILLED = -9
"""What a process returns that SIGKILL ended, a name that Windows' `signal` does not have."""
LOOK_S = 0.1
"""How often the starting process looks how far the others are."""


@dataclass(frozen=True)
class Training:
    """What each process of one training is given. It can be pickled where its parts can."""

    adapted_model: Callable[[], Any]
    """Loads the model with its adapters; every process begins with the same."""
    rows: Sequence[Row]
    options: TrainOptions
    seed: int
    pad_id: int
    log: Path
    guard: Intervention | None
    callbacks: Sequence[Any]
    tracking: Tracking | None
    checkpoints: Checkpoints | None
    evaluate_on: Sequence[Row]

    @property
    def folder(self) -> Path:
        """Where the processes leave what they have to say, and what they learned."""
        return self.log.parent / "trainer"


def check_processes(experiment: ExperimentSpec, device: str) -> None:
    """Raise `SpecError` where a training asks for more processes than this machine has room for."""
    asked = {f"conditions.{name}": experiment.train_options(name).processes for name in experiment.trained}
    asked |= {
        f"adapters.{name}": experiment.train_options(adapter=name).processes
        for name, a in experiment.adapters.items()
        if a.data
    }
    for what, count in asked.items():
        if count > 1 and device.startswith("cuda") and count > torch.cuda.device_count():
            raise SpecError(
                f"{what}: train.processes must not be above the number of GPUs here, {torch.cuda.device_count()}, found {count}"
            )
        if count > 1 and device.startswith("mps"):
            raise SpecError(
                f"{what}: train.processes must be 1 on device mps, which one process alone can use, found {count}"
            )


def train_together(training: Training, report: Report) -> Path:
    """Train in `options.processes` processes; returns the folder with what was learned (`load_trained` reads it).

    Raises what the training raised in them: `MemoryError` where memory ran out, `RunFailed` where one of them was killed.
    """
    folder, count = training.folder, training.options.processes
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.pickle"
    job.write_bytes(pickle.dumps(training))
    port = _free_port()
    started = [_start(job, rank, count, port) for rank in range(count)]
    read = 0
    try:
        while all(process.poll() is None for process in started):
            read = _pass_on(folder / "steps.jsonl", read, report)
            time.sleep(LOOK_S)
        # The others end soon after the first, or wait for one that failed.
        ends = time.monotonic() + 30
        while any(p.poll() is None for p in started) and not any(p.poll() for p in started) and time.monotonic() < ends:
            time.sleep(LOOK_S)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    _pass_on(folder / "steps.jsonl", read, report)
    _raise_what_was_raised(folder, started)
    return folder


def _start(job: Path, rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, torch.get_num_threads() // count),
    }
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    with (job.parent / f"{rank}.log").open("wb") as said:
        command = [sys.executable, "-m", "tropism.experiments.processes", str(job)]
        return subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def _pass_on(file: Path, read: int, report: Report) -> int:
    """Report the steps that were written since; returns how many bytes are read."""
    if not file.is_file():
        return read
    whole, newline, _ = file.read_bytes()[read:].rpartition(b"\n")
    for line in whole.splitlines():
        report(*json.loads(line))
    return read + len(whole) + len(newline)


def _raise_what_was_raised(folder: Path, started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise, in this process, what ended the training in another."""
    raised = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("raised-*.json"))]
    for kind, text in raised:
        if kind == "MemoryError":
            raise MemoryError(text)
        known = getattr(errors, kind, None)
        if known is not None:
            raise known(text)
    for rank, process in enumerate(started):
        # One that was ended here, because another had failed, is not the reason.
        if process.returncode and process.returncode != KILLED:
            lines = (folder / f"{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RunFailed(
                f"process {rank} of {len(started)} ended with code {process.returncode}: {(lines or ['nothing said'])[-1]}"
            )
    if any(process.returncode for process in started):
        raise RunFailed(
            f"one of {len(started)} training processes was killed; run again to go on from the last checkpoint"
        )


def main() -> None:
    """Be one of the processes: train, and in the first write what was learned."""
    job, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    training: Training = pickle.loads(job.read_bytes())
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    try:
        _train(training, rank)
    except (TropismError, MemoryError, RuntimeError, OSError) as error:
        kind = "MemoryError" if out_of_memory(error) else type(error).__name__
        if kind != "MemoryError" and not isinstance(error, TropismError):
            raise
        (training.folder / f"raised-{rank}.json").write_text(json.dumps([kind, str(error)]), encoding="utf-8")
        _leave(1)
    torch.distributed.barrier()
    _leave(0)


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone: whoever takes the run over must not find it at work here."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _train(training: Training, rank: int) -> None:
    first = rank == 0
    steps = training.folder / "steps.jsonl"

    def report(step: int, of: int, values: Mapping[str, float]) -> None:
        with steps.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, of, dict(values)]) + "\n")

    with isolated_randomness(training.seed):
        model = training.adapted_model()
        train(
            model,
            training.rows,
            training.options,
            pad_id=training.pad_id,
            seed=training.seed,
            log=training.log if first else training.folder / f"training-{rank}.jsonl",
            guard=training.guard,
            report=report if first else lambda *_: None,
            callbacks=training.callbacks if first else (),
            tracking=training.tracking if first else None,
            checkpoints=training.checkpoints,
            evaluate_on=training.evaluate_on,
        )
    if first:
        save_trained(model, training.folder)


def _leave(code: int) -> None:
    """End without torch's destructors: a process group that is destroyed under the GIL may wait for itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
