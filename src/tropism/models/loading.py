"""Models brought into memory: whole, in few bits, without their weights; with an adapter on them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tropism.errors import ModelError
from tropism.models.devices import pick_device, pick_dtype
from tropism.models.places import hub_token
from tropism.models.sources import Source, resolve, resolve_adapter

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("tropism")


@dataclass(frozen=True)
class Loading:
    """How the weights are brought into memory; by default whole, on one device.

    `quantization`: `nf4` and `int8` hold the linear layers in 4 and 8 bits (bitsandbytes), of which adapters are trained in
    full precision (QLoRA). `attn_implementation`, `device_map` and `max_memory` are transformers' own.
    """

    quantization: Literal["none", "nf4", "int8"] = "none"
    attn_implementation: str | None = None
    device_map: str | dict[str, Any] | None = None
    max_memory: dict[str, str] | None = None

    def arguments(self, dtype: "torch.dtype", where: str) -> dict[str, Any]:
        """What `from_pretrained` is asked with."""
        given: dict[str, Any] = {"dtype": dtype}
        if self.attn_implementation is not None:
            given["attn_implementation"] = self.attn_implementation
        if self.max_memory is not None:
            # A GPU is a number, and the keys of a file are text.
            given["max_memory"] = {int(k) if k.isdigit() else k: room for k, room in self.max_memory.items()}
        if self.device_map is not None:
            given["device_map"] = self.device_map
        if self.quantization != "none":
            given |= {"device_map": {"": where}, **given, "quantization_config": _bits(self.quantization, dtype)}
        return given

    def check_devices(self) -> None:
        """Raise `ModelError` for a device of `device_map` or `max_memory` that this machine does not have."""
        import torch

        spread = isinstance(self.device_map, str) and self.device_map in SPREADS
        placed = self.device_map.values() if isinstance(self.device_map, dict) else [self.device_map]
        named = [("device_map", device) for device in placed if device is not None and not spread]
        named += [("max_memory", device) for device in self.max_memory or {}]
        there = ["cpu", "disk", *(str(number) for number in range(torch.accelerator.device_count()))]
        for option, device in named:
            if _number(str(device)) not in there:
                raise ModelError(
                    f"load.{option} must name devices of this machine ({', '.join(there)})"
                    f"{' or ' + ', '.join(SPREADS) if option == 'device_map' else ''}, found {str(device)!r}"
                )

    @property
    def places(self) -> bool:
        """Whether the weights are where they belong once they are loaded."""
        return self.device_map is not None or self.quantization != "none"


SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Where modules go by accelerate's own choice."""


def _number(device: str) -> str:
    """A device as `max_memory` names it: `cuda:1` is 1, `cuda` is 0, and `cpu` is itself."""
    import torch

    try:
        found = torch.device(int(device) if device.isdigit() else device)
    except (RuntimeError, AssertionError):
        return device
    return found.type if found.type == "cpu" else str(found.index or 0)


def _bits(quantization: str, dtype: "torch.dtype") -> Any:
    import transformers

    from tropism.optional import require

    require("bitsandbytes", extra="quantization", purpose=f"load: {{quantization: {quantization}}}")
    config: Any = transformers.BitsAndBytesConfig
    if quantization == "int8":
        return config(load_in_8bit=True)
    return config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are held in few bits, so that nothing can be added to them exactly."""
    from tropism.site import base_model

    return getattr(base_model(model), "hf_quantizer", None) is not None


def load(
    name: str,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    blocks: str | None = None,
    loading: Loading | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model, in evaluation mode, and its tokenizer, by hub name, local folder, or the embedded SmolLM2.

    Args:
        name: a hub name (`HuggingFaceTB/SmolLM2-135M-Instruct`) or a local folder.
        adapter: a PEFT adapter to put on it, a folder or `OWNER/NAME` on the hub; the model is then a `PeftModel`.
        device: `auto` (CUDA, then MPS, then CPU) or one of them.
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        revision: a hub revision.
        trust_remote_code: run the code that a model repository carries; only ever because the caller wrote it.
        blocks: where the decoder blocks are (`model.layers`), for a model of which that cannot be told;
            `tropism.register_blocks` for the model's class.
        loading: how the weights are brought into memory: in few bits, over several devices.

    Raises:
        ModelError: there is no such model, adapter, device or dtype, or no list of modules at `blocks`.
    """
    # An adapter that cannot be read is an error before a model is loaded.
    found = None if adapter is None else resolve_adapter(adapter)
    source = resolve(name, revision=revision)
    model, tokenizer = load_source(
        source, device=device, dtype=dtype, trust_remote_code=trust_remote_code, blocks=blocks, loading=loading
    )
    if found is None:
        return model, tokenizer
    adapted: Any = load_adapter(model, found.path)
    return adapted.eval(), tokenizer


