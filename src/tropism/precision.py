"""Which precision is faster on this machine: measured on one block of the model, not read off the processor's flags.

A CPU may have bfloat16 instructions, multiply twice as fast with them, and still take longer over a training step: what
lies between the products is slower. So a whole block is timed, of the model's own class and width. On an accelerator
nothing is measured: where it computes in bfloat16, that is faster.
"""

import copy
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tropism.atomic import write_text
from tropism.models import cache_folder, computes_bfloat16

log = logging.getLogger("tropism")

EAGER = "training with eager attention"
"""As `training`, with the products and the softmax of attention one by one and not in torch's fused kernel."""
PHASES = ("training", EAGER, "prefill", "decode")
CANDIDATES = ("float32", "bfloat16")
MUST_GAIN = 1.05
"""bfloat16 rounds more: it is taken where it is at least this many times as fast."""
ROWS, TOKENS = 4, 64
"""The batch that training and reading prompts are measured on."""
ANSWERS = 32
"""Answers that are written together, in the measurement of decoding."""
WORK = 2e9
"""About how many multiplications one pass may take: of wide models, the batch that is measured is smaller."""
PROMPT_TOKENS = 128
"""Of an average prompt, where reading and writing are weighed against each other."""
BYTES, MOST_COPIES = 64 * 2**20, 8
"""Weights that a decoding step reads, in copies of the block: more than a cache holds, as in a whole model."""
ROUNDS = 3
RANK = 8
VOCABULARY = 64
"""Of the model that is measured: its embeddings are none of the block's business."""


@dataclass(frozen=True)
class Choice:
    """Whether to compute in bfloat16, and why, in a few words."""

    bfloat16: bool
    why: str

    @property
    def name(self) -> str:
        return "bfloat16" if self.bfloat16 else "float32"

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def for_training(device: str, config: Any) -> Choice:
    """The precision that a training step is faster in: autocast to bfloat16, or float32."""
    seconds = measured(device, config)
    if seconds is None:
        return _by_device(device)
    return _faster(*(seconds["training"][one] for one in CANDIDATES))


def eager_attention(device: str, config: Any, bfloat16: bool) -> tuple[bool, str]:
    """Whether a training step is faster with eager attention than with torch's fused one, and why, in a few words.

    On a CPU the backward pass of the fused kernel can take longer than the products it replaces. They differ by rounding.
    """
    seconds = measured(device, config)
    if seconds is None:
        return False, "as loaded"
    name = CANDIDATES[bfloat16]
    ratio = seconds["training"][name] / seconds[EAGER][name]
    return ratio >= MUST_GAIN, f"measured {ratio:.2f} times as fast here as fused attention"


def for_generation(device: str, config: Any, max_new_tokens: int) -> Choice:
    """The precision that answers are faster in: reading the prompts, and writing `max_new_tokens` a prompt."""
    seconds = measured(device, config)
    if seconds is None:
        return _by_device(device)
    read = ANSWERS * PROMPT_TOKENS
    total = [read * seconds["prefill"][one] + max_new_tokens * seconds["decode"][one] for one in CANDIDATES]
    return _faster(*total)


def measured(device: str, config: Any) -> Mapping[str, Mapping[str, float]] | None:
    """Seconds by phase and precision: of training and prefill a token, of decode a step. Measured once a machine and shape.

    None where there is nothing to measure: on an accelerator, on a CPU without bfloat16 instructions, for a model of
    which no single block can be made.
    """
    import torch

    if not device.startswith("cpu") or not computes_bfloat16(device):
        return None
    file = cache_folder() / "precision.json"
    held = _read(file)
    key = f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {_shape(config)}"
    if not _complete(held.get(key)):
        found = times(config)
        if found is None:
            return None
        held[key] = found
        log.info("measured float32 against bfloat16 on a block of %s: %s", _shape(config), json.dumps(found))
        try:
            write_text(file, json.dumps(held, indent=1))
        except OSError as error:
            log.warning("the measured precision cannot be kept in %s and will be measured again: %s", file, error)
    kept: Mapping[str, Mapping[str, float]] = held[key]
    return kept


