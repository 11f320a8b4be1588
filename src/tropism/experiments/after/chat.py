"""Conversations with trained conditions side by side: one base model in memory, an adapter for every column.

The guards are off, as they are at evaluation: what answers is the base model with what a run has learned.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from tropism import models
from tropism.activations.mode import adapters_off
from tropism.data.generation import GenerateOptions, generate
from tropism.errors import DataError, SpecError, UsageError
from tropism.experiments.after.finished import Finished, locate
from tropism.experiments.answering import for_generation
from tropism.experiments.file.complaints import listed
from tropism.experiments.file.options import validated
from tropism.experiments.settled import Settled, read
from tropism.experiments.start import start_model
from tropism.experiments.store import RunKey
from tropism.interventions.routing_modes import MODES, ablation_mode
from tropism.names import BASE

Turn = dict[str, str]


@dataclass(frozen=True)
class Column:
    """Who answers: a run, in an ablation mode where it has two adapters (empty where it has one)."""

    key: RunKey
    mode: str = ""

    @property
    def label(self) -> str:
        return f"{self.key.condition} · {self.mode.replace('_', ' ')}" if self.mode else self.key.condition


class Chat:
    """One conversation a column: all are told the same, each goes on from its own answers.

    Made by `open_chat`. `notes` is what a reader must know before reading the answers.
    """

    def __init__(
        self, model: Any, tokenizer: Any, columns: Sequence[Column], options: GenerateOptions,
        template_kwargs: Mapping[str, Any] | None = None, notes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.columns, self.options, self.notes = tuple(columns), options, tuple(notes)
        self.system: str | None = None
        self._model, self._tokenizer, self._template_kwargs = model, tokenizer, template_kwargs
        self._said: list[list[Turn]] = [[] for _ in self.columns]

    @property
    def labels(self) -> list[str]:
        return [column.label for column in self.columns]

    def ask(self, prompt: str, report: Callable[[str, int, int], None] = lambda *_: None) -> list[str]:
        """Each column's answer to a prompt after all that was said; `report(label, index, of)` before each.

        With a temperature the columns draw from the same seed, the number of the turn. Raises `DataError` where the
        conversation no longer fits the model's context; it then stays as it was before the prompt.
        """
        began: list[Turn] = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked: Turn = {"role": "user", "content": prompt}
        answers: list[str] = []
        for index, (column, said) in enumerate(zip(self.columns, self._said, strict=True)):
            report(column.label, index, len(self.columns))
            try:
                with live(self._model, column):
                    answers += generate(
                        _transformer(self._model), self._tokenizer, [[*began, *said, asked]], self.options,
                        seed=len(said) // 2, template_kwargs=self._template_kwargs,
                    )  # fmt: skip
            except DataError as error:
                raise DataError(f"{column.label}: {error}; /reset begins a new conversation") from None
        for said, answer in zip(self._said, answers, strict=True):
            said += [asked, {"role": "assistant", "content": answer}]
        return answers

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        for said in self._said:
            said.clear()

    def instruct(self, system: str | None) -> None:
        """Set the system prompt, or take it away, and begin anew."""
        self.system = system
        self.reset()


def open_chat(
    path: str | Path,
    *,
    conditions: Sequence[str] = (),
    seed: int | None = None,
    modes: bool = False,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
) -> Chat:
    """A chat with conditions of an experiment that `tropism run` finished.

    Args:
        path: the experiment's folder, or one run in it (`runs/caps/caft/seed-0`).
        conditions: a column each: a condition's name, `base` for the untrained model, or `NAME:MODE` for a run with two
            adapters in an ablation mode. By default the baseline and the run that `path` is, or the condition that
            stands after the baseline in the file; with `modes` the first condition with two adapters.
        seed: of the runs; by default the run's own, or the experiment's first.
        modes: every condition in each ablation mode, a column each.
        max_new_tokens, temperature: instead of what the experiment generated with.

    Raises:
        SpecError: a condition, mode or seed that is not there.
        RunFolderError: no results folder; a run that failed, is not finished, or has no adapter.
        UsageError: an option out of its range; `modes` for a run with one adapter.
    """
    found, run = locate(path)
    if run is not None and run.seed is not None:
        if seed not in (None, run.seed):
            raise UsageError(
                f"--seed: {path} is the run of seed {run.seed}, found {seed}; give the experiment's folder"
            )
        seed = run.seed
    names = list(conditions) or _default(found, run, seed, modes)
    columns = [column for name in names for column in _columns(found, name, seed, modes)]
    twice = [column.label for index, column in enumerate(columns) if column in columns[:index]]
    if twice:
        raise SpecError(f"--conditions: {twice[0]!r} is named twice; give each once")
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    held = _one_response(found.experiment.generate, temperature).model_dump() | {
        key: value for key, value in given.items() if value is not None
    }
    options = GenerateOptions(**_checked(held))
    folders = {column.key: found.adapters(column.key) for column in columns}
    source, note = found.source()
    model, tokenizer = start_model(found.experiment, found.folder, source)
    for key, parts in folders.items():
        for part, folder in parts.items():
            model = models.load_adapter(model, folder, name=adapter_name(key, part))
    settled = read(found.folder, str(model.device)) or Settled()
    model = for_generation(settled.experiment(found.experiment), model.eval())
    notes = [*([note] if note else []), *_notes(found, columns)]
    others = [key.condition for key in found.done() if key.seed == columns[0].key.seed and key not in folders]
    if others and not conditions and not modes:
        notes.append(f"also finished: {listed(others)}; choose with --conditions")
    return Chat(model, tokenizer, columns, options, found.experiment.template_kwargs, notes)


def _one_response(options: GenerateOptions, temperature: float | None) -> GenerateOptions:
    """The options of generation for one answer a turn; a greedy one where that is asked for."""
    return options.greedy() if temperature == 0 else options.model_copy(update={"samples": 1})


def adapter_name(key: RunKey, part: str) -> str:
    """What a run's adapter is called in the one model; a prefix keeps it from names that torch's modules use."""
    return f"run-{key.condition}-{part}" if part else f"run-{key.condition}"


@contextmanager
def live(model: Any, column: Column) -> Iterator[None]:
    """The model as one column has it: its adapters active and no others, in its mode."""
    if column.key.condition == BASE:
        with adapters_off(model):
            yield
        return
    parts = ("retain", "forget") if column.mode else ("",)
    names = [adapter_name(column.key, part) for part in parts]
    tuner: Any = model.base_model
    tuner.set_adapter(names)
    with ablation_mode(model, column.mode, retain=names[0], forget=names[-1]) if column.mode else nullcontext():
        yield


def _transformer(model: Any) -> Any:
    """The model inside PEFT's, whose `generate` does not ask how many adapters are active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _columns(found: Finished, name: str, seed: int | None, modes: bool) -> list[Column]:
    """The columns that one entry of `--conditions` stands for."""
    condition, colon, mode = name.partition(":")
    key = found.key(condition, seed)
    two = len(found.adapters(key)) == 2
    if (modes or colon) and not two:
        what = "is the untrained model" if condition == BASE else "was trained with one adapter"
        asked = f"--conditions {name}" if colon else "--modes"
        routed = listed([key.condition for key in _with_two(found, seed)])
        raise UsageError(f"{asked}: {condition!r} {what}, so it has no ablation modes; conditions with two: {routed}")
    if colon and mode not in MODES:
        raise SpecError(f"--conditions {name}: a mode must be one of {listed(MODES)}, found {mode!r}")
    if colon:
        return [Column(key, mode)]
    return [Column(key, mode) for mode in (MODES if modes else MODES[:1])] if two else [Column(key)]


