"""What an experiment will cost, before it is run: runs, tokens, memory."""

from typing import Any

from tropism import models
from tropism.experiments import prepare
from tropism.experiments.run import plan
from tropism.experiments.spec import Experiment

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def describe(experiment: Experiment) -> str:
    """A few lines for a terminal: the experiment is valid, and this is its size. Reads the tokenizer and no weights."""
    from transformers import AutoConfig, AutoTokenizer

    source = models.resolve(experiment.model, revision=experiment.revision)
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=experiment.trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=experiment.trust_remote_code)
    tokenizer.name_or_path = source.name
    runs = plan(experiment)
    trained = steps = longest = 0
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    for condition in experiment.conditions:
        examples = prepare.training_examples(experiment, condition, experiment.seeds[0])
        options = experiment.train_options(condition)
        rows = prepare.rows_of(
            examples, tokenizer, experiment.template_kwargs, limit, f"condition {condition}", options.max_length
        )
        count = options.steps(len(rows))
        lengths = [len(row.rendered) for row in rows]
        per_step = options.batch_size * options.accumulation * sum(lengths) / len(lengths)
        trained += round(per_step * count) * len(experiment.seeds)
        steps += count * len(experiment.seeds)
        longest = max(longest, max(lengths) * options.batch_size)
    asked = {name for measure in experiment.measure.values() for name in measure.on}
    prompts = sum(len(prepare.load_data(experiment.data[name], 0)) for name in asked)
    device = models.pick_device(experiment.device)
    kind = str(models.pick_dtype(experiment.dtype, device)).removeprefix("torch.")
    weights, activations = _memory(config, BYTES[kind], longest, experiment.train.checkpointing)
    lines = [
        f"{experiment.name} is valid: {len(experiment.conditions)} conditions × {len(experiment.seeds)} seeds and the untrained "
        f"model, {len(runs)} runs",
        f"model     {source.name} from {'the embedded copy' if source.kind == 'embedded' else source.kind}, {kind} on {device}",
        f"training  {trained:,} tokens in {steps:,} steps",
        f"answers   {prompts * len(runs):,} of at most {experiment.generate.max_new_tokens} tokens ({prompts} prompts a run)",
        f"memory    about {(weights + activations) / 2**30:.1f} GiB: weights {weights / 2**30:.1f}, a batch's activations "
        f"{activations / 2**30:.1f} (an estimate)",
    ]
    if len(experiment.seeds) < 3:
        lines.append(f"note      {len(experiment.seeds)} seeds give no interval over seeds; a claim needs at least 3")
    if source.note:
        lines.append(f"note      {source.note}")
    return "\n".join(lines)


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
