"""What autograd keeps of a block is what its own hooks see; and the height of a step is where most is held."""

from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from tropism.experiments import estimate, generation_memory, memory
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


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_fsdp2_divides_what_a_model_holds_and_not_a_batch(adapter):
    shape = memory.Shape.of(CONFIGS["qwen3"](4))
    whole = shape.in_blocks + shape.embeddings
    numbers = whole if adapter == "full" else shape.lora(LoraOptions())

    def in_each(processes: int, tokens: int) -> memory.Memory:
        options = TrainOptions(adapter=adapter, batch_size=8, processes=processes, parallel="fsdp2")
        return of(options, tokens=tokens, device="cuda")

    two, eight = in_each(2, 40_000), in_each(8, 40_000)
    assert two.activations == eight.activations
    # A float, its gradient and Adam's two states; trained whole, nothing is left of what was loaded.
    divided = numbers * 16 + (0 if adapter == "full" else whole * 4)
    assert two.total - eight.total == divided / 2 - divided / 8
    # Hardly a token: the height is the whole model that each process loads first.
    assert in_each(8, 1).total == whole * 4 + numbers * 4


WINDOWED = {
    "llama": LlamaConfig(**SIZES, num_hidden_layers=3),
    "mistral": MistralConfig(**SIZES, num_hidden_layers=2, sliding_window=8),
    "gemma3": Gemma3TextConfig(
        **SIZES, head_dim=24, num_hidden_layers=3, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(("prompt", "new"), [(5, 2), (5, 20), (30, 2)])
def test_the_cache_is_what_generation_holds(monkeypatch, name, prompt, new):
    from transformers import DynamicCache

    model = AutoModelForCausalLM.from_config(WINDOWED[name]).eval()
    height = [0]
    update = DynamicCache.update

    def counted(self, *given):
        found = update(self, *given)
        tensors = [t for layer in self.layers for t in (layer.keys, layer.values) if t is not None]
        height[0] = max(height[0], sum(t.untyped_storage().nbytes() for t in tensors))
        return found

    monkeypatch.setattr(DynamicCache, "update", counted)
    ids = torch.randint(1, 500, (BATCH, prompt))
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    expected = generation_memory.cache(WINDOWED[name], prompt=prompt, new=new, batch=BATCH, width=4)
    assert expected == height[0]


def test_generation_holds_the_start_model_and_what_is_merged():
    config = CONFIGS["qwen3"](4)
    shape = memory.Shape.of(config)

    def of_all(**said):
        given = {"width": 4, "generates": 4, "quantization": "none", "full": False, "prompt": 5, "new": 5, "batch": 2}
        found = generation_memory.of_generation(config, **{**given, **said})
        assert found.activations == generation_memory.cache(
            config, prompt=5, new=5, batch=2, width=said.get("generates", 4)
        )
        return found.trained

    assert of_all() == shape.in_blocks * 4
    assert of_all(full=True) == (shape.in_blocks + shape.embeddings) * 4
    assert of_all(generates=2) == (shape.in_blocks + shape.embeddings) * 2
    assert of_all(quantization="nf4") == 0
