"""The LoRA factors of one weight: `ΔW = scale·B·A`, read from a file or live in a model, of one expert where fused.

PEFT keeps the factors of `E` fused experts in one tensor each: `A [E·r, d_in]` expert after expert, and `B [d_out, r·E]`
with the expert running fastest. Expert `e` has rows `e·r … e·r + r − 1` of A and columns `e, E + e, 2E + e, …` of B.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, eq=False)
class Place:
    """Where live factors are in a model."""

    weight: str
    """The adapted weight: its module's name in the unwrapped model; of an expert `MODULE.PARAMETER.EXPERT`."""
    module: str
    adapter: str
    expert: int = 0
    experts: int = 1
    base: Tensor | None = None
    """The base model's own weight there, where it is a plain tensor."""


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """One adapter at one weight: `ΔW = scale·B·A`, `A [r, d_in]`, `B [d_out, r]`.

    `held_a` and `held_b` are the tensors that hold the factors: the factors themselves, or those of all experts. `bias
    [d_out]`, where there is one, is added to the output times `scale`.

    >>> LoraFactors(torch.ones(1, 4), torch.ones(9, 1), 0.5).norm()
    3.0
    """

    held_a: Float[Tensor, "..."]
    held_b: Float[Tensor, "..."]
    scale: float
    bias: Float[Tensor, "d_out"] | None = None
    place: Place = Place("", "", "")

    @property
    def A(self) -> Float[Tensor, "r d_in"]:  # noqa: N802
        """The factor A; of an expert a view of the tensor that holds all."""
        return self._of_a(self.held_a)

    @property
    def B(self) -> Float[Tensor, "d_out r"]:  # noqa: N802
        """The factor B; of an expert a view of the tensor that holds all."""
        return self._of_b(self.held_b)

    @property
    def gradient_a(self) -> Tensor | None:
        """`∂L/∂A` as the last backward pass left it; of an expert a view."""
        return None if self.held_a.grad is None else self._of_a(self.held_a.grad)

    @property
    def gradient_b(self) -> Tensor | None:
        """`∂L/∂B` as the last backward pass left it; of an expert a view."""
        return None if self.held_b.grad is None else self._of_b(self.held_b.grad)

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)` of the weight."""
        return self.held_b.shape[0], self.held_a.shape[1]

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The tensors that train, of the two that hold the factors."""
        return tuple(p for p in (self.held_a, self.held_b) if isinstance(p, nn.Parameter) and p.requires_grad)

    def norm(self) -> float:
        """`‖scale·B·A‖`, Frobenius, from rank-sized products in float64."""
        A, B = self.wide()
        return abs(self.scale) * float(((A @ A.T) * (B.T @ B)).sum().clamp_min(0).sqrt())

    def wide(self) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """A and B in float64, on the CPU, since not every device has float64."""
        A, B = whole(self.A), whole(self.B)
        return A.to("cpu").double(), B.to("cpu").double()

    def copied(self) -> "LoraFactors":
        """The factors apart from their model: float32 on the CPU."""
        bias = None if self.bias is None else whole(self.bias).to("cpu", torch.float32, copy=True)
        A, B = (whole(factor).to("cpu", torch.float32, copy=True).contiguous() for factor in (self.A, self.B))
        return LoraFactors(A, B, self.scale, bias)

    def minus(self, start: "LoraFactors") -> "LoraFactors":
        """What changed since the start, `s(B·A − B₀·A₀)`, as factors: `[B − B₀, B₀]·[A; A − A₀]`."""
        A, B, A0, B0 = self.A, self.B, start.A, start.B * (start.scale / self.scale)
        if A.shape == A0.shape:  # no difference of two large products is taken
            A, B = torch.cat([A, A - A0]), torch.cat([B - B0, B0], dim=1)
        else:
            A, B = torch.cat([A, A0]), torch.cat([B, -B0], dim=1)
        bias = self.bias
        if bias is not None and start.bias is not None:
            bias = bias - start.bias * (start.scale / self.scale)
        return LoraFactors(A, B, self.scale, bias, self.place)

    def _of_a(self, held: Tensor) -> Tensor:
        n = self.place.experts
        return held if n == 1 else held.view(n, -1, held.shape[-1])[self.place.expert]

    def _of_b(self, held: Tensor) -> Tensor:
        n = self.place.experts
        return held if n == 1 else held.view(held.shape[0], -1, n)[..., self.place.expert]


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its graph, gathered where it is sharded (FSDP2)."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached
