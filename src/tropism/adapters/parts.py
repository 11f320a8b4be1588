"""What an adapter is made of, found on a live model or in a folder; and the one refusal that names it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tropism.adapters.kinds import DOES, KINDS, Operation
from tropism.errors import UsageError
from tropism.site import base_model

SERVED = frozenset(
    {
        "VERA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "FOURIERFT", "LN_TUNING", "MISS", "RANDLORA", "C3A", "VBLORA",
        "SHIRA", "DELORA", "TRAINABLE_TOKENS",
    }
)  # fmt: skip
"""PEFT's other methods that a test loads, merges and switches off; a method that is not here is refused."""

CHANGED_START = frozenset({"pissa", "loftq", "corda"})
"""Kinds whose initialisation changed the base weight: what was learned is `s(B·A − B₀·A₀)`."""

_VARIANT_OPTIONS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora",
    "layer_replication", "megatron_config",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One thing that an adapter does: its kind, and the module it does it at (empty: the adapter as a whole)."""

    kind: str
    module: str = ""
    named: str = ""
    """What it is called, where its kind holds several: PEFT's method, or an option of LoRA."""

    def __str__(self) -> str:
        name = self.named or KINDS[self.kind].name
        return f"{name} at {self.module}" if self.module else name


def require(
    operation: Operation,
    parts: Iterable[Part],
    who: str,
    error: type[UsageError] = UsageError,
    *,
    started: bool = False,
) -> None:
    """Raise `error`, beginning with `who`, where some part of an adapter cannot be treated exactly.

    The sentence names the part, its module, what the adapter cannot do, and why. `started`: the adapter is known as it
    was before training, so that what was learned can be told from what an initialisation put there.
    """
    for part in parts:
        kind = KINDS[part.kind]
        if operation not in kind.exact:
            does = DOES[operation].partition(" (")[0]
            raise error(f"{who}: the adapter has {part}, and cannot {does}: {kind.why.format(it=part.named)}")
        if part.kind in CHANGED_START and operation in ("read", "frozen adapter") and not started:
            raise error(
                f"{who}: the adapter has {part}, which changed the base weight at the start, so that what was learned is "
                "s(B·A − B₀·A₀); give start=FOLDER, the adapter as saved before training, or convert it to plain LoRA: "
                "peft_model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START)"
            )


def parts_of_model(model: nn.Module, names: Collection[str] | None = None) -> list[Part]:
    """The parts of a live model's adapters: of those named, or of its active ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = base_model(model)
    configs: Mapping[str, Any] = configs_of(model)
    tuned = {name: module for name, module in inner.named_modules() if isinstance(module, BaseTunerLayer)}
    if names is None:
        names = {name for module in tuned.values() for name in module.active_adapters}
        names |= {name for name, config in configs.items() if config.is_prompt_learning}
    found = [part for path, module in tuned.items() for part in _of_layer(path, module, names)]
    found += _trained_beside(inner, names)
    for name in sorted(names):
        if name in configs:
            found += parts_of_config(configs[name].to_dict())
    return once(found)


def configs_of(model: nn.Module) -> Mapping[str, Any]:
    """The configurations of a model's adapters by name, as PEFT keeps them on the wrapper and on the model inside."""
    held: Any = model
    outer = getattr(held, "peft_config", None)  # PEFT's attribute, on their objects
    inner = getattr(base_model(model), "peft_config", None)
    found = outer if isinstance(outer, Mapping) else inner
    return found if isinstance(found, Mapping) else {}


def parts_of_config(config: Mapping[str, Any]) -> list[Part]:
    """What a configuration (`adapter_config.json`) says of an adapter, apart from its modules."""
    method = str(getattr(config.get("peft_type"), "value", config.get("peft_type")))
    if method == "ADALORA":
        return [Part("adalora")]
    if method != "LORA":
        return [Part("other" if method in SERVED else "unmerged", named=method)]
    found = [Part("variant", named=option) for option in _VARIANT_OPTIONS if config.get(option)]
    if config.get("use_dora"):
        found.append(Part("dora"))
    if config.get("velora_config"):
        found.append(Part("same_forward"))
    if config.get("lora_bias"):
        found.append(Part("lora_bias"))
    if config.get("bias") not in (None, "none"):
        found.append(Part("bias"))
    if config.get("modules_to_save"):
        found.append(Part("modules_to_save", ", ".join(sorted(config["modules_to_save"]))))
    if config.get("trainable_token_indices"):
        found.append(Part("tokens"))
    return found + _of_start(config.get("init_lora_weights"))


