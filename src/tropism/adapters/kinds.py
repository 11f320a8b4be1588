"""The kinds of adapters, and what each operation can do with each: exactly, or not at all.

LoRA's change of a weight is `ΔW = s·B·A`. Much of what PEFT calls an adapter is more than that (a bias, a whole
copy of a module, a magnitude) or something else altogether. What an operation cannot treat exactly it refuses.
`docs/works-with.md` shows this table; a test keeps the two equal, and another tries every cell.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Operation = Literal["load", "merge", "switch off", "ablate", "read", "frozen adapter", "constrain", "edit", "route"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

DOES: dict[Operation, str] = {
    "load": "be loaded (`models.load_adapter`, `chat`, `evaluate`)",
    "merge": "be merged into the weights",
    "switch off": "be switched off to give the base model back (`kl_to_base`, `base_perplexity`, `Contrast.of_models`)",
    "ablate": "be ablated by its scale (`ablation_mode`)",
    "read": "be read as what was learned (`parameter_directions`, norms, `lora_geometry`)",
    "frozen adapter": "be a `FrozenAdapter`",
    "constrain": "be trained under an `UpdateConstraint` at its weights",
    "edit": "be edited after training (`SafeLoRA`, `Shrinkage`)",
    "route": "be trained under `GradientRouting`",
}
"""What an adapter of a kind must be able to do; ends the sentence "it cannot ..."."""


@dataclass(frozen=True)
class Kind:
    """One kind of adapter: what it is, which operations treat it exactly, and why the others do not."""

    name: str
    """As a table shows it."""
    exact: frozenset[Operation]
    why: str
    """Why the operations that are not in `exact` refuse it, and what to do instead."""
    on_condition: str = ""
    """What `exact` needs, where it is not unconditional."""


_ALL = frozenset(OPERATIONS)
_SERVED: frozenset[Operation] = frozenset({"load", "merge", "switch off"})
_NONE: frozenset[Operation] = frozenset()
_LORA_ONLY = "what it changes is not s·B·A; train a plain LoRA adapter"

KINDS: dict[str, Kind] = {
    "lora": Kind("LoRA on linear layers, rsLoRA, rank and alpha patterns, EVA, `orthogonal`", _ALL, ""),
    "same_forward": Kind("MiCA, VeLoRA", _ALL - {"route"}, "its backward pass is its own; use plain LoRA"),
    "embedding": Kind(
        "LoRA on an embedding",
        _ALL - {"route"},
        "only adapters of linear layers; leave embeddings out of target_modules",
    ),
    "experts": Kind(
        "LoRA on fused experts (`target_parameters`)",
        _ALL - {"frozen adapter", "route"},
        "the factors of all experts lie in one tensor and act through no module; adapt the attention layers instead",
        "read and edited on a live model, not from a folder",
    ),
    "lora_bias": Kind(
        "`lora_bias`",
        _SERVED | {"ablate", "frozen adapter", "constrain", "route"},
        "a bias was learned beside s·B·A; train with lora_bias=False",
        "merged where the base layer has a bias; the constraint leaves the bias free",
    ),
    "pissa": Kind(
        "PiSSA, OLoRA",
        frozenset({"load", "merge", "read", "frozen adapter", "constrain"}),
        "{it} changed the base weight at the start, so that what was learned is s(B·A − B₀·A₀); convert it to plain "
        "LoRA: peft_model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START)",
        "read with `start=`, the adapter as saved before training",
    ),
    "loftq": Kind(
        "LoftQ",
        frozenset({"merge", "read", "frozen adapter", "constrain"}),
        "{it} replaced the base weight by a quantised one at the start; train plain LoRA on the quantised model",
        "read with `start=`, the adapter as saved before training",
    ),
    "corda": Kind(
        "CorDA, LoRA-GA, `pissa_niter_N`",
        frozenset({"merge", "read", "frozen adapter", "constrain"}),
        "{it} changed the base weight at the start in a way that cannot be repeated from the folder; convert it to "
        "plain LoRA: peft_model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=START)",
        "read with `start=`, the adapter as saved before training",
    ),
    "dora": Kind(
        "DoRA", _SERVED, "DoRA scales the whole weight by a learned magnitude beside s·B·A; train with use_dora=False"
    ),
    "conv": Kind("LoRA on a convolution", _SERVED, "only linear layers and embeddings; leave it out of target_modules"),
    "modules_to_save": Kind(
        "`modules_to_save`",
        _SERVED | {"constrain"},
        "the whole module was trained, which is not s·B·A; train without modules_to_save",
        "the constraint leaves the module free",
    ),
    "tokens": Kind(
        "`trainable_token_indices`",
        _SERVED | {"constrain"},
        "rows of the embedding were trained, which are not s·B·A; train without trainable_token_indices",
        "the constraint leaves the rows free",
    ),
    "bias": Kind(
        "`bias='all'`, `'lora_only'`",
        frozenset({"load", "merge", "constrain"}),
        "biases of the base model were trained with it; train with bias='none'",
        "the constraint leaves the biases free",
    ),
    "variant": Kind(
        "aLoRA, Arrow, KaSA, MonteCLoRA, BD-LoRA, QA-LoRA, layer replication, attention as one module",
        _NONE,
        "this variant of LoRA computes something else than W + s·B·A; use plain LoRA",
    ),
    "adalora": Kind("AdaLoRA", _SERVED, "AdaLoRA learns B·diag(E)·A and prunes E in training; use plain LoRA"),
    "other": Kind("VeRA, IA³, LoHa, LoKr, OFT, BOFT, HRA, FourierFT and others that PEFT merges", _SERVED, _LORA_ONLY),
    "unmerged": Kind(
        "prompt and prefix tuning, P-tuning, Llama-Adapter, X-LoRA, Poly",
        _NONE,
        "it acts on the input or by a router, not on weights; use plain LoRA",
    ),
}
"""Kind → what can be done with it."""


def table() -> str:
    """The kinds and operations as a Markdown table, as `docs/works-with.md` has it."""
    lines = [f"| adapter | {' | '.join(OPERATIONS)} | on condition |", f"|---|{'---|' * (len(OPERATIONS) + 1)}"]
    for kind in KINDS.values():
        cells = ["exact" if operation in kind.exact else "refused" for operation in OPERATIONS]
        lines.append(f"| {kind.name} | {' | '.join(cells)} | {kind.on_condition} |")
    return "\n".join(lines)
