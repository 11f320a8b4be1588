"""Frozen adapters, Safe LoRA, shrinkage, routing and switching off, over every kind of adapter: exact, or refused by name."""

import copy

import pytest
import torch
from peft import get_peft_model

import adapter_kinds
import tropism as tp
from tropism.activations.mode import adapters_off
from tropism.adapters.kinds import KINDS
from tropism.adapters.merge import merge_adapters
from tropism.errors import AttachError, DirectionsError, ModelError
from tropism.interventions.frozen_adapter import FrozenAdapter
from tropism.interventions.routing_modes import ablation_mode
from tropism.interventions.two_adapters import two_adapters
from tropism.interventions.weights import SafeLoRA, Shrinkage, learned_norm

CHANGED_START = ("pissa", "olora", "pissa_niter")


def does(operation):
    return [n for n in adapter_kinds.NAMES if operation in KINDS[adapter_kinds.EXAMPLES[n].kind].exact]


def refuses(operation):
    return [n for n in adapter_kinds.NAMES if n not in does(operation)]


@pytest.mark.parametrize("name", [n for n in does("frozen adapter") if n not in CHANGED_START])
def test_a_frozen_adapter_computes_what_the_adapter_does(name, tmp_path):
    source, base = adapter_kinds.make(name), adapter_kinds.EXAMPLES[name].model()
    adapter_kinds.save(source, tmp_path)
    expected = adapter_kinds.logits(source)
    for given in (source, tmp_path):
        with FrozenAdapter.load(given).attach(base.eval()):
            torch.testing.assert_close(adapter_kinds.logits(base), expected, atol=1e-4, rtol=1e-4)
    random = FrozenAdapter.load(source).random_like(1)
    for weight, held in FrozenAdapter.load(source).weights.items():
        assert random.weights[weight].norm() == pytest.approx(held.norm(), rel=1e-5)
        if held.bias is not None:
            ours, theirs = (f.scale * f.bias.norm() for f in (random.weights[weight], held))
            assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("name", CHANGED_START)
