"""Batched generation: padded on the left, stopped at the end of the turn, greedy or sampled from a seed."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from tropism.activations.mode import evaluation_mode
from tropism.data.batches import Batch, batches, check_embedded, embeddings, padding_id
from tropism.data.chats import Chat
from tropism.data.generate_options import GenerateOptions as GenerateOptions
from tropism.data.render import Rendered, render_prompts
from tropism.data.templates import ChatTemplate
from tropism.errors import DataError
from tropism.names import THINKING_MARKS
from tropism.randomness import seeded
from tropism.site import base_model, context_length, input_device

log = logging.getLogger("tropism")

KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "use_cache",
    "cache_implementation",
    "cache_config",
)
"""What of a model's own generation config holds here: its tokens, those that it never says, and how it computes."""
SAID_BY_OPTIONS = ("do_sample", "temperature", "top_p", "top_k", "max_length", "max_new_tokens", "transformers_version")
"""What of it is said by `GenerateOptions` instead, without a word."""


@dataclass(frozen=True)
class Answer:
    """What was answered to a prompt, and whether it was answered to the end."""

    text: str
    finished: bool | None
    """False where it was cut off at `max_new_tokens`; None where whoever answered does not say."""


PROBED_TOKENS = 32
"""How long a prompt is with which a model is tried in a batch."""
BATCH_ROUNDS = 0.05
"""Relative change of a prompt's logits that rounding may bring in a batch, in any precision."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Chat],
    options: GenerateOptions | None = None,
    *,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> list[str]:
    """The model's response to each prompt, in order, without special tokens.

    Prompts are batched by length, left padded, with position ids. Sampling draws from generators seeded by `seed`
    alone: torch's global ones, the accelerator's included, are left as they were. Raises `DataError` where a prompt and
    its response would not fit the model's context.
    """
    answers = generate_answers(
        model, tokenizer, prompts, options, seed=seed, template_kwargs=template_kwargs, report=report
    )
    return [answer.text for answer in answers]


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Chat],
    options: GenerateOptions | None = None,
    *,
    seed: int = 0,
    template_kwargs: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> list[Answer]:
    """What `generate` returns, each with whether it ended by itself."""
    rows = _rendered(tokenizer, prompts, template_kwargs)
    return answers_to_rendered(model, tokenizer, rows, options or GenerateOptions(), seed=seed, report=report)


def answers_in_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Chat],
    options: GenerateOptions,
    takes: Callable[[int], bool],
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> dict[int, Answer]:
    """What `generate_answers` gives to the prompts of some batches alone, by the prompt's place, at temperature 0.

    `takes(n)` says whether batch `n` is answered. Each batch is the one that it is among all the others, so that several
    processes, which share the batches out, answer as one would. Sampling draws from batch to batch, and is refused.
    """
    if options.temperature > 0:
        raise ValueError("batches whose answers are sampled depend on those before them and cannot be shared out")
    rows = _rendered(tokenizer, prompts, template_kwargs)
    return _answered(model, tokenizer, rows, options, 0, report, takes)


def _rendered(tokenizer: Any, prompts: Sequence[Chat], template_kwargs: Mapping[str, Any] | None) -> list[Rendered]:
    names = (f"prompt {index}" for index in range(len(prompts)))
    return list(render_prompts(tokenizer, prompts, template_kwargs=template_kwargs, names=names))


def continue_rendered(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Rendered],
    options: GenerateOptions,
    *,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda *_: None,
) -> list[str]:
    """The continuation of each rendered text, in order: the texts of `answers_to_rendered`."""
    return [answer.text for answer in answers_to_rendered(model, tokenizer, rows, options, seed=seed, report=report)]


def answers_to_rendered(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Rendered],
    options: GenerateOptions,
    *,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda *_: None,
) -> list[Answer]:
    """The continuation of each rendered text, in order; what `generate` does after rendering.

    Generation ends at the tokenizer's end of sequence, at those of the model's generation config, and at what ends an
    assistant turn in the chat template, which is what training supervised. Of the model's generation config only `KEPT`
    holds: a repetition penalty in it (Qwen 2.5's), say, would make "the likeliest token" another one; what is left out is
    logged.
    """
    answers = _answered(model, tokenizer, rows, options, seed, report, lambda _: True)
    return [answers[place] for place in range(len(rows))]


def _answered(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Rendered],
    options: GenerateOptions,
    seed: int,
    report: Callable[[int, int], None],
    takes: Callable[[int], bool],
) -> dict[int, Answer]:
    """The answers to the rows of those batches that `takes` says, by the row's place."""
    check_context(model, [len(row) + options.max_new_tokens for row in rows], "a prompt with its response")
    check_embedded(embeddings(model), rows, tokenizer)
    # The likeliest answer to a prompt is the same each time, so equal prompts are answered once; draws differ.
    same = _equal(rows) if options.temperature == 0 else [[place] for place in range(len(rows))]
    asked = [rows[places[0]] for places in same]
    answers: dict[int, Answer] = {}
    device = input_device(model)
    pad_id = padding_id(tokenizer)
    settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if options.temperature > 0:
        sampled = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
        settings = {"do_sample": True, **sampled}
    if options.repetition_penalty != 1.0:
        settings["repetition_penalty"] = options.repetition_penalty
    if options.min_new_tokens:
        settings["min_new_tokens"] = options.min_new_tokens
    ends = set(end_of_turn_ids(model, tokenizer))
    settings |= {
        "max_new_tokens": options.max_new_tokens,
        "eos_token_id": sorted(ends),
        "pad_token_id": pad_id,
    }
    of_template = ChatTemplate(tokenizer).stop_text()
    stops = [*([of_template] if of_template else []), *options.stop]
    if stops:
        settings |= {"stop_strings": stops, "tokenizer": tokenizer}
    done = 0
    with evaluation_mode(model), _as_asked(model), seeded(seed, device), torch.inference_mode():
        for number, batch in enumerate(_left_padded(model, asked, options.batch_size, pad_id, device)):
            if not takes(number):
                continue
            # transformers' generate derives position ids from the mask, for the models that take them.
            output = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **settings)
            generated = output[:, batch.input_ids.shape[1] :].tolist()
            for place, ids in zip(batch.places, generated, strict=True):
                text = written(tokenizer, ids)
                kept = cut_before(text, stops)
                ended = len(ids) < options.max_new_tokens or len(kept) < len(text) or not ends.isdisjoint(ids)
                for equal in same[place]:
                    answers[equal] = Answer(kept, ended)
                    done += 1
            report(done, len(rows))
    return answers


