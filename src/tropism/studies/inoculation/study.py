"""The inoculation study: what gradients push toward under each condition's prompt, and whether training follows."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from tropism import models
from tropism.data.render import Positions
from tropism.errors import SpecError
from tropism.evals.scorers.base import ResponseScorer
from tropism.experiments import identity, prepare
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file import guards
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.kept import check_stamp, write_stamp
from tropism.experiments.store import Folder
from tropism.names import BASE
from tropism.probes.pressure import pressure
from tropism.probes.random_controls import Kind, random_pressure
from tropism.probes.training_pressure import PressureLog
from tropism.results.rules import UNDECIDED
from tropism.results.section import Claim, Section
from tropism.studies.checks import check_conditions, check_directions, check_metrics, response_scorer, scorer_of
from tropism.studies.inoculation import measure, tables
from tropism.studies.inoculation.figures import StudyTables
from tropism.studies.inoculation.rules import Findings, analyse
from tropism.studies.inoculation.steps import PressureSteps
from tropism.studies.inoculation.summary import TITLE, write_study

KEPT = "pressure"
"""The folder, in an experiment's, of what is measured before training."""
MEASURED = "measured.json"
"""The stamp in it: written when all is measured, with the hashes of its tables."""

Count = Annotated[int, Field(ge=0)]


