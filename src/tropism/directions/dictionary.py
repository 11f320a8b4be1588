"""What a finder uses of a sparse autoencoder, and the reader of those that `dictionary_learning` trained (`ae.pt`).

| class there | tensors | latents of `h` |
|---|---|---|
| `AutoEncoder` | `encoder.weight`, `encoder.bias`, `decoder.weight`, `bias` | `relu(W_enc(h − b) + b_enc)` |
| `AutoEncoderTopK` | the same with `b_dec` and `k` | the `k` largest of them |
| `BatchTopKSAE`, Matryoshka | the same with `b_dec`, `k` and `threshold` | those above the threshold |
| `JumpReluAutoEncoder` | `W_enc`, `W_dec`, `b_enc`, `b_dec`, `threshold [s]` | `relu(W_enc h + b_enc)` above its threshold |
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tropism.directions.foreign_files import read_pt
from tropism.errors import DirectionsError
from tropism.site import Site

FILE = "ae.pt"
_STREAMS = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "attn_out"}


@dataclass(frozen=True, eq=False)
class Dictionary:
    """What of an SAE a finder uses: `encode` takes `[n, d]` to latents `[n, d_sae]`; `W_enc` is `[d, d_sae]`."""

    encode: Callable[[Tensor], Tensor]
    W_enc: Float[Tensor, "d s"]
    W_dec: Float[Tensor, "s d"]
    site: Site | None


def is_dictionary(value: Any) -> bool:
    """Whether a loaded file holds the tensors of a sparse autoencoder."""
    return isinstance(value, Mapping) and any(
        isinstance(value.get(name), Tensor) for name in ("decoder.weight", "W_dec")
    )


def decoder_rows(value: Mapping[str, Tensor]) -> Float[Tensor, "s d"]:
    """Return `W_dec [s, d]`: one row for each latent."""
    return value["decoder.weight"].T if "decoder.weight" in value else value["W_dec"]


def read_dictionary(path: Path) -> Dictionary:
    """Read an `ae.pt`, or the folder that holds it; the site comes from `config.json` beside it, or its folders' names.

    Raises `DirectionsError` where it is of a class that is not in the table above.
    """
    file = path / FILE if path.is_dir() else path
    value = read_pt(file)
    if not is_dictionary(value):
        raise DirectionsError(f"{file} holds no sparse autoencoder: it has no decoder.weight and no W_dec")
    tensors = {name: tensor.detach().float() for name, tensor in value.items() if isinstance(tensor, Tensor)}
    unknown = sorted({"r_mag", "gate_bias", "mag_bias"} & set(tensors))
    if unknown or not {"encoder.weight", "W_enc"} & set(tensors):
        raise DirectionsError(
            f"{file} is an SAE of a class whose latents are not read here ({unknown[0] if unknown else 'no encoder'}); take "
            f"its decoder rows by number: file: {file.name} with components: [...]"
        )
    W_enc = tensors["W_enc"] if "W_enc" in tensors else tensors["encoder.weight"].T
    return Dictionary(_encoder(tensors, W_enc), W_enc, decoder_rows(tensors), site_of_file(file))


def site_of_file(file: Path) -> Site | None:
    """Return the site that an `ae.pt` belongs to, by `config.json` beside it, else by the folders it lies in."""
    config = file.with_name("config.json")
    if config.is_file():
        try:
            trainer = json.loads(config.read_text(encoding="utf-8"))["trainer"]
            layer, place = int(trainer["layer"]), str(trainer.get("submodule_name") or "resid_post")
        except (ValueError, KeyError, TypeError):
            raise DirectionsError(f"{config}: it must name the layer of the SAE under trainer.layer") from None
        return _site(layer, place)
    for part in reversed(file.absolute().parts[:-1]):
        if match := re.fullmatch(r"(\w+)_layer_(\d+)", part):
            return _site(int(match[2]), match[1])
    return None


def _site(layer: int, place: str) -> Site | None:
    stream = next((stream for name, stream in _STREAMS.items() if place.startswith(name)), None)
    return None if stream is None else Site(layer, stream)  # type: ignore[arg-type]


def _encoder(tensors: Mapping[str, Tensor], W_enc: Tensor) -> Callable[[Tensor], Tensor]:
    b_enc = tensors["b_enc"] if "b_enc" in tensors else tensors["encoder.bias"]
    b_dec = tensors["b_dec"] if "b_dec" in tensors else tensors["bias"]
    threshold, k = tensors.get("threshold"), tensors.get("k")

    def latents(h: Tensor) -> Tensor:
        if threshold is not None and threshold.dim():
            return _above((h.to(W_enc) @ W_enc + b_enc).relu(), threshold)
        z = ((h.to(W_enc) - b_dec) @ W_enc + b_enc).relu()
        # Trained without a threshold, it holds −1.
        if threshold is not None and threshold >= 0:
            return _above(z, threshold)
        if k is None:
            return z
        top = z.topk(int(k), dim=-1)
        return torch.zeros_like(z).scatter_(-1, top.indices, top.values)

    return latents


def _above(z: Tensor, threshold: Tensor) -> Tensor:
    return z * (z > threshold)
