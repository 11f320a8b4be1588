"""Directions that others made: which format a file is in, which layer and which side of a matrix means what.

| format | what it holds | layers |
|---|---|---|
| CAFT `.npy` | components `[k, d]` or `[d, k]` of one layer | named by the file, blocks from 0 |
| persona vectors `.pt` | `[L + 1, d]` | index into `hidden_states`: vector ℓ is `Site(ℓ − 1)`, in Mamba's kind `Site(ℓ)` |
| CAFT `.pt` | `{layer: [k, d]}` as NumPy arrays | blocks from 0 |
| backward CAFT `.pt` | `{layer: [d, k]}`, `{"directions": {layer: [d]}, "norms": ..., "config": ...}` | blocks from 0 |
| `dictionary_learning` `ae.pt` | an SAE: the decoder rows of the latents that `components` names | one block, by `config.json` |
| repeng `.gguf` | `direction.{layer}`, `[d]` each | blocks from 0 |
| a dictionary | `{layer: [d] | [k, d] | [d, k]}`, nested at most once | blocks from 0 |

Files are read as data, and nothing in them is executed (`foreign_files`). Where a matrix can be read in two ways, the
reader asks instead of guessing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tropism.directions.artifact import Directions
from tropism.directions.components import choose_components
from tropism.directions.dictionary import is_dictionary
from tropism.directions.foreign_files import read_gguf, read_npy, read_pt
from tropism.directions.foreign_reader import ForeignReader, Imported
from tropism.directions.foreign_reader import Reading as Reading
from tropism.errors import DirectionsError
from tropism.site import Site


def import_directions(
    source: str | Path | Sequence[str | Path] | Mapping[Any, Any],
    *,
    width: int,
    layers: int,
    reading: Reading | None = None,
    config: Any = None,
) -> Imported:
    """Read directions that another project made, for a model of `width` and `layers` blocks.

    `config`, the model's transformers configuration, tells which entry of `hidden_states` is which block's output, where a
    file is indexed by those: in Mamba's kind entry ℓ is behind block ℓ. Without it, entry ℓ is taken to be behind block
    ℓ − 1, as in transformers' Llama and most others.

    Several files are read one by one and put together: CAFT writes a file for each layer.

    Raises `DirectionsError` where the file is no known format, is not safe to read, does not fit the model, or can be
    read in two ways (the message names the `Reading` field, and the command's option, that decides).

    >>> found = import_directions({3: torch.ones(8)}, width=8, layers=4)
    >>> found.format, found.directions.sites
    ('a dictionary of layers', (Site(layer=3, stream='resid_post'),))
    """
    reader = ForeignReader(width, layers, Reading() if reading is None else reading, config)
    if isinstance(source, Mapping):
        found = reader.dictionary(source, "a dictionary of layers", {})
    else:
        paths = [source] if isinstance(source, str | Path) else source
        found = _joined([_import_file(reader, Path(path)) for path in paths])
    if reader.how.components is None or "components" in found.directions.provenance:
        return found
    return replace(found, directions=choose_components(found.directions, reader.how.components))


def _import_file(reader: ForeignReader, path: Path) -> Imported:
    if not path.is_file():
        raise DirectionsError(f"no directions file at {path}")
    about = {"imported": {"file": path.name}}
    match path.suffix.lower():
        case ".safetensors":
            return _safetensors(reader, path, about)
        case ".npy":
            return reader.array(read_npy(path), path.name, "CAFT components (.npy)", about)
        case ".pt" | ".pth" | ".bin":
            value = read_pt(path)
            if isinstance(value, Tensor | np.ndarray):
                return reader.array(torch.as_tensor(value), path.name, "a tensor (.pt)", about)
            if is_dictionary(value):
                return reader.latents(value, path, about)
            return reader.dictionary(value, "a dictionary of layers (.pt), as CAFT and backward CAFT write it", about)
        case ".gguf":
            return reader.dictionary(
                read_gguf(path), "a control vector (.gguf), as repeng and llama.cpp write it", about
            )
    raise DirectionsError(f"{path.name}: directions come as .safetensors, .npy, .pt or .gguf, found {path.suffix!r}")


def _joined(parts: Sequence[Imported]) -> Imported:
    """Directions of several files at different sites, as one."""
    if not parts:
        raise DirectionsError("import_directions needs at least one file, found an empty list")
    if len(parts) == 1:
        return parts[0]
    vectors: dict[Site, Tensor] = {}
    for part in parts:
        for site, rows in part.directions.vectors.items():
            if site in vectors:
                raise DirectionsError(f"two files hold directions at {site}; name one of them")
            vectors[site] = rows
    first = parts[0].directions.provenance.get("imported", {})
    names = [part.directions.provenance.get("imported", {}).get("file") for part in parts]
    provenance = {**parts[0].directions.provenance, "imported": {**first, "file": names}}
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return Imported(Directions(vectors, provenance), parts[0].format, notes)


def _safetensors(reader: ForeignReader, path: Path, about: dict[str, Any]) -> Imported:
    try:
        return Imported(Directions.load(path), "Tropism directions", ())
    except DirectionsError:
        # Not ours; a plain file of tensors named by layer is as good as a dictionary.
        try:
            tensors = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise DirectionsError(f"{path.name} is not a safetensors file: {error}") from None
        return reader.dictionary(tensors, "a dictionary of layers (.safetensors)", about)
