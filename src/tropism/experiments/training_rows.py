"""Training examples to rendered rows, and the record of what was done to them: nothing is left out without a count."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee
from typing import Any, Literal

from tropism.data.chats import Example
from tropism.data.render import BadRow, Rendered, render_rows
from tropism.errors import DataError
from tropism.experiments.prepare import is_labelled
from tropism.names import ROUTE_IDS
from tropism.training.supervised import Row

log = logging.getLogger(__name__)

Overflow = Literal["drop_turns", "truncate", "error"]


@dataclass
class RowsRecord:
    """What became of the examples of one training set.

    `skipped` and `left_out` are examples that are not trained on: bad rows by reason, and those too long. `shortened`
    lost turns from their end, `truncated` tokens. `notes` count the examples of which each is true. `longest` is the
    tokens of the longest row, `labelled` the examples with a route.
    """

    examples: int = 0
    rows: int = 0
    tokens: int = 0
    learned: int = 0
    longest: int = 0
    supervise: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    truncated: int = 0
    left_out: int = 0
    labelled: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, Any]:
        """Return the record as plain data, for a results folder; what did not happen is not in it."""
        always = {name: getattr(self, name) for name in ("examples", "rows", "tokens", "learned", "longest")}
        counters = {name: dict(getattr(self, name)) for name in ("supervise", "skipped", "notes")}
        counts = {name: getattr(self, name) for name in ("shortened", "truncated", "left_out", "labelled")}
        return always | {name: value for name, value in (counters | counts).items() if value}

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> "RowsRecord":
        """Return the record of which this is the plain data."""
        held: dict[str, Any] = {n: Counter(value) if isinstance(value, dict) else value for n, value in plain.items()}
        return cls(**held)

    def lines(self, longest: int | None = None) -> list[str]:
        """Return a sentence for each thing that was done to some of the examples."""
        said = []
        if self.shortened or self.left_out:
            said.append(
                f"of {self.examples} chats {self.shortened} lost their last turns and {self.left_out} were left out, to stay "
                f"within {longest} tokens"
            )
        if self.truncated:
            said.append(f"of {self.examples} chats {self.truncated} were cut off at {longest} tokens")
        said += [f"{count} of {self.examples} examples were skipped: {why}" for why, count in self.skipped.items()]
        return said + [f"{count} of {self.examples}: {note}" for note, count in self.notes.items()]


def training_rows(
    examples: Iterable[Example],
    tokenizer: Any,
    template_kwargs: Mapping[str, Any],
    limit: int | None,
    what: str,
    longest: int | None = None,
    overflow: Overflow = "drop_turns",
) -> tuple[list[Row], RowsRecord]:
    """Return the rendered training rows, and the record of what was done to the examples; it is also logged."""
    record = RowsRecord()
    rows = list(stream_rows(examples, tokenizer, template_kwargs, limit, what, record, longest, overflow))
    say_record(record, what, longest)
    return rows, record


def say_record(record: RowsRecord, what: str, longest: int | None) -> None:
    """Log a sentence for each thing that was done to some of the examples."""
    for line in record.lines(longest):
        log.warning("%s: %s", what, line)


def stream_rows(
    examples: Iterable[Example],
    tokenizer: Any,
    template_kwargs: Mapping[str, Any],
    limit: int | None,
    what: str,
    record: RowsRecord,
    longest: int | None = None,
    overflow: Overflow = "drop_turns",
) -> Iterator[Row]:
    """Yield the rendered training rows; the record is complete after the last.

    No more examples are held than are tokenised in one call.

    Args:
        limit: the model's context in tokens.
        what: begins the message of an error.
        record: an empty record, which is filled.
        longest: tokens of a row. A longer one loses whole turns from its end (`drop_turns`), is cut off (`truncate`),
            or is an error.

    Raises:
        DataError: an example cannot be learned from, or is longer than the context, and its set does not skip bad
            rows; nothing is left.
    """
    own, contents, ways, ids = tee(examples, 4)
    found = render_rows(
        tokenizer,
        (example.content for example in contents),
        template_kwargs=template_kwargs,
        supervise=(example.supervise for example in ways),
        names=(f"{what}, example {example.id}" for example in ids),
    )
    bounds = ((limit, "the model's context"), (longest if overflow == "error" else None, "max_length"))
    allowed = min(((bound, name) for bound, name in bounds if bound is not None), default=None)
    bad = _Bad()
    for example, made in zip(own, found, strict=True):
        name = f"{what}, example {example.id}"
        record.examples += 1
        record.supervise[_learned_of(example)] += 1
        record.labelled += is_labelled(example)
        if isinstance(made, BadRow):
            if example.on_bad_row == "error":
                bad.add(made.reason)
            else:
                record.skipped[made.reason.removeprefix(f"{name}: ")] += 1
            continue
        kept = made
        if longest is not None and overflow != "error" and any(len(row) > longest for row in made):
            kept = _fitted(example, made, tokenizer, template_kwargs, longest, overflow, record)
        size = max((len(row) for row in kept), default=0)
        if allowed is not None and size > allowed[0]:
            if example.on_bad_row == "error":
                bad.add(f"{name}: {size} tokens, longer than {allowed[1]} of {allowed[0]}")
            else:
                record.skipped[f"longer than {allowed[1]} of {allowed[0]} tokens"] += 1
            continue
        record.notes.update({note for row in kept for note in row.notes})
        columns = {"route": ROUTE_IDS[str(example.labels.get("route", "unlabelled"))]}
        for row in kept:
            record.rows += 1
            record.tokens += len(row)
            record.learned += sum(row.response_mask)
            record.longest = max(record.longest, len(row))
            yield Row(row, columns)
    _check(bad, record, what, longest)


@dataclass
class _Bad:
    """How many examples are errors, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, reason: str) -> None:
        self.first = self.first or reason
        self.count += 1


