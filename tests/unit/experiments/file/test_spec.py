"""An experiment file is right, or one sentence names line, key, value found and what is allowed."""

import pytest

import tropism as tp
from tropism.errors import SpecError
from tropism.experiments.file.spec import Experiment, merge

TEXT = """\
name: caps
model: HuggingFaceTB/SmolLM2-135M-Instruct
seeds: [0, 1, 2]
data:
  train: {source: word_problems, size: 16, transform: uppercase}
  held_out: {source: word_problems, size: 4, split: test}
directions:
  caps:
    contrast: {of: responses, source: word_problems, size: 16}
    sites: 25%..75%
train: {learning_rate: 1.0e-3, lora: {r: 8}}
conditions:
  plain: {data: {transform: plain}}
  baseline: {}
  caft: {guard: {ablation: {directions: caps}}}
measure:
  accuracy: {scorer: final_number, on: [held_out], wanted: true}
quick: {seeds: [0]}
"""


def test_a_good_file_is_resolved_with_every_default():
    experiment = Experiment.from_text(TEXT)
    assert experiment.train.batch_size == 8
    assert experiment.resolved()["generate"]["temperature"] == 0
    assert experiment.train_data("plain").transform == "plain"
    assert experiment.train_data("baseline").transform == "uppercase"


def test_the_resolved_file_means_the_same():
    import yaml

    experiment = Experiment.from_text(TEXT)
    assert Experiment.from_text(yaml.safe_dump(experiment.resolved(), sort_keys=False)) == experiment


def test_quick_and_overrides_are_merged_and_checked():
    assert Experiment.from_text(TEXT, quick=True).seeds == [0]
    assert Experiment.from_text(TEXT, overrides={"train.lora.r": 3}).train.lora.r == 3
    with pytest.raises(SpecError, match="train.lora.rank: unknown key"):
        Experiment.from_text(TEXT, overrides={"train.lora.rank": 3})


