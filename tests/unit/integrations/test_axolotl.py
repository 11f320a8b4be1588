"""The Axolotl plugin against a stub of `axolotl.integrations.base` (0.21): its base class, and how its manager calls it."""

import importlib
import sys
import types

import pytest
import torch
from transformers import TrainerCallback

import tiny
import trainers
import tropism as tp
from tropism.errors import SpecError
from tropism.interventions.base import attachments

SHARE = "guard/gradient_projection/resid_post.1/share_removed"


class DictDefault(dict):
    """Axolotl's configuration: a key that is not there is None, also as an attribute."""

    def __missing__(self, key):
        return None

    def __getattr__(self, key):
        return self[key]


class BasePlugin:
    """The methods of Axolotl's base class that its manager calls on every plugin around a training."""

    def register(self, cfg): ...
    def get_input_args(self): ...
    def get_training_args_mixin(self): ...
    def pre_model_load(self, cfg): ...
    def post_model_load(self, cfg, model): ...
    def post_trainer_create(self, cfg, trainer): ...
    def add_callbacks_pre_trainer(self, cfg, model):
        return []

    def add_callbacks_post_trainer(self, cfg, trainer):
        return []

    def post_train(self, cfg, model): ...


@pytest.fixture
def plugin(monkeypatch):
    base = types.ModuleType("axolotl.integrations.base")
    base.BasePlugin = BasePlugin
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "axolotl.integrations.base", base)
    monkeypatch.delitem(sys.modules, "tropism.integrations.axolotl", raising=False)
    # As Axolotl loads it: the module by its name, the class by getattr, no arguments.
    return importlib.import_module("tropism.integrations.axolotl").TropismPlugin()


@pytest.fixture
def directions(tmp_path):
    path = tmp_path / "caps.safetensors"
    tp.Directions({tp.Site(1): torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}).save(path)
    return str(path)


class Tracker(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_the_guard_of_the_file_is_on_the_trainer_and_trackers_see_its_readings(plugin, directions, tmp_path):
    cfg = DictDefault(
        tropism=DictDefault(
            directions=DictDefault(caps=directions),
            guard=DictDefault(gradient_projection=DictDefault(directions="caps")),
        )
    )
    trainer = trainers.hf_trainer(tiny.model(), trainers.dataset(4), trainers.settings(tmp_path, 4))
    tracker, kept = Tracker(), trainers.Gradients()
    trainer.add_callback(tracker)
    trainer.add_callback(kept)
    plugin.post_trainer_create(cfg, trainer)
    trainer.train()
    assert 0 < tracker.logs[0][SHARE] < 1
    assert list(attachments(trainer.model)) == []
    model = tiny.model()
    with tp.GradientProjection(tp.Directions.load(directions)).attach(model):
        model(**tiny.batch(4)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept.found[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_axolotl_validates_the_options(plugin):
    module, _, name = plugin.get_input_args().rpartition(".")
    model = getattr(importlib.import_module(module), name)
    assert model.model_validate({}).tropism is None
    with pytest.raises(ValueError, match=r"tropism.gaurd"):
        model.model_validate({"tropism": {"gaurd": {}}})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "needs a section tropism: with a guard, found none"),
        ({"guard": {"gradient_projection": {"directions": "loud"}}}, "loud"),
        ({"guard": {"gradient_projektion": {}}}, "gradient_projektion"),
    ],
)
def test_a_section_that_cannot_be_used_is_refused(plugin, tmp_path, section, message):
    trainer = trainers.hf_trainer(tiny.model(), trainers.dataset(4), trainers.settings(tmp_path, 4))
    with pytest.raises(SpecError, match=message):
        plugin.post_trainer_create(DictDefault(tropism=section), trainer)
