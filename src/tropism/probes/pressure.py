"""Pressure: how hard a descent step would move an activation toward a direction."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tropism.directions.artifact import Directions
from tropism.directions.provenance import is_of
from tropism.errors import DirectionsError, DirectionsMismatch, SiteError
from tropism.probes.gradient_cache import GradientCache
from tropism.site import Site


def pressure(cache: GradientCache, directions: Directions) -> pd.DataFrame:
    """`pressure = −⟨g, v̂⟩` of every chat's gradient at every site of `directions`, as a tidy table.

    Columns: `chat, site, pressure, cosine, gradient_norm, loss`. Positive pressure: descent moves the activation toward
    `v`, so `cosine = ⟨g, v̂⟩/‖g‖ = −pressure/‖g‖` is negative then (NaN for a zero gradient). Where a site has more
    than one vector there is a column `direction` (its row, each taken to unit length by itself); a cache with one row
    a token gives a column `token`. The scale of nothing is `directions.null_cosine()`, `1/√d_model`.

    Raises:
        SiteError: the directions have a site that was not cached.
        DirectionsError: their width is not the model's, or they were found on another architecture.

    Example:
        table = tp.pressure(cache, directions)
        table.groupby("site").pressure.mean()
    """
    check_sites(cache, directions)
    several = any(directions.vectors[site].shape[0] > 1 for site in directions.sites)
    chat_of_row = cache.row_chat.tolist()
    losses = cache.losses[cache.row_chat].numpy()
    parts = []
    for site in directions.sites:
        along, norms = along_units(cache.gradients[site], directions.vectors[site])
        for k in range(along.shape[1]):
            columns: dict[str, Any] = {
                "chat": [cache.chats[i] for i in chat_of_row],
                "site": str(site),
                "pressure": (-along[:, k]).numpy(),
                "cosine": (along[:, k] / norms).numpy(),
                "gradient_norm": norms.numpy(),
                "loss": losses,
            }
            if several:
                columns["direction"] = k
            if cache.per_token:
                columns["token"] = cache.row_token.numpy()
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def along_units(
    gradients: Float[Tensor, "n d"], vectors: Float[Tensor, "k d"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n"]]:
    """`⟨g, v̂⟩` for every gradient and every vector, taken to unit length, in one matmul; and `‖g‖`. All float32."""
    # In chunks: a memory-mapped cache is then never in memory as a whole.
    units = vectors / vectors.norm(dim=1, keepdim=True)
    chunks = [(part @ units.T, part.norm(dim=1)) for part in torch.split(gradients, 4096)]
    return torch.cat([along for along, _ in chunks]), torch.cat([norms for _, norms in chunks])


def check_sites(cache: GradientCache, directions: Directions) -> None:
    """Raise where `directions` have a site that `cache` lacks, another width, or were found on another architecture."""
    missing: list[Site] = [site for site in directions.sites if site not in cache.gradients]
    if missing:
        raise SiteError(
            f"directions have {', '.join(map(str, missing))}, of which the cache holds no gradients; it holds "
            f"{', '.join(map(str, cache.sites))}: collect gradients at directions.sites"
        )
    if directions.width != cache.manifest["width"]:
        raise DirectionsError(
            f"directions have width {directions.width}, the cache's model has {cache.manifest['width']}: they were "
            "found on another model"
        )
    found_on, measured = directions.provenance.get("model"), cache.manifest["base"]
    if isinstance(found_on, Mapping) and not is_of(directions.provenance, measured["config_hash"]):
        raise DirectionsMismatch(
            f"directions were found on {found_on.get('name')!r}, the gradients were collected on "
            f"{measured['name']!r}, which is of another architecture; use directions and cache of one model"
        )
