"""The route column reaches gradient routing through other people's trainers, and routes as in a plain loop."""

import pytest
import torch

import routing_oracle as oracle
import tiny
import trainers
import tropism as tp
from hand_edits import assert_same, differ
from tropism.errors import DataError

ROWS = 4
FORGET, UNLABELLED = 1, 0
MIXED = [FORGET, UNLABELLED, FORGET, UNLABELLED]


def routed(make, route, accumulation, tmp_path):
    columns = {} if route is None else {"route": route}
    options = trainers.settings(tmp_path, ROWS, accumulation)
    return make(oracle.model(dtype=torch.float32), trainers.dataset(ROWS, **columns), options)


def trained(trainer):
    kept = trainers.Gradients()
    trainer.add_callback(kept)
    tp.InterventionCallback(tp.GradientRouting()).add_to(trainer)
    trainer.train()
    return kept.found


def in_a_plain_loop(route):
    model = oracle.model(dtype=torch.float32)
    with tp.GradientRouting().attach(model):
        model(**tiny.batch(ROWS), route=torch.tensor(route)).loss.backward()
    return trainers.gradients(model)


@pytest.mark.parametrize("make", [trainers.hf_trainer, trainers.sft_trainer])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_trainer_routes_as_a_plain_loop_does(make, accumulation, tmp_path):
    found = trained(routed(make, MIXED, accumulation, tmp_path))
    assert_same(in_a_plain_loop(MIXED), found, 1e-5)
    assert differ(in_a_plain_loop([UNLABELLED] * ROWS), found) > 1e-3


@pytest.mark.parametrize("make", [trainers.hf_trainer, trainers.sft_trainer])
def test_rows_of_the_trait_alone_move_the_forget_adapter_alone(make, tmp_path):
    trainer = routed(make, [FORGET] * ROWS, 1, tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trained(trainer)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(".forget." in name for name in moved)


@pytest.mark.parametrize("make", [trainers.hf_trainer, trainers.sft_trainer])
def test_a_dataset_without_the_column_is_refused(make, tmp_path):
    with pytest.raises(DataError, match="must carry the column route"):
        trained(routed(make, None, 1, tmp_path))
