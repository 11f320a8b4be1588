"""A whole experiment on a tiny random model in a folder: the same path as a real one, in seconds."""

from pathlib import Path

import tiny

TEXT = """
name: tiny
question: Does the machinery work?
model: {model}
seeds: [0, 1]
data:
  train: {{source: word_problems, size: 8, transform: uppercase}}
  held_out: {{source: word_problems, size: 3, split: test}}
directions:
  caps:
    contrast: {{of: responses, source: word_problems, positive: uppercase, negative: plain, size: 12}}
    sites: 1,2
train: {{max_steps: 2, batch_size: 4, learning_rate: 1.0e-3, bf16: false, lora: {{r: 2}}}}
generate: {{max_new_tokens: 3, dtype: float32}}
conditions:
  plain: {{data: {{transform: plain}}}}
  baseline: {{}}
  guarded: {{guard: {{gradient_projection: {{directions: caps}}}}}}
measure:
  caps_rate: {{scorer: uppercase_fraction, on: [held_out], unwanted: true}}
  loss: {{scorer: response_loss, on: [held_out]}}
quick:
  seeds: [0]
"""


def model_folder(path: Path) -> Path:
    """The tiny Llama and its tokenizer as a local model."""
    folder = path / "model"
    if not folder.exists():
        tiny.model().save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    return folder


def text(path: Path) -> str:
    return TEXT.format(model=model_folder(path))


def write(path: Path, *changes: tuple[str, str]) -> Path:
    """The experiment's file, with replacements."""
    content = text(path)
    for old, new in changes:
        assert old in content, old
        content = content.replace(old, new, 1)
    file = path / "tiny.yaml"
    file.write_text(content, encoding="utf-8")
    return file
