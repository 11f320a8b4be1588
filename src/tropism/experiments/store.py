"""An experiment's folder: what was run, under which identity, and whether it was finished.

A run is identified by the hash of what determines it. `DONE.json` is written last, with the hash of every file of the
run; a run without it was never finished and is never averaged. `TRAINED.json` is the same for the adapter alone: training
and evaluation have an identity each, so that a further metric evaluates again without training again.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tropism.atomic import write_text
from tropism.data.sources import local_files
from tropism.data.templates import template_text
from tropism.errors import RunFolderError
from tropism.experiments.analyses import Analysis, identity_name, load_analyses
from tropism.experiments.file.guards import norms_of, uses
from tropism.experiments.file.spec import DataSpec, ExperimentSpec
from tropism.experiments.kept import Stamp, check_stamp, file_hash, read_json_object, write_stamp
from tropism.names import BASE, run_name
from tropism.results.measurement import Measurement, read_measurements, results_table, to_line, typed_table
from tropism.results.problem import Problem
from tropism.training.options import TrainOptions

FORMAT = 1


@dataclass(frozen=True)
class RunKey:
    """Condition × seed; the untrained model is `base` without a seed."""

    condition: str
    seed: int | None

    def __str__(self) -> str:
        return run_name(self.condition, self.seed)


def digest(value: Any) -> str:
    """A short hash of plain data, the same whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_identity(spec: DataSpec) -> Any:
    """What determines a set of examples; a local file counts by its content."""
    held = _local(*spec.names(), spec.path)
    # what is not used does not count, so that older runs keep their identity
    unused = {name for name in ("also", "drop") if not getattr(spec, name)}
    unused |= {"on_bad_row"} if spec.on_bad_row == "error" else set()
    unused |= {"supervise"} if spec.supervise == "all_turns" else set()
    own = spec.model_dump(exclude=unused)
    return [own, [file_hash(file) for file in held], *(data_identity(more) for more in spec.also)]


def options_identity(options: TrainOptions) -> dict[str, Any]:
    """The options of a fine-tune that change its result."""
    unused = set() if options.max_length else {"max_length", "overflow"}
    unused |= {"overflow"} if options.overflow == "drop_turns" else set()
    return options.model_dump(exclude={"report_to"} | unused)


def start_identity(experiment: ExperimentSpec, source: Mapping[str, Any]) -> str:
    """What determines the model that every condition starts from."""
    adapters = adapter_identity(experiment, source, experiment.start_from) if experiment.start_from else None
    parts = [FORMAT, source.get("name"), source.get("revision"), experiment.template_kwargs, adapters]
    # Only where they are given, so that older runs keep their identity.
    blocks = [] if experiment.blocks is None else [experiment.blocks]
    return digest([*parts, *_template_identity(experiment), *blocks])


def _template_identity(experiment: ExperimentSpec) -> list[str]:
    """The text of the chat template that the file names; nothing where it names none."""
    return [] if experiment.chat_template is None else [template_text(experiment.chat_template)]


def adapter_identity(experiment: ExperimentSpec, source: Mapping[str, Any], name: str) -> str:
    """What determines a prepared adapter."""
    train = options_identity(experiment.train_options(adapter=name))
    spec = experiment.adapters[name]
    return digest(
        [
            "adapter",
            FORMAT,
            source.get("name"),
            source.get("revision"),
            data_identity(spec.data),
            spec.system_prompt,
            train,
            *_template_identity(experiment),
        ]
    )


def directions_identity(experiment: ExperimentSpec, source: Mapping[str, Any], name: str) -> str:
    """What determines directions: the options that are used, the data sets, and the contents of the files that are read."""
    spec = experiment.directions[name]
    contrast = spec.contrast
    named = (contrast.positive, contrast.negative) if contrast and contrast.of == "data" else ()
    sets = [data_identity(experiment.data[str(side)]) for side in named]
    files = [Path(file) for file in spec.files()]
    if contrast is not None:
        files += _local(contrast.source, contrast.path)
    own = spec.model_dump(exclude={"strict", "behaviour"}, exclude_none=True)
    contents = [file_hash(file) for file in files]
    return digest(["directions", start_identity(experiment, source), own, sets, contents])


def _with_content(options: Mapping[str, Any]) -> Any:
    """Options of parameter directions; a file counts by its content."""
    file = options.get("file")
    return [options, file_hash(Path(file))] if file is not None and Path(file).is_file() else options


