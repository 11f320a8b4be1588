"""`tropism directions from-adapter` writes what `parameter_directions` returns."""

import pytest
import typer
from torch.optim import AdamW
from typer.testing import CliRunner

import tiny
import tropism as tp
from naive_constraint import lora, train, trainable
from tropism.cli import from_adapter
from tropism.errors import UsageError


@pytest.fixture
def app():
    app = typer.Typer()
    app.callback()(lambda: None)
    from_adapter.register(app)
    return app


def saved(folder, seed):
    model = lora(seed=seed)
    train(model, AdamW(trainable(model), lr=1e-2), steps=2, seed=seed)
    model.save_pretrained(folder)
    return str(folder)


def test_one_several_and_the_difference(app, tmp_path):
    a, b = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    for arguments, k, method in (
        ([a], 1, "adapter"),
        ([a, b], 2, "adapter"),
        ([a, "--minus", b], 1, "difference of adapters"),
    ):
        out = tmp_path / "u.safetensors"
        result = CliRunner().invoke(app, ["from-adapter", *arguments, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert f"{k} direction(s) at 8 weights; norms before normalising" in result.output
        u = tp.ParameterDirections.load(out)
        assert (u.k, u.provenance["method"]) == (k, method)


def test_whole_models(app, tmp_path):
    for name, seed in (("aligned", 0), ("base", 1)):
        tiny.model(seed=seed, layers=1).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    out = tmp_path / "u.safetensors"
    arguments = [
        str(tmp_path / "aligned"),
        "--minus",
        str(tmp_path / "base"),
        "--weights",
        "--rank",
        "3",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, ["from-adapter", *arguments])
    assert result.exit_code == 0, result.output
    assert tp.ParameterDirections.load(out).k == 3
    result = CliRunner().invoke(app, ["from-adapter", *arguments, "--single"])
    assert tp.ParameterDirections.load(out).k == 1


def test_weights_without_minus_is_refused(app, tmp_path):
    result = CliRunner().invoke(app, ["from-adapter", "x", "--weights", "--out", str(tmp_path / "u")])
    assert isinstance(result.exception, UsageError)
    assert "--weights takes one model and its base as --minus, found 1 models and --minus None" in str(result.exception)
