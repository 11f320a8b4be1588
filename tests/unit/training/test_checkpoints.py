"""A fine-tune that was interrupted and goes on from its checkpoint is the uninterrupted one, bit for bit."""

import json
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import tiny
import tropism as tp
from tropism.adapters.whole import with_own_weights
from tropism.data.render import render
from tropism.data.sources.word_problems import word_problems
from tropism.errors import RunFailed
from tropism.experiments.checkpoints import RunCheckpoints
from tropism.interventions.two_adapters import two_adapters
from tropism.training.checkpoints import Checkpoints, load_trained, trained
from tropism.training.options import TrainOptions
from tropism.training.supervised import Row, train

LORA = LoraConfig(r=2, lora_dropout=0.2, target_modules=["q_proj", "down_proj"])
# Three epochs of three steps, the last of each on fewer rows: interruptions fall inside epochs and between them.
OPTIONS = {
    "epochs": 3.0,
    "batch_size": 2,
    "accumulation": 2,
    "bf16": False,
    "learning_rate": 1e-2,
    "max_grad_norm": 0.5,
    "eval_steps": 3,
    "eval_on": "held_out",
}


@pytest.fixture(scope="module")
def rows():
    tokenizer = tiny.tokenizer()
    return [Row(render(tokenizer, e.chat), {"route": i % 3}) for i, e in enumerate(word_problems(10))]


def one_adapter():
    torch.manual_seed(0)
    return get_peft_model(tiny.model(), LORA)


def both_adapters():
    torch.manual_seed(0)
    return two_adapters(tiny.model(), LORA, LORA)


@pytest.fixture(scope="module")
def constraint(tmp_path_factory):
    torch.manual_seed(5)
    model = get_peft_model(tiny.model(), LORA)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.normal_()
    folder = tmp_path_factory.mktemp("refusal")
    model.save_pretrained(str(folder))
    return tp.UpdateConstraint(tp.parameter_directions(folder))


class Interrupt(TrainerCallback):
    """Ends the training after a step, as a killed process would: nothing more is written."""

    def __init__(self, step):
        self._step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self._step:
            raise KeyboardInterrupt


def fine_tune(make, rows, folder, guard, options, at=None):
    folder.mkdir(exist_ok=True)
    kept = RunCheckpoints(folder, "identity")
    found = kept.latest()
    if found is not None:
        kept.go_back_to(found)
    model = make()
    checkpoints = Checkpoints(kept.folder, partial(kept.seal, options=options), None if found is None else found.path)
    torch.manual_seed(3)
    arguments = {"pad_id": 0, "seed": 3, "log": folder / "training.jsonl", "guard": guard, "checkpoints": checkpoints}
    train(model, rows, options, callbacks=[] if at is None else [Interrupt(at)], evaluate_on=rows[:3], **arguments)
    return model, 0 if found is None else found.step


def check(make, rows, tmp_path, guard, interruptions, **more):
    plain = TrainOptions(**OPTIONS, **more)
    whole, _ = fine_tune(make, rows, tmp_path / "whole", guard, plain)
    saving = plain.model_copy(update={"save_steps": 2})
    begun = []
    for at in interruptions:
        with pytest.raises(KeyboardInterrupt):
            fine_tune(make, rows, tmp_path / "cut", guard, saving, at)
    cut, step = fine_tune(make, rows, tmp_path / "cut", guard, saving)
    begun.append(step)
    assert begun == [(max(interruptions) - 1) // 2 * 2]
    for name, parameter in trained(whole).items():
        assert torch.equal(trained(cut)[name], parameter), name
    logs = {log: (tmp_path / "whole" / log).read_text() for log in ("training.jsonl", "evaluation.jsonl")}
    assert {log: (tmp_path / "cut" / log).read_text() for log in logs} == logs
    assert [json.loads(line)["step"] for line in logs["evaluation.jsonl"].splitlines()] == [3, 6, 9]


def test_interrupted_inside_an_epoch_between_two_and_twice(rows, tmp_path):
    for name, interruptions in {"inside": [5], "between": [7], "twice": [4, 9], "early": [1, 3]}.items():
        (tmp_path / name).mkdir()
        check(one_adapter, rows, tmp_path / name, None, interruptions, neftune_noise_alpha=5.0)


def test_two_adapters_under_gradient_routing(rows, tmp_path):
    check(both_adapters, rows, tmp_path, tp.GradientRouting(), [6])


def test_an_update_constraint_goes_on_from_its_own_anchor(rows, tmp_path, constraint):
    check(one_adapter, rows, tmp_path, constraint, [6], weight_decay=0.1)
    last = json.loads((tmp_path / "cut" / "training.jsonl").read_text().splitlines()[-1])
    assert last["guard/update_constraint/leak_cumulative"] < 1e-4


def test_a_model_without_an_adapter(rows, tmp_path, constraint):
    check(lambda: with_own_weights(tiny.model()), rows, tmp_path, constraint, [5])


def test_a_checkpoint_after_the_last_step_leaves_nothing_to_train(rows, tmp_path):
    options = TrainOptions(**OPTIONS, save_steps=2)
    whole, _ = fine_tune(one_adapter, rows, tmp_path / "run", None, options)
    again, step = fine_tune(one_adapter, rows, tmp_path / "run", None, options)
    assert step == 9
    for name, parameter in trained(whole).items():
        assert torch.equal(trained(again)[name], parameter), name


def test_a_checkpoint_of_another_model_is_refused(rows, tmp_path):
    fine_tune(one_adapter, rows, tmp_path / "run", None, TrainOptions(**OPTIONS, save_steps=4))
    found = RunCheckpoints(tmp_path / "run", "identity").latest()
    with pytest.raises(RunFailed, match=r"checkpoint-9 does not fit the model \(\d+ tensors differ, the first is"):
        load_trained(both_adapters(), found.path)


def test_what_is_torn_or_of_another_training_is_not_gone_on_from(rows, tmp_path):
    run = tmp_path / "run"
    fine_tune(one_adapter, rows, run, None, TrainOptions(**OPTIONS, save_steps=4))
    ours = RunCheckpoints(run, "identity")
    assert ours.latest().step == 9
    other = RunCheckpoints(run, "another")
    assert other.latest() is None
    assert "made with other options" in other.why_not()
    with (ours.latest().path / "optimizer.pt").open("ab") as file:
        file.write(b"torn")
    assert ours.latest().step == 8  # the one before is whole
    (ours.latest().path / "SEALED.json").unlink()
    assert ours.latest() is None
    assert "cannot be used" in ours.why_not()
