"""The same guard gives the same gradients in every trainer, with or without checkpointing, accumulation, autocast."""

import pytest
import torch

import tiny
import trainers
import tropism as tp
from hand_edits import assert_same, differ
from matrix_guard import guard

ROWS = 4
CHECKPOINTING = {"use_reentrant": False}


def plain_loop(checkpointing, accumulation, bf16, guarded, tmp_path):
    model, batch = tiny.model(), tiny.batch(ROWS)
    if checkpointing:
        model.gradient_checkpointing_enable(CHECKPOINTING)

    def loop():
        for rows in torch.arange(ROWS).chunk(accumulation):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**{key: value[rows] for key, value in batch.items()}).loss
            (loss / accumulation).backward()

    if guarded:
        with guard().attach(model):
            loop()
    else:
        loop()
    return {name: p.grad for name, p in model.named_parameters()}


def in_trainer(make):
    def run(checkpointing, accumulation, bf16, guarded, tmp_path):
        options = trainers.settings(
            tmp_path,
            ROWS,
            accumulation,
            bf16=bf16,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs=CHECKPOINTING if checkpointing else None,
        )
        trainer, kept = make(tiny.model(), trainers.dataset(ROWS), options), trainers.Gradients()
        trainer.add_callback(kept)
        if guarded:
            trainer.add_callback(tp.InterventionCallback(guard()))
        trainer.train()
        if guarded:
            assert sum(name.startswith("guard/") for name in trainer.state.log_history[0]) == 5
        return kept.found

    run.__name__ = make.__name__
    return run


hf_trainer, sft_trainer = in_trainer(trainers.hf_trainer), in_trainer(trainers.sft_trainer)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Plain loop, one batch, no checkpointing: by precision and by whether it is guarded."""
    return {
        (bf16, guarded): plain_loop(False, 1, bf16, guarded, None)
        for bf16 in (False, True)
        for guarded in (False, True)
    }


@pytest.mark.parametrize("runner", [plain_loop, hf_trainer, sft_trainer])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_same_gradients(runner, checkpointing, accumulation, bf16, reference, tmp_path):
    found = runner(checkpointing, accumulation, bf16, True, tmp_path)
    tolerance = 2e-2 if bf16 else 1e-5
    assert_same(reference[bf16, True], found, tolerance)
    assert differ(reference[bf16, False], found) > 5 * tolerance  # the guard does change them


@pytest.mark.parametrize("runner", [hf_trainer, sft_trainer])
def test_the_oracle_unguarded(runner, reference, tmp_path):
    assert_same(reference[False, False], runner(False, 1, False, False, tmp_path), 1e-5)
