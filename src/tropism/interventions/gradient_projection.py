"""Gradient projection (backward CAFT): remove a subspace from the activation gradients, the forward pass untouched."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from tropism import hooks, linalg
from tropism.activations.positions import GuardPositions
from tropism.directions.artifact import Directions
from tropism.interventions import options
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.interventions.readings import Ratios, Sums
from tropism.site import Site


@dataclass(frozen=True, eq=False)
class GradientProjection(Intervention):
    """Remove from the activation gradients, at every site, their component in the span of the directions.

    `∂L/∂h ← g − s·(g·Vᵀ)V` with `g = ∂L/∂h [B, T, d_model]`, `V [r, d_model] = directions.basis(site)`, on its way
    down through the site; loss and logits are bit-identical to no guard. Only parameters at or below a site are
    affected, and blocks above it still read `V` from the stream. Computed in float32, the result in the gradient's
    dtype. It acts wherever a backward pass runs, in training mode or not.

    Args:
        directions: what to remove, and where.
        positions: gradients of `"all"` tokens, or of the `"response"` tokens only (see `batch_keys`).
        strength: `s` in [0, 1].

    Readings, a site, over the backward passes since the last reading: `guard/gradient_projection/SITE/share_removed`,
    `Σ‖removed‖²/Σ‖g‖²`; `…/cosine_before` and `…/cosine_after`, `‖g·Vᵀ‖/‖g‖` of the gradient as it arrives and as it
    leaves. In distributed training each process reads its own batches.

    Raises: as `Ablation`; `GuardNotInForce` also where a backward pass reached the model's output and not a site, or no
    gradient can reach it because nothing at or below it is trainable.

    Source: CAFT (Casademunt et al., 2025) ablates in both passes; this is its backward half alone.

    ```python
    with tp.GradientProjection(directions).attach(model):
        trainer.train()
    ```
    """

    directions: Directions
    positions: GuardPositions = "all"
    strength: float = 1.0

    place: ClassVar[Place] = "activation gradients"

    def __post_init__(self) -> None:
        options.check_options("GradientProjection", self.strength, self.positions)

    @property
    def batch_keys(self) -> frozenset[str]:  # type: ignore[override]
        return options.keys_for(self.positions)

    @property
    def at_evaluation(self) -> str:
        return "changes nothing at evaluation: it acts on backward passes only"

    def __str__(self) -> str:
        return f"GradientProjection at {options.describe(self.directions)}"

    def install(self, attachment: Attachment) -> None:
        options.check_directions(self.directions, attachment)
        weights = options.token_weights(attachment, self.positions)
        for site in self.directions.sites:
            edit = _Edit(self, site, attachment, weights)
            attachment.expect(edit.what, by="backward")
            attachment.meter(Ratios(f"guard/gradient_projection/{site}", edit.sums, _READINGS))
            attachment.own(hooks.edit_activation(attachment.model, site, edit.watch))


class _Edit:
    """The projection at one site: `watch` sees the activation go up, `project` the gradient come down."""

    def __init__(
        self, guard: GradientProjection, site: Site, attachment: Attachment, weights: options.TokenWeights
    ) -> None:
        self.what = options.label("gradient projection", site)
        self.sums = Sums("removed", "total", "along_before", "along_after", "total_after")
        self._strength, self._attachment, self._weights = guard.strength, attachment, weights
        self._basis = options.Resident(guard.directions.basis(site))

    def watch(self, h: Tensor) -> None:
        # A checkpoint's recomputation is given the very input of the first run, on which a hook already sits.
        if not h.requires_grad or hooks.replaying():
            return
        self._attachment.reachable(self.what)
        # The mask is read now and not in the backward pass, where that of a later batch may be in place.
        hooks.edit_gradient(h, partial(self.project, self._weights(h)))

    def project(self, on: Tensor | None, gradient: Tensor) -> Tensor:
        self._attachment.count(self.what)
        basis = self._basis(gradient)
        projected, removed = linalg.remove_component(gradient, basis, self._strength, weights=on)
        # What was removed is all that lay along the subspace, unless only a part of it was to go.
        along = removed if on is None and self._strength == 1 else linalg.coordinates(gradient, basis)
        self.sums.add(
            linalg.square_sum(removed),
            linalg.square_sum(gradient),
            linalg.square_sum(along),
            linalg.square_sum(linalg.coordinates(projected, basis)),
            linalg.square_sum(projected),
        )
        return projected


def _share_removed(sums: dict[str, float]) -> float:
    return sums["removed"] / sums["total"]


def _cosine_before(sums: dict[str, float]) -> float:
    return float((sums["along_before"] / sums["total"]) ** 0.5)


def _cosine_after(sums: dict[str, float]) -> float:
    return float((sums["along_after"] / sums["total_after"]) ** 0.5)


_READINGS = {"share_removed": _share_removed, "cosine_before": _cosine_before, "cosine_after": _cosine_after}
