"""What a trait looks like on a model: its mean difference, its held-out AUC, its gradient; kept on disk once found.

A trait's *difference* at a site is `D = mean(h_with − h_without)`, `[d]`, over its pairs, with `h` the mean over response tokens.
A direction found on five eighths of the pairs must tell the other three eighths apart with an AUC of at least 0.8, or the site
is left out; where no site is left, the trait cannot be forecast on this model. Its *gradient* is the mean over pairs of
`u(with) − u(without)`, with `u` the sketched `lora_B` gradient (`gradient`) at length 1.

None of this depends on the data, so it lies in the cache folder, one file a trait and model: named by a hash of the model's
weights and template, the trait's pairs and how they are read, and read back only where its own checksum holds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from torch import nn

from tropism.atomic import replacing
from tropism.data.chats import Chat
from tropism.data.generation import GenerateOptions, generate
from tropism.directions import evidence
from tropism.forecasting import gradient
from tropism.forecasting.reading import read
from tropism.forecasting.trait import Trait
from tropism.models import cache_folder
from tropism.names import VERSION
from tropism.site import Site

LEAST_AUC = 0.8
"""A direction that tells held-out pairs apart less well than this forecasts nothing."""
HELD_OUT = 0.375
"""The share of a trait's pairs that its direction is validated on."""
FORMAT = "tropism.forecasting.side/1"
SAMPLED = 64
"""How many values of each parameter stand for it in the model's fingerprint."""


@dataclass(frozen=True, eq=False)
class Side:
    """A trait on a model."""

    name: str
    difference: Mapping[Site, np.ndarray]
    """`[d]`, with less without, at the sites where the trait holds up."""
    auc: float
    """Of held-out pairs, at the best site."""
    auc_low: float
    pairs: int
    pulls: np.ndarray | None = field(default=None, repr=False)
    """`[p, 4096]`: each pair's `u(with) − u(without)`; None where gradients were not asked for."""

    @property
    def valid(self) -> bool:
        """Whether the direction tells held-out pairs apart at any site."""
        return bool(self.difference)


