"""Reads a run's folder: everything a report needs, checked once, with no model and no torch.

Nothing is silently dropped: what cannot be read raises with file and line, what should not be averaged (runs
that failed or never finished, values that are not finite) is kept apart and becomes a caveat of the report.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tropism.errors import RunFolderError
from tropism.names import BASE, run_name
from tropism.results.section import Section

RESULT_COLUMNS = ("experiment", "condition", "seed", "mode", "eval_set", "metric", "value", "n", "unscored")
"""The columns of `results.csv`; one row a measurement."""
KEY = ["condition", "seed", "mode", "eval_set", "metric"]
"""What identifies a measurement."""
SCORE_COLUMNS = ("condition", "seed", "mode", "eval_set", "id", "metric", "value", "unscored")

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One condition × seed (or the untrained base model, without seed), as its folder has it."""

    condition: str
    seed: int | None
    path: Path
    state: str
    """`done`, `failed` or `unfinished`."""
    error: str

    def training(self) -> list[Json]:
        """The rows of `training.jsonl`; none for the base model."""
        return list(read_jsonl(self.path / "training.jsonl"))

    def responses(self) -> list[Json]:
        """The rows of `responses.jsonl`."""
        return list(read_jsonl(self.path / "responses.jsonl"))


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, loaded."""

    path: Path
    experiment: Json
    environment: Json
    results: pd.DataFrame
    """The measurements that are finite, with `seed` as a nullable integer."""
    unusable: int
    """How many rows of `results.csv` had no finite value."""
    runs: tuple[Run, ...]
    analyses: tuple[Section, ...]
    validity: Mapping[str, Json]
    """Direction → its validity report, as written beside the directions."""
    rendered: Mapping[str, Json]
    """Condition → its first training example as the model read it: `text` and `input_ids`."""

    @property
    def name(self) -> str:
        return str(self.experiment.get("name", self.path.name))

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == "done")

    @cached_property
    def responses(self) -> list[Json]:
        """Every response of every finished run."""
        return [row for run in self.finished for row in run.responses()]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a response and metric: `condition, seed, mode, eval_set, id, metric, value, unscored`."""
        return scores_table(self.responses)


def load(path: Path) -> RunFolder:
    """Read a run's folder.

    Raises:
        RunFolderError: there is no `experiment.yaml`, a file is damaged, or `results.csv` has another schema
        or a row twice.
    """
    described = path / "experiment.yaml"
    if not described.is_file():
        raise RunFolderError(
            f"{path}: is no run's folder, it has no experiment.yaml; give the folder that `tropism run` wrote"
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
    environment = read_json(path / "environment.json") if (path / "environment.json").is_file() else {}
    return RunFolder(
        path,
        experiment,
        environment,
        results,
        unusable,
        tuple(_runs(path, experiment)),
        tuple(_analyses(path)),
        dict(_validity(path)),
        read_json(path / "rendered.json") if (path / "rendered.json").is_file() else {},
    )


def load_results(path: Path) -> tuple[pd.DataFrame, int]:
    """The finite rows of a `results.csv`, and how many rows were not; no file is an empty table."""
    if not path.is_file():
        return pd.DataFrame({name: [] for name in RESULT_COLUMNS}).astype({"seed": "Int64"}), 0
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(RESULT_COLUMNS, str), keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{path}: cannot be read as CSV ({error}); run the experiment again to write it anew"
        ) from None
    return check_results(table, str(path))


def check_results(table: pd.DataFrame, where: str = "results") -> tuple[pd.DataFrame, int]:
    """A table of measurements with known columns, numbers as numbers and every measurement once; and how many
    were not finite.

    Raises:
        RunFolderError: a column is missing, a number is none, or a measurement is there twice.
    """
    missing = [name for name in RESULT_COLUMNS if name not in table.columns]
    if missing:
        raise RunFolderError(
            f"{where}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; expected "
            f"{', '.join(RESULT_COLUMNS)}, found {', '.join(map(str, table.columns)) or 'none'}"
        )
    table = table.loc[:, list(RESULT_COLUMNS)].copy()
    for name in ("seed", "value", "n", "unscored"):
        text = table[name].astype(object).where(table[name].notna(), "")
        numbers = pd.to_numeric(text.replace("", None), errors="coerce")
        wrong = numbers.isna() & ~text.astype(str).str.lower().isin(["", "nan", "none", "<na>"])
        if wrong.any():
            raise RunFolderError(
                f"{where}: column {name}, row {int(wrong.argmax()) + 2}: is not a number: {text[wrong].iloc[0]!r}"
            )
        table[name] = numbers.astype("float64")
    table["seed"] = table["seed"].astype("Int64")
    table["unscored"] = table["unscored"].fillna(0).astype("int64")
    table["n"] = table["n"].fillna(0).astype("int64")
    twice = table.duplicated(KEY)
    if twice.any():
        found = ", ".join(f"{name}={table.loc[twice, name].iloc[0]}" for name in KEY)
        raise RunFolderError(
            f"{where}: has a measurement twice ({found}); each must be there once, remove the one that is wrong"
        )
    finite = table["value"].map(lambda value: value is not None and math.isfinite(value)).astype(bool)
    return table[finite].reset_index(drop=True), int((~finite).sum())


def scores_table(responses: list[Json]) -> pd.DataFrame:
    """Responses → one row a score; NaN where unscored."""
    rows = [
        (
            row["condition"],
            row.get("seed"),
            row.get("mode", "full"),
            row["eval_set"],
            str(row["id"]),
            metric,
            _number(score.get("value")),
            score.get("unscored"),
        )
        for row in responses
        for metric, score in row.get("scores", {}).items()
    ]
    table = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    return table.astype({"seed": "Int64", "value": "float64"})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def read_json(path: Path) -> Json:
    """One JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RunFolderError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    return value


def read_jsonl(path: Path) -> Iterator[Json]:
    """The objects of a `.jsonl` file; a file that is not there has none."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise RunFolderError(
                    f"{path}:{number}: is not valid JSON ({error.msg}); run it again to write it anew"
                ) from None
            if not isinstance(value, dict):
                raise RunFolderError(f"{path}:{number}: must be a JSON object, found {type(value).__name__}")
            yield value


def _runs(path: Path, experiment: Json) -> Iterator[Run]:
    if (path / BASE).is_dir():
        yield _run(BASE, None, path)
    for condition in experiment.get("conditions") or {}:
        for seed in experiment.get("seeds") or []:
            yield _run(str(condition), int(seed), path)


def _run(condition: str, seed: int | None, folder: Path) -> Run:
    path = folder / run_name(condition, seed)
    if (path / "DONE.json").is_file():
        return Run(condition, seed, path, "done", "")
    if (path / "FAILED.json").is_file():
        return Run(
            condition,
            seed,
            path,
            "failed",
            str(read_json(path / "FAILED.json").get("error", "no reason was written")),
        )
    return Run(condition, seed, path, "unfinished", "")


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
