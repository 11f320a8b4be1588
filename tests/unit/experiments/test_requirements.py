"""What `run` would refuse for reasons that need no weights, `validate` refuses: one sentence, exit code 2."""

import json

import pytest
import torch
from transformers import DogeConfig, MambaConfig
from typer.testing import CliRunner

import tiny
import tiny_experiment
import tropism as tp
from tropism import models
from tropism.cli.app import app, main
from tropism.directions import provenance

CONTRAST = "contrast: {of: responses, source: word_problems, positive: uppercase, negative: plain, size: 12}"
JUDGED = ("  loss:", "  judged: {scorer: judge, prompt: '{question} {answer}', model: m, on: [held_out]}\n  loss:")


def directions(path, width=32, layer=1, **about):
    file = path / "theirs.safetensors"
    tp.Directions({tp.Site(layer): torch.eye(width)[:1]}, about).save(file)
    return (CONTRAST, f"file: {file}"), ("sites: 1,2", f"sites: '{layer}'")


def of_another_model(path):
    other = {**provenance.of_config(tiny.model(layers=3).config), "name": "another"}
    return directions(path, model=other)


def long_contrast(path):
    rows = [{"prompt": f"q {i}", "positive": "x" * 600, "negative": "y"} for i in range(8)]
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ((CONTRAST, f"contrast: {{of: responses, source: {path / 'pairs.jsonl'}}}"),)


def cannot_pack(path):
    config = DogeConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4
    )
    tiny.tokenizer().save_pretrained(path / "doge")
    config.save_pretrained(path / "doge")
    whole = (f"model: {path / 'model'}", f"model: {path / 'doge'}")
    return whole, ("lora: {r: 2}", "lora: {r: 2}, packing: true")


WRONG = {
    "another width": (lambda path: directions(path, width=16), "directions.caps: these directions are 16 wide and the model"),
    "another model": (of_another_model, "directions.caps: these directions were found on 'another', whose config hash"),
    "a block that is not there": (lambda _: (("sites: 1,2", "sites: '9'"),), "the model has blocks 0 to 3, found 9"),
    "a file that is not there": (lambda _: ((CONTRAST, "file: none.pt"),), "no such file: 'none.pt'"),
    "unpaired PCA": (
        lambda _: ((CONTRAST, "contrast: {of: data, positive: train, negative: held_out}\n    finder: {pca: {k: 2}}"),),
        "finder 'pca' takes differences of pairs, and two data sets have none; write {pca: {of: positive}}",
    ),
    "a contrast beyond the context": (long_contrast, "directions.caps: 8 of 16 chats of its contrast are longer than"),
    "no key": (lambda _: (JUDGED,), "measure.judged: the judge 'm' at OpenAI needs a key; set the environment variable"),
    "no such tracker": (lambda _: (("lora: {r: 2}", "lora: {r: 2}, report_to: [wanb]"),), "must name trackers that Trainer"),
    "a tracker that is not installed": (
        lambda _: (("lora: {r: 2}", "lora: {r: 2}, report_to: [clearml]"),),
        "conditions.plain: train.report_to names 'clearml', which is not installed: pip install clearml",
    ),
    "a module that is not there": (
        lambda _: (("lora: {r: 2}", "lora: {r: 2, target_modules: [q_proj, fake_proj]}"),),
        "conditions.plain.train.lora.target_modules: 'fake_proj' names nothing in LlamaForCausalLM",
    ),
    "a module of the forget adapter that is not there": (
        lambda _: (("lora: {r: 2}", "lora: {r: 2}, forget_lora: {r: 2, target_modules: [q_proj, fake_proj]}"),),
        "conditions.plain.train.forget_lora.target_modules: 'fake_proj' names nothing in LlamaForCausalLM",
    ),
    "a block past the last": (
        lambda _: (("lora: {r: 2}", "lora: {r: 2, layers_to_transform: [0, 7]}"),), "the model has blocks 0 to 3",
    ),
    "a model that cannot be packed": (cannot_pack, "train.packing must be false with DogeForCausalLM, found true: it chooses among"),
    "an analysis without its conditions": (
        lambda _: (("quick:", "analyses: {concept_ablation: {on: held_out}}\nquick:"),),
        "analyses.concept_ablation: it compares an ablation with a gradient projection on the same directions, and no two",
    ),
    "a prompt beyond the context": (
        lambda _: (("max_new_tokens: 3", "max_new_tokens: 500"),), "evaluation set held_out (with its response): 3 of 3",
    ),
    "twins": (lambda _: (("  baseline: {}", "  baseline: {}\n  twin: {note: same}"),), "'baseline' and 'twin' train on the same"),
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """One folder for all tests, so that the model is written once."""
    return tmp_path_factory.mktemp("requirements")


def refused(path, monkeypatch, capsys, command, what, *options):
    """What a command says on standard error, which must be one sentence with exit code 2."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["wandb"]
    )
    monkeypatch.setattr(models, "load_source", None)
    file = tiny_experiment.write(path, *WRONG[what][0](path))
    monkeypatch.setattr("sys.argv", ["tropism", command, str(file), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize("what", WRONG)
def test_validate_refuses_it(path, monkeypatch, capsys, what):
    assert WRONG[what][1] in refused(path, monkeypatch, capsys, "validate", what)


@pytest.mark.parametrize("what", ["another width", "a contrast beyond the context", "no key"])
def test_run_refuses_it_before_anything_is_loaded_or_written(path, monkeypatch, capsys, what):
    out = path / "out"
    assert WRONG[what][1] in refused(path, monkeypatch, capsys, "run", what, "--out", str(out))
    assert not out.exists()


def test_a_format_of_figures_that_there_is_not_is_found_before_anything_is_trained(path, monkeypatch, capsys):
    file = tiny_experiment.write(path)
    monkeypatch.setenv("TROPISM_FIGURES", "gif")
    monkeypatch.setattr("sys.argv", ["tropism", "run", str(file), "--out", str(path / "undrawn")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: TROPISM_FIGURES must name formats out of svg, png, pdf, found 'gif'" in capsys.readouterr().err
    assert not (path / "undrawn").exists()


def test_a_model_without_attention_is_estimated(path):
    tiny.tokenizer().save_pretrained(path / "mamba")
    MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=4).save_pretrained(path / "mamba")
    file = tiny_experiment.write(path, (f"model: {path / 'model'}", f"model: {path / 'mamba'}"))
    ended = CliRunner().invoke(app, ["validate", str(file)])
    assert "in training" in ended.stdout, ended.exception


def test_what_fits_is_accepted(path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    own = provenance.of_config(tiny.model().config)
    file = tiny_experiment.write(path, JUDGED, *directions(path, model=own))
    assert CliRunner().invoke(app, ["validate", str(file)]).exit_code == 0
