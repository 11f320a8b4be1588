"""Read an experiment's folder: everything a report needs, checked once, with no model and no torch.

Nothing is dropped silently. What cannot be read raises with file and line; what must not be averaged (runs that
failed or never finished, values that are not finite) is kept apart and becomes a caveat of the report.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tropism import notebook
from tropism.errors import RunFolderError
from tropism.names import BASE, run_name
from tropism.results import sequential
from tropism.results.arms import is_trained
from tropism.results.measurement import RESULT_COLUMNS, Measurement, read_measurements
from tropism.results.problem import Problem
from tropism.results.section import Section
from tropism.results.sequential import Sequential
from tropism.stats import Look

KEY = ["condition", "seed", "mode", "eval_set", "metric"]
"""What identifies a measurement."""
SCORE_COLUMNS = ("condition", "seed", "mode", "eval_set", "id", "metric", "value", "unscored")
FACTS = ("per_response", "lowest", "highest")
"""What a table of results may know beside its nine columns: see `Measurement`."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One condition × seed (or the untrained base model, without a seed), as its folder has it."""

    condition: str
    seed: int | None
    path: Path
    state: str
    """`done`, `failed` or `unfinished`."""
    error: str
    problems: tuple[Problem, ...] = ()
    """What a finished run has no value of, and why."""
    cut: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    """Evaluation set → how many answers were cut off at `max_new_tokens`, of how many; older runs say nothing."""

    def training(self) -> list[Json]:
        """Read the rows of `training.jsonl`; the base model has none."""
        return list(read_jsonl(self.path / "training.jsonl"))

    def responses(self) -> list[Json]:
        """Read the rows of `responses.jsonl`."""
        return list(read_jsonl(self.path / "responses.jsonl"))

    def measurements(self) -> list[Measurement]:
        """Read `measurements.jsonl`; empty where the run has none."""
        file = self.path / "measurements.jsonl"
        return read_measurements(file) if file.is_file() else []


