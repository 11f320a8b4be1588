"""What directions are inside each model: how its activations vary along them, where they lie, where its gradients point."""

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar

import pandas as pd
from pydantic import Field

from tropism.data.chats import Example
from tropism.data.render import Positions
from tropism.directions.artifact import Directions
from tropism.errors import DataError, SpecError
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file.spec import ExperimentSpec
from tropism.probes.projection import projection
from tropism.results.section import Section, Table
from tropism.studies.checks import check_directions
from tropism.studies.concept_ablation.measure import inside_all

BY_SITE = "directions.csv"
METRICS = {
    "variance_share": "share of the variance along them",
    "gradient_cosine": "cosine of gradient and subspace",
    "projection": "mean projection onto the direction",
    "mean_along": "length of the mean's component in the subspace",
}


class InsideStudy(Analysis):
    """`analyses: {inside: {on: SET}}`: directions read in every run, trained here or there already, without any guard.

    Each run, the untrained model included, is read on the same chats, responses included. Rows of `results.csv`, means
    over sites, for each of the directions:

    | metric | what |
    |---|---|
    | `variance_share_NAME` | the share of the activations' variance that lies along the directions |
    | `gradient_cosine_NAME` | cosine of the response loss's gradient and the subspace, mean over chats |
    | `projection_NAME` | mean projection onto the direction, where there is one a site |
    | `mean_along_NAME` | length of the mean activation's component in the subspace, where there are several |

    `directions.csv` in each run's folder has them by site, with what chance would give. It decides nothing: the study
    `concept_ablation` has rules.
    """

    per_run: ClassVar[bool] = True

    on: str
    """The set under `data:` whose chats, responses included, are read."""
    directions: list[str] = []
    """Which directions are read; by default all of the file."""
    chats: Annotated[int, Field(ge=2)] = 16
    """How many chats are read."""
    positions: Positions = "response"
    """Which tokens of a chat are read."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Chats per forward pass."""

    def check(self, experiment: ExperimentSpec) -> None:
        if self.on not in experiment.data or self.on == "train":
            others = ", ".join(name for name in experiment.data if name != "train") or "none"
            raise SpecError(
                f"on: must name a set under 'data:' that is not trained on, found {self.on!r}; defined: {others}"
            )
        check_directions(experiment, self.directions)
        if not experiment.directions:
            raise SpecError("it reads directions, and the file has none; add some under 'directions:'")

    def reads_directions(self, experiment: ExperimentSpec) -> list[str]:
        return self.directions or list(experiment.directions)

    def before(self, study: Study) -> None:
        silent = [example.id for example in self._chats(study) if example.response is None]
        if silent:
            raise DataError(
                f"inside: the chats of {self.on!r} must hold responses, found {silent[0]!r} without one; name another set"
            )

    def measure(self, run: TrainedRun) -> Iterator[Measurement]:
        chats, kwargs = self._chats(run.study), run.study.experiment.template_kwargs
        found = {name: run.study.directions[name] for name in self.reads_directions(run.study.experiment)}
        table = inside_all(
            run.model, run.study.tokenizer, chats, found, positions=self.positions, batch_size=self.batch_size,
            template_kwargs=kwargs,
        )  # fmt: skip
        single = {name: one for name, one in found.items() if all(len(rows) == 1 for rows in one.vectors.values())}
        projected = {name: self._projected(run, chats, one) for name, one in single.items()}
        table["projection"] = [
            projected[name][site] if name in projected else None
            for name, site in zip(table["directions"], table["site"], strict=True)
        ]
        table.to_csv(run.folder / BY_SITE, index=False)
        for name, rows in table.groupby("directions", sort=False):
            yield from self._rows(str(name), rows, len(chats), one=name in projected)

    def _projected(self, run: TrainedRun, chats: list[Example], directions: Directions) -> dict[str, float]:
        """The mean projection at every site."""
        table = projection(
            run.model, run.study.tokenizer, chats, directions, self.positions, self.batch_size,
            template_kwargs=run.study.experiment.template_kwargs,
        )  # fmt: skip
        return {str(site): float(value) for site, value in table.groupby("site")["projection"].mean().items()}

    def _rows(self, name: str, rows: pd.DataFrame, chats: int, *, one: bool) -> Iterator[Measurement]:
        columns = {"variance_share": "share", "gradient_cosine": "cosine"}
        columns |= {"projection": "projection"} if one else {"mean_along": "mean_along"}
        for metric, column in columns.items():
            known = rows[column].dropna().astype(float)
            value = float(known.mean()) if len(known) else None
            bounds = None if metric in ("projection", "mean_along") else (0.0, 1.0)
            n = chats if len(known) else 0
            yield Measurement(self.on, f"{metric}_{name}", value, n, chats - n, bounds=bounds)

    def summarise(self, study: Study, results: pd.DataFrame) -> Section | None:
        named = self.reads_directions(study.experiment)
        tables = [table for metric in METRICS for name in named if (table := _table(results, metric, name)) is not None]
        if not tables:
            return None
        return Section(
            name="inside",
            title="The directions inside each model",
            summary="Read without any guard, on the same chats, in every run; means over sites and seeds.",
            tables=tables,
        )

    def _chats(self, study: Study) -> list[Example]:
        examples = study.data(self.on)
        return examples[:: max(1, len(examples) // self.chats)][: self.chats]


def _table(results: pd.DataFrame, metric: str, name: str) -> Table | None:
    rows = results[results["metric"] == f"{metric}_{name}"]
    if rows.empty:
        return None
    means = rows.groupby("condition", sort=False)["value"].agg(["mean", "min", "max", "count"]).reset_index()
    held: Iterable[list[object]] = means.values.tolist()
    return Table(
        f"{name}: {METRICS[metric]}", ["condition", "mean", "least", "most", "runs"], [list(row) for row in held]
    )
