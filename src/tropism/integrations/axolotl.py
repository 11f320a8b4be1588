"""A guard in Axolotl, from its YAML file.

```yaml
plugins:
  - tropism.integrations.axolotl.TropismPlugin
tropism:
  directions: {caps: directions/caps.safetensors}
  guard: {gradient_projection: {directions: caps}}
```
"""

from pathlib import Path
from typing import Any, Literal

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict, Field

from tropism.directions.artifact import Directions
from tropism.errors import SpecError
from tropism.experiments.file.guards import Resources, build_guard, build_parameter_directions, check_guard
from tropism.integrations.columns import keep_columns
from tropism.integrations.trainer_callback import InterventionCallback


class GuardArgs(BaseModel):
    """What stands under `tropism:` in Axolotl's file; `guard` is written as in an experiment's condition."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    guard: dict[str, Any] | list[dict[str, Any]]
    """One guard by name with its options, or a list of several, the first of which acts first."""
    directions: dict[str, str] = Field(default_factory=dict)
    """Name → a file of directions."""
    parameter_directions: dict[str, str] = Field(default_factory=dict)
    """Name → the folder of the adapter that learned what is forbidden."""
    rollouts: Literal["guarded", "plain"] = "guarded"
    """Whether GRPO's rollouts are sampled under the guard."""
    reference: Literal["guarded", "plain"] = "guarded"
    """Whether DPO's reference is guarded as the policy is."""
    seed: int = 0
    """For controls drawn at random (`random: true`)."""


class TropismArgs(BaseModel):
    """What the plugin adds to Axolotl's own options."""

    tropism: GuardArgs | None = None


class TropismPlugin(BasePlugin):  # type: ignore[misc, unused-ignore]
    """Puts the guard of `tropism:` on the trainer that Axolotl has made, ahead of its trackers.

    Raises `SpecError` where the section is missing or names what it does not define; what else can go wrong is said by
    `InterventionCallback` when training begins.
    """

    def get_input_args(self) -> str:
        """Return the path of the options' model, which Axolotl imports by name."""
        return "tropism.integrations.axolotl.TropismArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Build the guard and add its callback first; routing also gets its columns through the collator."""
        found = cfg.get("tropism")
        if not found:
            raise SpecError(
                "the plugin tropism.integrations.axolotl.TropismPlugin needs a section tropism: with a guard, found none"
            )
        options = found if isinstance(found, GuardArgs) else GuardArgs.model_validate(_plain(found))
        guard = _guard(options)
        InterventionCallback(guard, rollouts=options.rollouts, reference=options.reference).add_to(trainer)
        if "route" in guard.batch_keys:
            keep_columns(trainer)


def _guard(options: GuardArgs) -> Any:
    check_guard(options.guard, set(options.directions), set(options.parameter_directions))
    guard = build_guard(
        options.guard,
        Resources(
            directions={name: Directions.load(Path(file)) for name, file in options.directions.items()},
            parameter_directions={
                name: build_parameter_directions({"adapter": name}, {name: Path(folder)})
                for name, folder in options.parameter_directions.items()
            },
            seed=options.seed,
        ),
    )
    if guard is None:
        raise SpecError("tropism.guard must name a guard, found none")
    return guard


def _plain(value: Any) -> Any:
    """Axolotl's `DictDefault`, which answers None for every key, as plain dicts and lists."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
