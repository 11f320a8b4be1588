"""What an experiment can decide with the seeds it has, said before it starts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tropism.errors import RunFolderError
from tropism.experiments.file.spec import ExperimentSpec
from tropism.names import BASE
from tropism.results.folder import load
from tropism.results.summary import baseline_name
from tropism.stats import Look, smallest_effect, to_cells
from tropism.stats.estimates import FEWEST_SEEDS
from tropism.stats.resampling import decompose

SEED_SD, NOISE_SD = 0.1, 0.6
"""Of a difference of two rates, where no run of this folder says better."""


def statement(
    experiment: ExperimentSpec, folder: Path, prompts: Callable[[str], Sequence[Any]], planned: Sequence[Look] = ()
) -> str:
    """Return which differences the planned seeds decide in four of five studies, by simulation; empty where nothing is asked.

    `prompts` gives an evaluation set; `planned` are the looks where seeds are added until it is decided.
    """
    marked = {name: one for name, one in experiment.measure.items() if one.wanted or one.unwanted}
    count = planned[-1].seeds if planned else len(experiment.seeds)
    if not marked or count < FEWEST_SEEDS or not experiment.trained:
        return ""
    fewest = min(len(prompts(where)) for one in marked.values() for where in one.on)
    if fewest == 0:
        return ""
    looks = tuple(planned) or (Look(count, 0.05),)
    seed_sd, noise_sd, whence = _spread(folder)
    effect = smallest_effect(seed_sd=seed_sd, prompts=fewest, noise_sd=noise_sd, planned=looks)
    seeds = f"{count} seeds" if not planned else f"{looks[0].seeds} to {count} seeds"
    told = "no difference of rates is" if effect is None else f"a difference of {effect:.2f} is"
    return (
        f"power: with {seeds} and {fewest} prompts {told} decided in four of five such experiments (standard deviation between "
        f"seeds {seed_sd:.2f}, {whence})"
    )


def _spread(folder: Path) -> tuple[float, float, str]:
    """Standard deviations of differences to the baseline, between seeds and within: of the runs that are here, else assumed."""
    assumed = (SEED_SD, NOISE_SD, "assumed: no guard has two finished seeds here")
    if not (folder / "experiment.yaml").is_file():
        return assumed
    try:
        held = load(folder)
    except RunFolderError:
        return assumed
    baseline, found = baseline_name(held.experiment), []
    for _, part in held.scores.groupby(["metric", "eval_set"], sort=False):
        part = part[part["value"].between(0, 1)]
        own = part[part["condition"] == baseline]
        for condition in dict.fromkeys(part["condition"]):
            mine = part[part["condition"] == condition]
            seeds = sorted(set(mine["seed"].dropna()) & set(own["seed"].dropna()))
            prompts = sorted(set(mine["id"]) & set(own["id"]))
            if condition in (BASE, baseline) or len(seeds) < 2 or len(prompts) < 2:
                continue
            cells = to_cells(mine, seeds, prompts) - to_cells(own, seeds, prompts)
            if np.isfinite(cells).all():
                parts = decompose(cells)
                found.append((parts.seeds.var(ddof=1), (cells - cells.mean(axis=1, keepdims=True)).var()))
    if not found:
        return assumed
    between, within = np.mean(found, axis=0)
    return float(between**0.5), float(within**0.5), "of the runs that are here"