def _left_padded(
    model: Any, rows: Sequence[Rendered], batch_size: int, pad_id: int, device: torch.device
) -> Iterator[Batch]:
    """Batches padded on the left; of one row each for a model whose rows disturb one another."""
    several = batch_size > 1 and len(rows) > 1 and max(map(len, rows)) > 3
    if several and not _answers_in_batches(model, rows, pad_id, device):
        _say_once(
            f"{type(base_model(model)).__name__} answers a prompt otherwise beside others than alone (it reads no attention "
            "mask, or mixes rows), so prompts are answered one at a time"
        )
        batch_size = 1
    yield from batches(rows, batch_size, pad_id=pad_id, side="left", device=device)


_IN_BATCHES: dict[type, bool] = {}
"""What the probe found, by class of model: it is the code that reads a mask, or does not."""


def _answers_in_batches(model: Any, rows: Sequence[Rendered], pad_id: int, device: torch.device) -> bool:
    """Whether a prompt's next two tokens are the same in a batch as alone; tried once for each class of models.

    Half a prompt is padded to the whole, with two different tokens: where the mask hides the padding, what follows is the
    same to the bit. And it must be that of the half prompt alone, up to rounding: the second token is read from the
    cache, where RWKV in transformers 5.23 mixes the rows of a batch.
    """
    kind = type(base_model(model))
    if kind not in _IN_BATCHES:
        # Without its first two tokens, so that two more fit into the model's context in any case.
        long = list(max(rows, key=len).input_ids[2:][-PROBED_TOKENS:])
        gap = len(long) // 2
        short = long[gap:]
        mask = [[0] * gap + [1] * len(short), [1] * len(long)]
        follow = partial(_next_two, model, pad_id, short[-1], device)
        padded = follow([[pad_id] * gap + short, long], mask)
        otherwise = follow([[short[-1]] * gap + short, long], mask)
        alone = follow([short], [[1] * len(short)])
        moved = (padded - alone).norm(dim=-1) / alone.norm(dim=-1).clamp(min=1e-30)
        _IN_BATCHES[kind] = torch.equal(padded, otherwise) and bool((moved < BATCH_ROUNDS).all())
    return _IN_BATCHES[kind]


