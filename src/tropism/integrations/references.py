"""Passes of preference and reinforcement trainers besides the policy's own: their reference, and their rollouts.

With PEFT, TRL computes the reference with the trained model itself, its adapters off: a guard on activations acts there
too, and the first loss of DPO is ln 2. With full fine-tuning the reference is a model of its own, which has no guard
unless one is attached to it; and log-probabilities computed ahead of training have none at all. Against an unguarded
reference, the guard's own effect counts as what the policy has learned.
"""

from typing import Any, Literal

from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainingArguments

from tropism.errors import AttachError, UsageError
from tropism.interventions.base import Composition, Intervention, Spared
from tropism.site import uncompiled

Passes = Literal["guarded", "plain"]

VLLM = (
    "InterventionCallback(rollouts='guarded'): vLLM samples rollouts from a copy of the model of its own, which no guard "
    "can reach; pass rollouts='plain' to sample from the unguarded model, or train with use_vllm=False"
)
PRECOMPUTED = (
    "InterventionCallback(reference='guarded'): the reference's log-probabilities were computed before the guard was "
    "attached; pass precompute_ref_log_probs=False, or reference='plain' to compare with the unguarded model"
)
UNSEEN = (
    "InterventionCallback(reference='guarded'): {config} may train against a reference model that the callback is not "
    "shown; add it with callback.add_to(trainer), or pass reference='plain' to leave the reference unguarded"
)


def check_passes(name: str, value: str) -> None:
    """Raise `UsageError` for a value that is neither `guarded` nor `plain`."""
    if value not in ("guarded", "plain"):
        raise UsageError(f"InterventionCallback.{name} must be 'guarded' or 'plain', found {value!r}")


def on_activations(guard: Intervention) -> Intervention | None:
    """The members of a guard that act on activations, in order; None where no member does."""
    members = tuple(part for part in guard.parts() if part.place == "activations")
    if not members:
        return None
    return members[0] if len(members) == 1 else Composition(members)


def spared(guard: Intervention, model: nn.Module, rollouts: Passes, reference: Passes) -> list[Spared]:
    """Which passes of the trained model itself the guard leaves alone."""
    if on_activations(guard) is None:
        return []
    found: list[Spared] = []
    if rollouts == "plain":
        found.append("rollouts")
    if reference == "plain" and isinstance(uncompiled(model), PeftModel):
        found.append("reference")
    return found


def check_rollouts(guard: Intervention, args: TrainingArguments, rollouts: Passes) -> None:
    """Raise `AttachError` where rollouts are to be guarded and another engine samples them."""
    if rollouts == "guarded" and on_activations(guard) is not None and getattr(args, "use_vllm", False):
        raise AttachError(VLLM)


def reference_model(
    guard: Intervention, model: nn.Module, args: TrainingArguments, trainer: Trainer | None, reference: Passes
) -> nn.Module | None:
    """The reference model that must be guarded as the policy is; None where there is none, or it is to be plain.

    Raises `AttachError` where the reference is to be guarded and cannot be.
    """
    if reference == "plain" or on_activations(guard) is None:
        return None
    theirs: Any = args
    if getattr(theirs, "precompute_ref_log_probs", False):
        raise AttachError(PRECOMPUTED)
    if trainer is not None:
        found: nn.Module | None = getattr(trainer, "ref_model", None)  # theirs: only some trainers have one
        return found
    # Of a trainer that it was not added to, a callback sees the arguments: those of DPO and its like name a reference.
    has_reference = any(hasattr(theirs, name) for name in ("precompute_ref_log_probs", "sync_ref_model"))
    unused = getattr(theirs, "beta", None) == 0  # GRPO without a KL term
    if has_reference and not unused and not isinstance(uncompiled(model), PeftModel):
        raise AttachError(UNSEEN.format(config=type(args).__name__))
    return None
