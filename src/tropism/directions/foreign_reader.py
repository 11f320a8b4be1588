"""From what a foreign file holds to directions: which entry, which layer, which side of a matrix."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tropism.blocks import hidden_states_offset
from tropism.directions.artifact import Directions
from tropism.directions.components import Components, chosen_rows, recorded, wanted_at
from tropism.directions.dictionary import decoder_rows, site_of_file
from tropism.directions.sae import site_of_hook
from tropism.errors import DirectionsError
from tropism.site import STREAMS, Site

Orientation = Literal["rows", "columns"]
Indexing = Literal["blocks", "hidden_states"]

_LAYER_IN_NAME = re.compile(r"(?:layer|block|^l|[_\-.]l)[_\-. ]?(\d+)(?!\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """How to read a file where it does not say itself; None lets the reader decide.

    `layer`: the block that a lone matrix belongs to. `orientation`: whether directions are the `rows` or the `columns`
    of a matrix. `indexing`: whether layer numbers count `blocks` or index `hidden_states`. `key`: which entry of a
    nested dictionary. `components`: which of the directions are taken, `(0, 12)` at every site or `{10: (0, 12)}` by
    block; an SAE needs them, as the numbers of its latents.
    """

    layer: int | None = None
    orientation: Orientation | None = None
    indexing: Indexing | None = None
    key: str | None = None
    components: Components | None = None

    def given(self) -> dict[str, Any]:
        """Return what was given, as JSON holds it."""
        held = {name: value for name, value in vars(self).items() if value is not None}
        return {**held, **({} if self.components is None else {"components": recorded(self.components)})}


@dataclass(frozen=True)
class Imported:
    """Directions, the format they were recognised as, and what a person should know of how they were read."""

    directions: Directions
    format: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ForeignReader:
    """Reads directions for a model of `width` and `layers` blocks from what a file holds."""

    width: int
    layers: int
    how: Reading
    config: Any = None
    """The model's configuration, from which is told what its `hidden_states` index; without it, as in most models."""

    def latents(self, value: Mapping[str, Tensor], path: Path, about: dict[str, Any]) -> Imported:
        """The decoder rows of some latents of an SAE; all of them would span everything."""
        rows, components = decoder_rows(value), self.how.components
        if components is None:
            raise DirectionsError(
                f"{path.name} is an SAE of {len(rows)} latents; say which with Reading.components (--components 3,17), or "
                f"find them with the finder sae_latents"
            )
        site = Site(self.how.layer) if self.how.layer is not None else site_of_file(path)
        if site is None:
            raise DirectionsError(
                f"{path.name} does not say which block the SAE belongs to (config.json beside it does); give Reading.layer "
                f"(--layer)"
            )
        wanted = wanted_at(site, components)
        if wanted is None:
            raise DirectionsError(f"components: the SAE belongs to block {site.layer}, which they do not name")
        kind = "decoder rows of an SAE (ae.pt), as dictionary_learning writes it"
        chosen = {site: chosen_rows(rows, wanted, site)}
        return self._build(chosen, kind, {**about, "components": recorded(components)}, ())

    def array(self, array: Tensor, name: str, kind: str, about: dict[str, Any]) -> Imported:
        """A lone tensor: one layer's directions, or one direction for each layer."""
        found = _LAYER_IN_NAME.search(Path(name).stem)
        layer = self.how.layer if self.how.layer is not None else int(found.group(1)) if found else None
        if layer is not None:
            notes = () if self.how.layer is not None else (f"layer {layer} is from the file's name",)
            return self._build({layer: array}, kind, about, notes)
        if array.dim() == 2 and array.shape[1] == self.width and array.shape[0] in (self.layers, self.layers + 1):
            if array.shape[0] == self.layers + 1 and self.how.indexing != "blocks":
                return self._hidden_states(array, about)
            return self._build(dict(enumerate(array[: self.layers])), "one direction a block, [L, d]", about, ())
        raise DirectionsError(
            f"{name}: a tensor of shape {list(array.shape)} does not say which layer it belongs to (the model has "
            f"{self.layers} blocks of width {self.width}); give Reading.layer (--layer)"
        )

    def _offset(self) -> int:
        """Which entry of `hidden_states` block 0's output is."""
        return 1 if self.config is None else hidden_states_offset(self.config)

    def _hidden_states(self, array: Tensor, about: dict[str, Any]) -> Imported:
        """`[L + 1, d]`, indexed as `hidden_states`: the last row is behind the final norm, and no output of a block."""
        first = self._offset()
        left_out = "the last row (after the final norm), which is no output of a block"
        notes = (
            _indexed("rows index hidden_states, so row", first),
            f"left out: row 0 (the embeddings) and {left_out}" if first else f"left out: {left_out}",
        )
        rows = {index - first: array[index] for index in range(first, self.layers)}
        return self._build(rows, "persona vectors, [L + 1, d] (.pt)", about, notes, shifted=True)

    def dictionary(self, value: Any, kind: str, about: dict[str, Any]) -> Imported:
        """`{layer: tensor}`, or one level of nesting around or inside it."""
        if not isinstance(value, Mapping) or not value:
            raise DirectionsError(
                f"expected a tensor or a dictionary of layers, found {type(value).__name__}"
                + (" with nothing in it" if isinstance(value, Mapping) else "")
            )
        if any("lora_" in str(key) for key in value):
            raise DirectionsError(
                f"the dictionary holds LoRA factors by weight ({next(iter(value))!r}), so these are directions in weight "
                f"space; name the file under 'parameter_directions: {{NAME: {{file: ...}}}}'"
            )
        notes: list[str] = []
        if any(isinstance(inner, Mapping) for inner in value.values()):
            value = self._unnest(value, notes)
        by_layer: dict[int | Site, Tensor] = {}
        ignored = []
        for key, inner in value.items():
            where = layer_of(key)
            if where is None or not isinstance(inner, Tensor | np.ndarray):
                ignored.append(repr(key))
            elif where in by_layer:
                raise DirectionsError(f"two entries of the dictionary are of layer {where}; keep one")
            else:
                by_layer[where] = torch.as_tensor(inner)
        if not by_layer:
            raise DirectionsError(
                f"no key of the dictionary names a layer (12, '12', 'layer_12', ...), found {', '.join(ignored)}"
            )
        if ignored:
            notes.append(f"left out, as no tensor of a layer: {', '.join(ignored)}")
        return self._build(by_layer, kind, about, tuple(notes))

    def _unnest(self, value: Mapping[Any, Any], notes: list[str]) -> Mapping[Any, Any]:
        if not all(layer_of(key) is not None for key in value):
            inner = {str(name): held for name, held in value.items() if isinstance(held, Mapping)}
            name = self._pick(list(inner), [name for name, held in inner.items() if self._holds_layers(held)])
            notes.append(f"from the entry {name!r}")
            return inner[name]
        layers = {layer: {str(name): held for name, held in inner.items()} for layer, inner in value.items()
                  if isinstance(inner, Mapping)}  # fmt: skip
        names = sorted({name for inner in layers.values() for name in inner})
        fitting = [name for name in names if all(self._fits(inner.get(name)) for inner in layers.values())]
        name = self._pick(names, fitting)
        notes.append(f"each layer's entry {name!r}")
        for layer in value:
            if name not in layers.get(layer, {}):
                raise DirectionsError(f"layer {layer!r} of the dictionary has no entry {name!r}")
        return {layer: inner[name] for layer, inner in layers.items()}

    def _holds_layers(self, held: Mapping[Any, Any]) -> bool:
        """Whether a nested dictionary has directions by layer: the norms beside them have no width."""
        return any(layer_of(key) is not None and self._fits(inner) for key, inner in held.items())

    def _fits(self, held: Any) -> bool:
        return isinstance(held, Tensor | np.ndarray) and self.width in held.shape

    def _pick(self, names: list[str], fitting: list[str]) -> str:
        """The entry that was named, or the only one that can be directions of this model."""
        if self.how.key is not None:
            if self.how.key not in names:
                raise DirectionsError(f"Reading.key (--key) must be one of {', '.join(names)}, found {self.how.key!r}")
            return self.how.key
        if len(fitting) == 1 or len(names) == 1:
            return (fitting or names)[0]
        raise DirectionsError(
            f"the dictionary is nested and holds {', '.join(names)}; say which with Reading.key (--key)"
        )

    def _build(
        self,
        by_layer: Mapping[int | Site, Tensor] | Mapping[int, Tensor] | Mapping[Site, Tensor],
        kind: str,
        about: dict[str, Any],
        notes: tuple[str, ...],
        shifted: bool = False,
    ) -> Imported:
        shift = self.how.indexing == "hidden_states" and not shifted
        first = self._offset() if shift else 0
        vectors: dict[Site, Tensor] = {}
        for key, value in by_layer.items():
            site = key if isinstance(key, Site) else Site(key)
            if shift:
                if site.layer < first:
                    notes += ("left out: layer 0 (the embeddings), which is no output of a block",)
                    continue
                if site.layer == self.layers:
                    notes += (f"left out: layer {self.layers} (after the final norm), which is no output of a block",)
                    continue
                site = Site(site.layer - first, site.stream)
            if site.layer >= self.layers:
                raise DirectionsError(
                    f"layer {site.layer} is past the last block: the model has blocks 0 to {self.layers - 1}; if the "
                    f"file's "
                    f"numbers index hidden_states, set Reading.indexing='hidden_states' (--indexing hidden_states)"
                )
            vectors[site] = self._rows(value.to(torch.float32), site)
        if shift:
            notes += (_indexed("layer numbers index hidden_states, so number", first),)
        if not vectors:
            raise DirectionsError("no layer of the file is the output of a block of this model")
        how = {"format": kind, **self.how.given()}
        provenance = {**about, "imported": {**about.get("imported", {}), **how}}
        return Imported(Directions(vectors, provenance), kind, notes)

    def _rows(self, value: Tensor, site: Site) -> Tensor:
        """`[k, d]` from `[d]`, `[k, d]` or `[d, k]`, by the model's width."""
        d = self.width
        if value.dim() == 1 and value.shape[0] == d:
            return value.unsqueeze(0)
        if value.dim() != 2 or d not in value.shape:
            raise DirectionsError(
                f"directions at {site} must be [d], [k, d] or [d, k] with d = {d}, the model's width; found "
                f"{list(value.shape)}: they belong to another model"
            )
        orientation = self.how.orientation
        if value.shape[0] == value.shape[1] and orientation is None:
            raise DirectionsError(
                f"directions at {site} are a square matrix {list(value.shape)}, in which rows and columns cannot be "
                f"told apart; "
                f"say which with Reading.orientation='rows' or 'columns' (--orientation)"
            )
        rows = value.shape[1] == d if orientation is None else orientation == "rows"
        if value.shape[1 if rows else 0] != d:
            raise DirectionsError(
                f"directions at {site} have shape {list(value.shape)}, so their {orientation} are not of the model's "
                f"width {d}"
            )
        return value if rows else value.T


def _indexed(what: str, first: int) -> str:
    return f"{what} l is the output of block {'l - 1' if first == 1 else 'l' if first == 0 else f'l - {first}'}"


def layer_of(key: Any) -> int | Site | None:
    """Return the layer that a dictionary's key names: 12, '12', 'layer_12', 'resid_post.12', 'blocks.12.hook_resid_post'."""
    if isinstance(key, Site) or (isinstance(key, int) and not isinstance(key, bool) and key >= 0):
        return key
    text = str(key)
    if text.isascii() and text.isdigit():
        return int(text)
    stream, _, layer = text.rpartition(".")
    if stream in STREAMS and layer.isdigit():
        return Site.parse(text)
    if (site := site_of_hook(text)) is not None:
        return site
    match = re.fullmatch(r"(?:direction\.|layer[_\-. ]?|block[_\-. ]?|l)(\d+)", text, re.IGNORECASE)
    return int(match.group(1)) if match else None