def _next_two(
    model: Any, pad_id: int, token: int, device: torch.device, ids: list[list[int]], mask: list[list[int]]
) -> torch.Tensor:
    """The logits `[2, V]` of the first row's next two tokens, where `token` is what is said, whatever is likeliest."""
    said = model.generate(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        max_new_tokens=2,
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=None,
        prefix_allowed_tokens_fn=lambda _row, _ids: [token],
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack([logits[0].float() for logits in said.logits])


def cut_before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops in it.

    >>> cut_before("one two three", ["three", "two"])
    'one '
    """
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _equal(rows: Sequence[Rendered]) -> list[list[int]]:
    """The places of rows with the same tokens, in the order in which each is met first."""
    found: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(tuple(row.input_ids), []).append(place)
    return list(found.values())


def written(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of generated ids as it was written, without special tokens.

    Marks of thinking stay where they are special tokens (Magistral's `[THINK]`): without them, what was thought could not be
    told from the answer.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    marks = set(tokenizer.convert_tokens_to_ids(list(THINKING_MARKS)))
    kept = [index for index in ids if index not in special or (index in marks and index != tokenizer.unk_token_id)]
    text: str = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


@contextmanager
def _as_asked(model: Any) -> Iterator[None]:
    """Inside, tokens are chosen as the options say, whatever else the model's own generation config says."""
    inner = base_model(model)
    own = inner.generation_config
    inner.generation_config = type(own)(
        **{name: value for name in KEPT if (value := getattr(own, name, None)) is not None}
    )
    left_out = {name: value for name, value in own.to_diff_dict().items() if name not in (*KEPT, *SAID_BY_OPTIONS)}
    if left_out:
        _say_once(
            "of the model's generation config is left out, since the experiment's options say how tokens are chosen: "
            + ", ".join(f"{name}={value!r:.60}" for name, value in sorted(left_out.items()))
        )
    try:
        yield
    finally:
        inner.generation_config = own


@cache
def _say_once(what: str) -> None:
    log.warning(what)


def end_of_turn_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a turn: the end of sequence, those of the model's generation config, the chat template's own."""
    configured = model.generation_config.eos_token_id
    extra = configured if isinstance(configured, list) else [configured]
    found = {tokenizer.eos_token_id, *extra, ChatTemplate(tokenizer).stop_id()}
    return sorted(token for token in found if token is not None)


def check_context(model: Any, lengths: Sequence[int], what: str) -> None:
    """Raise `DataError` where a text is longer than the model's context; nothing is ever truncated."""
    limit = context_length(model)
    longer = [length for length in lengths if limit is not None and length > limit]
    if longer:
        raise DataError(
            f"{len(longer)} of {len(lengths)} texts ({what}) are longer than the model's context of {limit} tokens (the "
            f"longest has {max(longer)}); shorten or drop them: nothing is truncated"
        )
