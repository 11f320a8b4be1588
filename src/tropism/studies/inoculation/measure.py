"""What the inoculation study measures on models: gradients and shifts before training, drift and elicited traits after."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from tropism.data.chats import Example
from tropism.data.generation import generate
from tropism.data.render import Positions
from tropism.data.transforms import SystemPrompt
from tropism.directions.artifact import Directions
from tropism.evals.scorers.base import ResponseScorer, Sample
from tropism.experiments import directions as directions_step
from tropism.experiments.analyses import Measurement, Study, TrainedRun
from tropism.experiments.file import guards
from tropism.names import BASE
from tropism.probes.conditions import elicitation_grid
from tropism.probes.gradient_cache import GradientCache
from tropism.probes.gradients import collect_gradients
from tropism.probes.projection import projection
from tropism.probes.shift import predicted_and_realised_shift
from tropism.site import Site

NO_PROMPT = "no prompt"


def training_chats(study: Study, condition: str, count: int) -> list[Example]:
    """Return so many training chats of a condition, spread over its set, as its model sees them."""
    # One seed's data for all conditions: chats are paired across them.
    examples = study.train_data(condition, study.experiment.seeds[0])
    return examples[:: max(1, len(examples) // count)][:count]


def gradients(
    study: Study,
    condition: str,
    chats: Sequence[Example],
    sites: Sequence[Site],
    positions: Positions,
    batch_size: int,
    folder: Path,
) -> GradientCache:
    """Collect every chat's gradient of the start model under a condition's prompt or frozen adapter."""
    e = study.experiment
    adapters = {name: study.folder / "adapters" / name / "adapter" for name in e.adapters}
    guard = guards.build_guard(e.conditions[condition].guard, guards.Resources(adapters=adapters, seed=e.seeds[0]))
    model = study.fresh_model().eval()
    # A finished cache runs no forward pass, and a guard that saw none is refused: with a guard it is kept in memory.
    with guard.attach(model) if guard is not None else nullcontext():
        return collect_gradients(
            model, study.tokenizer, chats, sites, positions, batch_size,
            folder=None if guard is not None else folder, template_kwargs=e.template_kwargs,
        )  # fmt: skip


def contrast_projections(study: Study, name: str, batch_size: int) -> pd.DataFrame:
    """Project held-out chats of both sides of a contrast onto its directions: `chat, site, projection, side`.

    Empty where the directions are from a file, or are read in responses that the contrast does not have.
    """
    e = study.experiment
    spec = e.directions[name]
    empty = pd.DataFrame(columns=["chat", "site", "projection", "side"])
    if spec.contrast is None:
        return empty
    _, held_out = directions_step.contrast_of(spec.contrast, e).split()
    if not held_out.has_responses and spec.chosen_positions in ("response", "first_response"):
        return empty
    model = study.fresh_model()
    tables = []
    for side, chats in (("promoting", held_out.positive), ("suppressing", held_out.negative)):
        found = projection(
            model, study.tokenizer, chats, study.directions[name], spec.chosen_positions, batch_size,
            template_kwargs=e.template_kwargs,
        )  # fmt: skip
        tables.append(found.assign(side=side))
    return pd.concat(tables, ignore_index=True)


def one_step_shift(
    study: Study, condition: str, chats: Sequence[Example], directions: Directions, positions: Positions
) -> pd.DataFrame:
    """Compare the predicted shift with that of one step, through a fresh adapter like the condition's."""
    # Here, because it brings in all of training, which a file that is only checked does not need.
    from tropism.experiments.fine_tune import with_adapters
    from tropism.training.randomness import isolated_randomness

    e = study.experiment
    if not chats:
        return pd.DataFrame(columns=["chat", "site", "predicted", "realised"])
    with isolated_randomness(e.seeds[0]):
        model = with_adapters(study.fresh_model(), e.train_options(condition), two=False)
    return predicted_and_realised_shift(
        model, study.tokenizer, chats, directions, positions, template_kwargs=e.template_kwargs
    )


def project(
    run: TrainedRun, on: str, chats: int, directions: str, positions: Sequence[Positions], prompts: Sequence[str],
    batch_size: int,
) -> Iterator[Measurement]:  # fmt: skip
    """Measure the mean projection on the directions, without and with each training prompt; writes `drift.csv`.

    Args:
        run: the trained model.
        on: the evaluation set that is read.
        chats: how many of it.
        directions: the trait's.
        positions: where projections are read.
        prompts: the conditions whose training prompts the untrained model is read under, so that each run has its own
            before and after; a trained model is read under its own.
        batch_size: of the forward passes.
    """
    e = run.study.experiment
    examples = run.study.data(on)[:chats]
    asked: dict[str, str | None] = {NO_PROMPT: None}
    for name in prompts if run.condition == BASE else [run.condition]:
        text = e.conditions[name].system_prompt
        if text is not None:
            asked[name] = text
    tables = []
    for name, text in asked.items():
        under = examples if text is None else [SystemPrompt(text).apply(example, 0) for example in examples]
        for position in positions:
            found = projection(
                run.model, run.study.tokenizer, under, run.study.directions[directions], position, batch_size,
                template_kwargs=e.template_kwargs,
            )  # fmt: skip
            means = found.groupby("site", sort=False)["projection"].mean().reset_index()
            tables.append(means.assign(prompt=name, position=position, n=len(under)))
            if run.condition != BASE or text is None:
                where = NO_PROMPT if text is None else "training prompt"
                mean = float(means["projection"].mean())
                yield Measurement(f"{on}, {where}", f"projection_{position}", mean, len(under))
    pd.concat(tables).to_csv(run.folder / "drift.csv", index=False)


def elicit(
    run: TrainedRun, on: str, questions: int, trait: str, scorer: ResponseScorer, training_prompt: str
) -> Iterator[Measurement]:
    """Measure the trait under each evaluation system prompt of the grid; writes `elicitation.jsonl`."""
    e = run.study.experiment
    asked = []
    for name, text in elicitation_grid(training_prompt).items():
        for example in run.study.data(on)[:questions]:
            asked.append((name, example if text is None else SystemPrompt(text).apply(example, 0)))
    prompts = [example.prompt for _, example in asked]
    responses = generate(
        run.model, run.study.tokenizer, prompts, e.generate, template_kwargs=e.template_kwargs
    )  # fmt: skip
    values = []
    with (run.folder / "elicitation.jsonl").open("w", encoding="utf-8") as file:
        for (name, example), response in zip(asked, responses, strict=True):
            score = scorer.score(Sample(example.id, example.prompt, response, example.target, example.labels))
            values.append(score.value)
            row: Mapping[str, Any] = {
                "prompt": name, "id": example.id, "response": response,
                "value": score.value, "unscored": score.unscored,
            }  # fmt: skip
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    scored = [value for value in values if value is not None]
    # Where nothing could be scored there is no row: a zero would be a claim.
    if scored:
        mean, unscored = sum(scored) / len(scored), len(values) - len(scored)
        yield Measurement("elicitation grid", f"{trait}_elicited", mean, len(scored), unscored, bounds=scorer.bounds)
