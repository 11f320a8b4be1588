"""Places in a model where activations are read or edited, for any Hugging Face causal LM, wrapped by PEFT or not.

`Site(12)` is the residual stream after block 12; blocks count from 0. `hidden_states[L + 1]` of a forward pass is
`Site(L)`, except for the last, which transformers takes after the final norm and which is no site.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from tropism.errors import ModelError, SiteError

Stream = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
STREAMS: tuple[str, ...] = get_args(Stream)


@dataclass(frozen=True, order=True)
class Site:
    """A place in the model: `Site(layer, stream)`; `str(site)` is `"resid_post.12"`.

    Streams, in the order in which a block computes them: `resid_pre` (the block's input), `attn_out`, `mlp_out` (what
    attention and MLP add to the stream), `resid_post` (the block's output). Each is `[B, T, d_model]`.

    >>> str(Site(12)), Site.parse("12") == Site.parse("resid_post.12") == Site(12)
    ('resid_post.12', True)
    """

    layer: int
    stream: Stream = "resid_post"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise SiteError(f"Site.layer must be an int of at least 0 (blocks count from 0), found {self.layer!r}")
        if self.stream not in STREAMS:
            raise SiteError(f"Site.stream must be one of {', '.join(STREAMS)}, found {self.stream!r}")

    def __str__(self) -> str:
        return f"{self.stream}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """A site from its text, `"resid_post.12"` or `"12"`; raises `SiteError`."""
        stream, _, layer = str(text).strip().rpartition(".")
        if not layer.isascii() or not layer.isdigit() or (stream and stream not in STREAMS):
            raise SiteError(f"a site is 'STREAM.LAYER' or 'LAYER' (streams: {', '.join(STREAMS)}), found {text!r}")
        return cls(int(layer), stream or "resid_post")  # type: ignore[arg-type]


def base_model(model: nn.Module) -> Any:
    """The transformers model inside DDP, `torch.compile` and PEFT wrappers."""
    inner: Any = model  # transformers' and PEFT's objects, whose attributes torch's types know nothing of
    while True:
        if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        elif uncompiled(inner) is not inner:
            inner = uncompiled(inner)
        elif hasattr(inner, "get_base_model"):  # a PeftModel: their object, not ours
            inner = inner.get_base_model()
        else:
            return inner


def uncompiled(model: nn.Module) -> Any:
    """The module that `torch.compile` wrapped, which runs with its own hooks, or the model itself."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


_REGISTERED: dict[type[nn.Module], str] = {}


def register_blocks(model_class: type[nn.Module], path: str) -> None:
    """Say where the decoder blocks of a model class are, for everything that looks for them.

    `path` is the dotted name of a `ModuleList` inside the unwrapped model. It holds for subclasses too, and replaces
    what was registered before. Raises `ModelError` for a class that is no module's, or an empty path.

    >>> register_blocks(MyModelForCausalLM, "transformer.h")  # doctest: +SKIP
    """
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise ModelError(f"register_blocks: model_class must be a class of models, found {model_class!r}")
    if not path.strip("."):
        raise ModelError(f"register_blocks: path must name a ModuleList, as in 'model.layers', found {path!r}")
    _REGISTERED[model_class] = path


def decoder_layers(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """Return the `ModuleList` of decoder blocks of any Hugging Face causal LM, PEFT-wrapped or not.

    It is the one `ModuleList` of `num_hidden_layers` blocks inside the decoder (`get_decoder()`, which for a multimodal
    model is its language model). `path`, a dotted name inside the unwrapped model, overrides the search, and so does
    `register_blocks`. Raises `ModelError` with the candidates where there is none or more than one.
    """
    return _blocks(model, path)[1]


def _blocks(model: nn.Module, path: str | None = None) -> tuple[str, nn.ModuleList]:
    """The block list with its dotted name inside the unwrapped model."""
    inner = base_model(model)
    registered = next((_REGISTERED[kind] for kind in type(inner).__mro__ if kind in _REGISTERED), None)
    if path is not None or registered is not None:
        return _at_path(inner, path or str(registered))
    config = getattr(inner, "config", None)
    kind = type(inner).__name__
    if config is None:
        raise ModelError(
            f"decoder_layers: {kind} has no config, so it is no Hugging Face causal LM; name its list of blocks with "
            f"tropism.register_blocks({kind}, 'path.to.blocks')"
        )
    text = config.get_text_config(decoder=True)
    if (why := _NO_BLOCKS.get(getattr(text, "model_type", ""))) is not None:
        raise ModelError(
            f"decoder_layers: {kind} {why}, so it has no blocks that guards, probes or directions could use"
        )
    count = text.num_hidden_layers
    lists = _module_lists(inner, language_model(inner))
    # Outermost only: experts inside a block can be as many as there are blocks.
    candidates = {
        name: module
        for name, module in lists.items()
        if len(module) == count and not any(name.startswith(outer + ".") for outer in lists) and not TOWER.search(name)
    }
    if len(candidates) == 1:
        return next(iter(candidates.items()))
    listed = ", ".join(f"{name} ({len(module)})" for name, module in (candidates or lists).items()) or "none at all"
    raise ModelError(
        f"decoder_layers: expected exactly one ModuleList of {count} blocks in {kind}, found {len(candidates)} "
        f"(candidates: {listed}); name the right one with tropism.register_blocks({kind}, 'path.to.blocks'), or in an "
        "experiment with blocks: path.to.blocks"
    )


TOWER = re.compile(r"image|vision|visual|audio|speech")
"""Towers of other modalities inside a decoder (GIT, Phi-4 multimodal) can have as many blocks as it has."""

_APART = "keeps the attentions and the MLPs of its layers in separate lists"
_NO_BLOCKS = {
    "xlm": _APART,
    "flaubert": _APART,
    "reformer": "runs reversible layers with a backward pass of their own",
    "hrm_text": "runs two stacks of blocks several times in every pass",
}
"""Models that are no list of blocks, each run once; a path can be registered nevertheless."""


def _module_lists(inner: nn.Module, within: nn.Module) -> dict[str, nn.ModuleList]:
    """Every `ModuleList` inside a part of the model, by its name in the whole."""
    prefix = next((name for name, module in inner.named_modules() if module is within), "")
    return {
        f"{prefix}.{name}".strip("."): module
        for name, module in within.named_modules()
        if isinstance(module, nn.ModuleList)
    }


def language_model(model: nn.Module) -> Any:
    """The part of a model that its text passes through: `get_decoder()`, or the whole where that holds no blocks."""
    inner = base_model(model)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
    # ModernBERT's `decoder` is its output embedding.
    return decoder if any(isinstance(module, nn.ModuleList) for module in decoder.modules()) else inner


def time_first(model: nn.Module) -> bool:
    """Whether blocks pass on `[T, B, d]`, as XLNet's do."""
    config = getattr(base_model(model), "config", None)  # theirs: a registered model may have none
    return getattr(config, "model_type", "") == "xlnet"


def _at_path(inner: nn.Module, path: str) -> tuple[str, nn.ModuleList]:
    try:
        found = inner.get_submodule(path)
    except AttributeError:
        raise ModelError(f"decoder_layers: {type(inner).__name__} has no submodule {path!r}") from None
    if not isinstance(found, nn.ModuleList):
        raise ModelError(f"decoder_layers: {path!r} must be a ModuleList, found {type(found).__name__}")
    return path, found


def block_runner(model: nn.Module) -> nn.Module:
    """Return the module whose forward pass runs the blocks, as `LlamaModel` does: every pass goes through it."""
    inner = base_model(model)
    path = _blocks(model)[0]
    while path:
        path = path.rpartition(".")[0]
        holder: nn.Module = inner.get_submodule(path)
        if not isinstance(holder, nn.ModuleList | nn.ModuleDict):  # containers are never called
            return holder
    return inner  # type: ignore[no-any-return]


_STREAM_COUNTS = {"hc_mult": "[B, T, {n}, d]", "hc_count": "[B, T, {n}·d]", "altup_num_inputs": "[{n}, B, T, d]"}
"""Hyper-connections and AltUp: the option of the config that counts the streams, and the shape that blocks pass on."""


def parallel_streams(model: nn.Module) -> str | None:
    """Return the shape in which blocks pass on several residual streams; None where there is one, `[B, T, d_model]`."""
    config = getattr(base_model(model), "config", None)  # theirs: a registered model may have none
    text = None if config is None else config.get_text_config(decoder=True)
    for option, shape in _STREAM_COUNTS.items():
        count = getattr(text, option, None)
        if isinstance(count, int) and count > 1:
            return shape.format(n=count)
    return None


def width(model: nn.Module) -> int:
    """`d_model`, the width of the residual stream."""
    return int(base_model(model).config.get_text_config(decoder=True).hidden_size)


def input_device(model: nn.Module) -> torch.device:
    """Return the device that the model's token ids must be on."""
    device: torch.device = base_model(model).get_input_embeddings().weight.device
    return device


def context_length(model: nn.Module) -> int | None:
    """Return how many tokens the model takes; None where its positions are unbounded."""
    config = base_model(model).config.get_text_config(decoder=True)
    length: int | None = getattr(config, "max_position_embeddings", None)  # their config, which may lack it
    return length


def select_layers(selector: str, count: int) -> list[int]:
    """The layers that a selector names in a model of `count` blocks: `all`, `8,12,16`, `25%..75%`, `3 spread`.

    >>> select_layers("25%..75%", 8), select_layers("3 spread", 9), select_layers("8,12", 30)
    ([2, 3, 4, 5], [2, 4, 7], [8, 12])
    """
    text = selector.strip()
    if text == "all":
        return list(range(count))
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%\s*\.\.\s*(\d+(?:\.\d+)?)\s*%", text):
        low, high = (float(part) / 100 for part in match.groups())
        if low < high <= 1:
            layers = [layer for layer in range(count) if low <= layer / count < high]
            if layers:
                return layers
        raise SiteError(f"layer selector {selector!r}: a range is LOW%..HIGH% with LOW < HIGH <= 100 and holds a layer")
    if match := re.fullmatch(r"(\d+)\s+spread", text):
        n = int(match.group(1))
        if 1 <= n <= count:
            # n layers cut the stack into n + 1 equal parts: neither end, where features are lexical or already output
            return list(range(count)) if n == count else [round((i + 1) * count / (n + 1)) for i in range(n)]
        raise SiteError(f"layer selector {selector!r}: the model has {count} blocks, so N spread takes 1 to {count}")
    if re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        layers = [int(part) for part in text.split(",")]
        beyond = [layer for layer in layers if layer >= count]
        if beyond:
            raise SiteError(f"layer selector {selector!r}: the model has blocks 0 to {count - 1}, found {beyond[0]}")
        if len(set(layers)) < len(layers):
            raise SiteError(f"layer selector {selector!r} names a layer twice")
        return sorted(layers)
    raise SiteError(f"a layer selector is 'all', '8,12,16', '25%..75%' or '3 spread', found {selector!r}")


def sites(model: nn.Module, selector: str | Sequence[int], stream: Stream = "resid_post") -> list[Site]:
    """The sites that a selector names in this model: `all`, `8,12,16`, `25%..75%`, `3 spread`; raises `SiteError`."""
    text = selector if isinstance(selector, str) else ",".join(str(layer) for layer in selector)
    return [Site(layer, stream) for layer in select_layers(text, len(decoder_layers(model)))]
