"""One of two processes: the guarded gradients of its half of a batch, under DDP and FSDP2; rank 0 saves them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import tiny
import tropism as tp
from matrix_guard import guard
from processes import leave


def guarded_gradients(kind: str, checkpointing: bool, rank: int) -> dict[str, torch.Tensor]:
    model, batch = tiny.model(), tiny.batch(4)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped: torch.nn.Module = model
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        for block in tp.decoder_layers(model):
            fully_shard(block)
        fully_shard(model)
    half = {key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}
    # to DDP's wrapper by hand, to the model in it as a trainer's callback does; FSDP2 wraps nothing
    with guard().attach(model if checkpointing else wrapped) as attachment:
        wrapped(**half).loss.backward()
        assert len(attachment.readings()) == 5
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients.items()}


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for kind in ("ddp", "fsdp2"):
        for checkpointing in (False, True):
            gradients = guarded_gradients(kind, checkpointing, rank)
            if rank == 0:
                torch.save(gradients, folder / f"{kind}-{checkpointing}.pt")
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
