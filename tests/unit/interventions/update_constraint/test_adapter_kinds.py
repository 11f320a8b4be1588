"""The ledger measures what the model computes: every adapter kind and architecture, against PEFT's own change of weights."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import adapter_kinds
import architectures
import tiny
import tropism as tp
from naive_constraint import naive_leak
from tropism.adapters.kinds import KINDS
from tropism.errors import AttachError
from tropism.interventions.update_constraint import constraint_of

CONSTRAINED = [n for n in adapter_kinds.NAMES if "constrain" in KINDS[adapter_kinds.EXAMPLES[n].kind].exact]
REFUSED = [
    n
    for n in adapter_kinds.NAMES
    if "constrain" not in KINDS[adapter_kinds.EXAMPLES[n].kind].exact and adapter_kinds.EXAMPLES[n].kind != "unmerged"
]
"""Of prompt tuning there is no weight that a direction could be at."""


def directions_at(shapes, seed=3):
    """One random direction of rank 2 at each weight."""
    generator = torch.Generator().manual_seed(seed)
    return tp.ParameterDirections.of_factors(
        {
            name: (torch.randn(out, 2, generator=generator), torch.randn(2, into, generator=generator))
            for name, (out, into) in shapes.items()
        }
    )


def train_under(model, u, inputs, steps=4, **options):
    """AdamW with decay under the constraint; returns the ledger and what PEFT says changed, weight by weight."""
    start = adapter_kinds.dense(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    model.train()
    with adapter_kinds.quiet(), tp.UpdateConstraint(u, **options).attach(model, optimizer=optimizer) as attachment:
        for _ in range(steps):
            optimizer.zero_grad()
            logits = model(**inputs).logits
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten()
            ).backward()
            optimizer.step()
        ledger = constraint_of(attachment).ledger
    end = adapter_kinds.dense(model)
    return ledger, {name: end[name].double() - start[name].double() for name in start}


def check(model, inputs, when):
    u = directions_at({name: change.shape for name, change in adapter_kinds.dense(model).items()})
    ledger, moved = train_under(model, u, inputs, when=when)
    dense = {name: f.B.double() @ torch.diag(u.coefficients(name)[0]) @ f.A.double() for name, f in u.factors.items()}
    measured, expected = ledger.entries[-1].leak_cumulative, naive_leak(moved, dense)
    assert sum(change.norm() for change in moved.values()) > 1e-2, "nothing moved, so nothing was tested"
    if when == "update":
        assert expected < 1e-9, "along the direction the model itself moved"
        assert measured < 1e-9
    else:
        assert expected > 1e-4, "the published rule leaks, so the ledger has something to measure"
        assert measured == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("when", ["update", "gradient"])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_the_ledger_of_every_kind_is_the_change_of_the_weights(name, when):
    model = adapter_kinds.make(name).double()
    check(model, adapter_kinds.batch(model), when)


@pytest.mark.parametrize("when", ["update", "gradient"])
@pytest.mark.parametrize("name", architectures.NAMES)
def test_the_ledger_of_every_architecture_is_the_change_of_the_weights(name, when):
    model = architectures.build(name, lora=True)
    inputs = {key: value for key, value in architectures.batch(name).items() if key != "labels"}
    check(model, inputs, when)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_product_of_factors_is_refused_by_name(name):
    model = adapter_kinds.make(name)
    modules = {m: layer for m, layer in model.get_base_model().named_modules() if hasattr(layer, "base_layer")}
    at = next(m for m in reversed(modules) if name != "conv" or "conv1d" in m)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        AttachError, match=r"UpdateConstraint: the adapter has .*, and cannot be trained under an `UpdateC"
    ):
        tp.UpdateConstraint(directions_at({at: (32, 32)})).attach(model, optimizer=optimizer).__enter__()


def test_experts_are_constrained_one_by_one():
    """Each expert's own `⟨U_e, s·B_e·A_e⟩` stays; not their sum alone, and not that of the tensor that holds them all."""
    model = adapter_kinds.make("experts").double()
    names = [n for n in adapter_kinds.dense(model) if ".experts." in n]
    shapes = {name: adapter_kinds.dense(model)[name].shape for name in names}
    assert len(names) == 18  # three blocks, two parameters, three experts
    u = directions_at(shapes)
    _, moved = train_under(model, u, adapter_kinds.batch(model))
    for name in names:
        f = u.factors[name]
        U = f.B.double() @ torch.diag(u.coefficients(name)[0]) @ f.A.double()
        if moved[name].norm() > 0:  # an expert that no token chose does not move
            assert abs((moved[name] * U).sum()) / U.norm() / moved[name].norm() < 1e-9


def test_a_weight_that_trains_itself_beside_its_adapter_is_refused():
    model = adapter_kinds.make("lora")
    at = "model.layers.0.self_attn.q_proj"
    base = model.get_base_model().get_submodule(at).base_layer.weight.requires_grad_(True)
    u = directions_at({at: tuple(base.shape)})
    everything = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(AttachError, match=f"the weight {at} is trained itself beside its adapter"):
        tp.UpdateConstraint(u).attach(model, optimizer=everything).__enter__()
    factors_only = torch.optim.SGD([p for n, p in model.named_parameters() if "lora_" in n], lr=0.1)
    with tp.UpdateConstraint(u).attach(model, optimizer=factors_only):
        model(**tiny.batch()).loss.backward()
        factors_only.step()


@pytest.mark.skipif(adapter_kinds.OLD, reason="this PEFT ties no adapters")
def test_tied_adapters_are_refused():
    config = copy.deepcopy(tiny.model().config)
    config.tie_word_embeddings = True
    with adapter_kinds.quiet():
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_config(config)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True))
    adapter_kinds.move(model)
    shapes = {name: change.shape for name, change in adapter_kinds.dense(model).items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert set(shapes) == {"model.embed_tokens", "lm_head"}
    with pytest.raises(AttachError, match="the adapters at lm_head and model.embed_tokens are tied"):
        tp.UpdateConstraint(directions_at(shapes)).attach(model, optimizer=optimizer).__enter__()


def test_directions_of_an_embedding_that_peft_adapted_are_met():
    """From reading to holding: what one adapter learned at an embedding and the experts, another may not learn."""
    for kind in ("embedding", "experts"):
        u = tp.parameter_directions(adapter_kinds.make(kind, seed=5))
        model = adapter_kinds.make(kind, fresh=True).double()
        ledger, moved = train_under(model, u, adapter_kinds.batch(model))
        dense = {
            name: f.B.double() @ torch.diag(u.coefficients(name)[0]) @ f.A.double() for name, f in u.factors.items()
        }
        assert naive_leak(moved, dense) < 1e-7
        assert ledger.entries[-1].leak_cumulative < 1e-7
