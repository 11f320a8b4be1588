"""The null of pressure: the same gradients against random directions, as one matmul."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tropism.directions.artifact import Directions
from tropism.errors import DirectionsError, UsageError
from tropism.probes.gradient_cache import GradientCache
from tropism.probes.pressure import along_units, check_sites
from tropism.site import Site

Kind = Literal["isotropic", "covariance"]


def draw_random(directions: Directions, site: Site, count: int, seed: int, kind: Kind) -> Float[Tensor, "count d"]:
    """`count` random vectors at `site`, float32: isotropic, or distributed as the activations there vary.

    `covariance` takes the activations' covariance that the finder kept (`Directions.covariance`), not that of the
    gradients: it answers "would any direction along which activations vary have done?". Seeded by `(seed, site)`, so
    that caches of several conditions meet the same directions.
    """
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, *str(site).encode()]).generate_state(1)[0])
    )
    if kind == "isotropic":
        return torch.randn((count, directions.width), generator=generator)
    if site not in directions.covariance:
        raise DirectionsError(
            f"covariance-matched random directions need the activations' covariance at {site}, which these "
            "directions do not carry; find them with find_directions, or use kind='isotropic'"
        )
    factor = directions.covariance[site].to(torch.float32)
    return torch.randn((count, factor.shape[0]), generator=generator) @ factor


def random_pressure(
    cache: GradientCache,
    directions: Directions,
    *,
    count: int = 100,
    seed: int = 0,
    kind: Kind = "isotropic",
    groups: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Mean pressure along `count` random directions per site, beside the directions' own: no new backward pass.

    Columns: `site, kind, draw, pressure, cosine`, means over rows; `draw` is -1 for the directions themselves. With
    `groups`, one label a chat (the halves of a split, say), means are taken within groups and a column `group` is
    added.

    Raises:
        UsageError: `count` is under 1; `groups` has another length than the cache has chats; a site has several
        vectors. DirectionsError: `kind="covariance"` without a covariance.
    """
    check_sites(cache, directions)
    if count < 1:
        raise UsageError(f"random_pressure: count must be at least 1 (100 or more for a p-value), found {count}")
    if groups is not None and len(groups) != len(cache.chats):
        raise UsageError(f"random_pressure: groups needs one label a chat ({len(cache.chats)}), found {len(groups)}")
    row_group = np.asarray(groups)[cache.row_chat.numpy()] if groups is not None else np.zeros(len(cache.row_chat))
    tables = []
    for site in directions.sites:
        if directions.vectors[site].shape[0] != 1:
            raise UsageError(
                f"random_pressure compares one direction a site, found {len(directions.vectors[site])} at {site}"
            )
        vectors = torch.cat([directions.vectors[site], draw_random(directions, site, count, seed, kind)])
        along, norms = along_units(cache.gradients[site], vectors)
        for group in np.unique(row_group):
            mine = torch.from_numpy(row_group == group)
            table = pd.DataFrame(
                {
                    "site": str(site),
                    "kind": kind,
                    "draw": range(-1, count),
                    "pressure": -along[mine].double().mean(dim=0).numpy(),
                    "cosine": (along[mine] / norms[mine].unsqueeze(1)).double().nanmean(dim=0).numpy(),
                }
            )
            if groups is not None:
                table["group"] = group
            tables.append(table)
    return pd.concat(tables, ignore_index=True)
