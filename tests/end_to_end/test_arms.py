"""Arms without training: what there is already is measured with the same code as what is trained here, and has one run."""

import json

import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

import tiny
import tiny_experiment
import tropism as tp
from judge_server import completion, error, serving
from tropism.errors import ModelError, SpecError
from tropism.experiments.after.arms import arms_of
from tropism.experiments.after.export import export
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.yaml_file import parse
from tropism.experiments.identity import train_identity
from tropism.experiments.prepare import load_data
from tropism.experiments.progress import Progress
from tropism.experiments.run import run_and_tell
from tropism.experiments.store import RunKey
from tropism.results.folder import load
from tropism.results.summary import ONE_RUN, summary_table

INSIDE = """
name: inside
model: {model}
seeds: [0]
data:
  train: {{source: word_problems, size: 8}}
  held_out: {{source: word_problems, size: 4, split: test}}
train: {{max_steps: 3, batch_size: 4, learning_rate: 0.02, bf16: false, lora: {{r: 2}}}}
generate: {{max_new_tokens: 12, dtype: float32}}
conditions:
  baseline: {{}}
measure:
  letters: {{scorer: contains, text: e, on: [held_out], unwanted: true}}
  loss: {{scorer: response_loss, on: [held_out]}}
  perplexity: {{scorer: base_perplexity, on: [held_out]}}
  moved: {{scorer: kl_to_base, on: [held_out]}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, an adapter trained inside, and the same weights saved by plain PEFT."""
    path = tmp_path_factory.mktemp("arms")
    model = tiny_experiment.model_folder(path)
    text = INSIDE.format(model=model)
    (path / "inside.yaml").write_text(text, encoding="utf-8")
    results = tp.run(path / "inside.yaml", path / "inside")
    weights = load_file(path / "inside" / "baseline" / "seed-0" / "adapter" / "adapter_model.safetensors")
    base, _ = tp.models.load(str(model))
    outside = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    loaded = outside.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in weights.items()}, strict=False
    )
    assert not loaded.unexpected_keys
    outside.save_pretrained(str(path / "outside"))
    merged = PeftModel.from_pretrained(tp.models.load(str(model))[0], str(path / "outside")).merge_and_unload()
    merged.save_pretrained(str(path / "merged"))
    tiny.tokenizer().save_pretrained(str(path / "merged"))
    return path, text, results


def arms(text, **conditions):
    """The file with these conditions in the place of training."""
    file = parse(text).data
    del file["data"]["train"]
    return {**file, "name": "arms", "conditions": conditions}


