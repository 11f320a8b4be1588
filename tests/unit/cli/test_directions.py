"""`tropism directions` on a tiny model saved to a folder: files out, plain words out, exit codes."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

import row_files
import tiny
import tropism as tp
from tropism.cli.directions import directions_app
from tropism.errors import DirectionsError, DirectionsMismatch, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, an adapter for it, and contrast files."""
    root = tmp_path_factory.mktemp("cli")
    model = tiny.model(layers=4)
    model.save_pretrained(root / "model")
    tiny.tokenizer().save_pretrained(root / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    tuned.save_pretrained(root / "adapter")
    rows = [{"prompt": f"Say {i}.", "positive": f"LOUD NOISE {i}", "negative": f"quiet word {i}"} for i in range(40)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"prompt": f"Tell {i}.", "positive": f"LOUD NOISE {i}", "negative": f"quiet word {i}"} for i in range(20)]
    (root / "held.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [{"prompt": f"Say {i}.", "completion": f"it is {i}"} for i in range(40)]
    (root / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return root


def run(*arguments, fails=None):
    """Invoke the group; a user's mistake comes out as the exception that `main` turns into a sentence."""
    outcome = CliRunner().invoke(directions_app, [str(a) for a in arguments])
    if fails is not None:
        assert isinstance(outcome.exception, fails), outcome.output
        return str(outcome.exception)
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return " ".join(outcome.output.split())


@pytest.fixture(scope="module")
def found(folder):
    out = folder / "loud.safetensors"
    said = run(
        "find", "--model", folder / "model", "--contrast", folder / "pairs.jsonl", "--out", out, "--sites", "1,2"
    )
    return out, said


def test_find_writes_directions_and_their_evidence(found):
    out, said = found
    directions = tp.Directions.load(out)
    assert directions.sites == (tp.Site(1), tp.Site(2))
    assert directions.provenance["contrast"]["positive"] == 30
    assert directions.provenance["model"]["name"] == "model"
    report = json.loads(out.with_suffix(".validity.json").read_text())
    assert report["held_out"]["positive"] == 10
    assert "tells 100% of held-out pairs apart" in said
    assert "loud.validity.json" in said


def test_show_says_what_a_file_holds(found):
    said = run("show", found[0])
    assert "mean_difference on 30 positive and 30 negative chats (responses), positions response" in said
    assert "resid_post.1, resid_post.2" in said
    assert "AUC" in said


@pytest.mark.parametrize("finder", [("pca", "--k", "3"), ("logistic_probe",)])
def test_validate_compares_finders(folder, found, finder):
    other = folder / f"{finder[0]}.safetensors"
    run(
        "find",
        "--model",
        folder / "model",
        "--contrast",
        folder / "pairs.jsonl",
        "--out",
        other,
        "--sites",
        "2",
        "--finder",
        *finder,
    )
    said = run(
        "validate",
        found[0],
        "--model",
        folder / "model",
        "--contrast",
        folder / "held.jsonl",
        "--against",
        other,
        "--score",
        "uppercase_fraction",
    )
    assert f"degrees to {finder[0]}" in said
    assert "r: correlation with uppercase_fraction on" in said
    report = json.loads(found[0].with_suffix(".validity.json").read_text())
    assert list(report["sites"][1]["angles"]) == [finder[0]]


def test_strict_refuses_noise(folder, found):
    noise = folder / "noise.safetensors"
    directions = tp.Directions.load(found[0])
    tp.Directions({s: -v for s, v in directions.vectors.items()}, directions.provenance).save(noise)
    arguments = ("validate", noise, "--model", folder / "model", "--contrast", folder / "held.jsonl")
    assert "grave doubt: resid_post.1: the negative side projects higher" in run(*arguments)
    assert "the evidence for directions 'noise' is too weak" in run(*arguments, "--strict", fails=DirectionsError)


def test_an_adapter_makes_a_contrast(folder):
    out = folder / "tuned.safetensors"
    said = run(
        "find",
        "--model",
        folder / "model",
        "--tuned",
        folder / "adapter",
        "--chats",
        folder / "chats.jsonl",
        "--size",
        "24",
        "--out",
        out,
        "--sites",
        "3",
        "--score",
        "uppercase_fraction",
    )
    assert tp.Directions.load(out).provenance["contrast"]["kind"] == "models"
    assert "r: correlation with uppercase_fraction on" in said


def test_system_prompts_are_answered(folder):
    out = folder / "told.safetensors"
    run(
        "find",
        "--model",
        folder / "model",
        "--promote",
        "SHOUT",
        "--suppress",
        "whisper",
        "--chats",
        folder / "chats.jsonl",
        "--size",
        "8",
        "--out",
        out,
        "--sites",
        "2",
        "--held-out",
        "0.5",
    )
    assert tp.Directions.load(out).provenance["contrast"]["promote"] == "SHOUT"


def test_import_says_what_it_recognised(folder):
    file = folder / "vectors.pt"
    torch.save(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), file)
    said = run("import", file, "--model", folder / "model", "--out", folder / "imported.safetensors")
    assert "recognised as: persona vectors, [L + 1, d] (.pt)" in said
    assert "left out: row 0 (the embeddings)" in said
    imported = tp.Directions.load(folder / "imported.safetensors")
    assert imported.provenance["imported"]["file"] == "vectors.pt"
    imported.check_model(tiny.model(layers=4))
    np.save(folder / "c.npy", np.eye(32, dtype=np.float32))
    assert "--layer" in run("import", folder / "c.npy", "--model", folder / "model", fails=DirectionsError)
    assert "--orientation" in run(
        "import", folder / "c.npy", "--model", folder / "model", "--layer", "1", fails=DirectionsError
    )
    run("import", folder / "c.npy", "--model", folder / "model", "--layer", "1", "--orientation", "rows")
    assert tp.Directions.load(folder / "c.safetensors").vectors[tp.Site(1)].shape == (32, 32)


def test_import_takes_several_files_components_and_lora_factors(folder):
    for layer in (1, 2):
        rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(layer))
        np.save(folder / f"components_layer_{layer}.npy", rows.numpy())
    out = folder / "components.safetensors"
    files = [folder / f"components_layer_{layer}.npy" for layer in (1, 2)]
    choice = ("--components", "1:0,3", "--components", "2:5")
    run("import", *files, "--model", folder / "model", "--out", out, *choice)
    directions = tp.Directions.load(out)
    assert [len(rows) for rows in directions.vectors.values()] == [2, 1]
    torch.testing.assert_close(directions.vectors[tp.Site(1)][1], torch.from_numpy(np.load(files[0])[3]))
    factors = {
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight": torch.ones(2, 64),
        "base_model.model.model.layers.0.mlp.down_proj.lora_B.default.weight": torch.ones(32, 2),
    }
    torch.save(factors, folder / "refusal.pt")
    said = run("import", folder / "refusal.pt", "--model", folder / "model", "--out", folder / "refusal.safetensors")
    assert "LoRA factors by name (.pt), as the refusal study writes them" in said
    assert tp.ParameterDirections.load(folder / "refusal.safetensors").weights == ("model.layers.0.mlp.down_proj",)
    message = run(
        "import", folder / "refusal.pt", "--model", folder / "model", "--out", out, "--key", "x", fails=UsageError
    )
    assert message == "--key does nothing for LoRA factors by name, found 'x'; leave it out"


