"""From texts and the characters learned of them to token ids and masks.

A text is tokenised once, whole. No token may straddle the beginning or the end of a lesson, and the ids before a lesson
must be those that the prompt has by itself, since that is what generation is given: where a tokenizer joins the two
(`assistant\\n` and an answer that begins with a newline, in Qwen's), the text is tokenised apart at that place.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, overload

from tropism.data.lessons import Lesson
from tropism.errors import DataError

APART = "an answer was tokenised apart from its prompt, since the tokenizer joins them and generation cannot"
LONGEST_HEADER = 64
"""Characters before an answer that are worth remembering."""

Offsets = Sequence[tuple[int, int]]
Encoded = tuple[list[int], Offsets]
_START, _END = itemgetter(0), itemgetter(1)


class _Places(Sequence[tuple[int, int]]):
    """Where each token of an encoding is, asked for one at a time: a list of all of them takes longer than the rest."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self._encoding)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, index: slice) -> Offsets: ...
    def __getitem__(self, index: int | slice) -> tuple[int, int] | Offsets:
        if isinstance(index, slice):
            return list(self)[index]
        place: tuple[int, int] = self._encoding.token_to_chars(index)
        return place

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._encoding.offsets)


class Encoder:
    """A tokenizer's ids and masks for many lessons; it remembers the ids of what stands before an answer.

    `bos_begins_turns`: the begin-of-sequence token is also what the template begins each turn with, so that two of them
    may stand at the head of a text.
    """

    def __init__(self, tokenizer: Any, bos_begins_turns: bool = False) -> None:
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id
        # Of a text, and not of none: where one token is both ends of a sequence, what comes of none may be its end.
        self._adds_bos = self._bos is not None and list(tokenizer("a")["input_ids"])[:1] == [self._bos]
        self._may_be_two = bos_begins_turns
        self._fast = bool(tokenizer.is_fast)
        self._added = frozenset(tokenizer.added_tokens_decoder)
        self._known: dict[str, list[int]] = {}
        self._backend: Any = None
        self._checked = False

    def encode(self, lessons: Sequence[Lesson], names: Sequence[str]) -> list[tuple[list[int], list[bool], bool]]:
        """Return for each lesson its ids, which of them are learned, and whether it was tokenised apart.

        Raises:
            DataError: begins with the lesson's name; a text begins with two BOS tokens.
        """
        if not lessons:
            return []
        texts = [lesson.text for lesson in lessons]
        encoded: Sequence[Encoded | None] = self._encode(texts) if self._fast else [None] * len(texts)
        made = []
        for lesson, name, whole in zip(lessons, names, encoded, strict=True):
            cuts = self._cuts(lesson, whole)
            ids, offsets = whole if whole is not None and not cuts else self._apart(lesson.text, cuts)
            if self._adds_bos and ids[:1] != [self._bos]:
                ids, offsets = [self._bos, *ids], [(0, 0), *offsets]
            if self._bos is not None and ids[:2] == [self._bos, self._bos] and not self._may_be_two:
                raise DataError(
                    f"{name}: the rendered chat begins with two BOS tokens; the chat template adds one too many"
                )
            made.append((ids, _mask(lesson, offsets), bool(cuts) and self._fast))
        return made

    def _encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The ids and offsets of many texts in one call.

        Around what a fast tokenizer's backend does its class does a third as much again; the backend is asked itself once
        both have said the same of a first batch.
        """
        backend = self._backend
        # Whoever pads with the tokenizer in between leaves its backend padding.
        if backend is not None and backend.padding is None and backend.truncation is None:
            return [(found.ids, _Places(found)) for found in backend.encode_batch(texts, add_special_tokens=False)]
        encoded = self._encode_through_class(texts)
        if not self._checked and len(texts) > 1:
            self._checked = True
            backend = self._tokenizer.backend_tokenizer
            again = backend.encode_batch(texts, add_special_tokens=False)
            same = [(found.ids, found.offsets) for found in again] == encoded
            one_by_one = [list(map(_Places(found).__getitem__, range(len(found)))) for found in again]
            self._backend = backend if same and one_by_one == [offsets for _, offsets in encoded] else None
        return encoded

    def _encode_through_class(self, texts: Sequence[str]) -> list[Encoded]:
        batch = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _cuts(self, lesson: Lesson, whole: Encoded | None) -> list[int]:
        """Where the text must be tokenised apart; a tokenizer without offsets is always asked for each stretch."""
        inner = [place for span in lesson.spans for place in span if 0 < place < len(lesson.text)]
        if whole is None:
            return sorted(set(inner))
        ids, offsets = whole
        cuts = set()
        for start, end in lesson.spans:
            if 0 < start < len(lesson.text) and not self._as_prompted(lesson.text, start, ids, offsets):
                cuts.add(start)
            after = bisect_left(offsets, end + 1, key=_END)
            if after < len(offsets) and offsets[after][0] < end:
                cuts.add(end)
        return sorted(cuts)

    def _as_prompted(self, text: str, start: int, ids: list[int], offsets: Offsets) -> bool:
        """Whether the text's ids up to `start` are those of the prompt by itself.

        Added tokens split a text before anything else does, so what follows the last of them tells.
        """
        count = bisect_left(offsets, start + 1, key=_END)
        if count < len(offsets) and offsets[count][0] < start:
            return False
        last = count - 1
        while last >= 0 and ids[last] not in self._added:
            last -= 1
        since = offsets[last][1] if last >= 0 else 0
        stretch = text[since:start]
        expected = self._known.get(stretch)
        if expected is None:
            expected = self._ids(stretch)
            if len(stretch) <= LONGEST_HEADER:
                self._known[stretch] = expected
        if expected == ids[last + 1 : count]:
            return True
        # A tokenizer that puts a space before a text's first word: the whole prompt decides.
        return last >= 0 and self._ids(text[:start]) == ids[:count]

    def _apart(self, text: str, cuts: Sequence[int]) -> Encoded:
        """The ids of the stretches between the cuts, one after the other."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            own, places = self._with_offsets(text[start:end], start > 0)
            ids += own
            offsets += [(start + first, start + last) for first, last in places]
        return ids, offsets

    def _with_offsets(self, stretch: str, inside: bool) -> Encoded:
        """The ids of a stretch; `inside` a text, without the space that some tokenizers put before a first word."""
        if not self._fast:
            alone = self._ids(stretch)
            return alone, [(0, len(stretch))] * len(alone)
        whole = self._encode([stretch])[0]
        if not inside:
            return whole
        (newline, _), (ids, offsets) = self._encode(["\n", "\n" + stretch])
        count = len(newline)
        if ids[:count] != newline or ids[count:] == whole[0]:
            return whole
        text = self._tokenizer.decode(ids[count:], clean_up_tokenization_spaces=False)
        shifted = [(first - 1, last - 1) for first, last in offsets[count:]]
        return (ids[count:], shifted) if text == stretch else whole


def _mask(lesson: Lesson, offsets: Offsets) -> list[bool]:
    """True on the tokens whose characters lie in a span; never on the first token, which nothing predicts."""
    mask = [False] * len(offsets)
    for begin, end in lesson.spans:
        first = max(1, bisect_left(offsets, begin + 1, key=_END))
        after = bisect_left(offsets, end, lo=min(first, len(offsets)), key=_START)
        mask[first:after] = [True] * (after - first)
    return mask