@dataclass(frozen=True)
class Reader:
    """How texts are read: what every trait of one forecast shares."""

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    sites: tuple[Site, ...]
    batch_size: int = 16
    max_new_tokens: int = 48
    seed: int = 0
    template_kwargs: Mapping[str, Any] | None = None
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)
    folder: Path | None = None
    """Where sides are kept: by default `forecasting` in the cache folder."""
    remembered: dict[tuple[str, str], np.ndarray] = field(default_factory=dict, repr=False)
    """What was read of a trait's side: the built-in traits share their plain answers."""

    def of_side(self, what: Literal["activations", "gradients"], chats: Sequence[Chat], where: str) -> np.ndarray:
        """`read` or `sketch` of one side of a trait, once for the same texts."""
        key = (what, hashlib.sha256(json.dumps(chats, ensure_ascii=False).encode()).hexdigest())
        if key not in self.remembered:
            self.remembered[key] = (self.read if what == "activations" else self.sketch)(chats, where)
        return self.remembered[key]

    def read(self, chats: Sequence[Chat], where: str) -> np.ndarray:
        """Mean response activations `[n, sites, d]`, float64."""
        found = read(
            self.model,
            self.tokenizer,
            chats,
            self.sites,
            batch_size=self.batch_size,
            template_kwargs=self.template_kwargs,
            where=where,
        )
        return np.stack([found[site].double().numpy() for site in self.sites], axis=1)

    def sketch(self, chats: Sequence[Chat], where: str) -> np.ndarray:
        """Gradient sketches `[n, 4096]` of length 1."""
        return gradient.units(
            gradient.sketches(
                self.model,
                self.tokenizer,
                chats,
                batch_size=max(1, self.batch_size // 2),
                seed=self.seed,
                template_kwargs=self.template_kwargs,
                where=where,
            )
        )


def find(reader: Reader, trait: Trait, *, pairs: int | None = None, gradient_pairs: int = 0) -> Side:
    """The trait on the reader's model, from the cache or found anew.

    Args:
        pairs: the most pairs that activations are read of; by default all.
        gradient_pairs: the most pairs that gradients are read of.
    """
    key = _key(reader, trait, pairs, gradient_pairs)
    file = (reader.folder or cache_folder() / "forecasting") / f"{trait.name}-{key}.npz"
    held = _load(file, key, trait.name)
    if held is not None:
        return held
    reader.say(f"reading the trait {trait.name} (once per model)")
    with_, without = contrast_chats(reader, trait)
    side = _find(reader, trait.name, with_[:pairs], without[:pairs])
    if gradient_pairs and side.valid:
        where = f"trait {trait.name}, pair"
        ones = [reader.of_side("gradients", chats[:gradient_pairs], where) for chats in (with_, without)]
        side = Side(side.name, side.difference, side.auc, side.auc_low, side.pairs, ones[0] - ones[1])
    _save(side, file, key)
    return side


def contrast_chats(reader: Reader, trait: Trait) -> tuple[list[Chat], list[Chat]]:
    """Chats with the trait and without; for two system prompts the model's own answers, read without the prompt.

    A system prompt separates its own two wordings perfectly. What is asked is whether the *answers* differ, so the
    prompt is taken out before they are read.
    """
    contrast = trait.contrast()
    if contrast.has_responses:
        return list(contrast.positive), list(contrast.negative)
    options = GenerateOptions(max_new_tokens=reader.max_new_tokens, batch_size=reader.batch_size)
    sides = []
    for prompts in (contrast.positive, contrast.negative):
        answers = generate(
            reader.model, reader.tokenizer, list(prompts), options, template_kwargs=reader.template_kwargs
        )
        chats: list[Chat] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            asked = [message for message in prompt if message["role"] != "system"]
            chats.append((*asked, {"role": "assistant", "content": answer or "…"}))
        sides.append(chats)
    return sides[0], sides[1]


def _find(reader: Reader, name: str, with_: Sequence[Chat], without: Sequence[Chat]) -> Side:
    one, two = (reader.of_side("activations", chats, f"trait {name}, pair") for chats in (with_, without))
    n = len(one)
    order = np.random.default_rng(reader.seed).permutation(n)
    held = max(4, round(HELD_OUT * n))
    test, fit = order[:held], order[held:]
    difference: dict[Site, np.ndarray] = {}
    best: evidence.Interval | None = None
    for index, site in enumerate(reader.sites):
        v = one[fit, index].mean(axis=0) - two[fit, index].mean(axis=0)
        positive, negative = one[test, index] @ v, two[test, index] @ v
        found = evidence.auc(positive, negative)
        if best is None or found.low > best.low:
            best = found
        if found.value >= LEAST_AUC and positive.mean() > negative.mean():
            difference[site] = one[:, index].mean(axis=0) - two[:, index].mean(axis=0)
    assert best is not None  # there is a site
    return Side(name, difference, best.value, best.low, n)


def _key(reader: Reader, trait: Trait, pairs: int | None, gradient_pairs: int) -> str:
    contrast = trait.contrast()
    said = [
        FORMAT,
        VERSION,
        fingerprint(reader.model),
        str(reader.tokenizer.chat_template),
        len(reader.tokenizer),
        reader.template_kwargs,
        contrast.positive,
        contrast.negative,
        [str(site) for site in reader.sites],
        reader.seed,
        reader.max_new_tokens,
        pairs,
        gradient_pairs,
    ]
    text = json.dumps(said, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def fingerprint(model: nn.Module) -> str:
    """A hash of the model's weights: of each parameter its name, shape and evenly spaced values.

    All values of a large model would take longer to hash than the trait to read; a fine-tune changes nearly all of them.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        step = max(1, len(flat) // SAMPLED)
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(flat[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _save(side: Side, file: Path, key: str) -> None:
    arrays = {f"difference/{site}": one for site, one in side.difference.items()}
    if side.pulls is not None:
        arrays["pulls"] = side.pulls.astype(np.float32)
    said = {"key": key, "auc": side.auc, "auc_low": side.auc_low, "pairs": side.pairs, "sum": _checksum(arrays)}
    with replacing(file) as path, path.open("wb") as target:
        np.savez(target, said=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]


def _load(file: Path, key: str, name: str) -> Side | None:
    """The side that a file holds; None where there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            said = json.loads(str(held["said"]))
            arrays = {one: held[one] for one in held.files if one != "said"}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    if said.get("key") != key or said.get("sum") != _checksum(arrays):
        return None
    prefix = "difference/"
    difference = {Site.parse(one.removeprefix(prefix)): arrays[one] for one in arrays if one.startswith(prefix)}
    return Side(name, difference, said["auc"], said["auc_low"], said["pairs"], arrays.get("pulls"))


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
