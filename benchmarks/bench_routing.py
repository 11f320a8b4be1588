"""Gradient routing: a routed mixed batch against an unrouted one, and against one example at a time (two optimisers).

All train the same two adapters on the same examples, as long as the word problems of `examples/routing.yaml` (96
tokens, 38 of them supervised), measured in turn in one process; medians of ratios. The two batched steps use
Tropism's loss, with logits where there are labels; one at a time uses the model's own, as the original experiment does.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import peft
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import tropism as tp
from tropism.data.collate import IGNORE
from tropism.errors import ModelError
from tropism.models import computes_bfloat16
from tropism.training.loss import label_logits, response_loss

ROWS, TOKENS, SUPERVISED_TOKENS, REPEATS = 8, 96, 38, 4
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def run() -> dict[str, float | str]:
    """Medians of ratios: `routed_over_unrouted` (at most 1.05), `speedup_over_one_at_a_time` (at least 1.8).

    In the precision that `tropism run` trains in here, and in float32 where that is another.
    """
    model, what = _model()
    figures: dict[str, float | str] = {"model": what, "batch": f"{ROWS} x {TOKENS} tokens"}
    bf16 = computes_bfloat16(str(model.device))
    figures["precision"] = "bfloat16 autocast" if bf16 else "float32"
    figures |= _ratios(model, bf16)
    if bf16:
        figures |= {f"{name}_float32": value for name, value in _ratios(model, False).items()}
    return figures


def _ratios(model: peft.PeftModel, bf16: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 1000, (ROWS, TOKENS), generator=generator)
    labels = ids.clone()
    labels[:, :-SUPERVISED_TOKENS] = IGNORE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = {**inputs, "labels": labels}
    route = torch.tensor([1, 0] * (ROWS // 2))
    trained = {name: [p for n, p in model.named_parameters() if f".{name}." in n] for name in ("retain", "forget")}
    together = torch.optim.AdamW([*trained["retain"], *trained["forget"]], lr=1e-6)
    apart = {name: torch.optim.AdamW(parameters, lr=1e-6) for name, parameters in trained.items()}

    def autocast() -> torch.autocast:
        return torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)

    def together_step(**columns: torch.Tensor) -> None:
        together.zero_grad()
        with autocast(), label_logits(model):
            loss = response_loss(model(**inputs, supervised=labels, **columns), labels)
        loss.backward()
        together.step()

    def one_at_a_time() -> None:
        for row, which in enumerate(route.tolist()):
            for p in trained["retain"]:
                p.requires_grad_(which != 1)
            for optimizer in apart.values():
                optimizer.zero_grad()
            with autocast():
                loss = model(**{key: value[row : row + 1] for key, value in batch.items()}).loss
            loss.backward()
            for name, optimizer in apart.items():
                if not (which == 1 and name == "retain"):
                    optimizer.step()
        for p in trained["retain"]:
            p.requires_grad_(True)

    times: dict[str, list[float]] = {"unrouted": [], "routed": [], "one_at_a_time": []}

    def unrouted() -> float:
        together_step()  # what ran before leaves a heap of other shapes, for which the next step pays
        return _seconds(together_step)

    def routed() -> float:
        with tp.GradientRouting().attach(model):
            together_step(route=route)  # and the first step under a guard checks that it is in force
            return _seconds(lambda: together_step(route=route))

    for repeat in range(REPEATS + 1):  # the first warms up
        measured = {"one_at_a_time": _seconds(one_at_a_time)}
        sides = {"unrouted": unrouted, "routed": routed}
        for name in sorted(sides, reverse=bool(repeat % 2)):
            measured[name] = sides[name]()
        for name, seconds in measured.items():
            if repeat:
                times[name].append(seconds)
    over, speedup = zip(
        *((r / u, o / r) for u, r, o in zip(times["unrouted"], times["routed"], times["one_at_a_time"], strict=True)),
        strict=True,
    )
    return {"routed_over_unrouted": round(median(over), 4), "speedup_over_one_at_a_time": round(median(speedup), 3)}


def _model() -> tuple[peft.PeftModel, str]:
    torch.manual_seed(0)
    try:
        base, _ = tp.models.load(NAME)
        what = NAME
    except ModelError:
        config = LlamaConfig(
            vocab_size=8192,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=12,
            num_attention_heads=6,
            num_key_value_heads=3,
        )
        base, what = AutoModelForCausalLM.from_config(config), "random Llama, 12 blocks of width 384"
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    return tp.two_adapters(base.float(), retain=lora, forget=lora).train(), what


def _seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
