"""What all runs of an experiment share, made once: checked data, prepared adapters, directions, analyses.

`Prepared` is plain data, paths and small tensors. It can be pickled, so a run may be done in another process than the one
that prepared it; every process loads the model once, for all the runs it does.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tropism import models
from tropism.adapters.folder import CONFIG, WEIGHTS, open_adapter
from tropism.adapters.load import differs
from tropism.adapters.read import public
from tropism.data.chats import Example
from tropism.data.leakage import sentences
from tropism.data.template_date import split_date
from tropism.data.templates import template_text
from tropism.directions.artifact import Directions
from tropism.directions.parameter import ParameterDirections
from tropism.errors import GuardNotInForce, ModelError, RunFailed
from tropism.experiments import checks, environment, identity, prepare, requirements, start
from tropism.experiments import directions as directions_step
from tropism.experiments.analyses import Analysis, Study, load_analyses
from tropism.experiments.checkpoints import RunCheckpoints
from tropism.experiments.file import guards
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.fine_tune import fine_tune, save
from tropism.experiments.held_model import HeldModel
from tropism.experiments.notices import noticed
from tropism.experiments.processes import check_processes
from tropism.experiments.progress import Progress
from tropism.experiments.rendered import RenderedSets
from tropism.experiments.settled import Settled, settle
from tropism.experiments.store import Folder
from tropism.experiments.store_claims import claims_of
from tropism.experiments.training_rows import training_rows
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row
from tropism.training.trackers import Tracking


class EvaluationSets:
    """The evaluation sets, loaded when asked for. Their seed is fixed: every run is asked the same questions."""

    def __init__(self, experiment: ExperimentSpec) -> None:
        self._experiment = experiment
        self._loaded: dict[str, list[Example]] = {}

    def __call__(self, name: str) -> list[Example]:
        """Return the examples of a set."""
        if name not in self._loaded:
            self._loaded[name] = prepare.load_data(self._experiment.data[name], 0)
        return self._loaded[name]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An experiment that is ready to run: `one_run.run_one(prepared, key)` does one run of it."""

    experiment: ExperimentSpec
    folder: Folder
    source: models.Source
    tokenizer: Any
    device: str
    limit: int | None
    """The model's context in tokens, where its configuration says."""
    data: EvaluationSets
    rendered: RenderedSets
    """The training sets, rendered once for all runs."""
    checked: checks.Checked
    """What the check of the data found."""
    adapters: Mapping[str, Path]
    """The folders of prepared adapters, by name."""
    directions: Mapping[str, Directions]
    parameter_directions: Mapping[str, ParameterDirections]
    analyses: Mapping[str, Analysis]
    held: HeldModel
    """The start model, loaded when it is first asked for."""
    settled: Settled = field(default_factory=Settled)
    """What `auto` means for precision, in every run of the folder."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Analyses whose preparation failed, and why: they measure nothing, and the next run tries again."""

    @property
    def public(self) -> dict[str, Any]:
        """The model's source as identities know it."""
        return self.source.public()

    @property
    def working(self) -> dict[str, Analysis]:
        """The analyses that are prepared, by name."""
        return {name: one for name, one in self.analyses.items() if name not in self.dropped}

    def fresh_model(self) -> Any:
        """Return the model that every condition starts from: its adapters and hooks are the caller's, its weights shared."""
        return self.held.start()

    def evaluated_rows(self, options: TrainOptions) -> list[Row]:
        """Render the set on which the loss is taken in training; nothing where the options name none."""
        if options.eval_on is None:
            return []
        kwargs, what = self.experiment.template_kwargs, f"eval_on {options.eval_on}"
        examples = self.data(options.eval_on)
        return training_rows(examples, self.tokenizer, kwargs, self.limit, what, options.max_length, options.overflow)[
            0
        ]

    def study(self, say: Callable[[str], None]) -> Study:
        """Return what analyses may see of the experiment."""
        return Study(
            self.experiment,
            self.folder.path,
            self.tokenizer,
            self.fresh_model,
            self.data,
            partial(prepare.training_examples, self.experiment),
            self.directions,
            self.parameter_directions,
            say,
        )


