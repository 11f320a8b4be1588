"""The Trainer callback: attach, log, save, evaluate unguarded, detach."""

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import tiny
import tropism as tp
from tropism.errors import AttachError, GuardNotInForce
from tropism.interventions.base import attachments

SITE = tp.Site(1)
SHARE = "guard/gradient_projection/resid_post.1/share_removed"


@pytest.fixture
def directions(generator):
    return tp.Directions({SITE: torch.randn(2, 32, generator=generator)})


def dataset(rows=8):
    batch = tiny.batch(rows)
    return Dataset.from_dict({key: value.tolist() for key, value in batch.items()})


def trainer(model, tmp_path, *callbacks, **options):
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **settings),
        train_dataset=dataset(),
        eval_dataset=dataset(4),
        data_collator=default_data_collator,
        callbacks=list(callbacks),
    )


class Listener(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_readings_land_in_the_trainers_logs(model, directions, tmp_path):
    callback = tp.InterventionCallback(tp.GradientProjection(directions))
    run = trainer(model, tmp_path, callback)
    run.train()
    steps = [row for row in run.state.log_history if "loss" in row]
    assert len(steps) == 4
    assert all(0 < row[SHARE] < 1 for row in steps)
    assert len({row[SHARE] for row in steps}) == 4
    assert list(attachments(model)) == []
    assert not any(m._forward_hooks for m in model.modules())
    assert callback.attachment.passes == 4


def test_ahead_of_the_others_trackers_see_the_readings(model, directions, tmp_path):
    listener = Listener()
    run = trainer(model, tmp_path, listener)
    tp.InterventionCallback(tp.GradientProjection(directions)).add_to(run)
    run.train()
    assert sum(SHARE in logs for logs in listener.logs) == 4


@pytest.mark.parametrize("start_mode", ["train", "eval"])
def test_evaluation_is_unguarded_by_default(model, directions, tmp_path, start_mode):
    """Also before the first step, and for a model that comes from `from_pretrained` in evaluation mode."""
    getattr(model, start_mode)()
    seen = []
    handle = model.model.layers[2].register_forward_pre_hook(
        lambda _module, args: seen.append(
            (model.training, float((args[0].detach() @ directions.basis(SITE).T).abs().max()))
        )
    )
    options = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "per_device_eval_batch_size": 4}
    for evaluation in (None, True):
        seen.clear()
        guard = tp.Ablation(directions, evaluation=evaluation)
        trainer(model, tmp_path, tp.InterventionCallback(guard), **options).train()
        along = {mode: [size for training, size in seen if training is mode] for mode in (True, False)}
        assert (len(along[True]), len(along[False])) == (4, 3)
        assert max(along[True]) < 1e-4
        assert max(along[False]) < 1e-4 if evaluation else min(along[False]) > 1e-2
    handle.remove()


def test_the_same_weights_as_the_context_manager(directions, tmp_path):
    weights = []
    for use_callback in (True, False):
        model = tiny.model()
        guard = tp.GradientProjection(directions) | tp.Ablation(directions, mode="forward")
        if use_callback:
            trainer(model, tmp_path, tp.InterventionCallback(guard)).train()
        else:
            with guard.attach(model):
                trainer(model, tmp_path).train()
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    plain = tiny.model()
    trainer(plain, tmp_path).train()
    assert not all(torch.equal(value, weights[0][name]) for name, value in plain.state_dict().items())


def test_a_training_that_raised_leaves_the_guard_until_the_next(model, directions, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise ZeroDivisionError

    callback = tp.InterventionCallback(tp.GradientProjection(directions))
    with pytest.raises(ZeroDivisionError):
        trainer(model, tmp_path, callback, Stop()).train()
    assert len(list(attachments(model))) == 1
    trainer(model, tmp_path, callback).train()
    assert list(attachments(model)) == []
    with pytest.raises(ZeroDivisionError):
        trainer(model, tmp_path, callback, Stop()).train()
    callback.detach()
    callback.detach()
    assert list(attachments(model)) == []


def test_a_trainer_that_trains_a_copy(model, directions, tmp_path):
    class Copying(Trainer):
        def training_step(self, model, inputs, *args):
            return self.copy(**inputs).loss.detach()

    run = trainer(model, tmp_path, tp.InterventionCallback(tp.Ablation(directions)))
    run.__class__ = Copying
    run.copy = tiny.model()
    with (
        pytest.raises(GuardNotInForce, match="step 1 is done and the model that the callback was given never ran"),
        pytest.warns(UserWarning, match="has not run yet"),
    ):
        run.train()


def test_reentrant_checkpointing_and_deepspeed_are_refused(model, directions, tmp_path):
    callback = tp.InterventionCallback(tp.GradientProjection(directions))
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(AttachError, match="under reentrant gradient checkpointing"):
        trainer(model, tmp_path, callback, **reentrant).train()
    model.gradient_checkpointing_disable()
    run = trainer(model, tmp_path, callback)
    run.args.deepspeed = "zero2.json"
    with pytest.raises(AttachError, match="no guard can be trusted under DeepSpeed"):
        callback.on_train_begin(run.args, run.state, run.control, model=model)


def test_resuming_a_guard_without_state(directions, tmp_path):
    for stop in (2, 4):
        model = tiny.model()
        run = trainer(
            model,
            tmp_path,
            tp.InterventionCallback(tp.GradientProjection(directions)),
            max_steps=stop,
            save_strategy="steps",
            save_steps=2,
        )
        run.train(resume_from_checkpoint=stop == 4)
    assert [row["step"] for row in run.state.log_history if SHARE in row] == [1, 2, 3, 4]
