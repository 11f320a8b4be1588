"""What an experiment needs beside its training data, found before any weights are loaded, by `validate` as by `run`.

Keys and packages of judges, trackers, directions that fit the model, contrasts that can be rendered and fit its context.
"""

from collections.abc import Mapping
from typing import Any

from tropism import models
from tropism.directions.contrasts import Contrast
from tropism.errors import DataError, DirectionsError, ModelError, SiteError, SpecError, UsageError
from tropism.experiments.directions import chats_of
from tropism.experiments.directions_file import import_for
from tropism.experiments.file import guards
from tropism.experiments.file.check import endpoint_of
from tropism.experiments.file.spec import DirectionsSpec, ExperimentSpec
from tropism.reports.figures import formats
from tropism.site import select_layers
from tropism.training.options import LoraOptions, TrainOptions

INSTALLS = {
    "azure_ml": "azureml-sdk", "clearml": "clearml", "codecarbon": "codecarbon", "comet_ml": "comet-ml",
    "dagshub": "dagshub", "dvclive": "dvclive", "mlflow": "mlflow", "neptune": "neptune", "swanlab": "swanlab",
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb",
}  # fmt: skip
"""A tracker's name in `report_to` → the package that brings it."""


def check_machine(experiment: ExperimentSpec) -> None:
    """Raise `UsageError` for a tracker that is not installed, a format of figures that there is not, or what a judge lacks."""
    formats.wanted()
    for where, options in _all_options(experiment).items():
        _check_trackers(where, options)
    _check_scorers(experiment)


def check_directions(experiment: ExperimentSpec, source: models.Source, tokenizer: Any, limit: int | None) -> None:
    """Raise `UsageError` for directions that do not fit the model, and contrasts that cannot be read from it.

    Reads files and the model's configuration, and no weights; `limit` is its context in tokens.
    """
    _check_sites(experiment, source)
    _check_contrasts(experiment, tokenizer, limit)


def check_form(experiment: ExperimentSpec, source: models.Source) -> None:
    """Raise `SpecError` for options of LoRA that name modules or blocks which the model does not have.

    And `ModelError` for `packing` where the model's form alone tells that its rows cannot be packed. The model is built from
    its configuration without weights, and only where an option asks for it.
    """
    trained = {where: o for where, o in _all_options(experiment).items() if o.adapter == "lora"}
    of_lora = {f"{where}.train.lora": o.lora for where, o in trained.items()}
    of_forget = {f"{where}.train.forget_lora": o.forget_lora for where, o in trained.items() if o.forget_lora}
    naming = {where: lora for where, lora in (of_lora | of_forget).items() if _names_something(lora)}
    packed = any(options.packing for options in _all_options(experiment).values())
    if not naming and not packed:
        return
    from tropism.experiments.fine_tune import check_lora
    from tropism.training import packing

    model = models.skeleton(source, trust_remote_code=experiment.trust_remote_code)
    if packed:
        packing.check_form(model)
    for where, lora in naming.items():
        try:
            check_lora(model, lora)
        except ModelError as error:
            raise SpecError(f"{where}.{error}") from None


def _names_something(lora: LoraOptions) -> bool:
    listed = not isinstance(lora.target_modules, str)
    return bool(listed or lora.modules_to_save or lora.target_parameters or lora.layers_to_transform)


def _all_options(e: ExperimentSpec) -> Mapping[str, TrainOptions]:
    """The options of every fine-tune, by the key of the file that a message names."""
    own = {f"conditions.{name}": e.train_options(name) for name in e.trained}
    trained = [name for name, spec in e.adapters.items() if spec.data is not None]
    return own | {f"adapters.{name}": e.train_options(adapter=name) for name in trained}


def _check_trackers(where: str, options: TrainOptions) -> None:
    if not options.report_to:
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    here = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for tracker in options.report_to:
        if tracker not in INTEGRATION_TO_CALLBACK:
            raise SpecError(
                f"{where}: train.report_to must name trackers that Trainer knows, found {tracker!r}; known are "
                f"{', '.join(INTEGRATION_TO_CALLBACK)}"
            )
        if tracker not in here and tracker in INSTALLS:
            raise SpecError(
                f"{where}: train.report_to names {tracker!r}, which is not installed: pip install {INSTALLS[tracker]}, or "
                f"drop it"
            )


def _check_scorers(e: ExperimentSpec) -> None:
    from tropism.evals.scorers.registry import load_scorer

    for name, measure in e.measure.items():
        try:
            load_scorer(measure.scorer, measure.options()).check_ready()
        except UsageError as error:
            raise type(error)(f"measure.{name}: {error}") from None
    for name, condition in e.conditions.items():
        if condition.endpoint is None:
            continue
        try:
            endpoint_of(condition.endpoint, e).check_ready()
        except UsageError as error:
            raise type(error)(f"conditions.{name}.endpoint: {error}") from None


def _check_sites(e: ExperimentSpec, source: models.Source) -> None:
    """Directions are at sites that the model has; those of files are also of its width, and of its hash where they say."""
    from transformers import AutoConfig

    if not e.directions:
        return
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=e.trust_remote_code)
    for name, spec in e.directions.items():
        try:
            if spec.contrast is None:
                import_for(spec, config)
            else:
                select_layers(spec.chosen_sites, config.get_text_config(decoder=True).num_hidden_layers)
        except (DirectionsError, SiteError) as error:
            raise type(error)(f"directions.{name}: {error}") from None


def _check_rows(spec: DirectionsSpec, contrast: Contrast) -> None:
    """Raise `DirectionsError` where the part that directions are found on has too few chats for their finder."""
    assert spec.contrast is not None  # by the caller
    finder = guards.finder(spec.chosen_finder)
    if (spec.contrast.pool or finder.unit) == "chat":
        to_find, _ = contrast.split()
        finder.check_rows(len(to_find.positive))


def _check_contrasts(e: ExperimentSpec, tokenizer: Any, limit: int | None) -> None:
    for name, spec in e.directions.items():
        if spec.contrast is None:
            continue
        try:
            contrast = chats_of(spec.contrast, e)
            _check_rows(spec, contrast)
            rendered = [row for side in contrast.render(tokenizer, e.template_kwargs) for row in side]
        except (DataError, DirectionsError) as error:
            raise type(error)(f"directions.{name}: {error}") from None
        over = [len(row) for row in rendered if limit is not None and len(row) > limit]
        if over:
            raise DataError(
                f"directions.{name}: {len(over)} of {len(rendered)} chats of its contrast are longer than the model's context "
                f"of {limit} tokens (the longest has {max(over)}); shorten or drop them: nothing is truncated"
            )
