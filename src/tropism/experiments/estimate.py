"""What an experiment will cost, before it is run: runs, tokens, memory. Reads the tokenizer and no weights."""

from dataclasses import asdict, dataclass
from typing import Any

from tropism import models
from tropism.errors import HubOutOfReach
from tropism.experiments import checks, generation_memory, prepare, requirements
from tropism.experiments.executors.gpus import crowding, most_processes
from tropism.experiments.executors.spread import Executor
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.identity import trained_alike
from tropism.experiments.memory import Memory, all_memory, free_memory, of_training
from tropism.experiments.plan import plan
from tropism.experiments.prepared import EvaluationSets
from tropism.experiments.processes import check_processes
from tropism.experiments.settled import LONGEST_EAGER
from tropism.experiments.start import load_tokenizer
from tropism.training.options import TrainOptions

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


@dataclass(frozen=True)
class Training:
    """What all conditions and seeds train on together, and the memory of the largest step among them."""

    tokens: int
    steps: int
    memory: Memory
    batch: str
    """With `batch_size: auto`, which batch will be taken; empty otherwise."""
    processes: int = 1
    """In how many processes that step is taken, each with this memory."""


@dataclass(frozen=True)
class Size:
    """The model, and how much is trained, generated and held in memory."""

    model: str
    kind: str
    note: str
    dtype: str
    device: str
    training_tokens: int
    training_steps: int
    prompts_per_run: int
    responses: int
    max_new_tokens: int
    weights_bytes: int
    trained_bytes: int
    activations_bytes: int
    logits_bytes: int
    batch: str
    generation_bytes: int = 0
    """Held at the height of generation, keys and values included; 0 where another program generates."""
    cache_bytes: int = 0
    """Keys and values among them."""
    processes: int = 1
    """How many processes hold so much each."""

    @property
    def training_bytes(self) -> int:
        """Held at the height of a training step."""
        return self.weights_bytes + self.trained_bytes + self.activations_bytes + self.logits_bytes

    def lines(self) -> list[str]:
        """Return a line each for the model, training, responses and memory."""
        place = "the embedded copy" if self.kind == "embedded" else self.kind
        parts = {
            "weights": self.weights_bytes,
            "what is trained, with gradients and the optimizer": self.trained_bytes,
            "a batch's activations": self.activations_bytes,
            "its logits": self.logits_bytes,
        }
        told = ", ".join(f"{name} {held / GIB:.1f}" for name, held in parts.items())
        each = "" if self.processes == 1 else f" in each of {self.processes} processes"
        return [
            f"model     {self.model} from {place}, {self.dtype} on {self.device}",
            f"training  {self.training_tokens:,} tokens in {self.training_steps:,} steps",
            f"responses {self.responses:,} of at most {self.max_new_tokens} tokens ({self.prompts_per_run} prompts per run)",
            f"memory    about {self.training_bytes / GIB:.1f} GiB in training{each}: {told} (an estimate)",
            *(
                [
                    f"memory    about {self.generation_bytes / GIB:.1f} GiB in generation, its peak: keys and values "
                    f"{self.cache_bytes / GIB:.1f}, weights the rest (an estimate); generate.batch_size makes it smaller"
                ]
                if self.generation_bytes > self.training_bytes
                else []
            ),
            *([f"batch     {self.batch}"] if self.batch else []),
            *([f"note      {self.note}"] if self.note else []),
        ]


@dataclass(frozen=True)
class Estimate:
    """What `tropism validate` says of an experiment that can be run."""

    name: str
    conditions: int
    seeds: int
    runs: int
    size: Size | None
    """None where the hub cannot be asked, so that tokens and memory are not known."""
    unchecked: tuple[str, ...]
    """What could not be checked without the hub."""
    leakage: dict[str, dict[str, int]]
    """For each evaluation set how many of its prompts are also trained on (`shared`), of how many (`of`)."""
    warnings: tuple[str, ...]
    """What is left out of the data or changed in it, and what is shared."""
    notes: tuple[str, ...]
    untrained: int = 0
    """How many of the conditions are not trained."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what to print."""
        trained, there = self.conditions - self.untrained, "the untrained model"
        if self.untrained:
            there = f"{self.untrained} that are there already, {there}"
        of = f"{trained} conditions × {self.seeds} seeds and {there}, {self.runs} runs"
        notes = [*(f"warning   {line}" for line in self.warnings), *(f"note      {note}" for note in self.notes)]
        if self.size is not None:
            return [f"{self.name} is valid: {of}", *self.size.lines(), *notes]
        return [
            f"{self.name} is written correctly: {of}",
            *(f"unchecked {line}" for line in self.unchecked),
            "tokens and memory are not known; validate again where the hub can be reached",
            *notes,
        ]


