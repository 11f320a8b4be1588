"""Parameter directions: read from adapters and weights, normalised, saved; never materialised."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.optim import AdamW

import tiny
import tropism as tp
from naive_constraint import delta_weights, dense_direction, dense_directions, lora, train, trainable
from tropism.errors import DirectionsError, DirectionsMismatch


def trained(seed, **options):
    model = lora(seed=seed, **options)
    train(model, AdamW(trainable(model), lr=1e-2), steps=4, seed=seed)
    return model


@pytest.fixture(scope="module")
def learned():
    return trained(1)


def unit(dense):
    length = torch.stack([d.norm() for d in dense.values()]).norm()
    return {name: d / length for name, d in dense.items()}


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **({"atol": 1e-7, "rtol": 1e-5} | tolerance))


def test_it_is_delta_w_normalised_over_all_weights(learned):
    u = tp.parameter_directions(learned)
    same(dense_direction(u), unit(delta_weights(learned)))
    assert u.norms().tolist() == pytest.approx([1.0])
    assert u.provenance["method"] == "adapter"


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}}]
)
def test_a_folder_reads_as_the_model_it_was_saved_from(tmp_path, options):
    model = trained(3, **options)
    model.save_pretrained(tmp_path)
    same(dense_direction(tp.parameter_directions(tmp_path)), dense_direction(tp.parameter_directions(model)))


def test_several_adapters_are_a_subspace_with_a_direction_each(learned):
    other = trained(2, rank=2)
    u = tp.parameter_directions([learned, other])
    dense = dense_directions(u)
    same({n: d[0] for n, d in dense.items()}, unit(delta_weights(learned)))
    same({n: d[1] for n, d in dense.items()}, unit(delta_weights(other)))


def test_the_difference_of_two_adapters(learned):
    other = trained(2, rank=2)
    u = tp.parameter_directions(learned, minus=other)
    theirs = delta_weights(other)
    same(
        dense_direction(u),
        unit({name: d - theirs[name] for name, d in delta_weights(learned).items()}),
        atol=1e-6,
    )
    assert u.provenance["method"] == "difference of adapters"


def test_adapters_of_other_modules_leave_a_direction_absent_there(learned):
    only_q = trained(2, targets=("q_proj",))
    dense = dense_directions(tp.parameter_directions([learned, only_q]))
    assert not dense["model.layers.0.mlp.up_proj"][1].any()
    assert dense["model.layers.0.self_attn.q_proj"][1].any()


def test_a_difference_of_weights_by_truncated_svd():
    base, aligned = tiny.model(seed=0, layers=2), tiny.model(seed=0, layers=2)
    generator = torch.Generator().manual_seed(0)
    expected = {}
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
        weight = aligned.get_submodule(name).weight
        with torch.no_grad():
            left, right = (
                torch.randn(weight.shape[0], 2, generator=generator),
                torch.randn(2, weight.shape[1], generator=generator),
            )
            weight.add_(left @ right)
        expected[name] = (left @ right).double()
    one = tp.parameter_directions(aligned, minus=base, rank=2, subspace=False)
    assert one.k == 1
    same(dense_direction(one), unit(expected), atol=1e-5, rtol=1e-3)
    basis = tp.parameter_directions(aligned, minus=base, rank=2)
    assert basis.k == 2
    for name, dense in dense_directions(basis).items():
        flat = dense.flatten(1) * 2**0.5  # length 1 over the two weights together
        torch.testing.assert_close(flat @ flat.T, torch.eye(2).double(), atol=1e-5, rtol=0)
        found = expected[name].flatten()
        torch.testing.assert_close(
            flat.T @ (flat @ found), found, atol=1e-4, rtol=1e-4
        )  # the difference lies in the span
    more = tp.parameter_directions(aligned, minus=base, rank=5)
    assert more.k == 2  # past the difference's own rank there is only rounding


def test_equal_models_have_no_difference():
    with pytest.raises(DirectionsError, match="equal linear weights, so there is no direction"):
        tp.parameter_directions(tiny.model(), minus=tiny.model())


def test_random_control_has_the_same_ranks_and_norms(learned):
    u = tp.parameter_directions([learned, trained(2, rank=2)])
    control = u.random_like(seed=3)
    assert control.norms().tolist() == pytest.approx(u.norms().tolist())
    for name in u.weights:
        assert control.factors[name].ranks == u.factors[name].ranks
        ours, theirs = dense_directions(u)[name], dense_directions(control)[name]
        assert theirs.flatten(1).norm(dim=1).tolist() == pytest.approx(ours.flatten(1).norm(dim=1).tolist())
        assert abs(float((ours[0] * theirs[0]).sum() / ours[0].norm() / theirs[0].norm())) < 0.3
    same(dense_directions(u.random_like(seed=3)), dense_directions(control))
    state = torch.get_rng_state()
    u.random_like(seed=4)
    assert torch.equal(state, torch.get_rng_state())


def test_save_and_load_return_the_same(learned, tmp_path):
    u = tp.parameter_directions([learned, trained(2, rank=2)])
    again = tp.ParameterDirections.load(u.save(tmp_path / "deep" / "u.safetensors"))
    assert again.weights == u.weights
    assert again.provenance == json.loads(json.dumps(dict(u.provenance)))
    assert torch.equal(again.combination, u.combination)
    for name in u.weights:
        assert torch.equal(again.factors[name].A, u.factors[name].A)
        assert again.factors[name].ranks == u.factors[name].ranks
        assert again.factors[name].scales == u.factors[name].scales


# --- bad input ---


def test_an_untrained_adapter_holds_no_direction():
    with pytest.raises(
        DirectionsError, match="found zero at all 8 weights; an adapter that was never trained has B = 0"
    ):
        tp.parameter_directions(lora())


def test_a_weight_that_did_not_move_is_left_out_and_named(learned):
    model = copy.deepcopy(learned)
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.zero_()
    u = tp.parameter_directions(model)
    assert u.provenance["untouched_weights"] == ["model.layers.0.self_attn.q_proj"]
    assert "model.layers.0.self_attn.q_proj" not in u.weights


def test_directions_that_are_not_finite_are_refused():
    bad = {"proj": (torch.full((4, 1), torch.nan), torch.ones(1, 4))}
    with pytest.raises(DirectionsError, match="parameter direction at proj must be finite"):
        tp.ParameterDirections.of_factors(bad)


def test_adapters_of_different_bases_or_shapes_are_refused(learned, tmp_path):
    for folder, base in (("a", "org/one"), ("b", "org/two")):
        learned.save_pretrained(tmp_path / folder)
        file = tmp_path / folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(DirectionsMismatch, match="must share their base model, found org/one, org/two"):
        tp.parameter_directions([tmp_path / "a", tmp_path / "b"])
    wide = {"model.layers.0.self_attn.q_proj": (torch.randn(8, 2), torch.randn(2, 8))}
    with pytest.raises(DirectionsError, match="do not fit factors"):
        tp.ParameterDirections(tp.ParameterDirections.of_factors(wide).factors, torch.ones(1, 2))


def test_files_that_are_no_adapter_are_refused_by_name(tmp_path, learned):
    with pytest.raises(DirectionsError, match=r"is not an adapter that can be read: adapter_config.json is missing"):
        tp.parameter_directions(tmp_path)
    learned.save_pretrained(tmp_path / "run" / "adapter")
    with pytest.raises(DirectionsError, match=r"is a run's folder; its adapter is in .*adapter, give that"):
        tp.parameter_directions(tmp_path / "run")
    learned.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "LOHA"}))
    with pytest.raises(
        DirectionsError,
        match=r"the adapter has LOHA, and cannot be read as what was learned: what it changes is not s·B·A",
    ):
        tp.parameter_directions(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DirectionsError, match="is damaged"):
        tp.parameter_directions(tmp_path)
    with pytest.raises(DirectionsError, match="is not a safetensors file"):
        tp.ParameterDirections.load(tmp_path / "adapter_model.safetensors")
    with pytest.raises(DirectionsError, match="no parameter directions file at"):
        tp.ParameterDirections.load(tmp_path / "absent.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DirectionsError, match=r"holds no parameter directions \(format None"):
        tp.ParameterDirections.load(tmp_path / "other.safetensors")


def test_a_model_without_lora_and_several_active_adapters_are_refused(learned):
    with pytest.raises(DirectionsError, match="has no LoRA layers"):
        tp.parameter_directions(tiny.model())
    model = copy.deepcopy(learned)
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(DirectionsError, match="has the active adapters default, second; name one"):
        tp.parameter_directions(model)
    same(dense_direction(tp.parameter_directions(model, adapter_name="default")), unit(delta_weights(learned)))
    with pytest.raises(DirectionsError, match="has no adapter 'third', it has default, second"):
        tp.parameter_directions(model, adapter_name="third")


def test_provenance_holds_no_machine_path(learned, tmp_path):
    learned.save_pretrained(tmp_path / "mine")
    config = tmp_path / "mine" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/home/me/SmolLM2"}))
    u = tp.parameter_directions(tmp_path / "mine")
    assert u.base_model == "SmolLM2"
    assert str(tmp_path) not in json.dumps(dict(u.provenance))
