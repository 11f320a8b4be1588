"""What a model answered, apart from what it thought first: think blocks and harmony channels.

Scorers read the answer. What was thought is not what was said: a plan in lower case, a draft with another
number, or "I cannot" weighed and dropped would each change a score.
"""

import re
from dataclasses import dataclass
from typing import Literal

from tropism.names import THINKING_MARKS, THINKING_PAIRS

Thinking = Literal["strip", "keep"]
"""`strip` scores the answer alone, `keep` the whole response."""

UNFINISHED = "the thinking was cut off before an answer"
NO_ANSWER = "thinking and no answer after it"

_OPENINGS = {opening.casefold() for opening, _ in THINKING_PAIRS}
# A mark in backticks is text about the mark.
_MARK = re.compile("(?<!`)(?:" + "|".join(map(re.escape, THINKING_MARKS)) + ")", re.IGNORECASE)
_WRAPPED = re.compile(
    r"\s*(?:<answer>|<response>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)(.*?)"
    r"(?:(?:</answer>|</response>|<\|end_of_solution\|>|<\|END_RESPONSE\|>)\s*)?",
    re.DOTALL | re.IGNORECASE,
)

_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>\s*(?P<name>\w+)[^<]{0,200}<\|message\|>"
    r"(?P<text>.*?)(?P<end><\|end\|>|<\|return\|>|<\|call\|>|(?=<\|start\|>)|(?=<\|channel\|>)|\Z)",
    re.DOTALL,
)
# The same where the special tokens were dropped in decoding: "analysisThe user …assistantfinalHere is …".
_BARE_OPENING = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?=\S)(?![a-z.,:;!?'’)-])")
_BARE_FINAL = "assistantfinal"


@dataclass(frozen=True)
class Parted:
    """A response as `thought` and `answer`; `finished` is false where the thinking was never closed."""

    thought: str
    answer: str
    finished: bool = True

    @property
    def missing(self) -> str | None:
        """Why there is no answer, or None where there is one (or where nothing was thought)."""
        if not self.thought or self.answer.strip():
            return None
        return NO_ANSWER if self.finished else UNFINISHED


def part(response: str) -> Parted:
    """Part a response into its thinking and its answer.

    Closed blocks are taken out wherever they stand. A block that is never closed counts from its opening mark
    on, where that begins a line. A closing mark without an opening one ends thinking that the prompt began
    (DeepSeek's templates do). Of harmony's channels `final` is the answer. A response cut off inside thinking
    that the *prompt* began has no mark at all and cannot be told from an answer.

    >>> part("<think>9·2, that is 17? 18.</think>\\n\\n18").answer
    '18'
    >>> part("<think>Let me see").missing
    'the thinking was cut off before an answer'
    """
    if "<|channel|>" in response:
        return _harmony(response)
    bare = _bare_harmony(response)
    if bare is not None:
        return bare
    return _blocks(response)


def _harmony(response: str) -> Parted:
    thought: list[str] = []
    answer: list[str] = []
    last = ""
    for message in _CHANNEL.finditer(response):
        last = message["name"]
        (answer if last == "final" else thought).append(message["text"])
    before = response[: response.index("<|channel|>")].removesuffix("<|start|>assistant")
    return Parted("".join(thought), (before + "".join(answer)).strip(), finished=last == "final")


def _bare_harmony(response: str) -> Parted | None:
    opening = _BARE_OPENING.match(response)
    if opening is None:
        return None
    thought, final, answer = response[opening.end() :].partition(_BARE_FINAL)
    return Parted(thought, answer.strip(), finished=bool(final))


def _blocks(response: str) -> Parted:
    thought: list[str] = []
    answer: list[str] = []
    depth = 0
    place = 0  # up to here the response is sorted
    marks = list(_MARK.finditer(response))
    closings = [mark.start() for mark in marks if mark[0].casefold() not in _OPENINGS]
    for mark in marks:
        opens = mark[0].casefold() in _OPENINGS
        if opens and depth == 0:
            closed = bool(closings) and closings[-1] > mark.start()
            line = response[response.rfind("\n", 0, mark.start()) + 1 : mark.start()]
            if not closed and line.strip():
                continue
            answer.append(response[place : mark.start()])
            place = mark.end()
            depth = 1
        elif opens:
            depth += 1
        elif depth > 1:
            depth -= 1
        else:
            thought.append(response[place : mark.start()])
            if depth == 0:  # the prompt opened this block: what seemed an answer so far was thought
                thought = [*answer, *thought]
                answer = []
            place = mark.end()
            depth = 0
    if depth:
        thought.append(response[place:])
        return Parted(_joined(thought), "".join(answer).strip(), finished=False)
    if not thought and place == 0:
        return Parted("", response)
    rest = "".join([*answer, response[place:]]).strip()
    wrapped = _WRAPPED.fullmatch(rest)
    return Parted(_joined(thought), wrapped[1].strip() if wrapped else rest)


def _joined(thought: list[str]) -> str:
    """The thinking as one text; an empty block counts as thinking too, so that its answer is looked for."""
    return "".join(thought) or " "
