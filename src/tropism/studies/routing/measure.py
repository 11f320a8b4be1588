"""What a routed model does in each ablation mode, and how fast its trait comes back.

`measure` is any function without arguments that measures the model as it now is: `{"caps_rate": 0.31, "loss": 1.2}`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from tropism.data.generation import GenerateOptions, continue_rendered
from tropism.data.render import Rendered
from tropism.errors import DataError, RunFailed
from tropism.interventions.routing_modes import MODES, ablation_mode

Measure = Callable[[], Mapping[str, float]]

FORGET_SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


def measure_modes(model: nn.Module, measure: Measure, modes: Sequence[str] = MODES) -> pd.DataFrame:
    """Call `measure` in each ablation mode; return a table of `mode, metric, value`."""
    rows = []
    for mode in modes:
        with ablation_mode(model, mode):
            rows += [(mode, metric, float(value)) for metric, value in measure().items()]
    return pd.DataFrame(rows, columns=["mode", "metric", "value"])


def forget_scale_curve(model: nn.Module, measure: Measure, scales: Sequence[float] = FORGET_SCALES) -> pd.DataFrame:
    """Call `measure` with the forget adapter scaled by each of `scales` in [0, 1]; return `scale, metric, value`."""
    rows = []
    for scale in scales:
        with ablation_mode(model, "full", scale):
            rows += [(float(scale), metric, float(value)) for metric, value in measure().items()]
    return pd.DataFrame(rows, columns=["scale", "metric", "value"])


def responses_by_mode(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Rendered],
    options: GenerateOptions,
    *,
    modes: Sequence[str] = MODES,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Return the continuation of each prompt in each mode, in order, drawn from the same seed in all modes."""
    found = {}
    for mode in modes:
        with ablation_mode(model, mode):
            found[mode] = continue_rendered(model, tokenizer, prompts, options, seed=seed)
    return found


def bos_prompt(tokenizer: Any) -> Rendered:
    """Return the prompt that is only the beginning of a text; raise `DataError` for a tokenizer without a BOS token."""
    if tokenizer.bos_token_id is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no BOS token, so nothing can be sampled from BOS alone"
        )
    return Rendered([tokenizer.bos_token_id], [False], tokenizer.bos_token)


def prefix_prompt(tokenizer: Any, rendered: Rendered, tokens: int) -> Rendered:
    """Cut a chat after the first `tokens` tokens of its last response, so that the model continues from there.

    Score the continuation alone, never the prefix, which has the trait or not by construction. Raises `DataError`
    where the response has no token left to continue with.
    """
    start = rendered.positions["first_response"]
    response = len([p for p in rendered.positions["response"] if start and p >= start[0]])
    if tokens < 1 or response <= tokens:
        raise DataError(
            f"prefix_prompt: tokens must be at least 1 and fewer than the response has ({response}), found {tokens}"
        )
    ids = rendered.input_ids[: start[0] + tokens]
    return Rendered(ids, [False] * len(ids), tokenizer.decode(ids))


def relearn(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    measure: Measure,
    *,
    parameters: Sequence[nn.Parameter],
    learning_rate: float = 1e-4,
    at_steps: Sequence[int] = (0, 1, 2, 4, 8, 16, 32, 64),
) -> pd.DataFrame:
    """Fine-tune the model that would be shipped and measure as it goes: how fast does what was removed come back?

    One AdamW step per batch, without weight decay, up to the last of `at_steps`. Returns a table of `step, metric,
    value`, with the training loss of the step before as metric `train_loss`. Give batches of 4, 16 or 64 examples with
    the trait for relearning, and of benign data for its control. Afterwards the parameters, their gradients and the
    model's mode are restored bit for bit.

    Args:
        batches: one per step, with `labels`, so that the model computes its own loss; the caller cycles them.
        parameters: what is trained; all must require grad, and no other parameter moves.

    Raises:
        DataError: there are no parameters, one is frozen, or there are too few batches.
        RunFailed: a loss is not finite.
    """
    trained = list(parameters)
    if not trained or not all(p.requires_grad for p in trained):
        raise DataError(
            f"relearn: parameters must be trainable and at least one, found {len(trained)}, some frozen or none"
        )
    steps = sorted(set(at_steps))
    values = [(p, p.detach().clone()) for p in trained]
    # Of all parameters: the backward pass also reaches those that are trainable but not trained here.
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None
    training = model.training
    # Without decay, which would move the parameters also where the data say nothing.
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    source = iter(batches)
    rows: list[tuple[int, str, float]] = []
    try:
        for step in range(steps[-1] + 1):
            if step in steps:
                # After so many steps: 0 is the model as it was shipped.
                model.eval()
                rows += [(step, metric, float(value)) for metric, value in measure().items()]
            if step == steps[-1]:
                break
            batch = next(source, None)
            if batch is None:
                raise DataError(f"relearn: batches must last for {steps[-1]} steps, found {step}")
            loss = _step(model, optimizer, batch)
            if not math.isfinite(loss):
                raise RunFailed(f"relearn: the loss of step {step + 1} is {loss}; lower learning_rate")
            if step + 1 in steps:
                rows.append((step + 1, "train_loss", loss))
    finally:
        with torch.no_grad():
            for p, value in values:
                p.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient
        model.train(training)
    return pd.DataFrame(rows, columns=["step", "metric", "value"])


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Mapping[str, Tensor]) -> float:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())
