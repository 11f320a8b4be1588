"""An experiment's directions: found once on the model that it starts from, kept with their validity report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from tropism.adapters.read import public
from tropism.data import sources
from tropism.data.chats import Chat, Example
from tropism.directions.artifact import Directions
from tropism.directions.contrast_files import read_pairs
from tropism.directions.contrasts import Contrast
from tropism.directions.pipeline import Evidence, Validated, find_and_validate
from tropism.directions.read_once import also_read_at, read_once
from tropism.directions.validate import Behaviour
from tropism.directions.validity import validity_path
from tropism.errors import DataError, DirectionsError
from tropism.evals.behaviour import own_answers, scored
from tropism.evals.scorers.base import ResponseScorer
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments import prepare as prepare_step
from tropism.experiments.directions_file import copy_validity, read_file
from tropism.experiments.file import guards
from tropism.experiments.file.spec import ContrastSpec, DirectionsSpec, ExperimentSpec, ModelSpec
from tropism.experiments.identity import data_identity, digest, directions_identity
from tropism.experiments.kept import check_stamp, write_stamp
from tropism.experiments.progress import Progress
from tropism.experiments.store import Folder
from tropism.site import Site, sites

BEHAVIOUR_PROMPTS = 16
"""Own answers to compare projections with, where the contrast does not bring its own."""


def contrast_of(spec: ContrastSpec, experiment: ExperimentSpec) -> Contrast:
    """Return the contrast that a file describes, unless it is of models: see `Sides`."""
    if spec.of == "data":
        sides = [prepare_step.load_data(experiment.data[str(name)], 0) for name in (spec.positive, spec.negative)]
        chats = [example.content for side in sides for example in side]
        return Contrast.of_labelled(chats, [True] * len(sides[0]) + [False] * len(sides[1]))
    assert spec.source is not None  # by check
    if spec.of == "responses" and holds_pairs(spec):
        options = {name: value for name, value in spec.options().items() if name not in ("columns", "path")}
        return read_pairs(spec.source, spec.columns, transform=partial(_transformed, spec), **options)
    examples = [_transformed(spec, example) for example in sources.load(spec.source, **spec.options())]
    prompts = [example.prompt for example in examples]
    if spec.of == "system_prompts":
        return Contrast.of_system_prompts(prompts, promote=str(spec.promote), suppress=str(spec.suppress))
    positive, negative = spec.sides()
    return Contrast.of_responses(
        prompts,
        positive=[_response(positive.apply(example, spec.seed)) for example in examples],
        negative=[_response(negative.apply(example, spec.seed)) for example in examples],
    )


def chats_of(spec: ContrastSpec, experiment: ExperimentSpec) -> Contrast:
    """Return the contrast that a file describes, to be rendered; one of models has its chats, and no models yet."""
    if spec.of != "models":
        return contrast_of(spec, experiment)
    chats = tuple(_chats_of_models(spec, experiment))
    return Contrast("models", chats, chats, paired=True)


def _chats_of_models(spec: ContrastSpec, experiment: ExperimentSpec) -> list[Chat]:
    return [example.content for example in prepare_step.load_data(experiment.data[str(spec.chats)], 0)]


@dataclass(frozen=True)
class Sides:
    """The models that a contrast of models reads: the untouched one, and those that the file names."""

    untouched: Callable[[], Any]
    """Loads the model without `start_from`: what adapters are trained on."""
    named: Callable[[str | ModelSpec, Any], Any]
    """Loads a side: an adapter's name onto a model, or a whole model."""

    def contrast(self, spec: ContrastSpec, experiment: ExperimentSpec) -> tuple[Contrast, Any]:
        """Return the contrast, and the model that the directions are of: the one of its tuned side, adapters and all.

        One model in memory makes both sides where `tuned` is an adapter and `base` is not given.
        """
        assert spec.tuned is not None  # by check
        chats = _chats_of_models(spec, experiment)
        about = {"tuned": _side_name(spec.tuned), "base": _side_name(spec.base or experiment.model)}
        if spec.base is None and isinstance(spec.tuned, str):
            tuned = self.named(spec.tuned, self.untouched())
            return replace(Contrast.of_models(chats, tuned=tuned), about=about), tuned
        base = self.untouched() if spec.base is None else self.named(spec.base, self.untouched())
        tuned = self.named(spec.tuned, self.untouched())
        return replace(Contrast.of_models(chats, tuned=tuned, base=base), about=about), base


def _side_name(named: str | ModelSpec) -> str | None:
    return public(named if isinstance(named, str) else named.model)


def holds_pairs(spec: ContrastSpec) -> bool:
    """Whether the two sides are columns of the source: its rows have columns, and no transform makes a side."""
    assert spec.source is not None  # by check
    return spec.positive is None and spec.negative is None and "columns" in sources.source_of(spec.source).takes


def _transformed(spec: ContrastSpec, example: Example) -> Example:
    for transform in spec.transforms():
        example = transform.apply(example, spec.seed)
    return example


def _response(example: Example) -> str:
    if example.response is None:
        raise DataError(
            f"a contrast of responses needs rows with a response, and {example.id!r} has none; take another source"
        )
    return example.response


