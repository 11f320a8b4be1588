"""Two LoRA adapters in one model: made, saved, loaded strictly, and exported without the forget adapter."""

import copy
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tropism.adapters.folder import open_adapter
from tropism.adapters.load import check_base
from tropism.adapters.merge import merge_adapters
from tropism.adapters.parts import parts_of_config, require
from tropism.adapters.targets import ALL_LINEAR, check_entries, resolve_targets
from tropism.errors import AdapterMissing, ModelError

WEIGHTS = "adapter_model.safetensors"


def two_adapters(
    model: nn.Module,
    retain: LoraConfig,
    forget: LoraConfig,
    *,
    retain_name: str = "retain",
    forget_name: str = "forget",
) -> PeftModel:
    """The model with both adapters live and trainable; ranks, alphas and target modules may differ.

    `target_modules="all-linear"` leaves out the towers that text does not pass through. PEFT's `PeftModel.set_adapter`
    takes one name only; both are made active through `model.base_model.set_adapter`.

    >>> model = two_adapters(base, retain=LoraConfig(r=8), forget=LoraConfig(r=4))  # doctest: +SKIP
    """
    if isinstance(model, PeftModel):
        raise ModelError("two_adapters: model must be a base model, found a PeftModel; call model.unload() first")
    if retain_name == forget_name:
        raise ModelError(f"two_adapters: the adapters must have two names, found {retain_name!r} twice")
    configs: tuple[Any, ...] = (retain, forget)
    for config in configs:
        require("ablate", parts_of_config(config.to_dict()), "two_adapters", ModelError)
    # PEFT writes into the configurations it is given; one configuration may be passed for both.
    retain, forget = (_resolved(model, copy.deepcopy(config)) for config in (retain, forget))
    peft_model = get_peft_model(model, retain, adapter_name=retain_name)
    peft_model.add_adapter(forget_name, forget)
    activate_both(peft_model, retain_name, forget_name)
    tuner: Any = peft_model.base_model
    tuner.peft_config = _Adapters(tuner.peft_config)
    return peft_model


def _resolved(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """The configuration with `all-linear` meaning the language model's, where a model has other towers, and checked."""
    layers = config.layers_to_transform
    check_entries(
        model,
        target_modules=sorted(config.target_modules) if isinstance(config.target_modules, set) else ALL_LINEAR,
        modules_to_save=config.modules_to_save or (),
        target_parameters=config.target_parameters or (),
        layers_to_transform=[layers] if isinstance(layers, int) else layers or (),
    )
    if config.target_modules == ALL_LINEAR:
        config.target_modules = resolve_targets(model, ALL_LINEAR)
    return config


class _Adapters(dict[str, Any]):
    """The adapters by name. Trainers look one up that is called 'default', and are told why there is none."""

    def __missing__(self, name: str) -> Any:
        raise AdapterMissing(
            f"the model has no adapter {name!r}, it has {', '.join(map(repr, self))}; TRL's DPOTrainer and GRPOTrainer "
            "copy the adapter 'default' as their reference: with two adapters pass DPOTrainer a ref_model of its own "
            "(the base model), and train GRPO with beta=0"
        )


def activate_both(model: PeftModel, retain: str = "retain", forget: str = "forget") -> None:
    """Make both adapters active and trainable."""
    tuner: Any = model.base_model
    tuner.set_adapter([retain, forget])


def save_adapters(model: PeftModel, folder: str | Path, *, retain: str = "retain", forget: str = "forget") -> None:
    """Write each adapter as an ordinary PEFT folder: `FOLDER/retain` and `FOLDER/forget`."""
    model.save_pretrained(str(folder), selected_adapters=[retain, forget])


def load_adapters(
    model: nn.Module,
    folder: str | Path,
    *,
    strict: bool = True,
    retain: str = "retain",
    forget: str = "forget",
    trainable: bool = True,
) -> PeftModel:
    """The base model with both adapters from `folder`, as `save_adapters` wrote them.

    Raises:
        ModelError: an adapter's folder is missing, damaged, or of another base model, or, with `strict`, a tensor that its
            configuration calls for is missing or of another shape. PEFT leaves such a tensor at its initial zero, which
            looks like perfect removal.
    """
    folder = Path(folder)
    for name in (retain, forget):
        if not (folder / name / WEIGHTS).is_file():
            raise ModelError(
                f"load_adapters: {folder} must hold both adapters as {retain}/{WEIGHTS} and {forget}/{WEIGHTS}, "
                f"found no "
                f"{name}/{WEIGHTS}"
            )
        check_base(open_adapter(folder / name), model)
    # Built from the configurations first and checked against the files, before any tensor is taken.
    configs = {name: LoraConfig.from_pretrained(str(folder / name)) for name in (retain, forget)}
    for config in configs.values():
        config.inference_mode = False
    peft_model = two_adapters(model, configs[retain], configs[forget], retain_name=retain, forget_name=forget)
    for name in (retain, forget):
        _check_tensors(peft_model, name, folder / name / WEIGHTS, strict)
        with warnings.catch_warnings():
            if not strict:  # said once, by us
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
            peft_model.load_adapter(str(folder / name), name, is_trainable=True)
    activate_both(peft_model, retain, forget)
    if not trainable:
        for parameter in peft_model.parameters():
            parameter.requires_grad_(False)
    return peft_model


def _check_tensors(model: PeftModel, adapter: str, file: Path, strict: bool) -> None:
    expected = {key: list(t.shape) for key, t in get_peft_model_state_dict(model, adapter_name=adapter).items()}
    with safe_open(str(file), framework="pt") as tensors:
        found = {key: list(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    wrong = sorted(key for key, shape in expected.items() if found.get(key) != shape)
    extra = sorted(found.keys() - expected.keys())
    if not wrong and not extra:
        return
    what = ", ".join(f"{key} {found.get(key, 'missing')}" for key in wrong[:3]) or f"{extra[0]} unexpected"
    said = (
        f"load_adapters: {file} must hold every tensor of adapter {adapter!r} ({len(expected)}), found "
        f"{len(wrong)} missing or of another shape and {len(extra)} unexpected ({what})"
    )
    if strict:
        raise ModelError(f"{said}; a missing tensor looks like perfect removal: save the adapter again")
    warnings.warn(said, stacklevel=3)


def export_retain(model: PeftModel, folder: str | Path, *, retain: str = "retain") -> Path:
    """Write the retain adapter alone as an ordinary PEFT folder, for `PeftModel.from_pretrained(base, folder)`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _has(model, retain)
    tensors = get_peft_model_state_dict(model, adapter_name=retain)
    save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        str(folder / WEIGHTS),
        metadata={"format": "pt"},
    )
    config = copy.deepcopy(model.peft_config[retain])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return folder


def export_merged(model: PeftModel, *, retain: str = "retain") -> nn.Module:
    """A copy of the base model with the retain adapter merged into its weights and the forget adapter gone.

    The model that is passed in is left as it is. Logits equal those of `forget_ablated` to rounding.
    """
    _has(model, retain)
    # In place and back would not restore the weights bit for bit.
    merged: nn.Module = merge_adapters(copy.deepcopy(model), [retain], safe=True)
    return merged


def _has(model: PeftModel, adapter: str) -> None:
    if adapter not in model.peft_config:
        raise ModelError(f"the model must have an adapter {adapter!r}, found {', '.join(model.peft_config)}")
