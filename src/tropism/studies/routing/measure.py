"""What a routed model does in each ablation mode, how its trait comes back, and how much of it was absorbed.

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
    """`measure` in each ablation mode: a table of `mode, metric, value`."""
    rows = []
    for mode in modes:
        with ablation_mode(model, mode):
            rows += [(mode, metric, float(value)) for metric, value in measure().items()]
    return pd.DataFrame(rows, columns=["mode", "metric", "value"])


def forget_scale_curve(model: nn.Module, measure: Measure, scales: Sequence[float] = FORGET_SCALES) -> pd.DataFrame:
    """`measure` with the forget adapter's scale multiplied by each of `scales` in [0, 1]: `scale, metric, value`."""
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
    """The continuation of each prompt in each mode, in order, drawn from the same seed in all of them."""
    found = {}
    for mode in modes:
        with ablation_mode(model, mode):
            found[mode] = continue_rendered(model, tokenizer, prompts, options, seed=seed)
    return found


def bos_prompt(tokenizer: Any) -> Rendered:
    """The prompt that is nothing but the beginning of a text. Raises `DataError` for a tokenizer that has no BOS."""
    if tokenizer.bos_token_id is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no BOS token, so nothing can be sampled from BOS alone"
        )
    return Rendered([tokenizer.bos_token_id], [False], tokenizer.bos_token)


def prefix_prompt(tokenizer: Any, rendered: Rendered, tokens: int) -> Rendered:
    """A chat cut after the first `tokens` tokens of its last response: what the model adds is the continuation.

    Score the continuation alone, never the prefix, which holds the trait or not by construction. Raises `DataError`
    where the response has no token left to be continued with.
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
    """Fine-tune the shipped model and measure as it goes: how fast does what was removed come back?

    One AdamW step a batch, without weight decay, up to the last of `at_steps`; a table of `step, metric, value`, with
    the training loss of the step before as metric `train_loss`. Give batches of 4, 16 or 64 examples with the trait for
    relearning, and of benign data for its control. Afterwards the parameters, their gradients and the model's mode are
    put back bit for bit.

    Args:
        batches: of a loss of the model's own (`labels` among the columns); cycled by the caller, one a step.
        parameters: what is trained; all must require grad, and no other parameter moves.

    Raises:
        DataError: no parameters, one that is frozen, or too few batches.
        RunFailed: a loss that is not finite.
    """
    trained = list(parameters)
    if not trained or not all(p.requires_grad for p in trained):
        raise DataError(
            f"relearn: parameters must be trainable and at least one, found {len(trained)}, some frozen or none"
        )
    steps = sorted(set(at_steps))
    values = [(p, p.detach().clone()) for p in trained]
    # Of all parameters: the backward pass also reaches those that are trainable and not trained here.
    gradients = [(p, p.grad) for p in model.parameters()]
    for p, _ in gradients:
        p.grad = None
    training = model.training
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    source = iter(batches)
    rows: list[tuple[int, str, float]] = []
    try:
        for step in range(steps[-1] + 1):
            if step in steps:
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


def removed_share(full: float, forget_ablated: float, base: float) -> float | None:
    """The share of the trait in the full model that goes with the forget adapter, `(full − ablated)/(full − base)`.

    None where the full model has no more of the trait than the base model, and there is nothing to remove.
    """
    return (full - forget_ablated) / (full - base) if full > base else None


def absorption(forget_ablated: float, filtered: float, base: float) -> float | None:
    """The share of the *unlabelled* trait that goes when the forget adapter goes.

        absorption = 1 − (forget_ablated − base) / (filtered − base)

    All arguments are trait rates on the same prompts: `forget_ablated` of the routed model without its forget adapter;
    `filtered` of the baseline trained without the labelled examples, which learned the trait from the unlabelled ones
    alone; `base` of the untrained model. 1: the unlabelled trait was learned into the forget adapter and went with it;
    0: it stayed as if nothing had been routed; below 0: routing left more of it than filtering does. None where the
    filtered baseline has no more of the trait than the base model (at full recall nothing unlabelled is left).
    """
    return 1 - (forget_ablated - base) / (filtered - base) if filtered > base else None
