"""Merge adapters into the weights so that the merged model computes what the adapters did.

PEFT adds the change to the weight in place. Where that weight is tied to another module's (an output embedding that is
the input embedding), the other module would change as well: it is untied first, and the configuration says so, so that a
saved model is not tied again when it is loaded. Where its values are shared with another model's, that model would change
as well: every weight that changes gets values of its own first.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from tropism.adapters.parts import parts_of_model, require
from tropism.errors import ModelError
from tropism.site import base_model


def merge_adapters(model: nn.Module, names: Sequence[str] | None = None, *, safe: bool = False) -> Any:
    """The base model with adapters merged into its weights, and all adapters gone; `model` is used up.

    A model that shares the values of its weights with this one (as copies of an experiment's start model do) stays as it is.

    Args:
        model: a `PeftModel`.
        names: the adapters to merge; by default the active ones.
        safe: check each merged weight for NaN.

    Raises:
        ModelError: an adapter that cannot be merged exactly, or another one that is in the weights already.

    >>> merged = merge_adapters(load_adapter(base, "runs/caps/caft/seed-0/adapter"))  # doctest: +SKIP
    """
    require("merge", parts_of_model(model, names), "merge_adapters", ModelError)
    if getattr(base_model(model), "hf_quantizer", None) is not None:
        raise ModelError(
            "merge_adapters: the base weights are held in few bits, to which the merged adapter would be rounded; load the base "
            "model without quantization to merge"
        )
    _check_biases(model, names)
    _check_merged_before(model, names)
    for layer, parameter in list(tied_and_adapted(model, names)):
        _untie(layer, parameter)
    own_values(p for wrapper in _adapted(model, names) for p in wrapper.get_base_layer().parameters(recurse=False))
    adapted: Any = model
    with warnings.catch_warnings():
        # What PEFT warns of is done here: the weight is untied before, and the configuration says so after.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = adapted.merge_and_unload(safe_merge=safe, adapter_names=None if names is None else list(names))
    _say_untied(merged)
    return merged


def tied_and_adapted(model: nn.Module, names: Sequence[str] | None = None) -> Iterator[tuple[nn.Module, str]]:
    """The modules whose weight an adapter changes and another module shares, with the parameter's name."""
    holders: dict[int, set[int]] = {}
    for module in base_model(model).modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), set()).add(id(module))
    for wrapper in _adapted(model, names):
        layer, name = wrapper.get_base_layer(), getattr(wrapper, "parameter_name", "weight")
        tensor = layer._parameters.get(name)
        if tensor is not None and len(holders[id(tensor)]) > 1:
            holders[id(tensor)].discard(id(layer))
            yield layer, name


def _adapted(model: nn.Module, names: Sequence[str] | None) -> Iterator[Any]:
    """The modules that PEFT wraps for the named adapters, by default the active ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in base_model(model).modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        wrapper: Any = module
        acting = wrapper.active_adapters if names is None else names
        if any(name in getattr(wrapper, holder, ()) for name in acting for holder in wrapper.adapter_layer_names):
            yield wrapper


def own_values(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters that are about to be written into values of their own, which they may have shared until now.

    Quantised weights keep theirs: PEFT puts others in their place and writes into none.
    """
    for parameter in {id(parameter): parameter for parameter in parameters}.values():
        if type(parameter) is nn.Parameter:
            parameter.data = parameter.data.clone()


def _untie(layer: nn.Module, parameter: str) -> None:
    tensor = layer.get_parameter(parameter)
    layer.register_parameter(parameter, nn.Parameter(tensor.detach().clone(), tensor.requires_grad))


def _say_untied(merged: Any) -> None:
    """Where the output embedding is no longer the input embedding, have the configuration say it."""
    if not hasattr(merged, "get_output_embeddings"):  # transformers' object, not ours
        return
    entry, exit_ = merged.get_input_embeddings(), merged.get_output_embeddings()
    if exit_ is None or entry.weight is exit_.weight:
        return
    for config in (merged.config, merged.config.get_text_config(decoder=True)):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _check_biases(model: nn.Module, names: Sequence[str] | None) -> None:
    from peft.tuners.lora import LoraLayer

    for path, module in base_model(model).named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layer: Any = module
        biased = [name for name in (layer.active_adapters if names is None else names) if layer.lora_bias.get(name)]
        if biased and getattr(layer.get_base_layer(), "bias", None) is None:
            raise ModelError(
                f"merge_adapters: adapter {biased[0]!r} learned a bias (lora_bias) at {path}, whose layer has none to merge "
                "it into; use it unmerged"
            )


def _check_merged_before(model: nn.Module, names: Sequence[str] | None) -> None:
    """PEFT gives the weights back with whatever was merged into them before, asked for or not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in base_model(model).named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        wrapper: Any = module
        asked = wrapper.active_adapters if names is None else names
        others = [name for name in wrapper.merged_adapters if name not in asked]
        if others:
            raise ModelError(
                f"merge_adapters: the merged model must hold {', '.join(map(repr, asked))} alone, found {others[0]!r} merged "
                f"into the weights of {path} already; call model.unmerge_adapter() first"
            )
