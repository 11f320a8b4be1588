"""Tiny random models of many architectures, built from a config without a download: three blocks, 16 wide."""

import functools
from collections.abc import Callable

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

LAYERS, WIDTH, HEADS, VOCABULARY = 3, 16, 2, 64

_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 8}
_MOE = {
    "num_experts": LAYERS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}  # as many experts as blocks: a trap
_SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT = dict(
    _SMALL, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
)


def _config(kind: str, **options: object) -> Callable[[], transformers.PreTrainedConfig]:
    return lambda: getattr(transformers, kind)(**options)


CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": _config("LlamaConfig", **_LLAMA_LIKE),
    "mistral": _config("MistralConfig", **_LLAMA_LIKE, **_HEAD),
    "qwen2": _config("Qwen2Config", **_LLAMA_LIKE),
    "qwen3": _config("Qwen3Config", **_LLAMA_LIKE, **_HEAD),
    "qwen3_moe": _config("Qwen3MoeConfig", **_LLAMA_LIKE, **_HEAD, **_MOE),
    "gemma": _config("GemmaConfig", **_LLAMA_LIKE, **_HEAD),
    "gemma2": _config("Gemma2Config", **_LLAMA_LIKE, **_HEAD, query_pre_attn_scalar=8, sliding_window=4),
    "gemma3": _config("Gemma3TextConfig", **_LLAMA_LIKE, **_HEAD, query_pre_attn_scalar=8, sliding_window=4),
    "gemma3_multimodal": _config(
        "Gemma3Config",
        text_config=dict(_LLAMA_LIKE, **_HEAD, query_pre_attn_scalar=8, sliding_window=4),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    ),
    "phi": _config("PhiConfig", **_LLAMA_LIKE),
    "phi3": _config("Phi3Config", **_LLAMA_LIKE),
    "olmo2": _config("Olmo2Config", **_LLAMA_LIKE),
    "granite": _config("GraniteConfig", **_LLAMA_LIKE, residual_multiplier=0.5),
    "stablelm": _config("StableLmConfig", **_LLAMA_LIKE),
    "starcoder2": _config("Starcoder2Config", **_LLAMA_LIKE, residual_dropout=0, embedding_dropout=0),
    "cohere": _config("CohereConfig", **_LLAMA_LIKE),
    "glm4": _config("Glm4Config", **_LLAMA_LIKE, **_HEAD),
    "smollm3": _config("SmolLM3Config", **_LLAMA_LIKE),
    "gpt2": _config("GPT2Config", **_GPT),
    "gptj": _config("GPTJConfig", **_GPT, rotary_dim=4),
    "gpt_neo": _config(
        "GPTNeoConfig",
        **_SMALL,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        max_position_embeddings=64,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=4,
        resid_dropout=0,
        embed_dropout=0,
        attention_dropout=0,
    ),
    "gpt_neox": _config(
        "GPTNeoXConfig",
        **_SMALL,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        hidden_dropout=0,
        attention_dropout=0,
    ),
    "opt": _config(
        "OPTConfig",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        dropout=0,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "bloom": _config(
        "BloomConfig", **_SMALL, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS, hidden_dropout=0, attention_dropout=0
    ),
    "falcon": _config(
        "FalconConfig",
        **_SMALL,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        hidden_dropout=0,
        attention_dropout=0,
    ),
    "mpt": _config(
        "MptConfig", **_SMALL, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, max_seq_len=64, expansion_ratio=2
    ),
}
"""Architecture → its config."""

REQUIRED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "olmo2",
    "granite",
)
NAMES = tuple(CONFIGS)


def build(name: str, *, lora: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A model of the architecture, the same one for the same arguments; with `lora`, its adapter is far from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CONFIGS[name]()
        multimodal = hasattr(config, "vision_config")
        auto = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
        implementations = {"attn_implementation": "eager"}
        if hasattr(config, "num_experts"):
            implementations["experts_implementation"] = "eager"  # the grouped kernel has no float64
        model = auto.from_config(config, **implementations).to(dtype)
        if lora:
            decoder_only = ".*vision.*" if multimodal else None
            targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if hasattr(config, "num_experts") else "all-linear"
            adapter = LoraConfig(
                r=2, target_modules=targets, exclude_modules=decoder_only, fan_in_fan_out=name == "gpt2"
            )
            model = get_peft_model(model, adapter)
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    nn.init.normal_(parameter, std=0.3)
        return model.train()


@functools.cache
def batch(name: str = "llama", rows: int = 2, tokens: int = 6) -> dict[str, torch.Tensor]:
    """What the architecture is called with: labels on the second half of each row, padding on the first row's right."""
    ids = torch.randint(3, 60, (rows, tokens), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[0, -2:] = 0
    labels = torch.where(attention.bool(), ids, -100)
    labels[:, : tokens // 2] = -100
    inputs = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    if "multimodal" in name:
        inputs["token_type_ids"] = torch.zeros_like(ids)  # no token is an image's
    return inputs
