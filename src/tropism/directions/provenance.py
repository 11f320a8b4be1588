"""Where directions come from, as JSON: enough to refuse them on another model and to find them again."""

import hashlib
import json
from collections.abc import Mapping
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
    text = config.get_text_config(decoder=True)
    values = text.to_dict()
    # GPT-2 and others keep these under names of their own (n_layer), which their class maps to the common ones.
    own_names = getattr(text, "attribute_map", None) or {}
    found = {name: values.get(name, values.get(own_names.get(name))) for name in _ARCHITECTURE}
    if found["num_hidden_layers"] is None:
        found["num_hidden_layers"] = getattr(text, "num_hidden_layers", None)  # counted from other fields
    if found["num_hidden_layers"] is None:
        # Of a model in several parts all numbers count, since no one of them is its depth.
        found["parts"] = {key: value for key, value in values.items() if isinstance(value, int | dict)}
    return _sha256(found)


def is_of(about: Mapping[str, Any], config_hash: str) -> bool:
    """Whether directions may be used on a model: found on its architecture or forced onto it, or not known of what."""
    found_on, forced = about.get("model"), about.get("forced_onto")
    if isinstance(forced, Mapping) and forced.get("config_hash") == config_hash:
        return True
    return not isinstance(found_on, Mapping) or found_on.get("config_hash") in (None, config_hash)


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
