"""Put a saved adapter on a model so that what was saved is what is computed, or refuse it.

PEFT warns of a tensor that is missing or that fits nowhere, and goes on: the model then answers as the base model does,
or as a half of the adapter would have it. Here each is an error.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from tropism.adapters.folder import PREFIX, AdapterFolder, open_adapter
from tropism.adapters.merge import own_values
from tropism.adapters.parts import configs_of, require
from tropism.errors import ModelError
from tropism.site import base_model


def load_adapter(
    model: nn.Module, folder: str | Path, *, name: str = "default", trainable: bool = False, any_base: bool = False
) -> PeftModel:
    """The model with the adapter of a folder live in it, in evaluation mode unless `trainable`; a `PeftModel`.

    Args:
        model: the base model, which is changed in place, or a `PeftModel`, to which a further adapter is added.
        folder: as PEFT's `save_pretrained` writes it, with `adapter_model.safetensors`.
        name: what the adapter is called in the model.
        trainable: leave its parameters trainable.
        any_base: accept an adapter whose configuration names another base model.

    Raises:
        ModelError: a folder that holds no adapter or a damaged one; an adapter of another base model, of another width,
            with tensors that are missing or fit nowhere; a kind of adapter that cannot be loaded exactly. The model is
            then as it was before, except under an initialisation that changes base weights (PiSSA, OLoRA).

    >>> model = load_adapter(base, "runs/caps/baseline/seed-0/adapter")  # doctest: +SKIP
    """
    opened = open_adapter(folder)
    who = f"adapter {opened.path}"
    parts = opened.parts()
    require("load", parts, who, ModelError)
    changes_base = [part for part in parts if part.kind == "pissa"]
    held = configs_of(model)
    if changes_base and held:
        raise ModelError(
            f"{who}: {changes_base[0]} changes the base weights, under the adapters {', '.join(held)} as well"
        )
    if name in held:
        raise ModelError(f"{who}: the model has an adapter {name!r} already; give it another name")
    if not any_base:
        check_base(opened, model)
    fresh = not isinstance(model, PeftModel)
    if changes_base:
        own_values(base_model(model).parameters())
    try:
        return _put_on(model, opened, name, trainable)
    except ModelError:
        if not changes_base:
            _take_off(model, name, fresh)
        raise


def check_base(opened: AdapterFolder, model: nn.Module) -> None:
    """Raise `ModelError` where an adapter's configuration names another base model than this one."""
    theirs, ours = opened.base_model, name_of(model)
    if differs(theirs, ours):
        raise ModelError(
            f"adapter {opened.path} was trained on {theirs!r}, the model is {ours!r}; load it on its own base model, or, "
            "where both are the same weights, correct base_model_name_or_path in its adapter_config.json"
        )


def check_fits(folder: str | Path, model: nn.Module) -> None:
    """Raise `ModelError` where a saved adapter is not what its configuration calls for on this model.

    No value is read or computed: the model may be on the meta device. It is used up.
    """
    opened = open_adapter(folder)
    who = f"adapter {opened.path}"
    require("load", opened.parts(), who, ModelError)
    config: Any = PeftConfig.from_pretrained(str(opened.path))
    if _is_lora(opened):
        config.init_lora_weights = True  # others compute a start from the base weights
    try:
        adapted = get_peft_model(base_model(model), config)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{who}: {_why(model, opened, 'default', error)}") from None
    expected = _expected(adapted, "default")
    for key in expected.keys() & opened.shapes.keys():
        if expected[key] != opened.shapes[key]:
            raise ModelError(
                f"{who}: its tensor {key.removeprefix(PREFIX)} has shape {list(opened.shapes[key])}, this model's adapter "
                f"{list(expected[key])}; it was trained on a model of another size"
            )
    missing = sorted(expected.keys() - opened.shapes.keys())
    # An adapted embedding's own weight may be saved with it; it is the base model's.
    extra = sorted(key for key in opened.shapes.keys() - expected.keys() if ".base_layer." not in key)
    if missing or extra:
        raise ModelError(f"{who}: {_misfit(opened, 'default', missing, extra, len(expected))}")


def name_of(model: nn.Module) -> str:
    """The name a model was loaded by; empty where it has none."""
    config: Any = getattr(base_model(model), "config", None)
    return str(getattr(config, "name_or_path", "") or "")


def differs(one: str | None, other: str | None) -> bool:
    """Whether two names are known and cannot be of one model.

    Only the last part counts: the same model is known by a hub name here and by a folder there.
    """
    return bool(one and other) and _last(str(one)) != _last(str(other))


def _last(name: str) -> str:
    parts = name.replace("\\", "/").rstrip("/").lower().split("/")
    cached = [part for part in parts if part.startswith("models--")]  # a snapshot in the hub's cache
    return cached[-1].split("--")[-1] if cached else parts[-1]