def run(path, file, out):
    (path / f"{out}.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    return tp.run(path / f"{out}.yaml", path / out)


def numbers(results, condition):
    rows = results[results["condition"] == condition]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def test_weights_trained_outside_get_the_numbers_of_the_same_weights_trained_inside(world):
    path, text, inside = world
    file = arms(text, published={"adapter": "organism"}, merged={"model": str(path / "merged")})
    file["adapters"] = {"organism": {"from": str(path / "outside")}}
    results = run(path, file, "arms")
    expected = numbers(inside, "baseline")
    assert expected != numbers(inside, "base")
    assert numbers(results, "published") == expected
    assert numbers(results, "base") == numbers(inside, "base")
    # A whole model has no adapter to switch off: what needs that is left out, and the rest is the same up to rounding.
    merged = numbers(results, "merged")
    assert set(merged) == set(expected) - {"moved"}
    assert merged["letters"] == expected["letters"]
    for metric in ("loss", "perplexity"):
        assert merged[metric] == pytest.approx(expected[metric], rel=1e-5)
    assert results["seed"].isna().all()


def test_adapters_of_other_kinds_and_ranks_trained_outside_get_the_numbers_of_inside(world, tmp_path):
    """DoRA and rsLoRA, of ranks that no setting of the file names: what they compute is read from the adapter alone."""
    path, text, _ = world
    model = path / "model"
    kinds = {"dora": {"r": 3, "use_dora": True}, "rslora": {"r": 5, "use_rslora": True}}
    trained = parse(text).data
    trained["conditions"] = {
        "baseline": {},
        "dora": {"train": {"lora": {"r": 3, "alpha": 7, "dora": True}}},
        "rslora": {"train": {"lora": {"r": 5, "alpha": 7, "rslora": True}}},
    }
    inside = run(tmp_path, trained, "inside")
    for name, options in kinds.items():
        weights = load_file(tmp_path / "inside" / name / "seed-0" / "adapter" / "adapter_model.safetensors")
        config = LoraConfig(lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM", **options)
        outside = get_peft_model(tp.models.load(str(model))[0], config)
        assert not set_peft_model_state_dict(outside, weights).unexpected_keys
        outside.save_pretrained(str(tmp_path / f"{name}-outside"))
    file = arms(text, **{name: {"adapter": name} for name in kinds})
    file["adapters"] = {name: {"from": str(tmp_path / f"{name}-outside")} for name in kinds}
    results = run(tmp_path, file, "arms")
    untouched = {numbers(inside, name)["loss"] for name in ("base", "baseline")}
    for name in kinds:
        assert numbers(results, name) == pytest.approx(numbers(inside, name), rel=0, abs=0, nan_ok=True)
        assert numbers(results, name)["loss"] not in untouched


def test_an_arm_has_one_run_in_the_summary_and_says_so(world):
    path, _, _ = world
    folder = load(path / "arms")
    assert [(run.condition, run.seed, run.state) for run in folder.runs] == [
        ("base", None, "done"),
        ("merged", None, "done"),
        ("published", None, "done"),
    ]
    table = summary_table(folder.results, folder.experiment, folder.scores)
    row = table[(table["condition"] == "published") & (table["metric"] == "loss")].iloc[0]
    assert (row["difference_over"], row["difference_reason"], row["seeds"]) == ("prompts", ONE_RUN, 0)
    assert pd.isna(row["p"])
    scores = folder.scores[folder.scores["metric"] == "loss"].pivot_table(
        index="id", columns="condition", values="value"
    )
    difference = (scores["published"] - scores["base"]).to_numpy()
    assert row["difference"] == pytest.approx(difference.mean())
    reach = (row["difference_high"] - row["difference_low"]) / 2
    assert reach == pytest.approx(3.182446305 * difference.std(ddof=1) / len(difference) ** 0.5)
    report = (path / "arms" / "report.html").read_text(encoding="utf-8")
    assert "were not trained here and have one run each" in report
    assert "merged is a whole model, so it has no moved" in report


def test_arms_are_models_for_other_evaluators_and_to_take_elsewhere(world, tmp_path):
    path, _, _ = world
    found = {arm.name: arm for arm in arms_of(path / "arms")}
    assert set(found) == {"base", "merged", "published"}
    assert len({arm.digest() for arm in found.values()}) == 3
    ids = tiny.batch()["input_ids"]
    logits = {name: arm.load()[0](input_ids=ids).logits.detach() for name, arm in found.items()}
    torch.testing.assert_close(logits["published"], logits["merged"], atol=1e-4, rtol=1e-4)
    assert (logits["base"] - logits["merged"]).abs().max() > 1e-2
    export(path / "arms" / "published", tmp_path / "made", merged=True)
    elsewhere = tp.models.load(str(tmp_path / "made"))[0](input_ids=ids).logits
    torch.testing.assert_close(elsewhere, logits["published"], atol=1e-5, rtol=1e-5)


def test_an_arm_stands_beside_trained_conditions(world):
    path, text, _ = world
    file = parse(text).data | {"name": "both"}
    file["adapters"] = {"organism": {"from": str(path / "outside")}}
    file["conditions"] = {"baseline": {}, "published": {"adapter": "organism", "role": "guard"}}
    results = run(path, file, "both")
    assert numbers(results, "published") == numbers(results, "baseline")
    folder = load(path / "both")
    table = summary_table(folder.results, folder.experiment, folder.scores)
    row = table[(table["condition"] == "published") & (table["metric"] == "loss")].iloc[0]
    assert row["difference"] == 0.0
    # The trained condition does not use the adapter, so its identity is the one it has without it.
    without = dict(file, adapters={}, conditions={"baseline": {}})
    identities = [
        train_identity(Experiment.model_validate(one), {"name": "m"}, RunKey("baseline", 0)) for one in (file, without)
    ]
    assert identities[0] == identities[1]


def test_an_adapter_counts_by_its_content(world, tmp_path):
    path, text, _ = world
    copy = tmp_path / "copy"
    PeftModel.from_pretrained(tp.models.load(str(path / "model"))[0], str(path / "outside")).save_pretrained(str(copy))

    def identity():
        file = arms(text, published={"adapter": "organism"}) | {"adapters": {"organism": {"from": str(copy)}}}
        return train_identity(Experiment.model_validate(file), {"name": "m"}, RunKey("published", None))

    before = identity()
    assert identity() == before
    held = load_file(copy / "adapter_model.safetensors")
    save_file({key: value + torch.ones_like(value) for key, value in held.items()}, copy / "adapter_model.safetensors")
    assert identity() != before


def test_an_adapter_of_another_model_is_refused_and_one_that_names_none_is_said(world, tmp_path):
    path, text, _ = world
    other = tmp_path / "other"
    PeftModel.from_pretrained(tp.models.load(str(path / "model"))[0], str(path / "outside")).save_pretrained(str(other))
    config = json.loads((other / "adapter_config.json").read_text(encoding="utf-8"))
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "owner/another"}))
    file = arms(text, published={"adapter": "organism"}) | {"adapters": {"organism": {"from": str(other)}}}
    with pytest.raises(SpecError, match=r"from: was trained on 'owner/another', and the experiment's model is"):
        Experiment.from_text(yaml.safe_dump(file))
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    lines = []

    class Heard(Progress):
        def say(self, line):
            lines.append(line)

    ended = run_and_tell(Experiment.from_text(yaml.safe_dump(file)), tmp_path / "out", progress=Heard())
    assert not ended.problems
    assert "adapter 'organism': its configuration does not say which model it was trained on" in lines
    assert any("whether it was trained on what is asked is not known" in line for line in lines)


