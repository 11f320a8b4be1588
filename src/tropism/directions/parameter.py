"""Directions in weight space: what an adapter that learned a behaviour changed, kept as factors.

LoRA's A and B are not identified: `(A, B) → (RA, BR⁻¹)` leaves the model as it is and turns any direction
defined on A and B into another. The change of the weight itself, `ΔW = s·B·A`, is the same in every gauge, so
that is the direction; it is kept factored, and nothing of the size of W is allocated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import notebook
from tropism.adapters.factors import LoraFactors
from tropism.adapters.read import read_adapter
from tropism.directions.stored import Kind
from tropism.directions.weight_difference import weight_difference
from tropism.errors import DirectionsError, DirectionsMismatch

FILE = Kind(
    "tropism.parameter_directions/1", "parameter directions", "make them with 'tropism directions from-adapter'"
)


@dataclass(frozen=True, eq=False)
class WeightFactors:
    """What `n` sources hold at one weight, side by side: source `j` is `scales[j]·B_j·A_j`.

    Its factors are the next `ranks[j]` columns of B and rows of A.

    `B [d_out, R]`, `A [R, d_in]`, `R = Σ ranks`; float32 on the CPU. The factors are the sources' own,
    unscaled.
    """

    B: Float[Tensor, "d_out R"]
    A: Float[Tensor, "R d_in"]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    def per_column(self, combination: Float[Tensor, "k n"]) -> Float[Tensor, "k R"]:
        """`C` with `U_i = B·diag(C_i)·A`, float64: the combination of sources, column by column."""
        scaled = combination.double() * torch.tensor(self.scales, dtype=torch.float64)
        return scaled.repeat_interleave(torch.tensor(self.ranks), dim=1)

    def gram(self, C: Float[Tensor, "k R"]) -> Float[Tensor, "k k"]:
        """`⟨U_i, U_l⟩` in float64, from the rank-sized Gram matrices of the factors."""
        A, B = self.A.double(), self.B.double()
        return C @ ((A @ A.T) * (B.T @ B)) @ C.T


@dataclass(frozen=True, eq=False)
class ParameterDirections:
    """`k` directions in weight space, never materialised: per weight `U_i = Σ_j combination[i,
    j]·s_j·B_j·A_j`.

    `factors` maps the name of a weight's module in the unwrapped model (`model.layers.0.self_attn.q_proj`) to
    its factors; `combination [k, n]` makes directions out of `n` sources. Rank zero (no columns, or `k = 0`)
    is allowed and constrains nothing. Raises `DirectionsError` where a direction is zero or not finite, or
    shapes disagree.

    >>> u = ParameterDirections.of_factors({"proj": (torch.eye(3)[:, :1], torch.eye(4)[:1])})
    >>> u.k, u.weights, float(u.norms()[0])
    (1, ('proj',), 1.0)
    """

    factors: Mapping[str, WeightFactors] = field(repr=False)
    combination: Float[Tensor, "k n"] = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.factors:
            raise DirectionsError("ParameterDirections.factors must hold at least one weight, found none")
        object.__setattr__(self, "combination", self.combination.detach().to("cpu", torch.float64).clone())
        object.__setattr__(self, "factors", MappingProxyType(dict(sorted(self.factors.items()))))
        n = self.combination.shape[1]
        for name, f in self.factors.items():
            if not len(f.ranks) == len(f.scales) == n or sum(f.ranks) != f.B.shape[1] or f.B.shape[1] != f.A.shape[0]:
                raise DirectionsError(
                    f"parameter direction at {name}: {n} sources of ranks {f.ranks} do not fit factors of "
                    f"shapes {list(f.B.shape)} and {list(f.A.shape)}"
                )
            if not (torch.isfinite(f.A).all() and torch.isfinite(f.B).all()):
                raise DirectionsError(f"parameter direction at {name} must be finite, found NaN or infinity")
        if not torch.isfinite(self.combination).all():
            raise DirectionsError("ParameterDirections.combination must be finite, found NaN or infinity")
        for index, norm in enumerate(self.norms().tolist()):
            if norm == 0 and self.rank:
                raise DirectionsError(
                    f"parameter direction {index} must not be zero, found zero at all {len(self.factors)} "
                    "weights; an adapter that was never trained has B = 0 and holds no direction"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping cannot be pickled; another process makes the object anew from plain ones.
        return ParameterDirections, (dict(self.factors), self.combination, dict(self.provenance))

    @classmethod
    def of_factors(
        cls, factors: Mapping[str, tuple[Tensor, Tensor]], provenance: Mapping[str, Any] | None = None
    ) -> "ParameterDirections":
        """One direction from `{weight: (B [d_out, r], A [r, d_in])}`, of length 1 over all weights
        together.
        """
        sources = {name: LoraFactors(A, B, 1.0) for name, (B, A) in factors.items()}
        return _directions([sources], torch.ones(1, 1), dict(provenance or {"method": "by hand"}))

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights, sorted."""
        return tuple(self.factors)

    @property
    def k(self) -> int:
        """How many directions."""
        return int(self.combination.shape[0])

    @property
    def rank(self) -> int:
        """The largest number of columns at a weight; 0 constrains nothing."""
        return max(f.B.shape[1] for f in self.factors.values()) if self.k else 0

    def coefficients(self, weight: str) -> Float[Tensor, "k R"]:
        """`C [k, R]`, float64, with `U_i = B·diag(C_i)·A` at `weight`."""
        return self.factors[weight].per_column(self.combination)

    def norms(self) -> Float[Tensor, "k"]:
        """Length of each direction over all weights together, `sqrt(Σ_W ‖U_W‖²)`, float64."""
        total = torch.zeros(self.k, dtype=torch.float64)
        for name, f in self.factors.items():
            total += f.gram(self.coefficients(name)).diagonal()
        return total.clamp_min(0).sqrt()

    def random_like(self, seed: int) -> "ParameterDirections":
        """A control: Gaussian factors of the same ranks, every source at every weight of the same norm."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, WeightFactors] = {}
        for name, f in self.factors.items():
            A, B = torch.randn(f.A.shape, generator=generator), torch.randn(f.B.shape, generator=generator)
            noise = WeightFactors(B, A, f.ranks, f.scales)
            each = torch.eye(len(f.ranks), dtype=torch.float64)
            wanted, found = (g.gram(g.per_column(each)).diagonal().sqrt() for g in (f, noise))
            ratio = torch.where(found > 0, wanted / found.clamp_min(1e-300), found)
            scales = tuple(s * r for s, r in zip(f.scales, ratio.tolist(), strict=True))
            drawn[name] = WeightFactors(B, A, f.ranks, scales)
        control = ParameterDirections(drawn, self.combination, {"control": "gaussian", "seed": seed})
        size = (self.norms() / control.norms().clamp_min(1e-300)).unsqueeze(1)
        provenance = {**control.provenance, "of": dict(self.provenance), "base_model": self.base_model}
        return ParameterDirections(drawn, self.combination * size, provenance)

    @property
    def base_model(self) -> str | None:
        """Name of the model that the adapters were trained on, where it is known."""
        return self.provenance.get("base_model") or None

    def _repr_html_(self) -> str:
        facts = {
            "model": self.base_model,
            "from": self.provenance.get("sources") or self.provenance.get("method") or self.provenance.get("control"),
            "norms": ", ".join(f"{norm:.3g}" for norm in self.norms().tolist()),
            "weights": f"{len(self.weights)}, {self.weights[0]} to {self.weights[-1]}",
        }
        return notebook.shown(f"{self.k} directions in parameters", facts)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: `A/weight`, `B/weight`, `combination`; provenance in its header."""
        tensors = {"combination": self.combination}
        for name, f in self.factors.items():
            tensors |= {f"A/{name}": f.A.contiguous(), f"B/{name}": f.B.contiguous()}
        layout = {name: {"ranks": f.ranks, "scales": f.scales} for name, f in self.factors.items()}
        return FILE.write(path, tensors, layout=layout, provenance=dict(self.provenance))

    @classmethod
    def load(cls, path: str | Path) -> "ParameterDirections":
        """Read a file written by `save`; raises `DirectionsError` for anything else. No pickle is opened."""
        tensors, header = FILE.read(path, "layout", "provenance")
        try:
            factors = {
                name: WeightFactors(
                    tensors[f"B/{name}"], tensors[f"A/{name}"], tuple(entry["ranks"]), tuple(entry["scales"])
                )
                for name, entry in header["layout"].items()
            }
            return cls(factors, tensors["combination"], header["provenance"])
        except (KeyError, TypeError) as error:
            raise DirectionsError(f"{path} is damaged: {error!r} in its header or its tensors") from None


