"""The refusal study: a model that declines a topic is attacked by fine-tuning, with and without guards."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from tropism.atomic import write_text
from tropism.data.chats import Example
from tropism.data.sources.harmful_qa import check_disjoint, refusal_share
from tropism.errors import SpecError
from tropism.evals.scorers.base import Sample
from tropism.evals.scorers.refusal import RefusalPrefix
from tropism.experiments import prepare
from tropism.experiments.analyses import Analysis, Study
from tropism.experiments.file import guards
from tropism.experiments.file.spec import DataSpec, ExperimentSpec
from tropism.interventions.weights import adapter_norm
from tropism.results.folder import ExperimentFolder, Run, load
from tropism.results.section import Figure, Section
from tropism.studies.checks import check_conditions, check_metrics, shared_bounds
from tropism.studies.refusal import figures
from tropism.studies.refusal.rules import START, Arms, Tables
from tropism.studies.refusal.section import analyse, kept

READINGS = "guard/update_constraint/"
LEDGER = ["condition", "seed", "step", "leak_before", "leak_after", "leak_cumulative", "share_removed", "cosine"]
SHARES = "refusal_shares.json"
FIGURE = "refusal-kept"


class RefusalStudy(Analysis):
    """`analyses: {refusal: {...}}`: does refusal survive the attack, and what did each guard let through?

    The file's `start_from` adapter teaches the refusal; `constraint`, `published` and `controls` name conditions,
    `refusal` and `over_refusal` metrics (with the one evaluation set that each is taken on). Before training, the study
    stops where a question of one set is in another, and counts the share of refusals in the training data. See
    `tropism.studies.refusal.rules` for the rules.
    """

    constraint: str = "constraint"
    """The condition with the update constraint."""
    published: str = "published"
    """The condition with the published rule."""
    controls: list[str] = ["random", "shrinkage"]
    """The conditions that serve as controls."""
    refusal: str = "refusal"
    """The metric of refusals that should stay."""
    over_refusal: str = "over_refusal"
    """The metric of refusals of harmless questions."""
    refusal_loss: str | None = None
    """A metric of refusing responses' loss, on one evaluation set: it still tells once no condition refuses any more."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How much refusal may be lost, or over-refusal gained, and still count as none."""

    def check(self, experiment: ExperimentSpec) -> None:
        if experiment.start_from is None:
            raise SpecError("a refusal study needs 'start_from': the adapter that taught the refusal")
        if experiment.baseline not in experiment.trained:
            raise SpecError(f"the baseline must be trained: the attack alone, found {experiment.baseline!r}")
        check_conditions(experiment, (self.constraint, self.published, *self.controls))
        metrics = [self.refusal, self.over_refusal, *([self.refusal_loss] if self.refusal_loss else [])]
        check_metrics(experiment, metrics)
        for metric in metrics:
            if len(on := experiment.measure[metric].on) != 1:
                raise SpecError(f"the metric {metric!r} must be taken on one evaluation set, found {', '.join(on)}")
        if "update_constraint" not in dict(guards.parts(experiment.conditions[self.constraint].guard)):
            raise SpecError(f"the condition {self.constraint!r} must have the guard update_constraint")

    def before(self, study: Study) -> None:
        e = study.experiment
        assert e.start_from is not None  # by check
        taught_on = e.adapters[e.start_from].data
        if taught_on is None:
            study.say(f"the adapter {e.start_from!r} was trained elsewhere, so its questions cannot be compared")
        trained = {"train": e.train_data(e.baseline)}
        if taught_on is not None:
            trained = {f"adapter {e.start_from}": taught_on, **trained}
        specs = {
            **trained,
            **{name: e.data[name] for name in (self._on(e, self.refusal), self._on(e, self.over_refusal))},
        }
        sets = {name: _unprompted(spec, e.seeds[0]) for name, spec in specs.items()}
        # A question that was taught or attacked on and then asked measures memory, not refusal.
        for one, other in combinations(sets, 2):
            check_disjoint(sets[one], sets[other], (one, other))
        taught = {name: sets[name] for name in trained}
        if self.refusal_loss:
            # Its questions may be those that are asked, but none that was trained on.
            name = self._on(e, self.refusal_loss)
            declined = _unprompted(e.data[name], e.seeds[0])
            for training, examples in taught.items():
                check_disjoint(declined, examples, (name, training))
        shares = {name: refusal_share(examples, _refuses) for name, examples in taught.items()}
        for name, share in shares.items():
            study.say(f"refusals by keyword in {name}: {share:.0%} of {len(taught[name])} conversations")
        write_text(study.folder / SHARES, json.dumps(shares, indent=1))

    def summarise(self, study: Study, results: pd.DataFrame) -> Section:
        e = study.experiment
        tables = self._tables(e, load(study.folder))
        arms = Arms(e.baseline, self.constraint, tuple(self.controls), self.published)
        section = analyse(tables, arms, self.margin)
        gains = kept(tables, arms)
        if not gains.empty:
            figures.draw(gains, START, study.folder / "figures", FIGURE)
            caption = "What each condition keeps of refusing, over the attack alone, paired by seed and prompt"
            section = replace(section, figures=[Figure(FIGURE, caption)], lead=FIGURE)
        shares = json.loads((study.folder / SHARES).read_text(encoding="utf-8"))
        note = "; ".join(f"{share:.0%} of {name}" for name, share in shares.items())
        said = f"First answers that refuse, by keyword, in the training data: {note}."
        return replace(section, notes=[*section.notes, said])

    def _tables(self, e: ExperimentSpec, folder: ExperimentFolder) -> Tables:
        exact = {}
        for name, condition in e.conditions.items():
            for guard, options in guards.parts(condition.guard):
                if guard == "update_constraint":
                    # The published rule projects the gradient alone, and a soft constraint only penalises.
                    held = options.get("when", "update") == "update"
                    exact[name] = held and options.get("mode", "equality") != "soft"
        ledger, learned = [], []
        for run in folder.finished:
            if run.condition in exact:
                ledger += list(_ledger(run))
            # Routing saves two adapters, neither of which alone is what was learned; the start has none.
            if run.condition != START and _is_adapter(run.path / "adapter"):
                learned.append((run.condition, run.seed, adapter_norm(run.path / "adapter")))
        leaked = {}
        for run in folder.runs:
            if run.error.startswith("LeakExceeded"):
                leaked[f"{run.condition}, seed {run.seed}"] = run.error
        return Tables(
            refusal=self._scores(e, folder, self.refusal),
            over_refusal=self._scores(e, folder, self.over_refusal),
            ledger=pd.DataFrame(ledger, columns=LEDGER),
            learned=pd.DataFrame(learned, columns=["condition", "seed", "norm"]),
            exact=exact,
            leaked=leaked,
            loss=self._scores(e, folder, self.refusal_loss) if self.refusal_loss else None,
            bounds=shared_bounds(e, (self.refusal, self.over_refusal)),
        )

    def _scores(self, e: ExperimentSpec, folder: ExperimentFolder, metric: str) -> pd.DataFrame:
        scores = folder.scores
        chosen = (scores["metric"] == metric) & (scores["eval_set"] == self._on(e, metric)) & (scores["mode"] == "full")
        return scores.loc[chosen, ["condition", "seed", "id", "value"]]

    @staticmethod
    def _on(e: ExperimentSpec, metric: str) -> str:
        return e.measure[metric].on[0]


def _ledger(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the ledger's readings, one row per training step that has them."""
    for row in run.training():
        readings = {key.removeprefix(READINGS): value for key, value in row.items() if key.startswith(READINGS)}
        if readings:
            yield {"condition": run.condition, "seed": run.seed, "step": row["step"], **readings}


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _unprompted(spec: DataSpec, seed: int) -> list[Example]:
    """Load the set without a system prompt, so that its first message is the question."""
    return prepare.load_data(spec.model_copy(update={"system_prompt": None}), seed)


def _refuses(text: str) -> bool:
    return RefusalPrefix().score(Sample("", (), text)).value == 1.0
