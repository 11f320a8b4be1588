"""SAE latents: decoder rows of the latents that tell the two sides apart, from an SAE that SAELens can load."""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism import linalg
from tropism.directions.dictionary import FILE as AE_FILE
from tropism.directions.dictionary import Dictionary, read_dictionary
from tropism.directions.finder import Collector, Finder, Found, Unit, Window
from tropism.directions.mean_difference import RunningMean
from tropism.errors import DirectionsError
from tropism.optional import require
from tropism.site import Site

Criterion = Literal["latent_difference", "encoder_difference", "attribution"]

_STREAMS = {
    "hook_resid_post": "resid_post",
    "hook_resid_pre": "resid_pre",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}


@dataclass(frozen=True)
class SAELatents(Finder):
    """The decoder rows `W_dec[i]` of `k` latents, normalised and then orthonormalised, `[≤k, d_model]`.

    Latents are ranked, highest first, by one of three published criteria, over tokens:

    - `latent_difference`: `mean(z⁺) − mean(z⁻)` of the latents' activations;
    - `encoder_difference`: `W_encᵀ (mean(h⁺) − mean(h⁻))`, the encoder's linear part on the activation difference;
    - `attribution`: `−(mean⁺ − mean⁻) of (W_dec·∂L/∂h) ⊙ z`: to first order, how much a latent lowers the loss of the
      positive responses, less how much it lowers the negative ones'.

    The SAE comes from a local `folder` (as SAELens, or `tropism directions train-sae`, saves it; or as
    `dictionary_learning` does, `ae.pt` with `config.json`) or by `release` and `sae_id`; it belongs to one site, which it
    names itself unless `site` says. `latents` picks latents by hand. Needs the extra `sae`, except for `ae.pt`.
    Sources: the criteria of CAFT (Casademunt et al., 2025) and of Wang et al. (2025).

    Raises `DirectionsError` where the SAE is of another width or site, or fewer than `k` latents separate the sides.
    """

    k: int = 10
    """How many latents."""
    criterion: Criterion = "latent_difference"
    """How latents are ranked."""
    folder: str | None = None
    """Folder of the SAE, as SAELens saves it."""
    release: str | None = None
    """Release of a published SAE, instead of a folder."""
    sae_id: str | None = None
    """Which SAE of the release."""
    site: Site | None = None
    """The site that the SAE belongs to, where it does not say."""
    latents: tuple[int, ...] | None = None
    """Take these latents instead of ranking them."""

    name: ClassVar[str] = "sae_latents"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise DirectionsError(f"SAELatents.k must be at least 1, found {self.k}")
        if self.criterion not in get_args(Criterion):
            raise DirectionsError(
                f"SAELatents.criterion must be one of {', '.join(get_args(Criterion))}, found {self.criterion!r}"
            )
        if (self.folder is None) == (self.release is None) or (self.release is None) != (self.sae_id is None):
            raise DirectionsError("SAELatents needs either a folder, or a release with its sae_id")

    @property
    def unit(self) -> Unit:
        return "token"

    @property
    def needs_gradients(self) -> bool:
        return self.criterion == "attribution"

    def options(self) -> dict[str, Any]:
        options = Finder.options(self)
        # The folder's own name: a file that is passed on should not tell where it was made.
        folder = None if self.folder is None else Path(self.folder).name
        return {**options, "folder": folder, "site": None if self.site is None else str(self.site)}

    def dictionary(self) -> Dictionary:
        """The SAE, loaded once."""
        loaded = load_dictionary(self.folder, self.release, self.sae_id)
        return loaded if self.site is None else replace(loaded, site=self.site)

    def check_sites(self, sites: tuple[Site, ...]) -> None:
        own = self.dictionary().site
        if own is None:
            raise DirectionsError("this SAE does not say where it belongs (no hook_name); set SAELatents.site")
        if sites != (own,):
            raise DirectionsError(
                f"this SAE belongs to {own}, so sites must be [Site({own.layer}, {own.stream!r})], found "
                f"{', '.join(map(str, sites))}"
            )

    def collector(self, site: Site, width: int, seed: int) -> Collector:
        dictionary = self.dictionary()
        if dictionary.W_dec.shape[1] != width:
            raise DirectionsError(
                f"this SAE reads activations of width {dictionary.W_dec.shape[1]}, and the model's are {width} wide"
            )
        return SAECollector(self, dictionary)