Adapter = nn.Module | str | Path


def parameter_directions(
    adapter: Adapter | Sequence[Adapter],
    *,
    minus: Adapter | None = None,
    adapter_name: str | None = None,
    start: Adapter | None = None,
    rank: int = 16,
    subspace: bool = True,
) -> ParameterDirections:
    """Directions from what was learned: `U = s·B·A` per adapted weight, normalised over all weights together.

    Args:
        adapter: a PEFT model, an adapter's folder, or several of them (a subspace, one direction for each);
            or, with `minus`, an aligned model without adapter.
        minus: subtract this one: of two adapters (trained on refusals, on compliance) `U = s₁B₁A₁ − s₂B₂A₂`;
            of two models without adapters `W_aligned − W_base` of every linear layer, by truncated SVD.
        adapter_name: which adapter of a PEFT model; by default its one active adapter.
        start: the adapter as it was before training; what was learned is then read as `s(B·A − B₀·A₀)`. An adapter
            whose initialisation changed the base weight (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) needs it, unless it
            was converted to plain LoRA.
        rank: singular directions kept of a difference of weights.
        subspace: of a difference of weights, keep the `rank` singular pairs `u_i v_iᵀ` as `rank` orthonormal
            directions; False keeps their weighted sum as one direction.

    Raises:
        DirectionsError: a zero or non-finite direction; an adapter of which `s·B·A` is not all that was learned
        (`docs/works-with.md`); a folder that holds no safetensors adapter. DirectionsMismatch: adapters of
        different base models or of different shapes.

    >>> u = parameter_directions("runs/refusal/adapter")  # doctest: +SKIP
    """
    several = list(adapter) if isinstance(adapter, Sequence) and not isinstance(adapter, str) else [adapter]
    if not several:
        raise DirectionsError("parameter_directions needs at least one adapter, found an empty list")
    if minus is not None and len(several) != 1:
        raise DirectionsError(f"parameter_directions(minus=...) takes one adapter, found {len(several)}")
    if minus is not None and _is_plain_model(several[0]) and _is_plain_model(minus):
        assert isinstance(several[0], nn.Module)
        assert isinstance(minus, nn.Module)
        sources, base = weight_difference(several[0], minus, rank, split=subspace)
        about = {
            "method": "aligned minus base, truncated SVD",
            "rank": rank,
            "subspace": subspace,
            "base_model": base,
        }
        # one SVD a weight: each weight's components are directions of their own, numbered by size
        return _directions(sources, torch.eye(len(sources)), about)
    wanted = [*several, minus] if minus is not None else several
    read = [read_adapter(source, adapter_name, start=start) for source in wanted]
    bases = {adapter.base_model for adapter in read if adapter.base_model}
    if len(bases) > 1:
        raise DirectionsMismatch(
            f"adapters of one subspace must share their base model, found {', '.join(sorted(bases))}; use "
            "adapters of one"
        )
    combination = torch.tensor([[1.0, -1.0]]) if minus is not None else torch.eye(len(read))
    provenance = {
        "method": "difference of adapters" if minus is not None else "adapter",
        "sources": [adapter.origin for adapter in read],
        "base_model": next(iter(bases), None),
    }
    return _directions([adapter.weights for adapter in read], combination, provenance)


