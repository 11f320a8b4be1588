"""Gradient projection (backward CAFT): remove a subspace from the activation gradients, the forward pass untouched."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tropism import hooks, linalg
from tropism.activations.positions import GuardPositions
from tropism.directions.artifact import Directions
from tropism.interventions import options
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.interventions.readings import Sums, ratios


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
            what = options.label("gradient projection", site)
            attachment.expect(what, by="backward")
            sums = Sums("removed", "total", "along_before", "along_after", "total_after")
            attachment.meter(
                ratios(
                    f"guard/gradient_projection/{site}",
                    sums,
                    {
                        "share_removed": lambda s: s["removed"] / s["total"],
                        "cosine_before": lambda s: (s["along_before"] / s["total"]) ** 0.5,
                        "cosine_after": lambda s: (s["along_after"] / s["total_after"]) ** 0.5,
                    },
                )
            )
            V = options.resident(self.directions.basis(site))
            edit = self._edit(what, V, sums, weights, attachment)
            attachment.own(hooks.edit_activation(attachment.model, site, edit))

    def _edit(
        self, what: str, V: options.OnDevice, sums: Sums, weights: options.TokenWeights, attachment: Attachment
    ) -> hooks.Edit:
        def watch(h: Tensor) -> None:
            # A checkpoint's recomputation is given the very input of the first run, on which a hook already sits.
            if not h.requires_grad or hooks.replaying():
                return
            attachment.reachable(what)
            # Now and not in the backward pass, where the mask of a later batch may be in place.
            on = weights(h)

            def on_gradient(gradient: Tensor) -> Tensor:
                attachment.count(what)
                basis = V(gradient)
                projected, removed = linalg.remove_component(gradient, basis, self.strength, weights=on)
                along = removed if on is None and self.strength == 1 else linalg.coordinates(gradient, basis)
                sums.add(
                    linalg.square_sum(removed),
                    linalg.square_sum(gradient),
                    linalg.square_sum(along),
                    linalg.square_sum(linalg.coordinates(projected, basis)),
                    linalg.square_sum(projected),
                )
                return projected

            hooks.edit_gradient(h, on_gradient)

        return watch
