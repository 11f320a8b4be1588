"""Weights as a low-bit format would hold them: rounded in blocks, so that any machine can ask what rounding does."""

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale, as in the block-wise formats of 4 bits."""


def rounded(weight: Tensor, bits: int = 4, block: int = BLOCK) -> Tensor:
    """The nearest multiples of a scale, `s = max|w| / (2^(bits−1) − 1)` in each block of a row.

    The values are those of symmetric absmax rounding; formats with other levels (NF4) round a little less. The last block
    of a row is shorter where `block` does not divide it.

    Raises:
        ValueError: fewer than 2 bits, which leave no levels.

    >>> rounded(torch.tensor([[0.0, 0.4, 7.0]]), bits=4).tolist()
    [[0.0, 0.0, 7.0]]
    """
    if bits < 2:
        raise ValueError(f"bits must be at least 2, found {bits}")
    levels = 2 ** (bits - 1) - 1
    parts = []
    for part in torch.split(weight.detach().float(), block, dim=-1):
        scale = part.abs().amax(dim=-1, keepdim=True) / levels
        # A block of zeros has no scale, and stays what it is.
        parts.append(torch.where(scale > 0, (part / scale.clamp_min(1e-30)).round() * scale, part))
    return torch.cat(parts, dim=-1).to(weight.dtype)


def round_linear_layers(model: nn.Module, bits: int = 4, block: int = BLOCK) -> int:
    """Round the weight of every linear layer but the output embedding's, in place; returns how many."""
    get = getattr(model, "get_output_embeddings", None)  # transformers' object, not ours
    exit_ = get() if get is not None else None
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not exit_]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(rounded(layer.weight, bits, block))
    return len(layers)
