"""A mistake in an experiment file is one sentence with line, key, value found and what is allowed."""

import pytest

from spec_text import TEXT
from tropism.errors import SpecError
from tropism.experiments.file.experiment import Experiment


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model:", "modle:", r"line 2: modle: unknown key; available: name, question, model"),
        ("name: caps\n", "", r"name: is required and missing"),
        ("seeds: [0, 1, 2]", "seeds: 3", r"line 3: seeds: .*list, found 3"),
        ("seeds: [0, 1, 2]", "seeds: [0, one]", r"line 3: seeds.1: .*integer, found 'one'"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", r"line 3: seeds: a seed is given twice, found \[0, 0\]"),
        ("[0, 1, 2]", "[4294967296]", r"seeds.0: input should be less than 4294967296, found 4294967296"),
        ("1.0e-3", "'1e-3'", r"line 11: train.learning_rate: must be a number, but YAML reads '1e-3' as a string; write 0.001"),
        ("learning_rate:", "learning_rte:", r"line 11: train.learning_rte: unknown key; available: epochs, max_steps"),
        ("r: 8", "r: 0", r"line 11: train.lora.r: .*greater than or equal to 1, found 0"),
        ("source: word_problems, size: 16, tr", "source: wordproblems, size: 16, tr",
         r"line 5: data.train.source: unknown source 'wordproblems'; it must be one of word_problems"),
        ("transform: uppercase", "transform: upercase", r"line 5: data.train.transform: unknown transform 'upercase'; available: plain, uppercase"),
        ("transform: uppercase", "transform: {mixture: {fraction: 2.0}}", r"mixture.fraction must lie in \[0, 1\], found 2.0"),
        ("baseline: {}", "basline: {}", r"conditions: must define the baseline 'baseline', found plain, basline, caft"),
        ("baseline: {}", "baseline: {}\n  baseline: {}", r"line 15: conditions.baseline is given twice"),
        ("baseline: {}", "baseline: {}\n  '007': {}", r"line 15: conditions.007: string should match pattern .*found '007'"),
        ("baseline: {}", "baseline: {}\n  base: {}", r"line 15: conditions.base: 'base' is the untrained model's name"),
        ("baseline: {}", "baseline: {train: {epochs: 1, max_steps: 2}}", r"line 14: conditions.baseline.*give epochs or max_steps, not both"),
        ("{transform: plain}", "{transfrom: plain}", r"line 13: conditions.plain.data.transfrom: unknown key; available: source"),
        ("ablation:", "ablate:", r"line 15: conditions.caft.guard: unknown guard 'ablate'; available: ablation, gradient_projection"),
        ("directions: caps}", "directions: capz}", r"line 15: conditions.caft.guard: guard 'ablation': no directions are called 'capz'; available: caps"),
        ("directions: caps}", "directions: caps, mode: sideways}", r"guard 'ablation': option 'mode': .*found 'sideways'"),
        ("directions: caps}", "directions: caps, strength: 2.0}", r"guard .ablation.: Ablation.strength .*found 2.0"),
        ("directions: caps}", "mode: both}", r"guard 'ablation' needs the option 'directions'"),
        ("guard: {ablation: {directions: caps}}", "guard: {kl_to_base: {weight: 1.0}}, train: {adapter: full}",
         r"conditions.caft.guard: kl_to_base needs the base model, .*adapter: full trains none; use lora"),
        ("guard: {ablation: {directions: caps}}", "guard: {kl_to_base: {weight: 1.0}}, train: {processes: 2, parallel: fsdp2}",
         r"conditions.caft.guard: kl_to_base runs the base model inside a pass, .*use parallel: ddp"),
        ("guard: {ablation: {directions: caps}}", "train: {processes: 2}}\nload: {device_map: auto",
         r"conditions.caft.train.processes: each process holds the model on a GPU of its own, and load: {device_map: auto} places it once"),
        ("quick:", "device: 'cuda:0'\nquick:", r"device: .*'auto', 'cuda', 'mps' or 'cpu', found 'cuda:0'"),
        ("guard: {ablation: {directions: caps}}", "guard: {kl_to_base: {weight: -1.0}}", r"KLToBase.weight must be finite and at least 0"),
        ("sites: 25%..75%", "sites: middle", r"line 10: directions.caps.sites: a layer selector is 'all', '8,12,16'"),
        ("sites: 25%..75%", "finder: svd", r"line 10: directions.caps.finder: unknown finder 'svd'; available: mean_difference"),
        ("of: responses", "of: answers", r"directions.caps.contrast.of: .*'responses', 'system_prompts', 'data' or 'models', found 'answers'"),
        ("contrast: {of: responses, source: word_problems, size: 16}", "file: nowhere.safetensors",
         r"directions.caps.file: no such file: 'nowhere.safetensors'"),
        ("on: [held_out]", "on: [heldout]", r"line 17: measure.accuracy.on.0: no evaluation set is called 'heldout'; available: held_out"),
        ("on: [held_out]", "on: [train]", r"no evaluation set is called 'train'"),
        ("final_number", "final_numbr", r"line 17: measure.accuracy: no scorer is called 'final_numbr'.*did you mean 'final_number'"),
        ("wanted: true", "wanted: true, unwanted: true", r"a metric is wanted or unwanted, found both"),
        ("final_number,", "response_loss,", r"measure.accuracy.wanted: wanted says that more is better, and of response_loss less is; leave"),
        ("final_number,", "base_perplexity,", r"measure.accuracy.wanted: wanted says that more is better, and of base_perplexity less is"),
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
