"""Every foreign format from a fixture written by hand in that format, and what is refused before it is read."""

import os
import pickle
import re
import struct
import zipfile

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import tiny
import tropism as tp
from tropism.directions.foreign import Reading, import_directions
from tropism.errors import DirectionsError, ModelError

D, L = 8, 4


def rows(k, seed=0):
    return torch.randn((k, D), generator=torch.Generator().manual_seed(seed))


def load(path, **reading):
    return import_directions(path, width=D, layers=L, reading=Reading(**reading))


@pytest.mark.parametrize("transposed", [False, True])
def test_caft_components(tmp_path, transposed):
    components = rows(3)
    file = tmp_path / "pca_components_layer_2.npy"
    np.save(file, components.T.numpy() if transposed else components.numpy())
    found = load(file)
    assert found.format == "CAFT components (.npy)"
    assert found.notes == ("layer 2 is from the file's name",)
    torch.testing.assert_close(found.directions.vectors[tp.Site(2)], components)


def test_a_lone_matrix_needs_a_layer(tmp_path):
    file = tmp_path / "components.npy"
    np.save(file, rows(3).numpy())
    with pytest.raises(DirectionsError, match=r"does not say which layer it belongs to .*--layer"):
        load(file)
    assert load(file, layer=1).directions.sites == (tp.Site(1),)


def test_persona_vectors_are_shifted_by_one(tmp_path):
    vectors = rows(L + 1)
    file = tmp_path / "evil_response_avg_diff.pt"
    torch.save(vectors, file)
    found = load(file)
    assert found.format.startswith("persona vectors")
    assert found.directions.sites == tuple(tp.Site(i) for i in range(L - 1))
    for index in range(1, L):
        torch.testing.assert_close(found.directions.vectors[tp.Site(index - 1)][0], vectors[index])
    assert any("left out: row 0 (the embeddings) and the last row" in note for note in found.notes)


def test_persona_vectors_shift_is_that_of_hidden_states(model, tokenizer, tmp_path):
    """A difference taken from `hidden_states` by its own index is the direction that we find at the imported site."""
    contrast = tp.Contrast.of_responses(["a", "b"], positive=["LOUD", "NOISE"], negative=["quiet", "calm"])
    states = []
    for chats in (contrast.positive, contrast.negative):
        per_chat = []
        for chat in chats:
            rendered = tp.render(tokenizer, chat)
            with torch.no_grad():
                out = model(input_ids=torch.tensor([rendered.input_ids]), output_hidden_states=True).hidden_states
            per_chat.append(torch.stack([h[0, rendered.positions["response"]].mean(0) for h in out]))
        states.append(torch.stack(per_chat).mean(0))
    file = tmp_path / "loud.pt"
    torch.save(states[0] - states[1], file)
    imported = import_directions(file, width=32, layers=4).directions
    own = tp.find_directions(model, tokenizer, contrast, sites=list(imported.sites))
    for site in imported.sites:
        torch.testing.assert_close(imported.vectors[site], own.vectors[site], atol=1e-5, rtol=1e-4)


def _mamba():
    config = transformers.MambaConfig(vocab_size=64, hidden_size=D, state_size=4, num_hidden_layers=L)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def _llama():
    return tiny.model(layers=L).eval()


@pytest.mark.parametrize(("make", "blocks"), [(_mamba, range(L)), (_llama, range(L - 1))], ids=["mamba", "llama"])
def test_rows_of_hidden_states_land_on_the_blocks_that_made_them(tmp_path, make, blocks):
    """Mamba's `hidden_states` leave the embeddings out, so that entry l is behind block l and not behind block l - 1."""
    model = make()
    ids = torch.tensor([[5, 9, 12, 7]])
    with torch.no_grad(), tp.capture(model, [tp.Site(layer) for layer in blocks]) as acts:
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    width = states[0].shape[-1]
    rows = torch.stack([state[0].mean(0) for state in states])
    assert len(rows) == L + 1
    file = tmp_path / "persona.pt"
    torch.save(rows, file)
    by_number = dict(enumerate(rows))
    for source, reading in ((file, Reading()), (by_number, Reading(indexing="hidden_states"))):
        found = import_directions(source, width=width, layers=L, reading=reading, config=model.config).directions
        assert found.sites == tuple(tp.Site(layer) for layer in blocks)
        for site in found.sites:
            torch.testing.assert_close(found.vectors[site][0], acts[site][0].mean(0))


