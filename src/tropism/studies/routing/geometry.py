"""How two LoRA adapters relate in weight space, always beside what two random adapters would show.

Nothing of the size of a weight is ever built: `ΔW = s·B·A` is handled through its factors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism.adapters.factors import LoraFactors
from tropism.adapters.parts import parts_of_model, require
from tropism.adapters.read import adapters_in, live_factors
from tropism.errors import AttachError

RANK_TOLERANCE = 1e-7
"""A singular value of `ΔW` below this share of the largest is rounding (factors are float32), and spans nothing."""


@dataclass(frozen=True)
class Factored:
    """`ΔW = U·diag(S)·V`: `U [d_out, r]` and `V [r, d_in]` orthonormal, `S [r]` descending and positive; float64."""

    U: Float[Tensor, "d_out r"]
    S: Float[Tensor, "r"]
    V: Float[Tensor, "r d_in"]

    @classmethod
    def of(cls, B: Float[Tensor, "d_out k"], A: Float[Tensor, "k d_in"], scale: float = 1.0) -> "Factored":
        """Factor LoRA's `scale·B·A`; `r ≤ k` is the rank of the product, 0 where it is zero."""
        # QR of both factors leaves a k × k core to decompose: B·A = Qb·(Rb·Raᵀ)·Qaᵀ.
        Qb, Rb = torch.linalg.qr(B.detach().cpu().double())
        Qa, Ra = torch.linalg.qr(A.detach().cpu().double().T)
        U, S, V = torch.linalg.svd(scale * (Rb @ Ra.T))
        r = int(S.gt(RANK_TOLERANCE * S[:1]).sum())
        return cls(Qb @ U[:, :r], S[:r], V[:r] @ Qa.T)

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.S.norm())


@dataclass(frozen=True)
class Overlap:
    """Two adapters at one weight: `cosine = ⟨ΔW₁, ΔW₂⟩ / ‖ΔW₁‖‖ΔW₂‖`, and cosines of principal angles.

    `rows` (input directions) and `columns` (output directions): cosines of the principal angles, descending, as many as
    the smaller rank. NaN and empty where an adapter is zero there.
    """

    cosine: float
    rows: Float[Tensor, "m"]
    columns: Float[Tensor, "m"]


def overlap(first: Factored, second: Factored) -> Overlap:
    """Return the overlap of two factored weights of one shape."""
    # ⟨U₁S₁V₁, U₂S₂V₂⟩ = Σ_ij s_i s_j (V₁V₂ᵀ)_ij (U₁ᵀU₂)_ij, from the r₁ × r₂ products alone.
    across_rows, across_columns = first.V @ second.V.T, first.U.T @ second.U
    inner = (first.S[:, None] * across_rows * second.S * across_columns).sum()
    norms = first.norm * second.norm
    return Overlap(
        float(inner) / norms if norms else math.nan,
        torch.linalg.svdvals(across_rows).clamp(max=1),
        torch.linalg.svdvals(across_columns).clamp(max=1),
    )


def random_overlaps(
    d_out: int, d_in: int, ranks: tuple[int, int], draws: int, generator: torch.Generator
) -> pd.DataFrame:
    """Draw the null: `cosine`, `row_overlap`, `column_overlap` of `draws` pairs of Gaussian adapters of these ranks.

    Norms cancel in all three. The cosine has mean 0 and standard deviation `1/√(d_in·d_out)`, whatever the spectra.
    """
    rows = []
    for _ in range(draws):
        pair = []
        for r in ranks:
            B = torch.randn(d_out, r, generator=generator, dtype=torch.float64)
            A = torch.randn(r, d_in, generator=generator, dtype=torch.float64)
            pair.append(Factored.of(B, A))
        found = overlap(*pair)
        rows.append((found.cosine, float(found.rows.mean()), float(found.columns.mean())))
    return pd.DataFrame(rows, columns=["cosine", "row_overlap", "column_overlap"])


def lora_geometry(
    model: nn.Module, *, retain: str = "retain", forget: str = "forget", draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """Compare the two adapters at every weight that both change: cosine, overlap of their spaces, norms, and the null.

    One row per weight: `weight, layer, module, rank_retain, rank_forget, norm_retain, norm_forget`, then for each `x` of
    `cosine`, `row_overlap`, `column_overlap` (means of the principal cosines): `x`, `x_null` (mean of the null), `x_low`
    and `x_high` (its central 95 %), and `x_p = (1 + b)/(1 + draws)`, with `b` the draws at least as extreme (a cosine in
    size, an overlap as large). An adapter that is zero at a weight has NaN there.

    Raises `AttachError` where the model lacks an adapter, or no weight has both.

    >>> lora_geometry(model)[["weight", "cosine", "cosine_p"]]  # doctest: +SKIP
    """
    require("read", parts_of_model(model, [retain, forget]), "lora_geometry", AttachError)
    of_retain, of_forget = (_by_weight(model, adapter) for adapter in (retain, forget))
    both = {weight: (held, of_forget[weight]) for weight, held in of_retain.items() if weight in of_forget}
    if not both:
        found = adapters_in(model)
        raise AttachError(
            f"lora_geometry: some weight must have both adapters {retain!r} and {forget!r}, found adapters "
            f"{', '.join(map(repr, found)) or 'none'}"
        )
    nulls: dict[tuple[int, ...], pd.DataFrame] = {}
    rows = []
    for name, pair in both.items():
        first, second = (Factored.of(held.B, held.A, held.scale) for held in pair)
        ranks = (int(first.S.numel()), int(second.S.numel()))
        row: dict[str, object] = {
            "weight": name,
            "layer": _layer(name),
            "module": pair[0].place.module.rpartition(".")[2],
            "rank_retain": ranks[0],
            "rank_forget": ranks[1],
            "norm_retain": first.norm,
            "norm_forget": second.norm,
        }
        # The null depends on the shape and the ranks alone, which many weights share.
        shape = (first.U.shape[0], first.V.shape[1], *ranks)
        if min(ranks) and shape not in nulls:
            generator = torch.Generator().manual_seed(seed)
            nulls[shape] = random_overlaps(shape[0], shape[1], ranks, draws, generator)
        found_here = overlap(first, second)
        values = {
            "cosine": found_here.cosine,
            "row_overlap": float(found_here.rows.mean()) if min(ranks) else math.nan,
            "column_overlap": float(found_here.columns.mean()) if min(ranks) else math.nan,
        }
        rows.append(row | _beside_null(values, nulls.get(shape)))
    return pd.DataFrame(rows)


def _beside_null(values: Mapping[str, float], null: pd.DataFrame | None) -> dict[str, float]:
    columns: dict[str, float] = {}
    # A cosine may be extreme in either direction; an overlap is only ever too large.
    for key, value in values.items():
        columns[key] = value
        if null is None:
            columns |= {f"{key}_{suffix}": math.nan for suffix in ("null", "low", "high", "p")}
            continue
        draws = null[key]
        extreme = (draws.abs() >= abs(value)) if key == "cosine" else (draws >= value)
        columns[f"{key}_null"] = float(draws.mean())
        columns[f"{key}_low"], columns[f"{key}_high"] = (float(q) for q in draws.quantile([0.025, 0.975]))
        columns[f"{key}_p"] = (1 + int(extreme.sum())) / (1 + len(draws))
    return columns


def _by_weight(model: nn.Module, adapter: str) -> dict[str, LoraFactors]:
    return {held.place.weight: held for held in live_factors(model, [adapter])}


def _layer(name: str) -> int | None:
    """The block that a weight is in: the first number in its dotted name."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None