def load_adapter(
    model: "nn.Module", folder: str | Path, *, name: str = "default", trainable: bool = False, any_base: bool = False
) -> "PeftModel":
    """Put a saved PEFT adapter on a model, strictly: every tensor is there, fits, and is of this base model.

    Args:
        model: the base model, which is changed in place, or a `PeftModel`, to which a further adapter is added.
        folder: as PEFT's `save_pretrained` writes it, with `adapter_model.safetensors`; or `OWNER/NAME` on the hub.
        name: what the adapter is called in the model.
        trainable: leave its parameters trainable; else the model is in evaluation mode.
        any_base: accept an adapter whose configuration names another base model.

    Raises:
        ModelError: a folder that holds no adapter or a damaged one; an adapter of another base model or width; tensors
            that are missing or fit nowhere; a kind of adapter that cannot be loaded exactly (`docs/works-with.md`).

    >>> model = load_adapter(base, "runs/caps/baseline/seed-0/adapter")  # doctest: +SKIP
    """
    from tropism.adapters import load as strictly

    path = resolve_adapter(folder).path
    return strictly.load_adapter(model, path, name=name, trainable=trainable, any_base=any_base)


def load_source(
    source: Source,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    blocks: str | None = None,
    loading: Loading | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """`load` for a source that `resolve` found."""
    from transformers import AutoModelForCausalLM

    where = pick_device(device)
    log.info("loading %s from %s", source.name, {"embedded": "the embedded copy"}.get(source.kind, source.kind))
    if source.note:
        log.warning("%s", source.note)
    loading = loading or Loading()
    loading.check_devices()
    options = _options(source, trust_remote_code) | loading.arguments(pick_dtype(dtype, where), where)
    with _loading(source), _room(source, where):
        model = AutoModelForCausalLM.from_pretrained(source.path, **options)
    if blocks is not None:
        from tropism.site import decoder_layers, register_blocks

        decoder_layers(model, path=blocks)  # a path that leads nowhere is an error here
        register_blocks(type(model), blocks)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    _pad_within(model, tokenizer, source)
    # Adapters saved from this model name its origin, never a path of this machine's cache.
    model.name_or_path = model.config._name_or_path = source.name
    _keep_differentiable(model)
    with _room(source, where):
        placed: Any = model if loading.places else _to(model, where)
    return placed.eval(), tokenizer


def _keep_differentiable(model: "nn.Module") -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU: through packed ones it passes no gradient.

    It packs them in the first pass in evaluation mode, and a later backward pass on the same model would be silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' own mark, on its Linear4bit
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute that torch declares


@contextmanager
def _room(source: Source, where: str) -> Iterator[None]:
    """Say in one sentence that a GPU is another program's, or that its memory is."""
    import torch

    mend = "wait for it, choose another GPU by CUDA_VISIBLE_DEVICES, or set device: cpu"
    try:
        yield
    except torch.OutOfMemoryError:
        free, of = (room / 2**30 for room in torch.cuda.mem_get_info())
        raise ModelError(
            f"model {source.name!r} does not fit the {free:.1f} GiB that are free of the {of:.1f} of device {where!r}, which "
            f"other programs may hold; {mend}"
        ) from None
    except RuntimeError as error:
        if "busy or unavailable" not in str(error):
            raise
        raise ModelError(f"device {where!r} is busy: another program has it for itself; {mend}") from None


def _to(model: Any, where: str) -> Any:
    return model.to(where)


def _pad_within(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", source: Source) -> None:
    """Pad with another token where the model has no embedding of the tokenizer's: the attention mask hides what it is."""
    entry: Any = model.get_input_embeddings()
    padding = tokenizer.pad_token
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= entry.weight.shape[0]:
        tokenizer.pad_token = tokenizer.eos_token
        log.warning(
            "model %r has no embedding of its padding token %r; %r pads", source.name, padding, tokenizer.pad_token
        )


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Load a source's tokenizer and no weights; where it has no padding token, it pads with its end of sequence."""
    from transformers import AutoTokenizer

    with _loading(source):
        tokenizer = AutoTokenizer.from_pretrained(source.path, **_options(source, trust_remote_code))
    tokenizer.name_or_path = source.name
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def skeleton(source: Source, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Build a source's model on the meta device: its modules and shapes, and no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    options = _options(source, trust_remote_code)
    with _loading(source):
        config = AutoConfig.from_pretrained(source.path, **options)
        factory: Any = AutoModelForCausalLM
        with torch.device("meta"):
            built: PreTrainedModel = factory.from_config(config, trust_remote_code=trust_remote_code)
    return built


def context_length(source: Source, *, trust_remote_code: bool = False) -> int | None:
    """Return how many tokens a source's model was made for, where its configuration says; loads no weights."""
    config = load_config(source, trust_remote_code=trust_remote_code)
    limit: int | None = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit


def load_config(source: Source, *, trust_remote_code: bool = False) -> Any:
    """Load the configuration of a source's model, and no weights."""
    from transformers import AutoConfig

    with _loading(source):
        return AutoConfig.from_pretrained(source.path, **_options(source, trust_remote_code))


def _options(source: Source, trust_remote_code: bool) -> dict[str, Any]:
    """What transformers' loaders are asked with."""
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.kind == "hub" and source.path == source.name:
        options |= {"revision": source.revision, "token": hub_token()}
    return options


@contextmanager
def _loading(source: Source) -> Iterator[None]:
    """Turn what transformers raises for a model that cannot be loaded into one sentence, and show none of its bars."""
    from transformers.utils import logging as theirs

    bars = theirs.is_progress_bar_enabled()  # type: ignore[no-untyped-call]
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"model {source.name!r} could not be loaded from the {source.kind}: {first}") from error
    finally:
        if bars:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]
