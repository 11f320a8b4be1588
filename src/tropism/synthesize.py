"""Synthetic chats: a model's responses to the user's own prompts or a data source's, resumable, deduplicated, each with its
provenance.

The rows are chats that any experiment loads as a source.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tropism.data import sources
from tropism.data.chats import check_chat
from tropism.data.sources.formats import format_of, read_objects
from tropism.data.sources.rows import example_of_row
from tropism.errors import DataError, RunFolderError, UsageError
from tropism.given import read_text
from tropism.names import VERSION

Messages = tuple[dict[str, str], ...]
Respond = Callable[[Sequence[Messages], int], Sequence[str | None]]
"""Prompts and a seed to one response each, None where there was none to be had."""


class SynthesizeOptions(BaseModel):
    """How responses are drawn; part of every row's provenance."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    samples: Annotated[int, Field(ge=1)] = 1
    """Responses a prompt; more than one needs a temperature above 0, or they are all the same."""
    system: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Logits of tokens that were said already are divided by it where positive; 1 is none. Endpoints of vLLM take it, too."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    seed: int = 0


LATER: Mapping[str, Any] = {"repetition_penalty": 1.0}
"""Options that came after the first files were written, whose rows do not name them, with what they were then."""


@dataclass
class Outcome:
    """What was written, and what was not and why."""

    prompts: int
    repeated_prompts: int
    written: int = 0
    already_there: int = 0
    duplicates: int = 0
    empty: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.written} chats written, {self.already_there} were there; {self.prompts} prompts "
            f"({self.repeated_prompts} repeated ones left out); left out: {self.duplicates} duplicates, "
            f"{self.empty} empty, {self.failed} failed (run again to ask for these)"
        )


def synthesize(
    prompts: str | Path | Sequence[Messages],
    out: str | Path,
    respond: Respond,
    *,
    model: str,
    options: SynthesizeOptions | None = None,
    max_prompts: int | None = None,
) -> Outcome:
    """Write a chat for every prompt and sample to the JSONL file `out`, going on where an earlier run
    stopped.

    `prompts` is a text file with a prompt a line, a `.jsonl` file of chats (a last response is left off), or the
    prompts themselves, as `prompts_of` returns them; the first `max_prompts` different ones are answered. Rows are `{id,
    messages, labels, provenance}`; ids depend on prompt and sample alone. Batches and their seeds depend on the whole list
    of prompts, so an interrupted and resumed run writes what an uninterrupted one writes.

    Raises `DataError` for prompts that cannot be read, `UsageError` for a `max_prompts` below 1, `RunFolderError` where
    `out` was made with other options.
    """
    chosen = options or SynthesizeOptions()
    if max_prompts is not None and max_prompts < 1:
        raise UsageError(f"max_prompts must be at least 1, found {max_prompts}; leave it out for all prompts")
    given = read_prompts(prompts) if isinstance(prompts, str | Path) else prompts
    unique, repeated = _unique(given, chosen.system)
    unique = unique[:max_prompts]
    made = chosen.model_dump(exclude={"batch_size", "samples"})
    made = {name: value for name, value in made.items() if name not in LATER or value != LATER[name]}
    provenance = {"model": model, "tropism": VERSION, **made}
    target = Path(out)
    there, texts = _existing(target, provenance)
    outcome = Outcome(len(unique), repeated, already_there=len(there))
    target.parent.mkdir(parents=True, exist_ok=True)
    jobs = [(sample, messages) for sample in range(chosen.samples) for messages in unique]
    with target.open("a", encoding="utf-8") as file:
        for first in range(0, len(jobs), chosen.batch_size):
            batch = jobs[first : first + chosen.batch_size]
            ids = [_identity(messages, sample) for sample, messages in batch]
            if all(identity in there for identity in ids):
                continue
            responses = respond([messages for _, messages in batch], _seed(chosen.seed, ids[0]))
            for identity, (sample, messages), response in zip(ids, batch, responses, strict=True):
                if identity in there:
                    continue
                if response is None:
                    outcome.failed += 1
                elif not response.strip():
                    outcome.empty += 1
                elif (key := _text_key(messages, response)) in texts:
                    outcome.duplicates += 1
                else:
                    texts.add(key)
                    file.write(_row(identity, messages, response, {**provenance, "sample": sample}) + "\n")
                    outcome.written += 1
            file.flush()
    return outcome


def read_prompts(path: str | Path) -> list[Messages]:
    """Return the prompts of a text file (one per line, blank lines left out) or of a file of rows (`.jsonl`, `.csv`, …)."""
    source = Path(path)
    if format_of(source) is not None:
        rows = [example_of_row(row, where, where).prompt for where, row in read_objects(source)]
    else:
        lines = [line.strip() for line in read_text(source, "prompts", DataError).splitlines()]
        rows = [({"role": "user", "content": line},) for line in lines if line]
    if not rows:
        raise DataError(f"{source} holds no prompts; write one a line, or a .jsonl file of chats")
    return rows


