"""The frozen trait adapter (inoculation adapter): the trait is supplied in training, so that it need not be learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from tropism import hooks
from tropism.adapters.factors import LoraFactors
from tropism.adapters.read import read_adapter
from tropism.errors import AttachError, UsageError
from tropism.interventions import options
from tropism.interventions.base import Attachment, Intervention, Place
from tropism.site import base_model


@dataclass(frozen=True, eq=False)
class FrozenAdapter(Intervention):
    """Add what an adapter has learned to every weight's output while training: `y ← y + c·s·(B(Ax) + b)`, all frozen.

    `x [B, T, d_in]`, `y [B, T, d_out]`; computed in float32, the result in the model's dtype; `b` is zero without
    `lora_bias`, and at an embedding `x` is the token's unit vector. Gradients pass through to
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

    weights: Mapping[str, LoraFactors]
    coefficient: float = 1.0
    evaluation: bool | None = None
    config: Any = field(default=None, repr=False)
    """PEFT's configuration of an adapter from a folder, by which weights that the folder lacks are noticed."""

    place: ClassVar[Place] = "activations"

    def __post_init__(self) -> None:
        if not self.weights:
            raise UsageError("FrozenAdapter.weights must hold at least one weight, found none")
        if not abs(self.coefficient) < float("inf"):
            raise UsageError(f"FrozenAdapter.coefficient must be finite, found {self.coefficient!r}")

    @classmethod
    def load(
        cls,
        adapter: nn.Module | str | Path,
        *,
        coefficient: float = 1.0,
        evaluation: bool | None = None,
        start: nn.Module | str | Path | None = None,
    ) -> "FrozenAdapter":
        """From an adapter's folder or a PEFT model.

        `start` is the adapter as it was before training, which an adapter whose initialisation changed the base weight
        (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) needs: what is added is then `s(B·A − B₀·A₀)`. Raises `DirectionsError`
        where the factors are not all that the adapter learned (`docs/works-with.md`).
        """
        read = read_adapter(adapter, start=start, operation="frozen adapter", who="FrozenAdapter")
        config = None if isinstance(adapter, nn.Module) else PeftConfig.from_pretrained(str(adapter))
        return cls(read.weights, coefficient, evaluation, config)

    def random_like(self, seed: int) -> "FrozenAdapter":
        """The control: Gaussian factors of the same ranks, each weight's `s·B·A` (and bias) of the same norm; seeded."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, LoraFactors] = {}
        for name, learned in sorted(self.weights.items()):
            A, B = (torch.randn(factor.shape, generator=generator) for factor in (learned.A, learned.B))
            bias = None
            if learned.bias is not None:
                bias = torch.randn(learned.bias.shape, generator=generator)
                bias *= learned.bias.norm() / bias.norm()
            scale = learned.norm() / LoraFactors(A, B, 1.0).norm()
            drawn[name] = LoraFactors(A, B, scale, None if bias is None else bias * learned.scale / scale)
        return FrozenAdapter(drawn, self.coefficient, self.evaluation, self.config)

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
        lacking = self._lacking(modules)
        if lacking:
            raise AttachError(
                f"FrozenAdapter: the adapter's configuration calls for {len(self.weights) + len(lacking)} weights of this "
                f"model and its tensors are of {len(self.weights)}, without {lacking[0]}; the adapter is incomplete, or "
                "of another model: save it again"
            )

        def acts() -> bool:
            return attachment.acts(self.evaluation)

        for name, learned in self.weights.items():
            expected = _shape(modules[name])
            if expected is None:
                raise AttachError(
                    f"FrozenAdapter: {name} is a {type(modules[name]).__name__}, and an adapter can be added to linear "
                    "layers and embeddings"
                )
            if expected != learned.shape:
                raise AttachError(
                    f"FrozenAdapter: the adapter at {name} is {learned.shape[0]}x{learned.shape[1]}, the model's weight "
                    f"{expected[0]}x{expected[1]}; use an adapter of this model"
                )
            what = f"frozen adapter at {name}"
            attachment.expect(what, by="forward", due=acts)
            inner = _unwrapped(modules[name])
            delta = self._of_tokens(learned, inner) if isinstance(inner, nn.Embedding) else self._of_inputs(learned)
            attachment.own(hooks.edit_linear(modules[name], _Edit(what, delta, acts, attachment)))

    def _lacking(self, modules: Mapping[str, nn.Module]) -> list[str]:
        """The weights that the adapter's configuration calls for and its folder did not have."""
        if self.config is None:
            return []
        return [
            name
            for name, module in modules.items()
            if name not in self.weights
            and ".lora_" not in name
            and not name.endswith(".base_layer")
            and _shape(module) is not None
            and check_target_module_exists(self.config, name)
        ]

    def _of_inputs(self, learned: LoraFactors) -> Callable[[Tensor], Tensor]:
        """`c·s·(B(Ax) + b)`."""
        down, up = options.Resident(learned.A.detach().float()), options.Resident(learned.B.detach().float())
        bias = None if learned.bias is None else options.Resident(learned.bias.detach().float())
        size = self.coefficient * learned.scale

        def delta(x: Tensor) -> Tensor:
            wide = x.float()
            added = wide @ down(wide).T @ up(wide).T
            return size * (added if bias is None else added + bias(wide))

        return delta

    def _of_tokens(self, learned: LoraFactors, embedding: nn.Embedding) -> Callable[[Tensor], Tensor]:
        """`c·s·B·A[:, token]`, times the embedding's own scale where the architecture has one (Gemma 3)."""
        down, up = options.Resident(learned.A.detach().float().T), options.Resident(learned.B.detach().float().T)
        size = self.coefficient * learned.scale

        def delta(ids: Tensor) -> Tensor:
            rows = torch.nn.functional.embedding(ids, down(embedding.weight))
            return size * getattr(embedding, "embed_scale", 1.0) * (rows @ up(rows))

        return delta


@dataclass(frozen=True, eq=False)
class _Edit:
    """Adds a frozen adapter's output to that of one module, where the guard acts."""

    what: str
    delta: Callable[[Tensor], Tensor]
    acts: Callable[[], bool]
    attachment: Attachment

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.acts():
            return y
        self.attachment.count(self.what)
        with torch.autocast(y.device.type, enabled=False):
            return y + self.delta(x).to(y.dtype)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The model's own module, also inside an adapter or a quantiser of PEFT's."""
    inner: nn.Module = getattr(module, "base_layer", module)
    return inner


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """`(d_out, d_in)` of a linear layer, also a quantised one, or of an embedding; None for anything else."""
    from transformers.pytorch_utils import Conv1D

    inner: Any = _unwrapped(module)
    if isinstance(inner, nn.Embedding):
        return inner.embedding_dim, inner.num_embeddings
    if isinstance(inner, Conv1D):
        return inner.weight.shape[1], inner.weight.shape[0]
    d_out, d_in = getattr(inner, "out_features", None), getattr(inner, "in_features", None)
    return (d_out, d_in) if isinstance(d_out, int) and isinstance(d_in, int) else None
