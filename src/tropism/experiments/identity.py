"""Identity: the hash of all that determines a run, a prepared adapter or directions.

What is kept in an experiment's folder is used again where its identity is the same, and made again where it is not. A
run has two: `train_identity` (model, data, options, guard, seed) and `evaluate_identity` (that, the evaluation sets,
generation, metrics), so that a further metric evaluates again without training again. Options at their defaults do not
count, so that a new option leaves older runs their identity.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tropism import models
from tropism.adapters.folder import CONFIG, WEIGHTS
from tropism.data.sources import local_files
from tropism.data.templates import template_text
from tropism.experiments.analyses import Analysis, identity_name, load_analyses
from tropism.experiments.file.guards import norms_of, parts, uses
from tropism.experiments.file.spec import DataSpec, ExperimentSpec, ModelSpec
from tropism.experiments.kept import file_hash
from tropism.experiments.store import RunKey
from tropism.names import BASE
from tropism.training.options import TrainOptions, given_later

FORMAT = 1


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
    held = options.model_dump(exclude={"report_to", "save_steps"} | unused)
    for name, model in (("lora", options.lora), ("forget_lora", options.forget_lora)):
        if model is not None:
            held[name] = given_later(model, held[name])
    return given_later(options, held)


def start_identity(experiment: ExperimentSpec, source: Mapping[str, Any]) -> str:
    """What determines the model that every condition starts from."""
    adapters = adapter_identity(experiment, source, experiment.start_from) if experiment.start_from else None
    parts = [FORMAT, source.get("name"), source.get("revision"), experiment.template_kwargs, adapters]
    # Only where they are given, so that older runs keep their identity.
    blocks = [] if experiment.blocks is None else [experiment.blocks]
    return digest([*parts, *_template_identity(experiment), *blocks, *_load_identity(experiment)])


def _load_identity(experiment: ExperimentSpec) -> list[Any]:
    """How the weights are held and the attention computed, where that is not the default; where they lie does not count."""
    given = experiment.loaded.model_dump(include={"quantization", "attn_implementation"}, exclude_defaults=True)
    return [given] if given else []


def _template_identity(experiment: ExperimentSpec) -> list[str]:
    """The text of the chat template that the file names; nothing where it names none."""
    return [] if experiment.chat_template is None else [template_text(experiment.chat_template)]


def adapter_identity(experiment: ExperimentSpec, source: Mapping[str, Any], name: str) -> str:
    """What determines a prepared adapter: how it is trained, or the content of one that there is already."""
    spec = experiment.adapters[name]
    if spec.source is not None:
        held = [file_hash(Path(_there(spec.source, spec.revision).path) / file) for file in (CONFIG, WEIGHTS)]
        return digest(["adapter", FORMAT, source.get("name"), source.get("revision"), "from", held])
    assert spec.data is not None  # by check
    return digest(
        [
            "adapter",
            FORMAT,
            source.get("name"),
            source.get("revision"),
            data_identity(spec.data),
            spec.system_prompt,
            options_identity(experiment.train_options(adapter=name)),
            *_template_identity(experiment),
            # What the template is told decides what is learned; only where it is told something, as above.
            *([experiment.template_kwargs] if experiment.template_kwargs else []),
            *_load_identity(experiment),
        ]
    )


def _there(name: str, revision: str | None) -> models.Source:
    """Find an adapter; one on the hub is asked for once in a process."""
    return models.resolve_adapter(name, revision=revision) if Path(name).is_dir() else _on_hub(name, revision)


_on_hub = lru_cache(maxsize=64)(models.resolve_adapter)


def adapters_of(experiment: ExperimentSpec, condition: str) -> list[str]:
    """The adapters that a trained condition's identity holds: all that this experiment trains, and those it uses.

    What it starts from is in `start_identity` besides.
    """
    spec = experiment.conditions[condition]
    used = {options["adapter"] for name, options in parts(spec.guard) if name == "frozen_adapter"}
    for name in (uses(spec.guard) | uses(spec.after)) & set(experiment.parameter_directions):
        options = experiment.parameter_directions[name]
        used |= {options["adapter"]} if "adapter" in options else set()
        used |= {*(options.get("adapters") or ()), *(options.get("difference") or ())}
    # Those that are trained here have always counted, used or not; one that is there counts where it is used.
    return [name for name, held in experiment.adapters.items() if held.source is None or name in used]


def arm_identity(experiment: ExperimentSpec, source: Mapping[str, Any], condition: str) -> str:
    """What determines a condition that is not trained: the adapter, the model or the endpoint that it names."""
    spec = experiment.conditions[condition]
    if spec.adapter is not None:
        what: Any = [source.get("name"), source.get("revision"), adapter_identity(experiment, source, spec.adapter)]
    elif spec.model is not None:
        what = _model_identity(spec.model, spec.revision)
    else:
        assert spec.endpoint is not None  # by check
        what = [spec.endpoint.base_url.rstrip("/"), spec.endpoint.model]
    blocks = [] if experiment.blocks is None else [experiment.blocks]
    return digest(["arm", FORMAT, what, experiment.template_kwargs, *_template_identity(experiment), *blocks])


def _model_identity(name: str, revision: str | None) -> Any:
    """Name and revision of a model; a folder has no revision, so it counts by its content, wherever it lies."""
    found = _model(name, revision)
    return [file_hash(file) for file in _files_of_model(found)] or [found.name, found.revision]


@lru_cache(maxsize=64)
def _model(name: str, revision: str | None) -> models.Source:
    return models.resolve(name, revision=revision)


def _files_of_model(source: models.Source) -> list[Path]:
    if source.kind != "folder":
        return []
    return [file for file in sorted(Path(source.path).iterdir()) if file.is_file() and not file.name.startswith(".")]


def directions_identity(experiment: ExperimentSpec, source: Mapping[str, Any], name: str) -> str:
    """What determines directions: the options that are used, the data sets, and the contents of the files that are read."""
    spec = experiment.directions[name]
    contrast = spec.contrast
    named: Sequence[Any] = (contrast.positive, contrast.negative) if contrast and contrast.of == "data" else ()
    if contrast is not None and contrast.of == "models":
        named = (contrast.chats,)
    sets = [data_identity(experiment.data[str(side)]) for side in named]
    files = [Path(file) for file in spec.files()]
    if contrast is not None:
        files += _local(contrast.source, contrast.path)
    own = spec.model_dump(exclude={"strict", "behaviour"}, exclude_none=True)
    contents = [file_hash(file) for file in files]
    sides = [] if contrast is None or contrast.of != "models" else [
        _side_identity(experiment, source, side) for side in (contrast.tuned, contrast.base)
    ]  # fmt: skip
    return digest(["directions", start_identity(experiment, source), own, sets, contents, *sides])


def _side_identity(experiment: ExperimentSpec, source: Mapping[str, Any], named: str | ModelSpec | None) -> Any:
    """What determines one side of a contrast of models; nothing where it is the untouched model."""
    if named is None:
        return None
    if isinstance(named, str):
        return adapter_identity(experiment, source, named)
    return _model_identity(named.model, named.revision)


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
    if not experiment.conditions[key.condition].trains:
        return arm_identity(experiment, source, key.condition)
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
        {n: adapter_identity(experiment, source, n) for n in sorted(adapters_of(experiment, key.condition))},
        *(train_identity(experiment, source, RunKey(n, key.seed)) for n in norms_of(after)),
    ])  # fmt: skip


def trained_alike(experiment: ExperimentSpec, source: Mapping[str, Any], condition: str) -> str | None:
    """The condition whose adapter this one's is before its edit, if there is one: it need not be trained twice."""
    if experiment.conditions[condition].after is None:
        return None
    seed = experiment.seeds[0]
    wanted = train_identity(experiment, source, RunKey(condition, seed), edited=False)
    plain = [name for name in experiment.trained if experiment.conditions[name].after is None]
    return next((name for name in plain if train_identity(experiment, source, RunKey(name, seed)) == wanted), None)


def evaluate_identity(experiment: ExperimentSpec, source: Mapping[str, Any], key: RunKey) -> str:
    """What determines a run's results: the trained adapter, the evaluation sets, generation, metrics, analyses."""
    sets = {name: data_identity(spec) for name, spec in experiment.data.items() if name != "train"}
    measures = {name: m.model_dump(exclude={"wanted", "unwanted", "margin"}) for name, m in experiment.measure.items()}
    scorers = file_hash(Path(experiment.scorers)) if experiment.scorers else None
    analyses = load_analyses(experiment)
    read = sorted({name for one in analyses.values() if one.per_run for name in one.reads_directions(experiment)})
    return digest([
        train_identity(experiment, source, key), sets, experiment.generate.in_use(), measures, scorers,
        {
            identity_name(name): _measured(options, analyses[name])
            for name, options in experiment.analyses.items() if analyses[name].per_run
        },
        *([{name: directions_identity(experiment, source, name) for name in read}] if read else []),
    ])  # fmt: skip


def _measured(options: Mapping[str, Any] | None, analysis: Analysis) -> Mapping[str, Any] | None:
    """An analysis' options as given, without those that change its summary alone."""
    return options and {name: value for name, value in options.items() if name not in analysis.summary_only}