def times(config: Any) -> dict[str, dict[str, float]] | None:
    """Time each phase in each precision, in turn, on one block with random weights; None where none can be made."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            block = one_block(config)
            eager = copy.deepcopy(block)
            eager.set_attn_implementation("eager")
            weights = sum(parameter.numel() for parameter in block.parameters())
            tokens = max(8, min(TOKENS, int(WORK / (6 * ROWS * max(1, weights)))))
            ids = torch.randint(0, VOCABULARY, (ROWS, tokens))
            runs = {phase: dict[str, Callable[[], None]]() for phase in PHASES}
            for name in CANDIDATES:
                cast = copy.deepcopy(block).to(getattr(torch, name)).eval()
                runs["prefill"][name] = partial(_forward, [cast], ids)
                many = [cast, *(copy.deepcopy(cast) for _ in range(min(MOST_COPIES, BYTES // (4 * weights))))]
                runs["decode"][name] = partial(_forward, many, ids.new_zeros(ANSWERS, 1))
                runs["training"][name] = partial(_step, _adapted(block), ids, name == "bfloat16")
                runs[EAGER][name] = partial(_step, _adapted(eager), ids, name == "bfloat16")
            found = {phase: _shortest(runs[phase]) for phase in PHASES}
        except (
            AttributeError,
            ImportError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            log.warning(
                "no single block of %s can be measured (%s: %s); the processor's flags decide the precision",
                type(config).__name__, type(error).__name__, str(error).partition("\n")[0],
            )  # fmt: skip
            return None
    count = ROWS * tokens
    return {phase: {n: s if phase == "decode" else s / count for n, s in found[phase].items()} for phase in PHASES}


def one_block(config: Any) -> Any:
    """A model of the configuration's class with a single block, random weights and hardly a vocabulary."""
    import torch
    from transformers import AutoModel

    small = copy.deepcopy(config.get_text_config(decoder=True))
    kinds = getattr(small, "layer_types", None)
    small.num_hidden_layers = 1
    if kinds is not None:
        small.layer_types = list(kinds[:1])
    small.vocab_size = VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(small, name, None)
    auto: Any = AutoModel
    return auto.from_config(small, dtype=torch.float32)


def _adapted(block: Any) -> Any:
    """The block with a LoRA adapter in training mode, its own weights shared and frozen."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # GPT-2's layers hold their weight the other way round; PEFT sets its option itself, and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        return get_peft_model(copy.deepcopy(block), LoraConfig(r=RANK, target_modules="all-linear")).train()


def _forward(blocks: Sequence[Any], ids: Any) -> None:
    import torch

    with torch.inference_mode():
        for block in blocks:
            block(input_ids=ids, use_cache=False)


def _step(block: Any, ids: Any, bfloat16: bool) -> None:
    import torch

    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        hidden = block(input_ids=ids, use_cache=False)[0]
    hidden.float().square().mean().backward()
    for parameter in block.parameters():
        parameter.grad = None


def _shortest(runs: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Each run's shortest processor time, after one that is not counted; in turn, since a machine's speed drifts.

    Processor time and not the clock's, of which other programs take from either at random.
    """
    for run in runs.values():
        run()
    found = {name: float("inf") for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.process_time()
            run()
            found[name] = min(found[name], time.process_time() - began)
    return found


def _faster(float32: float, bfloat16: float) -> Choice:
    ratio = float32 / bfloat16
    if ratio >= MUST_GAIN:
        return Choice(True, f"measured {ratio:.2f} times as fast as float32 here")
    if ratio >= 1:
        return Choice(False, f"measured {ratio - 1:.0%} slower than bfloat16 here, which rounds more")
    return Choice(False, f"measured {1 / ratio:.2f} times as fast as bfloat16 here")


def _by_device(device: str) -> Choice:
    if computes_bfloat16(device):
        return Choice(True, f"{device} computes in it")
    return Choice(False, f"{device} has no bfloat16 instructions")


def _shape(config: Any) -> str:
    """What of a configuration decides how long a block takes."""
    text = config.get_text_config(decoder=True)
    named = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_local_experts")
    sizes = [f"{name} {getattr(text, name)}" for name in named if isinstance(getattr(text, name, None), int)]
    return ", ".join([str(getattr(text, "model_type", "model")), *sizes])


def _read(file: Path) -> dict[str, Any]:
    """What was measured before; nothing where the file is not there or not whole."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _complete(entry: Any) -> bool:
    try:
        return all(float(entry[phase][one]) > 0 for phase in PHASES for one in CANDIDATES)
    except (KeyError, TypeError, ValueError):
        return False


def _processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