@read_once()
def prepare(
    experiment: ExperimentSpec,
    folder: Folder,
    source: Mapping[str, Any],
    fresh_model: Callable[[], Any],
    tokenizer: Any,
    progress: Progress,
    sides: Sides,
) -> dict[str, Directions]:
    """Return all directions of the experiment: from the folder where they were found before, else found and validated now."""
    # Loaded where the first directions need it, and not at all where all of them are in the folder.
    start_model = cache(fresh_model)
    found: dict[str, Directions] = {}
    for index, (name, spec) in enumerate(experiment.directions.items(), start=1):
        target = _target(folder, name)
        made_of = {
            "identity": directions_identity(experiment, source, name),
            "asked": _behaviour_identity(experiment, spec),
        }
        stamp = check_stamp(_stamp_path(target), *made_of)
        if stamp.flaw and target.is_file():
            progress.say(f"directions {name}: {stamp.flaw}; they are made again")
        kept = Directions.load(target) if stamp and stamp.said["identity"] == made_of["identity"] else None
        if kept is not None and stamp.said["asked"] == made_of["asked"]:
            found[name] = kept
            continue
        if spec.contrast is None:
            read = read_file(spec, name, start_model(), progress)
            found[name] = read.with_provenance(identity=made_of["identity"])
            files = [*copy_validity(spec, name, target, progress), found[name].save(target)]
            write_stamp(_stamp_path(target), files, **made_of)
            continue
        progress.phase("finding directions", index, len(experiment.directions))
        if spec.contrast.of == "models":
            contrast, model = sides.contrast(spec.contrast, experiment)
        else:
            contrast, model = contrast_of(spec.contrast, experiment), start_model()
        with also_read_at(_sites_of_later(experiment, folder, name, model)):
            validated = _find(experiment, name, kept, found, contrast, model, tokenizer, progress)
        found[name] = validated.directions.with_provenance(identity=made_of["identity"])
        replace(validated, directions=found[name]).save(target)
        write_stamp(_stamp_path(target), [target, validity_path(target)], **made_of)
    return found


def _target(folder: Folder, name: str) -> Path:
    return folder.path / "directions" / f"{name}.safetensors"


def _sites_of_later(experiment: ExperimentSpec, folder: Folder, name: str, model: Any) -> list[Site]:
    """Return where directions that are found after these read the same chats, so that one pass serves them all."""
    spec, names = experiment.directions[name], list(experiment.directions)
    if spec.contrast is not None and spec.contrast.of == "models":
        return []  # each loads its own
    later = [other for other in names[names.index(name) + 1 :] if not _target(folder, other).is_file()]
    alike = [
        other
        for other in (experiment.directions[one] for one in later)
        if (other.contrast, other.chosen_positions) == (spec.contrast, spec.chosen_positions)
    ]
    return sorted({site for other in alike for site in sites(model, other.chosen_sites)})


def _find(
    experiment: ExperimentSpec,
    name: str,
    kept: Directions | None,
    others: Mapping[str, Directions],
    contrast: Contrast,
    model: Any,
    tokenizer: Any,
    progress: Progress,
) -> Validated:
    """Find directions from their contrast, unless they are kept, and validate them on its held-out half."""
    spec = experiment.directions[name]
    assert spec.contrast is not None  # the caller reads directions that are in a file
    behaviour = partial(_behaviour, experiment, spec, model, tokenizer, progress)
    validated = find_and_validate(
        model,
        tokenizer,
        contrast,
        name=name,
        sites=sites(model, spec.chosen_sites),
        finder=guards.finder(spec.chosen_finder),
        positions=spec.chosen_positions,
        known=kept,
        components=spec.chosen_components,
        evidence=Evidence(behaviour, dict(others), experiment.template_kwargs),
        pool=spec.contrast.pool,
    )
    for doubt in validated.report.doubts():
        progress.say(f"directions {name}: {doubt.text}")
    if spec.strict and not validated.report.trusted:
        raise DirectionsError(f"directions {name!r} are refused (strict: true): {validated.report.summary()}")
    return validated


def _stamp_path(target: Path) -> Path:
    """Return where it is written what directions were made of, with the hashes of their files."""
    return target.with_name(f"{target.stem}.kept.json")


def _behaviour_identity(experiment: ExperimentSpec, spec: DirectionsSpec) -> str | None:
    if spec.behaviour is None:
        return None
    measure = experiment.measure[spec.behaviour]
    on = data_identity(experiment.data[measure.on[0]])
    return digest([measure.scorer, measure.options(), on, experiment.generate.in_use()])


def _behaviour(
    experiment: ExperimentSpec, spec: DirectionsSpec, model: Any, tokenizer: Any, progress: Progress, held_out: Contrast
) -> Behaviour | None:
    """Score the model's own answers: those of a contrast of system prompts, else to the metric's first prompts."""
    if spec.behaviour is None:
        return None
    measure = experiment.measure[spec.behaviour]
    scorer = load_scorer(measure.scorer, measure.options())
    assert isinstance(scorer, ResponseScorer)  # by check
    asked = prepare_step.load_data(experiment.data[measure.on[0]], 0)[:BEHAVIOUR_PROMPTS]
    answered = own_answers(
        model, tokenizer, held_out, asked, options=experiment.generate, template_kwargs=experiment.template_kwargs
    )
    behaviour, unscored = scored(spec.behaviour, scorer, answered)
    if unscored:
        progress.say(
            f"{spec.behaviour}: {unscored} of {len(answered)} own answers could not be scored and are left out"
        )
    return behaviour