@dataclass(frozen=True)
class ExperimentFolder:
    """The folder of a whole experiment, loaded."""

    path: Path
    experiment: Json
    environment: Json
    results: pd.DataFrame
    """The measurements that are finite, `seed` as a nullable integer, with the columns `FACTS` where runs recorded them."""
    unusable: int
    """How many rows of `results.csv` had no finite value."""
    runs: tuple[Run, ...]
    analyses: tuple[Section, ...]
    validity: Mapping[str, Json]
    """Directions → their validity report, as written beside them."""
    rendered: Mapping[str, Json]
    """Condition → its first training example as the model read it: `text` and `input_ids`."""
    sequential: Sequential | None = None
    """How seeds were added until it was decided; None where their number was fixed."""

    def _repr_html_(self) -> str:
        facts = {
            "question": self.experiment.get("question"),
            "model": self.experiment.get("model"),
            "runs": f"{len(self.finished)} of {len(self.runs)} done",
            "measurements": f"{len(self.results)}"
            + (f", and {self.unusable} without a value" if self.unusable else ""),
            "analyses": ", ".join(dict.fromkeys(section.title for section in self.analyses)),
        }
        return notebook.shown(f"Results of {self.name}", facts, "tp.show_report(FOLDER) shows the report")

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.experiment.get("name", self.path.name))

    @property
    def look(self) -> Look | None:
        """The look that the results are read at; None where the number of seeds was fixed."""
        return None if self.sequential is None else self.sequential.look(len(self.experiment.get("seeds") or []))

    @property
    def finished(self) -> tuple[Run, ...]:
        """The runs that are done."""
        return tuple(run for run in self.runs if run.state == "done")

    @cached_property
    def responses(self) -> list[Json]:
        """Every response of every finished run."""
        return [row for run in self.finished for row in run.responses()]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per response and metric: `condition, seed, mode, eval_set, id, metric, value, unscored`."""
        return scores_table(self.responses)


def load(path: Path) -> ExperimentFolder:
    """Read an experiment's folder.

    Raises:
        RunFolderError: `experiment.yaml` is missing, a file is damaged, or `results.csv` has another schema
        or a row twice.
    """
    described = path / "experiment.yaml"
    if not described.is_file():
        raise RunFolderError(
            f"{path}: not an experiment folder: experiment.yaml is missing; give the folder that `tropism run` wrote"
        )
    try:
        experiment = yaml.safe_load(described.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunFolderError(
            f"{described}: is not valid YAML ({error}); restore it or run the experiment again"
        ) from None
    if not isinstance(experiment, dict):
        raise RunFolderError(f"{described}: must be a mapping, found {type(experiment).__name__}")
    results, unusable = load_results(path / "results.csv")
    environment, rendered = path / "environment.json", path / "rendered.json"
    runs = tuple(_runs(path, experiment))
    return ExperimentFolder(
        path,
        experiment,
        read_json(environment) if environment.is_file() else {},
        _with_facts(results, runs),
        unusable,
        runs,
        tuple(_analyses(path)),
        dict(_validity(path)),
        read_json(rendered) if rendered.is_file() else {},
        sequential.read(path),
    )


def load_results(path: Path) -> tuple[pd.DataFrame, int]:
    """Return the finite rows of a `results.csv`, and how many were not; a missing file is an empty table."""
    if not path.is_file():
        return pd.DataFrame({name: [] for name in RESULT_COLUMNS}).astype({"seed": "Int64"}), 0
    try:
        # As text, so that what is not a number can be quoted in the message, and a condition called "nan" stays one.
        table = pd.read_csv(path, dtype=dict.fromkeys(RESULT_COLUMNS, str), keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{path}: cannot be read as CSV ({error}); run the experiment again to rewrite it"
        ) from None
    return check_results(table, str(path))


def check_results(table: pd.DataFrame, where: str = "results") -> tuple[pd.DataFrame, int]:
    """Return a table with numbers as numbers and every measurement once, and how many rows were not finite.

    Of further columns, `FACTS` stay.

    Raises:
        RunFolderError: a column is missing, a number is not one, or a measurement is there twice.
    """
    missing = [name for name in RESULT_COLUMNS if name not in table.columns]
    if missing:
        raise RunFolderError(
            f"{where}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; expected "
            f"{', '.join(RESULT_COLUMNS)}, found {', '.join(map(str, table.columns)) or 'none'}"
        )
    facts = [name for name in FACTS if name in table.columns]
    table = table.loc[:, [*RESULT_COLUMNS, *facts]].copy()
    for name in ("seed", "value", "n", "unscored"):
        table[name] = _as_numbers(table[name], name, where)
    table["seed"] = table["seed"].astype("Int64")
    table["unscored"] = table["unscored"].fillna(0).astype("int64")
    table["n"] = table["n"].fillna(0).astype("int64")
    twice = table.duplicated(KEY)
    if twice.any():
        found = ", ".join(f"{name}={table.loc[twice, name].iloc[0]}" for name in KEY)
        raise RunFolderError(
            f"{where}: has a measurement twice ({found}); each must be there once, so remove the wrong one"
        )
    finite = table["value"].map(lambda value: value is not None and math.isfinite(value)).astype(bool)
    return table[finite].reset_index(drop=True), int((~finite).sum())


def _as_numbers(column: "pd.Series[Any]", name: str, where: str) -> "pd.Series[float]":
    """Read a column as numbers; empty and `nan` are missing, anything else that is not a number raises."""
    text = column.astype(object).where(column.notna(), "")
    numbers = pd.to_numeric(text.replace("", None), errors="coerce")
    wrong = numbers.isna() & ~text.astype(str).str.lower().isin(["", "nan", "none", "<na>"])
    if wrong.any():
        # Counted as an editor does: the header is row 1.
        row = int(wrong.argmax()) + 2
        raise RunFolderError(f"{where}: column {name}, row {row}: is not a number: {text[wrong].iloc[0]!r}")
    return numbers.astype("float64")


def scores_table(responses: list[Json]) -> pd.DataFrame:
    """Turn responses into one row per score; NaN where unscored."""
    rows = []
    for row in responses:
        of_response = (row["condition"], row.get("seed"), row.get("mode", "full"), row["eval_set"], str(row["id"]))
        for metric, score in row.get("scores", {}).items():
            rows.append((*of_response, metric, _finite(score.get("value")), score.get("unscored")))
    table = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    return table.astype({"seed": "Int64", "value": "float64"})


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def read_json(path: Path) -> Json:
    """Read one JSON object; raise `RunFolderError` for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    return value


