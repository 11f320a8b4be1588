"""What each of two processes does in the distributed tests of the update constraint."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW

import tiny
import tropism as tp
from naive_constraint import lora, trainable
from processes import leave
from tropism.interventions.update_constraint import constraint_of

STEPS = 8


def run(model, inner, rank, world, options, directions):
    """Eight steps on this rank's rows of each batch; the ledger's largest cumulative leak."""
    # eps is far above rounding: Adam turns a gradient of 1e-9 into a full step, whichever sign rounding gave
    # it
    optimizer = AdamW(trainable(inner), lr=1e-2, weight_decay=0.1, eps=1e-3)
    with tp.UpdateConstraint(directions, **options).attach(model, optimizer=optimizer) as attachment:
        for step in range(STEPS):
            batch = tiny.batch(rows=4, tokens=8, seed=step)
            rows = slice(rank * 4 // world, (rank + 1) * 4 // world)
            optimizer.zero_grad()
            model(**{key: value[rows] for key, value in batch.items()}).loss.backward()
            optimizer.step()
        return [entry.leak_cumulative for entry in constraint_of(attachment).ledger.entries]


def worker(rank: int, kind: str, options: dict, directions_file: str, folder: str) -> None:
    """One of two gloo processes; rank 0 writes what was learned."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    inner = lora(seed=2)
    model: nn.Module = inner
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(inner)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for block in inner.get_base_model().model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(inner, mesh=mesh)
    leaks = run(model, inner, rank, 2, options, tp.ParameterDirections.load(directions_file))
    learned = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.detach()
        for name, value in inner.named_parameters()
        if "lora_" in name
    }
    torch.save({"leaks": leaks, "learned": learned}, Path(folder) / f"rank{rank}.pt")
    leave()


def alone(options, directions):
    """The same training in one process on whole batches."""
    model = lora(seed=2)
    leaks = run(model, model, 0, 1, options, directions)
    return leaks, {name: value.detach() for name, value in model.named_parameters() if "lora_" in name}
