"""Steering in training (preventative steering): add a direction to the activations, so that it need not be learned."""

from dataclasses import dataclass
from typing import ClassVar

import torch
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
class Steering(Intervention):
    """Add a direction to the activations at every site of `directions`.

    `h ← h + c·v`, `h [B, T, d_model]`, `v [d_model]` as found, *not* normalised: the published coefficient multiplies
    the un-normalised mean difference. Computed in float32 (float64 stays float64), the result in the model's dtype;
    gradients pass unchanged.

    Args:
        directions: one vector a site.
        coefficient: `c`; negative steers away.
        increments: for several sites of one stream at once, add `v_ℓ − v_{ℓ−1}` at each (`v` itself at the
            first), where ℓ−1 is the site before: the stream then carries `c·v_ℓ` after block ℓ, not the sum of all.
        positions: `"all"` tokens, or those of the `"response"` (see `batch_keys`).
        evaluation: as in `Ablation`: by default in training and not at evaluation.

    Readings, a site: `guard/steering/SITE/relative_size`, `√(Σ‖added‖²/Σ‖h‖²)` since the last reading.

    Raises: `DirectionsError` for several vectors at a site, or increments over several streams; else as `Ablation`.

    Source: preventative steering in persona vectors (Chen et al., 2025).

    ```python
    with tp.Steering(directions, coefficient=5.0).attach(model):
        trainer.train()
    ```
    """

    directions: Directions
    coefficient: float = 1.0
    increments: bool = False
    positions: GuardPositions = "all"
    evaluation: bool | None = None

    place: ClassVar[Place] = "activations"

    def __post_init__(self) -> None:
        options.check_positions("Steering", self.positions)
        if not abs(self.coefficient) < float("inf"):
            raise UsageError(f"Steering.coefficient must be finite, found {self.coefficient!r}")
        for site, rows in self.directions.vectors.items():
            if rows.shape[0] != 1:
                raise DirectionsError(
                    f"Steering adds one vector a site, found {rows.shape[0]} at {site}; choose one, for example "
                    f"Directions({{site: rows[0] for site, rows in d.vectors.items()}})"
                )
        streams = sorted({site.stream for site in self.directions.sites})
        if self.increments and len(streams) > 1:
            raise DirectionsError(
                f"Steering(increments=True) needs all sites in one stream, found {', '.join(streams)}"
            )

    @property
    def batch_keys(self) -> frozenset[str]:  # type: ignore[override]
        return options.keys_for(self.positions)

    @property
    def at_evaluation(self) -> str:
        return options.at_evaluation(self.evaluation)

    def __str__(self) -> str:
        kind = ", by increments" if self.increments else ""
        return f"Steering (coefficient {self.coefficient:g}{kind}) at {options.describe(self.directions)}"

    def added(self) -> dict[Site, Tensor]:
        """What is added at each site: float32 `[d_model]`."""
        vectors = {site: rows[0] for site, rows in sorted(self.directions.vectors.items())}
        if self.increments:
            before = [torch.zeros(self.directions.width), *vectors.values()]
            vectors = {site: v - last for (site, v), last in zip(vectors.items(), before, strict=False)}
        return {site: self.coefficient * v for site, v in vectors.items()}

    def install(self, attachment: Attachment) -> None:
        options.check_directions(self.directions, attachment)
        weights = options.token_weights(attachment, self.positions)
        for site, vector in self.added().items():
            edit = _Edit(self, site, vector, attachment, weights)
            attachment.expect(edit.what, by="forward", due=edit.acts)
            attachment.meter(Ratios(f"guard/steering/{site}", edit.sums, {"relative_size": _relative_size}))
            attachment.own(hooks.edit_activation(attachment.model, site, edit))


class _Edit:
    """The steering at one site."""

    def __init__(
        self, guard: Steering, site: Site, vector: Tensor, attachment: Attachment, weights: options.TokenWeights
    ) -> None:
        self.what = options.label("steering", site)
        self.sums = Sums("added", "total")
        self._guard, self._attachment, self._weights = guard, attachment, weights
        self._vector = options.Resident(vector)

    def acts(self) -> bool:
        return self._attachment.acts(self._guard.evaluation)

    def __call__(self, h: Tensor) -> Tensor | None:
        if not self.acts():
            return None
        self._attachment.count(self.what)
        vector, on = self._vector(h), self._weights(h)
        if not hooks.replaying():  # a checkpoint's recomputation was measured when it first ran
            tokens = h.numel() // h.shape[-1] if on is None else on.sum()
            self.sums.add(linalg.square_sum(vector) * tokens, linalg.square_sum(h))
        return linalg.add_vector(h, vector, on)


def _relative_size(sums: dict[str, float]) -> float:
    return float((sums["added"] / sums["total"]) ** 0.5)