def test_a_model_behind_an_endpoint_takes_part_in_what_needs_responses(world):
    path, text, _ = world
    refused = tp.Experiment.from_text(text).data["held_out"]
    first = load_data(refused, 0)[0].prompt[-1]["content"]
    with serving(lambda asked, _: error(400) if asked == first else completion("seven")) as server:
        file = arms(text, served={"endpoint": {"base_url": server.url, "model": "m"}})
        results = run(path, file, "served")
        assert {body["max_tokens"] for body in server.bodies} == {12}
    rows = results[results["condition"] == "served"].set_index("metric")
    assert set(rows.index) == {"letters", "perplexity"}
    # What failed is unscored, and no empty answer.
    assert rows.loc["letters", ["value", "n", "unscored"]].tolist() == [1.0, 3, 1]
    assert rows.loc["perplexity", "unscored"] == 1
    report = (path / "served" / "report.html").read_text(encoding="utf-8")
    assert "served answers over HTTP, so it has no loss and moved" in report


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"adapter": "nobody"}, "adapter: no adapter is called 'nobody'; defined are organism"),
        ({"adapter": "organism", "model": "a/b"}, "a condition is one of adapter, model and endpoint"),
        ({"adapter": "organism", "train": {"epochs": 1}}, "train: says how to train, and nothing is trained"),
        ({"adapter": "organism", "revision": "main"}, "revision: belongs to 'model'"),
        ({"endpoint": {"base_url": "localhost", "model": "m"}}, "base_url must be http"),
        ({"revision": "main"}, "revision: belongs to 'model', and this condition is trained"),
    ],
)
def test_what_an_arm_must_not_say(world, condition, message):
    path, text, _ = world
    file = parse(text).data | {"adapters": {"organism": {"from": str(path / "outside")}}}
    file["conditions"]["arm"] = condition
    with pytest.raises(SpecError, match=message):
        Experiment.from_text(yaml.safe_dump(file))


def test_a_folder_without_an_adapter_is_an_error_of_the_file(world, tmp_path):
    _, text, _ = world
    file = arms(text, published={"adapter": "organism"}) | {"adapters": {"organism": {"from": str(tmp_path)}}}
    with pytest.raises(SpecError, match=r"from: .* is not an adapter that can be read"):
        Experiment.from_text(yaml.safe_dump(file))
    with pytest.raises(ModelError, match="is neither a folder"):
        tp.models.resolve_adapter(tmp_path / "nowhere" / "adapter")
