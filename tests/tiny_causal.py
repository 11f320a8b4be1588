"""A tiny random model of every causal-LM class that the installed transformers can build from a config alone."""

import copy
import dataclasses
import inspect
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS, WIDTH, HEADS, VOCABULARY = 2, 32, 4, 128

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "hidden_dim"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "attention_head_dim", "swa_head_dim", "global_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "dim_ff"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size", "shared_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"), 64),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What makes a model small, by the names that configs have for it."""

_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_GRANITE = {"residual_multiplier": 0.5}  # 1 by default, and in no published checkpoint
_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("granite", "granitemoe", "granitemoeshared", "granite_swa", "granitemoe_swa"), _GRANITE),
    "bamba": _MAMBA2,
    "granitemoehybrid": _MAMBA2 | _GRANITE,
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "dots3_note": {"num_key_value_heads": HEADS},
    "dots3_note_text": {"num_key_value_heads": HEADS},
    "dots3_note.text_config": {"num_key_value_heads": HEADS},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "intermediate_size": [64, 64],
        "activation_sparsity_pattern": [0.0, 0.0],
        "hidden_size_per_layer_input": 8,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
    "gemma4.text_config": {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "nemotron_h": {"hybrid_override_pattern": "M-*E", "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1},
    "zamba": {"layer_types": ["mamba", "hybrid"], "n_mamba_heads": 2},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local"] * 2,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlstm": {"mlstm_block": None},
    "rwkv": {"attention_hidden_size": WIDTH, "rescale_every": 0},
}
"""Architectures whose sizes depend on each other otherwise: what is set for them besides."""

_TEXT = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
}  # fmt: skip
"""The language model inside a wrapper that takes any."""


def names() -> list[str]:
    """Every model type that transformers maps to a causal LM."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config(name: str) -> Any:
    """A small config of a model type."""
    kind = transformers.CONFIG_MAPPING[name]
    sizes = _sizes(kind, name)
    parts = getattr(kind, "sub_configs", None) or {}
    for part, part_kind in parts.items():
        if part_kind is transformers.AutoConfig:
            if part == "text_config":
                sizes[part] = dict(_TEXT)
        else:
            sizes[part] = _sizes(part_kind, f"{name}.{part}")
    return kind(**sizes)


def _sizes(kind: type, name: str) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    known |= set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "attribute_map", {}))
    if "kv_lora_rank" in known:  # latent attention has as many heads of keys as of queries
        return {**_known(known), "num_key_value_heads": HEADS, **_SPECIAL.get(name, {})}
    return _known(known) | _SPECIAL.get(name, {})


def _known(known: set[str]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in _SIZES.items() if key in known}


def build(name: str, seed: int = 0) -> nn.Module:
    """The model, float32, in evaluation mode; every weight random, also gates and scales that begin at 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = config(name)
        model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
        with torch.no_grad():
            for key, tensor in (*model.named_parameters(), *model.named_buffers()):
                if tensor.is_floating_point() and tensor.dim() < 2 and "inv_freq" not in key:
                    tensor.add_(0.1 * torch.randn_like(tensor))
        return model.float().eval()