def test_a_contrast_may_be_any_file_with_any_columns_and_components_are_kept(folder):
    rows = [{"question": f"Say {i}.", "chosen": f"LOUD {i} NOISE", "rejected": f"quiet {i} word"} for i in range(16)]
    row_files.write(folder / "preferences.csv", rows)
    out = folder / "chosen.safetensors"
    run(
        "find", "--model", folder / "model", "--contrast", folder / "preferences.csv", "--out", out, "--sites", "1,2",
        "--columns", "positive=chosen", "--columns", "negative=rejected", "--finder", "pca", "--k", "4",
        "--components", "1,3", "--held-out", "0.5",
    )  # fmt: skip
    directions = tp.Directions.load(out)
    assert [tuple(rows.shape) for rows in directions.vectors.values()] == [(2, 32), (2, 32)]
    assert directions.provenance["components"] == [1, 3]


def test_a_file_for_another_model_is_refused_and_force_is_recorded(folder, found):
    other = tiny.model(layers=5)
    other.save_pretrained(folder / "other")
    tiny.tokenizer().save_pretrained(folder / "other")
    copy = folder / "copy.safetensors"
    copy.write_bytes(found[0].read_bytes())
    arguments = ("validate", copy, "--model", folder / "other", "--contrast", folder / "held.jsonl")
    assert "whose config hash" in run(*arguments, fails=DirectionsMismatch)
    run(*arguments, "--force")
    assert tp.Directions.load(copy).provenance["forced_onto"]["name"] == "other"
    assert "forced onto other" in run("show", copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "found none of them"),
        (("--contrast", "pairs.jsonl", "--promote", "x"), "found --contrast and --promote"),
        (("--promote", "x"), "--promote needs --chats SOURCE"),
        (("--promote", "x", "--chats", "chats.jsonl"), "--promote needs --suppress"),
        (("--contrast", "pairs.jsonl", "--size", "8"), "--size goes with --promote or --tuned"),
        (("--contrast", "pairs.jsonl", "--chats", "chats.jsonl"), "--chats goes with --promote or --tuned"),
        (
            ("--contrast", "pairs.jsonl", "--columns", "positive"),
            "--columns takes OURS=THEIRS, as in prompt=question, found 'positive'",
        ),
        (("--contrast", "pairs.jsonl", "--components", "a"), "--components takes numbers, as in 0,12"),
        (("--contrast", "pairs.jsonl", "--components", "0", "--components", "1:0"), "use one form or the other"),
        (("--contrast", "pairs.jsonl", "--k", "3"), "--k needs --finder pca or sae_latents"),
        (("--contrast", "pairs.jsonl", "--finder", "sae_latents"), "needs --sae FOLDER"),
        (("--contrast", "pairs.jsonl", "--sae", "x"), "--sae needs --finder sae_latents"),
        (
            ("--tuned", "nowhere", "--chats", "chats.jsonl"),
            "is neither a folder nor a hub name OWNER",
        ),
        (
            ("--contrast", "pairs.jsonl", "--score", "response_loss"),
            "--score must name a scorer that scores text by a rule",
        ),
    ],
)
def test_mistakes_are_one_sentence(folder, arguments, message, monkeypatch):
    monkeypatch.chdir(folder)
    assert message in run(
        "find", "--model", "./model", "--out", "x.safetensors", "--sites", "1", *arguments, fails=UsageError
    )


def test_the_name_of_the_output_is_checked(folder):
    message = run(
        "find", "--model", folder / "model", "--contrast", folder / "pairs.jsonl", "--out", "x.pt", fails=UsageError
    )
    assert message == "--out must end in .safetensors, found x.pt"


@pytest.mark.slow
def test_train_sae_reports_what_came_out(folder):
    pytest.importorskip("sae_lens")
    said = run(
        "train-sae",
        "--model",
        folder / "model",
        "--chats",
        folder / "chats.jsonl",
        "--site",
        "2",
        "--out",
        folder / "sae",
        "--k",
        "8",
        "--tokens",
        "20000",
    )
    assert "128 latents at resid_post.2: on held-out tokens they explain" in said
    assert "dead" in said
    run(
        "find",
        "--model",
        folder / "model",
        "--contrast",
        folder / "pairs.jsonl",
        "--out",
        folder / "latents.safetensors",
        "--finder",
        "sae_latents",
        "--sae",
        folder / "sae",
        "--k",
        "2",
    )
    assert tp.Directions.load(folder / "latents.safetensors").vectors[tp.Site(2)].shape == (2, 32)
