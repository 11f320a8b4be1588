"""The inoculation study: what gradients push toward under each condition's prompt, and whether training follows."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from tropism import models
from tropism.data.chats import Example
from tropism.data.generation import generate
from tropism.data.render import Positions
from tropism.data.transforms import SystemPrompt
from tropism.errors import SpecError
from tropism.evals.scorers.base import ResponseScorer, Sample
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments import directions as directions_step
from tropism.experiments import prepare, store
from tropism.experiments.analyses import Analysis, Measurement, Study, TrainedRun
from tropism.experiments.file import guards
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.store import Folder
from tropism.names import BASE
from tropism.probes.conditions import elicitation_grid
from tropism.probes.gradient_cache import GradientCache
from tropism.probes.gradients import collect_gradients
from tropism.probes.pressure import pressure
from tropism.probes.projection import projection
from tropism.probes.random_controls import Kind, random_pressure
from tropism.probes.shift import predicted_and_realised_shift
from tropism.probes.training_pressure import PressureLog
from tropism.results.section import UNDECIDED, Claim, Section
from tropism.studies.inoculation import folder as pressure_folder
from tropism.studies.inoculation.figures import StudyTables
from tropism.studies.inoculation.folder import as_table
from tropism.studies.inoculation.rules import InoculationStudy, analyse
from tropism.studies.inoculation.section import write_study
from tropism.studies.inoculation.steps import PressureSteps
from tropism.studies.inoculation.tables import halves

KEPT = "pressure"
"""The folder, in an experiment's, of what is measured before training."""

NO_PROMPT = "no prompt"

Count = Annotated[int, Field(ge=0)]


