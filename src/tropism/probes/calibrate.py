"""Choose a placebo: of several prompts, the one that lowers the loss as much as the inoculation prompt does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tropism.data.batches import batches, padding_id
from tropism.data.chats import Chat, Example
from tropism.data.render import Rendered, render
from tropism.errors import DataError, UsageError
from tropism.probes.conditions import with_system_prompts
from tropism.probes.response_loss import as_measured, check_lengths, response_losses
from tropism.site import input_device

INOCULATION = "inoculation"


@dataclass(frozen=True, eq=False)
class Calibration:
    """The placebo that was chosen, and every candidate's mean loss."""

    placebo: str
    table: pd.DataFrame
    """`prompt, role, mean_loss, gap, prompt_tokens`, closest first; `gap` is the distance to the inoculation's mean."""


def calibrate_placebo(
    model: nn.Module,
    tokenizer: Any,
    chats: Sequence[Chat | Example],
    inoculation: str,
    candidates: Sequence[str],
    *,
    batch_size: int = 8,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Calibration:
    """The candidate whose mean response loss on `chats` is closest to the inoculation prompt's.

    A placebo that leaves the loss where the neutral condition has it controls for nothing. Use other chats than those
    on which pressure is then measured.

    Raises:
        UsageError: no candidates, or one twice.
        SpecError: one candidate renders as another.
        DataError: a chat has no response.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise UsageError(
            f"calibrate_placebo: candidates must be different prompts, at least one, found {list(candidates)}"
        )
    prompts = {INOCULATION: inoculation, **{f"candidate {i}": prompt for i, prompt in enumerate(candidates)}}
    rows = []
    for name, examples in with_system_prompts(tokenizer, chats, prompts, template_kwargs=template_kwargs).items():
        rendered = [
            render(tokenizer, e.content, template_kwargs=template_kwargs, where=f"chat {e.id!r}") for e in examples
        ]
        losses = mean_losses(model, rendered, [e.id for e in examples], padding_id(tokenizer), batch_size)
        tokens = sum(len(chat.positions["all"]) - len(chat.positions["response"]) for chat in rendered) / len(rendered)
        role = INOCULATION if name == INOCULATION else "candidate"
        rows.append((prompts[name], role, float(losses.double().mean()), tokens))
    table = pd.DataFrame(rows, columns=["prompt", "role", "mean_loss", "prompt_tokens"])
    table["gap"] = (table["mean_loss"] - table["mean_loss"].iloc[0]).abs()
    table = pd.concat([table[:1], table[1:].sort_values("gap", kind="stable")], ignore_index=True)
    return Calibration(str(table["prompt"].iloc[1]), table[["prompt", "role", "mean_loss", "gap", "prompt_tokens"]])


def mean_losses(
    model: nn.Module, rendered: Sequence[Rendered], names: Sequence[str], pad_id: int, batch_size: int
) -> Float[Tensor, "n"]:
    """Each chat's mean response loss in nats, float32 on the CPU; the model is measured in evaluation mode."""
    check_lengths(model, rendered, [f"chat {name!r}" for name in names])
    losses = torch.empty(len(rendered))
    with as_measured(model), torch.no_grad():
        for batch in batches(rendered, batch_size, pad_id=pad_id, device=input_device(model)):
            losses[batch.places] = response_losses(model, batch).float().cpu()
    if not torch.isfinite(losses).all():
        culprit = names[int((~torch.isfinite(losses)).nonzero()[0])]
        raise DataError(f"chat {culprit!r}: its loss is not a finite number; check the model's dtype")
    return losses
