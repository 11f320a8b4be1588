"""What is read as learned is all that changed, by the merged model's own weights; anything else is refused by name."""

import copy

import pytest
import torch

import adapter_kinds
import architectures
import tiny
import tropism as tp
from tropism.adapters.factors import LoraFactors
from tropism.adapters.kinds import KINDS
from tropism.adapters.read import adapters_in, live_factors, read_adapter, total_norm
from tropism.errors import DirectionsError, DirectionsMismatch

CHANGED_START = ("pissa", "olora", "pissa_niter")
READ = [
    n for n in adapter_kinds.NAMES if "read" in KINDS[adapter_kinds.EXAMPLES[n].kind].exact and n not in CHANGED_START
]
REFUSED = [n for n in adapter_kinds.NAMES if "read" not in KINDS[adapter_kinds.EXAMPLES[n].kind].exact]


def as_parameters(weights, model):
    """`{parameter: change}` of read factors, laid out as the model keeps its parameters."""
    changes = {}
    modules = dict(model.named_modules())
    for weight, held in weights.items():
        change = held.scale * held.B.double() @ held.A.double()
        if weight in modules:
            flipped = isinstance(modules[weight], torch.nn.Embedding) or type(modules[weight]).__name__ == "Conv1D"
            changes[f"{weight}.weight"] = change.mT if flipped else change
            continue
        name, _, last = weight.rpartition(".")
        if not last.isdigit():
            changes[weight] = change
            continue
        stack = changes.setdefault(name, torch.zeros_like(model.get_parameter(name), dtype=torch.float64))
        stack[int(last)] = change
    return changes


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_all_that_changed(name):
    model, base = adapter_kinds.make(name), adapter_kinds.EXAMPLES[name].model()
    expected = adapter_kinds.change_of_everything(model, base)
    found = as_parameters(read_adapter(model).weights, base)
    assert found.keys() == expected.keys()
    for key, change in expected.items():
        torch.testing.assert_close(found[key].float(), change, atol=2e-6, rtol=1e-4)
    norm = torch.stack([change.norm() for change in expected.values()]).norm()
    assert total_norm(read_adapter(model).weights.values()) == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("name", [n for n in READ if n not in ("experts", "router")])
def test_a_folder_reads_as_the_model_it_was_saved_from(name, tmp_path):
    model = adapter_kinds.make(name)
    adapter_kinds.save(model, tmp_path)
    live, saved = read_adapter(model).weights, read_adapter(tmp_path).weights
    assert live.keys() == saved.keys()
    for weight, held in live.items():
        assert held.scale == pytest.approx(saved[weight].scale)
        assert torch.equal(held.A, saved[weight].A)
        assert torch.equal(held.B, saved[weight].B)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_factors_is_refused_by_name(name, tmp_path):
    model = adapter_kinds.make(name)
    adapter_kinds.save(model, tmp_path)
    for source in (model, tmp_path):
        with pytest.raises(DirectionsError, match=r"the adapter has .*, and cannot be read as what was learned: "):
            tp.parameter_directions(source)


@pytest.mark.parametrize("name", ["experts", "router"])
def test_experts_are_read_from_a_model_and_not_from_a_folder(name, tmp_path):
    adapter_kinds.save(adapter_kinds.make(name), tmp_path)
    with pytest.raises(DirectionsError, match=r"at model.layers.0.mlp.\w+ cannot be read from a folder"):
        tp.parameter_directions(tmp_path)


