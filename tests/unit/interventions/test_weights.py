"""Safe LoRA and shrinkage against dense oracles; both are given back bit for bit."""

import pytest
import torch
from torch.optim import AdamW

import tiny
import tropism as tp
from naive_constraint import delta_weights, dense_direction, lora, train, trainable
from tropism.errors import AttachError, UsageError
from tropism.interventions.weights import SafeLoRA, Shrinkage, learned_norm


def trained(seed):
    model = lora(seed=seed)
    train(model, AdamW(trainable(model), lr=1e-2), steps=4, seed=seed)
    return model


@pytest.fixture(scope="module")
def u():
    return tp.parameter_directions(trained(1))


@pytest.mark.parametrize("exact", [True, False])
def test_safe_lora_equals_the_dense_oracle_and_is_given_back(u, exact):
    model = trained(2)
    start = delta_weights(model)
    cosines, expected = {}, {}
    for name, V in dense_direction(u).items():
        C = V @ torch.linalg.pinv(V, rtol=1e-8) if exact else V @ V.T / V.norm()
        CW = C @ start[name]
        cosines[name], expected[name] = float((CW * start[name]).sum() / CW.norm() / start[name].norm()), CW
    threshold = sorted(cosines.values())[4] - 1e-9  # four weights below, four not
    before = [p.detach().clone() for p in model.parameters()]
    with SafeLoRA(u, threshold=threshold, exact=exact).attach(model) as attachment:
        for name, now in delta_weights(model).items():
            want = expected[name] if cosines[name] < threshold else start[name]
            torch.testing.assert_close(now, want, atol=1e-8, rtol=1e-5)
        assert attachment.readings() == {"guard/safe_lora/share_projected": 0.5}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_safe_lora_leaves_what_was_learned_in_the_direction_itself(u):
    """The direction's own adapter lies in the direction's column space, so the exact projection keeps it."""
    model = trained(1)
    start = delta_weights(model)
    with SafeLoRA(u, threshold=1.0, exact=True).attach(model):
        for name, now in delta_weights(model).items():
            torch.testing.assert_close(now, start[name], atol=1e-7, rtol=1e-4)


def test_shrinkage_to_a_norm_and_by_a_factor(u):
    model = trained(2)
    start, norm = delta_weights(model), learned_norm(model)
    assert norm == pytest.approx(float(torch.stack([w.norm() for w in start.values()]).norm()))
    for guard, factor in (
        (Shrinkage(norm=norm / 4), 0.25),
        (Shrinkage(factor=0.5), 0.5),
        (Shrinkage(factor=0.0), 0.0),
    ):
        with guard.attach(model) as attachment:
            for name, now in delta_weights(model).items():
                torch.testing.assert_close(now, factor * start[name], atol=1e-9, rtol=1e-5)
            assert attachment.readings() == {"guard/shrinkage/share_kept": pytest.approx(factor)}
        for name, now in delta_weights(model).items():
            assert torch.equal(now, start[name])


def test_an_edited_adapter_is_kept_by_saving_it_while_attached(u, tmp_path):
    model = trained(2)
    with Shrinkage(factor=0.5).attach(model):
        model.save_pretrained(tmp_path)
    assert float(tp.parameter_directions(tmp_path).provenance["norms"][0]) == pytest.approx(learned_norm(model) / 2)


def test_bad_input_is_refused(u):
    with pytest.raises(UsageError, match="either factor or norm, found factor=None and norm=None"):
        Shrinkage()
    with pytest.raises(UsageError, match=r"factor must be in \[0, 1\], found 1.5"):
        Shrinkage(factor=1.5)
    with pytest.raises(UsageError, match="norm must be at least 0"):
        Shrinkage(norm=-1.0)
    with pytest.raises(UsageError, match=r"must be at most what was learned \(.*\), found 1e\+06"):
        Shrinkage(norm=1e6).attach(trained(2)).__enter__()
    with pytest.raises(UsageError, match=r"threshold is a cosine, in \[-1, 1\], found 3"):
        SafeLoRA(u, threshold=3.0)
    with pytest.raises(UsageError, match="one direction at each weight, found 2"):
        SafeLoRA(tp.parameter_directions([trained(1), trained(2)]))
    with pytest.raises(AttachError, match="has no active LoRA adapter"):
        Shrinkage(factor=0.5).attach(tiny.model()).__enter__()
    with pytest.raises(AttachError, match=r"unmatched are model.layers.0.mlp.down_proj"):
        SafeLoRA(u).attach(lora(targets=("q_proj", "v_proj", "up_proj"))).__enter__()
