"""The linear algebra that every guard shares: bases, projections, angles.

Rows are vectors. `V` is a basis `[k, d]` with orthonormal rows, so that `h·Vᵀ` are coordinates and `(h·Vᵀ)V` is the
component. Nothing here builds a `d × d` matrix.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

RANK_TOLERANCE = 1e-5
"""A row whose remainder, after projecting out the rows before it, is below this share of its length is dependent."""


def orthonormal_basis(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "r d"]:
    """An orthonormal basis of the row space, float32, row `i` spanning with the rows before it what `vectors[:i+1]` do.

    Gram-Schmidt with reorthogonalisation in float64; the first row keeps its sign. Rows that depend on earlier
    ones are dropped, so `r ≤ k` is the rank. Zero rows are dropped too; an all-zero input gives `[0, d]`.
    """
    source = vectors.detach().cpu().double()
    rows: list[Tensor] = []
    for vector in source:
        length = vector.norm()
        if length == 0:
            continue
        remainder = vector / length
        for _ in range(2):
            for row in rows:
                remainder = remainder - (remainder @ row) * row
        size = remainder.norm()
        if size > RANK_TOLERANCE:
            rows.append(remainder / size)
    basis = torch.stack(rows) if rows else source.new_zeros((0, source.shape[1]))
    return basis.to(torch.float32)


def coordinates(h: Float[Tensor, "*batch d"], basis: Float[Tensor, "k d"]) -> Float[Tensor, "*batch k"]:
    """`h·Vᵀ` in float32 with autocast off, whatever the dtype of `h` (float64 stays float64)."""
    with torch.autocast(h.device.type, enabled=False):
        wide = h if h.dtype == torch.float64 else h.float()
        return wide @ basis.to(wide).T


def project_onto(h: Float[Tensor, "*batch d"], basis: Float[Tensor, "k d"]) -> Float[Tensor, "*batch d"]:
    """`(h·Vᵀ)V`: the component of `h` in the span of `V`, in the dtype of `h`, computed in float32."""
    with torch.autocast(h.device.type, enabled=False):
        wide = h if h.dtype == torch.float64 else h.float()
        V = basis.to(wide)
        return ((wide @ V.T) @ V).to(h.dtype)


def project_out(
    h: Float[Tensor, "*batch d"], basis: Float[Tensor, "k d"], strength: float = 1.0
) -> Float[Tensor, "*batch d"]:
    """`h − strength·(h·Vᵀ)V`: `h` without its component in the span of `V`, in its own dtype, computed in float32."""
    return remove_component(h, basis, strength)[0]


def remove_component(
    h: Float[Tensor, "*batch d"],
    basis: Float[Tensor, "k d"],
    strength: float = 1.0,
    *,
    weights: Shaped[Tensor, "*batch 1"] | None = None,
    origin: Float[Tensor, "k"] | None = None,
    straight_through: bool = False,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch k"]]:
    """`h − cV` and `c = strength·weights·(h·Vᵀ − origin)`: an edit of `h`, and the coordinates that it took away.

    Computed in float32 with autocast off (float64 stays float64); the edited `h` has the dtype of `h`, the coordinates
    that of the computation. `weights` are one number a token, `origin` coordinates to move toward instead of zero.
    `straight_through` lets the gradient of the result pass to `h` whole. Autograd keeps `V` for the backward pass and
    no activation.
    """
    with torch.autocast(h.device.type, enabled=False):
        wide = h if h.dtype == torch.float64 else h.float()
        V = basis.to(wide)
        flat = wide.reshape(-1, wide.shape[-1])
        removed = (flat.detach() if straight_through else flat) @ V.T
        if origin is not None:
            removed = removed - origin.to(removed)
        if weights is not None:
            removed = removed * weights.reshape(-1, 1).to(removed)
        if strength != 1.0:
            removed = removed * strength
        edited = torch.addmm(flat, removed, V, alpha=-1).view(wide.shape).to(h.dtype)
        return edited, removed.view(*wide.shape[:-1], V.shape[0])


def add_vector(
    h: Float[Tensor, "*batch d"], vector: Float[Tensor, "d"], weights: Shaped[Tensor, "*batch 1"] | None = None
) -> Float[Tensor, "*batch d"]:
    """`h + weights·v` in the dtype of `h`, computed in float32 (float64 stays float64)."""
    wide = h if h.dtype == torch.float64 else h.float()
    step = vector.to(wide)
    return (wide + (step if weights is None else weights.to(wide) * step)).to(h.dtype)


def square_sum(h: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
    """`Σ h²`, off the graph, at least in float32."""
    with torch.autocast(h.device.type, enabled=False):
        flat = h.detach().reshape(-1)
        wide = flat if flat.dtype == torch.float64 else flat.float()
        return wide @ wide


def principal_angles(a: Float[Tensor, "j d"], b: Float[Tensor, "k d"]) -> Float[Tensor, "m"]:
    """Principal angles between two row spaces in radians, ascending, float64, `m` the smaller rank.

    Björck and Golub (1973): cosines are the singular values of `A·Bᵀ`; small angles are taken from the sines, where
    the arc cosine has no precision left.
    """
    # Float64 bases: the float32 rounding of `orthonormal_basis` alone would read as an angle of 3e-4.
    A, B = _basis64(a), _basis64(b)
    if A.shape[0] > B.shape[0]:
        A, B = B, A
    if A.shape[0] == 0:
        return A.new_zeros((0,))
    U, cosines, _ = torch.linalg.svd(A @ B.T, full_matrices=False)
    principal = U.T @ A
    sines = (principal - (principal @ B.T) @ B).norm(dim=1)
    small = cosines > 0.7
    return torch.where(small, torch.asin(sines.clamp(max=1)), torch.acos(cosines.clamp(-1, 1))).sort().values


def _basis64(vectors: Tensor) -> Tensor:
    basis = orthonormal_basis(vectors).double()
    # The float32 basis spans the space to 1e-7; one QR in float64 of the projection of the input restores the rest.
    source = vectors.detach().cpu().double()
    if basis.shape[0] == 0:
        return basis
    _, _, Vh = torch.linalg.svd(source / source.norm(dim=1, keepdim=True).clamp_min(1e-300), full_matrices=False)
    rows: Tensor = Vh[: basis.shape[0]]
    return rows
