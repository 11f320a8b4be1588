"""What an experiment will cost, before it is run: runs, tokens, memory."""

from dataclasses import dataclass
from typing import Any

from tropism import models
from tropism.errors import HubOutOfReach
from tropism.experiments import prepare
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.plan import plan
from tropism.experiments.store import trained_alike

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Training:
    """What all conditions and seeds train on together; `longest` is the tokens of the largest batch."""

    tokens: int
    steps: int
    longest: int


def describe(experiment: ExperimentSpec) -> str:
    """A few lines for a terminal: the experiment is valid, and this is its size. Reads the tokenizer and no weights.

    Where the hub cannot be asked, the file is checked as far as it can be, and the lines say what was not.
    """
    runs = plan(experiment)
    of = f"{len(experiment.conditions)} conditions × {len(experiment.seeds)} seeds and the untrained model, {len(runs)} runs"
    unknown: list[str] = []
    try:
        source = models.resolve(experiment.model, revision=experiment.revision)
    except HubOutOfReach as error:
        unknown.append(str(error))
        unknown += _unreachable_data(experiment)
    else:
        try:
            return "\n".join(
                [f"{experiment.name} is valid: {of}", *_size(experiment, source, len(runs)), *_notes(experiment)]
            )
        except HubOutOfReach as error:
            unknown.append(str(error))
    return "\n".join(
        [
            f"{experiment.name} is written correctly: {of}",
            *(f"unchecked {line}" for line in dict.fromkeys(unknown)),
            "so tokens and memory are not known; validate again where the hub can be reached",
            *_notes(experiment),
        ]
    )


def _size(experiment: ExperimentSpec, source: models.Source, runs: int) -> list[str]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path, trust_remote_code=experiment.trust_remote_code)
    training = _training(experiment, source, config)
    asked = {name for measure in experiment.measure.values() for name in measure.on}
    prompts = sum(len(prepare.load_data(experiment.data[name], 0)) for name in asked)
    device = models.pick_device(experiment.device)
    kind = str(models.pick_dtype(experiment.dtype, device)).removeprefix("torch.")
    weights, activations = _memory(config, BYTES[kind], training.longest, experiment.train.checkpointing)
    lines = [
        f"model     {source.name} from {'the embedded copy' if source.kind == 'embedded' else source.kind}, {kind} on {device}",
        f"training  {training.tokens:,} tokens in {training.steps:,} steps",
        f"answers   {prompts * runs:,} of at most {experiment.generate.max_new_tokens} tokens ({prompts} prompts a run)",
        f"memory    about {(weights + activations) / 2**30:.1f} GiB: weights {weights / 2**30:.1f}, a batch's activations "
        f"{activations / 2**30:.1f} (an estimate)",
    ]
    return [*lines, *([f"note      {source.note}"] if source.note else [])]


def _training(experiment: ExperimentSpec, source: models.Source, config: Any) -> Training:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=experiment.trust_remote_code)
    tokenizer.name_or_path = source.name
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    tokens = steps = longest = 0
    for condition in experiment.conditions:
        examples = prepare.training_examples(experiment, condition, experiment.seeds[0])
        options = experiment.train_options(condition)
        rows = prepare.rows_of(
            examples, tokenizer, experiment.template_kwargs, limit, f"condition {condition}", options.max_length
        )
        count = options.steps(len(rows))
        lengths = [len(row.rendered) for row in rows]
        per_step = options.batch_size * options.accumulation * sum(lengths) / len(lengths)
        if trained_alike(experiment, source.public(), condition) is None:
            tokens += round(per_step * count) * len(experiment.seeds)
            steps += count * len(experiment.seeds)
        longest = max(longest, max(lengths) * options.batch_size)
    return Training(tokens, steps, longest)


def _unreachable_data(experiment: ExperimentSpec) -> list[str]:
    """Why data sets cannot be read here; raises where one that is here cannot be used."""
    unknown = []
    for spec in experiment.data.values():
        try:
            prepare.load_data(spec, 0)
        except HubOutOfReach as error:
            unknown.append(str(error))
    return unknown


def _notes(experiment: ExperimentSpec) -> list[str]:
    count = len(experiment.seeds)
    return [f"note      {count} seeds give no interval over seeds; a claim needs at least 3"] if count < 3 else []


def _memory(config: Any, width: int, tokens: int, checkpointing: bool) -> tuple[int, int]:
    """Bytes of weights and of the activations of one training batch, from the shapes in the config."""
    text = config.get_text_config(decoder=True)
    d, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * d
    kv = (getattr(text, "num_key_value_heads", None) or text.num_attention_heads) / text.num_attention_heads
    head = 1 if getattr(text, "tie_word_embeddings", True) else 2
    parameters = text.vocab_size * d * head + layers * ((2 + 2 * kv) * d * d + 3 * d * inner)
    # per token and block: the stream twice, norms twice, q k v o, and three of the MLP's width, kept for the backward pass
    kept = layers * (d if checkpointing else (8 + 2 * kv) * d + 4 * inner) + 3 * text.vocab_size * 0.4
    return int(parameters * width), int(tokens * kept * 4)
