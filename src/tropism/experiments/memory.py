"""How much memory a fine-tune takes, from the shapes in a model's configuration: no weights are loaded.

Per token and block, the backward pass keeps (in numbers of the model's width `d`, its MLP's `m`, with `kv` key-value heads per
query head): the residual stream before each of the two norms, and each norm's output, `4d`; queries, keys and values and the
attention's output before and after it is put in order, `(3 + 2kv)d`; on a CPU, whose kernel keeps them, the attention's weights
over the row; the gate, its activation, the other half and their product,
`4m`. With checkpointing it keeps the stream alone, and one block at a time as above. Per learned token it keeps the logits, the
logarithm of their softmax, and the gradient of one of them.
"""

from dataclasses import dataclass
from typing import Any

from tropism.training.options import LoraOptions, TrainOptions

FLOAT = 4
ADAM_STATES, ONE_STATE, NO_STATE = 2, 1, 0
STATES = {"sgd": NO_STATE, "adafactor": NO_STATE, "adagrad": ONE_STATE, "rmsprop": ONE_STATE}
"""How many numbers an optimiser keeps for each that is trained, where it is not Adam's two."""
LOGITS = 3
"""How often a logit is held at the height of the backward pass."""
BITS = {"none": None, "nf4": 0.52, "int8": 1.0}
"""Bytes of a quantised weight, with its block's scales."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the height of a training step."""

    weights: int
    trained: int
    """What is trained beside the weights, its gradients and the optimiser's state."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.logits


@dataclass(frozen=True)
class Shape:
    """The sizes in a configuration that memory depends on."""

    width: int
    layers: int
    inner: int
    vocabulary: int
    count: int
    """Query heads."""
    heads: int
    """Width of all query heads together."""
    kv_heads: int
    """Width of all key heads together."""
    tied: bool

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Read a configuration of transformers; where it does not say, the commonest choice is taken."""
        text = config.get_text_config(decoder=True)
        d, heads = text.hidden_size, text.num_attention_heads
        head = getattr(text, "head_dim", None) or d // heads
        kv = getattr(text, "num_key_value_heads", None) or heads
        inner = getattr(text, "intermediate_size", None) or 4 * d
        tied = bool(getattr(text, "tie_word_embeddings", True))
        return cls(d, text.num_hidden_layers, inner, text.vocab_size, heads, head * heads, head * kv, tied)

    @property
    def linear(self) -> list[tuple[int, int]]:
        """The linear layers of a block, (in, out)."""
        d, q, kv, m = self.width, self.heads, self.kv_heads, self.inner
        return [(d, q), (d, kv), (d, kv), (q, d), (d, m), (d, m), (m, d)]

    @property
    def in_blocks(self) -> int:
        """Weights of the blocks' linear layers."""
        return self.layers * sum(a * b for a, b in self.linear)

    @property
    def embeddings(self) -> int:
        """Weights of the input and, where it is another, the output embedding."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    def lora(self, options: LoraOptions) -> int:
        """Weights of an adapter on every linear layer; on fewer it is less."""
        layers = self.layers if options.layers_to_transform is None else len(options.layers_to_transform)
        return layers * sum(options.r * (a + b) for a, b in self.linear)


def free_memory(device: str) -> int:
    """Bytes that are free now: of the GPU, or of the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def of_training(
    config: Any,
    options: TrainOptions,
    *,
    width: int,
    quantization: str,
    tokens: int,
    length: int,
    learned: int,
    bf16: bool,
    device: str,
) -> Memory:
    """Return the memory of a training step.

    Args:
        width: bytes of a weight of the base model.
        tokens: of the largest batch, padding included, as one process sees it.
        length: of its rows.
        learned: how many of them have a label.
        bf16: whether activations are computed in bfloat16.
    """
    shape = Shape.of(config)
    held = BITS[quantization]
    weights = shape.in_blocks * (width if held is None else held) + shape.embeddings * width
    full = options.adapter == "full"
    # Trained whole, the model has float32 weights of its own beside those that all runs share.
    numbers = (
        shape.in_blocks + shape.embeddings if full else shape.lora(options.lora) * (2 if options.forget_lora else 1)
    )
    states = STATES.get(options.optimizer, ADAM_STATES) * (1 if "8bit" in options.optimizer else FLOAT)
    trained = numbers * (2 * FLOAT + states)
    d, kv = shape.width, shape.kv_heads
    block = 4 * d + 3 * shape.heads + 2 * kv + 4 * shape.inner
    if device == "cpu":
        block += shape.count * length
    kept = shape.layers * d + block if options.checkpointing else shape.layers * block
    size = 2 if bf16 else FLOAT
    logits = learned * shape.vocabulary * (LOGITS * FLOAT)
    return Memory(int(weights), int(trained), int(tokens * kept * size), int(logits))
