"""One process of a routed training: `RANK WORLD FOLDER`. Alone it trains on whole batches, else its share."""

import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import save_file

import routing_oracle as oracle
import tiny
from processes import leave
from tropism.interventions.routing import GradientRouting

ROUTES = [
    [[0, 0, 0, 0]],
    [[1, 1, 2, 0]],  # the first process has no row for retain, the second has
    [[1, 1, 1, 1]],  # no process has
    [[1, 1, 1, 1], [1, 1, 0, 1]],  # accumulated: only the second micro-batch has, in the second process
    [[2, 2, 2, 2]],
    [[0, 1, 2, 2]],
]


def main(rank: int, world: int, folder: Path) -> None:
    model = oracle.model(dtype=torch.float64)
    trained = model
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
        )
        trained = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    skipped = {}
    with GradientRouting().attach(model) as attachment:
        for seed, micro_batches in enumerate(ROUTES):
            optimizer.zero_grad()
            for index, route in enumerate(micro_batches):
                last = index == len(micro_batches) - 1
                with trained.no_sync() if world > 1 and not last else nullcontext():
                    batch = {key: value[share] for key, value in tiny.batch(rows=4, seed=seed).items()}
                    trained(**batch, route=torch.tensor(route)[share]).loss.backward()
            optimizer.step()
            readings = attachment.readings()
            for name in ("retain", "forget"):
                skipped[name] = skipped.get(name, 0) + readings.get(f"guard/routing/steps_without_{name}", 0)
    assert skipped == {"retain": 1, "forget": 1}, skipped
    if rank == 0:
        adapters = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(adapters, folder / f"world-{world}.safetensors")
    if world > 1:
        leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
