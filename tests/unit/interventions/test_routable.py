"""Routing on mixtures of experts and wrappers: what cannot be routed is refused on attaching, with what can."""

import pytest
import torch
from peft import LoraConfig
from torch import nn

import adapter_kinds
import architectures
import tiny
import tiny_causal
import tropism as tp
from tropism.errors import AttachError, ModelError
from tropism.interventions.routable import lora_layers
from tropism.interventions.routes import read_route


class Dispatched(nn.Module):
    """An MLP that sees the batch's tokens in another order, as many of them as there are: a top-1 mixture of experts."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        tokens = x.flatten(0, 1)
        order = tokens[:, 0].argsort()
        out = torch.empty_like(tokens)
        out[order] = self.mlp(tokens[order])
        return out.view_as(x)


def attach(model, targets):
    lora = LoraConfig(r=2, target_modules=targets)
    both = tp.two_adapters(model, retain=lora, forget=lora)
    with tp.GradientRouting().attach(both) as attachment:
        assert attachment.passes == 0
    return both


def test_tokens_in_another_order_are_refused_although_their_number_fits():
    model = tiny.model()
    for block in model.model.layers:
        block.mlp = Dispatched(block.mlp)
    with pytest.raises(
        AttachError,
        match=r"which rows of a batch model.layers.\*.mlp.mlp.gate_proj.* see \(it sees one row's tokens in another's place\)"
        r".*target_modules=\['k_proj', 'o_proj', 'q_proj', 'v_proj'\]",
    ):
        attach(model, "all-linear")


def test_what_the_refusal_names_can_be_routed():
    model = tiny.model()
    for block in model.model.layers:
        block.mlp = Dispatched(block.mlp)
    attach(model, ["k_proj", "o_proj", "q_proj", "v_proj"])


def test_fused_experts_are_refused_with_the_modules_that_work():
    with (
        adapter_kinds.quiet(),
        pytest.raises(  # PEFT warns of a pattern of its own
            AttachError,
            match=r"fused experts or routers at model.layers.\*.mlp.experts.*target_modules=\['k_proj', 'o_proj', 'q_proj', 'v_proj'\]",
        ),
    ):
        attach(architectures.build("qwen3_moe", dtype=torch.float32), "all-linear")


def test_a_router_that_returns_no_product_is_left_out_of_all_linear_and_else_refused():
    targets = {name.rpartition(".")[2] for name, _ in lora_layers(attach(tiny_causal.build("phimoe"), "all-linear"))}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(
        AttachError, match=r"router returns something else than its product.*target_modules=\['q_proj'\]"
    ):
        attach(tiny_causal.build("phimoe"), ["q_proj", "router"])


def test_all_linear_of_a_wrapper_is_the_language_model_s():
    names = [name for name, _ in lora_layers(attach(architectures.build("gemma3_multimodal"), "all-linear"))]
    assert names
    assert all("language_model" in name for name in names)


@pytest.mark.parametrize("shape", [(2, 3, 7), (6, 7), (2, 1, 3, 7), (2, 3, 4, 7), (2, 4, 3, 7)])
def test_a_token_s_weight_meets_that_token_on_whichever_axis_it_is(shape):
    """Also `[B, 1, T, d]`, as latent attention expands its keys."""
    routes = torch.tensor([[0, 1, 2], [1, 0, 1]])
    batch = read_route(routes, (2, 3), ("retain", "forget"), True, lambda _: None)
    for name, allowed in (("retain", routes != 1), ("forget", routes != 2)):
        wide = batch.weights_for(name, torch.empty(shape)).expand(*shape)
        axis = shape.index(3) if len(shape) > 2 else None
        by_token = wide.view(2, 3, 7) if axis is None else wide.movedim(axis, 1)
        assert torch.equal(by_token.reshape(2, 3, -1)[..., 0], allowed.float())


def test_tokens_that_could_be_on_two_axes_are_refused():
    batch = read_route(torch.zeros(2, 3, dtype=torch.long), (2, 3), ("retain", "forget"), True, lambda _: None)
    with pytest.raises(ModelError, match=r"found \[2, 3, 3, 7\]"):
        batch.weights_for("retain", torch.empty(2, 3, 3, 7))