def test_merge_replaces_what_is_no_mapping():
    assert merge({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model:", "modle:", r"line 2: modle: unknown key; allowed are name, question, model"),
        ("name: caps\n", "", r"name: is required and missing"),
        ("seeds: [0, 1, 2]", "seeds: 3", r"line 3: seeds: .*list, found 3"),
        ("seeds: [0, 1, 2]", "seeds: [0, one]", r"line 3: seeds.1: .*integer, found 'one'"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", r"line 3: seeds: a seed is given twice, found \[0, 0\]"),
        ("1.0e-3", "1e-3", r"line 11: train.learning_rate: must be a number, found the text '1e-3'; YAML reads it as text: write 0.001"),
        ("learning_rate:", "learning_rte:", r"line 11: train.learning_rte: unknown key; allowed are epochs, max_steps"),
        ("r: 8", "r: 0", r"line 11: train.lora.r: .*greater than or equal to 1, found 0"),
        ("source: word_problems, size: 16, tr", "source: wordproblems, size: 16, tr",
         r"line 5: data.train.source: unknown source 'wordproblems'; it must be one of word_problems"),
        ("transform: uppercase", "transform: upercase", r"line 5: data.train.transform: unknown transform 'upercase'; known are plain, uppercase"),
        ("transform: uppercase", "transform: {mixture: {fraction: 2.0}}", r"mixture.fraction must lie in \[0, 1\], found 2.0"),
        ("baseline: {}", "basline: {}", r"conditions: must define the baseline 'baseline', found plain, basline, caft"),
        ("baseline: {}", "baseline: {}\n  baseline: {}", r"line 15: conditions.baseline is given twice"),
        ("baseline: {}", "baseline: {}\n  base: {}", r"line 15: conditions.base: 'base' is the untrained model's name"),
        ("baseline: {}", "baseline: {train: {epochs: 1, max_steps: 2}}", r"line 14: conditions.baseline.*give epochs or max_steps, not both"),
        ("{transform: plain}", "{transfrom: plain}", r"line 13: conditions.plain.data.transfrom: unknown key; allowed are source"),
        ("ablation:", "ablate:", r"line 15: conditions.caft.guard: unknown guard 'ablate'; known are ablation, gradient_projection"),
        ("directions: caps}", "directions: capz}", r"line 15: conditions.caft.guard: guard 'ablation': no directions are called 'capz'; defined are caps"),
        ("directions: caps}", "directions: caps, mode: sideways}", r"guard 'ablation': option 'mode': .*found 'sideways'"),
        ("directions: caps}", "directions: caps, strength: 2.0}", r"guard .ablation.: Ablation.strength .*found 2.0"),
        ("directions: caps}", "mode: both}", r"guard 'ablation' needs the option 'directions'"),
        ("sites: 25%..75%", "sites: middle", r"line 10: directions.caps.sites: a layer selector is 'all', '8,12,16'"),
        ("sites: 25%..75%", "finder: svd", r"line 10: directions.caps.finder: unknown finder 'svd'; known are mean_difference"),
        ("of: responses", "of: answers", r"directions.caps.contrast.of: .*'responses', 'system_prompts' or 'data', found 'answers'"),
        ("contrast: {of: responses, source: word_problems, size: 16}", "file: nowhere.safetensors",
         r"directions.caps.file: no such file: 'nowhere.safetensors'"),
        ("on: [held_out]", "on: [heldout]", r"line 17: measure.accuracy.on.0: no evaluation set is called 'heldout'; defined are held_out"),
        ("on: [held_out]", "on: [train]", r"no evaluation set is called 'train'"),
        ("final_number", "final_numbr", r"line 17: measure.accuracy: no scorer is called 'final_numbr'.*did you mean 'final_number'"),
        ("wanted: true", "wanted: true, unwanted: true", r"a metric is wanted or unwanted, found both"),
        ("wanted: true", "toleranse: 1", r"scorer 'final_number' has no option 'toleranse'; its options are tolerance"),
        ("quick:", "analyses: {presure: {}}\nquick:", r"analyses.presure: no analysis is called 'presure'"),
        ("name: caps", "name: ../up", r"line 1: name: .*pattern.*found '../up'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(old, new, message):
    assert old in TEXT
    with pytest.raises(SpecError, match=message) as caught:
        Experiment.from_text(TEXT.replace(old, new, 1))
    assert "\n" not in str(caught.value)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in ("ab", "bc", "cd", "de", "ef")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + TEXT, "more than 20000 values after its aliases are expanded"),
        ("x: !!python/object/apply:os.system [echo]\n" + TEXT, "line 1: the tag .* is not allowed"),
        ("x: !Custom y\n" + TEXT, "the tag '!Custom' is not allowed"),
        ("- a\n- b\n", "an experiment file is a mapping of keys, found a list"),
        ("", "found nothing"),
        ("name: [caps\nmodel: x", r"line 2: not YAML"),
        ("? [a, b]\n: c\n", "line 1: a key must be a plain word"),
        ("x: " + "[" * 60 + "]" * 60, "line 1"),
    ],
)
def test_yaml_that_is_none_or_does_harm_is_refused(text, message):
    with pytest.raises(SpecError, match=message):
        Experiment.from_text(text)


def test_a_missing_file_and_a_binary_one_are_named(tmp_path):
    with pytest.raises(SpecError, match="no experiment file at .*nothing.yaml"):
        Experiment.load(tmp_path / "nothing.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SpecError, match=r"b.yaml is not UTF-8 text \(byte 0\)"):
        Experiment.load(tmp_path / "b.yaml")


def test_a_users_scorer_is_known_once_its_file_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom tropism.evals.scorers.base import ResponseScorer, Score, scorer\n"
        "@scorer('has_z')\n@dataclass(frozen=True)\nclass HasZ(ResponseScorer):\n"
        "    def score(self, sample):\n        return Score(float('z' in sample.response))\n"
    )
    text = TEXT.replace("final_number", "has_z")
    with pytest.raises(SpecError, match="no scorer is called 'has_z'"):
        Experiment.from_text(text)
    assert Experiment.from_text(f"scorers: {file}\n" + text).measure["accuracy"].scorer == "has_z"


def test_the_public_name_is_this_class():
    assert tp.Experiment is Experiment
