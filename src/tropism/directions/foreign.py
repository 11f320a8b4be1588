"""Directions that others made: which format a file is in, which layer and which side of a matrix means what.

| format | what it holds | layers |
|---|---|---|
| CAFT `.npy` | components `[k, d]` or `[d, k]` of one layer | named by the file, blocks from 0 |
| persona vectors `.pt` | `[L + 1, d]` | index into `hidden_states`: vector ℓ is `Site(ℓ − 1)` |
| backward CAFT `.pt` | `{layer: [d, k]}` | blocks from 0 |
| repeng `.gguf` | `direction.{layer}`, `[d]` each | blocks from 0 |
| a dictionary | `{layer: [d] | [k, d] | [d, k]}`, nested at most once | blocks from 0 |

Files are read as data: `.pt` with `weights_only=True`, `.npy` without pickles. Nothing in them is executed. Where a
matrix can be read in two ways, the reader asks instead of guessing.
"""

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tropism.directions.artifact import Directions
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
    nested dictionary.
    """

    layer: int | None = None
    orientation: Orientation | None = None
    indexing: Indexing | None = None
    key: str | None = None


@dataclass(frozen=True)
class Imported:
    """Directions, the format they were recognised as, and what a person should know of how they were read."""

    directions: Directions
    format: str
    notes: tuple[str, ...]


def import_directions(
    source: str | Path | Mapping[Any, Any], *, width: int, layers: int, reading: Reading | None = None
) -> Imported:
    """Read directions that another project made, for a model of `width` and `layers` blocks.

    Raises `DirectionsError` where the file is no known format, is not safe to read, does not fit the model, or can be
    read in two ways (the message names the `Reading` field, and the command's option, that decides).

    >>> found = import_directions({3: torch.ones(8)}, width=8, layers=4)
    >>> found.format, found.directions.sites
    ('a dictionary of layers', (Site(layer=3, stream='resid_post'),))
    """
    reader = _Reader(width, layers, Reading() if reading is None else reading)
    if isinstance(source, Mapping):
        return reader.dictionary(source, "a dictionary of layers", {})
    path = Path(source)
    if not path.is_file():
        raise DirectionsError(f"no directions file at {path}")
    about = {"imported": {"file": path.name}}
    match path.suffix.lower():
        case ".safetensors":
            return _safetensors(reader, path, about)
        case ".npy":
            return reader.array(_npy(path), path.name, "CAFT components (.npy)", about)
        case ".pt" | ".pth" | ".bin":
            value = _pt(path)
            if isinstance(value, Tensor):
                return reader.array(value, path.name, "a tensor (.pt)", about)
            return reader.dictionary(value, "a dictionary of layers (.pt), as backward CAFT writes it", about)
        case ".gguf":
            return reader.dictionary(_gguf(path), "a control vector (.gguf), as repeng and llama.cpp write it", about)
    raise DirectionsError(f"{path.name}: directions come as .safetensors, .npy, .pt or .gguf, found {path.suffix!r}")


@dataclass(frozen=True)
class _Reader:
    width: int
    layers: int
    how: Reading

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

    def _hidden_states(self, array: Tensor, about: dict[str, Any]) -> Imported:
        """`[L + 1, d]`, indexed as `hidden_states`: vector ℓ is read after block ℓ − 1."""
        notes = (
            "rows index hidden_states, so row l is the output of block l - 1",
            "left out: row 0 (the embeddings) and the last row (after the final norm), which are no output of a block",
        )
        rows = {index - 1: array[index] for index in range(1, self.layers)}
        return self._build(rows, "persona vectors, [L + 1, d] (.pt)", about, notes, shifted=True)

    def dictionary(self, value: Any, kind: str, about: dict[str, Any]) -> Imported:
        """`{layer: tensor}`, or one level of nesting around or inside it."""
        if not isinstance(value, Mapping) or not value:
            raise DirectionsError(
                f"expected a tensor or a dictionary of layers, found {type(value).__name__}"
                + (" with nothing in it" if isinstance(value, Mapping) else "")
            )
        notes: list[str] = []
        if any(isinstance(inner, Mapping) for inner in value.values()):
            value = self._unnest(value, notes)
        by_layer: dict[int | Site, Tensor] = {}
        ignored = []
        for key, inner in value.items():
            where = _layer_of(key)
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
        inside_layers = all(_layer_of(key) is not None for key in value)
        if not inside_layers:
            inner = {str(k): v for k, v in value.items() if isinstance(v, Mapping)}
            name = self._pick(list(inner))
            notes.append(f"from the entry {name!r}")
            return inner[name]
        names = sorted({str(name) for inner in value.values() if isinstance(inner, Mapping) for name in inner})
        name = self._pick(names)
        notes.append(f"each layer's entry {name!r}")
        flat = {}
        for layer, inner in value.items():
            if not isinstance(inner, Mapping) or name not in {str(k) for k in inner}:
                raise DirectionsError(f"layer {layer!r} of the dictionary has no entry {name!r}")
            flat[layer] = next(v for k, v in inner.items() if str(k) == name)
        return flat

    def _pick(self, names: list[str]) -> str:
        if self.how.key is not None:
            if self.how.key not in names:
                raise DirectionsError(f"Reading.key (--key) must be one of {', '.join(names)}, found {self.how.key!r}")
            return self.how.key
        if len(names) != 1:
            raise DirectionsError(
                f"the dictionary is nested and holds {', '.join(names)}; say which with Reading.key (--key)"
            )
        return names[0]

    def _build(
        self,
        by_layer: Mapping[int | Site, Tensor] | Mapping[int, Tensor],
        kind: str,
        about: dict[str, Any],
        notes: tuple[str, ...],
        shifted: bool = False,
    ) -> Imported:
        shift = self.how.indexing == "hidden_states" and not shifted
        vectors: dict[Site, Tensor] = {}
        for key, value in by_layer.items():
            site = key if isinstance(key, Site) else Site(key)
            if shift:
                if site.layer == 0:
                    notes += ("left out: layer 0 (the embeddings), which is no output of a block",)
                    continue
                if site.layer == self.layers:
                    notes += (f"left out: layer {self.layers} (after the final norm), which is no output of a block",)
                    continue
                site = Site(site.layer - 1, site.stream)
            if site.layer >= self.layers:
                raise DirectionsError(
                    f"layer {site.layer} is past the last block: the model has blocks 0 to {self.layers - 1}; if the "
                    f"file's "
                    f"numbers index hidden_states, set Reading.indexing='hidden_states' (--indexing hidden_states)"
                )
            vectors[site] = self._rows(value.to(torch.float32), site)
        if shift:
            notes += ("layer numbers index hidden_states, so number l is the output of block l - 1",)
        if not vectors:
            raise DirectionsError("no layer of the file is the output of a block of this model")
        how = {"format": kind, **{k: v for k, v in vars(self.how).items() if v is not None}}
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


def _layer_of(key: Any) -> int | Site | None:
    """The layer that a dictionary's key names: 12, '12', 'layer_12', 'resid_post.12', 'blocks.12.hook_resid_post'."""
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


def _safetensors(reader: _Reader, path: Path, about: dict[str, Any]) -> Imported:
    try:
        return Imported(Directions.load(path), "Tropism directions", ())
    except DirectionsError:
        # Not ours; a plain file of tensors named by layer is as good as a dictionary.
        try:
            tensors = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise DirectionsError(f"{path.name} is not a safetensors file: {error}") from None
        return reader.dictionary(tensors, "a dictionary of layers (.safetensors)", about)


def _npy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DirectionsError(
            f"{path.name} is not a plain array ({error}); a .npy that needs pickle can run code and is never read, so "
            f"save "
            f"the components as a plain array"
        ) from None
    return torch.from_numpy(np.ascontiguousarray(array))


def _pt(path: Path) -> Any:
    damaged = (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        struct.error,
    )
    try:
        with warnings.catch_warnings():
            # Of a newer pickle protocol; what cannot be read of it raises.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except damaged as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DirectionsError(
            f"{path.name} holds more than tensors, or is damaged, and was not read (a pickle can run code): "
            f"{first[:160]}; save "
            f"a plain dictionary of tensors with torch.save, or safetensors"
        ) from None


def _gguf(path: Path) -> dict[str, Tensor]:
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise DirectionsError(f"{path.name} is not a GGUF file: {error}") from None
    tensors = {
        tensor.name: torch.from_numpy(np.array(tensor.data, dtype=np.float32))
        for tensor in reader.tensors
        if tensor.name.startswith("direction.")
    }
    if not tensors:
        raise DirectionsError(f"{path.name} is GGUF, but holds no tensor direction.LAYER: it is no control vector")
    return tensors
