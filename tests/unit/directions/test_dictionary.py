"""SAEs of dictionary_learning: their latents against a naive reading, and where they belong."""

import json

import pytest
import torch

import tropism as tp
from tropism.directions.dictionary import read_dictionary, site_of_file
from tropism.directions.sae import load_dictionary
from tropism.errors import DirectionsError

D, S = 6, 10
G = torch.Generator().manual_seed(0)
W_ENC, W_DEC = torch.randn(D, S, generator=G), torch.nn.functional.normalize(torch.randn(S, D, generator=G), dim=1)
B_ENC, B_DEC = torch.randn(S, generator=G), torch.randn(D, generator=G)
LINEAR = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T}
MATRICES = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC}
H = torch.randn(7, D, generator=G)
THRESHOLD = torch.rand(S, generator=G)


def written(folder, tensors, layer=12, **trainer):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    if layer is not None:
        (folder / "config.json").write_text(json.dumps({"trainer": {"layer": layer, **trainer}}))
    return folder


def naive(h, kind):
    """One token at a time, as the classes of dictionary_learning are documented."""
    pre = [sum(float(W_ENC[i, j]) * (float(h[i]) - (0 if kind == "jump" else float(B_DEC[i]))) for i in range(D))
           + float(B_ENC[j]) for j in range(S)]  # fmt: skip
    z = [max(0.0, x) for x in pre]
    if kind == "jump":
        return [x if x > float(THRESHOLD[j]) else 0.0 for j, x in enumerate(z)]
    if kind == "batch":
        return [x if x > 0.5 else 0.0 for x in z]
    if kind == "top":
        kept = sorted(range(S), key=lambda j: -z[j])[:3]
        return [x if j in kept else 0.0 for j, x in enumerate(z)]
    return z


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({**LINEAR, "bias": B_DEC}, "plain"),
        ({**LINEAR, "b_dec": B_DEC, "k": torch.tensor(3)}, "top"),
        ({**LINEAR, "b_dec": B_DEC, "k": torch.tensor(3), "threshold": torch.tensor(-1.0)}, "top"),
        ({**LINEAR, "b_dec": B_DEC, "k": torch.tensor(3), "threshold": torch.tensor(0.5)}, "batch"),
        ({**MATRICES, "k": torch.tensor(3), "threshold": torch.tensor(0.5)}, "batch"),
        ({**MATRICES, "threshold": THRESHOLD}, "jump"),
    ],
)
def test_latents_are_those_of_the_class(tmp_path, tensors, kind):
    sae = read_dictionary(written(tmp_path, tensors))
    torch.testing.assert_close(sae.encode(H), torch.tensor([naive(h, kind) for h in H]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.W_dec, W_DEC)
    torch.testing.assert_close(sae.W_enc, W_ENC)
    assert sae.site == tp.Site(12)


def test_the_finder_reads_it_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sae_lens", None)
    folder = written(tmp_path, {**LINEAR, "bias": B_DEC})
    assert torch.equal(load_dictionary(str(folder), None, None).W_dec, W_DEC)
    assert torch.equal(load_dictionary(str(folder / "ae.pt"), None, None).W_dec, W_DEC)


def test_where_it_belongs(tmp_path):
    file = written(tmp_path / "resid_post_layer_7" / "trainer_1", LINEAR, layer=None) / "ae.pt"
    assert site_of_file(file) == tp.Site(7)
    assert site_of_file(written(tmp_path / "x", LINEAR, 3, submodule_name="resid_post_layer_3") / "ae.pt") == tp.Site(3)
    assert site_of_file(written(tmp_path / "x", LINEAR, 3, submodule_name="mlp_out_layer_3") / "ae.pt") == tp.Site(
        3, "mlp_out"
    )
    assert site_of_file(written(tmp_path / "x", LINEAR, 3, submodule_name="elsewhere") / "ae.pt") is None
    assert site_of_file(written(tmp_path / "y", LINEAR, layer=None) / "ae.pt") is None
    (tmp_path / "x" / "config.json").write_text("{}")
    with pytest.raises(DirectionsError, match=r"config.json: it must name the layer of the SAE under trainer.layer"):
        site_of_file(tmp_path / "x" / "ae.pt")


def test_other_classes_are_refused_by_name(tmp_path):
    gated = {**LINEAR, "decoder_bias": B_DEC, "r_mag": B_ENC, "gate_bias": B_ENC, "mag_bias": B_ENC}
    with pytest.raises(DirectionsError, match=r"of a class whose latents are not read here \(gate_bias\)"):
        read_dictionary(written(tmp_path, gated))
    with pytest.raises(DirectionsError, match="holds no sparse autoencoder"):
        read_dictionary(written(tmp_path, {"x": W_ENC}))
