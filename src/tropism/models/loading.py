"""Models brought into memory: whole, in few bits, without their weights; with an adapter on them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tropism.errors import ModelError
from tropism.models.devices import pick_device, pick_dtype
from tropism.models.options import Loading
from tropism.models.places import hub_token
from tropism.models.sources import Source, resolve, resolve_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("tropism")


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
