"""What autograd keeps of a block is what its own hooks see; and the height of a step is where most is held."""

from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from tropism.experiments import estimate, memory
from tropism.training.loss import label_logits, response_loss
from tropism.training.options import LoraOptions, TrainOptions

SIZES = {
    "vocab_size": 500, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 200,
    "tie_word_embeddings": True,
}  # fmt: skip
CONFIGS = {
    "llama": lambda n: LlamaConfig(**SIZES, num_hidden_layers=n),
    "qwen3": lambda n: Qwen3Config(**SIZES, head_dim=24, num_hidden_layers=n),
}
BATCH, LENGTH, RANK = 3, 80, 8


def kept(config, adapter: str, bf16: bool, attention: str, checkpointing: bool = False) -> int:
    """Bytes of the distinct tensors that autograd's hooks are handed in a forward pass, but for weights in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    if adapter == "lora":
        model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear")).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held, alive = {}, []

    def pack(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, config.vocab_size, (BATCH, LENGTH))
    labels = ids.where(torch.arange(LENGTH) >= LENGTH // 2, -100)
    inside = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), label_logits(model):
        with inside:
            outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), supervised=labels)
        response_loss(outputs, labels)
    return sum(held.values())


@pytest.mark.parametrize(
    ("name", "adapter", "bf16", "attention"),
    product(CONFIGS, ("lora", "full"), (False, True), ("sdpa", "eager")),
)
def test_a_block_keeps_what_autograds_hooks_see(name, adapter, bf16, attention):
    config = CONFIGS[name]
    seen = kept(config(2), adapter, bf16, attention) - kept(config(1), adapter, bf16, attention)
    options = TrainOptions(adapter=adapter, lora=LoraOptions(r=RANK))
    shape = memory.Shape.of(config(1))
    expected = BATCH * LENGTH * memory._kept(shape, options, bf16, LENGTH if attention == "eager" else 0)
    if bf16:
        expected += 2 * shape.in_blocks + (0 if adapter == "full" else 2 * shape.lora(options.lora))
    assert expected == pytest.approx(seen, rel=0.015)


def of(options: TrainOptions, tokens: int = 400, device: str = "cpu", **said) -> memory.Memory:
    given = {
        "width": 4,
        "quantization": "none",
        "length": 100,
        "learned": tokens // 2,
        "bf16": False,
        "device": device,
        **said,
    }
    return memory.of_training(CONFIGS["qwen3"](4), options, tokens=tokens, **given)


def test_a_block_is_read_off_the_architecture():
    assert memory.Shape.of(CONFIGS["llama"](1)).head_norms is False
    assert memory.Shape.of(CONFIGS["qwen3"](1)).head_norms is True
    from transformers import Gemma2Config, GPTNeoXConfig

    assert memory.Shape.of(Gemma2Config(**SIZES, head_dim=16, num_hidden_layers=2)).norms == 4
    small = GPTNeoXConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=200
    )
    assert memory.Shape.of(small).gated is False


def test_the_height_of_a_step_is_its_backward_pass_or_its_end():
    small, large = TrainOptions(adapter="full"), TrainOptions(adapter="full", accumulation=2)
    # Hardly a token: gradients and the optimiser's temporary values weigh more than activations.
    assert of(small, tokens=2).activations == 0
    assert of(small, tokens=4000).activations > 0
    # A second pass begins with the first one's gradients there.
    numbers = memory.Shape.of(CONFIGS["qwen3"](4))
    assert of(large, tokens=4000).trained - of(small, tokens=4000).trained == 4 * (
        numbers.in_blocks + numbers.embeddings
    )


def test_attention_that_is_eager_and_long_rows_take_more():
    plain = TrainOptions()
    extra = of(plain, device="cuda", eager=True).activations - of(plain, device="cuda").activations
    shape = memory.Shape.of(CONFIGS["qwen3"](4))
    pairs = 400 * 4 * shape.layers * shape.count * (100 - 1)  # in place of one number a head and token
    assert extra == pairs + 400 * 4 * shape.layers * (2 * shape.heads - 2 * shape.kv_heads)


def test_auto_takes_the_first_batch_that_fits(monkeypatch):
    options = TrainOptions(batch_size="auto")
    needed = [of(one, tokens=100 * one.first_batch) for one in options.attempts()]
    for number, attempt in enumerate(options.attempts()):
        monkeypatch.setattr(estimate, "free_memory", lambda _, n=number: needed[n].total)
        said = estimate._batch(options, needed, "cpu")
        assert said.startswith(f"auto will take {attempt.first_batch} examples × {attempt.accumulation}, about ")
    monkeypatch.setattr(estimate, "free_memory", lambda _: needed[-1].total - 1)
    assert estimate._batch(options, needed, "cpu").startswith("not even the smallest batch fits")