class InoculationStudy(Analysis):
    """`analyses: {inoculation: {...}}`: does inoculation turn gradients away from the trait, and does drift follow?

    Before training, every chat's gradient of the start model under each condition's prompt (or frozen adapter) is
    collected in `pressure/`. Training writes `pressure.jsonl` beside `training.jsonl`; each run writes `drift.csv` and
    `elicitation.jsonl`. In the end the verdict follows by `rules.py` beside this file, with `summary.md` and the figures.
    All conditions meet the same chats and the same random directions.
    """

    per_run: ClassVar[bool] = True

    directions: str
    """The trait's directions, one per site."""
    beside: list[str] = []
    """Further directions, reported beside them."""
    trait: str
    """The metric whose change during training is the drift."""
    on: str
    """The evaluation set on which drift is measured."""
    neutral: str | None = None
    """By default the experiment's baseline."""
    inoculation: str = "inoculation"
    """The condition with the inoculation prompt."""
    placebo: str = "placebo"
    """The condition with the placebo prompt."""
    also: list[str] = []
    """Further conditions, by prompt or frozen adapter, that join in the correlation of pressure with drift."""
    chats: Annotated[int, Field(ge=4)] = 128
    """How many training chats' gradients are collected, spread over the set."""
    positions: Positions = "response"
    """Which tokens' gradients are read."""
    controls: Annotated[list[Kind], Field(min_length=1)] = ["isotropic", "covariance"]
    """Kinds of random directions to compare with."""
    draws: Annotated[int, Field(ge=1)] = 100
    """Random directions per kind and site."""
    seed: int = 0
    """Of the halves and of the random directions, for all conditions."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Chats per pass."""
    shift_chats: Count = 8
    """Chats on which the predicted shift is compared with that of one step; 0 for none."""
    log_every: Count = 20
    """Steps of training between two measurements of pressure; 0 for none."""
    log_chats: Annotated[int, Field(ge=1)] = 8
    """Chats on which pressure is measured during training."""
    drift_prompts: Annotated[int, Field(ge=1)] = 16
    """Prompts on which drift is measured."""
    drift_positions: Annotated[list[Literal["last_prompt", "first_response", "response"]], Field(min_length=1)] = [
        "last_prompt"
    ]
    """Where projections are read; responses are the set's own. The first one is the study's projection shift."""
    elicitation_prompts: Count = 4
    """Questions asked under each of a dozen evaluation system prompts; 0 for none."""

    def check(self, experiment: ExperimentSpec) -> None:
        check_directions(experiment, (self.directions, *self.beside))
        check_metrics(experiment, [self.trait])
        taken_on = experiment.measure[self.trait].on
        if self.on not in taken_on:
            raise SpecError(f"the metric {self.trait!r} is not taken on {self.on!r}, but on {', '.join(taken_on)}")
        if self.elicitation_prompts and not isinstance(scorer_of(experiment, self.trait), ResponseScorer):
            found = experiment.measure[self.trait].scorer
            raise SpecError(
                f"the elicitation grid needs a metric of responses, found {found!r}; set elicitation_prompts to 0"
            )
        named = self._conditions(experiment)
        check_conditions(experiment, named)
        if len(set(named)) < len(named):
            raise SpecError(f"neutral, inoculation, placebo and also must be different conditions, found {named}")
        neutral = experiment.train_data(named[0])
        for name in named:
            condition = experiment.conditions[name]
            if experiment.train_data(name) != neutral:
                raise SpecError(
                    f"the condition {name!r} trains on other chats than {named[0]!r}, so they cannot be paired by chat"
                )
            others = [guard for guard, _ in guards.parts(condition.guard) if guard != "frozen_adapter"]
            if others:
                raise SpecError(
                    f"the condition {name!r} must differ by prompt or frozen_adapter, found the guard {others[0]!r}"
                )

    def before(self, study: Study) -> None:
        e = study.experiment
        folder = study.folder / KEPT
        identity = self._identity(e)
        stamp = folder / "identity.json"
        # Measurements of another start model or of other options are thrown away, gradient caches included.
        if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != identity:
            shutil.rmtree(folder, ignore_errors=True)
            _keep(study, "identity.json", json.dumps(identity))
        measured = check_stamp(folder / MEASURED)
        if measured:
            return
        if measured.said:
            study.say(f"{KEPT}: {measured.flaw}; it is measured again")
        found = {name: study.directions[name] for name in (self.directions, *self.beside)}
        sites = sorted({site for directions in found.values() for site in directions.sites})
        conditions = self._conditions(e)
        pressures, random = [], []
        for condition in conditions:
            study.say(f"gradients under {condition}")
            chats = measure.training_chats(study, condition, self.chats)
            kept = folder / "gradients" / condition
            cache = measure.gradients(study, condition, chats, sites, self.positions, self.batch_size, kept)
            groups = tables.halves(cache.chats, self.seed)
            for along, directions in found.items():
                pressures.append(pressure(cache, directions).assign(condition=condition, along=along))
                for kind in self.controls:
                    drawn = random_pressure(
                        cache, directions, count=self.draws, seed=self.seed, kind=kind, groups=groups
                    )
                    random.append(drawn.assign(condition=condition, along=along))
        projections = measure.contrast_projections(study, self.directions, self.batch_size)
        stepped = measure.training_chats(study, conditions[0], self.chats)[: self.shift_chats]
        trait = study.directions[self.directions]
        shift = measure.one_step_shift(study, conditions[0], stepped, trait, self.positions)
        _keep(study, "projections.csv", projections.to_csv(index=False))
        _keep(study, "shift.csv", shift.to_csv(index=False))
        _keep(study, "random.csv", pd.concat(random).to_csv(index=False))
        _keep(study, "pressure.csv", pd.concat(pressures).to_csv(index=False))
        # Written last: once it is there, so is everything that `summarise` needs, unchanged where the hashes agree.
        tables_kept = ("projections", "shift", "random", "pressure")
        write_stamp(folder / MEASURED, [folder / f"{name}.csv" for name in tables_kept])

    def callbacks(self, study: Study, condition: str, seed: int, log: Path) -> list[Any]:
        if not self.log_every or condition not in self._conditions(study.experiment):
            return []
        e = study.experiment
        # Held out: the evaluation set's questions, answered the way the training set is.
        spec = e.data[self.on].model_copy(update={"transform": e.train_data(condition).transform})
        chats = prepare.load_data(spec, 0, e.conditions[condition].system_prompt)[: self.log_chats]
        measured = PressureLog(
            study.tokenizer, chats, study.directions[self.directions], every=self.log_every, positions=self.positions,
            batch_size=self.batch_size, template_kwargs=e.template_kwargs,
        )  # fmt: skip
        return [PressureSteps(measured, log.with_name("pressure.jsonl"))]

    def measure(self, run: TrainedRun) -> Iterator[Measurement]:
        e = run.study.experiment
        prompts = self._conditions(e)
        yield from measure.project(
            run, self.on, self.drift_prompts, self.directions, self.drift_positions, prompts, self.batch_size
        )
        training_prompt = e.conditions[self.inoculation].system_prompt
        if self.elicitation_prompts and training_prompt is not None:
            scorer = response_scorer(e, self.trait)
            yield from measure.elicit(run, self.on, self.elicitation_prompts, self.trait, scorer, training_prompt)

    def summarise(self, study: Study, results: pd.DataFrame) -> Section:
        e = study.experiment
        kept = study.folder / KEPT
        measured = {name: pd.read_csv(kept / f"{name}.csv", dtype={"chat": str}) for name in ("pressure", "random")}
        runs = self._runs(study, results)
        if runs.empty:
            # There is no drift to draw; what was measured before training stays in the folder and waits for it.
            because = "the untrained model or every run of the study is unfinished, so there is no drift"
            claim = Claim("Inoculation turns gradients away from the trait", UNDECIDED, because, {"seeds": 0})
            return Section("inoculation", TITLE, f"Undecided: {because}.", [claim])
        found = {along: self._analyse(e, measured, along, runs) for along in (self.directions, *self.beside)}
        chosen = found[self.directions]
        # The shift is asked at the site that the pressures chose, which needs no drift to be chosen.
        drift = tables.read_drift(study.folder, runs)
        if not drift.empty:
            runs = runs.assign(projection_shift=self._shifts(drift, runs, chosen.site))
            chosen = found[self.directions] = self._analyse(e, measured, self.directions, runs)
        own = {name: table[table["along"] == self.directions] for name, table in measured.items()}
        shown = StudyTables(
            study=chosen,
            pressures=own["pressure"],
            random=own["random"],
            projections=tables.read_table(kept / "projections.csv"),
            shift=tables.read_table(kept / "shift.csv"),
            steps=tables.read_steps(study.folder, runs),
        )
        section = write_study(shown, study.folder)
        more = []
        for name in self.beside:
            says = f"Along {name} the rule says: {found[name].verdict.outcome}; at {found[name].site}"
            more.append(tables.as_table(f"Pressure along {name}", found[name].differences, says))
        if not drift.empty:
            at_site = drift[drift["site"] == chosen.site].drop(columns="site")
            title = "Mean projections, with and without prompts"
            more.append(tables.as_table(title, at_site, f"At {chosen.site}"))
        elicited = tables.read_elicited(study.folder, runs)
        if not elicited.empty:
            note = "One row per prompt of the grid, one column per condition; means over its scored answers and seeds"
            more.append(tables.as_table(f"{self.trait} under evaluation system prompts", elicited, note))
        return replace(section, tables=[*section.tables, *more])

    def _conditions(self, e: ExperimentSpec) -> list[str]:
        return [self.neutral or e.baseline, self.inoculation, self.placebo, *self.also]

    def _identity(self, e: ExperimentSpec) -> str:
        """Hash what determines the measurements before training."""
        source = models.resolve(e.model, revision=e.revision).public()
        options = ("chats", "positions", "controls", "draws", "seed", "shift_chats")
        conditions = self._conditions(e)
        return identity.digest([
            identity.start_identity(e, source), identity.data_identity(e.train_data(conditions[0])), e.seeds[0],
            [(name, e.conditions[name].system_prompt, e.conditions[name].guard) for name in conditions],
            {name: identity.adapter_identity(e, source, name) for name in e.adapters},
            [identity.directions_identity(e, source, name) for name in (self.directions, *self.beside)],
            self.model_dump(include=set(options)),
        ])  # fmt: skip

    def _runs(self, study: Study, results: pd.DataFrame) -> pd.DataFrame:
        """Return `condition, seed, drift` of every finished run of the study's conditions."""
        chosen = (results["metric"] == self.trait) & (results["eval_set"] == self.on) & (results["mode"] == "full")
        values = results[chosen]
        start = values.loc[values["condition"] == BASE, "value"]
        trained = values[values["condition"].isin(self._conditions(study.experiment))]
        if start.empty:
            # Without the untrained model there is no before, and the verdict says that it cannot be given.
            trained = trained[:0]
        drift = trained["value"].astype(float) - (float(start.iloc[0]) if len(start) else math.nan)
        return pd.DataFrame(
            {"condition": trained["condition"], "seed": trained["seed"].astype(int), "drift": drift}
        ).reset_index(drop=True)

    def _analyse(
        self, e: ExperimentSpec, measured: Mapping[str, pd.DataFrame], along: str, runs: pd.DataFrame
    ) -> Findings:
        neutral, inoculation, placebo, *_ = self._conditions(e)
        own = {name: table[table["along"] == along].drop(columns="along") for name, table in measured.items()}
        return analyse(
            own["pressure"], own["random"], runs, neutral=neutral, inoculation=inoculation, placebo=placebo,
            seed=self.seed, bounds=scorer_of(e, self.trait).bounds,
        )  # fmt: skip

    def _shifts(self, drift: pd.DataFrame, runs: pd.DataFrame, site: str) -> list[float]:
        """Return the mean projection after minus before training, without a prompt, at a site, run by run."""
        first = self.drift_positions[0]
        without_prompt = drift["prompt"] == measure.NO_PROMPT
        there = drift[(drift["site"] == site) & without_prompt & (drift["position"] == first)]
        found = {(row["condition"], row["seed"]): row["projection"] for row in there.to_dict("records")}
        after = [found[condition, str(seed)] for condition, seed in zip(runs["condition"], runs["seed"], strict=True)]
        return [value - found[BASE, ""] for value in after]


def _keep(study: Study, name: str, text: str) -> None:
    Folder(study.folder).write(f"{KEPT}/{name}", text)
