"""`GradientCache`: activation gradients of many chats, in memory or memory-mapped from a folder that can be resumed.

```text
FOLDER/
  manifest.json                what determines the numbers: model, data, positions, sites; written first
  resid_post.12.safetensors    one shard a site: float32 [N, d_model], written in place as batches finish
  chats.csv                    one line per finished chat: its number, loss, token counts, and the hash of its rows
```
"""

import csv
import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tropism.errors import RunFolderError
from tropism.site import Site

log = logging.getLogger(__name__)

FORMAT = "tropism.gradients/1"
_COLUMNS = ("index", "loss", "tokens", "response_tokens", "sha256")


@dataclass(frozen=True, eq=False)
class GradientCache:
    """Every chat's own `∂(mean response loss)/∂h` at every site, pooled over named positions.

    With one row a chat, row `i` of each matrix belongs to `chats[i]`; with one row a token, to `chats[row_chat[i]]` and
    to the token `row_token[i]` of its rendered ids (-1 for a pooled row).
    """

    gradients: Mapping[Site, Float[Tensor, "rows d"]]
    """float32 `[N, d_model]` per site; memory-mapped where the cache lies in a folder."""
    losses: Float[Tensor, "chats"]
    """float32 `[N]`: each chat's mean loss over its response tokens, in nats."""
    chats: tuple[str | int, ...]
    """The ids: an `Example`'s id, or the number of a plain chat."""
    tokens: Int[Tensor, "chats"]
    response_tokens: Int[Tensor, "chats"]
    row_chat: Int[Tensor, "rows"]
    row_token: Int[Tensor, "rows"]
    manifest: Mapping[str, Any]
    """What determines the numbers: `model`, `data`, `positions`, `per_token`, `sites`."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in order of layer."""
        return tuple(self.gradients)

    @property
    def per_token(self) -> bool:
        """Whether a row is a token and not a chat."""
        return bool(self.manifest["per_token"])

    @property
    def table(self) -> pd.DataFrame:
        """One row a chat: `chat, loss, tokens, response_tokens`."""
        return pd.DataFrame(
            {
                "chat": list(self.chats),
                "loss": self.losses.numpy(),
                "tokens": self.tokens.numpy(),
                "response_tokens": self.response_tokens.numpy(),
            }
        )

    @classmethod
    def load(cls, folder: str | Path) -> "GradientCache":
        """Read a finished cache; raises `RunFolderError` where there is none or where chats are missing from it."""
        store = Store.open(Path(folder))
        missing = len(store.manifest["chats"]) - len(store.finished())
        if missing:
            raise RunFolderError(
                f"the gradient cache in {folder} lacks {missing} of {len(store.manifest['chats'])} chats; run "
                "collect_gradients(..., folder=...) again to finish it"
            )
        return store.cache()


def in_memory(
    manifest: Mapping[str, Any],
    gradients: Mapping[Site, Tensor],
    rows: Mapping[int, tuple[float, int, int]],
    row_chat: Tensor,
    row_token: Tensor,
) -> GradientCache:
    """A cache from its parts; `rows` maps a chat's number to its loss, tokens and response tokens."""
    ordered = [rows[index] for index in range(len(rows))]
    return GradientCache(
        MappingProxyType(dict(sorted(gradients.items()))),
        torch.tensor([row[0] for row in ordered], dtype=torch.float32),
        tuple(manifest["chats"]),
        torch.tensor([int(row[1]) for row in ordered], dtype=torch.int64),
        torch.tensor([int(row[2]) for row in ordered], dtype=torch.int64),
        row_chat,
        row_token,
        MappingProxyType(dict(manifest)),
    )


