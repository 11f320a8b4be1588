"""Oracles for the update constraint: everything dense, in float64, weight by weight."""

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

import tiny


def lora(
    seed=0,
    rank=4,
    base_seed=0,
    dtype=torch.float32,
    targets=("q_proj", "v_proj", "up_proj", "down_proj"),
    **options,
):
    """A tiny Llama with a fresh adapter; the base is the same for every `seed`."""
    base = tiny.model(seed=base_seed, layers=2, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), lora_dropout=0.0, **options)
        return get_peft_model(base, config)


def train(model, optimizer, steps, seed=0, accumulate=1, clip=None, first=0):
    """Plain steps on random batches; step `i` sees the same batch whatever came before. Returns the
    losses.
    """
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            loss = model(**tiny.batch(rows=2, tokens=8, seed=1000 * seed + accumulate * step + part)).loss
            (loss / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def layers(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}


def delta_weights(model, adapter="default"):
    """`s·B·A` of every adapted weight, dense."""
    return {
        name: m.scaling[adapter]
        * m.lora_B[adapter].weight.detach().double()
        @ m.lora_A[adapter].weight.detach().double()
        for name, m in layers(model).items()
    }


def dense_directions(u):
    """Every direction at every weight, dense: `{weight: [k, d_out, d_in]}`."""
    return {
        name: torch.stack([f.B.double() @ torch.diag(row) @ f.A.double() for row in u.coefficients(name)])
        for name, f in u.factors.items()
    }


def dense_direction(u):
    assert u.k == 1
    return {name: dense[0] for name, dense in dense_directions(u).items()}


def factors(model, adapter="default"):
    """A and B of every adapted weight, flat and one behind the other."""
    return {
        name: torch.cat([m[adapter].weight.detach().double().flatten() for m in (module.lora_A, module.lora_B)])
        for name, module in layers(model).items()
    }


def raw_direction(u, stacked=False):
    """The sources' own A and B, flat and one behind the other: `{weight: [numel]}`, or `[k, numel]`."""
    flat = {}
    for name, f in u.factors.items():
        blocks = zip(f.A.double().split(f.ranks), f.B.double().split(f.ranks, dim=1), strict=True)
        flat[name] = u.combination @ torch.stack([torch.cat([A.flatten(), B.flatten()]) for A, B in blocks])
    return flat if stacked else {name: rows[0] for name, rows in flat.items()}


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def naive_subspace_leak(moved, directions, per):
    """`‖Uᵀm‖ / ‖m‖` with an orthonormal basis of `k` directions, per weight or over all weights together."""
    names = sorted(directions)
    groups = [[name] for name in names] if per == "weight" else [names]
    along2 = 0.0
    for group in groups:
        rows = torch.cat([directions[name].flatten(1) for name in group], dim=1)
        m = torch.cat([moved[name].flatten() for name in group])
        Q = torch.linalg.qr(rows.T).Q
        along2 += float((Q.T @ m).square().sum())
    return along2**0.5 / float(torch.stack([m.norm() for m in moved.values()]).norm())


def naive_leak(moved, direction):
    """`‖Uᵀm‖ / ‖m‖` with one unit direction at every weight."""
    along = torch.stack([(moved[n] * d).sum() / d.norm() for n, d in direction.items()])
    return float(along.norm() / torch.stack([m.norm() for m in moved.values()]).norm())


class Sign(torch.optim.Optimizer):
    """Lion's rule (Chen et al., 2023): the sign of an interpolated momentum, decoupled decay."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((group["betas"][0] * m + (1 - group["betas"][0]) * p.grad).sign(), alpha=-group["lr"])
                m.mul_(group["betas"][1]).add_(p.grad, alpha=1 - group["betas"][1])