def _put_on(model: nn.Module, opened: AdapterFolder, name: str, trainable: bool) -> PeftModel:
    who, folder = f"adapter {opened.path}", str(opened.path)
    inner: Any = base_model(model)
    mapping = getattr(inner, "_checkpoint_conversion_mapping", {})
    try:
        with warnings.catch_warnings():
            # PEFT's warnings of missing tensors, which are errors below, and of a base model's other name, checked above
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
            if isinstance(model, PeftModel):
                adapted = model
            else:
                config = PeftConfig.from_pretrained(folder)
                config.inference_mode = not trainable
                named = config.base_model_name_or_path
                adapted = get_peft_model(inner, copy.deepcopy(config), adapter_name=name)
                adapted.peft_config[name].base_model_name_or_path = named
            loaded = adapted.load_adapter(
                folder, name, is_trainable=trainable, torch_device="cpu", key_mapping=mapping or None
            )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{who}: {_why(model, opened, name, error)}") from None
    if _lost_biases(adapted, opened):
        raise ModelError(
            f"{who}: its configuration says bias='lora_only' and it holds no bias, since PEFT up to 0.20 saves none; train "
            "with bias='none', or with a newer PEFT"
        )
    expected = _expected(adapted, name)
    # Of modules and biases trained with the adapter, PEFT reports none as missing.
    beside = [key for key in expected if ".lora_" not in key and key not in opened.shapes] if _is_lora(opened) else []
    missing = [key for key in loaded.missing_keys if "vblora_vector_bank" not in key] + beside
    if missing or loaded.unexpected_keys:
        raise ModelError(f"{who}: {_misfit(opened, name, missing, list(loaded.unexpected_keys), len(expected))}")
    return adapted


def _lost_biases(adapted: PeftModel, opened: AdapterFolder) -> bool:
    """Whether biases were trained with the adapter and are not in its file."""
    from peft.tuners.lora import LoraLayer

    if opened.config.get("bias") != "lora_only" or any(
        key.endswith(".bias") and ".lora_" not in key for key in opened.shapes
    ):
        return False
    layers: list[Any] = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    return any(getattr(layer.get_base_layer(), "bias", None) is not None for layer in layers)


def _expected(adapted: PeftModel, name: str) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor that the adapter has on this model, as PEFT would save it."""
    tensors = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _misfit(opened: AdapterFolder, name: str, missing: list[str], unexpected: list[str], count: int) -> str:
    shown = (missing or unexpected)[0].removeprefix(PREFIX).replace(f".{name}", "")
    return (
        f"its tensors must be those that its configuration calls for on this model ({count}), found {len(missing)} missing "
        f"and {len(unexpected)} that fit nowhere, of {len(opened.shapes)} (first {shown!r}); it was saved from another "
        "architecture or wrapper, or is incomplete: save it again from the model it is for"
    )


def _why(model: nn.Module, opened: AdapterFolder, name: str, error: Exception) -> str:
    """One sentence for what PEFT raised while it put an adapter on a model."""
    held: Any = model
    carrier = held if isinstance(model, PeftModel) else None
    shapes = {key.removeprefix(PREFIX): shape for key, shape in opened.shapes.items()}
    inner = base_model(model)
    for key, parameter in inner.named_parameters():
        plain = key.replace(f".{name}", "")
        if plain in shapes and shapes[plain] != tuple(parameter.shape) and (carrier is not None or f".{name}" in key):
            return (
                f"its tensor {plain} has shape {list(shapes[plain])}, this model's adapter {list(parameter.shape)}; it was "
                "trained on a model of another size"
            )
    said = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, KeyError):
        return f"its tensor {error.args[0]!s} is missing; save it again from the model it is for"
    return f"it does not fit this model: {said[0]}"


def _is_lora(opened: AdapterFolder) -> bool:
    return opened.config.get("peft_type") == "LORA"


def _take_off(model: nn.Module, name: str, fresh: bool) -> None:
    """Leave a model as it was before an adapter was put on it."""
    wrapper: Any = model
    if not fresh:
        if name in wrapper.peft_config:
            wrapper.delete_adapter(name)
        return
    inner: Any = base_model(model)
    _unwrap(inner)
    if "peft_config" in vars(inner):
        del inner.peft_config


def _unwrap(module: nn.Module) -> None:
    """Put each module that PEFT wrapped back in place of its wrapper."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, child in list(module.named_children()):
        if isinstance(child, BaseTunerLayer):
            setattr(module, name, child.get_base_layer())
        elif isinstance(child, AuxiliaryTrainingWrapper):
            setattr(module, name, child.original_module)
        else:
            _unwrap(child)
