"""What the update constraint costs a training step: SmolLM2, LoRA r = 8 on all linear layers, 8 × 200 tokens.

The direction has rank 16 at every adapted weight. Plain and guarded steps alternate, and so does which comes first, so that a
slow minute of the machine falls on both; what is reported is the median ratio of neighbours.
"""

import json
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

import tropism as tp
from tropism.interventions.update_constraint import constraint_of

ROWS, TOKENS, RANK, ROUNDS = 8, 200, 16, 6


def run() -> dict[str, float | str]:
    """Ratios against plain training: time of a step, time inside the two hooks, memory against adapter and
    Adam.
    """
    base, _ = tp.models.load("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: (
            torch.randn(module.out_features, RANK, generator=generator),
            torch.randn(RANK, module.in_features, generator=generator),
        )
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }
    guard = tp.UpdateConstraint(tp.ParameterDirections.of_factors(factors))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    ids = torch.randint(10, 40_000, (ROWS, TOKENS), generator=generator)

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        return time.perf_counter() - begin

    step()
    plain, guarded, inside, held = [], [], [], 0
    for turn in range(ROUNDS):
        if turn % 2 == 0:
            plain.append(step())
        with guard.attach(model, optimizer=optimizer) as attachment:
            guarded.append(step())
            constraint = constraint_of(attachment)
            begin = time.perf_counter()
            constraint.before_step(optimizer, (optimizer,), {})
            constraint.after_step()
            inside.append(time.perf_counter() - begin)
            tensors = [t for block in constraint.blocks for t in vars(block).values() if isinstance(t, torch.Tensor)]
            starts = [t for block in constraint.blocks for t in block.start]
            held = sum(t.numel() * t.element_size() for t in tensors + starts)
        if turn % 2:
            plain.append(step())
    trained = sum(p.numel() * p.element_size() for p in parameters)
    directions = sum(f.A.nbytes + f.B.nbytes for f in guard.directions.factors.values())
    return {
        "step, guarded / plain": statistics.median(g / p for g, p in zip(guarded, plain, strict=True)),
        "both hooks / plain step": statistics.median(inside) / statistics.median(plain),
        "held by the guard / (adapter + Adam + directions)": held / (3 * trained + directions),
        "what": f"SmolLM2-135M, LoRA r=8 all-linear, direction of rank {RANK} at each weight, {ROWS}x{TOKENS} tokens",
        "device": "cpu",
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
