"""Ablation (concept ablation fine-tuning, CAFT): remove a subspace from the activations while the model trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tropism import hooks, linalg
from tropism.activations.positions import GuardPositions
from tropism.directions.artifact import Directions
from tropism.errors import DirectionsError, UsageError
from tropism.interventions import options
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.interventions.readings import Ratios, Sums
from tropism.site import Site


@dataclass(frozen=True, eq=False)
class Ablation(Intervention):
    """Remove from the activations, at every site of `directions`, their component in the span of the directions.

    `h ← h − s·((h − μ)·Vᵀ)V`, `h [B, T, d_model]`, `V [r, d_model] = directions.basis(site)`. Computed in float32 with
    autocast off (float64 stays float64), the result in the model's dtype.

    Args:
        directions: what to remove, and where.
        mode: `"both"` lets gradients flow through the projection, so that they lose the component too; `"forward"`
            edits the activations and leaves their gradients whole, `h − detach(…)`.
        origin: what the component is moved to: `"zero"`, or a mapping from each site to `μ [d_model]`, usually the base
            model's mean activation (`tropism.activations.capture.mean_activations`). Ablating to zero can act as
            steering where the mean is far from zero.
        positions: `"all"` tokens, or those of the `"response"` (see `batch_keys`).
        strength: `s` in [0, 1].
        evaluation: whether it acts in evaluation mode. None: it does on a model that was attached in evaluation mode,
            and no longer once a pass in training mode was seen; True always; False never.

    Readings, a site: `guard/ablation/SITE/share_removed`, `Σ‖removed‖²/Σ‖h‖²` over all tokens since the last reading.

    Raises: `UsageError` for options outside their range; on attaching, `DirectionsMismatch` (another width or
    architecture), `SiteError`; in training, `GuardNotInForce` where a site did not fire.

    Source: CAFT (Casademunt et al., 2025), which ablates to zero at all tokens with gradients flowing through.

    ```python
    with tp.Ablation(directions).attach(model):
        trainer.train()
    ```
    """

    directions: Directions
    mode: Literal["both", "forward"] = "both"
    origin: Literal["zero"] | Mapping[Site, Tensor] = "zero"
    positions: GuardPositions = "all"
    strength: float = 1.0
    evaluation: bool | None = None

    place: ClassVar[Place] = "activations"

    def __post_init__(self) -> None:
        options.check_options("Ablation", self.strength, self.positions)
        if self.mode not in ("both", "forward"):
            raise UsageError(f"Ablation.mode must be 'both' or 'forward', found {self.mode!r}")
        if isinstance(self.origin, str):
            if self.origin != "zero":
                raise UsageError(
                    f"Ablation.origin must be 'zero' or a mapping from site to mean, found {self.origin!r}"
                )
            return
        for site in self.directions.sites:
            mean = self.origin.get(site)
            if mean is None or mean.shape != (self.directions.width,):
                found = "none" if mean is None else list(mean.shape)
                raise DirectionsError(
                    f"Ablation.origin must hold a mean [d_model] = [{self.directions.width}] at {site}, found {found}"
                )

    @property
    def batch_keys(self) -> frozenset[str]:  # type: ignore[override]
        return options.keys_for(self.positions)

    @property
    def at_evaluation(self) -> str:
        return options.at_evaluation(self.evaluation)

    def __str__(self) -> str:
        return f"Ablation ({self.mode}) at {options.describe(self.directions)}"

    def install(self, attachment: Attachment) -> None:
        options.check_directions(self.directions, attachment)
        weights = options.token_weights(attachment, self.positions)
        for site in self.directions.sites:
            edit = _Edit(self, site, attachment, weights)
            attachment.expect(edit.what, by="forward", due=edit.acts)
            attachment.meter(Ratios(f"guard/ablation/{site}", edit.sums, {"share_removed": _share_removed}))
            attachment.own(hooks.edit_activation(attachment.model, site, edit))


class _Edit:
    """The ablation at one site."""

    def __init__(self, guard: Ablation, site: Site, attachment: Attachment, weights: options.TokenWeights) -> None:
        self.what = options.label("ablation", site)
        self.sums = Sums("removed", "total")
        self._guard, self._attachment, self._weights = guard, attachment, weights
        basis = guard.directions.basis(site)
        self._basis = options.Resident(basis)
        self._origin: options.Resident | None = None
        if not isinstance(guard.origin, str):
            # Coordinates of the mean, `V·μ [r]`: all of it that the projection keeps.
            self._origin = options.Resident(basis @ guard.origin[site].detach().cpu().float())

    def acts(self) -> bool:
        return self._attachment.acts(self._guard.evaluation)

    def __call__(self, h: Tensor) -> Tensor | None:
        if not self.acts():
            return None
        self._attachment.count(self.what)
        edited, removed = linalg.remove_component(
            h,
            self._basis(h),
            self._guard.strength,
            weights=self._weights(h),
            origin=None if self._origin is None else self._origin(h),
            straight_through=self._guard.mode == "forward",
        )
        if not hooks.replaying():  # a checkpoint's recomputation was measured when it first ran
            self.sums.add(linalg.square_sum(removed), linalg.square_sum(h))
        return edited


def _share_removed(sums: dict[str, float]) -> float:
    return sums["removed"] / sums["total"]
