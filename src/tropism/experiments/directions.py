"""An experiment's directions: found once on the model it starts from, kept with the evidence that they mean something."""

import json
from collections.abc import Mapping
from typing import Any

from tropism.data import sources
from tropism.data.transforms import TRANSFORMS
from tropism.directions.artifact import Directions
from tropism.directions.contrasts import Contrast
from tropism.directions.find import find_directions
from tropism.directions.validate import validate_directions
from tropism.errors import DirectionsError
from tropism.experiments import guards
from tropism.experiments import prepare as prepare_step
from tropism.experiments.options import from_options
from tropism.experiments.progress import Progress
from tropism.experiments.spec import ContrastSpec, Experiment
from tropism.experiments.store import Folder, directions_identity
from tropism.site import sites


def contrast_of(spec: ContrastSpec, experiment: Experiment) -> Contrast:
    """The contrast that a file describes."""
    if spec.of == "data":
        sides = [prepare_step.load_data(experiment.data[str(name)], 0) for name in (spec.positive, spec.negative)]
        chats = [example.chat for side in sides for example in side]
        return Contrast.of_labelled(chats, [True] * len(sides[0]) + [False] * len(sides[1]))
    assert spec.source is not None  # by Experiment.check
    examples = sources.load(spec.source, size=spec.size, split=spec.split, seed=spec.seed, path=spec.path)
    prompts = [example.prompt for example in examples]
    if spec.of == "system_prompts":
        return Contrast.of_system_prompts(prompts, promote=str(spec.promote), suppress=str(spec.suppress))
    positive = from_options(spec.positive, TRANSFORMS, "transform")
    negative = from_options(spec.negative, TRANSFORMS, "transform")
    return Contrast.of_responses(
        prompts,
        positive=[str(positive.apply(example, spec.seed).response) for example in examples],
        negative=[str(negative.apply(example, spec.seed).response) for example in examples],
    )


def prepare(
    experiment: Experiment, folder: Folder, source: Mapping[str, Any], model: Any, tokenizer: Any, progress: Progress
) -> dict[str, Directions]:
    """Every directions of the experiment, from the folder where they were found before, else found and validated now."""
    found: dict[str, Directions] = {}
    for index, (name, spec) in enumerate(experiment.directions.items(), start=1):
        target = folder.path / "directions" / f"{name}.safetensors"
        identity = directions_identity(experiment, source, name)
        if target.is_file() and target.with_suffix(".validity.json").is_file():
            kept = Directions.load(target)
            if kept.provenance.get("identity") == identity:
                found[name] = kept
                continue
        progress.phase("finding directions", index, len(experiment.directions))
        if spec.contrast is None:
            directions = Directions.load(str(spec.file))
            directions.check_model(model)
            found[name] = directions
            continue
        contrast = contrast_of(spec.contrast, experiment)
        fit, held_out = contrast.split()
        directions = find_directions(
            model, tokenizer, fit, finder=guards.finder(spec.finder), sites=sites(model, spec.sites),
            positions=spec.positions, template_kwargs=experiment.template_kwargs,
        )  # fmt: skip
        directions = Directions(
            directions.vectors, {**directions.provenance, "identity": identity}, directions.covariance
        )
        report = validate_directions(
            directions,
            model,
            tokenizer,
            held_out,
            name=name,
            template_kwargs=experiment.template_kwargs,
            others=dict(found),
        )
        for warning in report.warnings:
            progress.say(f"directions {name}: {warning.text}")
        if spec.strict and not report.trusted:
            raise DirectionsError(f"directions {name!r} are refused (strict: true): {report.summary()}")
        directions.save(target)
        folder.write(f"directions/{name}.validity.json", json.dumps(report.to_json(), allow_nan=False))
        found[name] = directions
    return found
