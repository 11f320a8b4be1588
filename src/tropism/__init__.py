"""Tropism steers what a language model learns in fine-tuning, and measures what it learned.

```python
import tropism as tp

with tp.GradientProjection(directions).attach(model):
    trainer.train()
```

The names below are the public interface, imported when first used: `import tropism` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tropism import names

__version__ = names.VERSION

_HOME = {
    "Site": "site",
    "decoder_layers": "site",
    "register_blocks": "site",
    "sites": "site",
    "capture": "activations.capture",
    "Directions": "directions.artifact",
    "Contrast": "directions.contrasts",
    "find_directions": "directions.find",
    "MeanDifference": "directions.mean_difference",
    "PCA": "directions.pca",
    "LogisticProbe": "directions.probe",
    "SAELatents": "directions.sae",
    "import_directions": "directions.foreign",
    "validate_directions": "directions.validate",
    "Behaviour": "directions.validate",
    "Ablation": "interventions.ablation",
    "GradientProjection": "interventions.gradient_projection",
    "GradientRouting": "interventions.routing",
    "ablation_mode": "interventions.routing_modes",
    "two_adapters": "interventions.two_adapters",
    "Steering": "interventions.steering",
    "Intervention": "interventions.base",
    "InterventionCallback": "integrations.trainer_callback",
    "DriftAlarm": "integrations.drift_alarm",
    "RouteCollator": "integrations.columns",
    "keep_columns": "integrations.columns",
    "mean_activations": "activations.capture",
    "GradientCache": "probes.gradient_cache",
    "collect_gradients": "probes.gradients",
    "pressure": "probes.pressure",
    "random_pressure": "probes.random_controls",
    "parameter_pressure": "probes.parameter_pressure",
    "projection": "probes.projection",
    "predicted_and_realised_shift": "probes.shift",
    "PressureLog": "probes.training_pressure",
    "calibrate_placebo": "probes.calibrate",
    "with_system_prompts": "probes.conditions",
    "FrozenAdapter": "interventions.frozen_adapter",
    "KLToBase": "interventions.kl_to_base",
    "ParameterDirections": "directions.parameter",
    "parameter_directions": "directions.parameter",
    "UpdateConstraint": "interventions.update_constraint",
    "Experiment": "experiments.file.experiment",
    "run": "experiments.run",
    "forecast": "forecasting.forecast",
    "show_report": "reports.shown",
    "Rendered": "data.render",
    "render": "data.render",
}
"""Public name → the private module it lives in."""

_MODULES = ("errors", "models", "stats")
"""Modules that are public as they are."""

__all__ = ["__version__", *sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"tropism.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"tropism.{name}")
    else:
        raise AttributeError(f"module 'tropism' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from tropism.activations.capture import capture as capture
    from tropism.activations.capture import mean_activations as mean_activations
    from tropism.data.render import Rendered as Rendered
    from tropism.data.render import render as render
    from tropism.directions.artifact import Directions as Directions
    from tropism.directions.contrasts import Contrast as Contrast
    from tropism.directions.find import find_directions as find_directions
    from tropism.directions.foreign import import_directions as import_directions
    from tropism.directions.mean_difference import MeanDifference as MeanDifference
    from tropism.directions.parameter import ParameterDirections as ParameterDirections
    from tropism.directions.parameter import parameter_directions as parameter_directions
    from tropism.directions.pca import PCA as PCA
    from tropism.directions.probe import LogisticProbe as LogisticProbe
    from tropism.directions.sae import SAELatents as SAELatents
    from tropism.directions.validate import Behaviour as Behaviour
    from tropism.directions.validate import validate_directions as validate_directions
    from tropism.experiments.file.experiment import Experiment as Experiment
    from tropism.experiments.run import run as run
    from tropism.forecasting.forecast import forecast as forecast
    from tropism.integrations.columns import RouteCollator as RouteCollator
    from tropism.integrations.columns import keep_columns as keep_columns
    from tropism.integrations.drift_alarm import DriftAlarm as DriftAlarm
    from tropism.integrations.trainer_callback import InterventionCallback as InterventionCallback
    from tropism.interventions.ablation import Ablation as Ablation
    from tropism.interventions.base import Intervention as Intervention
    from tropism.interventions.frozen_adapter import FrozenAdapter as FrozenAdapter
    from tropism.interventions.gradient_projection import GradientProjection as GradientProjection
    from tropism.interventions.kl_to_base import KLToBase as KLToBase
    from tropism.interventions.routing import GradientRouting as GradientRouting
    from tropism.interventions.routing_modes import ablation_mode as ablation_mode
    from tropism.interventions.steering import Steering as Steering
    from tropism.interventions.two_adapters import two_adapters as two_adapters
    from tropism.interventions.update_constraint import UpdateConstraint as UpdateConstraint
    from tropism.probes.calibrate import calibrate_placebo as calibrate_placebo
    from tropism.probes.conditions import with_system_prompts as with_system_prompts
    from tropism.probes.gradient_cache import GradientCache as GradientCache
    from tropism.probes.gradients import collect_gradients as collect_gradients
    from tropism.probes.parameter_pressure import parameter_pressure as parameter_pressure
    from tropism.probes.pressure import pressure as pressure
    from tropism.probes.projection import projection as projection
    from tropism.probes.random_controls import random_pressure as random_pressure
    from tropism.probes.shift import predicted_and_realised_shift as predicted_and_realised_shift
    from tropism.probes.training_pressure import PressureLog as PressureLog
    from tropism.reports.shown import show_report as show_report
    from tropism.site import Site as Site
    from tropism.site import decoder_layers as decoder_layers
    from tropism.site import register_blocks as register_blocks
    from tropism.site import sites as sites
