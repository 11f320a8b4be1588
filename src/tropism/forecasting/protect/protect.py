"""`protect`: forecast → confirm → experiment file → pilot → race → confirmation → adapter and card, each step resumable.

What a step found is on disk before the next begins: the forecast in `plan.json`, the runs in `development/` and
`confirmation/`, which are ordinary results folders. Run again, it goes on where it stopped; the experiment file is read from
disk each time, so it may be edited between.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tropism import models
from tropism.atomic import write_text
from tropism.data import sources
from tropism.data.chats import Example
from tropism.errors import UsageError
from tropism.experiments.executors import choose
from tropism.experiments.executors.spread import Executor
from tropism.experiments.file.experiment import Experiment
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.progress import Progress
from tropism.experiments.run import run_and_tell
from tropism.experiments.until import run_until_decided
from tropism.forecasting import outputs, page
from tropism.forecasting.forecast import forecast
from tropism.forecasting.found import Forecast, Options, TraitForecast
from tropism.forecasting.protect import card, choice, file, pilot
from tropism.forecasting.protect.candidates import Candidate
from tropism.forecasting.protect.card import Told
from tropism.forecasting.protect.file import no_scorer
from tropism.forecasting.protect.options import ProtectOptions
from tropism.forecasting.protect.race import race
from tropism.forecasting.protect.split import split
from tropism.forecasting.scoring import lines_with, scores_of
from tropism.forecasting.trait import load_all
from tropism.forecasting.verdict import Outcome
from tropism.names import VERSION
from tropism.results.folder import load
from tropism.results.summary import summary_table

PLAN = "plan.json"
FOUND = (Outcome.EXPECTED, Outcome.POSSIBLE)


@dataclass(frozen=True)
class Asked:
    """One call of `protect`."""

    model: str
    data: str
    traits: tuple[str, ...]
    folder: Path
    options: ProtectOptions = field(default_factory=ProtectOptions)
    command: str = ""
    confirm: Callable[[Sequence[str]], Sequence[str]] = field(default=tuple, repr=False)
    """Is shown the traits that the forecast proposes and returns those to protect from; by default all."""
    progress: Progress = field(default_factory=Progress, repr=False)
    workers: int | None = None
    """Processes that do the runs; by default this one."""

    def executor(self) -> Executor | None:
        """Who does the runs."""
        return choose.executor("local" if self.workers is None else "pool", self.workers)

    def identity(self) -> str:
        """What the plan in a folder was made from."""
        path = Path(self.data)
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        said = [
            VERSION,
            self.model,
            path.name,
            content,
            [str(load_all([t])[0]) for t in self.traits],
            str(self.options),
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def protect(asked: Asked) -> Told:
    """Find what the data teaches besides what is wanted, and train it so that it does not; return what the card says.

    Raises:
        DataError, SpecError: as `forecast`; too few rows to hold any out.
        UsageError: a trait without a scorer; a pilot that learned nothing; a folder that belongs to another call.
    """
    began = time.monotonic()
    plan = _plan(asked)
    told = Told(
        asked.model,
        asked.data,
        asked.command,
        tuple(plan["unwanted"]),
        dict(plan["forecast"]),
        int(plan["blamed"]),
        int(plan["rows"]),
        cannot=tuple(plan["cannot"]),
        candidates=tuple(Candidate(name, said, {}) for name, said in plan["candidates"].items()),
    )
    if plan["cannot"] and len(plan["cannot"]) == len(plan["forecast"]):
        why = (
            "protect: this model cannot show any of the traits that were asked for (their directions do not tell held-out pairs "
            "apart), so nothing can be forecast; take a larger model, or other traits"
        )
        card.write(asked.folder, replace(told, stopped=why))
        raise UsageError(why)
    if not plan["unwanted"]:
        card.write(asked.folder, told)
        return told
    experiment = asked.folder / "experiment.yaml"
    quick = Experiment.load(experiment, quick=True)
    passed = pilot.judge(_run(asked, quick, "development", ["baseline"]), told.unwanted, plan.get("clean", {}))
    why = passed.failed(quick.train.max_steps or quick.train.steps(int(plan["trained"])))
    if why:
        card.write(asked.folder, replace(told, stopped=why))
        raise UsageError(why)
    told = replace(told, not_learned=tuple(name for name in told.unwanted if name not in passed.learned))
    rounds = _race(asked, quick, passed.learned)
    winner = next((one.name for one in rounds[-1] if not one.control), None)
    told = replace(told, rounds=tuple(tuple(found) for found in rounds))
    if winner is None:
        why = "protect: no guard's run finished, so there is nothing to choose; development/report.html says why"
        card.write(asked.folder, replace(told, stopped=why))
        raise UsageError(why)
    judged, looks = _confirm(asked, Experiment.load(experiment), winner)
    told = replace(told, choice=judged, looks=looks, seconds=time.monotonic() - began)
    _deliver(asked.folder, judged)
    card.write(asked.folder, told)
    return told


def _plan(asked: Asked) -> dict[str, Any]:
    """The forecast and the experiment file: from the folder where it holds them, else made."""
    held = asked.folder / PLAN
    identity = asked.identity()
    if held.is_file():
        plan: dict[str, Any] = json.loads(held.read_text(encoding="utf-8"))
        if plan.get("identity") != identity:
            raise UsageError(
                f"--out: {asked.folder} holds the protection of another model, data set or choice of options; give another folder"
            )
        return plan
    taken = asked.folder.is_dir() and any(not one.name.startswith(".") for one in asked.folder.iterdir())
    if taken and not (asked.folder / "forecast").is_dir():
        raise UsageError(f"--out: {asked.folder} is not empty and holds no protection; give another folder")
    traits = load_all(list(asked.traits))
    for trait in traits:
        if trait.scorer_spec is None:
            raise UsageError(no_scorer(trait.name))
    examples = sources.load(asked.data)
    model, tokenizer = models.load(asked.model, device=asked.options.device, blocks=asked.options.blocks)
    found = forecast(
        model,
        tokenizer,
        examples,
        traits,
        options=Options(rows=asked.options.rows, own=asked.options.own),
        say=asked.progress.say,
    )
    outputs.write(found, asked.folder / "forecast", data=asked.data)
    page.write(found, examples, asked.folder / "forecast" / "forecast.html", data=asked.data)
    proposed = [one.trait.name for one in found.traits if one.outcome in FOUND]
    unwanted = list(asked.confirm(proposed)) if proposed else []
    plan = {
        "identity": identity,
        "unwanted": unwanted,
        "forecast": {one.trait.name: one.because for one in found.traits},
        "cannot": [one.trait.name for one in found.traits if one.outcome is Outcome.CANNOT],
        "blamed": 0,
        "rows": len(examples),
        "trained": 0,
        "clean": {},
        "candidates": {},
    }
    if unwanted:
        plan |= _write_experiment(asked, found, unwanted, examples, model, tokenizer)
    write_text(held, json.dumps(plan, indent=1, ensure_ascii=False))
    return plan


def _write_experiment(
    asked: Asked, found: Forecast, unwanted: Sequence[str], examples: Sequence[Example], model: Any, tokenizer: Any
) -> dict[str, Any]:
    traits = tuple(one for one in found.traits if one.trait.name in unwanted)
    shown = {line for one in traits for line in rows_to_blame(one, examples)}
    blamed = sorted(shown)
    lines = [line for line, example in enumerate(examples) if example.response]
    clean = [examples[line] for line in lines if line not in shown]
    case = file.Case(asked.model, traits, tuple(blamed), split(lines, examples, seed=0))
    held = file.write(asked.folder, case, examples, model, tokenizer, asked.options)
    return {
        "blamed": len(blamed),
        "trained": len(case.split.train),
        "clean": {one.trait.name: _mean_score(one, clean) for one in traits},
        "candidates": {"baseline": "training on the data as it is", **{one.name: one.said for one in held}},
    }


def _mean_score(one: TraitForecast, examples: Sequence[Example]) -> float:
    """The mean score of a trait over rows; 0 where nothing could be scored."""
    found = scores_of(one.trait, [example.chat for example in examples])
    known = found[np.isfinite(found)]
    return float(known.mean()) if len(known) else 0.0


def rows_to_blame(one: TraitForecast, examples: Sequence[Example]) -> set[int]:
    """The lines that show a trait: those that the forecast named, and of the rows it did not read those its scorer finds."""
    return set(one.shows) | set(lines_with(one.trait, examples))


def _run(
    asked: Asked, experiment: ExperimentSpec, where: str, conditions: Sequence[str], draw: bool = False
) -> pd.DataFrame:
    """Run conditions into a results folder of the protection and return its summary."""
    run_and_tell(
        experiment,
        asked.folder / where,
        only=list(conditions),
        progress=asked.progress,
        command=asked.command,
        draw=draw,
        executor=asked.executor(),
    )
    held = load(asked.folder / where)
    return summary_table(held.results, held.experiment, held.scores, held.look)


def _race(asked: Asked, quick: Experiment, traits: Sequence[str]) -> list[Any]:
    roles = {name: spec.role for name, spec in quick.conditions.items() if name != quick.baseline}
    first = quick.seeds[0]

    def run(conditions: Sequence[str], seeds: int) -> pd.DataFrame:
        some = quick.model_copy(update={"seeds": list(range(first, first + seeds))})
        return _run(asked, some, "development", conditions)

    guards = [name for name, role in roles.items() if role != "control"]
    controls = [name for name, role in roles.items() if role == "control"]
    rounds = race(guards, controls, traits, quick.measure["skill"].margin or 0.05, run)
    every = quick.model_copy(update={"seeds": list(range(first, first + len(rounds)))})
    _run(asked, every, "development", [one.name for one in rounds[-1]], draw=True)
    return rounds


def _confirm(asked: Asked, experiment: Experiment, winner: str) -> tuple[choice.Choice, str]:
    """The winner and the baseline on fresh seeds and prompts that selection never saw."""
    where = asked.folder / "confirmation"
    run_until_decided(
        experiment,
        where,
        max_seeds=asked.options.max_seeds,
        only=["baseline", winner],
        progress=asked.progress,
        command=asked.command,
        executor=asked.executor(),
    )
    held = load(where)
    summary = summary_table(held.results, held.experiment, held.scores, held.look)
    said = "" if held.sequential is None else held.sequential.said(len(held.experiment["seeds"]))
    return choice.judge(summary, held.experiment, winner), said


def _deliver(folder: Path, judged: choice.Choice) -> None:
    """Put the winner's first adapter and the confirmation's report where a user looks; no adapter where nothing helped."""
    target = folder / "adapter"
    if target.is_dir():
        shutil.rmtree(target)
    shutil.copyfile(folder / "confirmation" / "report.html", folder / "report.html")
    if not judged.helped:
        return
    runs = sorted((folder / "confirmation" / judged.winner).glob("seed-*/adapter"))
    source = runs[0] / "retain" if (runs[0] / "retain").is_dir() else runs[0]
    shutil.copytree(source, folder / ".adapter.partial", dirs_exist_ok=True)
    (folder / ".adapter.partial").replace(target)