def _is_plain_model(source: Adapter) -> bool:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(source, nn.Module) or isinstance(source, PeftModel):
        return False
    return not any(isinstance(module, BaseTunerLayer) for module in source.modules())


def _directions(
    sources: Sequence[Mapping[str, LoraFactors]], combination: Tensor, provenance: dict[str, Any]
) -> ParameterDirections:
    """Lay the sources side by side and normalise; a weight where all are zero is left out, and named."""
    names = sorted({name for source in sources for name in source})
    factors: dict[str, WeightFactors] = {}
    untouched: list[str] = []
    for name in names:
        held = [source[name] for source in sources if name in source]
        d_out, d_in = held[0].shape
        if any(h.shape != (d_out, d_in) for h in held):
            shapes = ", ".join(f"{h.shape[0]}x{h.shape[1]}" for h in held)
            raise DirectionsMismatch(f"the adapters' shapes at {name} differ ({shapes}); they are of different models")
        absent = LoraFactors(torch.zeros(0, d_in), torch.zeros(d_out, 0), 1.0)
        parts = [source.get(name, absent) for source in sources]
        f = WeightFactors(
            torch.cat([part.B.detach().to("cpu", torch.float32) for part in parts], dim=1),
            torch.cat([part.A.detach().to("cpu", torch.float32) for part in parts], dim=0),
            tuple(part.A.shape[0] for part in parts),
            tuple(part.scale for part in parts),
        )
        if f.B.shape[1] and not any(part.norm() for part in held):
            untouched.append(name)
        else:
            factors[name] = f
    if not factors:
        raise DirectionsError(
            f"parameter directions must not be zero, found zero at all {len(names)} weights; an adapter that "
            "was never trained has B = 0 and holds no direction"
        )
    raw = ParameterDirections(factors, combination, provenance)
    norms = raw.norms()
    about = {**provenance, "norms": norms.tolist(), "untouched_weights": untouched}
    return ParameterDirections(factors, raw.combination / norms.clamp_min(1e-300).unsqueeze(1), about)
