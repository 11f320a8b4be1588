"""The options of a fine-tune: what goes together, what does nothing, and what is handed on to the Trainer."""

from typing import get_args

import pytest
from pydantic import ValidationError
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from tropism.experiments.identity import options_identity
from tropism.training.options import Adam, LoraOptions, Optimizer, Schedule, TrainOptions

INSIDE_BACKWARD = {"lomo", "adalomo", *(n.value for n in OptimizerNames if n.value.endswith("layerwise"))}


def test_schedules_are_trainers_but_those_that_follow_an_evaluation():
    ours = set(get_args(Schedule))
    assert ours == {one.value for one in SchedulerType} - {"reduce_lr_on_plateau", "greedy"}


def test_no_optimizer_steps_inside_the_backward_pass_and_all_are_trainers():
    ours = set(get_args(Optimizer))
    assert ours <= {one.value for one in OptimizerNames}
    assert not ours & INSIDE_BACKWARD
    assert set(get_args(Adam)) < ours


def test_what_is_not_used_is_no_part_of_an_identity():
    plain = options_identity(TrainOptions())
    assert "rslora" not in plain["lora"]
    assert not {"trainer", "warmup_ratio", "save_steps", "adam_beta1"} & plain.keys()
    assert options_identity(TrainOptions(save_steps=5)) == plain
    for changed in (
        TrainOptions(warmup_ratio=0.1),
        TrainOptions(adam_beta2=0.95),
        TrainOptions(lora=LoraOptions(rslora=True)),
        TrainOptions(trainer={"dataloader_drop_last": True}),
        TrainOptions(neftune_noise_alpha=5.0),
    ):
        assert options_identity(changed) != plain


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "give warmup_steps or warmup_ratio, not both"),
        ({"optimizer": "sgd", "adam_beta2": 0.95}, "adam_beta2 does nothing with the optimizer sgd; drop it"),
        ({"optimizer": "lion_8bit", "adam_epsilon": 1e-6}, "adam_epsilon does nothing with the optimizer lion_8bit"),
        ({"eval_steps": 5}, "eval_steps and eval_on say together when and on which set"),
        ({"trainer": {"learning_rate": 1.0}}, "learning_rate is said by train.learning_rate here; set that instead"),
        ({"trainer": {"fsdp": True}}, "fsdp cannot be set: no guard can be held to what it promises there"),
        ({"trainer": {"label_smoothing_factor": 0.1}}, "the loss is Tropism's own, on the supervised tokens"),
        ({"trainer": {"eval_steps": 5}}, "eval_steps cannot be set: what is measured is under measure:"),
        ({"trainer": {"learnin": 1}}, "'learnin' is no field of transformers' TrainingArguments"),
        ({"trainer": {"dataloader_num_workers": 0, "dataloader_prefetch_factor": 2}}, "transformers refuses"),
        ({"schedule": "warmup_stable_decay"}, "the schedule warmup_stable_decay does not go with trainer"),
        ({"schedule": "cosine_with_min_lr"}, "lr_scheduler_kwargs"),
    ],
)
def test_what_does_nothing_or_cannot_be_is_one_sentence(options, said):
    with pytest.raises(ValidationError, match=said):
        TrainOptions(**options)


def test_a_schedule_takes_its_own_options():
    options = TrainOptions(schedule="cosine_with_min_lr", trainer={"lr_scheduler_kwargs": {"min_lr": 1e-5}})
    assert options.trainer_schedule == "cosine_with_min_lr"


def test_adapter_none_is_another_word_for_full():
    none, full = TrainOptions(adapter="none"), TrainOptions(adapter="full")
    assert none == full
    assert none.model_dump() == full.model_dump()
    with pytest.raises(ValueError, match="forget_lora does nothing with adapter: full"):
        TrainOptions(adapter="none", forget_lora=LoraOptions())