def _local(*names: str | None) -> list[Path]:
    """The local files of sources, or files themselves, where they are here."""
    here = [name for name in names if name is not None and Path(name).exists()]
    return [file for name in here for file in local_files(name)]


def train_identity(experiment: ExperimentSpec, source: Mapping[str, Any], key: RunKey, *, edited: bool = True) -> str:
    """What determines a trained adapter: model, data, options, prompt, guard with its directions, seed; and with `edited`
    what is done to it `after`.
    """
    if key.condition == BASE:
        return start_identity(experiment, source)
    condition = experiment.conditions[key.condition]
    after = condition.after if edited else None
    named = uses(condition.guard) | uses(after)
    return digest([
        start_identity(experiment, source),
        data_identity(experiment.train_data(key.condition)),
        options_identity(experiment.train_options(key.condition)),
        condition.system_prompt, condition.guard, after, key.seed,
        {n: directions_identity(experiment, source, n) for n in sorted(named & set(experiment.directions))},
        {n: _with_content(experiment.parameter_directions[n]) for n in sorted(named & set(experiment.parameter_directions))},
        {n: adapter_identity(experiment, source, n) for n in sorted(experiment.adapters)},
        *(train_identity(experiment, source, RunKey(n, key.seed)) for n in norms_of(after)),
    ])  # fmt: skip


def trained_alike(experiment: ExperimentSpec, source: Mapping[str, Any], condition: str) -> str | None:
    """The condition whose adapter this one's is before its edit, if there is one: it need not be trained twice."""
    if experiment.conditions[condition].after is None:
        return None
    seed = experiment.seeds[0]
    wanted = train_identity(experiment, source, RunKey(condition, seed), edited=False)
    plain = [name for name, spec in experiment.conditions.items() if spec.after is None]
    return next((name for name in plain if train_identity(experiment, source, RunKey(name, seed)) == wanted), None)


def evaluate_identity(experiment: ExperimentSpec, source: Mapping[str, Any], key: RunKey) -> str:
    """What determines a run's results: the trained adapter, the evaluation sets, generation, metrics, analyses."""
    sets = {name: data_identity(spec) for name, spec in experiment.data.items() if name != "train"}
    measures = {name: m.model_dump(exclude={"wanted", "unwanted", "margin"}) for name, m in experiment.measure.items()}
    scorers = file_hash(Path(experiment.scorers)) if experiment.scorers else None
    analyses = load_analyses(experiment)
    read = sorted({name for one in analyses.values() if one.per_run for name in one.reads_directions(experiment)})
    return digest([
        train_identity(experiment, source, key), sets, experiment.generate.model_dump(), measures, scorers,
        {
            identity_name(name): _measured(options, analyses[name])
            for name, options in experiment.analyses.items() if analyses[name].per_run
        },
        *([{name: directions_identity(experiment, source, name) for name in read}] if read else []),
    ])  # fmt: skip


def _measured(options: Mapping[str, Any] | None, analysis: Analysis) -> Mapping[str, Any] | None:
    """An analysis' options as given, without those that change its summary alone."""
    return options and {name: value for name, value in options.items() if name not in analysis.summary_only}


@dataclass(frozen=True)
class Begun:
    """A run's folder, cleared: whether its adapter was kept, and why something that was there was not."""

    kept: bool
    why: str


