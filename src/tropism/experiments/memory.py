"""How much memory a fine-tune takes, from the shapes in a model's configuration: no weights are loaded.

Per token and block, autograd keeps these numbers (`d` the model's width, `m` its MLP's, `q` and `kv` the width of all query heads
and of all key heads, `r` the adapter's rank): what goes into each norm and comes out of it, `2d` a norm; queries, keys, values
and the attention's output, `2q + 2kv`; the inputs of norms on queries and keys, `q + kv`; the gate, its activation, the other
half and their product, `4m` (`2m` without a gate); and `r` a linear layer. Where norms are trained, what they scale as well.
Eager attention keeps a weight for each pair of tokens and head, and keys and values once a query head. Under autocast to bfloat16
each linear layer keeps its own rounded input and, for the backward pass, its rounded weight. A test counts the same with
autograd's own hooks. Per learned token there are three logits at the height: the softmax' logarithm, and two gradients.

With checkpointing the stream alone is kept, and one block at a time as above. On a CPU a part of the heap lies idle (`IDLE`).

Of `fsdp2` each process holds a part of the weights, of what is trained, its gradients and the optimizer's state, and what is
gathered at a time whole: the embeddings and two blocks. It loads the whole model before.
"""

from dataclasses import dataclass
from typing import Any

from tropism.chunked_loss import NUMBERS
from tropism.errors import TropismError
from tropism.precision import one_block
from tropism.site import decoder_layers
from tropism.training.options import LoraOptions, TrainOptions

FLOAT = 4
ADAM_STATES, ONE_STATE, NO_STATE = 2, 1, 0
STATES = {"sgd": NO_STATE, "adafactor": NO_STATE, "adagrad": ONE_STATE, "rmsprop": ONE_STATE}
"""How many numbers an optimiser keeps for each that is trained, where it is not Adam's two."""
LOGITS = 3
"""How often a logit is held at the height of the backward pass."""
GATHERED = 2
"""Blocks that are whole at a time under `fsdp2`: the one that computes, and the next."""
IDLE = {"lora": 1.0, "full": 0.5}
"""Of a CPU's heap, what lies idle for each byte that the blocks keep, whether or not it is checkpointed.

glibc looks for an aligned tensor's bytes and some more, so what a tensor leaves never fits the next of its size. An adapter makes
three more temporary tensors a layer. Measured at two shapes, in both precisions, with either attention (`bench_size`): 0.7 to 1.2
with adapters and 0.35 to 0.5 without.
"""
MAPPED = 32 * 2**20
"""A tensor of so many bytes and more is not in glibc's heap and leaves nothing idle."""
BITS = {"none": None, "nf4": 0.52, "int8": 1.0}
"""Bytes of a quantised weight, with its block's scales."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the height of a training step."""

    weights: int
    trained: int
    """What is trained beside the weights, its gradients and the optimiser's state."""
    activations: int
    """What of a batch's activations is there at that time."""
    logits: int
    """What of its logits is."""

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
    norms: int = 2
    """Norms of the stream in a block."""
    head_norms: bool = False
    """Whether queries and keys have norms of their own."""
    gated: bool = True
    """Whether the MLP has a gate."""

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Read a configuration of transformers; where it does not say, the commonest choice is taken."""
        text = config.get_text_config(decoder=True)
        d = text.hidden_size
        heads = getattr(text, "num_attention_heads", None) or max(1, d // 64)  # Mamba and RWKV have none
        head = getattr(text, "head_dim", None) or d // heads
        kv = getattr(text, "num_key_value_heads", None) or heads
        inner = getattr(text, "intermediate_size", None) or 4 * d
        tied = bool(getattr(text, "tie_word_embeddings", True))
        sizes = (d, text.num_hidden_layers, inner, text.vocab_size, heads, head * heads, head * kv, tied)
        return cls(*sizes, *_of_block(text, d, head, inner))

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


def _of_block(config: Any, d: int, head: int, inner: int) -> tuple[int, bool, bool]:
    """How many norms a block has, whether heads have some, and whether the MLP has a gate; Llama's where no block can be made."""
    import torch

    try:
        with torch.device("meta"):
            block = decoder_layers(one_block(config))[0]
    except (
        AttributeError,
        ImportError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
        TropismError,
    ):
        return 2, False, True
    named = dict(block.named_parameters())
    vectors = [tuple(p.shape) for name, p in named.items() if name.endswith("weight") and p.dim() == 1]
    up = [name for name, p in named.items() if p.dim() == 2 and p.shape[0] == inner]
    return vectors.count((d,)) or 2, head != d and (head,) in vectors, len(up) != 1