class PressureStudy(Analysis):
    """`analyses: {pressure: {...}}`: does inoculation turn gradients away from the trait, and does drift follow?

    Before training, every chat's gradient of the start model under each condition's prompt (or frozen adapter) is
    collected in `pressure/`. Training writes `pressure.jsonl` beside `training.jsonl`; each run writes `drift.csv` and
    `elicitation.jsonl`. In the end `tropism.studies.inoculation.rules` gives the verdict, `summary.md` and the figures. All
    conditions meet the same chats and the same random directions.
    """

    per_run: ClassVar[bool] = True

    directions: str
    """The trait's directions, one a site."""
    beside: list[str] = []
    """Further directions, to be reported beside."""
    trait: str
    """The metric whose change in training is the drift."""
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
    """Chats on which the predicted shift is compared with that of one step; 0: none."""
    log_every: Count = 20
    """Steps of training between two measurements of pressure; 0: none."""
    log_chats: Annotated[int, Field(ge=1)] = 8
    """Chats on which pressure is measured during training."""
    drift_prompts: Annotated[int, Field(ge=1)] = 16
    """Prompts on which drift is measured."""
    drift_positions: Annotated[list[Literal["last_prompt", "first_response", "response"]], Field(min_length=1)] = [
        "last_prompt"
    ]
    """Where projections are read; responses are the set's own. The first one is the study's projection shift."""
    elicitation_prompts: Count = 4
    """Questions asked under each of a dozen evaluation system prompts; 0: none."""

    def check(self, experiment: ExperimentSpec) -> None:
        for name in (self.directions, *self.beside):
            if name not in experiment.directions:
                defined = ", ".join(experiment.directions) or "none"
                raise SpecError(f"no directions are called {name!r}; defined are {defined}")
        if self.trait not in experiment.measure:
            raise SpecError(f"no metric is called {self.trait!r}; defined are {', '.join(experiment.measure)}")
        measure = experiment.measure[self.trait]
        if self.on not in measure.on:
            raise SpecError(f"the metric {self.trait!r} is not taken on {self.on!r}, but on {', '.join(measure.on)}")
        by_response = isinstance(load_scorer(measure.scorer, measure.options()), ResponseScorer)
        if self.elicitation_prompts and not by_response:
            raise SpecError(
                f"the elicitation grid needs a metric of responses, found {measure.scorer!r}; set elicitation_prompts "
                "to 0"
            )
        named = self._conditions(experiment)
        for name in named:
            if name not in experiment.conditions:
                raise SpecError(f"no condition is called {name!r}; defined are {', '.join(experiment.conditions)}")
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
        if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != identity:
            shutil.rmtree(folder, ignore_errors=True)
            _keep(study, "identity.json", json.dumps(identity))
        elif (folder / "pressure.csv").is_file():
            return
        found = {name: study.directions[name] for name in (self.directions, *self.beside)}
        pressures, random = [], []
        for condition in self._conditions(e):
            study.say(f"gradients under {condition}")
            cache = self._gradients(study, condition, folder / "gradients" / condition)
            groups = halves(cache.chats, self.seed)
            for along, directions in found.items():
                pressures.append(pressure(cache, directions).assign(condition=condition, along=along))
                for kind in self.controls:
                    drawn = random_pressure(
                        cache, directions, count=self.draws, seed=self.seed, kind=kind, groups=groups
                    )
                    random.append(drawn.assign(condition=condition, along=along))
        _keep(study, "projections.csv", self._contrast_projections(study).to_csv(index=False))
        _keep(study, "shift.csv", self._shift(study).to_csv(index=False))
        _keep(study, "random.csv", pd.concat(random).to_csv(index=False))
        # The last one: with it, all that `summarise` needs of this is there.
        _keep(study, "pressure.csv", pd.concat(pressures).to_csv(index=False))

    def callbacks(self, study: Study, condition: str, seed: int, log: Path) -> list[Any]:
        if not self.log_every or condition not in self._conditions(study.experiment):
            return []
        e = study.experiment
        # Held out: the evaluation set's questions, answered as the training set is.
        spec = e.data[self.on].model_copy(update={"transform": e.train_data(condition).transform})
        chats = prepare.load_data(spec, 0, e.conditions[condition].system_prompt)[: self.log_chats]
        measured = PressureLog(
            study.tokenizer, chats, study.directions[self.directions], every=self.log_every, positions=self.positions,
            batch_size=self.batch_size, template_kwargs=e.template_kwargs,
        )  # fmt: skip
        return [PressureSteps(measured, log.with_name("pressure.jsonl"))]

    def measure(self, run: TrainedRun) -> Iterator[Measurement]:
        yield from self._project(run)
        yield from self._elicit(run)

    def summarise(self, study: Study, results: pd.DataFrame) -> Section:
        e = study.experiment
        kept = study.folder / KEPT
        tables = {name: pd.read_csv(kept / f"{name}.csv", dtype={"chat": str}) for name in ("pressure", "random")}
        runs = self._runs(study, results)
        if runs.empty:
            # There is no drift to draw; what was measured before training lies in the folder and waits for it.
            because = "the untrained model or every run of the study is unfinished, so there is no drift"
            claim = Claim("Inoculation turns gradients away from the trait", UNDECIDED, because, {"seeds": 0})
            return Section("inoculation", "Inoculation: pressure and drift", f"Undecided: {because}.", [claim])
        found = {along: self._analyse(e, tables, along, runs) for along in (self.directions, *self.beside)}
        chosen = found[self.directions]
        # The shift is asked at the site that the pressures chose, which needs no drift to be chosen.
        drift = pressure_folder.drift(study.folder, runs)
        if not drift.empty:
            runs = runs.assign(projection_shift=self._shifts(drift, runs, chosen.site))
            chosen = found[self.directions] = self._analyse(e, tables, self.directions, runs)
        own = {name: table[table["along"] == self.directions] for name, table in tables.items()}
        projections, shift = (pressure_folder.read(kept / f"{name}.csv") for name in ("projections", "shift"))
        steps = pressure_folder.steps(study.folder, runs)
        shown = StudyTables(chosen, own["pressure"], own["random"], projections, shift, steps)
        section = write_study(shown, study.folder)
        more = []
        for name in self.beside:
            says = f"Along {name} the rule says: {found[name].verdict.outcome}; at {found[name].site}"
            more.append(as_table(f"Pressure along {name}", found[name].differences, says))
        if not drift.empty:
            at_site = drift[drift["site"] == chosen.site].drop(columns="site")
            more.append(as_table("Mean projections, with and without prompts", at_site, f"At {chosen.site}"))
        elicited = pressure_folder.elicited(study.folder, runs)
        if not elicited.empty:
            note = "One row a grid prompt, one column a condition; means over its scored answers and seeds"
            more.append(as_table(f"{self.trait} under evaluation system prompts", elicited, note))
        return replace(section, tables=[*section.tables, *more])

    def _conditions(self, e: ExperimentSpec) -> list[str]:
        return [self.neutral or e.baseline, self.inoculation, self.placebo, *self.also]

    def _identity(self, e: ExperimentSpec) -> str:
        """What determines what is measured before training."""
        source = models.resolve(e.model, revision=e.revision).public()
        options = ("chats", "positions", "controls", "draws", "seed", "shift_chats")
        conditions = self._conditions(e)
        return store.digest([
            store.start_identity(e, source), store.data_identity(e.train_data(conditions[0])), e.seeds[0],
            [(name, e.conditions[name].system_prompt, e.conditions[name].guard) for name in conditions],
            {name: store.adapter_identity(e, source, name) for name in e.adapters},
            [store.directions_identity(e, source, name) for name in (self.directions, *self.beside)],
            self.model_dump(include=set(options)),
        ])  # fmt: skip

    def _gradients(self, study: Study, condition: str, folder: Path) -> GradientCache:
        e = study.experiment
        names = (self.directions, *self.beside)
        sites = sorted({site for name in names for site in study.directions[name].sites})
        adapters = {name: study.folder / "adapters" / name / "adapter" for name in e.adapters}
        guard = guards.build_guard(e.conditions[condition].guard, guards.Resources(adapters=adapters, seed=e.seeds[0]))
        model = study.fresh_model().eval()
        # A finished cache runs no forward pass, and a guard that saw none is refused: with one, it is kept in memory.
        with guard.attach(model) if guard is not None else nullcontext():
            return collect_gradients(
                model, study.tokenizer, self._chats(study, condition), sites, self.positions, self.batch_size,
                folder=None if guard is not None else folder, template_kwargs=e.template_kwargs,
            )  # fmt: skip

    def _chats(self, study: Study, condition: str) -> list[Example]:
        examples = study.train_data(condition, study.experiment.seeds[0])
        return examples[:: max(1, len(examples) // self.chats)][: self.chats]

    def _contrast_projections(self, study: Study) -> pd.DataFrame:
        """Held-out chats of both sides of the contrast; none where directions are from a file or without responses."""
        e = study.experiment
        spec = e.directions[self.directions]
        empty = pd.DataFrame(columns=["chat", "site", "projection", "side"])
        if spec.contrast is None:
            return empty
        _, held_out = directions_step.contrast_of(spec.contrast, e).split()
        if not held_out.has_responses and spec.positions in ("response", "first_response"):
            return empty
        model = study.fresh_model()
        tables = [
            projection(
                model, study.tokenizer, chats, study.directions[self.directions], spec.positions, self.batch_size,
                template_kwargs=e.template_kwargs,
            ).assign(side=side)
            for side, chats in (("promoting", held_out.positive), ("suppressing", held_out.negative))
        ]  # fmt: skip
        return pd.concat(tables, ignore_index=True)

    def _shift(self, study: Study) -> pd.DataFrame:
        """Predicted and realised shift of one step, through a fresh adapter like the conditions'."""
        # Here, because it brings in all of training, which a file that is only checked does not need.
        from tropism.experiments.fine_tune import isolated_randomness, with_adapters

        e = study.experiment
        neutral = self._conditions(e)[0]
        if not self.shift_chats:
            return pd.DataFrame(columns=["chat", "site", "predicted", "realised"])
        with isolated_randomness(e.seeds[0]):
            model = with_adapters(study.fresh_model(), e.train_options(neutral), two=False)
        return predicted_and_realised_shift(
            model, study.tokenizer, self._chats(study, neutral)[: self.shift_chats],
            study.directions[self.directions], self.positions, template_kwargs=e.template_kwargs,
        )  # fmt: skip

    def _project(self, run: TrainedRun) -> Iterator[Measurement]:
        e = run.study.experiment
        examples = run.study.data(self.on)[: self.drift_prompts]
        # The untrained model is read under every prompt, so that each run has its own before and after.
        asked = self._conditions(e) if run.condition == BASE else [run.condition]
        prompts: dict[str, str | None] = {NO_PROMPT: None}
        prompts |= {name: text for name in asked if (text := e.conditions[name].system_prompt) is not None}
        tables = []
        for name, text in prompts.items():
            chats = examples if text is None else [SystemPrompt(text).apply(example, 0) for example in examples]
            for position in self.drift_positions:
                found = projection(
                    run.model, run.study.tokenizer, chats, run.study.directions[self.directions], position,
                    self.batch_size, template_kwargs=e.template_kwargs,
                )  # fmt: skip
                means = found.groupby("site", sort=False)["projection"].mean().reset_index()
                tables.append(means.assign(prompt=name, position=position, n=len(chats)))
                under = NO_PROMPT if text is None else "training prompt"
                if run.condition != BASE or text is None:
                    mean = float(means["projection"].mean())
                    yield Measurement(f"{self.on}, {under}", f"projection_{position}", mean, len(chats))
        pd.concat(tables).to_csv(run.folder / "drift.csv", index=False)

    def _elicit(self, run: TrainedRun) -> Iterator[Measurement]:
        e = run.study.experiment
        training_prompt = e.conditions[self.inoculation].system_prompt
        if not self.elicitation_prompts or training_prompt is None:
            return
        scorer = load_scorer(e.measure[self.trait].scorer, e.measure[self.trait].options())
        assert isinstance(scorer, ResponseScorer)  # by check
        asked = [
            (name, example if text is None else SystemPrompt(text).apply(example, 0))
            for name, text in elicitation_grid(training_prompt).items()
            for example in run.study.data(self.on)[: self.elicitation_prompts]
        ]
        responses = generate(
            run.model, run.study.tokenizer, [x.prompt for _, x in asked], e.generate, template_kwargs=e.template_kwargs
        )
        values = []
        with (run.folder / "elicitation.jsonl").open("w", encoding="utf-8") as file:
            for (name, x), response in zip(asked, responses, strict=True):
                score = scorer.score(Sample(x.id, x.prompt, response, x.target, x.labels))
                values.append(score.value)
                row: dict[str, Any] = {"prompt": name, "id": x.id, "response": response}
                row |= {"value": score.value, "unscored": score.unscored}
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        scored = [value for value in values if value is not None]
        # Where nothing could be scored there is no row, which a zero would be no substitute for.
        if scored:
            mean, missing = sum(scored) / len(scored), len(values) - len(scored)
            yield Measurement("elicitation grid", f"{self.trait}_elicited", mean, len(scored), missing)

    def _runs(self, study: Study, results: pd.DataFrame) -> pd.DataFrame:
        """`condition, seed, drift` of every finished run of the study's conditions."""
        chosen = (results["metric"] == self.trait) & (results["eval_set"] == self.on) & (results["mode"] == "full")
        values = results[chosen]
        start = values.loc[values["condition"] == BASE, "value"]
        trained = values[values["condition"].isin(self._conditions(study.experiment))]
        if start.empty:
            # Without the untrained model nothing has a before; the verdict then says that it cannot be given.
            trained = trained[:0]
        drift = trained["value"].astype(float) - (float(start.iloc[0]) if len(start) else math.nan)
        return pd.DataFrame(
            {"condition": trained["condition"], "seed": trained["seed"].astype(int), "drift": drift}
        ).reset_index(drop=True)

    def _analyse(
        self, e: ExperimentSpec, tables: Mapping[str, pd.DataFrame], along: str, runs: pd.DataFrame
    ) -> InoculationStudy:
        neutral, inoculation, placebo, *_ = self._conditions(e)
        own = [table[table["along"] == along].drop(columns="along") for table in (tables["pressure"], tables["random"])]
        return analyse(own[0], own[1], runs, neutral=neutral, inoculation=inoculation, placebo=placebo, seed=self.seed)

    def _shifts(self, drift: pd.DataFrame, runs: pd.DataFrame, site: str) -> list[float]:
        """After minus before of the mean projection without a prompt, at a site, run by run."""
        there = drift[
            (drift["site"] == site) & (drift["prompt"] == NO_PROMPT) & (drift["position"] == self.drift_positions[0])
        ]
        found = {(row["condition"], row["seed"]): row["projection"] for row in there.to_dict("records")}
        after = [found[condition, str(seed)] for condition, seed in zip(runs["condition"], runs["seed"], strict=True)]
        return [value - found[BASE, ""] for value in after]


def _keep(study: Study, name: str, text: str) -> None:
    Folder(study.folder).write(f"{KEPT}/{name}", text)