@pytest.mark.parametrize("name", CHANGED_START)
def test_an_init_that_changed_the_base_weight_needs_the_start(name, tmp_path):
    base = adapter_kinds.EXAMPLES[name].model()
    model = adapter_kinds.make(name, fresh=True)
    adapter_kinds.save(model, tmp_path / "start")
    before = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        adapter_kinds.move(model, 0.01)
    adapter_kinds.save(model, tmp_path / "trained")
    for source in (model, tmp_path / "trained"):
        with pytest.raises(
            DirectionsError, match=r"has init_lora_weights='\w+', which changed the base weight .* give start="
        ):
            tp.parameter_directions(source)
        for start in (before, tmp_path / "start"):
            found = as_parameters(read_adapter(source, start=start).weights, base)
            for key, change in adapter_kinds.change_of_everything(model, base).items():
                torch.testing.assert_close(found[key].float(), change, atol=5e-6, rtol=1e-2)
    u = tp.parameter_directions(tmp_path / "trained", start=tmp_path / "start")
    dense = adapter_kinds.change_of_everything(model, base)
    for weight in u.weights:
        f, change = u.factors[weight], dense[f"{weight}.weight"].double()
        U = f.B.double() @ torch.diag(u.coefficients(weight)[0]) @ f.A.double()
        assert (U * change).sum() / U.norm() / change.norm() > 0.999
    with pytest.raises(DirectionsError, match="found zero at all 8 weights"):
        tp.parameter_directions(before, start=tmp_path / "start")


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_conversion_by_peft_reads_as_the_change(name, tmp_path):
    model, base = adapter_kinds.make(name, fresh=True), adapter_kinds.EXAMPLES[name].model()
    adapter_kinds.save(model, tmp_path / "start")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        adapter_kinds.move(model, 0.1)
    with adapter_kinds.quiet():
        model.save_pretrained(str(tmp_path / "plain"), path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    found = as_parameters(read_adapter(tmp_path / "plain").weights, base)
    for key, change in adapter_kinds.change_of_everything(model, base).items():
        torch.testing.assert_close(found[key].float(), change, atol=5e-6, rtol=1e-3)


def test_a_start_of_another_adapter_is_refused(tmp_path):
    model = adapter_kinds.make("pissa")
    adapter_kinds.save(adapter_kinds.make("embedding"), tmp_path)
    with pytest.raises(DirectionsMismatch, match="start must be the same adapter before training, found other weights"):
        tp.parameter_directions(model, start=tmp_path)


def test_a_configuration_that_does_not_fit_its_tensors_is_refused(tmp_path):
    import json

    adapter_kinds.save(adapter_kinds.make("lora"), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 8}))
    with pytest.raises(DirectionsError, match=r"is damaged: its configuration gives .* rank 8, its tensors are \[4, "):
        tp.parameter_directions(tmp_path)


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture_reads_what_peft_adds(name):
    """All linear layers of every family, fused experts one by one: in float64 and to its rounding."""
    model = architectures.build(name, lora=True)
    if name == "qwen3_moe":
        model = adapter_kinds.make("experts").double()
    expected = adapter_kinds.dense(model)
    found = {held.place.weight: held for held in live_factors(model)}
    assert found.keys() == expected.keys()
    assert adapters_in(model) == ["default"]
    for weight, change in expected.items():
        held = found[weight]
        torch.testing.assert_close(held.scale * held.B @ held.A, change.double(), atol=1e-9, rtol=1e-9)
        assert held.norm() == pytest.approx(float(change.norm()), rel=1e-6)
        assert held.shape == tuple(change.shape)


def test_norm_of_a_difference_is_not_lost_to_rounding():
    """`BA − B₀A₀` of factors that hardly moved: its norm by the factors is that of the dense float64 difference."""
    generator = torch.Generator().manual_seed(0)
    A0, B0 = torch.randn(4, 30, generator=generator), torch.randn(20, 4, generator=generator)
    A, B = A0 + 1e-5 * torch.randn(4, 30, generator=generator), B0 + 1e-5 * torch.randn(20, 4, generator=generator)
    change = LoraFactors(A, B, 2.0).minus(LoraFactors(A0, B0, 2.0))
    assert change.norm() == pytest.approx(
        float(2 * (B.double() @ A.double() - B0.double() @ A0.double()).norm()), rel=1e-3
    )
    assert LoraFactors(A, B, 2.0).minus(LoraFactors(A, B, 2.0)).norm() == 0
    other = LoraFactors(A, B, 2.0).minus(LoraFactors(A0[:2], B0[:, :2], 3.0))
    dense = 2 * B.double() @ A.double() - 3 * B0[:, :2].double() @ A0[:2].double()
    torch.testing.assert_close(2 * other.B.double() @ other.A.double(), dense, atol=1e-5, rtol=1e-5)


def test_an_untrained_embedding_holds_no_direction():
    model = adapter_kinds.make("embedding", fresh=True)  # A is zero there and B is not
    with pytest.raises(DirectionsError, match="found zero at all 9 weights"):
        tp.parameter_directions(model)


def test_a_difference_of_models_takes_models_without_any_adapter():
    with pytest.raises(DirectionsError, match="the adapter has .*ia3 at"):
        tp.parameter_directions(adapter_kinds.make("ia3"), minus=tiny.model())
