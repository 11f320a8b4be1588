"""Tiny two-adapter models, and gradients computed row by row with the other adapter frozen: slow, and plainly right."""

import peft
import torch

import tiny


def model(*, dtype=torch.float64, layers=2, width=32, seed=0, dropout=0.0, retain=None, forget=None, bias=False):
    """A tiny Llama with adapters `retain` (r=4) and `forget` (r=2) on other modules, all weights drawn at random."""
    retain = retain or peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    forget = forget or peft.LoraConfig(r=2, lora_alpha=12, lora_dropout=dropout, target_modules=["q_proj", "down_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = tiny.model(seed=seed, layers=layers, width=width, dtype=dtype)
        two = peft.get_peft_model(base, retain, adapter_name="retain", autocast_adapter_dtype=False)
        two.add_adapter("forget", forget)
        two.to(dtype)  # PEFT 0.18 has no autocast_adapter_dtype there
        two.base_model.set_adapter(["retain", "forget"])
        for name, parameter in two.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return two.train()


def parameters(model, adapter):
    return {name: p for name, p in model.named_parameters() if "lora_" in name and f".{adapter}." in name}


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def zero(model):
    for p in model.parameters():
        p.grad = None


def token_losses(model, batch, **extra):
    """The summed loss of each row, [B]: rows do not interact, so a batch's gradient is the sum of its rows'."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **extra).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100, reduction="none"
    )
    return nll.view(targets.shape).sum(1)


def scaled(model, adapter, factor):
    """A context in which the adapter's output is multiplied by `factor`."""
    import contextlib

    @contextlib.contextmanager
    def inside():
        layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer) and adapter in m.scaling]
        before = [m.scaling[adapter] for m in layers]
        for m in layers:
            m.scaling[adapter] *= factor
        try:
            yield
        finally:
            for m, value in zip(layers, before, strict=True):
                m.scaling[adapter] = value

    return inside()


def row_by_row(model, batch, route, *, forget_live_on_retain=False):
    """The gradients that routing must give, one row at a time: a row's gradient goes where its route lets it."""
    total = {}
    for row, which in enumerate(route.tolist()):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        zero(model)
        dead = which == 2 and not forget_live_on_retain
        with scaled(model, "forget", 0.0 if dead else 1.0):
            token_losses(model, one).sum().backward()
        for name, gradient in gradients(model).items():
            allowed = not (which == 1 and ".retain." in name) and not (which == 2 and ".forget." in name)
            contribution = gradient if allowed else torch.zeros_like(gradient)
            total[name] = total.get(name, 0) + contribution
    zero(model)
    return total


def by_position(model, batch, weights, *, path=False):
    """The gradients under position weights, from every position's own contribution to each weight's gradient.

    Each `lora_A`/`lora_B` linear computes `Σ_w w·(its output from weights) + …` with one detached copy of the
    weight per
    pass: `y = x W_detachedᵀ`, plus `w ⊙ (x_detached Wᵀ − its own value)`, whose gradient to W alone is `(w ⊙ g)ᵀ x`.
    On the path, the branch's output is `w ⊙ out + (1 − w) ⊙ out.detach()`.
    """
    index = {"retain": 0, "forget": 1}
    handles = []

    def weight_only(w):
        def hook(module, args, y):
            x = args[0]
            whole = torch.nn.functional.linear(x, module.weight.detach())
            own = torch.nn.functional.linear(x.detach(), module.weight)
            return whole + w * (own - own.detach())

        return hook

    def branch(w):
        return lambda module, args, y: w * y + (1 - w) * y.detach()

    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for adapter, at in index.items():
                if adapter not in module.lora_A:
                    continue
                w = weights[..., at : at + 1]
                if path:
                    handles.append(module.lora_B[adapter].register_forward_hook(branch(w)))
                else:
                    handles.append(module.lora_A[adapter].register_forward_hook(weight_only(w)))
                    handles.append(module.lora_B[adapter].register_forward_hook(weight_only(w)))
    zero(model)
    token_losses(model, batch).sum().backward()
    for handle in handles:
        handle.remove()
    result = gradients(model)
    zero(model)
    return result


def assert_close(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (found[name] - gradient).abs().max().item() <= tolerance * scale, name
