"""How a model is switched while something is read or generated: evaluation mode, and without its adapters."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tropism.adapters.parts import parts_of_model, require
from tropism.errors import ModelError


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Switch dropout off inside; afterwards every module, not only the outermost, has the mode that it had."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Run a PEFT model without its adapters inside; a model that has none is its own base.

    `requires_grad` is restored afterwards: PEFT alone switches it on for adapters that were frozen. Raises `ModelError`
    for an adapter without which the model is not its base (PiSSA and its like, `bias='all'`).
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        yield
        return
    require("switch off", parts_of_model(model, list(model.peft_config)), "the base model", ModelError)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
