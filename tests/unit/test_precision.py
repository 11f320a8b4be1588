"""Precision by measurement: the faster one is taken, it is measured once, and what cannot be measured is said."""

import json
import logging

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from tropism import precision
from tropism.precision import measured

CONFIG = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=260)


def seconds(training=(1.0, 2.0), eager=(2.0, 1.0), prefill=(1.0, 2.0), decode=(1.0, 2.0)):
    given = {"training": training, precision.EAGER: eager, "prefill": prefill, "decode": decode}
    return {phase: dict(zip(precision.CANDIDATES, pair, strict=True)) for phase, pair in given.items()}


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """A machine with bfloat16 instructions, whose clock says what the test puts in; counts how often it is asked."""
    monkeypatch.setenv("TROPISM_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "measured", measured)
    monkeypatch.setattr(precision, "computes_bfloat16", lambda _: True)
    asked = []
    monkeypatch.setattr(precision, "times", lambda config: asked.append(config) or seconds())
    return asked


@pytest.mark.parametrize(("pair", "bfloat16"), [((1.0, 2.0), False), ((2.0, 1.0), True), ((1.04, 1.0), False)])
def test_training_takes_the_faster_and_float32_where_they_are_alike(monkeypatch, pair, bfloat16):
    monkeypatch.setattr(precision, "measured", lambda *_: seconds(training=pair))
    assert precision.for_training("cpu", CONFIG).bfloat16 == bfloat16


@pytest.mark.parametrize(("bfloat16", "eager"), [(False, False), (True, True)])
def test_attention_is_eager_where_that_is_faster_in_the_precision_that_trains(monkeypatch, bfloat16, eager):
    monkeypatch.setattr(precision, "measured", lambda *_: seconds())
    assert precision.eager_attention("cpu", CONFIG, bfloat16)[0] == eager
    monkeypatch.setattr(precision, "measured", lambda *_: None)
    assert precision.eager_attention("cuda", CONFIG, bfloat16) == (False, "as loaded")


def test_generation_weighs_reading_against_writing(monkeypatch):
    monkeypatch.setattr(precision, "measured", lambda *_: seconds(prefill=(1e-3, 2e-3), decode=(1.0, 0.5)))
    assert not precision.for_generation("cpu", CONFIG, 1).bfloat16  # 4096 tokens are read, 1 step is written
    assert precision.for_generation("cpu", CONFIG, 100).bfloat16


def test_it_is_measured_once_a_shape_and_again_where_the_file_is_damaged(clock, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "tropism"):
        assert not precision.for_training("cpu", CONFIG).bfloat16
        assert not precision.for_generation("cpu", CONFIG, 10).bfloat16
    assert len(clock) == 1
    assert "hidden_size 32" in caplog.text
    precision.for_training("cpu", LlamaConfig(hidden_size=48, num_attention_heads=4))
    assert len(clock) == 2
    for damage in ("{", "[]", json.dumps({key: {} for key in json.loads((tmp_path / "precision.json").read_text())})):
        (tmp_path / "precision.json").write_text(damage)
        precision.for_training("cpu", CONFIG)
    assert len(clock) == 5


def test_an_accelerator_and_a_cpu_without_instructions_are_not_measured(clock, monkeypatch):
    assert precision.for_training("cuda:0", CONFIG).bfloat16
    monkeypatch.setattr(precision, "computes_bfloat16", lambda _: False)
    assert not precision.for_training("cpu", CONFIG).bfloat16
    assert clock == []


@pytest.mark.parametrize(
    "config", [CONFIG, GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=260)], ids=["llama", "gpt2"]
)
def test_one_block_is_timed_in_every_phase_and_nothing_else_notices(config):
    state, before = torch.get_rng_state(), config.to_dict()
    found = precision.times(config)
    assert found.keys() == set(precision.PHASES)
    assert all(value > 0 for phase in found.values() for value in phase.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert config.to_dict() == before


def test_a_model_of_which_no_block_can_be_made_goes_by_the_flags_and_says_so(clock, monkeypatch, caplog):
    def refuse(config):
        raise ValueError("unknown class")

    monkeypatch.undo()
    monkeypatch.setattr(precision, "one_block", refuse)
    assert precision.times(CONFIG) is None
    assert "no single block of LlamaConfig can be measured (ValueError: unknown class)" in caplog.text
