"""Where directions come from, as JSON: enough to refuse them on another model and to find them again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from tropism.names import VERSION
from tropism.site import base_model

# What makes two configs the same architecture. A list of what counts, because configs also hold what training and
# saving change (special token ids, dtype, library version) and what transformers renames between releases.
_ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "hidden_act",
)


def config_hash(model: nn.Module) -> str:
    """SHA-256 of what in the model's config makes its architecture; a fine-tune keeps its base model's hash."""
    return hash_of_config(base_model(model).config)


def hash_of_config(config: Any) -> str:
    """`config_hash` of a transformers config, for a model that need not be loaded."""
    values = config.get_text_config(decoder=True).to_dict()
    return _sha256({name: values.get(name) for name in _ARCHITECTURE})


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary and the chat template: what decides the token ids of a chat."""
    return _sha256({"vocabulary": tokenizer.get_vocab(), "template": tokenizer.chat_template})


def of_model(model: nn.Module) -> dict[str, Any]:
    """Name, revision and config hash. A local folder is named by its last part, so that no machine's paths leak."""
    return of_config(base_model(model).config)


def of_config(config: Any) -> dict[str, Any]:
    """`of_model` for a config alone."""
    name = str(config.name_or_path or "")
    return {
        "name": Path(name).name if name.startswith(("/", "~", ".")) else name,
        "revision": getattr(config, "_commit_hash", None),
        "config_hash": hash_of_config(config),
    }


def version() -> str:
    """This package's version, as files record it."""
    return VERSION


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
