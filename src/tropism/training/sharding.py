"""Weights that are divided among the processes of one training (FSDP2), block by block, adapters included.

Each process holds a part of every tensor; a block's whole weights are gathered for its forward and its backward pass, and
gradients are averaged into parts. accelerate shards on GPUs alone, and on a CPU goes on with DDP without a word; so the model is
sharded here, by torch, before the Trainer has an optimizer, and the Trainer is told that it need not wrap it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import Trainer

from tropism.site import decoder_layers, input_device


def shard(model: nn.Module, trainer: Trainer) -> None:
    """Divide a model's parameters among all processes, in place; `trainer` has no optimizer yet.

    Torch's default group of processes must be up. Each process must hold the same whole model, and needs room for it until then.
    """
    mesh = init_device_mesh(input_device(model).type, (torch.distributed.get_world_size(),))
    for block in decoder_layers(model):
        fully_shard(block, mesh=mesh)
    # By default what is outside of blocks stays whole after a forward pass, so also after the last evaluation, where it is read.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    # Transformers' own marks of a model that was sharded before it came to the Trainer: gradients are reduced by it, not by DDP.
    ours: Any = model
    ours._is_fsdp_managed_module = True
    prepared: Any = trainer
    prepared.is_distributed_loading_by_transformers = True


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` divided this model."""
    return isinstance(model, FSDPModule)


@contextmanager
def later_reduction(model: Any) -> Iterator[None]:
    """Inside, gradients pile up in each process, and the next backward pass outside averages them: accumulation."""
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)