def _default(found: Finished, run: RunKey | None, seed: int | None, modes: bool) -> list[str]:
    e = found.experiment
    if modes:
        two = _with_two(found, seed)
        routed = [key for key in two if e.conditions[key.condition].guard] or two
        if run is None and not routed:
            raise UsageError(
                f"--modes: no finished condition of {e.name!r} has two adapters, so there are no ablation modes; give a "
                f"condition a guard 'gradient_routing', or leave --modes out"
            )
        return [run.condition if run is not None else routed[0].condition]
    if run is not None:
        return [BASE if run.condition == e.baseline else e.baseline, run.condition]
    done = [key.condition for key in found.done() if key.seed == (e.seeds[0] if seed is None else seed)]
    done += [name for name, spec in e.conditions.items() if spec.adapter is not None]
    if e.baseline not in done:
        return [BASE, *done[:1]] if e.baseline == BASE else [BASE, done[0] if done else e.baseline]
    where = done.index(e.baseline)
    others = [*done[where + 1 :], *done[:where], BASE]
    return [e.baseline, others[0]]


def _with_two(found: Finished, seed: int | None) -> list[RunKey]:
    """The finished runs of a seed that have a retain and a forget adapter."""
    wanted = found.experiment.seeds[0] if seed is None else seed
    return [
        key
        for key in found.done()
        if key.seed == wanted and (found.folder.run_path(key) / "adapter" / "forget").is_dir()
    ]


def _notes(found: Finished, columns: Sequence[Column]) -> Iterator[str]:
    for condition in dict.fromkeys(column.key.condition for column in columns if column.key.condition != BASE):
        spec, start = found.experiment.conditions[condition], found.experiment.start_from
        if spec.adapter is not None and start is not None:
            yield f"{condition} is an adapter of the untouched model; here it stands on the model with {start!r} merged in"
        prompt = spec.system_prompt
        if prompt is not None:
            yield f"{condition} was trained with the system prompt {prompt!r}; here there is none until /system sets one"


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return validated(GenerateOptions, options, "generation")
    except SpecError as error:
        raise UsageError(str(error)) from None