def prompts_of(
    source: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    path: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Messages]:
    """Return the prompts of a data source: its chats without their last responses.

    The options are those of a data set in an experiment file. Without `split` and `subset` they are where the source says
    that its prompts are (of `harmful_qa` the questions of `attack`, which no test asks), by default the split `train`.

    Raises `DataError` where the source or an option of it is wrong, its rows cannot be had, or a row is raw text.
    """
    usual = sources.source_of(source).prompts
    if split is None and subset is None:
        split, subset = usual
    examples = sources.load(source, split=split or usual[0], subset=subset, path=path, columns=columns)
    raw = next((example.id for example in examples if example.text is not None), None)
    if raw is not None:
        raise DataError(f"source {source!r}: {raw} is raw text and no prompt; give chats, or prompts with --prompts")
    return [example.prompt for example in examples]


def local_model(name: str, options: SynthesizeOptions) -> Respond:
    """Responses of a model in this process, by hub name or folder."""
    from tropism import models
    from tropism.data.generation import GenerateOptions, generate

    model, tokenizer = models.load(name)
    settings = GenerateOptions(
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        temperature=options.temperature,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
    )

    def respond(prompts: Sequence[Messages], seed: int) -> Sequence[str | None]:
        return list(generate(model, tokenizer, prompts, settings, seed=seed))

    return respond


def endpoint_model(name: str, base_url: str, options: SynthesizeOptions) -> Respond:
    """Responses of a model behind an OpenAI-compatible endpoint; what fails after its retries is None."""
    from tropism.evals.judges.base import Request
    from tropism.evals.judges.endpoint import Endpoint

    def respond(prompts: Sequence[Messages], seed: int) -> Sequence[str | None]:
        body: dict[str, Any] = {"seed": seed % 2**31, "top_p": options.top_p}
        if options.repetition_penalty != 1:  # OpenAI's own endpoint knows no such key
            body["repetition_penalty"] = options.repetition_penalty
        endpoint = Endpoint(name, base_url=base_url, temperature=options.temperature, extra_body=body)
        texts: list[str | None] = [None] * len(prompts)
        for index, reply in endpoint.answers([Request(prompt, options.max_new_tokens) for prompt in prompts]):
            texts[index] = None if reply.failure is not None else reply.text
        return texts

    return respond


def _unique(prompts: Sequence[Messages], system: str | None) -> tuple[list[Messages], int]:
    """The prompts without repetitions (up to case and white space), with the system prompt in front of
    each.
    """
    before: Messages = () if system is None else ({"role": "system", "content": system},)
    kept: dict[str, Messages] = {}
    for index, messages in enumerate(prompts):
        chat = check_chat([*before, *messages], f"prompt {index + 1}")
        kept.setdefault(_text_key(chat, ""), chat)
    return list(kept.values()), len(prompts) - len(kept)


def _existing(target: Path, provenance: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Ids and texts that an earlier run has written; a line cut short by an interruption is taken away."""
    if not target.exists():
        return set(), set()
    _mend(target)
    ids: set[str] = set()
    texts: set[str] = set()
    wanted = {**LATER, **provenance}
    for where, row in read_objects(target):
        example = example_of_row(row, where, where)
        made = {**LATER, **(row.get("provenance") or {})}
        other = [key for key, value in wanted.items() if key != "tropism" and made.get(key) != value]
        if other or example.response is None:
            found = f"{other[0]} {made.get(other[0])!r}, now {wanted[other[0]]!r}" if other else "no response"
            raise RunFolderError(
                f"{where}: made with other options ({found}); choose another --out, or the same options"
            )
        ids.add(example.id)
        texts.add(_text_key(example.prompt, example.response))
    return ids, texts


def _mend(target: Path) -> None:
    raw = target.read_bytes()
    if raw and not raw.endswith(b"\n"):
        target.write_bytes(raw[: raw.rfind(b"\n") + 1])


def _row(identity: str, messages: Messages, response: str, provenance: Mapping[str, Any]) -> str:
    chat = [*messages, {"role": "assistant", "content": response}]
    row = {"id": identity, "messages": chat, "labels": {"synthetic": True}, "provenance": dict(provenance)}
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _identity(messages: Messages, sample: int) -> str:
    return f"synthetic/{_hash(list(_parts(messages)))[:16]}/{sample}"


def _text_key(messages: Messages, response: str) -> str:
    return _hash([*_parts(messages), " ".join(response.casefold().split())])


def _parts(messages: Messages) -> Iterator[str]:
    for message in messages:
        yield f"{message['role']}: {' '.join(message['content'].casefold().split())}"


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _seed(seed: int, first: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\x1f{first}".encode()).digest()[:7], "big")
