"""Read activations while a model runs: the latest pass as it is, or a stream of passes, pooled or averaged."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import hooks
from tropism.activations.positions import BatchReader, read_batches
from tropism.errors import UsageError
from tropism.site import Site

Positions = Literal["all", "response", "first_response", "last_prompt"]
Reduce = Literal["example", "mean"]

NOTHING_READ = (
    "capture: nothing was read at {site} (captured: {sites}); ask for the site, and run the model inside the 'with' "
    "block on batches that have such tokens"
)


class Activations(Mapping[Site, Tensor], abc.ABC):
    """What a capture read, by site; a site appears once something was read there."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = tuple(sites)

    @abc.abstractmethod
    def take(self, site: Site, h: Tensor, reader: BatchReader | None) -> Tensor | None:
        """One more activation `[B, T, d]`; what the model is to go on with, where that is not `h`."""

    @abc.abstractmethod
    def find(self, site: Site) -> Tensor | None:
        """What was read at the site, None where nothing was."""

    def __getitem__(self, site: Site) -> Tensor:
        found = self.find(site) if site in self._sites else None
        if found is None:
            raise UsageError(NOTHING_READ.format(site=site, sites=", ".join(map(str, self._sites))))
        return found

    def __iter__(self) -> Iterator[Site]:
        return (site for site in self._sites if self.find(site) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Latest(Activations):
    """The latest pass, as the model computed it."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__(sites)
        self._held: dict[Site, Tensor] = {}

    def take(self, site: Site, h: Tensor, reader: BatchReader | None) -> Tensor | None:
        self._held[site] = h
        # Falcon adds to its MLP's output in place: it is given a copy, so that what was captured stays as it was.
        return h.clone() if site.stream in ("attn_out", "mlp_out") else None

    def find(self, site: Site) -> Tensor | None:
        return self._held.get(site)


class _Rows(Activations):
    """Every selected token of every pass, or one mean an example, float32 on the CPU."""

    def __init__(self, sites: Sequence[Site], positions: Positions, by_example: bool) -> None:
        super().__init__(sites)
        self._positions, self._by_example = positions, by_example
        self._held: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def take(self, site: Site, h: Tensor, reader: BatchReader | None) -> None:
        assert reader is not None
        on = reader.mask(self._positions, h)
        wide = h.detach().float()
        if self._by_example:
            counts = on.sum(dim=1)
            if not counts.all():
                row = int((counts == 0).nonzero()[0, 0])
                raise UsageError(
                    f"capture(reduce='example') needs a {self._positions!r} token in every row, found none in row {row}"
                )
            rows = torch.where(on, wide, 0).sum(dim=1) / counts
        else:
            rows = wide[on.squeeze(-1)]
        self._held[site].append(rows.cpu())

    def find(self, site: Site) -> Float[Tensor, "n d"] | None:
        return torch.cat(self._held[site]) if self._held[site] else None


class _Mean(Activations):
    """The mean over every selected token of every pass; memory is one vector a site, however long the stream."""

    def __init__(self, sites: Sequence[Site], positions: Positions) -> None:
        super().__init__(sites)
        self._positions = positions
        self._sums: dict[Site, Tensor] = {}
        self._counts = dict.fromkeys(sites, 0)

    def take(self, site: Site, h: Tensor, reader: BatchReader | None) -> None:
        assert reader is not None
        on = reader.mask(self._positions, h)
        # In float32 within a batch (MPS has nothing wider) and in float64 over batches.
        batch = torch.where(on, h.detach().float(), 0).flatten(0, -2).sum(dim=0).to("cpu").double()
        self._sums[site] = self._sums[site] + batch if site in self._sums else batch
        self._counts[site] += int(on.sum())

    def find(self, site: Site) -> Float[Tensor, "d"] | None:
        return (self._sums[site] / self._counts[site]).float() if self._counts[site] else None


@contextmanager
def capture(
    model: nn.Module,
    sites: Sequence[Site],
    *,
    positions: Positions | None = None,
    reduce: Reduce | None = None,
) -> Iterator[Mapping[Site, Tensor]]:
    """Collect the activations at `sites` while the model runs inside the block.

    | `positions` | `reduce` | `acts[site]` |
    |---|---|---|
    | None | None | `[B, T, d_model]` of the latest pass: the model's own tensor (dtype, device, on the graph) |
    | named | None | `[N, d_model]`: every such token of all passes, float32 on the CPU |
    | named | `"example"` | `[N, d_model]`: one mean for each row of each batch, float32 on the CPU |
    | named | `"mean"` | `[d_model]`: one mean over all, accumulated in float64; memory does not grow with the passes |

    Positions are `all` (every token that the attention mask does not mark as padding), `response`, `first_response`
    and `last_prompt`; all but the first need `response_mask` or `labels` in what the model is called with. `reduce`
    without `positions` means `all`. Raises `SiteError` for a site that the model lacks, `UsageError` where nothing was
    read.

    ```python
    with tp.capture(model, [tp.Site(12)], positions="response", reduce="mean") as acts, torch.no_grad():
        for batch in loader:
            model(**batch)
    acts[tp.Site(12)]  # [d_model]
    ```
    """
    if reduce not in (None, "example", "mean"):
        raise UsageError(f"capture: reduce must be None, 'example' or 'mean', found {reduce!r}")
    named: Positions = positions or "all"
    acts: Activations
    if reduce == "mean":
        acts = _Mean(sites, named)
    elif reduce == "example" or positions is not None:
        acts = _Rows(sites, named, by_example=reduce == "example")
    else:
        acts = _Latest(sites)
    with ExitStack() as stack:
        reader = None
        if not isinstance(acts, _Latest):
            reader = read_batches(model)
            stack.callback(reader.remove)
        for site in sites:
            stack.callback(hooks.edit_activation(model, site, _reading(acts, site, reader)).remove)
        yield acts


def mean_activations(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], sites: Sequence[Site], positions: Positions = "all"
) -> dict[Site, Float[Tensor, "d"]]:
    """The model's mean activation at each site over batches of inputs: what `Ablation(d, origin=...)` can move toward.

    Takes the model as it is: for the base model's mean, call it before training (or with the adapter disabled), in
    evaluation mode. Float32 `[d_model]` on the CPU.
    """
    with capture(model, sites, positions=positions, reduce="mean") as acts, torch.no_grad():
        for batch in batches:
            model(**batch)
    return {site: acts[site] for site in sites}


def _reading(acts: Activations, site: Site, reader: BatchReader | None) -> hooks.Edit:
    def read(h: Tensor) -> Tensor | None:
        return None if hooks.replaying() else acts.take(site, h, reader)

    return read
