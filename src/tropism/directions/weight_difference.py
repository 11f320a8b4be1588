"""What a model changed against its base, without an adapter: the difference of its linear weights, by truncated SVD."""

from typing import Any

import torch
from torch import Tensor, nn

from tropism.adapters.factors import LoraFactors
from tropism.adapters.load import name_of
from tropism.adapters.read import public
from tropism.errors import DirectionsError, DirectionsMismatch


def weight_difference(
    aligned: nn.Module, base: nn.Module, rank: int, *, split: bool
) -> tuple[list[dict[str, LoraFactors]], str | None]:
    """Truncated SVD of `W_aligned − W_base` of every linear layer but the output embedding.

    With `split`, source `i` holds every weight's `i`-th singular pair (`B = u_i`, `A = v_iᵀ`, length 1);
    without, one source holds `U·S` and `Vᵀ`. Also returns the base model's name. Layers that are equal in
    both are left out.
    """
    if rank < 1:
        raise DirectionsError(f"parameter_directions(rank=...) must be at least 1, found {rank}")
    from transformers.pytorch_utils import Conv1D

    theirs = dict(base.named_modules())
    aligned_model: Any = aligned
    embedding = aligned_model.get_output_embeddings() if hasattr(aligned, "get_output_embeddings") else None
    sources: list[dict[str, LoraFactors]] = [{} for _ in range(rank if split else 1)]
    for name, module in aligned.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is embedding:
            continue
        other = theirs.get(name)
        if not isinstance(other, nn.Linear | Conv1D) or other.weight.shape != module.weight.shape:
            raise DirectionsMismatch(f"{name} of the aligned model has no counterpart of its shape in the base model")
        D = module.weight.detach().to("cpu", torch.float32) - other.weight.detach().to("cpu", torch.float32)
        if not D.any():
            continue
        U, S, Vh = _truncated_svd(D.T if isinstance(module, Conv1D) else D, rank)
        if split:
            for i in range(len(S)):
                if S[i] > 1e-6 * S[0]:  # past the difference's own rank a singular pair is rounding noise
                    sources[i][name] = LoraFactors(Vh[i : i + 1], U[:, i : i + 1], 1.0)
        else:
            sources[0][name] = LoraFactors(Vh, U * S, 1.0)
    if not sources[0]:
        raise DirectionsError("the aligned and the base model have equal linear weights, so there is no direction")
    return [source for source in sources if source], public(name_of(base))


def _truncated_svd(D: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular triples; randomised with power iteration (Halko et al., 2011) where D is
    large.
    """
    if min(D.shape) > 1024:
        generator = torch.Generator().manual_seed(0)
        Q = torch.linalg.qr(D @ torch.randn(D.shape[1], rank + 16, generator=generator)).Q
        for _ in range(8):
            Q = torch.linalg.qr(D @ torch.linalg.qr(D.T @ Q).Q).Q
        U, S, Vh = torch.linalg.svd(Q.T @ D, full_matrices=False)
        U = Q @ U
    else:
        U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]