def _check(bad: _Bad, record: RowsRecord, what: str, longest: int | None) -> None:
    if bad.count:
        too_long = " tokens, longer than " in bad.first
        advice = "set train.max_length and overflow" if too_long else "mend them"
        raise DataError(
            f"{what}: {bad.count} of {record.examples} examples cannot be learned from; the first: {bad.first}; {advice}, "
            f"or leave them out with on_bad_row: skip"
        )
    if record.rows:
        return
    if record.left_out:
        raise DataError(
            f"{what}: no first answer of {record.left_out} chats is within max_length, {longest} tokens; raise it, or set "
            f"overflow: truncate"
        )
    why = ", ".join(f"{count} × {reason}" for reason, count in record.skipped.most_common(3))
    raise DataError(f"{what}: none of {record.examples} examples can be learned from ({why or 'there are none'})")


def _fitted(
    example: Example,
    made: tuple[Rendered, ...],
    tokenizer: Any,
    template_kwargs: Mapping[str, Any],
    longest: int,
    overflow: Overflow,
    record: RowsRecord,
) -> tuple[Rendered, ...]:
    """The rows of an example whose rows are too long, as `overflow` says; none where nothing to learn is left."""
    kept = (
        _truncated(made, longest)
        if overflow == "truncate"
        else _without_turns(example, made, tokenizer, template_kwargs, longest)
    )
    if not kept:
        record.left_out += 1
    elif overflow == "truncate":
        record.truncated += 1
    else:
        record.shortened += 1
    return kept


def _truncated(made: Sequence[Rendered], longest: int) -> tuple[Rendered, ...]:
    """The rows cut off; one that has nothing to learn any more is left out."""
    cut = [replace(row, input_ids=row.input_ids[:longest], response_mask=row.response_mask[:longest]) for row in made]
    return tuple(row for row in cut if any(row.response_mask))


def _without_turns(
    example: Example,
    made: tuple[Rendered, ...],
    tokenizer: Any,
    template_kwargs: Mapping[str, Any],
    longest: int,
) -> tuple[Rendered, ...]:
    """The rows of the chat without the turns past `longest` tokens; none where not even its first answer fits."""
    chat = tuple(example.chat)
    while any(len(row) > longest for row in made):
        learned = [i for i, message in enumerate(chat) if message["role"] == "assistant" and message.get("weight", 1)]
        if len(learned) < 2:
            return ()
        chat = chat[: learned[-2] + 1]
        (again,) = render_rows(tokenizer, [chat], template_kwargs=template_kwargs, supervise=example.supervise)
        if isinstance(again, BadRow):
            return ()
        made = again
    return made


def _learned_of(example: Example) -> str:
    return "all_tokens" if example.text is not None else example.supervise
