"""The frozen trait adapter (inoculation adapter): the trait is supplied in training, so that it need not be learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from tropism import hooks
from tropism.directions.adapters import AdapterWeights, read_adapter
from tropism.errors import AttachError, UsageError
from tropism.interventions import options
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.site import base_model


@dataclass(frozen=True, eq=False)
class FrozenAdapter(Intervention):
    """Add what an adapter has learned to every weight's output while training: `y ← y + c·s·B(Ax)`, A and B frozen.

    `x [B, T, d_in]`, `y [B, T, d_out]`; computed in float32, the result in the model's dtype. Gradients pass through to
    `x`, so that layers below train as if the trait were there; what is trained beside it has less reason to learn it.
    At evaluation it is absent (`evaluation=None`: off once training has begun, as in `Ablation`).

    Args:
        weights: the adapter's factors by the name of the module in the unwrapped model; see `load`.
        coefficient: `c`.

    Raises: on attaching, `AttachError` naming the weights that the model does not have, or has in another shape.

    Source: the role of an inoculation prompt, played by an adapter; the control is `random_like`.

    ```python
    guard = FrozenAdapter.load("runs/trait/adapter")
    with guard.attach(model):
        trainer.train()
    ```
    """

    weights: Mapping[str, AdapterWeights]
    coefficient: float = 1.0
    evaluation: bool | None = None

    place: ClassVar[Place] = "activations"

    def __post_init__(self) -> None:
        if not self.weights:
            raise UsageError("FrozenAdapter.weights must hold at least one weight, found none")
        if not abs(self.coefficient) < float("inf"):
            raise UsageError(f"FrozenAdapter.coefficient must be finite, found {self.coefficient!r}")

    @classmethod
    def load(
        cls, adapter: nn.Module | str | Path, *, coefficient: float = 1.0, evaluation: bool | None = None
    ) -> "FrozenAdapter":
        """From an adapter's folder or a PEFT model; raises `DirectionsError` where there are no LoRA factors."""
        return cls(read_adapter(adapter).weights, coefficient, evaluation)

    def random_like(self, seed: int) -> "FrozenAdapter":
        """The control: Gaussian factors of the same ranks, each weight's `s·B·A` of the same Frobenius norm; seeded."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, AdapterWeights] = {}
        for name, learned in sorted(self.weights.items()):
            A, B = (torch.randn(factor.shape, generator=generator) for factor in (learned.A, learned.B))
            wanted, found = (_norm(f.A, f.B, f.scale) for f in (learned, AdapterWeights(A, B, 1.0)))
            drawn[name] = AdapterWeights(A, B, wanted / found)
        return FrozenAdapter(drawn, self.coefficient, self.evaluation)

    @property
    def at_evaluation(self) -> str:
        return options.at_evaluation(self.evaluation)

    def __str__(self) -> str:
        return f"FrozenAdapter (coefficient {self.coefficient:g}) at {len(self.weights)} weights"

    def install(self, attachment: Attachment) -> None:
        modules = dict(base_model(attachment.model).named_modules())
        missing = [name for name in self.weights if name not in modules]
        if missing:
            shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            raise AttachError(f"FrozenAdapter: the model has no {shown}; use an adapter of this model")

        def acts() -> bool:
            return attachment.acts(self.evaluation)

        for name, learned in self.weights.items():
            expected = _shape(modules[name])
            found = (learned.B.shape[0], learned.A.shape[1])
            if expected is not None and expected != found:
                raise AttachError(
                    f"FrozenAdapter: the adapter at {name} is {found[0]}x{found[1]}, the model's weight "
                    f"{expected[0]}x{expected[1]}; use an adapter of this model"
                )
            what = f"frozen adapter at {name}"
            attachment.expect(what, by="forward", due=acts)
            attachment.own(hooks.edit_linear(modules[name], self._edit(what, learned, acts, attachment)))

    def _edit(
        self, what: str, learned: AdapterWeights, acts: Callable[[], bool], attachment: Attachment
    ) -> Callable[[Tensor, Tensor], Tensor]:
        down, up = options.Resident(learned.A.detach().float()), options.Resident(learned.B.detach().float())
        size = self.coefficient * learned.scale

        def edit(x: Tensor, y: Tensor) -> Tensor:
            if not acts():
                return y
            attachment.count(what)
            with torch.autocast(x.device.type, enabled=False):
                wide = x.float()
                return y + (size * (wide @ down(wide).T @ up(wide).T)).to(y.dtype)

        return edit


def _norm(A: Tensor, B: Tensor, scale: float) -> float:
    """`‖s·B·A‖`, from rank-sized products."""
    square = ((A.double() @ A.double().T) * (B.double().T @ B.double())).sum()
    return abs(scale) * float(square.clamp_min(0).sqrt())


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """`(d_out, d_in)` where the module says so: linear layers do, also inside an adapter or a quantiser."""
    inner = getattr(module, "base_layer", module)  # PEFT's object, not ours
    if isinstance(inner, nn.Linear):
        return inner.out_features, inner.in_features
    return None
