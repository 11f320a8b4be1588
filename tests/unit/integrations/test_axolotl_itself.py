"""The Axolotl plugin in Axolotl's own manager: loaded by name, asked for its options, called on a trainer."""

import sys

import pytest
import torch

import tiny
import trainers
import tropism as tp

base = pytest.importorskip(
    "axolotl.integrations.base", reason="Axolotl is not installed (pip install --no-deps axolotl addict)"
)
NAME = "tropism.integrations.axolotl.TropismPlugin"


@pytest.fixture
def manager(monkeypatch):
    """Axolotl's manager is one for the process; each test has a fresh one."""
    monkeypatch.setattr(base.PluginManager, "_instance", None)
    # Another test may have loaded the plugin upon a stand-in for Axolotl.
    monkeypatch.delitem(sys.modules, "tropism.integrations.axolotl", raising=False)
    manager = base.PluginManager.get_instance()
    manager.plugins.clear()
    manager.register(NAME)
    yield manager
    manager.plugins.clear()


def test_the_manager_finds_the_plugin_and_its_options(manager):
    assert list(manager.plugins) == [NAME]
    assert isinstance(manager.plugins[NAME], base.BasePlugin)
    assert manager.get_input_args() == ["tropism.integrations.axolotl.TropismArgs"]


def test_the_manager_puts_the_guard_on_the_trainer(manager, tmp_path):
    from axolotl.utils.dict import DictDefault

    path = tmp_path / "caps.safetensors"
    directions = tp.Directions({tp.Site(1): torch.randn(2, 32, generator=torch.Generator().manual_seed(0))})
    directions.save(path)
    cfg = DictDefault(
        {"tropism": {"directions": {"caps": str(path)}, "guard": {"gradient_projection": {"directions": "caps"}}}}
    )
    trainer = trainers.hf_trainer(tiny.model(), trainers.dataset(4), trainers.settings(tmp_path, 4))
    kept = trainers.Gradients()
    trainer.add_callback(kept)
    manager.post_trainer_create(cfg, trainer)
    trainer.train()

    model = tiny.model()
    with tp.GradientProjection(directions).attach(model):
        model(**tiny.batch(4)).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(kept.found[name], parameter.grad, atol=1e-6, rtol=1e-4)
