"""What concept ablation did inside a model: how much the activations still vary along the ablated directions, and how
much of the gradient still lies there.

Casademunt et al. (2025) expect that ablating in the forward pass suppresses the variance along the concept, that
projecting the gradient alone keeps it, and that the latter lowers the cosine of gradient and subspace. Here both are
measured per site, on the model without any guard, for the base and for each run, on the same chats.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from tropism import linalg
from tropism.activations.capture import capture
from tropism.data.batches import batches
from tropism.data.chats import Chat, Example
from tropism.data.render import Positions, Rendered, render
from tropism.directions.artifact import Directions
from tropism.errors import DataError, UsageError
from tropism.evals.scorers.token_losses import evaluation
from tropism.probes.gradient_cache import GradientCache
from tropism.probes.gradients import collect_gradients
from tropism.probes.pressure import check_sites
from tropism.site import Site, input_device


def activation_variance(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Directions,
    *,
    positions: Positions = "response",
    batch_size: int = 8,
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return the variance of the activations along the directions, per site: `tr(V Σ Vᵀ)`, `Σ` the covariance over tokens.

    The tokens are those at `positions` in all chats together. Columns: `site`, `variance_along`, `variance_total`
    (`tr Σ`), `share` (their ratio), `null_share` (`k/d`: the share of arbitrary directions, if the variance is the same
    in all), `mean_along` (length of the mean's component in the subspace), `tokens`. Activations are read in the model's
    dtype, sums are float64. Raises `DataError` under two tokens.

    Example:
        table = activation_variance(model, tokenizer, chats, directions)
    """
    one = _variances(model, tokenizer, chats, {"": directions}, positions, batch_size, template_kwargs)
    return one.drop(columns="directions")


def _variances(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Mapping[str, Directions],
    positions: Positions,
    batch_size: int,
    template_kwargs: Mapping[str, Any] | None,
) -> pd.DataFrame:
    """Return `activation_variance` of several directions, from one pass over the chats."""
    rendered = _rendered(tokenizer, chats, template_kwargs)
    bases = {(name, site): found.basis(site) for name, found in directions.items() for site in found.sites}
    moments = {key: _Moments(len(basis)) for key, basis in bases.items()}
    with evaluation(model), capture(model, sorted({site for _, site in bases})) as acts:
        for batch in batches(rendered, batch_size, device=input_device(model)):
            model(**batch.inputs, use_cache=False)
            rows, columns = [], []
            for row, chat in enumerate(batch.rows):
                for place in chat.positions[positions]:
                    rows.append(row)
                    columns.append(place)
            for (name, site), basis in bases.items():
                moments[name, site].add(acts[site][rows, columns], basis)
    return pd.DataFrame([{"directions": name, **moments[name, site].row(site)} for name, site in bases])