def prepare_experiment(
    experiment: ExperimentSpec,
    folder: Folder,
    source: models.Source,
    tokenizer: Any,
    progress: Progress,
    command: str = "",
) -> Prepared:
    """Check the data, then train the adapters and find the directions that are not in the folder yet.

    Loads weights only for what has to be trained or found. Raises `UsageError` for what a user has to mend; up to the
    end of the check nothing is written.
    """
    device = models.pick_device(experiment.device)
    check_processes(experiment, device)
    requirements.check_machine(experiment)
    limit = models.context_length(source, trust_remote_code=experiment.trust_remote_code)
    data = EvaluationSets(experiment)
    with noticed(progress.say) as notices:
        rendered = RenderedSets(experiment, tokenizer, limit)
        checked = checks.check_data(experiment, data, tokenizer, limit, rendered)
        requirements.check_directions(experiment, source, tokenizer, limit)
        requirements.check_form(experiment, source)
    for line in checked.lines:
        if line not in notices:
            progress.say(line)
            notices.append(line)
    for line in sentences(checked.leakage):
        progress.say(line)
    folder.record(experiment)
    if experiment.chat_template is not None:
        folder.write(start.TEMPLATE, template_text(experiment.chat_template))
    shown = {name: {"text": r.text, "input_ids": r.input_ids} for name, r in checked.samples.items()}
    folder.write("rendered.json", environment.dump(shown))
    hashes = checks.data_hashes(experiment, data, rendered)
    frozen = split_date(experiment.template_kwargs)[1]
    described = environment.describe(device, source.public(), hashes, frozen, command)
    facts = {"rows": checked.records, "leakage": checked.leakage, "data_notes": notices}
    environment.begin(folder, described | facts)
    prepared = Prepared(
        experiment, folder, source, tokenizer, device, limit, data, rendered, checked, {}, {}, {},
        load_analyses(experiment), HeldModel(experiment, folder, source),
    )  # fmt: skip
    claims = claims_of(folder.path)
    with claims.wait("precision"):
        prepared = replace(prepared, settled=settle(experiment, folder, source, device, progress.say))
    adapters = {}
    for name in experiment.adapters:
        with claims.wait(f"adapters/{name}", progress.say, f"the adapter {name!r}"):
            adapters[name] = _adapter(prepared, name, progress)
    with claims.wait("directions", progress.say):
        directions = directions_step.prepare(
            experiment, folder, source.public(), prepared.fresh_model, tokenizer, progress, _sides(prepared)
        )
    parameter_directions = {
        name: guards.build_parameter_directions(options, adapters)
        for name, options in experiment.parameter_directions.items()
    }
    prepared = replace(prepared, adapters=adapters, directions=directions, parameter_directions=parameter_directions)
    dropped: dict[str, str] = {}
    for name, analysis in prepared.analyses.items():
        with claims.wait(f"analyses/{name}", progress.say, f"what the analysis {name!r} measures before training"):
            try:
                analysis.before(prepared.study(progress.say))
            except (RunFailed, GuardNotInForce) as error:
                # What a user has to mend is raised, before anything is trained; this is one analysis, and the rest go on.
                progress.say(f"analysis {name}: {error}")
                dropped[name] = str(error)
    prepared.held.check("what was measured before training")
    return replace(prepared, dropped=dropped)


def _sides(prepared: Prepared) -> directions_step.Sides:
    """How the models of a contrast of models are loaded."""
    experiment, folder = prepared.experiment, prepared.folder
    return directions_step.Sides(prepared.held.base, partial(start.load_side, experiment, folder))


def _adapter(prepared: Prepared, name: str, progress: Progress) -> Path:
    """Return the folder of a prepared adapter: copied from where it is, or trained once on the base, with the first seed."""
    experiment, folder = prepared.experiment, prepared.folder
    path = start.prepared_adapter(folder, name).parent
    train_id = identity.adapter_identity(experiment, prepared.public, name)
    key = start.adapter_key(name)
    begun = folder.begin(key, train_id)
    if begun.kept:
        return path / "adapter"
    spec = experiment.adapters[name]
    if spec.source is not None:
        said = _copy(prepared, name, spec.source, spec.revision, path / "adapter", progress)
        folder.mark_trained(key, train_id, copied=said)
        return path / "adapter"
    assert spec.data is not None  # by check
    progress.say(f"training the adapter {name!r}" + (f": {begun.why}" if begun.why else ""))
    options, seed = prepared.settled.options(experiment.train_options(adapter=name)), experiment.seeds[0]
    if options.processes > 1:
        prepared.held.release()  # each process loads its own
    rendered = prepared.rendered.adapter(name)
    fresh = partial(prepared.held.given_away, untouched=True) if options.parallel == "fsdp2" else prepared.held.base
    model, fitted = fine_tune(
        prepared.settled.to_train(fresh, options.longest_row(rendered.record.longest)),
        rendered.rows,
        options,
        two=False,
        seed=seed,
        pad_id=prepared.tokenizer.pad_token_id,
        log=path / "training.jsonl",
        report=partial(progress.phase, f"training adapter {name}"),
        tracking=Tracking(experiment.name, str(key), folder.path / "tracking"),
        checkpoints=RunCheckpoints(path, train_id),
        evaluate_on=prepared.evaluated_rows(options),
    )
    save(model, path / "adapter", two=False)
    folder.mark_trained(key, train_id, batch_size=fitted.first_batch, accumulation=fitted.accumulation)
    return path / "adapter"


def _copy(
    prepared: Prepared, name: str, given: str, revision: str | None, to: Path, progress: Progress
) -> dict[str, Any]:
    """Copy an adapter that there is into the results folder; return where it is from, without a path.

    Raises `ModelError` where its configuration names another base model; where it names none, that is said.
    """
    found = models.resolve_adapter(given, revision=revision)
    opened = open_adapter(found.path)
    model = prepared.experiment.model
    if differs(opened.base_model, model):
        raise ModelError(
            f"adapter {name!r} ({given}) was trained on {opened.base_model!r}, and the experiment's model is {model!r}; "
            "take the model that it was trained on"
        )
    if opened.base_model is None:
        progress.say(f"adapter {name!r}: its configuration does not say which model it was trained on")
    if found.note:
        progress.say(f"adapter {name!r}: {found.note}")
    to.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(opened.path / file, to / file)
    return {"name": public(found.name), "kind": found.kind, "revision": found.revision}