class SAECollector(Collector):
    """Running means of latents, activations and attributions on both sides; nothing a token."""

    def __init__(self, options: SAELatents, dictionary: Dictionary) -> None:
        self._options, self._sae = options, dictionary
        size, width = dictionary.W_dec.shape
        self._latents = [RunningMean(size), RunningMean(size)]
        self._firing = [RunningMean(size), RunningMean(size)]
        self._attribution = [RunningMean(size), RunningMean(size)]
        self._activations = [RunningMean(width), RunningMean(width)]

    @torch.no_grad()
    def add(self, window: Window) -> None:
        sides = ((window.positive, window.positive_gradients), (window.negative, window.negative_gradients))
        for side, (rows, gradients) in enumerate(sides):
            z = self._sae.encode(rows)
            self._latents[side].add(z)
            self._firing[side].add((z > 0).to(z.dtype))
            self._activations[side].add(rows)
            if gradients is not None:
                self._attribution[side].add((gradients @ self._sae.W_dec.T) * z)

    def result(self) -> Found:
        difference = self._latents[0].mean - self._latents[1].mean
        if self._options.criterion == "latent_difference":
            scores = difference
        elif self._options.criterion == "encoder_difference":
            scores = (self._activations[0].mean - self._activations[1].mean) @ self._sae.W_enc.to(torch.float64)
        else:
            scores = self._attribution[1].mean - self._attribution[0].mean
        chosen = self._chosen(scores)
        rows = self._sae.W_dec[chosen].detach().to(torch.float32)
        basis = linalg.orthonormal_basis(rows / rows.norm(dim=1, keepdim=True))
        return Found(
            basis,
            {
                "latents": chosen.tolist(),
                "scores": scores[chosen].tolist(),
                "firing_positive": self._firing[0].mean[chosen].tolist(),
                "firing_negative": self._firing[1].mean[chosen].tolist(),
            },
        )

    def _chosen(self, scores: Float[Tensor, "s"]) -> Tensor:
        if self._options.latents is not None:
            beyond = [latent for latent in self._options.latents if not 0 <= latent < len(scores)]
            if beyond or not self._options.latents:
                raise DirectionsError(
                    f"SAELatents.latents must name latents from 0 to {len(scores) - 1}, found {self._options.latents!r}"
                )
            return torch.tensor(self._options.latents)
        k = self._options.k
        available = int((scores > 0).sum())
        if available < k:
            raise DirectionsError(
                f"SAELatents.k={k} is more than the {available} latents that speak for the positive side by "
                f"{self._options.criterion}; lower k"
            )
        return scores.topk(k).indices


@lru_cache(maxsize=4)
def load_dictionary(folder: str | None, release: str | None, sae_id: str | None) -> Dictionary:
    """Load an SAE from a local folder or the hub; raises `DirectionsError` where there is none.

    A folder of `dictionary_learning` (`ae.pt`) is read as it is, any other through SAELens.
    """
    if folder is not None and (Path(folder).name == AE_FILE or (Path(folder) / AE_FILE).is_file()):
        return read_dictionary(Path(folder))
    library = require("sae_lens", extra="sae", purpose="reading SAEs")
    try:
        if folder is not None:
            if not (Path(folder) / "cfg.json").is_file():
                raise DirectionsError(f"no SAE in {folder!r}: expected cfg.json and sae_weights.safetensors, or ae.pt")
            sae = library.SAE.load_from_disk(folder, device="cpu", dtype="float32")
        else:
            sae = library.SAE.from_pretrained(release, sae_id, device="cpu")
    except (OSError, ValueError, KeyError) as error:
        raise DirectionsError(f"the SAE {folder or f'{release}/{sae_id}'} could not be loaded: {error}") from error
    return of_sae(sae)


def of_sae(sae: nn.Module) -> Dictionary:
    """What a finder uses of a SAELens SAE."""
    weights: Any = sae
    W_enc = weights.W_enc.detach().to(torch.float32)
    hook = weights.cfg.metadata.hook_name
    return Dictionary(weights.encode, W_enc, weights.W_dec.detach().to(torch.float32), site_of_hook(hook))


def site_of_hook(hook: str | None) -> Site | None:
    """`blocks.12.hook_resid_post` (SAELens) or `model.layers.12` (transformers) as a site; None for another place."""
    if hook is None:
        return None
    if match := re.fullmatch(r"blocks\.(\d+)\.(hook_\w+)", hook):
        stream = _STREAMS.get(match.group(2))
        return None if stream is None else Site(int(match.group(1)), stream)  # type: ignore[arg-type]
    match = re.fullmatch(r"(?:\w+\.)*(?:layers|h)\.(\d+)", hook)
    return None if match is None else Site(int(match.group(1)))


def hook_of_site(site: Site) -> str:
    """The name that SAELens gives to a site."""
    return f"blocks.{site.layer}." + {stream: hook for hook, stream in _STREAMS.items()}[site.stream]
