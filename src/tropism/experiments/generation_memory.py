"""How much memory generation takes: the weights that generate, and keys and values; no weights are loaded."""

from typing import Any

from tropism import models
from tropism.evals.scorers.registry import load_scorer
from tropism.experiments import checks
from tropism.experiments.evaluate import generates
from tropism.experiments.file.spec import ExperimentSpec
from tropism.experiments.memory import BITS, FLOAT, Memory, Shape


def of_experiment(
    experiment: ExperimentSpec,
    checked: checks.Checked,
    sets: checks.EvaluationSets,
    config: Any,
    device: str,
    width: int,
) -> Memory:
    """Return the memory of generating in one process; nothing where another program generates, or nothing is generated."""
    scorers = {name: load_scorer(measure.scorer, measure.options()) for name, measure in experiment.measure.items()}
    asked = [name for name in checked.prompts if generates(experiment, scorers, name)]
    options = experiment.generate
    if not asked or options.backend != "transformers":
        return Memory(0, 0, 0, 0)
    half = models.computes_bfloat16(device) if options.dtype == "auto" else options.dtype == "bfloat16"
    precision = 2 if half else width if options.dtype == "auto" else FLOAT
    quantization = experiment.loaded.quantization
    return of_generation(
        config,
        width=width,
        generates=precision if quantization == "none" else width,
        quantization=quantization,
        full=any(experiment.train_options(name).adapter == "full" for name in experiment.trained),
        prompt=max(checked.prompts[name] for name in asked),
        new=options.max_new_tokens,
        batch=min(options.batch_size, max(len(sets(name)) for name in asked)),
    )


def cache(config: Any, *, prompt: int, new: int, batch: int, width: int) -> int:
    """Bytes of keys and values at the height of generating `new` tokens after prompts of `prompt`, `batch` at a time.

    `2 · kv heads · head dim · batch · bytes` a token and layer. Of a layer with a window transformers keeps the window's tokens,
    but for the prompt's own pass, after which all of it is there. The last token is never read.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    windows = [
        getattr(layer, "sliding_window", None)
        for layer in DynamicCache(config=config).layers
        if isinstance(layer, DynamicLayer)
    ]
    tokens = prompt + max(0, new - 1)
    at_end = sum(tokens if window is None else min(tokens, window) for window in windows)
    return 2 * Shape.of(config).kv_heads * max(prompt * len(windows), at_end) * batch * width


def of_generation(
    config: Any, *, width: int, generates: int, quantization: str, full: bool, prompt: int, new: int, batch: int
) -> Memory:
    """Return the memory of generation: the start model, beside it the weights that generate, and the `cache`.

    An adapter is merged into the blocks' linear layers, over few bits into none; `width` is of the start model's weights and
    `generates` of those that generate, all of which are copied where that is another.
    """
    shape = Shape.of(config)
    held = BITS[quantization]
    weights = shape.in_blocks * (width if held is None else held) + shape.embeddings * width
    all_new = full or generates != width
    merged = 0 if held is not None else (shape.in_blocks + (shape.embeddings if all_new else 0)) * generates
    return Memory(int(weights), merged, cache(config, prompt=prompt, new=new, batch=batch, width=generates), 0)
