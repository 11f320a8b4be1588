"""The concept-ablation study: what ablating activations, projecting gradients and steering each remove, and leave inside."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar

import pandas as pd
from pydantic import Field

from tropism.data.chats import Example
from tropism.data.render import Positions
from tropism.errors import DataError, SpecError
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file import guards
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder
from tropism.results.folder import load
from tropism.results.section import Figure, Section
from tropism.studies.checks import check_directions, scorer_of
from tropism.studies.concept_ablation import figures, rules
from tropism.studies.concept_ablation.from_table import paired_cells
from tropism.studies.concept_ablation.measure import inside_all
from tropism.studies.concept_ablation.rules import Arm, Asked, Column
from tropism.studies.concept_ablation.section import analyse

INSIDE = "inside.csv"
TABLE = "analyses/concept_ablation.csv"


class ConceptAblationStudy(Analysis):
    """`analyses: {concept_ablation: {...}}`: does the trait come from gradient updates, or from features being there?

    The file's conditions say what is compared: every condition with one guard on directions (`ablation`,
    `gradient_projection`, `steering`), those with `random` as controls. At least one ablation and one gradient projection
    must be on the same directions. Each run, the untrained model included, is read without its guard on the same chats:
    variance along the directions and cosine of gradient and subspace, per site, in its `inside.csv`. The rules are in
    `rules.py` beside this file; `analyses/concept_ablation.csv` has every number, a row per run, directions and site.
    """

    per_run: ClassVar[bool] = True

    on: str
    """The set under `data:` whose chats, responses included, are read: one with the trait in its responses."""
    directions: list[str] = []
    """Which directions are read; by default all that the conditions' guards are on."""
    trait: str | None = None
    """The unwanted metric; by default the first that is marked `unwanted`."""
    trait_on: str | None = None
    """Its evaluation set; by default its first."""
    coherence: str | None = None
    """A metric of which less is better (a perplexity), for the trade-off beside the wanted ones."""
    chats: Annotated[int, Field(ge=2)] = 16
    """How many chats are read."""
    positions: Positions = "response"
    """Which tokens of a chat are read."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Chats per forward pass."""
    margin: Annotated[float, Field(gt=0)] = 0.1
    """How far apart two amounts of the trait may be and still count as equal."""

    def check(self, experiment: ExperimentSpec) -> None:
        if self.on not in experiment.data or self.on == "train":
            others = ", ".join(name for name in experiment.data if name != "train") or "none"
            raise SpecError(
                f"on: must name a set under 'data:' that is not trained on, found {self.on!r}; defined: {others}"
            )
        check_directions(experiment, self.directions)
        arms = arms_of(experiment)
        if not rules.pairs(arms):
            raise SpecError(
                "it compares an ablation with a gradient projection on the same directions, and no two conditions are "
                f"such a pair; guards on directions are in: {', '.join(arm.condition for arm in arms) or 'no condition'}"
            )
        unwanted = [name for name, measure in experiment.measure.items() if measure.unwanted]
        if self.trait is None and not unwanted:
            raise SpecError("trait: name a metric, since none is marked 'unwanted'")
        for option, metric in (("trait", self.trait), ("coherence", self.coherence)):
            if metric is not None and metric not in experiment.measure:
                raise SpecError(f"{option}: no metric is called {metric!r}; available: {', '.join(experiment.measure)}")
        trait = self._trait(experiment)
        if trait[1] not in experiment.measure[trait[0]].on:
            on = ", ".join(experiment.measure[trait[0]].on)
            raise SpecError(f"trait_on: the metric {trait[0]!r} is not taken on {trait[1]!r}, but on {on}")

    def reads_directions(self, experiment: ExperimentSpec) -> list[str]:
        return self.directions or list(dict.fromkeys(arm.directions for arm in arms_of(experiment)))

    def before(self, study: Study) -> None:
        silent = [example.id for example in self._chats(study) if example.response is None]
        if silent:
            raise DataError(
                f"concept_ablation: the chats of {self.on!r} must hold responses, found {silent[0]!r} without one; name "
                "another set with 'on:'"
            )

    def measure(self, run: TrainedRun) -> Iterable[Measurement]:
        found = {name: run.study.directions[name] for name in self.reads_directions(run.study.experiment)}
        table = inside_all(
            run.model, run.study.tokenizer, self._chats(run.study), found, positions=self.positions,
            batch_size=self.batch_size, template_kwargs=run.study.experiment.template_kwargs,
        )  # fmt: skip
        table.to_csv(run.folder / INSIDE, index=False)
        return ()

    def summarise(self, study: Study, results: pd.DataFrame) -> Section | None:
        e, folder = study.experiment, load(study.folder)
        measured = []
        for run in folder.finished:
            if (run.path / INSIDE).is_file():
                measured.append(pd.read_csv(run.path / INSIDE).assign(condition=run.condition, seed=run.seed))
        if not measured:
            return None
        table = rules.against_base(pd.concat(measured)[list(rules.COLUMNS)])
        Folder(study.folder).write(TABLE, table.assign(seed=table["seed"].astype("Int64")).to_csv(index=False))
        arms = arms_of(e)
        found = analyse(table, arms, self._asked(e), partial(paired_cells, folder=folder))
        shown = [e.baseline, *(arm.condition for arm in arms)]
        drawn = figures.draw(table, {arm.condition: arm.directions for arm in arms}, shown, study.folder / "figures")
        caption = "Inside the trained models, by site; dotted: as in the base (above), by chance (below)"
        return replace(found, figures=[Figure(drawn, caption)])

    def _trait(self, e: ExperimentSpec) -> Column:
        metric = self.trait or next(name for name, measure in e.measure.items() if measure.unwanted)
        return metric, self.trait_on or e.measure[metric].on[0]

    def _asked(self, e: ExperimentSpec) -> Asked:
        kept: dict[Column, int] = {}
        for name, measure in e.measure.items():
            if measure.wanted:
                kept |= dict.fromkeys(((name, on) for on in measure.on), 1)
        if self.coherence is not None:
            kept |= dict.fromkeys(((self.coherence, on) for on in e.measure[self.coherence].on), -1)
        trait = self._trait(e)
        metrics = {metric for metric, _ in (trait, *kept)}
        bounds = {metric: scorer_of(e, metric).bounds for metric in metrics}
        return Asked(e.baseline, trait, kept, self.margin, bounds)

    def _chats(self, study: Study) -> list[Example]:
        examples = study.data(self.on)
        return examples[:: max(1, len(examples) // self.chats)][: self.chats]


def arms_of(experiment: ExperimentSpec) -> list[Arm]:
    """Return the conditions whose one guard acts on directions of activations, in the order of the file."""
    found = []
    for name, condition in experiment.conditions.items():
        parts = guards.parts(condition.guard)
        if len(parts) != 1:
            continue
        guard, options = parts[0]
        directions = options.get("directions")
        if guard in (rules.FORWARD, rules.BACKWARD, "steering") and directions in experiment.directions:
            mode = str(options.get("mode", "both")) if guard == rules.FORWARD else ""
            found.append(Arm(name, guard, str(directions), mode, bool(options.get("random", False))))
    return found
