"""The study's options, checked before anything is loaded; and `frozen_adapter` in a file."""

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerState

import tiny
import tiny_pressure
from tropism.data.chats import Example
from tropism.directions.artifact import Directions
from tropism.errors import RunFailed, SpecError
from tropism.experiments.analyses import Study, load_analyses
from tropism.experiments.file import guards
from tropism.experiments.file.experiment import Experiment
from tropism.probes.training_pressure import PressureLog
from tropism.site import Site
from tropism.studies.inoculation.steps import PressureSteps

TRAIT = {"trait": {"data": {"source": "word_problems", "size": 8, "transform": "uppercase"}}}


def options(**changes):
    return {"analyses": {"inoculation": changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            options(directions="capz"),
            "analyses.inoculation: no directions are called 'capz'; available: caps, caps_prompt",
        ),
        (options(beside=["capz"]), "no directions are called 'capz'"),
        (options(trait="shouting"), "no metric is called 'shouting'; available: caps_rate"),
        (options(on="out_of_domain"), "the metric 'caps_rate' is not taken on 'out_of_domain', but on in_domain"),
        (options(placebo="sugar"), "no condition is called 'sugar'; available: neutral, inoculation, placebo"),
        (options(placebo="neutral"), "must be different conditions, found"),
        (options(chats=3), "analysis 'inoculation': chats: .*greater than or equal to 4, found 3"),
        (options(controls=[]), "analysis 'inoculation': controls: .*at least 1 item"),
        (
            options(dirctions="caps"),
            "analysis 'inoculation' has no option 'dirctions'; its options are directions, beside",
        ),
        (
            {"conditions": {"placebo": {"data": {"transform": "plain"}}}},
            "'placebo' trains on other chats than 'neutral', so they cannot be paired by chat",
        ),
        (
            {"conditions": {"placebo": {"guard": {"ablation": {"directions": "caps"}}}}},
            "'placebo' must differ by prompt or frozen_adapter, found the guard 'ablation'",
        ),
        (
            {"measure": {"caps_rate": {"scorer": "response_loss"}}},
            "the elicitation grid needs a metric of responses, found 'response_loss'; set elicitation_prompts to 0",
        ),
        (
            {"conditions": {"placebo": {"guard": {"frozen_adapter": {"adapter": "trait"}}}}},
            "guard 'frozen_adapter': no adapter is called 'trait'; available: none",
        ),
        (
            {"adapters": TRAIT, "conditions": {"placebo": {"guard": {"frozen_adapter": {}}}}},
            "guard 'frozen_adapter' needs the option 'adapter'",
        ),
        (
            {
                "adapters": TRAIT,
                "conditions": {"placebo": {"guard": {"frozen_adapter": {"adapter": "trait", "size": 2}}}},
            },
            "guard 'frozen_adapter' has no option 'size'; its options are adapter, coefficient, evaluation, random",
        ),
        (
            {
                "adapters": TRAIT,
                "conditions": {
                    "placebo": {"guard": {"frozen_adapter": {"adapter": "trait", "coefficient": float("inf")}}}
                },
            },
            "guard 'frozen_adapter': FrozenAdapter.coefficient must be finite, found inf",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        Experiment.load(tiny_pressure.write(tmp_path, **changes))


@pytest.fixture
def adapter(tmp_path):
    """A small adapter that has learned something, on disk."""
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter", model


def logits(model):
    with torch.no_grad():
        return model(input_ids=tiny.batch()["input_ids"]).logits


def test_the_guard_of_a_file_adds_what_the_prepared_adapter_learned(adapter):
    folder, learned = adapter
    resources = guards.Resources(adapters={"trait": folder})
    plain = tiny.model().eval()
    guard = guards.build_guard({"frozen_adapter": {"adapter": "trait"}}, resources)
    with guard.attach(plain):
        torch.testing.assert_close(logits(plain), logits(learned.eval()), rtol=1e-4, atol=1e-4)
    nothing = guards.build_guard({"frozen_adapter": {"adapter": "trait", "coefficient": 0.0}}, resources)
    bare = logits(plain)
    with nothing.attach(plain):
        torch.testing.assert_close(logits(plain), bare)
    assert (bare - logits(learned)).abs().max() > 0.01


def test_its_control_is_drawn_from_the_runs_seed(adapter):
    folder, _ = adapter
    spec = {"frozen_adapter": {"adapter": "trait", "random": True}}

    def drawn(seed):
        guard = guards.build_guard(spec, guards.Resources(adapters={"trait": folder}, seed=seed))
        return next(iter(guard.weights.values())).A

    torch.testing.assert_close(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_model_that_has_diverged_fails_its_run_and_not_the_experiment(tmp_path):
    model = tiny.model()
    next(model.parameters()).data.fill_(float("nan"))
    chats = [Example("a", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "HO"}))]
    log = PressureLog(tiny.tokenizer(), chats, Directions({Site(1): torch.ones(1, 32)}))
    callback = PressureSteps(log, tmp_path / "pressure.jsonl")
    with pytest.raises(RunFailed, match=r"pressure at step 0: chat 'a'.*not a? ?finite"):
        callback.on_train_begin(None, TrainerState(), None, model=model)


def study_of(tmp_path):
    experiment = Experiment.load(tiny_pressure.write(tmp_path))
    study = Study(experiment, tmp_path, None, lambda: None, lambda _: [], lambda *_: [])
    return study, load_analyses(experiment)["inoculation"]


def results(*rows):
    return pd.DataFrame(
        [(c, s, mode, on, metric, value) for c, s, mode, on, metric, value in rows],
        columns=["condition", "seed", "mode", "eval_set", "metric", "value"],
    ).astype({"seed": "Int64"})


def test_drift_is_the_traits_rate_after_minus_before(tmp_path):
    study, analysis = study_of(tmp_path)
    table = results(
        ("base", None, "full", "in_domain", "caps_rate", 0.25), ("neutral", 0, "full", "in_domain", "caps_rate", 1.0),
        ("neutral", 0, "full", "out_of_domain", "caps_rate", 0.5), ("placebo", 1, "full", "in_domain", "caps_rate", 0.0),
        ("neutral", 0, "full", "in_domain", "loss", 3.0), ("other", 0, "full", "in_domain", "caps_rate", 0.9),
    )  # fmt: skip
    runs = analysis._runs(study, table)
    assert runs.to_dict("list") == {"condition": ["neutral", "placebo"], "seed": [0, 1], "drift": [0.75, -0.25]}


def test_the_shift_of_projection_is_after_minus_before_without_a_prompt(tmp_path):
    _, analysis = study_of(tmp_path)
    rows = [
        ("base", "", "no prompt", "a", 1.0), ("base", "", "no prompt", "b", 7.0), ("base", "", "inoculation", "a", 9.0),
        ("inoculation", "0", "no prompt", "a", 4.0), ("inoculation", "0", "inoculation", "a", 8.0),
    ]  # fmt: skip
    drift = pd.DataFrame(rows, columns=["condition", "seed", "prompt", "site", "projection"])
    runs = pd.DataFrame({"condition": ["inoculation"], "seed": [0]})
    assert analysis._shifts(drift.assign(position="last_prompt"), runs, "a") == [3.0]