def estimate(experiment: ExperimentSpec, executor: Executor | None = None) -> Estimate:
    """Check an experiment's data and estimate its cost; with an `executor`, also whether its runs fit side by side.

    Where the hub cannot be asked, the file is checked as far as it can be, and the estimate says what was not.
    """
    runs = len(plan(experiment))
    check_processes(experiment, models.pick_device(experiment.device))
    requirements.check_machine(experiment)
    unknown: list[str] = []
    size, checked = None, None
    try:
        source = models.resolve(experiment.model, revision=experiment.revision)
    except HubOutOfReach as error:
        unknown = [str(error), *_unreachable_data(experiment)]
    else:
        try:
            data = EvaluationSets(experiment)
            checked = _check(experiment, source, data)
            size = size_of(experiment, source, checked, data, runs)
        except HubOutOfReach as error:
            unknown = [str(error)]
    crowded = crowding_of(experiment, size, executor, runs)
    return Estimate(
        experiment.name,
        len(experiment.conditions),
        len(experiment.seeds),
        runs,
        size,
        tuple(dict.fromkeys(unknown)),
        {} if checked is None else checked.leakage,
        (*crowded, *(() if checked is None else checked.warnings)),
        tuple(_notes(experiment)),
        len(experiment.conditions) - len(experiment.trained),
    )


def crowding_of(experiment: ExperimentSpec, size: Size | None, executor: Executor | None, runs: int) -> tuple[str, ...]:
    """Say where runs, or the processes of one, will not fit side by side into a GPU, or the machine that has none."""
    if size is None:
        return ()
    processes, gpus = most_processes(experiment), 0
    each = max(size.training_bytes, size.generation_bytes)
    if size.device.startswith("cuda"):
        import torch

        gpus = torch.cuda.device_count()
    together = 1 if executor is None else executor.at_once(runs, size.device, gpus, processes)
    shared = 0
    if not gpus:
        # Without a GPU a run's processes share the machine; workers of a pool share the start model's weights.
        shared = size.weights_bytes if processes == 1 else 0
        together *= processes
    where = "a GPU" if gpus else "this machine"
    said = crowding(together, each, shared, all_memory(size.device), where)
    return (said,) if said else ()


def _check(experiment: ExperimentSpec, source: models.Source, data: EvaluationSets) -> checks.Checked:
    """Check the data as `tropism run` does before it trains."""
    tokenizer = load_tokenizer(experiment, source)
    limit = models.context_length(source, trust_remote_code=experiment.trust_remote_code)
    checked = checks.check_data(experiment, data, tokenizer, limit)
    requirements.check_directions(experiment, source, tokenizer, limit)
    requirements.check_form(experiment, source)
    return checked