def read_jsonl(path: Path) -> Iterator[Json]:
    """Read the objects of a `.jsonl` file, none where there is no file; a damaged line raises with its number."""
    if not path.is_file():
        return
    # A response may hold any other line separator as part of its text.
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise RunFolderError(
                    f"{path}:{number}: is not valid JSON ({error.msg}); run it again to rewrite it"
                ) from None
            if not isinstance(value, dict):
                raise RunFolderError(f"{path}:{number}: must be a JSON object, found {type(value).__name__}")
            yield value


def _with_facts(results: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Put what the runs recorded of their measurements beside the rows of `results.csv`."""
    recorded: dict[tuple[Any, ...], Measurement] = {}
    for run in runs:
        if run.state == "done":
            for one in run.measurements():
                recorded[run.condition, run.seed, one.mode, one.eval_set, one.name] = one
    rows = []
    for row in results[KEY].to_dict("records"):
        seed = None if pd.isna(row["seed"]) else int(row["seed"])
        found = recorded.get((row["condition"], seed, row["mode"], row["eval_set"], row["metric"]))
        lowest, highest = (found.bounds if found is not None else None) or (math.nan, math.nan)
        rows.append((None if found is None else found.per_response, lowest, highest))
    facts = pd.DataFrame(rows, columns=list(FACTS), index=results.index)
    return results.join(facts.astype({"per_response": "boolean", "lowest": "float64", "highest": "float64"}))


def _runs(path: Path, experiment: Json) -> Iterator[Run]:
    # The file does not list the untrained model; it is there once it has been evaluated.
    if (path / BASE).is_dir():
        yield _run(BASE, None, path)
    for condition in experiment.get("conditions") or {}:
        if not is_trained(experiment, condition):
            yield _run(str(condition), None, path)
            continue
        for seed in experiment.get("seeds") or []:
            yield _run(str(condition), int(seed), path)


def _run(condition: str, seed: int | None, folder: Path) -> Run:
    path = folder / run_name(condition, seed)
    if (path / "DONE.json").is_file():
        stamp = _stamp(path / "DONE.json")
        return Run(condition, seed, path, "done", "", _problems(stamp), _cut(stamp))
    failed = path / "FAILED.json"
    if failed.is_file():
        return Run(condition, seed, path, "failed", str(read_json(failed).get("error", "no reason was written")))
    return Run(condition, seed, path, "unfinished", "")


def _stamp(done: Path) -> Any:
    """Read what a finished run says of itself; nothing where that is damaged."""
    try:
        return json.loads(done.read_text(encoding="utf-8"))
    except ValueError:
        return {}


def _problems(stamp: Any) -> tuple[Problem, ...]:
    """Find what a finished run has no value of; older runs, and those whose stamp is damaged, name nothing."""
    try:
        return tuple(Problem(**problem) for problem in stamp.get("problems", []))
    except (TypeError, AttributeError):
        return ()


def _cut(stamp: Any) -> dict[str, tuple[int, int]]:
    """Find how many answers were cut off; as untrusted as every file of a folder."""
    try:
        return {str(name): (int(cut), int(of)) for name, (cut, of) in stamp.get("cut", {}).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _analyses(path: Path) -> Iterator[Section]:
    for file in sorted((path / "analyses").glob("*.json")):
        try:
            yield Section.load(file)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{file}: is not an analysis that can be shown ({error}); run the analysis again"
            ) from None


def _validity(path: Path) -> Iterator[tuple[str, Json]]:
    for file in sorted((path / "directions").glob("*.validity.json")):
        yield file.name.removesuffix(".validity.json"), read_json(file)