@dataclass(frozen=True)
class Store:
    """A cache's folder while it is filled and read."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """The store in `folder`; raises `RunFolderError` where there is none."""
        path = folder / "manifest.json"
        if not path.is_file():
            raise RunFolderError(f"no gradient cache in {folder}: there is no manifest.json")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise RunFolderError(
                f"the gradient cache in {folder} is damaged: manifest.json is not JSON ({error})"
            ) from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise RunFolderError(f"{path} is not the manifest of a gradient cache ({FORMAT}); choose another folder")
        return cls(folder, manifest)

    @classmethod
    def create_or_resume(cls, folder: Path, manifest: Mapping[str, Any], row_token: Sequence[int]) -> "Store":
        """A new store, or the one that is there if it is of the same model, data and options; else `RunFolderError`."""
        if (folder / "manifest.json").is_file():
            store = cls.open(folder)
            for key, wanted in manifest.items():
                if store.manifest.get(key) != wanted:
                    raise RunFolderError(
                        f"the gradient cache in {folder} was made with {_named(key)}: its {key} is "
                        f"{_short(store.manifest.get(key))}, this call's is {_short(wanted)}; choose another folder "
                        "or delete it"
                    )
            return store
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, manifest)
        for site in store.sites:
            _allocate(store.shard(site), "gradients", "F32", (len(row_token), manifest["width"]), 4)
        (folder / "tokens.npy").unlink(missing_ok=True)
        np.save(folder / "tokens.npy", np.asarray(row_token, dtype=np.int64), allow_pickle=False)
        with (folder / "chats.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow(_COLUMNS)
        partial = folder / "manifest.json.partial"
        partial.write_text(json.dumps(dict(manifest), indent=1), encoding="utf-8")
        partial.replace(folder / "manifest.json")
        return store

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(sorted(Site.parse(text) for text in self.manifest["sites"]))

    def shard(self, site: Site) -> Path:
        return self.folder / f"{site}.safetensors"

    def finished(self) -> dict[int, tuple[float, int, int]]:
        """Return the chats whose rows are on disk as they were written: number → loss, tokens, response tokens.

        Every row is read and hashed. A chat of which a bit has changed, or that an older version wrote without a hash, is
        not finished, and is collected again.
        """
        listed = self._listed()
        starts = [0, *np.cumsum(self.manifest["rows"]).tolist()]
        row_bytes = 4 * int(self.manifest["width"])
        hashes = {index: hashlib.sha256(_facts(facts).encode()) for index, (facts, _) in listed.items()}
        for site in self.sites:
            with self.shard(site).open("rb") as file:
                offset = _data_offset(file)
                for index, found in hashes.items():
                    file.seek(offset + starts[index] * row_bytes)
                    found.update(file.read((starts[index + 1] - starts[index]) * row_bytes))
        whole = {index: facts for index, (facts, digest) in listed.items() if hashes[index].hexdigest() == digest}
        if len(whole) < len(listed):
            log.warning(
                "the gradient cache in %s: %d of %d chats were changed after they were written, and are collected again",
                self.folder, len(listed) - len(whole), len(listed),
            )  # fmt: skip
        return whole

    def _listed(self) -> dict[int, tuple[tuple[float, int, int], str]]:
        """Return what `chats.csv` lists: number → facts and hash; the last line of a chat counts, a line cut short not."""
        found: dict[int, tuple[tuple[float, int, int], str]] = {}
        for line in (self.folder / "chats.csv").read_text(encoding="utf-8").splitlines(keepends=True)[1:]:
            cells = line.strip().split(",")
            if line.endswith("\n") and len(cells) == len(_COLUMNS):
                found[int(cells[0])] = ((float(cells[1]), int(cells[2]), int(cells[3])), cells[4])
        return found

    def write(
        self,
        starts: Sequence[int],
        gradients: Mapping[Site, Sequence[Tensor]],
        rows: Mapping[int, tuple[float, int, int]],
    ) -> None:
        """Put finished chats' rows in their places, then list the chats: an interruption never lists one too many."""
        row_bytes = 4 * int(self.manifest["width"])
        for site, blocks in gradients.items():
            with self.shard(site).open("r+b") as file:
                offset = _data_offset(file)
                for start, block in zip(starts, blocks, strict=True):
                    file.seek(offset + start * row_bytes)
                    file.write(block.contiguous().numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
        path = self.folder / "chats.csv"
        cut_short = not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8", newline="") as file:
            if cut_short:
                file.write("\n")
            for place, (index, facts) in enumerate(rows.items()):
                digest = hashlib.sha256(_facts(facts).encode())
                for site in self.sites:
                    digest.update(gradients[site][place].contiguous().numpy().tobytes())
                file.write(f"{index},{_facts(facts)},{digest.hexdigest()}\n")
            file.flush()
            os.fsync(file.fileno())

    def cache(self) -> GradientCache:
        """The finished cache; its gradients are mapped from the shards, not read."""
        row_token = torch.from_numpy(np.load(self.folder / "tokens.npy", allow_pickle=False))
        counts = torch.tensor(self.manifest["rows"])
        row_chat = torch.repeat_interleave(torch.arange(len(counts)), counts)
        shape = (len(row_token), int(self.manifest["width"]))
        gradients = {site: _mapped(self.shard(site), shape) for site in self.sites}
        facts = {index: facts for index, (facts, _) in self._listed().items()}
        return in_memory(self.manifest, gradients, facts, row_chat, row_token)


def _allocate(path: Path, name: str, dtype: str, shape: tuple[int, int], size: int) -> None:
    """An empty safetensors file of one tensor, to be filled in place: header length, JSON header, then the bytes."""
    total = shape[0] * shape[1] * size
    header = json.dumps({name: {"dtype": dtype, "shape": list(shape), "data_offsets": [0, total]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + total)


def _data_offset(file: IO[bytes]) -> int:
    file.seek(0)
    return 8 + int(struct.unpack("<Q", file.read(8))[0])


def _mapped(path: Path, shape: tuple[int, int]) -> Tensor:
    """The shard's tensor, mapped privately: pages are read when used, and writing to them changes no file."""
    with path.open("rb") as file:
        offset = _data_offset(file)
    size = path.stat().st_size
    if size != offset + 4 * shape[0] * shape[1]:
        raise RunFolderError(
            f"the gradient cache is damaged: {path} has {size} bytes, not those of {list(shape)} float32"
        )
    whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return whole[offset:].view(torch.float32).view(shape)


def _facts(facts: tuple[float, int, int]) -> str:
    """A chat's loss, tokens and response tokens, as `chats.csv` has them."""
    loss, tokens, response_tokens = facts
    return f"{loss!r},{tokens},{response_tokens}"


def _named(key: str) -> str:
    names = {"model": "another model", "data": "other data", "chats": "other data"}
    return names.get(key, f"another value of {key}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