def size_of(
    experiment: ExperimentSpec, source: models.Source, checked: checks.Checked, data: EvaluationSets, runs: int
) -> Size:
    """Return how much is trained, generated and held, from data that are checked already; reads the model's configuration."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path, trust_remote_code=experiment.trust_remote_code)
    asked = {name for measure in experiment.measure.values() for name in measure.on}
    prompts = sum(len(data(name)) for name in asked)
    device = models.pick_device(experiment.device)
    dtype = str(models.pick_dtype(experiment.dtype, device)).removeprefix("torch.")
    training = _training(experiment, source, checked, config, device, BYTES[dtype])
    generation = generation_memory.of_experiment(experiment, checked, data, config, device, BYTES[dtype])
    return Size(
        model=source.name,
        kind=source.kind,
        note=source.note,
        dtype=dtype,
        device=device,
        training_tokens=training.tokens,
        training_steps=training.steps,
        prompts_per_run=prompts,
        responses=prompts * runs * experiment.generate.samples,
        max_new_tokens=experiment.generate.max_new_tokens,
        weights_bytes=training.memory.weights,
        trained_bytes=training.memory.trained,
        activations_bytes=training.memory.activations,
        logits_bytes=training.memory.logits,
        batch=training.batch,
        generation_bytes=generation.total,
        cache_bytes=generation.activations,
        processes=training.processes,
    )


def _training(
    experiment: ExperimentSpec,
    source: models.Source,
    checked: checks.Checked,
    config: Any,
    device: str,
    width: int,
) -> Training:
    tokens = steps = 0
    needed: dict[str, list[Memory]] = {}
    for condition in experiment.trained:
        sizes = checked.sizes[f"condition {condition}"]
        options = experiment.train_options(condition)
        count = options.steps(sizes.rows)
        per_step = options.first_batch * options.accumulation * sizes.tokens / sizes.rows
        if trained_alike(experiment, source.public(), condition) is None:
            tokens += round(per_step * count) * len(experiment.seeds)
            steps += count * len(experiment.seeds)
        needed[condition] = [_of_step(experiment, sizes, one, config, device, width) for one in options.attempts()]
    if not needed:  # arms alone, which are evaluated
        nothing = of_training(
            config,
            experiment.train,
            width=width,
            quantization=experiment.loaded.quantization,
            tokens=0,
            length=0,
            learned=0,
            bf16=False,
            device=device,
        )
        return Training(0, 0, Memory(nothing.weights, 0, 0, 0), "")
    largest = max(needed, key=lambda name: needed[name][0].total)
    batch = ""
    if experiment.train_options(largest).batch_size == "auto":
        batch = _batch(experiment.train_options(largest), needed[largest], device)
    return Training(tokens, steps, needed[largest][0], batch, experiment.train_options(largest).processes)


def _of_step(
    experiment: ExperimentSpec, sizes: checks.Sizes, options: TrainOptions, config: Any, device: str, width: int
) -> Memory:
    """The memory of a step on the longest rows, in one process."""
    tokens = sizes.longest * options.first_batch // options.processes
    length = options.longest_row(sizes.longest)
    bf16 = models.computes_bfloat16(device) if options.bf16 == "auto" else options.bf16
    learned = round(tokens * sizes.learned / sizes.tokens)
    quantization = experiment.loaded.quantization
    asked = experiment.loaded.attn_implementation
    # Where training measures which attention is faster, short rows may get the eager one, which takes more.
    may_be = asked is None and device == "cpu" and models.computes_bfloat16(device) and length <= LONGEST_EAGER
    return of_training(
        config,
        options,
        width=width,
        quantization=quantization,
        tokens=tokens,
        length=length,
        learned=learned,
        bf16=bf16,
        device=device,
        eager=asked == "eager" or may_be,
    )


def _batch(options: TrainOptions, needed: list[Memory], device: str) -> str:
    """Which of the batches of `batch_size: auto` will be taken, as far as the memory that is free now tells."""
    free = free_memory(device)
    for attempt, memory in zip(options.attempts(), needed, strict=True):
        if memory.total <= free:
            return (
                f"auto will take {attempt.first_batch} examples × {attempt.accumulation}, about {memory.total / GIB:.1f} GiB of "
                f"the {free / GIB:.1f} that are free"
            )
    return f"not even the smallest batch fits the {free / GIB:.1f} GiB that are free"


def _unreachable_data(experiment: ExperimentSpec) -> list[str]:
    """Return why data sets cannot be read here; raises where one that is here cannot be used."""
    unknown = []
    for spec in experiment.data.values():
        try:
            for _ in prepare.stream_data(spec, 0):
                pass
        except HubOutOfReach as error:
            unknown.append(str(error))
    return unknown


def _notes(experiment: ExperimentSpec) -> list[str]:
    if not experiment.trained:
        return ["nothing is trained, so intervals are over prompts and none is over seeds"]
    count = len(experiment.seeds)
    seeds = "1 seed gives" if count == 1 else f"{count} seeds give"
    return [f"{seeds} no interval over seeds; a claim needs at least 3"] if count < 3 else []