def test_where_hidden_states_cannot_be_told_it_is_said(tmp_path):
    """RWKV halves the stream between blocks: what a block returns is in none of its hidden states."""
    file = tmp_path / "persona.pt"
    torch.save(rows(L + 1), file)
    config = transformers.RwkvConfig(
        vocab_size=64, hidden_size=D, num_hidden_layers=L, attention_hidden_size=D, rescale_every=1, use_cache=False
    )
    with pytest.raises(
        ModelError, match=r"hidden_states is which block's output could not be told .*--indexing blocks"
    ):
        import_directions(file, width=D, layers=L, config=config)


def test_one_row_a_block_is_not_shifted(tmp_path):
    file = tmp_path / "vectors.pt"
    torch.save(rows(L), file)
    assert load(file).directions.sites == tuple(tp.Site(i) for i in range(L))


@pytest.mark.parametrize("keys", [int, np.int64, str])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_caft_s_own_pca_output_is_numpy_arrays_by_layer(tmp_path, keys, dtype):
    held = {layer: rows(3, layer).numpy().astype(dtype) for layer in (1, 3)}
    file = tmp_path / "qwen-lmsys-responses.pt"
    torch.save({keys(layer): value for layer, value in held.items()}, file)
    found = load(file)
    for layer, value in held.items():
        torch.testing.assert_close(found.directions.vectors[tp.Site(layer)], torch.from_numpy(value).float())