def _of_start(init: Any) -> list[Part]:
    """The kind that an initialisation makes, where it is not plain LoRA."""
    name = str(init).lower()
    if name in ("true", "false", "none", "gaussian", "eva", "orthogonal"):
        return []
    if name == "mica":
        return [Part("same_forward")]
    if name in ("pissa", "olora"):
        return [Part("pissa", named=f"init_lora_weights={name!r}")]
    # CorDA, LoRA-GA, PiSSA by randomised SVD, and whatever a later PEFT adds
    return [Part("loftq" if name == "loftq" else "corda", named=f"init_lora_weights={name!r}")]


def _of_layer(path: str, module: Any, names: Collection[str]) -> Iterator[Part]:
    """The parts at one of PEFT's layers."""
    from peft.tuners import lora

    if not isinstance(module, lora.LoraLayer):
        if any(name in names for name in _adapters_at(module)):
            package = type(module).__module__.rpartition("tuners.")[2].partition(".")[0]
            yield Part("tokens" if package == "trainable_tokens" else "other", path, package)
        return
    for name in sorted(names):
        if name in module.lora_embedding_A:
            yield Part("embedding", path)
        elif name in module.lora_A:
            yield Part(_kind_of_factors(module, name), strip_base_layer(path))
        variant = type(module.lora_variant.get(name)).__name__
        if name in module.lora_variant and not variant.startswith(("Dora", "_Dora", "MiCA", "Velora")):
            yield Part("variant", path)
        elif variant.startswith(("MiCA", "Velora")):
            yield Part("same_forward", path)
        elif name in module.lora_variant or module.use_dora.get(name):
            yield Part("dora", path)
        if module.lora_bias.get(name):
            yield Part("lora_bias", path)


def _kind_of_factors(module: Any, name: str) -> str:
    from peft.tuners import lora

    A = module.lora_A[name]
    if isinstance(A, nn.Parameter):
        return "adalora"
    if isinstance(module, lora.layer.ParamWrapper):
        return "experts"
    if isinstance(module, lora.layer.MultiheadAttention):
        return "variant"
    return "lora" if isinstance(A, nn.Linear) else "conv"


def _adapters_at(module: Any) -> dict[str, list[Any]]:
    """The tensors and modules that a layer of any PEFT method holds for each adapter."""
    found: dict[str, list[Any]] = {}
    for holder in module.adapter_layer_names:
        held: Any = getattr(module, holder, None)  # PEFT's object: a dictionary of tensors or of modules by adapter
        if hasattr(held, "keys"):
            for name in held.keys():  # noqa: SIM118
                found.setdefault(str(name), []).append(held[name])
    return found


def trained_adapters(model: nn.Module) -> set[str]:
    """Names of the adapters, of any PEFT method, that have a trainable tensor in one of their layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: set[str] = set()
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        for name, held in _adapters_at(module).items():
            tensors = [p for part in held for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
            if any(tensor.requires_grad for tensor in tensors):
                found.add(name)
    return found


def at_weights(parts: Iterable[Part], weights: Collection[str]) -> list[Part]:
    """The parts at the modules of some weights, and those of an adapter as a whole."""
    return [
        part
        for part in parts
        if not part.module or any(weight == part.module or weight.startswith(f"{part.module}.") for weight in weights)
    ]


def _trained_beside(inner: nn.Module, names: Collection[str]) -> Iterator[Part]:
    """Whole modules and rows of embeddings that were trained with an adapter."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    for path, module in inner.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and any(name in module.modules_to_save for name in names):
            yield Part("modules_to_save", path)
        elif isinstance(module, TrainableTokensWrapper):
            delta: Any = module.token_adapter.trainable_tokens_delta
            if any(name in delta for name in names):
                yield Part("tokens", path)


def strip_base_layer(path: str) -> str:
    """A module's name without the wrappers that PEFT nests where it adapts several parameters of one module."""
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return path


def once(parts: Iterable[Part]) -> list[Part]:
    """Each kind at each module once; what is known with its module is not repeated without."""
    placed = {part.kind for part in parts if part.module}
    return list(dict.fromkeys(part for part in parts if part.module or part.named or part.kind not in placed))


def unadapted(module: nn.Module) -> nn.Module:
    """The base model's own module, where PEFT adapted it or keeps a trained copy of it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    while True:
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        else:
            return module
