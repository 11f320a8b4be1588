"""A saved adapter, read as data: its configuration, its tensors' names and shapes, and what it is made of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tropism.adapters.parts import Part, once, parts_of_config, strip_base_layer
from tropism.errors import ModelError, UsageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before a module's name in a saved adapter."""


@dataclass(frozen=True)
class AdapterFolder:
    """A folder that PEFT's `save_pretrained` wrote. Nothing of its tensors is in memory."""

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every tensor by its key."""

    @property
    def base_model(self) -> str | None:
        """The model it was trained on, as its configuration names it."""
        return self.config.get("base_model_name_or_path") or None

    def rank(self, module: str) -> int:
        """The rank that the configuration gives LoRA at a module."""
        return int(_patterned(self.config, "rank_pattern", module, self.config["r"]))

    def scale(self, module: str) -> float:
        """`α/r`, or `α/√r` with rsLoRA."""
        r = self.rank(module)
        alpha = float(_patterned(self.config, "alpha_pattern", module, self.config["lora_alpha"]))
        return alpha / (r**0.5 if self.config.get("use_rslora") else r)

    def parts(self) -> list[Part]:
        """What the adapter is made of, by its configuration and by its tensors."""
        by_config = parts_of_config(self.config)
        if self.config.get("peft_type") != "LORA":
            return by_config
        by_tensor = [self._part(key, shape) for key, shape in self.shapes.items()]
        return once([*(part for part in by_tensor if part is not None), *by_config])

    def _part(self, key: str, shape: tuple[int, ...]) -> Part | None:
        module, found, rest = key.removeprefix(PREFIX).partition(".lora_")
        if not found:
            return self._trained_beside(key.removeprefix(PREFIX))
        if rest == "B.bias":
            return Part("lora_bias", module)
        if rest.startswith("embedding_"):
            return Part("embedding", module)
        if rest.startswith("magnitude_vector"):
            return Part("dora", module)
        if rest == "A.weight":
            if self._is_of_experts(module):
                return Part("experts", strip_base_layer(module))
            return Part("conv" if len(shape) != 2 else "lora", module)
        if rest == "B.weight" or rest.startswith("velora_"):
            return None
        return Part("variant", module)

    def _trained_beside(self, name: str) -> Part | None:
        """What a tensor that is not LoRA's own was: a module, rows of an embedding, a bias of the base model."""
        module, _, parameter = name.rpartition(".")
        if "token_adapter" in name:
            return Part("tokens", module.removesuffix(".token_adapter"))
        if module.endswith(".base_layer"):
            return None  # PEFT saves an adapted embedding's own weight with it; it is the base model's
        if parameter == "bias" and self.config.get("bias") not in (None, "none"):
            return Part("bias", module)
        return Part("modules_to_save", module)

    def _is_of_experts(self, module: str) -> bool:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import check_target_module_exists

        if not self.config.get("target_parameters"):
            return False
        if module.endswith(".base_layer"):
            return True
        targets = LoraConfig(target_modules=self.config.get("target_modules") or [])
        return not check_target_module_exists(targets, module)


def open_adapter(folder: str | Path, error: type[UsageError] = ModelError) -> AdapterFolder:
    """Read a saved adapter without its tensors' values; raises `error` where it cannot be read."""
    path = Path(folder)
    for needed in (CONFIG, WEIGHTS):
        if not (path / needed).is_file():
            inside = path / "adapter"  # a run's folder, and a prepared adapter's, hold theirs there
            if (inside / needed).is_file():
                raise error(f"{path} is a run's folder; its adapter is in {inside}, give that")
            raise error(
                f"{path} is not an adapter that can be read: {needed} is missing (PEFT writes both files with "
                "save_pretrained; pickled .bin adapters are not opened)"
            )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        with safe_open(str(path / WEIGHTS), framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as damage:
        raise error(f"{path} is damaged: {damage}") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise error(f"{path} is damaged: {CONFIG} must be an object with a peft_type")
    return AdapterFolder(path, config, shapes)


def _patterned(config: Mapping[str, Any], pattern: str, module: str, otherwise: Any) -> Any:
    from peft.utils.other import get_pattern_key

    values = config.get(pattern) or {}
    return values.get(get_pattern_key(list(values), module), otherwise)