def test_caft_s_output_of_numpy_1_is_read_too(tmp_path):
    """NumPy 1 called its module `numpy.core`; the published files are of it."""
    file = tmp_path / "old.pt"
    torch.save({1: rows(3).numpy()}, file)
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    old = {name: value.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") for name, value in parts.items()}
    assert old != parts
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as whole:
        for name, value in old.items():
            whole.writestr(name, value)
    torch.testing.assert_close(load(file).directions.vectors[tp.Site(1)], rows(3))


def test_an_array_of_objects_in_a_pt_is_refused(tmp_path):
    proof, file = tmp_path / "executed", tmp_path / "evil.pt"
    for value in (np.array([Bomb(proof)], dtype=object), np.array([None], dtype=object), np.zeros(2, dtype="f4,f8")):
        torch.save({1: value}, file)
        with pytest.raises(DirectionsError, match="holds more than tensors, or is damaged"):
            load(file)
    assert not proof.exists()


def test_the_one_entry_with_directions_needs_no_key(tmp_path):
    """The mean differences of backward CAFT, as published: directions, their norms and a config."""
    held = {layer: rows(1, layer)[0] for layer in (1, 3)}
    file = tmp_path / "meandiff.pt"
    norms = {layer: float(vector.norm()) for layer, vector in held.items()}
    torch.save({"directions": held, "norms": norms, "config": {"mode": "two_models", "layers": [1, 3]}}, file)
    found = load(file)
    assert found.directions.sites == (tp.Site(1), tp.Site(3))
    assert found.notes == ("from the entry 'directions'",)
    torch.save({"directions": held, "others": held}, file)
    with pytest.raises(DirectionsError, match=r"holds directions, others; say which with Reading.key"):
        load(file)
    nested = {1: {"components": rows(2), "explained_variance": torch.ones(2)}}
    assert load(nested).notes == ("each layer's entry 'components'",)


def test_a_file_for_each_layer_is_one_set_of_directions(tmp_path):
    files = []
    for layer in (1, 3):
        files.append(tmp_path / f"components_layer_{layer}.npy")
        np.save(files[-1], rows(3, layer).numpy())
    found = load(files, components={1: (0, 2), 3: (1,)})
    assert torch.equal(found.directions.vectors[tp.Site(1)], rows(3, 1)[[0, 2]])
    assert torch.equal(found.directions.vectors[tp.Site(3)], rows(3, 3)[[1]])
    assert found.directions.provenance["imported"]["file"] == [file.name for file in files]
    assert found.directions.provenance["components"] == {"1": [0, 2], "3": [1]}
    with pytest.raises(DirectionsError, match="two files hold directions at resid_post.1; name one of them"):
        load([files[0], files[0]])


def test_components_are_chosen_of_every_format(tmp_path):
    own = tp.Directions({tp.Site(1): rows(3)}).save(tmp_path / "own.safetensors")
    for source in (own, {1: rows(3)}, {1: rows(3).T.contiguous()}):
        assert torch.equal(load(source, components=(2, 0)).directions.vectors[tp.Site(1)], rows(3)[[2, 0]])


def test_an_sae_gives_the_decoder_rows_of_its_latents(tmp_path):
    W_dec = torch.nn.functional.normalize(torch.randn(20, D), dim=1)
    file = tmp_path / "ae.pt"
    torch.save(
        {"decoder.weight": W_dec.T, "encoder.weight": W_dec, "encoder.bias": torch.ones(20), "bias": torch.ones(D)},
        file,
    )
    with pytest.raises(
        DirectionsError, match=r"is an SAE of 20 latents; say which with Reading.components \(--components"
    ):
        load(file)
    with pytest.raises(DirectionsError, match="does not say which block the SAE belongs to"):
        load(file, components=(3, 17))
    (tmp_path / "config.json").write_text('{"trainer": {"layer": 2, "k": 4}}')
    found = load(file, components=(3, 17))
    torch.testing.assert_close(found.directions.vectors[tp.Site(2)], W_dec[[3, 17]])
    assert found.directions.provenance["components"] == [3, 17]
    assert load(file, components={2: (5,)}, layer=2).directions.vectors[tp.Site(2)].shape == (1, D)
    with pytest.raises(DirectionsError, match="there is no number 20; the 20 directions are 0 to 19"):
        load(file, components=(20,))


def test_lora_factors_are_sent_to_the_parameter_directions():
    with pytest.raises(
        DirectionsError, match="these are directions in weight space; name the file under 'parameter_directions"
    ):
        load({"base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight": rows(2)})


@pytest.mark.parametrize("transposed", [False, True])
def test_backward_caft_dictionaries(tmp_path, transposed):
    file = tmp_path / "directions.pt"
    held = {layer: rows(3, layer) for layer in (1, 3)}
    torch.save({layer: value.T.contiguous() if transposed else value for layer, value in held.items()}, file)
    found = load(file)
    for layer, value in held.items():
        torch.testing.assert_close(found.directions.vectors[tp.Site(layer)], value)


def test_repeng_control_vectors(tmp_path):
    file = tmp_path / "vector.gguf"
    writer = gguf.GGUFWriter(file, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 2)
    held = {layer: rows(1, layer)[0] for layer in (1, 3)}
    for layer, vector in held.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load(file)
    assert "repeng" in found.format
    for layer, vector in held.items():
        torch.testing.assert_close(found.directions.vectors[tp.Site(layer)][0], vector)


def test_a_gguf_by_the_bytes(tmp_path):
    """Header, one key, one tensor: written without the library that reads it."""
    vector = rows(1)[0]

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    header += text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
    header += text("direction.2") + struct.pack("<IQIQ", 1, D, 0, 0)
    header += b"\0" * (-len(header) % 32)
    file = tmp_path / "hand.gguf"
    file.write_bytes(header + vector.numpy().tobytes())
    torch.testing.assert_close(load(file).directions.vectors[tp.Site(2)][0], vector)


@pytest.mark.parametrize(
    "key",
    [2, "2", "layer_2", "layer.2", "L2", "model.layers.2", "blocks.2.hook_resid_post", "resid_post.2", tp.Site(2)],
)
def test_plain_dictionaries(key):
    assert load({key: rows(2)}).directions.sites == (tp.Site(2),)


def test_safetensors_of_layers(tmp_path):
    file = tmp_path / "vectors.safetensors"
    save_file({"layer_0": rows(1), "layer_2": rows(2)}, file)
    assert load(file).directions.sites == (tp.Site(0), tp.Site(2))


def test_our_own_file_is_recognised(tmp_path):
    file = tp.Directions({tp.Site(1): rows(2)}).save(tmp_path / "own.safetensors")
    found = load(file)
    assert found.format == "Tropism directions"
    torch.testing.assert_close(found.directions.vectors[tp.Site(1)], rows(2))


def test_nested_once_outside():
    found = load({"directions": {1: rows(1), 2: rows(1)}, "name": "evil"})
    assert found.directions.sites == (tp.Site(1), tp.Site(2))
    assert found.notes == ("from the entry 'directions'",)


def test_nested_once_inside():
    held = {1: {"components": rows(2), "mean": rows(1)}, 2: {"components": rows(2), "mean": rows(1)}}
    with pytest.raises(DirectionsError, match=r"holds components, mean; say which with Reading.key \(--key\)"):
        load(held)
    assert load(held, key="components").directions.vectors[tp.Site(1)].shape == (2, D)
    with pytest.raises(DirectionsError, match=r"must be one of components, mean, found 'other'"):
        load(held, key="other")


def test_what_is_left_out_is_said():
    found = load({1: rows(1), "trait": "evil", 2: rows(1)})
    assert found.notes == ("left out, as no tensor of a layer: 'trait'",)


def test_a_square_matrix_is_asked_about():
    square = rows(D)
    with pytest.raises(
        DirectionsError, match=r"square matrix \[8, 8\].*Reading.orientation='rows' or 'columns' \(--orientation\)"
    ):
        load({1: square})
    torch.testing.assert_close(load({1: square}, orientation="rows").directions.vectors[tp.Site(1)], square)
    torch.testing.assert_close(load({1: square}, orientation="columns").directions.vectors[tp.Site(1)], square.T)


def test_layers_past_the_end_hint_at_hidden_states():
    held = {layer: rows(1, layer) for layer in range(L + 1)}
    with pytest.raises(
        DirectionsError, match=r"layer 4 is past the last block: the model has blocks 0 to 3.*--indexing hidden_states"
    ):
        load(held)
    found = load(held, indexing="hidden_states")
    assert found.directions.sites == (tp.Site(0), tp.Site(1), tp.Site(2))
    torch.testing.assert_close(found.directions.vectors[tp.Site(0)], held[1])
    assert sum("left out" in note for note in found.notes) == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "found dict with nothing in it"),
        ({"a": 1}, "no key of the dictionary names a layer"),
        (
            {1: torch.ones(3, 5)},
            r"must be \[d\], \[k, d\] or \[d, k\] with d = 8.*found \[3, 5\]: they belong to another model",
        ),
        ({1: rows(2), "1": rows(2)}, "two entries of the dictionary are of layer 1"),
        ({1: {"a": rows(1)}, 2: {"b": rows(1)}}, "holds a, b; say which"),
        ({1: torch.zeros(2, D)}, "found a zero vector in row 0"),
        ({1: torch.full((2, D), float("nan"))}, "must be finite"),
    ],
)
def test_bad_dictionaries_are_refused(value, message):
    with pytest.raises(DirectionsError, match=message):
        load(value)


