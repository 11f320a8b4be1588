"""The chat templates that TRL installs, and by hand what each puts before and after an answer."""

import importlib.util
from pathlib import Path

import pytest

from tropism import models

_SPEC = importlib.util.find_spec("trl")
FOLDER = Path(_SPEC.origin).parent / "chat_templates" if _SPEC else None
NAMES = sorted(file.stem for file in FOLDER.glob("*.jinja")) if FOLDER else []
needs_trl = pytest.mark.skipif(not NAMES, reason="trl is not installed: pip install 'tropism[trl]'")

# The longest beginning of a template's name decides.
STOPS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "",
    "glm4moe_training": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}
# What the model itself writes before its answer, after the generation prompt and without thinking.
LEADS = {
    "": "",
    "glm4moe": "\n<think></think>\n",
    "gptoss": "<|channel|>final<|message|>",
    "idefics3": " ",
    "llava_next": " ",
    "muse_glimmer": " to=user<|message|>",
    "qwen3": "<think>\n\n</think>\n\n",
    "qwen3_5": "\n</think>\n\n",
    "qwen3_5_nothink": "",
    "qwen3_6": "\n</think>\n\n",
    "qwen3_8": "\n</think>\n\n",
    "qwen3_instruct": "",
    "qwen3_vl": "",
    "smolvlm": " ",
}


def of_longest(table, name):
    """The table's entry for the longest of its keys that `name` begins with."""
    return table[max((key for key in table if name.startswith(key)), key=len)]


def text_of(name):
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def smollm2_tokenizer():
    """SmolLM2's tokenizer, or a skip where the model is not installed."""
    from transformers import AutoTokenizer

    try:
        source = models.resolve(models.SMOLLM2)
    except models.ModelError as error:
        pytest.skip(f"SmolLM2 is not here: {error}")
    return AutoTokenizer.from_pretrained(source.path)


def lessons(tokenizer, rendered):
    """Each stretch of learned tokens, decoded."""
    stretches, current = [], []
    for token, on in zip([*rendered.input_ids, 0], [*rendered.response_mask, False], strict=True):
        if on:
            current.append(token)
        elif current:
            stretches.append(tokenizer.decode(current, clean_up_tokenization_spaces=False))
            current = []
    return stretches