class Folder:
    """An experiment's folder on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, path: str | Path, experiment: ExperimentSpec) -> "Folder":
        """The experiment's folder, new or old; raises `RunFolderError` where it belongs to something else.

        Writes nothing: `record` does, once the data are known to be good.
        """
        target = Path(path)
        spec = target / "experiment.yaml"
        if target.exists() and not target.is_dir():
            raise RunFolderError(f"the output folder {target} is a file; give another with --out")
        if spec.is_file():
            held = yaml.safe_load(spec.read_text(encoding="utf-8"))
            owner = held.get("name") if isinstance(held, dict) else None
            if owner != experiment.name:
                raise RunFolderError(
                    f"the output folder {target} belongs to the experiment {owner!r}, not to {experiment.name!r}; give another "
                    f"with --out"
                )
        elif target.is_dir() and any(not path.name.startswith(".") for path in target.iterdir()):
            raise RunFolderError(
                f"the output folder {target} is not empty and holds no experiment; give another with --out"
            )
        return cls(target)

    def record(self, experiment: ExperimentSpec) -> None:
        """Write the experiment's file, resolved: from now on the folder is this experiment's."""
        text = yaml.safe_dump(experiment.resolved(), sort_keys=False, allow_unicode=True, width=110)
        self.write("experiment.yaml", text)

    def write(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        target = self.path / name
        write_text(target, text)
        return target

    def run_path(self, key: RunKey) -> Path:
        return self.path / run_name(key.condition, key.seed)

    def finished(self, key: RunKey) -> Stamp:
        """Return what DONE.json says of a run; it has a flaw where the run was not finished or a file was changed."""
        return check_stamp(self.run_path(key) / "DONE.json", "evaluate")

    def is_done(self, key: RunKey, evaluate: str) -> bool:
        """Say whether a run is finished under this identity."""
        stamp = self.finished(key)
        return bool(stamp) and stamp.said["evaluate"] == evaluate

    def problems(self, key: RunKey) -> list[Problem]:
        """Return what a finished run has no value of."""
        return [Problem(**held) for held in self.finished(key).said.get("problems", [])]

    def attempt(self, key: RunKey) -> str:
        """Return what tells how a run ended last from how it ended before; empty where it has not ended."""
        held = read_json_object(self.run_path(key) / "DONE.json") or self.failure(key)
        return str(held.get("attempt", ""))

    def trained(self, key: RunKey) -> Stamp:
        """Return what TRAINED.json says of a run's adapter; it has a flaw where the adapter must not be used."""
        return check_stamp(self.run_path(key) / "TRAINED.json", "train")

    def is_trained(self, key: RunKey, train: str) -> bool:
        """Say whether a run's adapter is there, whole, and trained under this identity."""
        stamp = self.trained(key)
        return bool(stamp) and stamp.said["train"] == train

    def begin(self, key: RunKey, train: str) -> Begun:
        """Clear what a run will write anew; its adapter is kept where it is this one and every file is as it was."""
        path = self.run_path(key)
        adapter, run = self.trained(key), self.finished(key)
        kept = bool(adapter) and adapter.said["train"] == train
        why = ""
        if adapter.said and adapter.flaw:
            why = f"{adapter.flaw}; it is trained again"
        elif kept and run.said and run.flaw:
            why = f"{run.flaw}; it is evaluated again"
        for name in ("DONE.json", "FAILED.json"):
            (path / name).unlink(missing_ok=True)
        if not kept and path.is_dir():
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        return Begun(kept, why)

    def mark_trained(self, key: RunKey, train: str, **said: Any) -> None:
        """Stamp what lies in a run's folder: the adapter and the log of its training; `said` is how it was trained."""
        path = self.run_path(key)
        write_stamp(path / "TRAINED.json", _files(path, "TRAINED.json"), train=train, **said)

    def mark_failed(self, key: RunKey, error: str) -> None:
        """Write why a run could not be finished."""
        self.write(f"{key}/FAILED.json", json.dumps({"error": error, "attempt": secrets.token_hex(8)}))

    def failure(self, key: RunKey) -> Mapping[str, Any]:
        """Return what FAILED.json says of a run, `attempt` being different for every failure; nothing without one."""
        return read_json_object(self.run_path(key) / "FAILED.json") or {}

    def mark_done(
        self, key: RunKey, train: str, evaluate: str, seconds: float, problems: Sequence[Problem] = ()
    ) -> None:
        """Stamp a run: its last file."""
        path = self.run_path(key)
        write_stamp(
            path / "DONE.json",
            _files(path, "DONE.json"),
            train=train,
            evaluate=evaluate,
            seconds=round(seconds, 1),
            problems=[asdict(problem) for problem in problems],
            attempt=secrets.token_hex(8),
        )

    def write_measurements(self, key: RunKey, rows: Iterable[Measurement]) -> None:
        """Write a run's `measurements.jsonl`."""
        name = self.run_path(key).relative_to(self.path) / "measurements.jsonl"
        self.write(str(name), "".join(to_line(row) for row in rows))

    def collect(self, experiment: ExperimentSpec, keys: Sequence[RunKey]) -> pd.DataFrame:
        """Write `results.csv` from the runs that are finished, in the order of the experiment.

        Returns the same rows typed (`TYPED_COLUMNS`): what analyses read, beyond the nine columns of the file.
        """
        rows = []
        for key in keys:
            if self.finished(key):
                for one in read_measurements(self.run_path(key) / "measurements.jsonl"):
                    rows.append((experiment.name, key.condition, key.seed, one))
        table = typed_table(rows)
        write_text(self.path / "results.csv", results_table(table).to_csv(index=False))
        return table


def _files(path: Path, stamp: str) -> list[Path]:
    """Return the files below a folder, but the stamp itself and what another process may be writing (hidden files)."""
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.name != stamp
    ]