class Bomb:
    """Unpickling this creates a file: real code in a real pickle."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("how", ["torch.save", "pickle.dump"])
def test_a_pickle_with_code_is_never_executed(tmp_path, suffix, how):
    proof, file = tmp_path / "executed", tmp_path / f"evil{suffix}"
    if how == "torch.save":
        torch.save({1: rows(1), "x": Bomb(proof)}, file)
    else:
        file.write_bytes(pickle.dumps({1: Bomb(proof)}))
    with pytest.raises(DirectionsError, match="holds more than tensors, or is damaged, and was not read"):
        load(file)
    assert not proof.exists()
    # The bomb is real: ordinary unpickling sets it off.
    torch.load(file, weights_only=False) if how == "torch.save" else pickle.loads(file.read_bytes())
    assert proof.exists()


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    proof, file = tmp_path / "executed", tmp_path / "layer_1.npy"
    np.save(file, np.array([Bomb(proof)], dtype=object), allow_pickle=True)
    with pytest.raises(DirectionsError, match="a .npy that needs pickle can run code and is never read"):
        load(file)
    assert not proof.exists()
    np.load(file, allow_pickle=True)
    assert proof.exists()


@pytest.mark.parametrize("name", ["a.npy", "a.pt", "a.gguf", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"GGUF\x03\0\0\0", b"\x80\x04K\x01."])
def test_damaged_files_are_refused_in_a_sentence(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DirectionsError, match=re.escape(name) + "|expected a tensor"):
        load(file)


def test_unknown_and_absent_files(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("1,2")
    with pytest.raises(DirectionsError, match=r"come as .safetensors, .npy, .pt or .gguf, found '.csv'"):
        load(file)
    with pytest.raises(DirectionsError, match="no directions file at"):
        load(tmp_path / "absent.pt")
