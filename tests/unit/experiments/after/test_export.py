"""An exported folder computes what the run computes, loaded by transformers alone, wherever it is moved to."""

import json
import shutil

import peft
import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from tropism.errors import UsageError
from tropism.experiments.after.arms import arm_of, arms_of
from tropism.experiments.after.export import export
from tropism.experiments.after.finished import locate
from tropism.interventions.routing_modes import ablation_mode
from tropism.interventions.two_adapters import load_adapters
from tropism.models import load


@pytest.fixture
def out(finished):
    return finished


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tiny.batch()["input_ids"]).logits


def of_the_run(out, name, mode=None):
    base = locate(out)[0].experiment.model
    folder = out / name / "seed-0" / "adapter"
    if mode is None:
        return logits(load(base, adapter=folder)[0])
    model = load_adapters(load(base)[0], folder).eval()
    with ablation_mode(model, mode):
        return logits(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("baseline", {}),
        ("baseline", {"merged": True}),
        ("routed", {"mode": "forget_ablated"}),
        ("routed", {"mode": "retain_ablated", "merged": True}),
        ("routed", {"merged": True, "mode": "full"}),
    ],
)
def test_what_is_exported_computes_what_the_run_does(out, tmp_path, name, options):
    if not options.get("merged") and Version(peft.__version__) < Version("0.19"):
        pytest.skip("transformers loads no adapter with this PEFT")
    made = export(out / name / "seed-0", tmp_path / "made", **options)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "made", moved)
    assert ("adapter_model.safetensors" in made.files) is not options.get("merged", False)
    loaded = AutoModelForCausalLM.from_pretrained(moved)
    expected = of_the_run(out, name, options.get("mode"))
    # A merged weight is rounded once more: by the largest logit, since a logit near zero is a difference of large terms.
    largest = float(expected.abs().max())
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4 * max(1.0, largest), rtol=0)
    assert largest > 1
    base = logits(load(locate(out)[0].experiment.model)[0])
    assert (expected - base).abs().max() > 1e-2, "a run that learned nothing tests nothing"
    tokenizer = AutoTokenizer.from_pretrained(moved)
    assert tokenizer.chat_template == tiny.TEMPLATE
    about = json.loads((moved / "tropism.json").read_text(encoding="utf-8"))
    assert (about["run"], about["mode"]) == (f"{name}/seed-0", options.get("mode", "full"))
    for file in moved.iterdir():
        assert str(out.parent).encode() not in file.read_bytes(), file.name


def test_what_cannot_be_exported_is_said_and_writes_nothing(out, tmp_path):
    for path, options, said in (
        (out, {}, "is an experiment's folder; give the folder of one run"),
        (out / "base", {}, "is the untrained model, which has no adapter; export it with --merged"),
        (out / "routed/seed-0", {}, "has two adapters, of which a folder holds one; export it with --merged"),
        (out / "baseline/seed-0", {"mode": "forget_ablated"}, "was trained with one adapter, so it has no mode"),
        (out / "routed/seed-0", {"mode": "off"}, "a mode must be one of"),
        (f"{out}/routed/seed-0:off", {}, "a mode must be one of"),
        (f"{out}/routed/seed-0:full", {"mode": "full"}, "the mode is given twice"),
    ):
        with pytest.raises(UsageError, match=said):
            export(path, tmp_path / "made", **options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UsageError, match="is there and not empty"):
        export(out / "baseline/seed-0", tmp_path / "made")


def test_arms_are_told_apart_by_what_is_in_them(out):
    arms = list(arms_of(out))
    assert [arm.name for arm in arms][:3] == ["base", "baseline/seed-0", "baseline/seed-1"]
    assert "routed/seed-0:forget_ablated" in [arm.name for arm in arms]
    digests = {arm.key: arm.digest() for arm in arms}
    assert len(set(digests.values())) == len(digests)
    assert arm_of(f"{out}/routed/seed-0:retain_ablated").mode == "retain_ablated"