def test_a_frozen_adapter_of_a_changed_start_adds_what_was_learned(name, tmp_path):
    base = adapter_kinds.EXAMPLES[name].model()
    model = adapter_kinds.make(name, fresh=True)
    adapter_kinds.save(model, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        adapter_kinds.move(model)
    with pytest.raises(DirectionsError, match=r"FrozenAdapter: the adapter has init_lora_weights='\w+', which changed"):
        FrozenAdapter.load(model)
    with FrozenAdapter.load(model, start=tmp_path).attach(base.eval()):
        torch.testing.assert_close(adapter_kinds.logits(base), adapter_kinds.logits(model), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", refuses("frozen adapter"))
def test_a_frozen_adapter_of_more_than_factors_is_refused_by_name(name, tmp_path):
    source = adapter_kinds.make(name)
    adapter_kinds.save(source, tmp_path)
    for given in (source, tmp_path):
        with pytest.raises(
            DirectionsError, match=r"FrozenAdapter.*: the adapter has .*, and cannot be a `FrozenAdapter`: "
        ):
            FrozenAdapter.load(given)


def merged(model):
    with adapter_kinds.quiet():
        return merge_adapters(copy.deepcopy(model)).state_dict()


@pytest.mark.parametrize("name", does("edit"))
def test_shrinkage_scales_all_that_was_learned_and_gives_it_back(name):
    model, base = adapter_kinds.make(name), adapter_kinds.EXAMPLES[name].model()
    before = adapter_kinds.logits(model)
    learned = adapter_kinds.change_of_everything(model, base)
    norm = float(torch.stack([change.norm() for change in learned.values()]).norm())
    assert learned_norm(model) == pytest.approx(norm, rel=1e-4)
    for guard in (Shrinkage(factor=0.25), Shrinkage(norm=norm / 4)):
        with guard.attach(model):
            now = adapter_kinds.change_of_everything(model, base)
        assert now.keys() == learned.keys()
        for key, change in learned.items():
            torch.testing.assert_close(now[key], change / 4, atol=2e-6, rtol=1e-4)
    assert torch.equal(adapter_kinds.logits(model), before)


@pytest.mark.parametrize("name", does("edit"))
def test_safe_lora_projects_every_weight_on_its_own(name):
    model, base = adapter_kinds.make(name), adapter_kinds.EXAMPLES[name].model()
    before = adapter_kinds.logits(model)
    u = tp.parameter_directions(adapter_kinds.make(name, seed=5))
    start = adapter_kinds.dense(model)
    with SafeLoRA(u, threshold=1.0, exact=True).attach(model):
        now = adapter_kinds.dense(model)
    assert set(u.weights) == set(now)
    for weight, f in u.factors.items():
        V = f.B.double() @ torch.diag(u.coefficients(weight)[0]) @ f.A.double()
        expected = V @ torch.linalg.pinv(V, rtol=1e-8) @ start[weight].double()
        torch.testing.assert_close(now[weight].double(), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(adapter_kinds.logits(model), before)
    assert adapter_kinds.change_of_everything(model, base)


@pytest.mark.parametrize("name", refuses("edit"))
def test_edits_of_more_than_factors_are_refused_by_name(name):
    model = adapter_kinds.make(name)
    u = tp.parameter_directions(adapter_kinds.make("lora"))
    for guard in (Shrinkage(factor=0.5), SafeLoRA(u)):
        who = type(guard).__name__
        with pytest.raises(AttachError, match=rf"{who}: the adapter has .*, and cannot be edited after training: "):
            guard.attach(model).__enter__()


def test_edits_of_merged_or_disabled_adapters_are_refused():
    model = adapter_kinds.make("lora")
    with model.disable_adapter(), pytest.raises(AttachError, match="q_proj is merged or disabled|down_proj is merged"):
        Shrinkage(factor=0.5).attach(model).__enter__()
    model.merge_adapter()
    with pytest.raises(AttachError, match="is merged or disabled, so that an edit would change nothing"):
        Shrinkage(factor=0.5).attach(model).__enter__()


@pytest.mark.parametrize("name", adapter_kinds.NAMES)
def test_switched_off_is_the_base_model_or_refused(name):
    model, base = adapter_kinds.make(name), adapter_kinds.EXAMPLES[name].model()
    if name in does("switch off"):
        with adapter_kinds.quiet(), adapters_off(model):
            torch.testing.assert_close(adapter_kinds.logits(model), adapter_kinds.logits(base))
        return
    with (
        pytest.raises(ModelError, match="the base model: the adapter has .*, and cannot be switched off"),
        adapters_off(model),
    ):
        pass


def two(name):
    """A model with two adapters of one kind, where PEFT makes one at all."""
    example = adapter_kinds.EXAMPLES[name]
    with torch.random.fork_rng(), adapter_kinds.quiet():
        torch.manual_seed(0)
        model = get_peft_model(example.model(), example.config(), adapter_name="retain")
        try:
            model.add_adapter("forget", example.config())
            model.base_model.set_adapter(["retain", "forget"])
        except (ValueError, AttributeError, RuntimeError, TypeError):
            return None
        adapter_kinds.move(model)
        return model


@pytest.mark.parametrize("name", adapter_kinds.NAMES)
def test_two_adapters_are_ablated_and_routed_exactly_or_refused(name):
    model = two(name)
    if model is None:
        assert name not in (*does("ablate"), *does("route"))
        return
    if name in does("ablate"):
        with ablation_mode(model, "forget_ablated"):
            ablated = adapter_kinds.logits(model)
        with adapter_kinds.quiet():
            only = merge_adapters(copy.deepcopy(model), ["retain"])
        torch.testing.assert_close(ablated, adapter_kinds.logits(only), atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(AttachError, match="ablation_mode: "), ablation_mode(model, "forget_ablated"):
            pass
    if name in does("route"):
        with tp.GradientRouting().attach(model.train()):
            inputs = adapter_kinds.batch(model)
            model(**inputs, route=torch.tensor([1, 1])).logits.square().mean().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert all(g is None or not g.any() for n, g in gradients.items() if ".retain." in n)
        assert any(g is not None and g.any() for n, g in gradients.items() if ".forget." in n)
    else:
        with pytest.raises(AttachError, match="GradientRouting: "):
            tp.GradientRouting().attach(model.train()).__enter__()


@pytest.mark.parametrize("name", ["pissa", "olora", "dora", "modules_to_save", "bias", "alora"])
def test_two_adapters_that_could_not_be_ablated_are_refused_when_they_are_made(name):
    example = adapter_kinds.EXAMPLES[name]
    with adapter_kinds.quiet():
        config = example.config()
    with pytest.raises(ModelError, match="two_adapters: the adapter has .*, and cannot be ablated by its scale"):
        two_adapters(example.model(), retain=config, forget=config)