class _Moments:
    """Running sums of one site's activations, about the first batch's mean.

    Activations can have means a million times their spread; squares about zero would cancel to nothing in float64.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.tokens = rank, 0
        self.shift = self.sum = torch.zeros(0, dtype=torch.float64)
        self.squares = 0.0
        self.along_squares = 0.0
        self.basis = torch.zeros(0, dtype=torch.float64)

    def add(self, h: Tensor, basis: Tensor) -> None:
        wide = h.detach().float().cpu().double()
        if self.tokens == 0:
            if len(wide) == 0:
                return
            self.shift, self.sum = wide.mean(0), torch.zeros_like(wide[0])
            self.basis = basis.double()
        centred = wide - self.shift
        self.tokens += len(centred)
        self.sum += centred.sum(0)
        self.squares += float(centred.square().sum())
        self.along_squares += float((centred @ self.basis.T).square().sum())

    def row(self, site: Site) -> dict[str, Any]:
        if self.tokens < 2:
            raise DataError(f"a variance needs at least two tokens, found {self.tokens} at these positions")
        mean = self.sum / self.tokens
        along_mean = mean @ self.basis.T
        total = (self.squares - self.tokens * float(mean.square().sum())) / (self.tokens - 1)
        along = (self.along_squares - self.tokens * float(along_mean.square().sum())) / (self.tokens - 1)
        return {
            "site": str(site),
            "variance_along": along,
            "variance_total": total,
            "share": along / total if total > 0 else None,
            "null_share": self.rank / len(mean),
            "mean_along": float(((mean + self.shift) @ self.basis.T).norm()),
            "tokens": self.tokens,
        }


def gradient_cosine(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Directions,
    *,
    positions: Positions = "response",
    batch_size: int = 8,
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return the cosine of each chat's activation gradient with the subspace, `‖V g‖/‖g‖`, mean over chats, per site.

    `g` is the gradient of the chat's own mean response loss, pooled over `positions`. Columns: `site`, `cosine` (mean),
    `cosine_sd` (over chats), `null_cosine` (`√(k/d)`, that of random directions), `gradient_norm` (mean), `chats`. A chat
    whose gradient is 0 has no cosine and is not counted in `chats`.
    """
    cache = collect_gradients(
        model, tokenizer, chats, list(directions.sites), positions, batch_size, template_kwargs=template_kwargs
    )
    return _cosines(cache, directions)


def _cosines(cache: GradientCache, directions: Directions) -> pd.DataFrame:
    check_sites(cache, directions)
    rows = []
    for site in directions.sites:
        basis, gradients = directions.basis(site), cache.gradients[site]
        norms = gradients.norm(dim=1)
        # A gradient of exactly 0 (a chat the model is already sure of) has no direction.
        real = norms > 0
        cosines = (linalg.coordinates(gradients[real], basis).norm(dim=1) / norms[real]).double()
        rows.append(
            {
                "site": str(site),
                "cosine": float(cosines.mean()) if len(cosines) else None,
                "cosine_sd": float(cosines.std()) if len(cosines) > 1 else None,
                "null_cosine": (len(basis) / basis.shape[1]) ** 0.5,
                "gradient_norm": float(norms.double().mean()),
                "chats": len(cosines),
            }
        )
    return pd.DataFrame(rows)


def inside(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Directions,
    *,
    positions: Positions = "response",
    batch_size: int = 8,
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return `activation_variance` and `gradient_cosine` in one table, a row per site."""
    table = inside_all(
        model, tokenizer, chats, {"": directions}, positions=positions, batch_size=batch_size,
        template_kwargs=template_kwargs,
    )  # fmt: skip
    return table.drop(columns="directions")


def inside_all(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    directions: Mapping[str, Directions],
    *,
    positions: Positions = "response",
    batch_size: int = 8,
    template_kwargs: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return `inside` of several directions, a row per directions and site, named in the column `directions`.

    One forward pass and one with gradients over the chats, however many directions there are. Raises `UsageError` where
    there are no directions, and what `activation_variance` and `collect_gradients` raise.
    """
    if not directions:
        raise UsageError("inside_all: directions must name at least one, found none")
    variance = _variances(model, tokenizer, chats, directions, positions, batch_size, template_kwargs)
    sites = sorted({site for one in directions.values() for site in one.sites})
    cache = collect_gradients(model, tokenizer, chats, sites, positions, batch_size, template_kwargs=template_kwargs)
    cosine = pd.concat([_cosines(cache, one).assign(directions=name) for name, one in directions.items()])
    return variance.merge(cosine, on=["directions", "site"])


def _rendered(
    tokenizer: Any, chats: Sequence[Chat | Example], template_kwargs: Mapping[str, Any] | None
) -> list[Rendered]:
    if not chats:
        raise DataError("activation_variance: chats must hold at least one chat, found none")
    rendered = []
    for number, chat in enumerate(chats):
        messages = chat.content if isinstance(chat, Example) else chat
        rendered.append(render(tokenizer, messages, template_kwargs=template_kwargs, where=f"chat {number}"))
    return rendered