def free_memory(device: str) -> int:
    """Bytes that are free now: of the GPU, or of the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def all_memory(device: str) -> int:
    """Bytes that a GPU has, or the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info()[1])
    import psutil

    return int(psutil.virtual_memory().total)


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
    eager: bool = False,
) -> Memory:
    """Return the memory of a training step.

    Args:
        width: bytes of a weight of the base model.
        tokens: of the largest batch, padding included, as one process sees it.
        length: of its rows.
        learned: how many of them have a label.
        bf16: whether activations are computed in bfloat16.
        eager: whether attention is eager.
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
    gradients = numbers * FLOAT
    own = numbers * (FLOAT + states)
    block = tokens * _kept(shape, options, bf16, length if eager else 0)
    kept = shape.layers * block
    if options.checkpointing:
        kept = block + shape.layers * tokens * shape.width * FLOAT
    if device == "cpu" and tokens * shape.inner * FLOAT < MAPPED:
        kept += IDLE["full" if full else "lora"] * shape.layers * block
    if bf16 and (full or (width == FLOAT and held is None)):
        # Rounded weights; recomputed, a block at a time has them.
        blocks = shape.layers if full or not options.checkpointing else 1
        kept += 2 * (shape.in_blocks * blocks // shape.layers + shape.vocabulary * shape.width)
    sharded = options.parallel == "fsdp2"
    # More than a chunk of logits is never there at once (`chunked_loss`), but where weights are divided.
    at_once = learned * shape.vocabulary if sharded else min(learned * shape.vocabulary, NUMBERS)
    logits = at_once * LOGITS * FLOAT
    if sharded:
        gathered = (shape.embeddings + GATHERED * shape.in_blocks // shape.layers) * (2 * FLOAT if full else width)
        return _divided(
            options.processes, weights, numbers, states, gathered, Memory(0, 0, int(kept), int(logits)), full
        )
    # Gradients come as activations go. The largest tensor's are there twice at the end, as are Adam's temporary values.
    largest = shape.vocabulary * shape.width * FLOAT if full else 0
    temporary = gradients if device.startswith("cuda") else 2 * largest
    before = gradients if options.accumulation > 1 else 0
    if kept + logits + before + largest >= gradients + temporary:
        return Memory(int(weights), int(own + before + largest), int(kept), int(logits))
    return Memory(int(weights), int(own + gradients + temporary), 0, 0)


def _divided(
    processes: int, weights: float, numbers: int, states: int, gathered: int, step: Memory, full: bool
) -> Memory:
    """What one of several processes holds of a model that is divided among them; `step` is what is its own."""
    loaded = Memory(int(weights), numbers * FLOAT, 0, 0)
    # Trained whole, the model that was loaded is gone once it has weights of its own.
    held = 0.0 if full else weights / processes
    trained = numbers * (2 * FLOAT + states) / processes
    divided = Memory(int(held + gathered), int(trained), step.activations, step.logits)
    return max(loaded, divided, key=lambda memory: memory.total)


def _kept(shape: Shape, options: TrainOptions, bf16: bool, pairs: int) -> float:
    """Bytes that autograd keeps of a token in a block; of `pairs` other tokens eager attention keeps a weight."""
    full, eager = options.adapter == "full", pairs > 0
    d, q, kv = shape.width, shape.heads, shape.kv_heads
    normed = q + kv if shape.head_norms else 0
    # Always in float32: the norms' inputs, and what a trained norm scales.
    exact = shape.norms * d + normed
    # In float32 the output of a norm serves all that read it; in bfloat16 each of five linear layers rounds it for itself.
    computed = (5 if bf16 else 2) * d + (4 if shape.gated else 2) * shape.inner
    computed += 4 * q if eager else 2 * q + 2 * kv
    if full:
        exact += shape.norms * d + (0 if bf16 else normed)
        computed += normed if bf16 else 0
    else:
        computed += len(shape.linear) * options.lora.r * (2 if options.forget_lora else 1)
        computed += q if bf16 and not eager else 0
    attention = FLOAT * shape.count
    if eager:  # the softmax is in float32, and what multiplies the values in the precision of all
        attention = shape.count * pairs * (FLOAT + 2 if bf16 else FLOAT)
    return FLOAT * exact + (2 if bf16 else FLOAT) * computed + attention
